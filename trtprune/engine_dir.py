"""The engine directory: what ``build`` writes and ``load`` trusts only after checking.

Layout (all paths inside ``config.json`` are relative and stay inside the directory)::

    OUT/config.json                 the dataclasses below
    OUT/onnx/NAME.onnx              external data locations are relative to OUT ("weights/FILE")
    OUT/weights/*.safetensors       hard links to, or copies of, the checkpoint's files; quantised weights
    OUT/engines/NAME.engine         TensorRT backends only
    OUT/tokenizer.json …            copied from the checkpoint

The runtime needs nothing but this module and the files: an engine directory describes itself.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from trtprune._decode import DecodeError, decode
from trtprune._files import read_bounded
from trtprune.errors import EngineDirError

__all__ = [
    "CONFIG_NAME",
    "SCHEMA_VERSION",
    "ComponentInfo",
    "EngineDir",
    "EngineInfo",
    "KvInfo",
    "ModelInfo",
    "PruningInfo",
    "TensorSpec",
    "digest_file",
    "digest_head",
    "digest_weights",
    "open_engine_dir",
]

SCHEMA_VERSION = 1
CONFIG_NAME = "config.json"
# Hashing runs at about 1–2 GB/s: below this, checking every byte at load is not noticed.
FULL_CHECK_BYTES = 1 << 30
MAX_CONFIG_BYTES = 16_000_000
MAX_SIZE = 1 << 40
TARGET = re.compile(r"sm[0-9]{2,3}[a-z]?")
DIGEST = re.compile(r"sha256(-header-size|-head-size)?:[0-9a-f]{64}")


@dataclass(frozen=True)
class TensorSpec:
    """One graph input or output. ``shape`` holds ints and symbolic names; ``dtype`` is a NumPy-style name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class ComponentInfo:
    """One graph of the chain: ``vision``, ``embed``, ``pruner`` or ``decoder``."""

    name: str
    onnx: str
    engine: str | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[dict[str, tuple[tuple[int, ...], ...]], ...]
    dtype: str


@dataclass(frozen=True)
class ModelInfo:
    """What the runtime must know of the model; sizes in pixels or tokens.

    ``digest`` is the checkpoint's (see ``Checkpoint.digest``).  ``first_patch`` is the patch (row by row)
    that visual token 0 stands for; -1 where it is the CLS token.
    """

    id: str
    revision: str | None
    digest: str
    family: str
    image_size: tuple[int, int]
    patch_grid: tuple[int, int]
    visual_tokens: int
    has_cls: bool
    hidden_size: int
    vocab_size: int
    max_positions: int
    image_token: str
    image_token_id: int
    eos_token_ids: tuple[int, ...]
    keeps_cls_feature: bool = False
    first_patch: int = 0


@dataclass(frozen=True)
class PruningInfo:
    """The method compiled in. ``keep`` is the default budget per image, ``keep_range`` the inclusive limits."""

    method: str
    keep: int
    keep_range: tuple[int, int]
    options: dict[str, bool | int | float | str]
    positions: str
    needs: tuple[str, ...]
    text_span: str


@dataclass(frozen=True)
class KvInfo:
    """The KV cache. ``capacity`` is the largest number of tokens a request may hold (prompt + answer).

    ``segment_layers`` are the layers of each segment of a decoder that is cut; empty for one that is not.
    """

    capacity: int
    bytes_per_token: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: str
    segment_layers: tuple[int, ...] = ()


