"""Reading sections of a checkpoint's ``config.json``: typed, with transformers' defaults, errors naming the key."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from trtprune.errors import CheckpointError

__all__ = ["MAX_LAYERS", "Section"]

MAX_LAYERS = 1000
"""A damaged or hostile config must not keep us listing the weights of a billion layers."""

_MISSING: Any = object()


class Section:
    """One dict of ``config.json``, e.g. ``text_config``.

    Args:
        values: The dict.
        path: How messages call it, e.g. ``"text_config"``.
    """

    def __init__(self, values: Mapping[str, Any], path: str) -> None:
        self.values = values
        self.path = path

    def key(self, name: str) -> str:
        return f"config.json: {self.path}.{name}" if self.path else f"config.json: {name}"

    def section(self, name: str) -> Section:
        """The nested dict ``name``; empty when absent."""
        value = self.values.get(name)
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            raise CheckpointError(f"{self.key(name)} is not an object")
        return Section(value, f"{self.path}.{name}" if self.path else name)

    def integer(self, name: str, default: int = _MISSING, *, low: int = 1, high: int = 2**31 - 1) -> int:
        """An integer from ``low`` to ``high``; JSON null counts as absent."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise CheckpointError(f"{self.key(name)} is {value!r}, expected an integer of at least {low}")
        if value > high:
            raise CheckpointError(f"{self.key(name)} is {value!r}, expected at most {high}")
        return value

    def optional_integer(self, name: str, default: int | None = None) -> int | None:
        """An integer ≥ 1 or None; here JSON null means None, and only an absent key the default."""
        value = self.values.get(name, default)
        if value is None:
            return None
        return Section({name: value}, self.path).integer(name)

    def number(self, name: str, default: float = _MISSING) -> float:
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise CheckpointError(f"{self.key(name)} is {value!r}, expected a positive number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise CheckpointError(f"{self.key(name)} is {value!r}, expected true or false")
        return value

    def choice(self, name: str, choices: Collection[str], default: str = _MISSING) -> str:
        """One of ``choices``; the error lists them."""
        value = self._get(name, default)
        if value not in choices:
            raise CheckpointError(
                f"{self.key(name)} is {value!r}, which trtprune does not support",
                hint=f"supported: {', '.join(sorted(choices))}",
            )
        return value

    def size(self, name: str, default: int) -> tuple[int, int]:
        """``n`` or ``[height, width]``."""
        value = self._get(name, default)
        if isinstance(value, (list, tuple)) and len(value) == 2:
            height, width = value
        else:
            height = width = value
        for side in (height, width):
            if isinstance(side, bool) or not isinstance(side, int) or side < 1:
                raise CheckpointError(f"{self.key(name)} is {value!r}, expected an integer or [height, width]")
        return height, width

    def fixed(self, name: str, expected: Any) -> None:
        """Refuse a checkpoint that sets ``name`` to anything but ``expected`` (absent is fine)."""
        value = self.values.get(name)
        if value is not None and value != expected:
            raise CheckpointError(
                f"{self.key(name)} is {value!r}, which trtprune does not support",
                hint=f"supported: {expected!r}",
            )

    def _get(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        if value is None:
            if default is _MISSING:
                raise CheckpointError(f"{self.key(name)} is missing")
            return default
        return value
