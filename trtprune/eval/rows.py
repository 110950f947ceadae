"""Questions about images with known answers, and reading them from a JSON-lines file.

A data file is untrusted: nothing in it is executed, sizes are checked first, and an unusable line is listed with the
reason instead of ending the work (``strict`` makes it an error).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from trtprune.errors import InputError
from trtprune.eval.scoring import LETTERS, METRICS, MIN_SOFT_ANSWERS
from trtprune.files.json_lines import JsonLines, prompt_of
from trtprune.runtime.sources import picture_fault

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["MAX_ROWS", "DataSet", "Drawn", "Picture", "Rejected", "Row", "collect", "read_rows"]

MAX_FILE_BYTES = 1 << 30
MAX_LINE_BYTES = 1 << 20
MAX_ROWS = 1_000_000
MAX_TEXT = 20_000
MAX_ID = 500
MAX_ANSWERS = 100
HINT = 'one JSON object a line: {"id": …, "image": "a.jpg", "question": …, "answer": …}'


@runtime_checkable
class Drawn(Protocol):
    """An image that is drawn on demand, because thousands of them would not fit in memory.

    Equal values (they are hashable) draw equal images.
    """

    def draw(self) -> Image.Image: ...


Picture: TypeAlias = "Path | Image.Image | Drawn"


@dataclass(frozen=True)
class Row:
    """One question about one image.

    Attributes:
        id: Distinct within a data set, and the same in every run.
        image: The image's file, the image, or a :class:`Drawn` one.
        question: The text for the model, with the set's request for the answer's form, if any.
        answers: Right answers, in the sense of the metric; for a soft metric, the answer of each person.
        group: The part of the set for the report; empty for none.
        choices: The choices of a multiple-choice question, in order.
        metric: The row's own metric; empty: the data set's.
    """

    id: str
    image: Picture
    question: str
    answers: tuple[str, ...]
    group: str = ""
    choices: tuple[str, ...] = ()
    metric: str = ""

    def picture(self) -> Path | Image.Image:
        """The image for the runtime: the file, or the image, drawn now if necessary."""
        return self.image.draw() if isinstance(self.image, Drawn) else self.image

    @property
    def picture_key(self) -> Any:
        """A hashable key, equal for rows about the same image."""
        if isinstance(self.image, (Path, Drawn)):
            return self.image
        return id(self.image)


@dataclass(frozen=True)
class Rejected:
    """An unusable line (or the number of an entry, from 1), and the reason."""

    line: int
    reason: str


@dataclass(frozen=True)
class DataSet:
    """Questions, rejected entries, and the metric of the answers.

    Attributes:
        name: The set's name in reports.
        rows: The questions, in the file's order.
        rejected: The rejected entries.
        metric: One of ``scoring.METRICS``, for rows without their own.
        digest: SHA-256 of the inputs of the marks: ids, images (by name and size), questions, answers, metrics.
    """

    name: str
    rows: tuple[Row, ...]
    rejected: tuple[Rejected, ...]
    metric: str
    digest: str = field(default="")

    @property
    def groups(self) -> tuple[str, ...]:
        """The rows' groups, in the order of the rows."""
        return tuple(dict.fromkeys(row.group for row in self.rows if row.group))

    def metric_of(self, row: Row) -> str:
        return row.metric or self.metric

    def only(self, groups: Sequence[str]) -> DataSet:
        """The rows of these groups.

        Raises:
            InputError: for a group that the set does not have.
        """
        for group in groups:
            if group not in self.groups:
                known = ", ".join(sorted(self.groups)) or "none"
                raise InputError(f"--group {group}: {self.name} has no such group", hint=f"groups: {known}")
        rows = tuple(row for row in self.rows if row.group in groups)
        return DataSet(self.name, rows, self.rejected, self.metric, digest_of(rows, self.metric))

    def sample(self, limit: int | None, seed: int = 0) -> DataSet:
        """At most ``limit`` rows drawn with ``seed``, in the file's order."""
        import random

        if limit is None or limit >= len(self.rows):
            return self
        if limit < 1:
            raise InputError(f"--limit {limit}: must be at least 1")
        chosen = sorted(random.Random(f"trtprune rows {seed}").sample(range(len(self.rows)), limit))
        rows = tuple(self.rows[i] for i in chosen)
        return DataSet(self.name, rows, self.rejected, self.metric, digest_of(rows, self.metric))


