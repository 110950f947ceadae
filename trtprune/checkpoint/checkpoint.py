"""A transformers checkpoint on disk: its config, and the place of each tensor.  No weight is loaded, no torch is used.

    checkpoint = open_checkpoint("llava-1.5-7b-hf")       # a directory; resolve() takes aliases and hub ids, too
    checkpoint.tensors["lm_head.weight"].offset           # bytes from the start of its file
    checkpoint.read("multi_modal_projector.linear_1.bias")   # a memory map, for small tensors

Only safetensors are read.  Pickled weights (``*.bin``, ``*.pt``) can run code when opened, so they never are.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtprune.checkpoint.files import plain_name, read_text, weight_path
from trtprune.checkpoint.of_build import origin_of_build
from trtprune.checkpoint.quantized import Scheme, StoredMatrix, collect, read_scheme
from trtprune.checkpoint.safetensors import Header, TensorInfo, parse_json
from trtprune.checkpoint.shards import file_names, no_config, read_weights
from trtprune.errors import CheckpointError
from trtprune.files.reading import SMALL_JSON_BYTES, open_regular

if TYPE_CHECKING:
    import numpy as np

__all__ = ["SIDE_FILES", "Check", "Checkpoint", "TensorInfo", "open_checkpoint", "read_config"]

MAX_TEXT_BYTES = 64_000_000
"""Size limit of tokenizer.json in bytes; with a vocabulary of 256,000 it has about 35 MB. Other texts are small."""
MAX_CONTAINERS = 2_000_000
"""Limit of lists and objects in a JSON file; a tokenizer's merges are at most half a million lists."""
LARGE_TEXT = "tokenizer.json"
SIDE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
    "chat_template.jinja",
)
# The digest reads so many bytes from the middle of each tensor: two fine-tunes of one model have the same config,
# header and file sizes, and with equal digests one would get the other's build.
SAMPLE_BYTES = 512
PIECE = 1 << 20
"""Numbers read at once in a comparison of whole tensors."""


