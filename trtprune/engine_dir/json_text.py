"""JSON for people: short lists and objects on one line, longer ones with a line for each entry."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["json_text"]

WIDTH, INDENT = 120, 2


def json_text(value: Any, depth: int = 0, used: int = 0) -> str:
    """The text of a JSON value.

    Args:
        value: Plain data.
        depth: Levels that it is indented by.
        used: Characters in front of it on its line.
    """
    line = json.dumps(value, ensure_ascii=False)
    # The objects of the file itself always have a line for each entry.
    if not isinstance(value, dict | list | tuple) or not value or (depth and len(line) + used < WIDTH):
        return line
    indent, end = " " * INDENT * (depth + 1), " " * INDENT * depth
    if isinstance(value, dict):
        keys = [json.dumps(key, ensure_ascii=False) + ": " for key in value]
        parts = [
            key + json_text(item, depth + 1, len(indent) + len(key))
            for key, item in zip(keys, value.values(), strict=True)
        ]
        opening, closing = "{", "}"
    else:
        parts = [json_text(item, depth + 1, len(indent)) for item in value]
        opening, closing = "[", "]"
    return f"{opening}\n" + ",\n".join(indent + part for part in parts) + f"\n{end}{closing}"
