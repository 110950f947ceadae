"""The scripts in benchmarks/: whatever of them runs without a GPU, at sizes that take no time."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open

import tests.kit.bench  # noqa: F401
from trtprune.cli import main
from trtprune.eval.store import Record, Store

import _checkpoints  # isort: skip
import bench_cuda_chain  # isort: skip
import bench_families  # isort: skip
import bench_plugin_harness  # isort: skip
import bench_rtx_current  # isort: skip
import bench_tensorrt_build  # isort: skip
import bench_topk_gather  # isort: skip
import _internvl_checkpoints  # isort: skip
import _packed_checkpoints  # isort: skip
import _qwen3_checkpoints  # isort: skip
import compare_answers  # isort: skip
import count_flops_packed  # isort: skip
import run_gpu  # isort: skip

# -- made-up checkpoints


def test_a_checkpoint_is_what_transformers_reads(tmp_path: Path) -> None:
    size = _checkpoints.write_checkpoint(tmp_path, "tiny", seed=3)
    model, info = transformers.LlavaForConditionalGeneration.from_pretrained(
        tmp_path, dtype=torch.float16, output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert 2 * sum(p.numel() for p in model.parameters()) == size == _checkpoints.weight_bytes("tiny")
    head = model.lm_head.weight.detach().float()
    assert abs(float(head.std()) - 2 / math.sqrt(64)) < 0.02
    assert len(torch.unique(head, dim=0)) == len(head)


def test_sizes_of_the_shapes() -> None:
    """7.06 B is what the model card of llava-1.5-7b-hf says; 1,100,048,384 is TinyLlama-1.1B with 32,000 words."""
    assert _checkpoints.weight_bytes("7b") // 2 == 7_063_427_072
    extra_words = 2 * 64 * 2048
    text = _checkpoints.decoder_bytes("1b") // 2 + 32064 * 2048
    assert text - extra_words == 1_100_048_384


def test_packed_checkpoints(tmp_path: Path) -> None:
    """What transformers reads, and the published numbers of parameters (total_size of the hub's index files / 2)."""
    size = _packed_checkpoints.write_packed(tmp_path, "qwen-tiny", seed=3)
    model, info = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
        tmp_path, dtype=torch.float16, output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert 2 * sum(p.numel() for p in model.parameters()) == size
    published = {
        "qwen2.5-vl-7b": 8_292_166_656,
        "qwen2.5-vl-3b": 3_754_622_976,
        "qwen2-vl-7b": 8_291_375_616,
        "qwen2-vl-2b": 2_208_985_600,
    }
    for name, parameters in published.items():
        assert sum(map(math.prod, _packed_checkpoints.tensors(name).values())) == parameters


def test_qwen3_checkpoints(tmp_path: Path) -> None:
    """The same of Qwen3-VL."""
    size = _qwen3_checkpoints.write_qwen3(tmp_path, "qwen3-tiny", seed=3)
    model, info = transformers.Qwen3VLForConditionalGeneration.from_pretrained(
        tmp_path, dtype=torch.float16, output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert 2 * sum(p.numel() for p in model.parameters()) == size
    published = {"qwen3-vl-8b": 8_767_123_696, "qwen3-vl-4b": 4_437_815_808, "qwen3-vl-2b": 2_127_532_032}
    for name, parameters in published.items():
        assert sum(map(math.prod, _qwen3_checkpoints.tensors(name).values())) == parameters


def test_internvl_checkpoints(tmp_path: Path) -> None:
    """What transformers reads; the sizes are those that the model cards round to 0.9, 2.1 and 7.9 billion."""
    size = _internvl_checkpoints.write_internvl(tmp_path, "internvl-tiny", seed=3)
    model, info = transformers.InternVLForConditionalGeneration.from_pretrained(
        tmp_path, dtype=torch.float16, output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert 2 * sum(p.numel() for p in model.parameters()) == size
    for name, billions in {"internvl3-1b": 0.9, "internvl3-2b": 2.1, "internvl3-8b": 7.9}.items():
        shapes = _internvl_checkpoints.tensors(name)
        assert round(sum(map(math.prod, shapes.values())) / 1e9, 1) == billions


@pytest.mark.parametrize(
    ("shape", "size", "tokens"),
    [
        ("internvl-tiny", "113x113", 20),
        ("qwen-tiny", "112x84", 12),
        ("qwen3-tiny", "320x256", 80),
        ("smolvlm-tiny", "200x150", 13 * 4),
    ],
)
def test_families_beside_transformers(tmp_path: Path, shape: str, size: str, tokens: int) -> None:
    """The first tokens are equal, or the script stops."""
    out = tmp_path / "found.json"
    bench_families.main(["--shape", shape, "--size", size, "--rounds", "1", "--json", str(out)])
    found = json.loads(out.read_text())
    assert found["visual_tokens"] == tokens
    assert set(found["ms"]) == {"100%", "25%", "10%", "transformers"}


def test_flops_of_packed_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer tokens take fewer operations of the decoder, and the same of the tower."""
    monkeypatch.setattr(sys, "argv", ["", "--shape", "qwen-tiny", "--json", str(tmp_path / "flops.json")])
    count_flops_packed.main()
    rows = json.loads((tmp_path / "flops.json").read_text())["rows"]
    assert [row["visual_tokens"] for row in rows] == [391] * 3 + [2691] * 3
    for whole, quarter, tenth in (rows[:3], rows[3:]):
        parts = [row["tera_operations"] for row in (whole, quarter, tenth)]
        assert parts[0]["vision"] == parts[1]["vision"] == parts[2]["vision"] > 0
        assert parts[0]["decoder"] > 3 * parts[1]["decoder"]
        assert parts[1]["decoder"] > parts[2]["decoder"]


def test_a_checkpoint_without_numbers_takes_no_disk(tmp_path: Path) -> None:
    size = _checkpoints.write_checkpoint(tmp_path, "1b")
    files = sorted(tmp_path.glob("*.safetensors"))
    assert size > 2.8e9
    assert sum(file.stat().st_blocks * 512 for file in files) < 1e7
    with safe_open(files[-1], "np") as stream:
        assert not stream.get_slice("language_model.lm_head.weight")[:4].any()


def test_checkpoint_in_writes_once(tmp_path: Path) -> None:
    path = _checkpoints.checkpoint_in(tmp_path, "tiny")
    before = (path / "model-00001-of-00003.safetensors").stat().st_mtime_ns
    assert _checkpoints.checkpoint_in(tmp_path, "tiny") == path
    assert (path / "model-00001-of-00003.safetensors").stat().st_mtime_ns == before


# -- scripts


def test_chain_beside_transformers(tmp_path: Path) -> None:
    out = tmp_path / "chain.json"
    arguments = ["--shape", "tiny", "--provider", "cpu", "--dtype", "float32", "--rounds", "1", "--steps", "2"]
    bench_cuda_chain.main([*arguments, "--folder", str(tmp_path), "--threads", "1", "--json", str(out)])
    result = json.loads(out.read_text())
    assert [row["keep"] for row in result["logits_against_transformers_float32"]] == [16, 8, 4]
    for row in result["logits_against_transformers_float32"]:
        assert row["relative_error"] < 1e-4
        assert row["same_first_token"]
        assert row["relative_error_of_transformers"] > row["relative_error"]  # it computes in bfloat16
    rows = result["rows"]
    assert list(rows) == ["transformers bfloat16", *(f"trtprune float32 keep {keep}" for keep in (16, 8, 4))]
    # 60 words, 16 visual tokens and 2 of 3 new ones; 2 layers of 2 heads of 16, keys and values, 2 bytes.
    assert rows["transformers bfloat16"]["kv_bytes"] == 78 * 2 * 2 * 2 * 16 * 2
    assert result["placement_of_tiny_shape"]["decoder"]["CPUExecutionProvider"]["TensorScatter"] == 4


def test_chain_with_other_logits_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_cuda_chain.Theirs, "logits", lambda self, kept: np.arange(164, dtype=np.float32))
    arguments = ["--shape", "tiny", "--provider", "cpu", "--keep", "4", "--rounds", "1", "--steps", "1"]
    with pytest.raises(SystemExit, match="not those of transformers"):
        bench_cuda_chain.main([*arguments, "--folder", str(tmp_path)])


def test_engine_build_is_measured(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    out = tmp_path / "build.json"
    bench_tensorrt_build.main(["--shape", "tiny", "--json", str(out)])
    result = json.loads(out.read_text())
    assert set(result["engine_s"]) == set(result["engine_bytes"]) == {"vision", "embed", "pruner", "decoder"}
    assert result["peak_rss_bytes"] > result["peak_anonymous_bytes"] > 50e6
    assert result["peak_over_decoder_weights"] == round(
        result["peak_rss_bytes"] / _checkpoints.decoder_bytes("tiny"), 2
    )
    assert result["total_s"]["median"] < 120


def test_a_failed_build_is_no_result() -> None:
    with pytest.raises(SystemExit, match=r"ended with status 3:\nnot today"):
        bench_tensorrt_build.measure([sys.executable, "-c", "import sys; sys.stderr.write('not today'); sys.exit(3)"])


def test_memory_of_a_process_is_seen() -> None:
    code = "import time; b = bytearray(150_000_000); b[::4096] = b'x' * len(b[::4096]); time.sleep(0.2)"
    row = bench_tensorrt_build.measure([sys.executable, "-c", code])
    assert 150e6 < row["peak_anonymous_bytes"] <= row["peak_rss_bytes"] < 250e6


def program(path: Path, text: str, status: int = 0) -> None:
    path.write_text(f'#!/bin/sh\necho "$LD_LIBRARY_PATH" >&2\n{text}\nexit {status}\n')
    path.chmod(0o755)


def test_plugin_harness(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The programs' JSON is taken over; one that fails fails the script and keeps what the other found."""
    with pytest.raises(SystemExit, match="kernel_bench is not in"):
        bench_plugin_harness.main(["--folder", str(tmp_path)])
    program(tmp_path / "kernel_bench", """echo '{"cases": 3, "failed": 0, "times": [{"us": 2.5}]}'""")
    out = tmp_path / "out.json"
    bench_plugin_harness.main(["--folder", str(tmp_path), "--json", str(out)])
    assert "3 cases, 0 failed" in capsys.readouterr().out
    (tmp_path / "libtrtprune_plugins.so").write_bytes(b"")
    (tmp_path / "lean").mkdir()
    program(tmp_path / "plugin_harness", "true", status=1)
    lean = tmp_path / "lean" / "libnvinfer_lean.so.10"
    with pytest.raises(SystemExit, match=f"plugins: {lean.parent}"):
        bench_plugin_harness.main(["--folder", str(tmp_path), "--lean", str(lean), "--json", str(out)])
    result = json.loads(out.read_text())
    assert result["kernels"]["times"] == [{"us": 2.5}]
    assert result["plugins"]["exit_status"] == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        (bench_topk_gather, []), (bench_rtx_current, []), (bench_rtx_current, ["--backend", "tensorrt"]),
        (bench_cuda_chain, ["--shape", "tiny"]),
    ],
    ids=str,
)  # fmt: skip
def test_without_a_gpu_one_line(script: Any, arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="needs an NVIDIA GPU and its driver") as caught:
        script.main(arguments)
    assert "\n" not in str(caught.value.code)


# -- all in one command


def part(name: str, code: str, seconds: int = 20, after: str | None = None) -> run_gpu.Part:
    return run_gpu.Part(name, seconds, "", ("-c", code, "{json}"), after)


WRITES = "import sys, json; json.dump({'n': 7}, open(sys.argv[1], 'w')); print('done')"


def test_run_gpu_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [
        part("crashes", "import os; os.abort()"),
        part("hangs", "import time; print('so far', flush=True); time.sleep(60)", seconds=1),
        part("skipped", WRITES, after="crashes"),
        part("works", WRITES),
        part("follows", "print('second')", after="works"),
        run_gpu.Part("prints", 20, "", ("-c", "print('{\"ok\": true}')", "--json")),
    ]
    monkeypatch.setattr(run_gpu, "PARTS", parts)
    monkeypatch.setattr(run_gpu, "machine", lambda: {"gpus": [{"name": "NVIDIA H200"}], "versions": {}})
    with pytest.raises(SystemExit) as caught:
        run_gpu.main(["--out", str(tmp_path)])
    assert caught.value.code == 1
    result = json.loads((tmp_path / "gpu-nvidia-h200.json").read_text())
    assert {name: row["status"] for name, row in result["parts"].items()} == {
        "crashes": "failed", "hangs": "timeout", "skipped": "skipped", "works": "ok", "follows": "ok", "prints": "ok",
    }  # fmt: skip
    assert result["parts"]["works"]["result"] == {"n": 7}
    assert result["parts"]["prints"]["result"] == {"ok": True}
    assert result["parts"]["hangs"]["last_line"] == "so far"
    assert "=== crashes" in (tmp_path / "gpu-nvidia-h200.log").read_text()
    # A later run adds to the file; what it does not try again stays.
    run_gpu.main(["--out", str(tmp_path), "--only", "follows,prints"])
    assert json.loads((tmp_path / "gpu-nvidia-h200.json").read_text())["parts"]["works"]["result"] == {"n": 7}
    run_gpu.main(["--out", str(tmp_path), "--only", "works", "--budget", "5"])
    assert json.loads((tmp_path / "gpu-nvidia-h200.json").read_text())["parts"]["works"]["status"] == "ok"


def test_a_clone_that_is_not_installed(tmp_path: Path) -> None:
    """-S leaves out what makes an editable install importable."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": sysconfig.get_paths()["purelib"]}
    script = Path(run_gpu.__file__)
    command = [sys.executable, "-S", str(script), "--only", "rtx-attention", "--out", str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "rtx-smallest did not succeed" in done.stdout


def test_run_gpu_lists_and_rehearses(capsys: pytest.CaptureFixture[str]) -> None:
    run_gpu.main(["--list"])
    listed = capsys.readouterr().out
    assert all(p.name in listed for p in run_gpu.PARTS)
    run_gpu.main(["--dry-run"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("python ")]
    assert len(lines) == len(run_gpu.PARTS)
    assert not any("{" in line for line in lines)
    with pytest.raises(SystemExit, match="no part is called nonsense"):
        run_gpu.main(["--only", "nonsense"])


@pytest.mark.parametrize("one", run_gpu.PARTS, ids=lambda p: p.name)
def test_parts_are_calls_their_scripts_take(one: run_gpu.Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every argument is known to the script, and every part it waits for exists and comes before."""
    names = [p.name for p in run_gpu.PARTS]
    assert one.after is None or names.index(one.after) < names.index(one.name)
    if one.command[0] == "-m":  # the command line: click knows every option
        command = main.commands[one.command[2]]
        context = command.make_context(one.command[2], list(one.arguments(Path("x.json"), tmp_path)[3:]))
        assert context.params
        return
    script = Path(one.command[0])
    import argparse

    class Parsed(Exception):
        pass

    def parse(self: argparse.ArgumentParser, *given: Any, **kwargs: Any) -> Any:
        known, unknown = self.parse_known_args(*given, **kwargs)
        assert not unknown
        raise Parsed(known)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    with pytest.raises(Parsed):
        sys.modules[script.stem].main(one.arguments(Path("x.json"), Path("f"))[1:])


def test_preflight() -> None:
    have = dict.fromkeys(
        ("onnxruntime-gpu", "tensorrt-rtx-cu13", "cuda-bindings", "tensorrt-cu13", "polygraphy", "torch"), "1"
    )
    gpus = [{"name": "NVIDIA H200"}]
    assert run_gpu.preflight({"gpus": gpus, "versions": have | {"transformers": "5"}}) == []
    said = run_gpu.preflight({"gpus": gpus, "versions": have | {"onnxruntime": "1"}})
    assert said == [
        "onnxruntime and onnxruntime-gpu are both installed: pip uninstall -y onnxruntime",
        "transformers is not installed, which *chain-* need",
    ]
    assert "no NVIDIA GPU" in run_gpu.preflight({"versions": {}})[0]


def test_answers_of_two_runs(tmp_path: Path) -> None:
    """What only one has, and controls, are left out."""
    for name, answers in (("one", ["red", "blue", "two"]), ("other", ["red", "green"])):
        with Store(tmp_path / f"{name}.jsonl", {"data": "x"}) as store:
            for number, answer in enumerate(answers):
                store.add(Record(str(number), "adafv", 64, answer, float(answer in ("red", "blue")), 64, 576))
            store.add(Record("0", "adafv", 64, name, 0.0, 64, 576, control="grey"))
            store.add(Record("0", name, 64, "red", 1.0, 64, 576))
    arguments = [sys.executable, compare_answers.__file__, tmp_path / "one.jsonl", tmp_path / "other.jsonl"]
    done = subprocess.run(list(map(str, arguments)), check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == {
        "method": "adafv", "keep": 64, "questions": 2, "answers_differ": 1, "right": [2.0, 1.0]
    }  # fmt: skip