@dataclass(frozen=True)
class Checkpoint:
    """A checked checkpoint.

    Attributes:
        path: The directory.
        config: The parsed ``config.json``.
        tensors: All tensors of all files, by name; a quantised matrix is one tensor.
        files: Base names of the weight files, sorted.
        id: Hub id, ``"demo"``, or the directory's name; never an absolute path.
        revision: The commit, if it came from the hub.
        weights: Folder of the weight files, if it is not ``path``.
        known_digest: The result of :meth:`digest` for a checkpoint that is read from a build of it.
        remote: Whether this is a repository on the hub whose weights are not fetched yet.
        stored: The quantised ones of ``tensors``.
        scheme: How they are stored; None in a checkpoint without any.
        zero_biases: Names of biases of quantised modules that are zero.
    """

    path: Path
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    files: tuple[str, ...]
    id: str
    revision: str | None = None
    weights: Path | None = None
    known_digest: str | None = None
    remote: bool = False
    stored: dict[str, StoredMatrix] = field(default_factory=dict)
    scheme: Scheme | None = None
    zero_biases: frozenset[str] = frozenset()
    _headers: dict[str, Header] = field(default_factory=dict, repr=False, compare=False)
    _same: dict[tuple[str, str], bool] = field(default_factory=dict, repr=False, compare=False)

    def real_path(self, file: str) -> Path:
        """The regular file behind ``file``, a base name (the hub's cache holds symbolic links).

        Raises:
            CheckpointError: if ``file`` is not a plain name or does not exist.
        """
        return weight_path(self.weight_file(file))

    def weight_file(self, file: str) -> Path:
        """The path of the weight file of this base name."""
        return (self.weights or self.path) / plain_name(file, self.path)

    def read(self, name: str) -> np.ndarray:
        """One tensor as a read-only NumPy memory map; a quantised one as float32, dequantised.

        Raises:
            CheckpointError: if there is no such tensor or its file has changed.
        """
        import numpy as np

        if name in self.stored:
            return np.concatenate([*self.stored[name].dequantized(self.map)])
        return self.map(self._info(name))

    def map(self, info: TensorInfo) -> np.ndarray:
        """A tensor of a file, as :meth:`read` returns it; for parts of a quantised matrix."""
        import numpy as np

        dtype = _numpy_dtype(info.dtype)
        if info.nbytes == 0:
            return np.zeros(info.shape, dtype)  # mmap refuses empty ranges
        try:
            data = np.memmap(self.real_path(info.file), np.uint8, "r", info.offset, (info.nbytes,))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{self.path / info.file}: tensor '{info.name}' cannot be mapped: {error}",
                hint="download the file again",
            ) from None
        return data.view(dtype).reshape(info.shape)

    def same_values(self, first: str, second: str) -> bool:
        """Whether two tensors have the same numbers, whatever their dtypes; NaN equals nothing.

        Both are read piece by piece up to the first difference, once: the answer is cached.

        Raises:
            CheckpointError: if there is no such tensor or its file has changed.
        """
        key = (first, second)
        if key not in self._same:
            self._same[key] = self._compare(*(self._info(name) for name in key))
        return self._same[key]

    def _compare(self, a: TensorInfo, b: TensorInfo) -> bool:
        if a.shape != b.shape:
            return False
        return all(equal_values(x, y) for x, y in zip(self._pieces(a), self._pieces(b), strict=True))

    def _pieces(self, info: TensorInfo) -> Iterator[np.ndarray]:
        """The tensor's numbers in file order, in arrays of :data:`PIECE` (the last one is shorter)."""
        import numpy as np

        dtype, path = _numpy_dtype(info.dtype), self.real_path(info.file)
        left = info.nbytes
        try:
            with open(path, "rb", opener=open_regular) as stream:
                stream.seek(info.offset)
                while left:
                    data = stream.read(min(left, PIECE * dtype.itemsize))
                    if not data or len(data) % dtype.itemsize:
                        raise OSError(0, "shorter than its header says")
                    left -= len(data)
                    yield np.frombuffer(data, dtype)
        except OSError as error:
            raise CheckpointError(
                f"{path}: tensor '{info.name}' cannot be read: {error.strerror or error}",
                hint="download the file again",
            ) from None

    def _info(self, name: str) -> TensorInfo:
        info = self.tensors.get(name)
        if info is None:
            raise CheckpointError(f"{self.path}: no tensor '{name}'", hint=_closest(name, self.tensors))
        return info

    def text_bytes(self, name: str) -> bytes | None:
        """The bytes of a text file of the checkpoint, ``None`` if there is no such file.

        Raises:
            CheckpointError: if it is too large, cannot be read, or is a link that leaves the checkpoint.
        """
        return read_text(self.path, name, MAX_TEXT_BYTES if name == LARGE_TEXT else SMALL_JSON_BYTES)

    def text_file(self, name: str) -> str | None:
        """The text of a file of the checkpoint, ``None`` if there is no such file."""
        data = self.text_bytes(name)
        if data is None:
            return None
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(
                f"{self.path / name}: not UTF-8 text: {error.reason} at byte {error.start}",
                hint="download the file again",
            ) from None

    def json_file(self, name: str) -> dict[str, Any] | None:
        """The parsed JSON object in a file of the checkpoint, ``None`` if there is no such file."""
        data = self.text_bytes(name)
        if data is None:
            return None
        if data.count(b"{") + data.count(b"[") > MAX_CONTAINERS:
            raise CheckpointError(
                f"{self.path / name}: damaged JSON file: more than {MAX_CONTAINERS} lists and objects",
                hint="download the file again",
            )
        return parse_json(data, self.path / name, "JSON file")

    def digest(self) -> str:
        """``sha256:HEX`` of the config, tokenizer and preprocessor files, tensor headers, file sizes, and a few
        bytes of each tensor.  Takes milliseconds for any size of model."""
        if self.known_digest is not None:
            return self.known_digest
        digest = hashlib.sha256()
        for name in ("config.json", *SIDE_FILES):
            data = self.text_bytes(name)
            if data is not None:
                digest.update(f"{name}:{hashlib.sha256(data).hexdigest()}\n".encode())
        for name in self.files:
            header = self._headers[name]
            digest.update(f"{name}:{header.size}:{header.sha256}\n".encode())
            try:
                with self.real_path(name).open("rb") as stream:
                    for info in sorted(header.tensors.values(), key=lambda info: info.offset):
                        stream.seek(info.offset + max(0, info.nbytes - SAMPLE_BYTES) // 2)
                        digest.update(stream.read(min(SAMPLE_BYTES, info.nbytes)))
            except OSError as error:
                raise CheckpointError(
                    f"{self.path / name}: cannot be read: {error.strerror}", hint="download it again"
                ) from None
        return "sha256:" + digest.hexdigest()


Check = Callable[["Checkpoint"], None]
"""A function called with a checkpoint before its weights are read; an exception in it ends the call."""


def open_checkpoint(
    path: str | os.PathLike[str], *, id: str | None = None, revision: str | None = None, check: Check | None = None
) -> Checkpoint:
    """Opens a local directory in transformers' layout: ``config.json`` and one or several safetensors files.

    An engine directory counts as the checkpoint it was built from, if it has the original weights.

    Args:
        path: The directory.
        id, revision: Name of the checkpoint; the directory's name by default.
        check: Called with the checkpoint before its weights are read: its config and text files can be read, it has no
            ``tensors`` yet. An exception in it ends the call.

    Raises:
        CheckpointError: naming the file or tensor at fault.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        what = "is a file, not a checkpoint directory" if root.exists() else "no such checkpoint directory"
        raise CheckpointError(f"{root}: {what}", hint="give the directory that holds config.json")
    config = read_config(root)
    name = id or root.resolve().name or "checkpoint"
    if "build_digest" in config:
        found = _of_build(root)
        if check is not None:
            check(found)
        return found
    if check is not None:
        check(Checkpoint(root, config, {}, (), name, revision))
    scheme = read_scheme(config)
    headers, tensors = read_weights(root)
    plain = Checkpoint(root, config, tensors, tuple(sorted(headers)), name, revision, _headers=headers)
    quantized = collect(scheme, tensors, plain.map)
    return replace(
        plain,
        tensors=quantized.tensors,
        stored=quantized.matrices,
        scheme=quantized.scheme,
        zero_biases=quantized.zero_biases,
    )


def read_config(root: Path) -> dict[str, Any]:
    """The parsed ``config.json`` of a directory; raises CheckpointError if there is none, or it is damaged."""
    path = root / "config.json"
    text = read_text(root, path.name, SMALL_JSON_BYTES)
    if text is None:
        raise no_config(root, file_names(root))
    return parse_json(text, path, "config")


def _of_build(root: Path) -> Checkpoint:
    """The checkpoint that an engine directory was built from."""
    origin = origin_of_build(root)
    return Checkpoint(
        root,
        origin.config,
        {name: info for header in origin.headers.values() for name, info in header.tensors.items()},
        tuple(origin.headers),
        origin.id,
        origin.revision,
        weights=origin.weights,
        known_digest=origin.digest,
        _headers=origin.headers,
    )


def _closest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]}?" if near else f"it has {len(names)} tensors"


def equal_values(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays of one shape have the same numbers."""
    import numpy as np

    if a.dtype == b.dtype and a.tobytes() == b.tobytes():
        return not np.isnan(a).any()
    return bool((a.astype(np.float64) == b.astype(np.float64)).all())


def _numpy_dtype(dtype: str) -> np.dtype:
    import ml_dtypes
    import numpy as np

    special: dict[str, Any] = {
        "BOOL": np.bool_,
        "BF16": ml_dtypes.bfloat16,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E8M0": ml_dtypes.float8_e8m0fnu,
        "C64": "<c8",
    }
    if dtype in special:
        return np.dtype(special[dtype])
    return np.dtype(f"<{dtype[0].lower()}{int(dtype[1:]) // 8}")