def digest_of(rows: Iterable[Row], metric: str) -> str:
    """SHA-256 over the inputs of the marks; images on disk count by name and size, because hashing them would take
    longer than the answers."""
    state = hashlib.sha256(metric.encode())
    files: dict[Path, list[Any]] = {}
    for row in rows:
        picture: Any = None
        if isinstance(row.image, Path):
            if row.image not in files:
                files[row.image] = [row.image.name, row.image.stat().st_size if row.image.is_file() else -1]
            picture = files[row.image]
        elif isinstance(row.image, Drawn):
            picture = repr(row.image)
        else:
            picture = [row.image.mode, *row.image.size, hashlib.sha256(row.image.tobytes()).hexdigest()]
        entry = [row.id, picture, row.question, row.answers, row.group, row.choices, row.metric]
        state.update(json.dumps(entry).encode() + b"\n")
    return state.hexdigest()


def collect(
    name: str,
    entries: Iterable[tuple[int, Row | str]],
    *,
    metric: str,
    strict: bool = False,
    source: str = "",
    hint: str | None = HINT,
) -> DataSet:
    """A data set from rows and reasons, with the checks that are common to all sources.

    Args:
        name: Name of the set.
        entries: Pairs of the line or entry number, and the row or the reason.
        metric: Metric of rows without their own.
        strict: Whether to raise at the end, naming the first few, instead of rejecting entries.
        source: Name of the data in errors; ``name`` if empty.
        hint: Hint of those errors.

    Raises:
        InputError: with ``strict`` if an entry was rejected; or if there is no usable row.
    """
    source = source or name
    if metric not in METRICS:
        raise InputError(f"--metric {metric}: no such metric", hint=", ".join(METRICS))
    rows: list[Row] = []
    rejected: list[Rejected] = []
    seen: dict[str, int] = {}
    there: dict[Path, str] = {}
    for number, entry in entries:
        reason = entry if isinstance(entry, str) else _fault(entry, metric, there)
        if not reason and isinstance(entry, Row) and entry.id in seen:
            reason = f"id {entry.id!r} again, first in {seen[entry.id]}"
        if reason:
            rejected.append(Rejected(number, reason))
        elif isinstance(entry, Row):
            seen[entry.id] = number
            rows.append(entry)
            if len(rows) > MAX_ROWS:
                raise InputError(f"{source}: more than {MAX_ROWS} rows", hint="split it")
    if rejected and strict:
        few = "; ".join(f"{source}:{item.line}: {item.reason}" for item in rejected[:3])
        more = f" … and {len(rejected) - 3} more" if len(rejected) > 3 else ""
        raise InputError(f"--strict: {len(rejected)} rows cannot be used: {few}{more}", hint=hint)
    if not rows:
        first = f": line {rejected[0].line}: {rejected[0].reason}" if rejected else ""
        raise InputError(f"{source}: no row that can be used{first}", hint=hint)
    return DataSet(name, tuple(rows), tuple(rejected), metric, digest_of(rows, metric))


