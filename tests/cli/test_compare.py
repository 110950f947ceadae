"""``trtprune compare`` as it is typed: exit codes, what goes to stdout, files, and every command of docs/compare.md."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.kit import compare_kit as kit
from tests.kit.runtime_kit import picture
from trtprune.cli import main

DOCS = Path(__file__).parents[2] / "docs" / "compare.md"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as the documentation supposes it."""
    place = tmp_path_factory.mktemp("place")
    model = kit.checkpoint(place / "model")
    kit.build(model, place / "out")
    kit.build(model, place / "out-float16", dtype="float16")
    picture().save(place / "cat.png")
    questions = [
        {"image": "cat.png", "prompt": prompt, "answer": ""} for prompt in ("What is it?", "Where?", "How many?")
    ]
    (place / "questions.jsonl").write_text("\n".join(map(json.dumps, questions)))
    return place


def command(*arguments: Any) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["compare", *(str(argument) for argument in arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def shell(line: str, place: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", line], cwd=place, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=120
    )


def test_the_documented_commands_work(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    lines = [line for block in re.findall(r"```sh\n(.*?)```", DOCS.read_text(), re.S) for line in block.splitlines()]
    assert sum(line.startswith("trtprune compare") for line in lines) >= 8
    assert sum("polygraphy run" in line for line in lines) == 1
    for line in lines:
        if line.startswith("trtprune compare "):
            # A random model never ends an answer by itself.
            ends = ["--max-new-tokens", 8, "--stop", "a", "--stop", "e"] if "unpruned" in line else []
            code, stdout, stderr = command(*shlex.split(line)[2:], *ends)
            assert code == 0, f"{line}\n{stderr}"
            assert stdout
        else:
            done = shell(line, place)
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
            assert "PASSED | Runtime" in done.stdout
    assert (place / "error.png").stat().st_size > 10_000
    report = json.loads((place / "report.json").read_text())
    assert report["passed"]
    assert len(report["components"][0]["layers"]["residual"]) == 5


def test_the_printed_command_repeats_it_in_polygraphy(place: Path, tmp_path: Path) -> None:
    """From the log, as it stands: passes for the build, fails for the outputs of a damaged one."""
    bad = kit.copy(place / "out", "bad")
    for path in (bad / "onnx/weights").iterdir():  # a hard link would reach the checkpoint
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data)
    kit.disturb_weight(bad, "language_model.model.layers.1.mlp.up_proj.weight")
    files = ["--save-inputs", tmp_path / "in.json", "--save-outputs", tmp_path / "out.json"]
    where = [bad, "--against", place / "out", "--component", "decoder", "--verify", "none", *files]
    code, _, stderr = command(*where)
    assert code == 1
    (line,) = re.findall(r"again with Polygraphy alone: (.*)", stderr)
    done = shell(line, tmp_path)
    assert done.returncode == 1
    # The damaged build's outputs are repeated, the undamaged one's are not.
    passed = re.findall(r"Accuracy Summary \| (\S+) vs\. (\S+) \| Passed: (\d)/3", done.stdout)
    assert [(left.split("-")[0], right, n) for left, right, n in passed] == [
        ("onnxrt", "onnxruntime:bad", "3"),
        ("onnxruntime:bad", "onnxruntime:out", "0"),
    ]


def test_exit_codes_and_streams_of_the_real_command(place: Path) -> None:
    """0 passed, 1 failed; results on stdout, the rest on stderr."""
    compared = "trtprune compare out-float16 --against out --component embed"
    good, bad = f"{compared} --json", f"{compared} --atol 0 --rtol 0 --check-error-stat max"
    done = [shell(line, place) for line in (good, bad)]
    assert [process.returncode for process in done] == [0, 1]
    found = json.loads(done[0].stdout)
    assert found["passed"]
    assert found["components"][0]["outputs"][0]["name"] == "text_embeds"
    assert done[0].stderr.startswith(f"[I] RUNNING | Command: {good}\n")
    assert re.search(rf"\n\[I\] PASSED \| Runtime: \d+\.\d+s \| Command: {good}\n$", done[0].stderr)
    assert "FAILED" in done[1].stdout
    assert re.search(rf"\n\[E\] FAILED \| Runtime: \d+\.\d+s \| Command: {bad}\n$", done[1].stderr)
    assert "Traceback" not in done[1].stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--against", "onnxruntime"], "has no engines"),
        (["--component", "tail"], "--component tail"),
        (["--atol", "x"], "--atol x: not a valid value"),
        (["--check-error-stat", "worst"], "--check-error-stat worst"),
        (["--image", "cat.png"], "--image and one --prompt"),
        (["--report", "nowhere/report.json"], "--report nowhere/report.json: there is no directory"),
        (["--plot", "error.png", "--component", "embed"], "none of what was compared has layers"),
        (["--keep", "17"], "--keep 17: outside 1 to 16"),
        (["--load-inputs", "none.json"], "no such file"),
        (["--against", "nowhere"], "--against nowhere: no such directory"),
        (["--against", "unpruned"], "no questions given"),
        (["--against", "unpruned", "--keep", "16", "--image", "cat.png", "--prompt", "a"], "nothing to compare"),
    ],
)
def test_bad_input_is_one_line(place: Path, arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    needs = ["--against", "out-float16"] if "--against" not in arguments else []
    code, stdout, stderr = command("out", *needs, *arguments)
    assert code == 1
    assert stdout == ""
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert says in errors[0]
    assert stderr.splitlines()[-1].startswith("hint: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--against", "unpruned", "--atol", "1", "--image", "cat.png", "--prompt", "a"],
        ["--against", "out-float16", "--requests", "questions.jsonl"],
        ["--against", "out-float16", "--load-inputs", "in.json", "--image", "cat.png", "--prompt", "a"],
        ["--iterations", "0"],
    ],
)
def test_a_wrong_command_line_is_exit_code_2(place: Path, arguments: list[str]) -> None:
    code, stdout, stderr = command(place / "out", *arguments)
    assert (code, stdout) == (2, "")
    assert [line.split(":")[0] for line in stderr.splitlines()][-3:-1] == ["error", "hint"]


