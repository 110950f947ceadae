"""Checks of the types of the Python API's arguments; their errors name the argument (:func:`arg`)."""

from __future__ import annotations

import contextlib
import math
import numbers
from typing import Any

from trtprune.errors import InputError, arg, as_flags, as_python

__all__ = ["arg", "as_flags", "as_python", "real", "text_of", "whole"]


def whole(name: str, value: Any, low: int | None = None, what: str = "") -> int:
    """A whole number, of NumPy too, as an int.

    Args:
        name: The argument, as Python spells it.
        value: The caller's value.
        low: The smallest valid value.
        what: Text behind the limit in the message, e.g. ``" (off)"``.

    Raises:
        InputError: naming the argument.
    """
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
    number = math.nan
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # a whole number above the range of floats
            number = float(value)
    if not math.isfinite(number):
        raise InputError(f"{arg(name, value)}: must be a number")
    return number


def text_of(name: str, value: Any) -> str:
    """A text; raises InputError naming the argument."""
    if not isinstance(value, str):
        raise InputError(f"{arg(name, value)}: must be a text, not {type(value).__name__}")
    return value