@dataclass(frozen=True)
class EngineInfo:
    """How TensorRT engines were built, and what may run them; None in a build without engines.

    ``version`` is the library's (``1.7.1.116``).  ``targets`` are the compute capabilities, ``("sm89", "sm120")``.
    ``max_input_len`` counts text tokens of a prompt, ``max_images`` images of a prompt; with ``max_batch_size`` rows
    and the budget's ``keep_range`` they gave the optimisation profiles.  ``plugins`` maps each plugin the engines
    need to its version.
    """

    version: str
    targets: tuple[str, ...]
    max_batch_size: int
    max_input_len: int
    max_images: int
    attention: str
    version_compatible: bool = False
    hardware_compatibility: str = "none"
    weight_streaming: bool = False
    plugins: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class EngineDir:
    """The parsed ``config.json``; ``root`` is where it was read from and is never written.

    ``files`` maps each file to ``sha256:HEX`` (all bytes); a weight file to ``sha256-header-size:HEX``
    (safetensors header and file size), an engine to ``sha256-head-size:HEX`` (its first MiB and its size), and, where
    it was small enough to hash at build, ``sha256:HEX`` behind it.
    ``weight_dtype`` is ``int8`` or ``int4`` where the decoder's matrices are stored quantised.
    """

    schema_version: int
    backend: str
    lowering: dict[str, str]
    dtype: str
    model: ModelInfo
    pruning: PruningInfo
    components: tuple[ComponentInfo, ...]
    chain: tuple[str, ...]
    kv: KvInfo
    built_with: dict[str, str]
    build_digest: str
    files: dict[str, str]
    weight_dtype: str | None = None
    engines: EngineInfo | None = None
    root: Path = field(default=Path("."), compare=False)

    def component(self, name: str) -> ComponentInfo:
        """The component called ``name``.

        Raises:
            EngineDirError: if the directory has none.
        """
        for component in self.components:
            if component.name == name:
                return component
        have = ", ".join(component.name for component in self.components)
        raise EngineDirError(f"{self.root}: no component '{name}'", hint=f"it has: {have}")

    def path(self, relative: str) -> Path:
        """The absolute path of a file named in the config, checked to lie inside the directory."""
        return _inside(self.root, relative)

    def to_json(self) -> str:
        """The text of ``config.json``."""
        data = dataclasses.asdict(self)
        del data["root"]
        return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def open_engine_dir(root: str | os.PathLike[str], *, verify: str = "auto", backend: str | None = None) -> EngineDir:
    """Reads and checks an engine directory.

    Args:
        root: The directory ``build`` wrote.
        verify: ``"none"`` (only that files exist), ``"fast"`` (graphs and small files in full, weights by header
            and size, engines by their first MiB and size), ``"full"`` (every byte that was hashed at build),
            ``"auto"`` (full up to 1 GiB of weights and engines, else fast).
        backend: If given, the backend the directory must have been built for.

    Raises:
        EngineDirError: naming the file or field at fault.
    """
    root = Path(root)
    path = root / CONFIG_NAME
    if not root.is_dir():
        raise EngineDirError(
            f"{root}: no such engine directory", hint="make one: trtprune build --model demo --keep 64 -o OUT"
        )
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
    if schema != SCHEMA_VERSION or isinstance(schema, bool):
        raise EngineDirError(f"{path}: schema_version must be {SCHEMA_VERSION}", hint="build the directory again")
    if "root" in data:
        raise EngineDirError(f"{path}: config.root is not a known field", hint="build the directory again")
    try:
        engine_dir = dataclasses.replace(decode(EngineDir, data), root=root)
    except DecodeError as error:
        raise EngineDirError(f"{path}: {error}", hint="build the directory again") from None
    _check_values(engine_dir, path)
    if backend is not None and engine_dir.backend != backend:
        raise EngineDirError(
            f"{root}: built for the {engine_dir.backend} backend, not for {backend}",
            hint=f"build it again with --backend {backend}",
        )
    _check_files(engine_dir, verify)
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


def digest_file(path: Path) -> str:
    """``sha256:HEX`` of all bytes of a file."""
    with path.open("rb") as stream:
        return "sha256:" + _sha256(stream)


def _sha256(stream: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def digest_weights(path: Path) -> str:
    """``sha256-header-size:HEX`` of a safetensors file: its header and its size, not its data."""
    with path.open("rb") as stream:
        prefix = stream.read(8)
        length = min(int.from_bytes(prefix, "little"), 100_000_000)
        header = stream.read(length)
    digest = hashlib.sha256(prefix + header + str(path.stat().st_size).encode())
    return "sha256-header-size:" + digest.hexdigest()


def digest_head(path: Path) -> str:
    """``sha256-head-size:HEX`` of a large file: its first MiB and its size."""
    with path.open("rb") as stream:
        head = stream.read(1 << 20)
    return "sha256-head-size:" + hashlib.sha256(head + str(path.stat().st_size).encode()).hexdigest()


def _inside(root: Path, relative: str) -> Path:
    pure = PurePosixPath(relative)
    bad = (
        not relative
        or pure.is_absolute()
        or ".." in pure.parts
        or "\\" in relative
        or "\0" in relative
        or re.match(r"^[A-Za-z]:", relative) is not None
    )
    path = root.joinpath(*pure.parts)
    try:
        # A symbolic link may lead outside even where the text of the path does not.
        bad = bad or not path.resolve().is_relative_to(root.resolve())
        path.is_file()
    except (OSError, ValueError, RuntimeError):  # too long, not encodable, a circle of links
        bad = True
    if bad:
        raise EngineDirError(
            f"{root / CONFIG_NAME}: path {relative!r:.200} leaves the engine directory or is no path",
            hint="build it again",
        )
    return path


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
    large = {name for name in paths if name.startswith(("weights/", "engines/"))}
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
