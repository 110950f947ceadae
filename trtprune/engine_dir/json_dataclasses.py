"""JSON → frozen dataclasses, strictly: an unknown type, a missing or an extra field is an error naming the field.

``config.json`` is untrusted input, so nothing is coerced and nothing is filled in silently.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Any, Literal, TypeVar

__all__ = ["DecodeError", "decode"]

T = TypeVar("T")
LARGEST = 1 << 63
"""The largest integer: sizes in NumPy and ONNX have 64 bits."""


class DecodeError(ValueError):
    """A JSON value without the form of the dataclass; the message names the field."""


def decode(cls: type[T], value: Any, where: str = "config") -> T:
    """Builds ``cls`` (a dataclass) from parsed JSON.

    Raises:
        DecodeError: naming the first field that is missing, unknown or of the wrong type.
    """
    return typing.cast(T, _decode(cls, value, where))


def _decode(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _decode_union(typing.get_args(hint), value, where)
    if origin is Literal:
        if not isinstance(value, str) or value not in typing.get_args(hint):
            raise DecodeError(f"{where} must be one of {', '.join(typing.get_args(hint))}")
        return value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _decode_dataclass(hint, value, where)
    if origin is tuple:
        return _decode_tuple(typing.get_args(hint), value, where)
    if origin is dict:
        if not isinstance(value, dict):
            raise DecodeError(f"{where} must be an object")
        of = typing.get_args(hint)[1]
        return {str(key): _decode(of, item, f"{where}.{key}") for key, item in value.items()}
    if hint is type(None):
        if value is not None:
            raise DecodeError(f"{where} must be null")
        return None
    # bool is an int in Python, but a JSON true is not a number.
    if hint is int and isinstance(value, bool):
        raise DecodeError(f"{where} must be an integer, not a boolean")
    if isinstance(value, int) and not -LARGEST <= value < LARGEST:
        raise DecodeError(f"{where} is a number out of range")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise DecodeError(f"{where} must be a finite number")
    if not isinstance(value, hint):
        raise DecodeError(f"{where} must be of type {hint.__name__}, not {type(value).__name__}")
    return value


def _decode_union(hints: tuple[Any, ...], value: Any, where: str) -> Any:
    failure: DecodeError | None = None
    for hint in hints:
        try:
            return _decode(hint, value, where)
        except DecodeError as error:
            failure = failure or error
    assert failure is not None
    raise failure


def _decode_tuple(of: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise DecodeError(f"{where} must be a list")
    if len(of) == 2 and of[1] is Ellipsis:
        return tuple(_decode(of[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if len(of) != len(value):
        raise DecodeError(f"{where} must have {len(of)} entries, not {len(value)}")
    return tuple(_decode(h, item, f"{where}[{i}]") for i, (h, item) in enumerate(zip(of, value, strict=True)))


def _decode_dataclass(cls: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise DecodeError(f"{where} must be an object")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in value:
        if key not in fields:
            raise DecodeError(f"{where}.{key} is not a known field")
    filled = {}
    for name, field in fields.items():
        if name in value:
            filled[name] = _decode(hints[name], value[name], f"{where}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise DecodeError(f"{where}.{name} is missing")
    return cls(**filled)
