"""Arguments of the Python API: how errors name them, and checks of their types.

An argument has two spellings: ``max_new_tokens=2.5`` for whoever calls Python, ``--max-new-tokens 2.5`` for whoever
types a command.  A message that says :func:`arg` leaves the choice open; the error makes both of it.
"""

from __future__ import annotations

import contextlib
import math
import numbers
import re
from typing import Any

__all__ = ["arg", "as_flags", "as_python", "real", "text_of", "whole"]

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
"""Arguments whose flag is not their name with dashes."""


def arg(name: str, value: Any = _MISSING) -> str:
    """An argument in the message or hint of an error.

    Args:
        name: As Python spells it.
        value: What was given, if the message says it.
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
    """A value as one types it."""
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


# -- types


def whole(name: str, value: Any, low: int | None = None, what: str = "") -> int:
    """A whole number, of NumPy too, as an int.

    Args:
        name: Of the argument.
        value: What was given.
        low: Smallest allowed.
        what: Said after the limit, e.g. ``" (off)"``.

    Raises:
        InputError: naming the argument.
    """
    from trtprune.errors import InputError

    # numbers holds NumPy's; a bool is a number in Python, and no count.
    fits = isinstance(value, numbers.Integral) or (isinstance(value, numbers.Real) and float(value).is_integer())
    if isinstance(value, bool) or not fits:
        raise InputError(f"{arg(name, value)}: must be a whole number")
    number = int(value)
    if low is not None and number < low:
        raise InputError(f"{arg(name, value)}: must be at least {low}{what}")
    return number


def real(name: str, value: Any) -> float:
    """A finite number, of NumPy too, as a float; raises InputError naming the argument."""
    from trtprune.errors import InputError

    number = math.nan
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # a whole number beyond every float
            number = float(value)
    if not math.isfinite(number):
        raise InputError(f"{arg(name, value)}: must be a number")
    return number


def text_of(name: str, value: Any) -> str:
    """A text; raises InputError naming the argument."""
    from trtprune.errors import InputError

    if not isinstance(value, str):
        raise InputError(f"{arg(name, value)}: must be a text, not {type(value).__name__}")
    return value
