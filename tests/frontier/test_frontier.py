"""``trtprune frontier``: reports put together, the front and the recommendation against brute force."""

from __future__ import annotations

import copy
import json
import math
import random
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from trtprune.cli import main
from trtprune.errors import InputError
from trtprune.frontier import Joined, Point, Rule, front, join, read_report, recommend
from trtprune.frontier.report import recommendation, render, to_json
from trtprune.reports.statistics import paired_interval

ENGINE = {"model": "demo", "digest": "sha256:" + "1" * 64, "build_digest": "sha256:" + "2" * 64}


def eval_row(
    method: str, keep: int, broken: int, repaired: int, *, set_: str = "easy", n: int = 1000
) -> dict[str, Any]:
    """A row of an eval report; unpruned is right on 900 of 1000."""
    unpruned = round(0.9 * n)
    return {
        "method": method, "keep": keep, "set": set_, "n": n, "accuracy": (unpruned - broken + repaired) / n,
        "low": 0.0, "high": 1.0, "unpruned": unpruned / n, "mcnemar_p": 1.0, "broken": broken, "repaired": repaired,
    }  # fmt: skip


def bench_row(method: str, keep: int, first: float, **more: Any) -> dict[str, Any]:
    """A row of a bench report."""
    return {"method": method, "keep": keep, "first_token_ms": {"p50": first, "p90": first, "p99": first}, **more}


