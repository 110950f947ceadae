"""Data files as they come: good rows are read, bad ones listed with their line, and nothing gets past the checks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from trtprune.errors import InputError
from trtprune.eval import rows as rows_module
from trtprune.eval.rows import DataSet, Row, collect, read_rows

GOOD = {"id": "a", "image": "p.png", "question": "what?", "answer": "cat"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (4, 4)).save(tmp_path / "p.png")
    return tmp_path


def write(folder: Path, *lines: Any) -> Path:
    path = folder / "d.jsonl"
    texts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(texts) + b"\n")
    return path


def reasons(data: DataSet) -> list[tuple[int, str]]:
    return [(item.line, item.reason) for item in data.rejected]


def test_good_rows(folder: Path) -> None:
    more = {
        "id": 7,
        "image": str(folder / "p.png"),
        "question": "q",
        "answers": ["x", 2],
        "group": "g",
        "metric": "gqa",
    }
    data = read_rows(
        write(folder, GOOD, b"", b"  ", more, {k: v for k, v in GOOD.items() if k != "id"} | {"extra": []})
    )
    assert data.rejected == ()
    first, second, third = data.rows
    assert first == Row("a", folder / "p.png", "what?", ("cat",))
    assert (second.id, second.answers, second.group, second.metric) == ("7", ("x", "2"), "g", "gqa")
    assert third.id == "line-5"
    assert (data.name, data.metric, data.groups) == ("d", "exact", ("g",))
    assert data.metric_of(second) == "gqa"
    assert data.metric_of(first) == "exact"
    assert first.picture() == folder / "p.png"
    assert first.picture_key == third.picture_key


def test_pictures_in_another_folder(folder: Path) -> None:
    elsewhere = folder / "pictures"
    elsewhere.mkdir()
    (folder / "p.png").rename(elsewhere / "p.png")
    assert read_rows(write(folder, GOOD), images=elsewhere).rows[0].image == elsewhere / "p.png"


def test_byte_order_mark_and_crlf(folder: Path) -> None:
    path = folder / "d.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n" + json.dumps(GOOD | {"id": "b"}).encode())
    assert [row.id for row in read_rows(path).rows] == ["a", "b"]


BAD: list[tuple[Any, str]] = [
    (b'{"id": "x", ', "not JSON"),
    (b"\xff\xfe", "not UTF-8"),
    (b"[" * 100_000, "not JSON"),
    (["a"], "not a JSON object"),
    (GOOD, "id 'a' again, first in 1"),
    (GOOD | {"id": "x", "image": "none.png"}, "none.png: no such file"),
    (GOOD | {"id": "x", "image": "."}, "is a directory"),
    (GOOD | {"id": "x", "image": "empty.png"}, "is empty"),
    (GOOD | {"id": "x", "image": "p\0.png"}, "image"),
    (GOOD | {"id": "x", "image": "p" * 5000}, "image"),
    (GOOD | {"id": "x", "image": ["p.png"]}, "no image"),
    (GOOD | {"id": "x", "question": " "}, "no question"),
    (GOOD | {"id": "x", "question": 3}, "no question"),
    (GOOD | {"id": "x", "answer": None}, "no answer"),
    (GOOD | {"id": "x", "answer": " "}, "no answer"),
    (GOOD | {"id": "x", "answers": []}, "no answer"),
    (GOOD | {"id": "x", "answers": [["cat"]]}, "answers must be strings"),
    (GOOD | {"id": "x", "answer": True}, "answers must be strings"),
    (GOOD | {"id": "x", "answers": ["a"] * 101}, "more than 100"),
    (GOOD | {"id": "x", "question": "q" * 20_001}, "more than 20000 characters"),
    (GOOD | {"id": "x" * 501}, "id must be"),
    (GOOD | {"id": ["x"]}, "id must be"),
    (GOOD | {"id": "x", "question": "q" * (1 << 20)}, "longer than"),
    (b'{"id": "x", "image": "p.png", "question": "\\ud800", "answer": "a"}', "surrogate"),
    (GOOD | {"id": "x", "metric": "bleu"}, "metric 'bleu' is none of"),
    (GOOD | {"id": "x", "metric": "vqa"}, "needs 4 answers"),
    (GOOD | {"id": "x", "metric": "pope"}, "yes or no"),
    (GOOD | {"id": "x", "metric": "letter", "choices": ["u", "v"], "answer": "C"}, "one of A to B"),
    (GOOD | {"id": "x", "choices": "u", "group": 3}, "choices must be"),
]


@pytest.mark.parametrize(("line", "reason"), BAD, ids=[reason[:24] for _, reason in BAD])
def test_a_bad_line_is_listed_and_strict_fails(folder: Path, line: Any, reason: str) -> None:
    (folder / "empty.png").touch()
    path = write(folder, GOOD, line, GOOD | {"id": "last"})
    data = read_rows(path)
    assert [row.id for row in data.rows] == ["a", "last"]
    ((number, said),) = reasons(data)
    assert number == 2
    assert reason in said
    with pytest.raises(InputError, match=r"--strict: 1 rows cannot be used: .*d.jsonl:2: "):
        read_rows(path, strict=True)


def test_an_answer_missing_altogether(folder: Path) -> None:
    data = read_rows(write(folder, GOOD, {"image": "p.png", "question": "q"}))
    assert reasons(data) == [(2, "no answer")]


def test_files_that_cannot_be_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"--data .*none.jsonl: cannot be read: No such file"):
        read_rows(folder / "none.jsonl")
    with pytest.raises(InputError, match="no row that can be used: line 1: not JSON"):
        read_rows(write(folder, b"{"))
    with pytest.raises(InputError, match=r"no row that can be used( \(|$)"):
        read_rows(write(folder, b""))
    with pytest.raises(InputError, match="--metric bleu: no such metric"):
        read_rows(write(folder, GOOD), metric="bleu")
    monkeypatch.setattr(rows_module, "MAX_ROWS", 1)
    with pytest.raises(InputError, match="more than 1 rows"):
        read_rows(write(folder, GOOD, GOOD | {"id": "b"}))
    monkeypatch.setattr(rows_module, "MAX_FILE_BYTES", 10)
    with pytest.raises(InputError, match="larger than 10 bytes"):
        read_rows(write(folder, GOOD))


def test_the_metric_where_none_is_given(folder: Path) -> None:
    ten = GOOD | {"answers": ["cat"] * 10}
    assert read_rows(write(folder, ten)).metric == "vqa"
    assert read_rows(write(folder, ten, GOOD | {"id": "b"})).metric == "exact"
    assert read_rows(write(folder, ten), metric="gqa").metric == "gqa"


def test_the_digest_is_of_what_decides_the_marks(folder: Path) -> None:
    def digest(*lines: Any, **more: Any) -> str:
        return read_rows(write(folder, *lines), **more).digest

    first = digest(GOOD)
    assert digest(GOOD, b"", b"{") == first
    assert digest(GOOD | {"note": 1}) == first
    others = [GOOD | {"id": "b"}, GOOD | {"question": "who?"}, GOOD | {"answer": "dog"}, GOOD | {"group": "g"}]
    assert len({first, digest(GOOD, metric="gqa"), *(digest(other) for other in others)}) == 6
    Image.new("RGB", (40, 40), "red").save(folder / "p.png")
    assert digest(GOOD) != first


def test_samples_and_groups(folder: Path) -> None:
    rows = [Row(str(i), folder / "p.png", "q", ("a",), "odd" if i % 2 else "even") for i in range(100)]
    data = collect("set", enumerate(rows, 1), metric="exact")
    some = data.sample(10, seed=1)
    assert len(some.rows) == 10
    assert some.rows == tuple(sorted(some.rows, key=lambda row: int(row.id)))
    assert some == data.sample(10, seed=1)
    assert some.rows != data.sample(10, seed=2).rows
    assert some.digest != data.digest
    assert data.sample(None) is data is data.sample(100)
    assert {row.group for row in data.only(["odd"]).rows} == {"odd"}
    with pytest.raises(InputError, match="--group prime: set has no such group"):
        data.only(["prime"])
    with pytest.raises(InputError, match="--limit 0"):
        data.sample(0)


def test_pictures_in_memory_are_told_apart() -> None:
    black, white = Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), "white")
    one, two = Row("1", black, "q", ("a",)), Row("1", white, "q", ("a",))
    assert one.picture() is black
    assert one.picture_key != two.picture_key
    assert rows_module.digest_of([one], "exact") != rows_module.digest_of([two], "exact")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from(["id", "image", "question", "answer", "answers", "group", "choices", "metric"])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(lines=st.lists(st.dictionaries(keys, json_values, max_size=8) | st.binary(max_size=40), max_size=4))
def test_any_file_gives_rows_or_reasons(folder: Path, lines: list[Any]) -> None:
    path = write(folder, GOOD, *(line.replace(b"\n", b"") if isinstance(line, bytes) else line for line in lines))
    data = read_rows(path)
    blank = sum(1 for line in lines if isinstance(line, bytes) and not line.replace(b"\n", b"").strip())
    assert len(data.rows) + len(data.rejected) == 1 + len(lines) - blank
    assert all(row.question and row.answers and row.id for row in data.rows)
