"""``trtprune bench``: one interleaved run, its numbers from planted times, the command as it is typed."""

from __future__ import annotations

import json
import random
import re
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import trtprune
from tests.kit import bench_kit as kit
from tests.kit.runtime_kit import picture
from trtprune.backends.running import Running
from trtprune.bench import running
from trtprune.bench.bandwidth import CopyProbe, SumProbe
from trtprune.bench.cells import BuildCell, Workload
from trtprune.bench.cost import Call, Cost
from trtprune.bench.interleave import interleave, ratio, spread
from trtprune.bench.memory import measure_peaks, peak_of_this_process, run_job
from trtprune.bench.products import ProductProbe
from trtprune.bench.report import render, to_json
from trtprune.bench.running import Measured, Run
from trtprune.bench.settings import BenchSettings
from trtprune.bench.transformers_peer import TransformersPeer
from trtprune.cli import main
from trtprune.engine_dir import Part
from trtprune.errors import BudgetError
from trtprune.variants import Variants, planning

times = st.lists(st.floats(0.01, 1e5), min_size=1, max_size=30)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("bench")
    kit.checkpoint(place / "model")
    kit.build(place / "model", place / "out", keep=5)
    picture().save(place / "cat.png")
    return place


def command(*arguments: Any) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


# -- the run and its numbers


def test_every_cell_once_a_round_in_orders_drawn_anew() -> None:
    order: list[int] = []

    class Noting(kit.Planted):
        def run(self) -> Any:
            order.append(self.keep)
            return super().run()

    class NotingProbe:
        name, done = "", 0

        def warm_up(self) -> None:
            order.append(99)

        def sample(self) -> None:
            order.append(99)

    rests: list[float] = []
    cells = [Noting("m", keep, range(1, 8), range(2, 9)) for keep in range(6)]
    found = interleave(cells, [NotingProbe()], rounds=5, warmup=2, seed=3, sleep=rests.append)  # type: ignore[list-item]
    rounds = [order[i : i + 7] for i in range(0, len(order), 7)]
    assert len(rounds) == 7
    assert all(sorted(row) == [0, 1, 2, 3, 4, 5, 99] for row in rounds)
    assert len({tuple(row) for row in rounds}) > 4
    assert len(rests) == len(order)
    # What was measured while warming up is not there.
    assert [[sample.first_token for sample in samples] for samples in found] == [[3, 4, 5, 6, 7]] * 6
    again: list[int] = order.copy()
    order.clear()
    cells = [Noting("m", keep, range(1, 8), range(2, 9)) for keep in range(6)]
    interleave(cells, [NotingProbe()], rounds=5, warmup=2, seed=3, sleep=rests.append)  # type: ignore[list-item]
    assert order == again


def test_a_bench_says_how_far_it_is() -> None:
    """Runs of 7 s each: what is left is so many runs, and long rounds are heard of once a minute."""
    now, said, live = [0.0], [], []

    class Slow(kit.Planted):
        def run(self) -> Any:
            now[0] += 7.0
            return super().run()

    class Report:
        def __call__(self, what: str, message: str) -> None:
            said.append((now[0], what, message))

        def live(self, text: str) -> None:
            live.append(text)

    cells = [Slow("m", keep, [1, 2, 3], [2, 3, 4]) for keep in range(20)]
    interleave(
        cells, [], rounds=2, warmup=1, seed=0, report=Report(), sleep=lambda s: None, clock=lambda: now[0],
    )  # fmt: skip
    assert said[0] == (0.0, "round", "warming up, 1 of 1")
    rounds = [(at, text) for at, _, text in said if "run" not in text]
    assert rounds[1:] == [(140.0, "1 of 2, 5 min left"), (280.0, "2 of 2, 2 min left")]
    within = [(at, text) for at, _, text in said if "run" in text]
    assert [at for at, _ in within] == [63.0, 126.0, 203.0, 266.0, 343.0, 406.0]
    assert re.fullmatch(r"warming up, 1 of 1, run 10/20: m \d+, 6 min left", within[0][1])
    assert len(live) == 60
    assert re.fullmatch(r"round 2 of 2, run 20/20: m \d+, 7 s left", live[-1])
    assert max(map(len, live)) < 70, "wraps on a terminal"


@given(times)
def test_percentiles_are_numpys(samples: list[float]) -> None:
    found = spread(samples)
    for q in (50, 90, 99):
        assert found[f"p{q}"] == pytest.approx(np.percentile(samples, q), abs=5e-4)
    assert found["p50"] == pytest.approx(statistics.median(samples), abs=5e-4)