def _fault(row: Row, metric: str, there: dict[Path, str]) -> str:
    """The reason why a row cannot be used; empty if it can.  ``there`` caches the existing images."""
    metric = row.metric or metric
    if metric not in METRICS:
        return f"metric {metric!r} is none of {', '.join(METRICS)}"
    if not row.question.strip():
        return "no question"
    if not any(answer.strip() for answer in row.answers):
        return "no answer"
    if metric in ("vqa", "textvqa") and len(row.answers) < MIN_SOFT_ANSWERS:
        return (
            f"metric {metric} needs {MIN_SOFT_ANSWERS} answers or more (one per person asked), has {len(row.answers)}"
        )
    if metric == "pope" and [answer.strip().lower() for answer in row.answers] not in (["yes"], ["no"]):
        return "metric pope needs the answer yes or no"
    if metric == "letter":
        known = LETTERS[: len(row.choices) or len(LETTERS)]
        if not all(len(answer) == 1 and answer in known for answer in row.answers):
            return f"metric letter needs one of {known[0]} to {known[-1]} as answer"
    if isinstance(row.image, Path):
        if row.image not in there:
            there[row.image] = picture_fault(row.image)
        return there[row.image]
    return ""


def read_rows(
    path: Path,
    *,
    metric: str | None = None,
    strict: bool = False,
    images: Path | None = None,
) -> DataSet:
    """Reads a JSON-lines file of questions.

    Each line is an object with ``image`` (a path relative to the file), ``question`` (or ``prompt``) and ``answers``
    (a list) or ``answer``; it may have ``id`` (else "line-N"), ``group``, ``choices`` and ``metric``.  Other keys are
    ignored, and so are blank lines.

    Args:
        path: The file, UTF-8.
        metric: Metric of rows without their own; None: "vqa" if every row has ten answers, else "exact".
        strict: Whether to raise instead of rejecting rows.
        images: Base folder of image paths; None: the file's folder.

    Raises:
        InputError: if the file cannot be read, is too large, has no usable row, or with ``strict`` an unusable one.
    """
    entries: list[tuple[int, Row | str]] = []
    with JsonLines(path, flag="--data", hint=HINT, max_line=MAX_LINE_BYTES, max_bytes=MAX_FILE_BYTES) as lines:
        for number, entry in lines:
            entries.append((number, entry if isinstance(entry, str) else _row(entry, number, images or lines.folder)))
            if len(entries) > MAX_ROWS:
                raise InputError(f"--data {path}: more than {MAX_ROWS} rows", hint="split it")
    if metric is None:
        rows = [entry for _, entry in entries if isinstance(entry, Row)]
        metric = "vqa" if rows and all(len(row.answers) == 10 for row in rows) else "exact"
    return collect(path.stem, entries, metric=metric, strict=strict, source=str(path))


def _row(entry: dict[str, Any], number: int, folder: Path) -> Row | str:
    """The row of one line, or its fault."""
    key = _text(entry.get("id", f"line-{number}"))
    if not key or len(key) > MAX_ID:
        return f"id must be a string or number of up to {MAX_ID} characters"
    image, question = entry.get("image"), prompt_of(entry)
    if not isinstance(image, str) or not image:
        return "no image"
    if question is None:
        return "no question, or two that differ"
    answers = _texts(entry.get("answers", entry.get("answer")))
    if answers is None:
        return (
            "no answer" if entry.get("answers", entry.get("answer")) is None else "answers must be strings or numbers"
        )
    choices = _texts(entry.get("choices", ()))
    group, metric = entry.get("group", ""), entry.get("metric", "")
    if choices is None or not isinstance(group, str) or not isinstance(metric, str):
        return "choices must be a list of strings, group and metric strings"
    if max(len(choices), len(answers)) > MAX_ANSWERS:
        return f"more than {MAX_ANSWERS} answers or choices"
    texts = (key, question, image, group, metric, *answers, *choices)
    if max(map(len, texts)) > MAX_TEXT:
        return f"a text of more than {MAX_TEXT} characters"
    if any("\ud800" <= sign <= "\udfff" for text in texts for sign in text):
        return "half a surrogate pair: not Unicode text"
    return Row(key, folder / image, question, answers, group, choices, metric)


def _text(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _texts(value: Any) -> tuple[str, ...] | None:
    """A string, a number, or a list of them, as strings; None for other values."""
    items: Sequence[Any] = value if isinstance(value, (list, tuple)) else [value]
    texts = [_text(item) for item in items]
    return tuple(text for text in texts if text is not None) if None not in texts else None
