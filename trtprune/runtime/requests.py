"""Rows of a request file: questions, their settings, and the faults of rows, found before any run."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtprune.errors import InputError, TrtpruneError, one_line, shown
from trtprune.files.json_lines import JsonLines, prompt_of

if TYPE_CHECKING:
    from trtprune.runtime import Request

__all__ = ["FORM", "RequestFile", "RequestRow", "Survey"]

FORM = '{"image": "a.jpg", "prompt": "What is this?"}, one such object a line'
MAX_TEXT = 1 << 20
MAX_ID = 500
ECHOED = 200
"""Characters of an image in its row that are kept in the answer's line."""


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return (_whole(value) and abs(value) < 2**53) or (isinstance(value, float) and math.isfinite(value))


def _texts(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))


SAMPLING = ("temperature", "top_k", "top_p", "repetition_penalty")
IN_REQUEST: dict[str, tuple[Callable[[Any], bool], str]] = {
    "keep": (_whole, "a whole number"),
    "keep_ratio": (lambda value: _number(value) and 0 < value <= 1, "a number above 0 and at most 1"),
    "max_new_tokens": (lambda value: _whole(value) and value > 0, "a whole number above 0"),
    "seed": (lambda value: _whole(value) and 0 <= value < 2**63, "a whole number from 0 to 2**63 - 1"),
    "system": (lambda value: isinstance(value, str), "a text"),
    "raw_prompt": (lambda value: isinstance(value, bool), "true or false"),
}
"""Settings of a row that may differ within a batch → their check."""
IN_CALL: dict[str, tuple[Callable[[Any], bool], str]] = {
    "min_new_tokens": (lambda value: _whole(value) and value >= 0, "a whole number, at least 0"),
    "temperature": (_number, "a number"),
    "top_k": (_whole, "a whole number"),
    "top_p": (_number, "a number"),
    "repetition_penalty": (_number, "a number"),
    "stop": (_texts, "a text or a list of texts"),
    "ignore_eos": (lambda value: isinstance(value, bool), "true or false"),
}
"""Settings of a row that are equal in a whole batch → their check."""


@dataclass(frozen=True)
class RequestRow:
    """One line.

    Attributes:
        number: Number of the line, from 1.
        id: The row's own, or ``line-N``.
        given: The object in the file; empty without one.
        images: Images; files with their paths.
        prompt: The question.
        request: The row's own settings of :data:`IN_REQUEST`.
        call: The row's own settings of :data:`IN_CALL`.
        fault: The reason why the row cannot be answered; empty if it can.
    """

    number: int
    id: Any
    given: Mapping[str, Any]
    images: tuple[str, ...] = ()
    prompt: str = ""
    request: Mapping[str, Any] = field(default_factory=dict)
    call: Mapping[str, Any] = field(default_factory=dict)
    fault: str = ""

    def to_request(self, shared: Mapping[str, Any]) -> Request:
        """The runtime's request, with ``shared`` for settings that the row omits."""
        from trtprune.runtime import Request

        return Request(images=list(self.images), prompt=self.prompt, **{**shared, **self.request})

    def echo(self) -> dict[str, Any]:
        """The row's part of the answer's line: the id, and all keys of the row."""
        return {"id": self.id, **{key: _short(key, value) for key, value in self.given.items() if key != "id"}}


def _short(key: str, value: Any) -> Any:
    if key in ("image", "images"):
        if isinstance(value, list):
            return [_short(key, item) for item in value]
        if isinstance(value, str) and value[:5].lower() == "data:" and len(value) > ECHOED:
            return value[:ECHOED] + "…"
    return value


@dataclass
class Survey:
    """The result of a first check of all rows."""

    rows: int = 0
    bad: int = 0
    first_fault: str = ""
    empty_prompts: int = 0


