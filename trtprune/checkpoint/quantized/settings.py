"""Typed reading of ``quantization_config``; errors name the key."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from trtprune.errors import CheckpointError, shown

__all__ = ["Settings"]

LARGEST_GROUP = 1 << 24


@dataclass(frozen=True)
class Settings:
    """One object of ``quantization_config``.

    Attributes:
        values: The object.
        path: Its name in messages, ``quantization_config``.
        method: The method's name in messages, ``AWQ``.
        advice: What to do about a kind that is not supported.
    """

    values: Mapping[str, Any]
    path: str
    method: str
    advice: str

    def unsupported(self, name: str, value: object, known: str) -> CheckpointError:
        """The error about a kind of this method that is not supported."""
        return CheckpointError(
            f"config.json: {self.path}.{name} is {shown(value)}, which trtprune does not read ({self.method})",
            hint=f"supported: {known}; else {self.advice}",
        )

    def section(self, name: str) -> Settings:
        """A nested object; empty when absent."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, Mapping):
            raise self._wrong(name, value, "an object")
        return Settings(value or {}, f"{self.path}.{name}", self.method, self.advice)

    def bits(self, name: str, known: tuple[int, ...]) -> int:
        """The bits of an integer, one of ``known``."""
        value = self.values.get(name)
        if type(value) is not int:
            raise self._wrong(name, value, "a number of bits")
        if value not in known:
            raise self.unsupported(name, value, " and ".join(map(str, known)))
        return value

    def group(self, name: str, default: int | None = None) -> int:
        """The size of a group, -1 for whole rows."""
        value = self.values.get(name)
        if value is None:
            value = default
        if type(value) is not int or not (value == -1 or 1 <= value <= LARGEST_GROUP):
            raise self._wrong(name, value, f"-1 or a number from 1 to {LARGEST_GROUP}")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """True or false; JSON null counts as absent."""
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def choice(self, name: str, known: Collection[str], default: str) -> str:
        """One of ``known``, in lower case."""
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, str) or value.lower() not in known:
            raise self.unsupported(name, value, ", ".join(known))
        return value.lower()

    def absent(self, name: str, known: str) -> None:
        """Raises CheckpointError if there is a value other than null, false, or something empty."""
        value = self.values.get(name)
        if value:
            raise self.unsupported(name, value, known)

    def _wrong(self, name: str, value: object, expected: str) -> CheckpointError:
        return CheckpointError(
            f"config.json: {self.path}.{name} is {shown(value)}, expected {expected}",
            hint="download config.json again, or correct it",
        )
