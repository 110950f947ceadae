"""``trtprune eval`` as it is typed: what it writes, refuses and goes on with; every documented command."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import trtprune
from tests.kit import eval_kit
from tests.kit.runtime_kit import Kit, picture
from trtprune.cli import main
from trtprune.eval import evaluate
from trtprune.eval.parts import Share
from trtprune.eval.planning import subjects
from trtprune.eval.store import Store

DOCS = Path(__file__).parents[2] / "docs" / "eval.md"
ASKED = ("What is it ?", "Where ?", "How many ?")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine directory ``out``, and questions of which the unpruned model answers half rightly."""
    place = tmp_path_factory.mktemp("place")
    kit = Kit.make(place / "model")
    trtprune.build(str(kit.path), place / "out", method="adafv", keep=5)
    vlm = trtprune.load(place / "out", threads=1)
    lines = []
    for number in range(8):
        picture(number % 4).save(place / f"{number % 4}.png")
        question = ASKED[number % 3]
        said = vlm.generate(place / f"{number % 4}.png", question, keep=16, max_new_tokens=4).text
        answer = said if number % 2 and said.strip() else "something else"
        lines.append({"id": f"q{number}", "image": f"{number % 4}.png", "question": question, "answer": answer})
    (place / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    bad = [*lines, {"id": "q0", "image": "0.png", "question": "Again ?", "answer": "x"}, {"image": "none.png"}]
    (place / "bad.jsonl").write_text("\n".join(map(json.dumps, bad)) + "\n{broken\n")
    return place


@pytest.fixture(autouse=True)
def _there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def command(*words: Any) -> tuple[int, str, str]:
    given = ["eval", "out", "--max-new-tokens", "4", "--threads", "1", *(str(word) for word in words)]
    found = CliRunner().invoke(main, given)
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return found.exit_code, found.stdout, found.stderr


def test_answers_in_another_precision_are_other_answers() -> None:
    asked = ("--data", "questions.jsonl", "--methods", "random", "--keep", "3", "--no-plot", "-o", "rounding")
    assert command(*asked)[0] == 0
    code, _, stderr = command(*asked, "--provider-option", "activations=float32")
    assert code == 1
    assert "its answers were given with another provider_options" in stderr
    assert command(*asked)[0] == 0


def test_answers_report_and_what_is_added_later(place: Path) -> None:
    code, stdout, stderr = command("--data", "questions.jsonl", "--methods", "adafv,random", "--keep", "6,3", "-o", "r")
    assert code == 0, stderr
    assert "8 questions, 5 runs: 40 answers" in stderr
    assert stdout.splitlines()[1].split()[:3] == ["method", "kept", "share"]
    assert {path.name for path in (place / "r").iterdir()} == {
        "results.jsonl", "report.json", "report.csv", "accuracy.png",
    }  # fmt: skip
    lines = [json.loads(line) for line in (place / "r/results.jsonl").read_text().splitlines()]
    assert len(lines) == 41
    assert {"id", "method", "keep", "answer", "score"} <= lines[1].keys()
    vlm = trtprune.load("out", threads=1)
    rows = {row["id"]: row for row in map(json.loads, (place / "questions.jsonl").read_text().splitlines())}
    for line in lines[1:]:
        if line["method"] != "random":
            row = rows[line["id"]]
            said = vlm.generate(row["image"], row["question"], keep=line["keep"], max_new_tokens=4)
            assert line["answer"] == said.text
    report = json.loads((place / "r/report.json").read_text())
    base = report["rows"][0]
    assert (base["method"], base["keep"], base["n"], base["set"]) == ("none", 16, 8, "all")
    assert base["accuracy"] == sum(line["score"] for line in lines[1:] if line["method"] == "none") / 8
    assert 0 < base["accuracy"] <= 0.5

    # Another method: only that is asked. Nothing new: nothing is asked. The report is of what this command named.
    before = (place / "r/results.jsonl").read_bytes()
    code, stdout, stderr = command("--data", "questions.jsonl", "--methods", "adafv,fastv:k=1", "--keep", 6, "-o", "r",
                                   "--json")  # fmt: skip
    assert code == 0, stderr
    assert "24 answers, 16 of them there already" in stderr
    assert (place / "r/results.jsonl").read_bytes().startswith(before)
    found = json.loads(stdout)
    assert [(row["method"], row["keep"]) for row in found["rows"]] == [("none", 16), ("adafv", 6), ("fastv k=1", 6)]
    assert found["rows"][0] == {**base, **{k: found["rows"][0][k] for k in ("broken_examples", "repaired_examples")}}
    after = (place / "r/results.jsonl").read_bytes()
    assert command("--data", "questions.jsonl", "--methods", "fastv:k=1", "--keep", 6, "-o", "r", "--no-plot")[0] == 0
    assert (place / "r/results.jsonl").read_bytes() == after

    # Other settings, other answers.
    code, _, stderr = command("--data", "questions.jsonl", "--keep", 6, "-o", "r", "--prompt-suffix", "Say it.")
    assert code == 1
    assert "another prompt_suffix" in stderr
    assert "--force" in stderr
    assert (place / "r/results.jsonl").read_bytes() == after
    code, _, stderr = command(
        "--data", "questions.jsonl", "--keep", 6, "-o", "r", "--prompt-suffix", "Say it.", "--force", "--no-plot"
    )
    assert code == 0, stderr
    assert len((place / "r/results.jsonl").read_text().splitlines()) == 17


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--methods", "adafw"], "did you mean adafv"),
        (["--methods", "adafv:quote=1"], "quote"),
        (["--keep", "99"], "--keep 99"),
        (["--keep", "16"], "nothing to report"),
        (["--methods", "none", "--keep", "4"], "prunes nothing"),
        (["--metric", "guess"], "guess"),
        (["--data", "nothing.jsonl"], "nothing.jsonl"),
        (["--data", "bad.jsonl", "--strict"], "3 rows"),
        (["--keep", "x"], "list of numbers"),
        (["--so-far"], "refused holds no answers"),
        (["--so-far", "--force"], "--force leaves nothing"),
    ],
)
def test_what_cannot_be_is_said_before_any_work(place: Path, words: list[str], said: str) -> None:
    code, stdout, stderr = command("--data", "questions.jsonl", "-o", "refused", *words)
    assert code in (1, 2)
    assert said in stderr
    assert not stdout
    assert not (place / "refused").exists()
    assert not list(place.glob(".variants-*"))


