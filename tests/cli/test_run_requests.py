"""``trtprune run --requests``: every good row is answered as alone, every bad one says why, and nothing is lost."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import trtprune
from tests.kit import compare_kit as kit
from tests.kit.runtime_kit import picture
from trtprune.cli import main
from trtprune.cli.answer_file import AnswerFile
from trtprune.errors import InputError
from trtprune.files import json_lines
from trtprune.files.json_lines import JsonLines
from trtprune.runtime import Vlm, requests
from trtprune.runtime.answer import AnswerArguments
from trtprune.runtime.requests import RequestFile


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("place")
    kit.build(kit.checkpoint(place / "model"), place / "out")
    for name in ("a", "b"):
        picture(ord(name)).save(place / f"{name}.png")
    (place / "bad.png").write_bytes(b"no picture")
    return place


@pytest.fixture(scope="module")
def vlm(place: Path) -> Vlm:
    return trtprune.load(place / "out", threads=1)


def lines_of(*rows: dict[str, Any] | str | bytes) -> bytes:
    texts = [json.dumps(row, ensure_ascii=False) if isinstance(row, dict) else row for row in rows]
    return b"\n".join(text.encode() if isinstance(text, str) else text for text in texts) + b"\n"


def run(place: Path, rows: Sequence[Any] | bytes, *more: Any, stdin: bytes | None = None) -> tuple[int, list[Any], str]:
    """Exit code, answers and standard error."""
    data = rows if isinstance(rows, bytes) else lines_of(*rows)
    (place / "jobs.jsonl").write_bytes(data)
    arguments = [place / "out", "--requests", place / "jobs.jsonl", "--max-new-tokens", 3, "--json", *more]
    return command(arguments, stdin)


def command(arguments: Sequence[Any], stdin: bytes | None = None) -> tuple[int, list[Any], str]:
    result = CliRunner().invoke(main, ["run", *map(str, arguments)], input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    lines = result.stdout.split("\n") if "--json" in arguments else []
    return result.exit_code, [json.loads(line) for line in lines if line], result.stderr


A = {"image": "a.png", "prompt": "what color"}


# -- rows and their settings


def test_rows_are_answered_as_alone(place: Path, vlm: Vlm) -> None:
    """With their own settings, in their order, with all that was said of them."""
    rows: list[dict[str, Any]] = [
        {"id": 7, **A, "keep": 3, "source": {"page": 2}},
        {"image": ["a.png", "b.png"], "question": "what is it?", "max_new_tokens": 1},
        {**A, "system": "be brief", "seed": 5, "temperature": 1.5, "top_k": 20},
        {**A, "stop": "e", "ignore_eos": True, "repetition_penalty": 1.3, "top_p": 0.5, "temperature": 0.7, "seed": 1},
        {**A, "prompt": "<image> what", "raw_prompt": True, "id": "raw"},
        {**A, "keep": None, "id": "nothing of its own"},
    ]
    code, answers, stderr = run(place, rows, "--batch-size", 3)
    assert code == 0, stderr
    for row, answer in zip(rows, answers, strict=True):
        images = row["image"] if isinstance(row["image"], list) else [row["image"]]
        own = {key: value for key, value in row.items() if key not in ("id", "image", "prompt", "question", "source")}
        alone = vlm.generate(
            [str(place / image) for image in images],
            row.get("prompt") or row["question"],
            **{"max_new_tokens": 3, **own},
        )
        assert answer["token_ids"] == alone.token_ids
        assert answer["kept_tokens"] == alone.kept_tokens
        assert answer["prompt_tokens"] == alone.prompt_tokens
        assert answer["id"] == row.get("id", f"line-{rows.index(row) + 1}")
        assert {key: answer[key] for key in row} == row
        assert answer["text"] == alone.text


def test_settings_of_the_command_are_for_rows_without(place: Path) -> None:
    code, answers, _ = run(place, [A, {**A, "keep": 2}], "--keep", 5)
    assert code == 0
    assert [answer["kept_tokens"] for answer in answers] == [5, 2]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b'{"image": "a.png", "prompt": "x"', "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"image": "a.png", "prompt": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"image": "a.png", "prompt": "\xff"}', "not UTF-8"),
        (b'{"image": "a.png", "prompt": "\\ud800"}', "surrogate"),
        ({"prompt": "x"}, "no image"),
        ({"image": [], "prompt": "x"}, "no image"),
        ({"image": 5, "prompt": "x"}, "no image"),
        ({"image": "a.png"}, "no prompt"),
        ({"image": "a.png", "prompt": 5}, "no prompt"),
        ({"image": "a.png", "prompt": "x", "question": "y"}, "prompt and question differ"),
        ({**A, "image": "gone.png"}, "no such file"),
        ({**A, "image": "out"}, "is a directory"),
        ({**A, "image": "fifo"}, "is no regular file"),
        ({**A, "image": "a\0.png"}, "no such file"),
        ({**A, "image": "x" * 5000}, "too long"),
        ({**A, "image": "https://example.com/a.png"}, "--urls"),
        ({**A, "image": "file://server/a.png"}, "another machine"),
        ({**A, "image": "bad.png"}, "not a picture"),
        ({**A, "image": "data:;base64,@"}, "not base64"),
        ({**A, "keep": 0}, "keep=0: outside"),
        ({**A, "keep": 10**9}, "outside"),
        ({**A, "keep": 2.5}, "keep 2.5: must be a whole number"),
        ({**A, "keep": True}, "keep True"),
        ({**A, "max_new_tokens": 0}, "max_new_tokens 0"),
        ({**A, "seed": -1}, "seed -1"),
        ({**A, "system": 5}, "system 5"),
        ({**A, "temperature": "hot"}, "temperature 'hot'"),
        ({**A, "temperature": -1}, "temperature"),
        (b'{"image": "a.png", "prompt": "x", "temperature": NaN}', "temperature NaN"),
        (b'{"image": "a.png", "prompt": "x", "temperature": 1' + b"0" * 400 + b"}", "temperature"),
        ({**A, "top_p": 2}, "top_p"),
        ({**A, "stop": [""]}, "stop"),
        ({**A, "raw_prompt": "yes"}, "raw_prompt"),
        ({**A, "id": {}}, "id is no text"),
        ({**A, "prompt": "what " * 4000}, "tokens"),
        ({**A, "prompt": "<image> what"}, "<image>"),
    ],
)
def test_a_bad_row_gives_its_error_in_its_place(place: Path, vlm: Vlm, row: Any, reason: str) -> None:
    if not (place / "fifo").exists():
        os.mkfifo(place / "fifo")
    good = {"id": "good", **A}
    code, answers, stderr = run(place, [good, row, {**good, "prompt": "how many"}])
    assert code == 1
    assert ["error" in answer for answer in answers] == [False, True, False]
    assert reason in answers[1]["error"]
    assert not answers[1]["error"].startswith("--")
    assert len(answers[1]["error"]) <= 500
    first, second = (vlm.generate(str(place / "a.png"), p, max_new_tokens=3) for p in ("what color", "how many"))
    assert (answers[0]["token_ids"], answers[2]["token_ids"]) == (first.token_ids, second.token_ids)
    assert f"error: 1 of 3 rows were not answered; the first: {place / 'jobs.jsonl'}:2: " in stderr
    # strict: nothing is answered behind it, and what can be seen without the model is seen without it
    code, answers, stderr = run(place, [good, row, good], "--strict", "--batch-size", 1)
    assert code == 1
    assert len(answers) <= 1
    assert "jobs.jsonl:2: " in stderr


def test_a_file_of_nothing(place: Path) -> None:
    for rows, reason in ((b"", "no requests"), (b"\n \n", "no requests"), (b"{}\n[]\n", "jobs.jsonl:1: no image")):
        code, answers, stderr = run(place, rows)
        assert (code, answers) == (1, [])
        assert reason in stderr


def test_everything_is_looked_at_before_the_model_is_loaded(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("the model is loaded")

    monkeypatch.setattr("trtprune.runtime.load", loaded)
    rows = [A, {**A, "image": "gone.png"}]
    one = ["--image", place / "a.png", "--prompt", "x"]
    for arguments, reason in (
        ([*one, "--keep", 10**6], "--keep 1000000"),
        ([*one, "--top-p", 3], "--top-p"),
        ([*one, "--stop", ""], "--stop"),
        ([*one, "--image", place / "bad.png"], "bad.png: not a picture"),
        ([*one, "--image", place / "gone.png"], "gone.png: no such file"),
        ([*one, "--image", "-", "--image", "-"], "one picture"),
        ([*one, "--max-pixels", 0], "--max-pixels"),
        (["--requests", place / "gone.jsonl"], "gone.jsonl: cannot be read"),
        (["--requests", "/dev/zero"], "not a regular file"),
        (["--requests", place], "not a regular file"),
    ):
        code, _, stderr = command([place / "out", *arguments])
        assert code == 1
        assert reason in stderr
        # What a flag must be, its line says itself.
        assert "hint:" in stderr or reason.startswith("--")
    for more, reason in (
        (["--strict"], "jobs.jsonl:2: image"),
        (["-o", place / "no" / "where.jsonl"], "cannot be written"),
        (["-o", place / "jobs.jsonl"], "is the request file"),
        (["-o", place / "a.png"], "not a file of answers"),
        (["-o", "/dev/null"], "no regular file"),
    ):
        code, _, stderr = run(place, rows, *more)
        assert code == 1
        assert reason in stderr
    assert (place / "a.png").read_bytes().startswith(b"\x89PNG")


# -- files as they come


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r"])
def test_lines_end_with_a_newline_only(place: Path, sign: str) -> None:
    text = json.dumps({**A, "note": f"a{sign}b"}, ensure_ascii=False)
    text = text if sign in text else text.replace("\\r", "\r")
    if sign in "\x0b\x0c\x1c\r":  # JSON has these as escapes only
        text = json.dumps({**A, "note": f"a{sign}b"})
    code, answers, stderr = run(place, b"\xef\xbb\xbf" + text.encode() + b"\r\n\r\n" + text.encode())
    assert code == 0, stderr
    assert [answer["note"] for answer in answers] == [f"a{sign}b"] * 2
    assert [answer["id"] for answer in answers] == ["line-1", "line-3"]


texts = st.text(st.characters(codec="utf-8"), max_size=20)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.dictionaries(texts, texts | st.integers() | st.none() | st.lists(texts), max_size=4), max_size=6)
)
def test_lines_are_those_of_json(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines_of(*rows))
    with JsonLines(path, flag="--requests", hint="") as lines:
        for _ in range(2):
            assert list(lines) == list(enumerate(rows, 1))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.lists(st.binary(max_size=30) | st.sampled_from([lines_of(A), b"\n", b"\xef\xbb\xbf", b"{"]), max_size=6))
def test_no_file_is_a_traceback(tmp_path: Path, data: list[bytes]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"".join(data))
    with RequestFile(path) as rows:
        found = list(rows)
        assert len(found) <= b"".join(data).count(b"\n") + 1
        with contextlib.suppress(InputError):
            rows.survey()


def test_long_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": "' + b"x" * 50 + b'"}\n{"b": 1}\n' + b"y" * 60)
    with JsonLines(path, flag="--requests", hint="", max_line=20) as lines:
        assert list(lines) == [(1, "longer than 20 bytes"), (2, {"b": 1}), (3, "longer than 20 bytes")]


def test_standard_input_and_pipes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    code, answers, stderr = command(
        ["out", "--requests", "-", "--json", "--max-new-tokens", 2], stdin=lines_of(A, {**A, "image": "gone.png"})
    )
    assert code == 1
    assert ["text" in answer for answer in answers] == [True, False]
    assert "standard input:2: image gone.png: no such file" in stderr
    os.mkfifo(place / "pipe")
    writer = threading.Thread(target=lambda: (place / "pipe").write_bytes(lines_of(A)))
    writer.start()
    code, answers, _ = command(["out", "--requests", "pipe", "--json", "--max-new-tokens", 2])
    writer.join()
    assert (code, len(answers)) == (0, 1)
    monkeypatch.setattr(json_lines, "MAX_PIPE_BYTES", 100)
    code, _, stderr = command(["out", "--requests", "-"], stdin=b"x" * 200)
    assert code == 1
    assert "larger than 100 bytes" in stderr


def test_pictures_in_the_rows(place: Path, vlm: Vlm) -> None:
    data = "data:image/png;base64," + base64.b64encode((place / "a.png").read_bytes()).decode()
    code, answers, stderr = run(place, [{**A, "image": data}, {**A, "image": (place / "a.png").as_uri()}, A])
    assert code == 0, stderr
    assert len({tuple(answer["token_ids"]) for answer in answers}) == 1
    assert len(answers[0]["image"]) < 300  # in the answer it is not repeated
    assert len(data) > 1000


def test_a_picture_from_standard_input(place: Path) -> None:
    arguments = [place / "out", "--prompt", "what color", "--json", "--max-new-tokens", 3, "--image"]
    expected = command([*arguments, place / "a.png"])[1]
    code, found, stderr = command([*arguments, "-"], stdin=(place / "a.png").read_bytes())
    assert code == 0, stderr
    assert found[0]["token_ids"] == expected[0]["token_ids"]


def test_the_same_keys_for_compare_and_eval(place: Path) -> None:
    from trtprune.compare.answers import read_questions
    from trtprune.eval.rows import read_rows

    path = place / "both.jsonl"
    for key in ("prompt", "question"):
        path.write_bytes(b"\xef\xbb\xbf" + lines_of({"image": "a.png", key: "what\u2028?", "answer": "x"}))
        (asked,) = read_questions(path)
        assert (asked.request.prompt, asked.answer) == ("what\u2028?", "x")
        (row,) = read_rows(path).rows
        assert (row.question, row.image) == ("what\u2028?", place / "a.png")
    path.write_bytes(lines_of({**A, "keep": 3}))
    with pytest.raises(InputError, match=r"both.jsonl:1: keep"):
        read_questions(path)


# -- long runs


def test_memory_is_flat(tmp_path: Path, place: Path) -> None:
    """A survey of many rows takes no more than one of few."""
    import tracemalloc

    peaks = []
    for count in (200, 4_000):
        path = tmp_path / "rows.jsonl"
        path.write_bytes(lines_of({**A, "image": str(place / "a.png")}) * count)
        tracemalloc.start()
        with RequestFile(path) as rows:
            assert rows.survey().rows == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 200_000


def test_answers_on_disk(place: Path) -> None:
    rows = [{"id": number, **A, "keep": 2 + number} for number in range(5)]
    expected = run(place, rows)[1]
    output = place / "answers.jsonl"
    code, _, stderr = run(place, rows, "-o", output)
    assert code == 0, stderr
    whole = output.read_bytes()
    found = [json.loads(line) for line in whole.splitlines()]
    timed = ("timings_ms", "tokens_per_second", "time_to_first_token_ms", "run")

    def plain(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{key: value for key, value in answer.items() if key not in timed} for answer in answers]

    assert plain(found) == plain(expected)
    # again: neither lost nor doubled without being asked
    code, _, stderr = run(place, rows, "-o", output)
    assert code == 1
    assert "--resume goes on" in stderr
    assert output.read_bytes() == whole
    # cut off in the middle of the third
    cut = whole.index(b'{"id": 2') + 30
    output.write_bytes(whole[:cut])
    code, _, stderr = run(place, rows, "-o", output, "--resume")
    assert code == 0, stderr
    assert "2 of 5 rows were answered before" in stderr
    resumed = output.read_bytes()
    assert plain([json.loads(line) for line in resumed.splitlines()]) == plain(found)
    assert resumed.startswith(whole[: whole.index(b'{"id": 2')])
    # other settings, other rows
    for changed, more, reason in (
        (rows, ["--keep", 4], "other settings"),
        (rows[1:], [], "answers 0, and the request in its place is 1"),
    ):
        code, _, stderr = run(place, changed, "-o", output, "--resume", *more)
        assert code == 1
        assert reason in stderr
    assert output.read_bytes() == resumed
    code, _, stderr = run(place, rows[:2], "-o", output, "--force")
    assert code == 0, stderr
    assert output.read_bytes().count(b"\n") == 2


def test_two_processes_do_not_write_one_file(place: Path) -> None:
    output = place / "locked.jsonl"
    with AnswerFile(output, "x"):
        code, _, stderr = run(place, [A], "-o", output)
    assert code == 1
    assert "another process" in stderr
    assert not output.exists()  # nothing was answered, and we made it


def test_an_interrupted_run_says_how_to_go_on(place: Path) -> None:
    (place / "many.jsonl").write_bytes(lines_of(*({"id": number, **A} for number in range(3000))))
    output = place / "many-answers.jsonl"
    arguments = ["--requests", place / "many.jsonl", "-o", output, "--threads", 1]
    child = subprocess.Popen(
        [sys.executable, "-m", "trtprune", "run", str(place / "out"), *map(str, arguments)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 60
    while time.monotonic() < until and not (output.exists() and output.stat().st_size):
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    stderr = child.communicate()[1]
    assert child.returncode == 130
    assert "of 3000 rows are answered; --resume goes on" in stderr
    lines = output.read_bytes().split(b"\n")
    assert lines[-1] == b""
    assert [json.loads(line)["id"] for line in lines[:-1]] == list(range(len(lines) - 1))


def test_an_error_is_an_answer_too(place: Path) -> None:
    output = place / "errors.jsonl"
    rows = [A, {**A, "image": "gone.png", "id": "x"}, A]
    for more in ([], ["--resume"]):
        code, _, _ = run(place, rows, "-o", output, *more)
        assert code == (0 if more else 1)
        found = [json.loads(line) for line in output.read_bytes().splitlines()]
        assert ["error" in answer for answer in found] == [False, True, False]
        assert found[1]["id"] == "x"


def test_text_keeps_the_place_of_a_row(place: Path) -> None:
    (place / "jobs.jsonl").write_bytes(lines_of(A, {**A, "image": "gone.png"}, A))
    result = CliRunner().invoke(main, ["run", str(place / "out"), "--requests", str(place / "jobs.jsonl")])
    first, second, third, _ = result.stdout.split("\n")
    assert first == third
    assert second == ""


def test_setting_names_are_those_of_generate() -> None:
    import inspect

    own = {*requests.IN_REQUEST, *requests.IN_CALL}
    named = {*inspect.signature(Vlm.generate).parameters, *AnswerArguments.__annotations__}
    assert own == named - {"self", "images", "prompt", "settings"}


def test_the_closing_line(place: Path) -> None:
    one = [place / "out", "--image", place / "a.png", "--prompt", "what color", "--max-new-tokens", 3]
    code, _, stderr = command([*one, "-v"])
    assert code == 0
    assert "tokens: the first after " in stderr
    assert "ms: preprocess " in stderr
    assert "loaded in " in stderr
    code, _, stderr = command([*one, "-q"])
    assert (code, stderr) == (0, "")


def test_strict_images(place: Path) -> None:
    from tests.runtime.test_pictures import frames

    (place / "moving.gif").write_bytes(frames("GIF"))
    one = [place / "out", "--image", place / "moving.gif", "--prompt", "x", "--max-new-tokens", 2]
    code, _, stderr = command(one)
    assert code == 0
    assert stderr.count("has several frames; the first one is taken") == 1
    code, _, stderr = command([*one, "--strict-images"])
    assert code == 1
    assert "has several frames" in stderr
    strict = trtprune.load(place / "out", strict_images=True)
    with pytest.raises(InputError, match="several frames"):
        strict.generate(io.BytesIO(frames("GIF")), "x")
