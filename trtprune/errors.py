"""The errors trtprune raises on purpose.

Every expected failure is a :class:`TrtpruneError`: one line that names the file or flag at fault, and a
``hint`` with the remedy.  The command line prints both and exits with 1; a traceback therefore always
means a bug in trtprune.

An argument has two spellings: ``max_new_tokens=2.5`` in Python, ``--max-new-tokens 2.5`` on the command line.  A
message with :func:`arg` in it leaves the choice open; the error gives both.
"""

from __future__ import annotations

import re
import reprlib
from typing import Any

__all__ = [
    "BackendError",
    "BudgetError",
    "BuildError",
    "CheckpointError",
    "EngineDirError",
    "InputError",
    "TrtpruneError",
    "arg",
    "as_flags",
    "as_python",
    "one_line",
    "printable",
    "shown",
]

_BEGIN, _VALUE, _OTHER, _END = "\ue000", "\ue001", "\ue002", "\ue003"
_MARKED = re.compile(f"{_BEGIN}(\\w+)(?:{_VALUE}([^{_OTHER}]*){_OTHER}([^{_END}]*))?{_END}")
_MISSING: Any = object()
_LENGTH = 160

FLAGS = {
    "images": "--image",
    "image": "--image",
    "options": "--option",
    "provider_options": "--provider-option",
    "output": "-o",
    "checkpoint": "--model",
}
"""Arguments whose flag is not their name with dashes → the flag."""

MESSAGE_LENGTH = 500
"""Largest number of characters of a message; text of a hostile file in it may be megabytes long."""


def one_line(text: str, limit: int = MESSAGE_LENGTH) -> str:
    """``text`` as one printable line of at most ``limit`` characters.

    Runs of white space become one space; control, format and surrogate characters become escapes like ``\\x1b``, so
    that no file can move the cursor, change the window's title or write a line of its own.
    """
    line = printable(" ".join(_cut(text, limit).split()))
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def _cut(text: str, limit: int) -> str:
    # First, because a message of 90 MB must not take seconds. Escapes only make it longer.
    return text if len(text) <= 4 * limit else text[: 4 * limit] + " …"


def printable(text: str, keep: str = "") -> str:
    """``text`` with every character that is not printable as an escape like ``\\x1b``, but those in ``keep``."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text
    )


class _Shown(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxdict, self.maxstring, self.maxlong, self.maxother = 3, 8, 4, 120, 40, 80

    def repr_float(self, x: float, level: int) -> str:
        return {"inf": "Infinity", "-inf": "-Infinity", "nan": "NaN"}.get(repr(x), repr(x))  # as JSON files have it


_shown = _Shown()


def shown(value: object) -> str:
    """A value of a file as quoted in a message: the beginning of its ``repr``, made without the rest of it."""
    try:
        return _shown.repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return "a number of thousands of digits"


def arg(name: str, value: Any = _MISSING) -> str:
    """An argument in the message or hint of an error.

    Args:
        name: The argument, as Python spells it.
        value: The caller's value, if the message quotes it.
    """
    if value is _MISSING:
        return f"{_BEGIN}{name}{_END}"
    try:
        python, typed = repr(value), _typed(value)
    except ValueError:  # an integer of more digits than Python prints
        python = typed = "a number of thousands of digits"
    return f"{_BEGIN}{name}{_VALUE}{_short(python)}{_OTHER}{_short(typed)}{_END}"


def as_python(text: str) -> str:
    """``text`` with arguments as in a call: ``keep``, ``keep=64``."""
    return _MARKED.sub(lambda m: m[1] if m[2] is None else f"{m[1]}={m[2]}", text)


def as_flags(text: str) -> str:
    """``text`` with arguments as on the command line: ``--keep``, ``--keep 64``."""

    def flag(match: re.Match[str]) -> str:
        name = FLAGS.get(match[1], "--" + match[1].replace("_", "-"))
        return name if match[2] is None or not match[3] else f"{name} {match[3]}"

    return _MARKED.sub(flag, text)


def _typed(value: Any) -> str:
    """A value as typed on the command line."""
    if value is None or value is True:
        return ""
    if isinstance(value, tuple):
        return ":".join(map(str, value))
    if isinstance(value, dict):
        return " ".join(f"{key}={item}" for key, item in value.items())
    return str(value)


def _short(text: str) -> str:
    text = "".join(c for c in text if c not in (_BEGIN, _VALUE, _OTHER, _END))
    return text if len(text) <= _LENGTH else text[: _LENGTH - 1] + "…"


class TrtpruneError(Exception):
    """Base of all expected failures.

    Args:
        message: One line naming the file, tensor or flag at fault.
        hint: What the user can change, in one line.

    Both become one printable line here (:func:`one_line`), because they quote untrusted files.  Arguments
    in them (:func:`arg`) read as in Python; ``flag_message`` and ``flag_hint`` are the same with
    the command line's flags, ``marked_message`` and ``marked_hint`` for an error that quotes this one.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        self.marked_message = _cut(message, MESSAGE_LENGTH)
        self.marked_hint = None if hint is None else _cut(hint, MESSAGE_LENGTH)
        self.message = one_line(as_python(self.marked_message))
        self.hint = None if self.marked_hint is None else one_line(as_python(self.marked_hint))
        super().__init__(self.message)

    @property
    def flag_message(self) -> str:
        """The message for the command line."""
        return one_line(as_flags(self.marked_message))

    @property
    def flag_hint(self) -> str | None:
        """The hint for the command line."""
        return None if self.marked_hint is None else one_line(as_flags(self.marked_hint))

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message} ({self.hint})"


class CheckpointError(TrtpruneError):
    """The model cannot be found or fetched, or is not a checkpoint that trtprune can read."""


class BuildError(TrtpruneError):
    """The engine directory could not be written."""


class EngineDirError(TrtpruneError):
    """An engine directory is damaged, foreign, too new, or belongs to another backend."""


class BackendError(TrtpruneError):
    """A backend, provider or device is missing or refuses the work."""


class BudgetError(TrtpruneError):
    """A token budget, method or method option that this model or build cannot serve."""


class InputError(TrtpruneError):
    """An image, prompt or sampling parameter that cannot be used."""