def report(*rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A report with these rows."""
    return {"schema": 1, "command": "", "engine": ENGINE, "rows": list(rows), **more}


def both(evaluated: dict[str, Any], benched: dict[str, Any]) -> Joined:
    """One report of each kind."""
    return join([evaluated], benched)


def two() -> tuple[dict[str, Any], dict[str, Any]]:
    """Reports of two methods at two budgets each on two sets."""
    evaluated = report(
        eval_row("adafv", 192, 10, 12), eval_row("adafv", 64, 20, 18), eval_row("random", 192, 60, 20),
        eval_row("random", 64, 200, 20),
        eval_row("adafv", 192, 5, 5, set_="scenes", n=3000), eval_row("adafv", 64, 200, 20, set_="scenes", n=3000),
        eval_row("random", 192, 300, 20, set_="scenes", n=3000), eval_row("random", 64, 800, 20, set_="scenes", n=3000),
    )  # fmt: skip
    benched = report(
        bench_row("none", 576, 400.0, unpruned=True), bench_row("adafv", 192, 220.0), bench_row("adafv", 64, 160.0),
        bench_row("random", 192, 218.0), bench_row("random", 64, 158.0),
        bench_row("transformers float32", 576, 800.0, peer=True),
        ratios=[
            {"method": "adafv", "keep": 64, "against": "unpruned", "first_token": {"p50": 2.51}},
            {"method": "adafv", "keep": 64, "against": "transformers float32", "first_token": {"p50": 9.0}},
        ],
    )  # fmt: skip
    return evaluated, benched


# -- front and recommendation

points = st.lists(
    st.builds(
        lambda time, accuracy, reach, method, keep: Point(
            method,
            keep,
            float(time),
            100,
            accuracy / 100,
            0.5,
            accuracy / 100 - 0.5,
            accuracy / 100 - 0.5 - reach / 100,
            accuracy / 100 - 0.5 + reach / 100,
        ),
        st.integers(1, 12),
        st.integers(40, 60),
        st.integers(0, 8),
        st.sampled_from("abc"),
        st.integers(1, 5),
    ),
    min_size=1,
    max_size=14,
    unique_by=lambda p: (p.method, p.keep),
)


@given(points)
def test_front_is_what_nobody_beats(found: list[Point]) -> None:
    def beaten(p: Point) -> bool:
        return any(
            q.first_token_ms <= p.first_token_ms
            and q.accuracy >= p.accuracy
            and (q.first_token_ms < p.first_token_ms or q.accuracy > p.accuracy)
            for q in found
        )

    best = front(found)
    assert {(p.method, p.keep) for p in best} == {(p.method, p.keep) for p in found if not beaten(p)}
    assert [p.first_token_ms for p in best] == sorted(p.first_token_ms for p in best)


@given(points, st.sampled_from([0.0, 1.0, 2.5, 10.0]), st.sampled_from(["low", "high"]), st.booleans())
def test_recommendation_is_the_fastest_admitted(found: list[Point], loss: float, limit: Any, whole: bool) -> None:
    if whole:
        found = [Point("none", 9, 6.0, 100, 0.5, 0.5, 0.0, 0.0, 0.0, baseline=True), *found]
    admitted = [p for p in found if p.baseline or round(100 * getattr(p, limit), 6) >= -loss]
    chosen = recommend(found, Rule(loss, limit))
    if not admitted:
        assert chosen is None
        return
    fastest = min(p.first_token_ms for p in admitted)
    assert chosen in admitted
    assert chosen.first_token_ms == fastest
    assert chosen.accuracy == max(p.accuracy for p in admitted if p.first_token_ms == fastest)


def test_the_two_limits_answer_two_questions() -> None:
    """Ten questions prove nothing: not that a method is as good, and not that it is worse."""
    few = Point("a", 1, 1.0, 10, 0.5, 0.5, 0.0, *paired_interval(0, 0, 10))
    whole = Point("none", 9, 5.0, 10, 0.5, 0.5, 0.0, 0.0, 0.0, baseline=True)
    assert recommend([whole, few], Rule(1.0, "low")) is whole
    assert recommend([whole, few], Rule(1.0, "high")) is few
    assert "lower limit" in Rule(1.0, "low").words
    assert "upper limit" in Rule(2.0, "high").words
    assert "-2 points" in Rule(2.0, "high").words


# -- the paired interval


def test_paired_interval_of_the_paper() -> None:
    """Written out for 15 broken and 5 repaired of 100: p12 16/102, p21 6/102."""
    centre = 6 / 102 - 16 / 102
    reach = 1.959964 * math.sqrt((22 / 102 - centre**2) / 102)
    assert paired_interval(15, 5, 100) == (pytest.approx(centre - reach), pytest.approx(centre + reach))
    low, high = paired_interval(0, 0, 50)
    assert low < 0 < high
    assert low == -high
    assert paired_interval(3, 0, 3)[0] == -1.0


@pytest.mark.parametrize(("worse", "better", "n"), [(0.06, 0.05, 400), (0.15, 0.05, 200), (0.02, 0.02, 1000)])
def test_paired_interval_covers(worse: float, better: float, n: int) -> None:
    """The true difference lies inside in about 95 of 100 experiments."""
    draws = np.random.default_rng(0).multinomial(n, [worse, better, 1 - worse - better], 4000)
    inside = [low <= better - worse <= high for low, high in (paired_interval(int(b), int(c), n) for b, c, _ in draws)]
    assert 0.935 < np.mean(inside) < 0.975


# -- joining


def test_both() -> None:
    joined = both(*two())
    assert list(joined.sets) == ["all", "easy", "scenes"]
    assert joined.notes == []
    easy = {p.label: p for p in joined.sets["easy"]}
    assert list(easy) == ["unpruned", "adafv 192", "adafv 64", "random 192", "random 64"]
    adafv = easy["adafv 64"]
    assert (adafv.first_token_ms, adafv.accuracy, adafv.n) == (160.0, 0.898, 1000)
    assert adafv.speedup == 2.51
    assert (adafv.low, adafv.high) == paired_interval(20, 18, 1000)
    assert adafv.kept == pytest.approx(0.898 / 0.9)
    assert adafv.kept_limits[0] < adafv.kept < adafv.kept_limits[1]
    whole = easy["unpruned"]
    assert (whole.first_token_ms, whole.accuracy, whole.baseline, whole.kept) == (400.0, 0.9, True, 1.0)
    pooled = {p.label: p for p in joined.sets["all"]}["adafv 64"]
    assert pooled.n == 4000
    assert pooled.accuracy == pytest.approx((898 + 2700 - 180) / 4000)
    assert (pooled.low, pooled.high) == paired_interval(220, 38, 4000)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(700, 2000)), min_size=2, max_size=4))
def test_pooling_is_counting_all_questions(sets: list[tuple[int, int, int]]) -> None:
    rows = [eval_row("a", 8, b, min(c, n // 10), set_=f"s{i}", n=n) for i, (b, c, n) in enumerate(sets)]
    joined = both(report(*rows), report(bench_row("none", 16, 9.0, unpruned=True), bench_row("a", 8, 5.0)))
    pooled = joined.sets["all"][1]
    total = sum(r["n"] for r in rows)
    right = sum(round(0.9 * r["n"]) - r["broken"] + r["repaired"] for r in rows)
    assert pooled.accuracy == pytest.approx(right / total)
    assert (pooled.low, pooled.high) == paired_interval(
        sum(r["broken"] for r in rows), sum(r["repaired"] for r in rows), total
    )


def test_soft_marks_need_the_reports_interval() -> None:
    row = eval_row("a", 8, 100, 50) | {"accuracy": 0.88}  # 50 fewer right would be 0.85
    benched = report(bench_row("none", 16, 9.0, unpruned=True), bench_row("a", 8, 5.0))
    with pytest.raises(InputError, match="not just right and wrong"):
        both(report(row), benched)
    row |= {"change_low": -0.035, "change_high": -0.005}
    point = both(report(row), benched).sets["easy"][1]
    assert (point.low, point.high) == (-0.035, -0.005)
    other = eval_row("a", 8, 0, 0, set_="other", n=3000)
    pooled = both(report(row, other), benched).sets["all"][1]
    assert pooled.change == pytest.approx(-0.02 / 4)
    # Half the width of the second is that of a difference of none in 3000; variances add up.
    halves = (0.015 / 4, paired_interval(0, 0, 3000)[1] * 3 / 4)
    assert pooled.high - pooled.low == pytest.approx(2 * math.hypot(*halves))


def test_what_does_not_go_together_is_named() -> None:
    evaluated, benched = two()
    other = {**benched, "engine": {**ENGINE, "digest": "sha256:" + "9" * 64, "model": "other"}}
    with pytest.raises(InputError, match=r"different models: eval of demo .* bench of other"):
        both(evaluated, other)
    rebuilt = {**benched, "engine": {**ENGINE, "build_digest": "x"}}
    assert both(evaluated, rebuilt).notes == ["the reports are of different builds of the same model"]
    silent = {key: value for key, value in benched.items() if key != "engine"}
    assert "not checked" in both(evaluated, silent).notes[0]
    evaluated["rows"].append(eval_row("mmr", 64, 1, 1))
    benched["rows"].append(bench_row("dart", 192, 3.0))
    notes = both(evaluated, benched).notes
    assert "the bench report lacks mmr 64" in notes
    assert "the eval report lacks dart 192" in notes
    with pytest.raises(InputError, match="no method and budget in common"):
        both(report(eval_row("mmr", 64, 1, 1)), benched)
    with pytest.raises(InputError, match="answers nothing right"):
        both(report(eval_row("adafv", 64, 0, 0) | {"accuracy": 0.0, "unpruned": 0.0}), benched)
    # A method that only one of the sets has is not in all of them.
    evaluated, benched = two()
    evaluated["rows"].pop()
    assert "random 64" not in [p.label for p in both(evaluated, benched).sets["all"]]
    without = {**benched, "rows": [row for row in benched["rows"] if row["method"] != "none"]}
    assert "no unpruned row" in both(evaluated, without).notes[-1]


def test_several_eval_reports() -> None:
    """Sets bear the data's name; all of them together count every question once, not once a group."""
    evaluated, benched = two()
    pooled = {p.label: p for p in both(evaluated, benched).sets["all"]}
    easy = report(*(row for row in evaluated["rows"] if row["set"] == "easy"), data={"name": "easy-vqa"})
    scenes = [row for row in evaluated["rows"] if row["set"] == "scenes"]
    groups = [{**row, "set": name, "n": 1500} for row in scenes for name in ("small", "large")]
    for row in groups:  # halves, so that they add up
        row |= {"broken": row["broken"] // 2, "repaired": row["repaired"] // 2}
        row["accuracy"] = row["unpruned"] + (row["repaired"] - row["broken"]) / 1500
    second = report(*groups, *({**row, "set": "all"} for row in scenes), data={"name": "scenes"})
    joined = join([easy, second], benched)
    assert list(joined.sets) == ["all", "easy-vqa", "scenes: small", "scenes: large", "scenes"]
    found = {p.label: p for p in joined.sets["all"]}
    assert found["adafv 64"] == pooled["adafv 64"]
    assert joined.notes == []
    # One report with a set of all questions is not added up a second time.
    assert list(both(second, benched).sets) == ["all", "small", "large"]
    twice = join([easy, easy], benched)
    assert list(twice.sets) == ["all", "easy-vqa", "easy-vqa 2"]


def test_order_of_rows_does_not_matter() -> None:
    evaluated, benched = two()
    expected = to_json(both(evaluated, benched), Rule(), "")
    rng = random.Random(0)
    rng.shuffle(benched["rows"])
    assert to_json(both(evaluated, benched), Rule(), "") == expected


# -- what is printed


def test_lines() -> None:
    joined = both(*two())
    assert recommendation("easy", joined.sets["easy"], Rule(0.5)) == (
        "easy, 1,000 questions: unpruned (400 ms): nothing faster is within 0.5 points for certain; adafv 64 (160 ms) "
        "changed -0.2 points, but its interval begins at -1.4: ask more questions"
    )
    line = recommendation("easy", joined.sets["easy"], Rule(1.5))
    assert line == (
        "easy, 1,000 questions: adafv 64: 160 ms, 2.51 x as fast to the first token as unpruned, 99.8 % of the "
        "accuracy (-0.2 points, 95 % -1.4 to +1.0)"
    )
    text = render(joined, Rule(1.5))
    assert line in text
    assert "rule: the fastest to the first token" in text
    marked = [row.split()[:2] for row in text.splitlines() if row.endswith("<-")]
    assert marked == [["adafv", "192"], ["adafv", "64"], ["adafv", "192"]]  # of all, easy and scenes
    nothing = [p for p in joined.sets["scenes"] if p.method == "random"]
    assert "none: no method" in recommendation("scenes", nothing, Rule())


def command(*arguments: Any) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["frontier", *(str(argument) for argument in arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    evaluated, benched = two()
    (tmp_path / "eval.json").write_text(json.dumps(evaluated))
    (tmp_path / "bench.json").write_text(json.dumps(benched))
    return tmp_path / "eval.json", tmp_path / "bench.json"


def test_command(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files[0].parent)
    code, out, err = command(*files, "--max-loss", 1.5)
    assert code == 0, err
    assert "all, 4,000 questions: adafv 192" in out
    with Image.open("frontier.png") as drawn:
        assert drawn.width > 800
        colours = drawn.convert("RGB").getcolors(1 << 24)
        assert colours is not None
        assert len(colours) > 20
    code, out, _ = command(*files, "--json", "--no-plot", "--set", "easy", "--max-loss", 1.5, "--limit", "high")
    assert code == 0
    found = json.loads(out)
    assert list(found["sets"]) == ["easy"]
    assert found["limit"] == "high"
    assert found["sets"]["easy"]["recommended"] == {"method": "adafv", "keep": 64}
    shown = {(p["method"], p["keep"]): p["front"] for p in found["sets"]["easy"]["points"]}
    # adafv 192 beats unpruned on this set
    assert [key for key, on in shown.items() if on] == [("adafv", 192), ("adafv", 64), ("random", 64)]


@pytest.mark.parametrize(
    ("change", "arguments", "words"),
    [
        (lambda a, b: a.write_text("{"), [], "eval.json: not JSON"),
        (lambda a, b: a.unlink(), [], "eval.json: cannot be read"),
        (lambda a, b: b.write_text('{"schema": 1, "rows": []}'), [], "bench.json: has no rows"),
        (lambda a, b: b.write_text('{"schema": 9, "rows": [{}]}'), [], "schema 9"),
        (lambda a, b: b.write_bytes(a.read_bytes()), [], "bench.json: row 1: 'first_token_ms' is missing"),
        (lambda a, b: a.write_text(a.read_text().replace('"n": 1000', '"n": 0')), [], "row 1: accuracies and counts"),
        (lambda a, b: b.write_text(b.read_text().replace("400.0", "NaN")), [], "row 1: first_token_ms.p50 is nan"),
        (lambda a, b: None, ["--set", "vqa"], "--set vqa: none of the sets"),
        (lambda a, b: None, ["-o", "nowhere/x.png"], "there is no directory"),
        (lambda a, b: None, ["-o", "x.docx"], "not a kind of picture"),
    ],
)
def test_bad_input(
    files: tuple[Path, Path], change: Any, arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files[0].parent)
    change(*files)
    code, out, err = command(*files, *arguments)
    assert code == 1
    assert out == ""
    assert words in err
    assert "Traceback" not in err


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Of everything in a report, where it is."""
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, inner in items for found in ((*at, key), *places(inner, (*at, key)))]


EVALUATED, BENCHED = two()
EVALUATED["rows"][0] |= {"change_low": -0.01, "change_high": 0.02}
STRANGE: list[Any] = [None, True, 0, -1, 1.5, 10**30, math.nan, math.inf, "", "x", [], [None], {}, {"p50": "a"}]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.tuples(st.just("eval"), st.sampled_from(places(EVALUATED))),
        st.tuples(st.just("bench"), st.sampled_from(places(BENCHED))),
    ),
    st.sampled_from(["gone", *STRANGE]),
)
def test_a_damaged_report_is_refused_or_put_together(
    tmp_path: Path, place: tuple[str, tuple[Any, ...]], value: Any
) -> None:
    """With any one thing of either report gone or of another kind: one clear line, or finite figures."""
    found = {"eval": copy.deepcopy(EVALUATED), "bench": copy.deepcopy(BENCHED)}
    kind, (*way, last) = place
    inner: Any = found[kind]
    for key in way:
        inner = inner[key]
    if value == "gone":
        del inner[last]
    else:
        inner[last] = value
    for name, content in found.items():
        (tmp_path / name).write_text(json.dumps(content))
    try:
        joined = join([read_report(tmp_path / "eval", "eval")], read_report(tmp_path / "bench", "bench"))
    except InputError:
        return
    text = render(joined, Rule()) + json.dumps(to_json(joined, Rule(), ""), allow_nan=False)
    assert "recommended" in text


def test_swapped_files_are_noticed(files: tuple[Path, Path]) -> None:
    with pytest.raises(InputError) as error:
        read_report(files[1], "eval")
    assert "the order is EVAL BENCH" in str(error.value)


def test_the_documented_commands_are_commands() -> None:
    """Every line of docs/bench.md is one that the command line takes."""
    text = (Path(__file__).parents[2] / "docs" / "bench.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.S) for line in block.splitlines()]
    assert len(lines) >= 6
    for line in lines:
        program, name, *arguments = shlex.split(line)
        assert program == "trtprune"
        assert main.commands[name].make_context(name, arguments).params
