"""Reading the ``config.json`` of an engine directory, and checking its files against it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from trtprune.arguments import arg
from trtprune.engine_dir.checking import wrong_values
from trtprune.engine_dir.digests import FULL_CHECK_BYTES, digest_file, digest_head, digest_weights
from trtprune.engine_dir.graphs import read_graph, weight_locations
from trtprune.engine_dir.json_dataclasses import DecodeError, decode
from trtprune.engine_dir.paths import CONFIG_NAME
from trtprune.engine_dir.schema import SCHEMA_VERSION, WEIGHTS, EngineDir
from trtprune.errors import EngineDirError
from trtprune.files.reading import read_bounded

__all__ = ["MAX_CONFIG_BYTES", "VERIFY", "check_files", "read_config"]

VERIFY = ("auto", "none", "fast", "full")
"""How much of a directory is checked before use: by its size, nothing, sizes, or every byte against its digest."""
MAX_CONFIG_BYTES = 16_000_000
MAX_NESTING = 200
"""The largest number of lists and objects inside one another."""


def read_config(root: Path) -> EngineDir:
    """The ``config.json`` of an engine directory, with all checks that need no other file.

    Raises:
        EngineDirError: naming the field at fault.
    """
    path = root / CONFIG_NAME
    try:
        data = _parse(_read_config(path))
    except FileNotFoundError:
        hint = "give the directory that trtprune build wrote; a build that was cut off leaves none"
        raise EngineDirError(f"{root}: not an engine directory, {CONFIG_NAME} is missing", hint=hint) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise EngineDirError(f"{path}: cannot be read: {reason}", hint="build the directory again") from None
    schema = data.get("schema_version") if isinstance(data, dict) else None
    if isinstance(schema, int) and schema > SCHEMA_VERSION:
        hint = "upgrade trtprune, or build the directory again with this version"
        raise EngineDirError(
            f"{path}: schema_version {schema} is newer than this trtprune reads ({SCHEMA_VERSION})", hint=hint
        )
    if isinstance(schema, int) and 0 < schema < SCHEMA_VERSION and not isinstance(schema, bool):
        raise EngineDirError(
            f"{path}: written by an older trtprune (schema_version {schema}, this one reads {SCHEMA_VERSION})",
            hint=f"build it again, with {arg('force')} if it is to lie in the same place",
        )
    if schema != SCHEMA_VERSION or isinstance(schema, bool):
        raise EngineDirError(f"{path}: schema_version must be {SCHEMA_VERSION}", hint="build the directory again")
    if "root" in data:
        raise EngineDirError(f"{path}: config.root is not a known field", hint="build the directory again")
    try:
        engine_dir = dataclasses.replace(decode(EngineDir, data), root=root)
    except DecodeError as error:
        raise EngineDirError(f"{path}: {error}", hint="build the directory again") from None
    for wrong in wrong_values(engine_dir):
        raise EngineDirError(f"{path}: {wrong}", hint="build the directory again")
    return engine_dir


def _read_config(path: Path) -> str:
    data = read_bounded(path, MAX_CONFIG_BYTES)
    if data is None:
        raise FileNotFoundError(path)
    return data.decode("utf-8")


def _parse(text: str) -> Any:
    """The JSON value of a text; raises ValueError, with words that do not depend on Python's version or its stack."""
    try:
        data = json.loads(text)
        _check_nesting(data)
        # A lone surrogate passes the parser and would fail in the first message that prints it.
        json.dumps(data, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("a text with half of a character, a lone surrogate") from None
    except json.JSONDecodeError:
        raise
    except ValueError:  # the parser's own limit of digits
        raise ValueError("a number of thousands of digits") from None
    return data


def _check_nesting(data: Any) -> None:
    level = [data]
    for _ in range(MAX_NESTING + 1):
        inner = [
            value.values() if isinstance(value, dict) else value for value in level if isinstance(value, dict | list)
        ]
        level = [item for items in inner for item in items]
        if not inner:
            return
    raise RecursionError


def _named_files(engine_dir: EngineDir) -> Iterable[str]:
    for component in engine_dir.components:
        yield component.onnx
        if component.engine is not None:
            yield component.engine


def check_files(engine_dir: EngineDir, verify: str) -> None:
    """Compares the files with the digests in ``config.json``.

    Args:
        engine_dir: The read ``config.json``.
        verify: As in :func:`trtprune.engine_dir.open_engine_dir`.

    Raises:
        EngineDirError: naming the first file that is missing, unlisted or different.
    """
    if verify not in VERIFY:
        raise EngineDirError(f"{arg('verify', verify)}: unknown", hint=f"one of {', '.join(VERIFY)}")
    paths = {name: engine_dir.path(name) for name in engine_dir.files}
    for name in _named_files(engine_dir):
        engine_dir.path(name)
        if name not in paths:
            raise EngineDirError(
                f"{engine_dir.root / CONFIG_NAME}: {name} is used but not listed in files", hint="build it again"
            )
    for path in paths.values():
        if not path.is_file():
            raise EngineDirError(f"{path}: missing", hint="copy the whole directory, or build it again")
    if verify == "none":
        return
    large = {name for name in paths if name.startswith((f"{WEIGHTS}/", "engines/"))}
    if verify == "auto":
        verify = "full" if sum(paths[name].stat().st_size for name in large) <= FULL_CHECK_BYTES else "fast"
    for name, path in paths.items():
        recorded = engine_dir.files[name]
        # A large file has its cheap digest first; the fast check stops there.
        for digest in recorded.split():
            if name in large and verify == "fast" and digest.startswith("sha256:") and len(recorded.split()) > 1:
                continue
            kind = {"sha256-header-size": digest_weights, "sha256-head-size": digest_head}
            try:
                found = kind.get(digest.partition(":")[0], digest_file)(path)
            except OSError as error:
                raise EngineDirError(
                    f"{path}: cannot be read: {error.strerror or error}", hint="check the file's permissions"
                ) from None
            if found != digest:
                raise EngineDirError(
                    f"{path}: its content is not what was built (digest differs)",
                    hint=f"copy the directory again, or build it again with {arg('force')}",
                )
    _check_locations(engine_dir)


def _check_locations(engine_dir: EngineDir) -> None:
    """Refuses weights of a graph in files that ``config.json`` does not list, because those are not checked."""
    for component in engine_dir.components:
        path, folder = engine_dir.path(component.onnx), PurePosixPath(component.onnx).parent
        for location in sorted(weight_locations(read_graph(path))):
            if (folder / location).as_posix() not in engine_dir.files:
                raise EngineDirError(
                    f"{path}: takes weights from {location!r:.200}, which {CONFIG_NAME} does not list",
                    hint="build it again; do not run it where you do not know its author",
                )