def test_rows_that_cannot_be_used_are_listed(place: Path) -> None:
    code, stdout, stderr = command("--data", "bad.jsonl", "--keep", 4, "-o", "listed", "--no-plot")
    assert code == 0
    assert "3 rows cannot be used" in stderr
    assert "q0" in stderr
    assert "3 rows of the data could not be used" in stdout
    report = json.loads((place / "listed/report.json").read_text())
    assert [item["line"] for item in report["data"]["rejected"]] == [9, 10, 11]
    assert not (place / "listed/accuracy.png").exists()


def test_what_is_done_before_the_first_answer_is_said(place: Path) -> None:
    code, _, stderr = command("--data", "questions.jsonl", "--methods", "adafv,random,mmr", "--keep", 4, "-o", "said")
    assert code == 0
    lines = stderr.splitlines()
    begin = [next(k for k, line in enumerate(lines) if line.startswith(word)) for word in ("data", "build", "answers")]
    assert begin == sorted(begin)
    assert "8 questions of questions" in lines[begin[0]]
    assert "2 more on these weights: random, mmr" in lines[begin[1]]


def test_pictures_that_are_all_unreadable(place: Path) -> None:
    rows = [{"id": f"u{n}", "image": f"u{n}.png", "question": "What ?", "answer": "x"} for n in range(3)]
    for row in rows:
        (place / row["image"]).write_bytes(b"no picture")
    (place / "unread.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, stdout, stderr = command("--data", "unread.jsonl", "--keep", 4, "-o", "unread")
    assert (code, stdout) == (1, "")
    assert "nothing was answered: no picture of 3 questions could be read, first u0: " in stderr
    assert "u0.png" in stderr
    assert "hint:" in stderr


def test_questions_that_cannot_be_asked_name_the_reason(place: Path) -> None:
    rows = [{"image": "0.png", "question": "<image>\nWhat ?", "answer": "x"} for _ in range(2)]
    (place / "placeholder.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, _, stderr = command("--data", "placeholder.jsonl", "--keep", 4, "-o", "placeholder")
    assert code == 1
    assert "2 of 2 questions cannot be asked without pruning, first" in stderr
    assert "<image>" in stderr
    assert "--raw-prompt" not in stderr, "a flag that this command lacks"


def test_without_matplotlib_there_is_no_picture(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, stdout, stderr = command("--data", "questions.jsonl", "--keep", 4, "-o", "plain", "--plot")
    assert code == 1, "it was asked for"
    assert "pip install 'trtprune[plot]'" in stderr
    assert not (place / "plain").exists()
    code, stdout, stderr = command("--data", "questions.jsonl", "--keep", 4, "-o", "plain")
    assert code == 0, stderr
    assert stderr.count("matplotlib is not installed") == 1
    assert "accuracy" in stdout
    assert (place / "plain/report.json").exists()
    assert not (place / "plain/accuracy.png").exists()


@pytest.mark.parametrize(
    ("end", "given_more", "file"),
    [
        (signal.SIGINT, ["--force"], "results.jsonl"),
        (signal.SIGTERM, ["--part", "1/1"], "results-1of1.jsonl"),
    ],
)
def test_an_interrupted_run_says_how_to_go_on(
    place: Path, end: signal.Signals, given_more: list[str], file: str
) -> None:
    folder = place / f"ended-{end.name}"
    many = "\n".join(
        json.dumps({"id": f"m{i}", "image": f"{i % 4}.png", "question": f"What is {i} ?", "answer": "x"})
        for i in range(300)
    )
    (place / "many.jsonl").write_text(many)
    words = ["eval", "out", "--data", "many.jsonl", "--keep", "4", "--max-new-tokens", "1", "--threads", "1"]
    words += ["--no-plot", "-o", folder.name, *given_more]
    tool = str(Path(sys.executable).parent / "trtprune")
    process = subprocess.Popen([tool, *words], cwd=place, stderr=subprocess.PIPE, text=True)
    answers = folder / file
    while process.poll() is None and not (answers.exists() and answers.read_bytes().count(b"\n") > 12):
        time.sleep(0.02)
    process.send_signal(end)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + end
    assert f"what was answered is in {folder.name}/{file}" in stderr
    shown = stderr.strip().splitlines()[-1].strip()
    assert shlex.split(shown)[1:] == [word for word in words if word != "--force"]
    done = answers.read_bytes()
    count = len(done.splitlines()) - 1
    assert 12 <= count < 600
    assert not list(place.glob(".variants-*"))
    if end == signal.SIGTERM:
        return
    # What there is can be looked at, with nothing asked.
    found = subprocess.run(
        [tool, *shlex.split(shown)[1:], "--so-far", "--json"], cwd=place, capture_output=True, text=True, check=True
    )
    report = json.loads(found.stdout)
    unpruned = sum(b'"none"' in line for line in done.splitlines()[1:])
    assert {row["method"]: row["n"] for row in report["rows"]} == {
        method: n for method, n in (("none", unpruned), ("adafv", count - unpruned)) if n
    }
    assert any(f"{count:,} of 600 answers" in note for note in report["notes"])
    assert answers.read_bytes() == done
    # Goes on: a few more, then the same again.
    process = subprocess.Popen([tool, *shlex.split(shown)[1:]], cwd=place, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and answers.stat().st_size <= len(done) + 500:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert f"600 answers, {count:,} of them there already" in stderr
    assert answers.read_bytes().startswith(done)
    keys = [(r["id"], r["keep"]) for r in map(json.loads, answers.read_text().splitlines()[1:])]
    assert len(keys) == len(set(keys)) > count


ASK_PARTS = ("--data", "questions.jsonl", "--methods", "adafv,random", "--keep", "6,3", "--no-plot")


def test_parts_are_put_together(place: Path) -> None:
    """Two processes' answers are those of one, and so is the report; nothing is asked twice."""
    assert command(*ASK_PARTS, "-o", "whole")[0] == 0
    for part in ("2/2", "1/2"):
        code, stdout, stderr = command(*ASK_PARTS, "-o", "parts", "--part", part)
        assert code == 0, stderr
        assert "4 questions, 5 runs: 20 answers\n" in stderr
        assert f"part {part} of the pictures" in stdout
        assert not (place / "parts/report.json").exists()
    files = {path.name: path.read_bytes() for path in (place / "parts").iterdir()}
    assert set(files) == {"results-1of2.jsonl", "results-2of2.jsonl"}
    code, stdout, stderr = command(*ASK_PARTS, "-o", "parts")
    assert code == 0, stderr
    assert "40 answers, 40 of them there already" in stderr
    assert "part" not in stdout
    assert {name: (place / "parts" / name).read_bytes() for name in files} == files
    one, other = (json.loads((place / name / "report.json").read_text()) for name in ("whole", "parts"))
    del one["command"], other["command"]
    assert one == other
    lines = [line for data in files.values() for line in data.splitlines()[1:]]
    assert sorted(lines) == sorted((place / "whole/results.jsonl").read_bytes().splitlines()[1:])

    # A line that a part was writing when it was killed is asked by whoever comes next, in its own file.
    (place / "parts/results-1of2.jsonl").write_bytes(files["results-1of2.jsonl"][:-5])
    assert "40 answers, 39 of them" in command(*ASK_PARTS, "-o", "parts", "--so-far")[2]
    assert "40 answers, 39 of them" in command(*ASK_PARTS, "-o", "parts")[2]
    assert (place / "parts/results-1of2.jsonl").read_bytes() == files["results-1of2.jsonl"][:-5]
    # And what the whole run knows, a part knows.
    assert "20 answers, 20 of them" in command(*ASK_PARTS, "-o", "parts", "--part", "1/2")[2]


@pytest.mark.parametrize(
    ("words", "busy", "said"),
    [
        (["--part", "3/2"], None, "--part 3/2: is no share"),
        (["--part", "0/2"], None, "--part 0/2: is no share"),
        (["--part", "half"], None, "--part half: is no share"),
        (["--part", "9/9"], None, "fewer pictures than parts"),
        (["--part", "1/3", "--force"], None, "--force: "),
        (["--force"], None, "results-1of3.jsonl holds answers of a part"),
        (["--part", "1/3", "--so-far"], None, "leave out --part"),
        (["--part", "2/3", "--max-new-tokens", "3"], None, "another max_new_tokens"),
        (["--part", "1/3"], "results-1of3.jsonl", "another process"),
        (["--part", "2/3"], "results.jsonl", "another process"),
        ([], "results-1of3.jsonl", "another process"),
        (["--part", "2/3"], "results-1of3.jsonl", ""),
        (["--so-far"], "results-1of3.jsonl", ""),
    ],
)
def test_parts_do_not_get_in_each_others_way(
    place: Path, tmp_path: Path, words: list[str], busy: str | None, said: str
) -> None:
    assert command(*ASK_PARTS, "-o", tmp_path, "--part", "1/3")[0] == 0
    first = tmp_path / "results-1of3.jsonl"
    before = first.read_bytes()
    header = json.loads(before.splitlines()[0])
    with Store(tmp_path / (busy or "other.jsonl"), header["fingerprint"]):
        code, _, stderr = command(*ASK_PARTS, "-o", tmp_path, *words)
    assert code == (1 if said else 0), stderr
    assert said in stderr
    assert first.read_bytes() == before


@given(questions=st.integers(1, 30), pictures=st.integers(2, 12), parts=st.integers(1, 9), controls=st.booleans())
def test_parts_are_all_there_is(questions: int, pictures: int, parts: int, controls: bool) -> None:
    rows = eval_kit.rows(max(questions, pictures), pictures)
    whole = subjects(rows, controls=controls, seed=0)
    shares = [Share(number, parts).of_subjects(whole) for number in range(1, parts + 1)]
    asked = [(a.row.id, a.control, s.source) for share in shares for s in share for a in s.asked]
    wanted = [(a.row.id, a.control, s.source) for s in whole for a in s.asked]
    assert sorted(asked, key=str) == sorted(wanted, key=str)
    assert {s.seed for share in shares for s in share} == {s.seed for s in whole}


def test_from_python(place: Path, tmp_path: Path) -> None:
    found = evaluate("out", "questions.jsonl", tmp_path, methods="fastervlm", keeps=[8, 4], max_new_tokens=4,
                     limit=6, controls=True, plot=False, threads=1)  # fmt: skip
    assert [(f.method, f.keep, f.n) for f in found.figures] == [
        ("none", 16, 6),
        ("fastervlm", 8, 6),
        ("fastervlm", 4, 6),
    ]
    assert all(set(f.controls) == {"wrong", "grey"} for f in found.figures)
    assert found.figures[1].share == 0.5


def test_the_documented_commands_parse(place: Path) -> None:
    """Options and methods of every documented command exist; those on questions.jsonl also run."""
    text = DOCS.read_text().replace("\\\n", " ")
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.S))
    lines = [line.partition("  #")[0] for line in blocks.splitlines() if line.startswith("trtprune eval ")]
    assert len(lines) >= 5
    known = {flag for param in main.commands["eval"].params for flag in param.opts + param.secondary_opts}
    for line in lines:
        words = shlex.split(line)[2:]
        assert {word for word in words if word.startswith("-")} <= known, line
        if words[:3] == ["out", "--data", "questions.jsonl"]:
            keep = [] if "--keep" in words else ["--keep", "8,4"]
            words = ["6,4" if word == "192,64,16" else word for word in words]
            code, _, stderr = command(*words[1:], *keep, "--limit", 3, "--force", "--no-plot")
            assert code == 0, f"{line}\n{stderr}"


def test_help_is_instant() -> None:
    heavy = "{'numpy', 'onnx', 'PIL', 'rich.table'}"
    code = f"import sys; from trtprune.cli import main; assert not {heavy} & set(sys.modules)"
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=60)