@given(times, st.randoms(use_true_random=False))
def test_ratios_are_taken_round_by_round(base: list[float], rng: random.Random) -> None:
    """A machine that is slower by any factor in a round is as much slower for both."""
    other = [value / rng.choice([1.5, 2.0, 4.0]) for value in base]
    drift = [rng.uniform(0.1, 10) for _ in base]
    expected = statistics.median(b / o for b, o in zip(base, other, strict=True))
    slowed = [[value * d for value, d in zip(row, drift, strict=True)] for row in (base, other)]
    assert ratio(*slowed)["p50"] == pytest.approx(expected, abs=1e-3)
    assert ratio(*slowed)["p10"] <= ratio(*slowed)["p50"] <= ratio(*slowed)["p90"]


def planted_run() -> Run:
    """Unpruned, one budget and a peer, with a floor under the second."""
    cells = [
        Measured(kit.Planted("none", 16, [100, 200, 400], [140, 240, 440]), baseline=True),
        Measured(kit.Planted("adafv", 4, [50, 50, 100], [70, 90, 140])),
        Measured(kit.Planted("transformers float32", 16, [300, 200, 800], [900, 900, 900], peer=True)),
    ]
    found = interleave([m.cell for m in cells], [], rounds=3, warmup=0, seed=0, sleep=lambda s: None)
    for measured, samples in zip(cells, found, strict=True):
        measured.samples = samples
    copy = CopyProbe(1, 8)
    copy.rate.samples = [1e9, 2e9, 1.5e9]
    other = SumProbe(1, 8)
    other.rate.samples = [1.9e9]
    probe = ProductProbe("MatMul", 1.0, lambda: None, {}, kit.Ticks(1.0))
    probe.rate.samples = [4e9, 5e9, 4.5e9]
    slower = ProductProbe("MatMul", 1.0, lambda: None, {}, kit.Ticks(1.0))
    slower.rate.samples = [4.9e9]
    vision, decoder = Call(Part("vision"), ()), Call(Part("decoder"), ())
    step = Call(Part("decoder"), (("sequence", 1),))
    cells[1].prompt = [(vision, Cost(int(50e6), 0, 0, 0)), (decoder, Cost(int(5e6), int(20e6), int(10e6), int(10e6)))]
    cells[1].token = [(step, Cost(int(1e6), int(3e6), int(1e6), 0))]
    cells[1].products = {vision: [slower, probe], decoder: [probe], step: [probe]}
    cells[1].peak = 123_000_000
    engine = {"model": "m", "digest": "d", "build_digest": "b", "method": "adafv", "dtype": "float32", "backend": "x"}
    return Run(engine, "cpu", 2, BenchSettings(tokens=5, rounds=3), cells, [probe], [copy, other], ["a note"])


def test_report_of_planted_times() -> None:
    result = to_json(planted_run(), "trtprune bench out")
    none, pruned, peer = result["rows"]
    assert pruned["first_token_ms"] == {"p50": 50, "p90": 90, "p99": 99}
    assert none["first_token_ms"]["p50"] == 200
    assert pruned["ms_per_token"]["p50"] == 10  # (70 - 50) / 4, 40 / 4, 40 / 4
    assert pruned["tokens_per_second"]["p50"] == 100
    assert pruned["stages_ms"]["vision"]["p50"] == 20
    assert (none["unpruned"], pruned["unpruned"], peer["peer"]) == (True, False, True)
    # 50 MFLOP at 5 GFLOP/s; 40 MB at 2 GB/s rather than 5 MFLOP; a token: 4 MB at 2 GB/s
    assert pruned["floor_stages_ms"] == {"vision": 10, "prefill": 20, "token": 2, "first_token": 30}
    assert pruned["floor_ms"] == 30
    assert pruned["gap"] == {"vision": 2, "prefill": 1, "token": 5, "first_token": pytest.approx(50 / 30, abs=1e-3)}
    assert pruned["flops"] == {"vision": 50e6, "decoder": 5e6, "token": 1e6}
    assert pruned["bytes"]["decoder"] == {"weights": 20e6, "kv": 10e6, "activations": 10e6}
    assert none["floor_ms"] is None
    ratios = {(r["method"], r["against"]): r for r in result["ratios"]}
    assert ratios["adafv", "unpruned"]["first_token"]["p50"] == 4  # of 2, 4 and 4
    assert ratios["adafv", "transformers float32"]["first_token"]["p50"] == 6  # of 6, 4 and 8
    assert ratios["transformers float32", "unpruned"]["first_token"]["p50"] == 0.5
    assert ratios["none", "transformers float32"]["first_token"]["p50"] == 2
    assert ("none", "unpruned") not in ratios
    table = render(result)
    above, head, first, second, third = table.splitlines()[:5]
    assert above.split() == ["x", "transformers", "first", "gap", "gap", "gap"]
    assert head.split()[-4:] == ["gap", "vision", "prefill", "token"]
    assert second.split()[-4:] == ["1.67", "2.00", "1.00", "5.00"]
    assert head.split()[:7] == ["method", "keep", "x", "unpruned", "float32", "token", "ms"]
    assert second.split()[:5] == ["adafv", "4", "4.00", "6.00", "50.0"]
    assert first.split()[:4] == ["none", "16", "1.00", "2.00"]
    assert third.startswith("transformers float32")
    assert "a note" in table
    assert "123" in second