class RequestFile:
    """The rows of ``--requests``; a context manager, and iterable more than once.

    Args:
        path: The file; ``-`` is standard input.
        check_keep: Raises BudgetError for a budget that the build does not serve.
        urls: Whether rows may name images on the network.
        refused: Settings that a row must not have → the reason.
    """

    def __init__(
        self,
        path: Path,
        *,
        check_keep: Callable[[int], Any] | None = None,
        urls: bool = False,
        refused: Mapping[str, str] | None = None,
    ) -> None:
        self._lines = JsonLines(path, flag="--requests", hint=FORM)
        self._check_keep, self._urls, self._refused = check_keep, urls, refused or {}
        # Rows about one image are often consecutive.
        self._picture_fault = functools.lru_cache(1024)(self._fault_of_picture)
        self.name = self._lines.name

    def __enter__(self) -> RequestFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.__exit__()

    def __iter__(self) -> Iterator[RequestRow]:
        for number, entry in self._lines:
            yield self._row(number, entry)

    def where(self, row: RequestRow) -> str:
        """File, line and fault of a row."""
        return f"{self.name}:{row.number}: {row.fault}"

    def survey(self, *, strict: bool = False) -> Survey:
        """Checks all rows before any is answered, so that a typo in the last one is reported at once.

        Raises:
            InputError: for a file without an answerable row; with ``strict``, for any row that cannot be answered.
        """
        found = Survey()
        for row in self:
            found.rows += 1
            found.empty_prompts += not row.fault and not row.prompt.strip()
            if not row.fault:
                continue
            found.bad += 1
            found.first_fault = found.first_fault or self.where(row)
            if strict:
                raise InputError(self.where(row), hint=FORM)
        if not found.rows:
            raise InputError(f"{self.name}: no requests", hint=FORM)
        if found.bad == found.rows:
            raise InputError(f"{found.first_fault}; and no other row can be answered", hint=FORM)
        return found

    def _row(self, number: int, entry: dict[str, Any] | str) -> RequestRow:
        if isinstance(entry, str):
            return RequestRow(number, f"line-{number}", {}, fault=entry)
        key = entry.get("id", f"line-{number}")
        if not isinstance(key, str | int | float) or (isinstance(key, str) and len(key) > MAX_ID):
            return RequestRow(
                number, f"line-{number}", entry, fault=f"id is no text of up to {MAX_ID} characters and no number"
            )
        images = entry.get("image", entry.get("images"))
        images = [images] if isinstance(images, str) else images
        prompt = prompt_of(entry)
        fault = _fault_of_asked(entry, images, prompt)
        if fault:
            return RequestRow(number, key, entry, fault=fault)
        assert isinstance(images, list)
        assert prompt is not None
        located = tuple(self._located(image) for image in images)
        own = {name: value for name, value in entry.items() if value is not None}
        request = {name: own[name] for name in IN_REQUEST if name in own}
        call = {name: own[name] for name in IN_CALL if name in own}
        fault = self._fault_of_settings(request | call) or next(filter(None, map(self._picture_fault, located)), "")
        return RequestRow(number, key, entry, located, prompt, request, call, one_line(fault) if fault else "")

    def _located(self, image: str) -> str:
        """The path of an image: relative to the file, so that a data set can be moved as a whole."""
        from trtprune.runtime.sources import is_address

        return image if is_address(image) else str(self._lines.folder / image)

    def _fault_of_picture(self, image: str) -> str:
        from trtprune.runtime.sources import local_file, picture_fault

        try:
            path = local_file(image)
        except InputError as error:
            return error.message
        if path is not None:
            return picture_fault(path)
        if image[:4].lower() == "http" and not self._urls:
            return "image: an address on the network, which --urls allows"
        return ""

    def _fault_of_settings(self, own: Mapping[str, Any]) -> str:
        from trtprune.runtime.sampling import Sampling

        for name, value in own.items():
            if name in self._refused:
                return f"{name}: {self._refused[name]}"
            fits, form = (IN_REQUEST | IN_CALL)[name]
            if not fits(value):
                return f"{name} {shown(value)}: must be {form}"
        try:
            if "keep" in own and self._check_keep is not None:
                self._check_keep(own["keep"])
            Sampling(
                **{name: own[name] for name in ("temperature", "top_k", "top_p", "repetition_penalty") if name in own}
            )
        except TrtpruneError as error:
            return error.message
        if "keep" in own and "keep_ratio" in own:
            return "keep and keep_ratio exclude each other"
        stop = own.get("stop", ())
        return "stop: a text is empty" if "" in ([stop] if isinstance(stop, str) else stop) else ""


def _fault_of_asked(entry: Mapping[str, Any], images: Any, prompt: str | None) -> str:
    if not isinstance(images, list) or not images or not all(isinstance(image, str) and image for image in images):
        return "no image: a path, or a list of paths"
    if prompt is None:
        both = isinstance(entry.get("prompt"), str) and isinstance(entry.get("question"), str)
        return "prompt and question differ" if both else "no prompt"
    return f"a prompt of more than {MAX_TEXT} characters" if len(prompt) > MAX_TEXT else ""
