"""Reading sections of a checkpoint's ``config.json``: typed, with transformers' defaults, errors naming the key.

The one place where a value of a config becomes a number, a flag or a name: for any JSON value each method returns the
promised type or raises :class:`CheckpointError`, and no number is infinite, NaN or too large for the graphs.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from trtprune.errors import CheckpointError, shown

__all__ = ["MAX_LAYERS", "MAX_SIDE", "Section"]

MAX_LAYERS = 1000
"""The largest number of layers: a damaged or hostile config must not list the weights of a billion layers."""
MAX_SIDE = 16384
"""The largest side of an image, in pixels."""
LARGEST = 3.4028234e38
"""The largest float32; every number of a config becomes one."""

_MISSING: Any = object()


class Section:
    """One dict of ``config.json``, e.g. ``text_config``.

    Args:
        values: The dict.
        path: Its name in messages, e.g. ``"text_config"``.
    """

    def __init__(self, values: Mapping[str, Any], path: str) -> None:
        self.values = values
        self.path = path

    def key(self, name: str) -> str:
        """The name of an entry in messages."""
        return f"config.json: {self.path}.{name}" if self.path else f"config.json: {name}"

    def section(self, name: str) -> Section:
        """The nested dict ``name``; empty when absent."""
        value = self.values.get(name)
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            raise self._wrong(name, value, "an object")
        return Section(value, f"{self.path}.{name}" if self.path else name)

    def integer(self, name: str, default: int = _MISSING, *, low: int = 1, high: int = 2**31 - 1) -> int:
        """An integer from ``low`` to ``high``; JSON null counts as absent."""
        value = self._get(name, default)
        if not _is_integer(value) or value < low:
            raise self._wrong(name, value, f"an integer of at least {low}")
        if value > high:
            raise self._wrong(name, value, f"at most {high}")
        return int(value)

    def optional_integer(self, name: str, default: int | None = None) -> int | None:
        """An integer ≥ 1 or None; here JSON null means None, and only an absent key the default."""
        value = self.values.get(name, default)
        if value is None:
            return None
        return Section({name: value}, self.path).integer(name)

    def number(self, name: str, default: float = _MISSING) -> float:
        """A positive, finite number; JSON null counts as absent."""
        value = self._get(name, default)
        if not _is_positive(value):
            raise self._wrong(name, value, "a positive, finite number")
        return float(value)

    def numbers(self, name: str, count: int) -> list[float]:
        """A list of ``count`` positive, finite numbers."""
        value = self._get(name, _MISSING)
        if not isinstance(value, list) or len(value) != count:
            raise self._wrong(name, value, f"a list of {count} numbers")
        for index, number in enumerate(value):
            if not _is_positive(number):
                raise self._wrong(f"{name}[{index}]", number, "a positive, finite number")
        return [float(number) for number in value]

    def integers(self, name: str, count: int) -> list[int]:
        """A list of ``count`` integers from 1 to 2³¹ − 1."""
        value = self._get(name, _MISSING)
        if not isinstance(value, list) or len(value) != count:
            raise self._wrong(name, value, f"a list of {count} integers")
        return [Section({f"{name}[{i}]": entry}, self.path).integer(f"{name}[{i}]") for i, entry in enumerate(value)]

    def flag(self, name: str, default: bool) -> bool:
        """True or false; JSON null counts as absent."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def choice(self, name: str, choices: Collection[str], default: str = _MISSING) -> str:
        """One of ``choices``; the error lists them."""
        value = self._get(name, default)
        if not isinstance(value, str) or value not in choices:
            raise self._unsupported(name, value, ", ".join(sorted(choices)))
        return value

    def choices(self, name: str, choices: Collection[str], count: int) -> list[str]:
        """A list of ``count`` values, each one of ``choices``."""
        value = self._get(name, _MISSING)
        if not isinstance(value, list) or len(value) != count:
            raise self._wrong(name, value, f"a list of {count} entries")
        for index, entry in enumerate(value):
            if not isinstance(entry, str) or entry not in choices:
                raise self._unsupported(f"{name}[{index}]", entry, ", ".join(sorted(choices)))
        return list(value)

    def size(self, name: str, default: int) -> tuple[int, int]:
        """``n`` or ``[height, width]``, each from 1 to :data:`MAX_SIDE`."""
        value = self._get(name, default)
        sides = value if isinstance(value, (list, tuple)) and len(value) == 2 else (value, value)
        if not all(_is_integer(side) and 1 <= side <= MAX_SIDE for side in sides):
            raise self._wrong(name, value, f"an integer from 1 to {MAX_SIDE}, or [height, width]")
        height, width = map(int, sides)
        return height, width

    def fixed(self, name: str, expected: Any) -> None:
        """Refuse a checkpoint that sets ``name`` to anything but ``expected`` (absent is fine)."""
        value = self.values.get(name)
        if value is not None and value != expected:
            raise self._unsupported(name, value, repr(expected))

    def _get(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        if value is None:
            if default is _MISSING:
                raise CheckpointError(f"{self.key(name)} is missing", hint="is config.json that of these weights?")
            return default
        return value

    def _wrong(self, name: str, value: Any, expected: str) -> CheckpointError:
        return CheckpointError(
            f"{self.key(name)} is {shown(value)}, expected {expected}", hint="download config.json again, or correct it"
        )

    def _unsupported(self, name: str, value: Any, supported: str) -> CheckpointError:
        return CheckpointError(
            f"{self.key(name)} is {shown(value)}, which trtprune does not support", hint=f"supported: {supported}"
        )


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_positive(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    # Compared before it is converted: float() of a huge integer is an error of its own.
    return 0 < value <= LARGEST and not (isinstance(value, float) and math.isnan(value))
