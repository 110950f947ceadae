"""Engine directories for both readers, Python's and that of ``cpp/``: what each says of one, in the same form."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.kit import cpp_build
from trtprune.engine_dir import EngineDir, open_engine_dir
from trtprune.engine_dir.reading import read_config
from trtprune.errors import EngineDirError, printable

CODE = 3
"""``trtprune::ErrorCode::engine_dir``."""


def opened(root: Path | str, verify: str = "auto") -> dict[str, Any]:
    """The request that opens a directory."""
    return {"do": "open", "root": str(root), "verify": verify}


def read(root: Path | str) -> dict[str, Any]:
    """The request that reads a directory's config alone."""
    return {"do": "read", "root": str(root)}


def python_answer(request: dict[str, Any]) -> dict[str, Any]:
    """Python's answer in the form of ``cpp/tests/drivers/engine_dir.cpp``."""
    try:
        if request["do"] == "open":
            made = open_engine_dir(request["root"], verify=request["verify"])
        else:
            made = read_config(Path(request["root"]))
    except EngineDirError as error:
        return {"error": [CODE, error.message, error.hint or ""]}
    return {
        "ok": plain(json.loads(made.to_json())),
        "root": str(made.root),
        "info": _info(made),
        "parts": _parts(made),
    }


def plain(value: Any) -> Any:
    """A value as C++ holds it in settings of any form: numbers beyond 64 bits as floats; those printed as null here."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        try:
            return float(value)
        except OverflowError:
            return None
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _info(made: EngineDir) -> dict[str, Any]:
    return {
        "model_id": made.model.id,
        "family": made.model.family,
        "backend": made.backend,
        "provider": "cpu",
        "dtype": made.dtype,
        "weight_dtype": made.weight_dtype or "",
        "method": made.pruning.method,
        "keep": made.pruning.keep,
        "keep_range": [*made.pruning.keep_range],
        "visual_tokens": [*made.vision.tokens],
        "capacity": made.kv.capacity,
        "max_batch_size": made.engines.max_batch_size if made.engines else 0,
    }


def _parts(made: EngineDir) -> dict[str, Any]:
    found = {part.name: made.find(part.role, part.segment) for part in (c.part for c in made.components)}
    return {
        "found": {name: component and component.name for name, component in found.items()},
        "segments": [component.name for component in made.segments],
    }


def check(requests: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Holds C++ to Python for each request, the texts of errors included; Python's answers.

    Raises:
        AssertionError: for the first that differs.
    """
    requests = list(requests)
    expected = [python_answer(request) for request in requests]
    for request, python, cpp in zip(requests, expected, cpp_build.driver("engine_dir")(requests), strict=True):
        assert _settled(cpp) == _settled(python), f"{request}"
    return expected


def _settled(answer: dict[str, Any]) -> dict[str, Any]:
    # Python 3.13 has a word of its own for a comma too many, at another place.
    if "error" in answer and "Illegal trailing comma" in answer["error"][1]:
        return {"error": "a comma too many"}
    # Characters that Unicode has not assigned are escapes in Python's messages only.
    return {"error": [printable(str(text)) for text in answer["error"]]} if "error" in answer else answer
