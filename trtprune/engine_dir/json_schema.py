"""The JSON Schema of ``config.json``, made from the dataclasses that read it.

``trtprune/engine_dir/config.schema.json`` is its text, for readers without Python; ``python -m
trtprune.engine_dir.json_schema`` prints it.  The schema has the types; ``checking`` checks that values fit each
other.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from typing import Any

from trtprune.engine_dir.json_dataclasses import LARGEST
from trtprune.engine_dir.schema import SCHEMA_VERSION, EngineDir

__all__ = ["json_schema"]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
NOT_WRITTEN = ("root",)
"""Fields of :class:`EngineDir` that are not in the file."""


def json_schema() -> dict[str, Any]:
    """The schema, as plain data."""
    definitions: dict[str, Any] = {}
    top = _object(EngineDir, definitions)
    top["properties"]["schema_version"] = {"const": SCHEMA_VERSION}
    return {"$schema": DIALECT, "title": "config.json of a trtprune engine directory", **top, "$defs": definitions}


def _object(cls: type, definitions: dict[str, Any]) -> dict[str, Any]:
    """A dataclass: no other fields, and those without a default required."""
    hints = typing.get_type_hints(cls)
    fields = [field for field in dataclasses.fields(cls) if not (cls is EngineDir and field.name in NOT_WRITTEN)]
    missing = dataclasses.MISSING
    return {
        "type": "object",
        "properties": {field.name: _type(hints[field.name], definitions) for field in fields},
        "required": [field.name for field in fields if field.default is missing and field.default_factory is missing],
        "additionalProperties": False,
    }


def _type(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of a type that :mod:`trtprune.engine_dir.json_dataclasses` decodes."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return {}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_type(one, definitions) for one in arguments]}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if hint.__name__ not in definitions:
            definitions[hint.__name__] = {}  # before the fields, in case a dataclass contains itself
            definitions[hint.__name__] = _object(hint, definitions)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return {"type": "array", "items": _type(arguments[0], definitions)}
    if origin is tuple:
        items = [_type(one, definitions) for one in arguments]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _type(arguments[1], definitions)}
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    return _scalar(hint)


def _scalar(hint: Any) -> dict[str, Any]:
    if hint is int:
        return {"type": "integer", "minimum": -LARGEST, "exclusiveMaximum": LARGEST}
    return {"type": {bool: "boolean", float: "number", str: "string", type(None): "null"}[hint]}


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=2))