def test_unpruned_answers_are_scored_on_what_both_finish(place: Path, tmp_path: Path) -> None:
    """Against answers asked for one by one, with and without the budget."""
    import trtprune

    vlm = trtprune.load(place / "out", threads=1)
    ask = {"max_new_tokens": 12, "stop": ["a", "e"]}
    asked = (
        place / "out", "--against", "unpruned", "--requests", place / "questions.jsonl", "--keep", 3, "--json",
        "--max-new-tokens", 12, "--stop", "a", "--stop", "e",
    )  # fmt: skip
    code, stdout, stderr = command(*asked)
    found = json.loads(stdout)
    assert len(found["rows"]) == 3
    counted = same = 0
    for row in found["rows"]:
        pruned = vlm.generate(place / "cat.png", row["prompt"], keep=3, **ask)
        unpruned = vlm.generate(place / "cat.png", row["prompt"], keep=16, **ask)
        assert (row["pruned"], row["unpruned"]) == (pruned.text, unpruned.text)
        assert (row["kept_tokens"], row["visual_tokens"]) == (3, 16)
        finished = pruned.finish_reason == unpruned.finish_reason == "stop"
        assert row["counted"] == finished
        counted += finished
        same += finished and pruned.text.strip().lower() == unpruned.text.strip().lower()
    assert found["counted"] == counted
    assert found["agreement"] == pytest.approx(same / max(1, counted))
    assert code == (0 if counted else 1)
    if counted:  # without a bar to reach nothing was asserted, and nothing passed
        assert "[I] DONE | Runtime" in stderr
        assert "PASSED" not in stderr
        assert "[I] PASSED | Runtime" in command(*asked, "--min-agreement", 0)[2]
    assert found["kv_cache_bytes"][0] <= found["kv_cache_bytes"][1]


def test_unpruned_fails_where_it_should(place: Path, tmp_path: Path) -> None:
    import trtprune
    from trtprune.runtime.pipeline import turns_of

    question = ["--image", place / "cat.png", "--prompt", "What is it?"]
    asked = [place / "out", "--against", "unpruned", *question, "--keep", 2]
    code, stdout, _ = command(*asked, "--max-new-tokens", 1)
    assert code == 1
    assert "none of 1 questions was answered to the end by both" in stdout
    code, _, stderr = command(*asked[:3], "--image", "none.png", "--prompt", "What?", "--keep", 2)
    assert code == 1
    assert "error: --image none.png: no such file" in stderr
    # Fits with 2 of 16 tokens and not with all: not counted, and why.
    length = len(trtprune.load(place / "out").encoder.encode(turns_of("What is it?", 1, None)).ids) + 1 + 8
    short = kit.build(place / "model", tmp_path / "short", max_seq_len=length)
    code, stdout, _ = command(short, *asked[1:], "--max-new-tokens", 4, "--json")
    (row,) = json.loads(stdout)["rows"]
    assert code == 1
    assert not row["counted"]
    assert row["why"].startswith("unpruned: the prompt has ")
    none = kit.build(place / "model", tmp_path / "none", method="none", keep=None)
    code, _, stderr = command(none, *asked[1:-2])
    assert code == 1
    assert "method none keeps all 16 visual tokens; there is nothing to compare" in stderr
    narrow = kit.build(place / "model", tmp_path / "narrow", keep_range=(2, 8))
    code, _, stderr = command(narrow, *asked[1:])
    assert code == 1
    assert "serves budgets up to 8, not all 16" in stderr
    assert "--keep-range 2:16" in stderr


def test_agreement_counts_and_judges() -> None:
    from trtprune.compare.answers import Agreement, AnswerPair

    rows = (
        AnswerPair("a", "Two.", "two", True, "", True, 1, 3, 16, (True, True)),
        AnswerPair("b", "red", "blue", True, "", False, 0, 3, 16, (False, True)),
        AnswerPair("c", "long", "long", False, "pruned cut off", False, 9, 3, 16, (False, False)),
    )

    def agreement(minimum: float | None) -> Agreement:
        return Agreement("adafv", 3, 16, rows, minimum, (1, 2))

    assert agreement(None).counted == 2
    assert agreement(None).agreement == 0.5
    assert agreement(None).accuracy == (0.5, 1.0)
    assert agreement(None).passed
    assert agreement(0.5).passed
    assert not agreement(0.51).passed
    assert not Agreement("adafv", 3, 16, rows[2:], None, (1, 2)).passed


def test_what_a_model_says_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    from trtprune.compare.answers import Agreement, AnswerPair
    from trtprune.compare.report import show_agreement

    row = AnswerPair("[bold]what[/]?", "[/red] two", "[x]", True, "", False, 0, 3, 16)
    show_agreement(Agreement("adafv", 3, 16, (row,), None, (1, 2)))
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("[bold]what[/]?", "[/red] two", "[x]", "differs"))


def test_nothing_else_imports_the_comparison_and_help_is_light() -> None:
    """The package and its libraries are loaded by the command only."""
    code = (
        "import sys; from click.testing import CliRunner; from trtprune.cli import main;"
        "assert CliRunner().invoke(main, ['compare', '--help']).exit_code == 0;"
        "import trtprune.runtime, trtprune.compiler.building;"
        "print([m for m in sys.modules if m.split('.')[0] in ('polygraphy', 'torch', 'transformers', 'matplotlib')"
        " or m.startswith('trtprune.compare')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
