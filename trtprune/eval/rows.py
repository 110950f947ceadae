"""Questions about pictures with known answers, and reading them from a JSON-lines file.

A data file is untrusted: nothing of it is executed, sizes are checked before anything is kept, and a line that cannot
be used is put on a list with the reason instead of ending the work (``strict`` makes it an error).
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
    """A picture that is drawn when it is looked at, as thousands of them would not fit in memory.

    Equal values (they are hashable) draw equal pictures.
    """

    def draw(self) -> Image.Image: ...


Picture: TypeAlias = "Path | Image.Image | Drawn"


@dataclass(frozen=True)
class Row:
    """One question about one picture.

    Attributes:
        id: Distinct within a data set, and the same in every run.
        image: The picture's file, the picture, or what draws it.
        question: The text the model is asked, with the request for the answer's form, if the set has one.
        answers: What counts as right; how, the metric says.  Of a soft metric, what each of the people asked said.
        group: Part of the set the row is reported under; empty for none.
        choices: Of a multiple-choice question, the choices in order.
        metric: Goes before the data set's metric; empty for that one.
    """

    id: str
    image: Picture
    question: str
    answers: tuple[str, ...]
    group: str = ""
    choices: tuple[str, ...] = ()
    metric: str = ""

    def picture(self) -> Path | Image.Image:
        """What the runtime takes as a picture: the file, or the picture, drawn now if need be."""
        return self.image.draw() if isinstance(self.image, Drawn) else self.image

    @property
    def picture_key(self) -> Any:
        """Hashable, and equal for rows about the same picture."""
        if isinstance(self.image, (Path, Drawn)):
            return self.image
        return id(self.image)


@dataclass(frozen=True)
class Rejected:
    """A line (or the entry of that number, from 1) that cannot be used, and why."""

    line: int
    reason: str


@dataclass(frozen=True)
class DataSet:
    """Questions, what could not be used, and how answers are marked.

    Attributes:
        name: What the set is called in reports.
        rows: The questions, in the file's order.
        rejected: What was left out.
        metric: One of ``scoring.METRICS``, for rows that name none.
        digest: SHA-256 of all that decides the marks: ids, pictures (by name and size), questions, answers, metrics.
    """

    name: str
    rows: tuple[Row, ...]
    rejected: tuple[Rejected, ...]
    metric: str
    digest: str = field(default="")

    @property
    def groups(self) -> tuple[str, ...]:
        """The rows' groups, in the order they come up."""
        return tuple(dict.fromkeys(row.group for row in self.rows if row.group))

    def metric_of(self, row: Row) -> str:
        return row.metric or self.metric

    def only(self, groups: Sequence[str]) -> DataSet:
        """The rows of these groups.

        Raises:
            InputError: for a group that the set has not got.
        """
        for group in groups:
            if group not in self.groups:
                known = ", ".join(sorted(self.groups)) or "none"
                raise InputError(f"--group {group}: {self.name} has no such group", hint=f"groups: {known}")
        rows = tuple(row for row in self.rows if row.group in groups)
        return DataSet(self.name, rows, self.rejected, self.metric, digest_of(rows, self.metric))

    def sample(self, limit: int | None, seed: int = 0) -> DataSet:
        """At most ``limit`` rows drawn with ``seed``, in the file's order; all of them where there are no more."""
        import random

        if limit is None or limit >= len(self.rows):
            return self
        if limit < 1:
            raise InputError(f"--limit {limit}: must be at least 1")
        chosen = sorted(random.Random(f"trtprune rows {seed}").sample(range(len(self.rows)), limit))
        rows = tuple(self.rows[i] for i in chosen)
        return DataSet(self.name, rows, self.rejected, self.metric, digest_of(rows, self.metric))


def digest_of(rows: Iterable[Row], metric: str) -> str:
    """SHA-256 over all that decides the marks; pictures on disk by name and size, as hashing them would take longer
    than answering."""
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
    """Makes a data set of rows and reasons, checking what holds for every source.

    Args:
        name: What the set is called.
        entries: (line or entry number, the row or why there is none).
        metric: For rows that name none.
        strict: Raise at the end, naming the first few, instead of leaving entries out.
        source: What errors call the data; ``name`` if empty.
        hint: Of those errors.

    Raises:
        InputError: With ``strict``, anything was rejected; or no row is left.
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
    """Why a row cannot be used; empty if it can.  ``there`` remembers which pictures exist."""
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
    left alone.  Blank lines do not count.

    Args:
        path: The file, UTF-8.
        metric: For rows that name none; None takes "vqa" if every row has ten answers, else "exact".
        strict: Raise instead of leaving rows out.
        images: Folder that picture paths are relative to instead of the file's.

    Raises:
        InputError: The file cannot be read, is too large, has no usable row, or (``strict``) has an unusable one.
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
    """The row of one line, or what is wrong with it."""
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
    """A string, a number, or a list of them, as strings; None if it is anything else."""
    items: Sequence[Any] = value if isinstance(value, (list, tuple)) else [value]
    texts = [_text(item) for item in items]
    return tuple(text for text in texts if text is not None) if None not in texts else None
