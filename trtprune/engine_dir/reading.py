"""Reading an engine directory, with everything checked before anything is used."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from trtprune._decode import DecodeError, decode
from trtprune._files import read_bounded
from trtprune.engine_dir.digests import FULL_CHECK_BYTES, digest_file, digest_head, digest_weights
from trtprune.engine_dir.finding import find_engine_dir
from trtprune.engine_dir.paths import CONFIG_NAME
from trtprune.engine_dir.schema import SCHEMA_VERSION, WEIGHTS, EngineDir
from trtprune.errors import EngineDirError

__all__ = ["MAX_CONFIG_BYTES", "open_engine_dir", "read_config"]

MAX_CONFIG_BYTES = 16_000_000
MAX_SIZE = 1 << 40
TARGET = re.compile(r"sm[0-9]{2,3}[a-z]?")
DIGEST = re.compile(r"sha256(-header-size|-head-size)?:[0-9a-f]{64}")


def open_engine_dir(root: str | os.PathLike[str], *, verify: str = "auto", backend: str | None = None) -> EngineDir:
    """Reads and checks an engine directory.

    Args:
        root: The directory ``build`` wrote; or ``owner/name[@revision]`` of one on the Hugging Face hub.
        verify: ``"none"`` (only that files exist), ``"fast"`` (graphs and small files in full, weights by header
            and size, engines by their first MiB and size), ``"full"`` (every byte that was hashed at build),
            ``"auto"`` (full up to 1 GiB of weights and engines, else fast).
        backend: If given, the backend the directory must have been built for.

    Raises:
        EngineDirError: naming the file or field at fault.
    """
    root = find_engine_dir(root)
    if not root.is_dir():
        raise EngineDirError(
            f"{root}: no such engine directory", hint="make one: trtprune build --model demo --keep 64 -o OUT"
        )
    engine_dir = read_config(root)
    if backend is not None and engine_dir.backend != backend:
        raise EngineDirError(
            f"{root}: built for the {engine_dir.backend} backend, not for {backend}",
            hint=f"build it again with --backend {backend}",
        )
    _check_files(engine_dir, verify)
    return engine_dir


def read_config(root: Path) -> EngineDir:
    """What ``config.json`` of an engine directory says, checked as far as that needs no other file.

    Raises:
        EngineDirError: naming the field at fault.
    """
    path = root / CONFIG_NAME
    try:
        data = json.loads(_read_config(path))
        # A lone surrogate passes the parser and would blow up in the first message that prints it.
        json.dumps(data, ensure_ascii=False).encode("utf-8")
    except FileNotFoundError:
        hint = "give the directory that trtprune build wrote; a build that was cut off leaves none"
        raise EngineDirError(f"{root}: not an engine directory, {CONFIG_NAME} is missing", hint=hint) from None
    except (OSError, ValueError, RecursionError) as error:  # JSON and UTF-8 errors are ValueErrors
        raise EngineDirError(f"{path}: cannot be read: {error}", hint="build the directory again") from None
    schema = data.get("schema_version") if isinstance(data, dict) else None
    if isinstance(schema, int) and schema > SCHEMA_VERSION:
        hint = "upgrade trtprune, or build the directory again with this version"
        raise EngineDirError(
            f"{path}: schema_version {schema} is newer than this trtprune reads ({SCHEMA_VERSION})", hint=hint
        )
    if isinstance(schema, int) and 0 < schema < SCHEMA_VERSION and not isinstance(schema, bool):
        raise EngineDirError(
            f"{path}: written by an older trtprune (schema_version {schema}, this one reads {SCHEMA_VERSION})",
            hint="build it again, with --force if it is to lie in the same place",
        )
    if schema != SCHEMA_VERSION or isinstance(schema, bool):
        raise EngineDirError(f"{path}: schema_version must be {SCHEMA_VERSION}", hint="build the directory again")
    if "root" in data:
        raise EngineDirError(f"{path}: config.root is not a known field", hint="build the directory again")
    try:
        engine_dir = dataclasses.replace(decode(EngineDir, data), root=root)
    except DecodeError as error:
        raise EngineDirError(f"{path}: {error}", hint="build the directory again") from None
    _check_values(engine_dir, path)
    return engine_dir


def _read_config(path: Path) -> str:
    data = read_bounded(path, MAX_CONFIG_BYTES)
    if data is None:
        raise FileNotFoundError(path)
    return data.decode("utf-8")


def _check_values(made: EngineDir, path: Path) -> None:
    """Numbers that would be used as sizes before anything else could notice that they make no sense."""
    model, pruning, kv = made.model, made.pruning, made.kv
    positive = {
        **{f"model.{name}": getattr(model, name) for name in ("visual_tokens", "hidden_size", "vocab_size")},
        **{f"model.{name}": min(getattr(model, name)) for name in ("image_size", "patch_grid")},
        "model.max_positions": model.max_positions,
        **{f"kv.{name}": getattr(kv, name) for name in ("capacity", "bytes_per_token", "num_layers")},
        **{f"kv.{name}": getattr(kv, name) for name in ("num_kv_heads", "head_dim")},
    }
    wrong = [f"config.{name} must be between 1 and {MAX_SIZE}" for name, n in positive.items() if not 0 < n <= MAX_SIZE]
    generation = made.generation.wrong(max(model.vocab_size, 1))
    if generation is not None:
        wrong.append(f"config.generation.{generation}")
    segments = [name for name in made.chain if name.startswith("decoder.")]
    layers = kv.segment_layers
    if len(layers) != len(segments) or (segments and (min(layers) < 1 or sum(layers) != kv.num_layers)):
        wrong.append(f"config.kv.segment_layers must share {kv.num_layers} layers among {len(segments)} segments")
    for component in made.components:
        for spec in (*component.inputs, *component.outputs):
            if any(isinstance(size, int) and not 0 <= size <= MAX_SIZE for size in spec.shape):
                wrong.append(f"config.components: '{component.name}': '{spec.name}' has a shape out of range")
    low, high = pruning.keep_range
    if not 1 <= low <= high <= model.visual_tokens:
        wrong.append(f"config.pruning.keep_range must lie between 1 and {model.visual_tokens}")
    if not low <= pruning.keep <= high:
        wrong.append("config.pruning.keep must lie in keep_range")
    names = [component.name for component in made.components]
    wrong += [f"config.components: '{name}' occurs twice" for name in sorted({n for n in names if names.count(n) > 1})]
    wrong += [f"config.chain: there is no component '{name}'" for name in made.chain if name not in names]
    if made.engines is not None:
        for name in ("max_batch_size", "max_input_len", "max_images"):
            if not 0 < getattr(made.engines, name) <= MAX_SIZE:
                wrong.append(f"config.engines.{name} must be between 1 and {MAX_SIZE}")
        if not made.engines.targets or not all(TARGET.fullmatch(target) for target in made.engines.targets):
            wrong.append("config.engines.targets must name compute capabilities, like sm89")
        wrong += [f"config.components: '{c.name}' has no engine" for c in made.components if c.engine is None]
    for name, digests in made.files.items():
        # An empty entry would check nothing and look checked.
        if not digests.split() or not all(DIGEST.fullmatch(digest) for digest in digests.split()):
            wrong.append(f"config.files: no valid digest for {name!r:.200}")
    if wrong:
        raise EngineDirError(f"{path}: {wrong[0]}", hint="build the directory again")


def _named_files(engine_dir: EngineDir) -> Iterable[str]:
    for component in engine_dir.components:
        yield component.onnx
        if component.engine is not None:
            yield component.engine


def _check_files(engine_dir: EngineDir, verify: str) -> None:
    if verify not in ("none", "fast", "full", "auto"):
        raise EngineDirError(f"--verify {verify}: unknown", hint="one of auto, none, fast, full")
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
        # A large file carries its cheap digest first; the fast check stops there.
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
                    hint="copy the directory again, or build it again with --force",
                )