def test_what_the_caches_hold_need_not_move() -> None:
    run = replace(planted_run(), cache_bytes=int(2e6))
    # 38 MB and 2 MB at 2 GB/s
    assert to_json(run, "")["rows"][1]["floor_stages_ms"] == {
        "vision": 10,
        "prefill": 19,
        "token": 1,
        "first_token": 29,
    }


def test_a_time_below_its_floor_is_a_finding() -> None:
    run = planted_run()
    assert to_json(run, "")["findings"] == []
    run.cells[1].prompt = [(call, cost + Cost(int(1e8))) for call, cost in run.cells[1].prompt]
    result = to_json(run, "")
    # 150 MFLOP for 20 ms, 105 for 20 ms
    assert result["rows"][1]["gap"]["vision"] == pytest.approx(20 / 30, abs=1e-3)
    expected = [f"adafv 4: {what}" for what in ("vision took 0.667", "prefill took 0.952")]
    assert [text.split(" of its floor")[0] for text in result["findings"]] == expected
    assert "WRONG: adafv 4: vision took 0.667 of its floor" in render(result)


def test_findings_fail_the_command(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report is written all the same."""
    monkeypatch.setattr("trtprune.bench.report.floor_ms", lambda *_: 1e6)
    report = place / "wrong.json"
    code, out, err = command(
        "bench", place / "out", "--rounds", 1, "--warmup", 1, "--max-new-tokens", 2, "--threads", 1, "--keep", 5,
        "--no-memory", "--json", report,
    )  # fmt: skip
    assert code == 1
    found = json.loads(report.read_text())
    assert len(found["findings"]) == 10  # vision, prune, prefill, token and all of it, of two cells, less one prune
    assert "WRONG: none 16: vision took" in out
    assert f"{len(found['findings'])} times are below their floors" in err
    assert "run it again while nothing else runs" in err


def test_a_cell_reads_the_clock_around_the_first_token(place: Path) -> None:
    vlm = trtprune.load(place / "out", threads=1)
    cell = BuildCell(vlm, "adafv", 4, Workload(picture(), "What?", 5), clock=kit.Ticks(0.25, 0.5))
    sample = cell.run()
    assert (sample.first_token, sample.total) == (250, 750)
    assert sample.per_token == 125
    expected = vlm.generate(picture(), "What?", keep=4, max_new_tokens=5, ignore_eos=True)
    assert list(sample.token_ids) == expected.token_ids
    assert sample.kv_cache_bytes == expected.kv_cache_bytes
    assert cell.run().token_ids == sample.token_ids


# -- memory


def test_peak_memory_grows_with_what_is_touched_and_is_not_the_parents() -> None:
    """The pitfall of ru_maxrss: a child begins with its parent's."""
    code = (
        "import sys; from trtprune.bench.memory import peak_of_this_process as p; a = p(); b = bytearray(10**8);"
        "b[::4096] = b'x' * len(b[::4096]); c = p(); del b; print(a, c, p())"
    )
    ballast = bytearray(3 * 10**8)
    ballast[::4096] = b"x" * len(ballast[::4096])
    mine = peak_of_this_process()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, touched, after = (int(part) for part in done.stdout.split())
    assert mine is not None
    assert mine > 3 * 10**8 > before
    assert 0.99e8 < touched - before < 1.1e8
    assert after == pytest.approx(touched, rel=0.01)


def test_peaks_of_a_build(place: Path) -> None:
    job = {"directory": str(place / "out"), "image": str(place / "cat.png"), "prompt": "What?", "tokens": 2}
    job |= {"threads": 1, "provider": None, "provider_options": {}}
    peaks, why = measure_peaks(job | {"keeps": [8, 2]})
    assert why == ""
    assert peaks.keys() == {2, 8}
    assert 10**7 < (peaks[2] or 0) <= (peaks[8] or 0)
    assert list(run_job(job | {"checkpoint": str(place / "model"), "dtype": "bfloat16", "keeps": [16]})) == [16]
    peaks, why = measure_peaks(job | {"keeps": [3, 99]})  # as far as it comes
    assert peaks.keys() == {3}
    assert "exit code 1" in why
    assert "99" in why


# -- the command


def test_bench_with_nothing_but_a_directory(place: Path) -> None:
    """And everything it writes."""
    arguments = ("bench", place / "out", "--rounds", 2, "--warmup", 1, "--max-new-tokens", 3, "--threads", 1)
    code, out, err = command(*arguments, "--json", place / "bench.json", "--plot", place / "bench.png")
    assert code == 0, err
    found = json.loads((place / "bench.json").read_text())
    assert found["schema"] == 1
    assert [(row["method"], row["keep"]) for row in found["rows"]] == [("none", 16), ("adafv", 5), ("adafv", 2)]
    for row in found["rows"]:
        assert row["n"] == 2
        assert row["peak_memory_bytes"] > 10**7
        assert row["floor_ms"] > 0
        assert row["gap"]["first_token"] == pytest.approx(row["first_token_ms"]["p50"] / row["floor_ms"], rel=0.01)
        assert row["kv_cache_bytes"] > 0
        assert set(row["flops"]) == {"vision", "embed", "pruner", "decoder", "token"}
    assert found["rows"][0]["flops"]["decoder"] > found["rows"][2]["flops"]["decoder"]
    assert found["engine"]["digest"] == trtprune.load(place / "out").config.model.digest
    assert len(found["ratios"]) == 2
    assert out == render(found) + "\n"
    with Image.open(place / "bench.png") as drawn:
        assert drawn.width > 500


def test_methods_options_and_all(place: Path) -> None:
    arguments = ("bench", place / "out", "--rounds", 1, "--warmup", 1, "--max-new-tokens", 2, "--no-memory", "-q")
    code, out, err = command(
        *arguments, "--keep", "16,4", "--methods", "random,adafv:quota=0.5,none", "--json", "-", "--threads", 1
    )
    assert code == 0, err
    rows = json.loads(out)["rows"]
    assert [(r["method"], r["keep"]) for r in rows] == [("none", 16), ("random", 4), ("adafv quota=0.5", 4)]
    assert all(row["peak_memory_bytes"] is None for row in rows)
    variants, named = planning.choose_variants("all", Variants(place / "out").own)
    assert not named
    assert len(variants) == len(trtprune.pruning.names()) - 1
    assert Variants(place / "out").own in variants
    # The tiny decoder has 3 layers: methods that prune behind later ones are left out, and named.
    cells, left_out = planning.plan_cells(Variants(place / "out"), variants, [4], named=False)
    assert {text.split()[0] for text in left_out} >= {"fastv", "pyramiddrop", "sparsevlm"}
    assert len(cells) + len(left_out) == len(variants)
    more, named = planning.choose_variants("all, divprune:center=true,adafv", Variants(place / "out").own)
    assert not named
    assert [v.label for v in more] == [*(v.label for v in variants), "divprune center=true"]
    with pytest.raises(BudgetError, match="adafw"):
        planning.choose_variants("all,adafw", Variants(place / "out").own)


def test_transformers_is_asked_the_same(place: Path) -> None:
    question = Workload(picture(), "What is it?", 6)
    peer = TransformersPeer(place / "model", "float32", question, threads=1)
    theirs = peer.run()
    vlm = trtprune.load(place / "out", threads=1)
    ours = BuildCell(
        Variants(place / "out", Running(threads=1)).open(planning.Variant.make("none")), "none", 16, question
    ).run()
    assert theirs.prompt_tokens == ours.prompt_tokens
    assert theirs.token_ids == ours.token_ids
    assert theirs.kv_cache_bytes == (ours.prompt_tokens + 5) * vlm.config.kv.bytes_per_token
    assert peer.keep == 16
    assert theirs.stages["vision"] > 0
    early = sum(ms for stage, ms in theirs.stages.items() if stage != "decode")
    assert early == pytest.approx(theirs.first_token)
    assert theirs.first_token + theirs.stages["decode"] == pytest.approx(theirs.total)


def test_against_transformers(place: Path) -> None:
    code, out, err = command(
        "bench", place / "out", "--rounds", 1, "--warmup", 1, "--max-new-tokens", 3, "--threads", 1, "--keep", 4,
        "--against", "transformers", "--checkpoint", place / "model", "--image", place / "cat.png", "--json", "-", "-q",
        "--no-memory",
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(out)
    assert [row["method"] for row in found["rows"] if row["peer"]] == ["transformers float32", "transformers bfloat16"]
    assert {ratio["against"] for ratio in found["ratios"]} == {
        "unpruned", "transformers float32", "transformers bfloat16"
    }  # fmt: skip
    assert "transformers float32: answers the same 3 tokens as unpruned" in found["notes"]


@pytest.mark.parametrize("method", ["none", "random"])
def test_against_openvino(place: Path, tmp_path: Path, method: str) -> None:
    """Its cells run in OpenVINO, on a build of their own, whatever the directory was built with."""
    if method == "none":
        kit.build(place / "model", tmp_path / "out", method="none")
    settings = BenchSettings(
        keeps=[4],
        methods="random",
        against=["openvino"],
        rounds=1,
        warmup=1,
        tokens=3,
        memory=False,
        running=Running(threads=1),
    )
    run = running.run_bench(tmp_path / "out" if method == "none" else place / "out", settings)
    result = to_json(run, "")
    assert [(row["method"], row["keep"], row["peer"]) for row in result["rows"]] == [
        ("none", 16, False),
        ("random", 4, False),
        ("openvino float32", 16, True),
        ("openvino bf16", 16, True),
    ]
    backends = [type(cell.cell.vlm.chain.session("decoder")).__name__ for cell in run.cells]  # type: ignore[attr-defined]
    assert backends == ["OrtSession", "OrtSession", "OpenVinoSession", "OpenVinoSession"]
    assert "openvino float32: answers the same 3 tokens as unpruned" in result["notes"]
    assert {ratio["against"] for ratio in result["ratios"]} == {"unpruned", "openvino float32", "openvino bf16"}
    assert result["rows"][2]["floor_ms"] is None


def test_both_peers_and_their_memory(place: Path) -> None:
    code, out, err = command(
        "bench", place / "out", "--rounds", 1, "--warmup", 1, "--max-new-tokens", 2, "--threads", 1, "--keep", 4,
        "--against", "openvino", "--against", "transformers", "--checkpoint", place / "model", "--json", "-", "-q",
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(out)
    peers = {row["method"]: row for row in found["rows"] if row["peer"]}
    assert list(peers) == ["transformers float32", "transformers bfloat16", "openvino float32", "openvino bf16"]
    assert all(row["peak_memory_bytes"] > 50e6 for row in peers.values()), found["notes"]
    assert "openvino" in found["machine"]["versions"]


# -- what is refused, and that nothing was done before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--methods", "adafw"], "adafw"),
        (["--methods", "adafv:nope=1"], "nope"),
        (["--methods", ","], "names no method"),
        (["--keep", "0"], "--keep 0: an image has 16 visual tokens"),
        (["--keep", "8,17"], "--keep 17: an image has 16 visual tokens"),
        (["--methods", "sparsevlm"], "sparsevlm"),
        (["--json", "nowhere/b.json"], "there is no directory nowhere"),
        (["--json", "."], "is a directory"),
        (["--plot", "nowhere/b.png"], "there is no directory nowhere"),
        (["--plot", "b.docx"], "not a kind of picture"),
        (["--image", "nowhere.png"], "nowhere.png"),
        (["--against", "transformers", "--checkpoint", "nowhere"], "nowhere"),
    ],
)
def test_refused_before_any_work(
    place: Path, arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Variants, "open", lambda *_: pytest.fail("something was opened"))
    monkeypatch.setattr(running, "interleave", lambda *_, **__: pytest.fail("something was run"))
    monkeypatch.chdir(place)
    code, out, err = command("bench", "out", *arguments)
    assert code == 1, err
    assert out == ""
    line = next(line for line in err.splitlines() if line.startswith("error:"))
    assert words in line
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("missing", "arguments", "hint"),
    [
        ("transformers", ["--against", "transformers"], "pip install 'trtprune[torch]'"),
        ("matplotlib", ["--plot", "b.png"], "pip install 'trtprune[plot]'"),
        ("openvino", ["--against", "openvino"], "pip install 'trtprune[openvino]'"),
    ],
)
def test_what_is_not_installed(
    place: Path, missing: str, arguments: list[str], hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Variants, "open", lambda *_: pytest.fail("something was opened"))
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.chdir(place)
    code, _, err = command("bench", "out", *arguments)
    assert code == 1
    errors = [line for line in err.splitlines() if line.startswith(("error:", "hint:"))]
    assert arguments[0] in errors[0]
    assert hint in errors[1]
