"""The header of a safetensors file, strictly checked, without its data.

The format: 8 bytes little-endian length, that many bytes of JSON, then one byte buffer.  A header is untrusted
input with offsets into the file, so every rule of the format is checked before an offset is used.
"""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtprune.errors import CheckpointError, shown
from trtprune.files.reading import open_regular, parse_object

__all__ = ["ITEM_SIZES", "MAX_HEADER_BYTES", "Header", "TensorInfo", "parse_json", "read_header"]

# The header of a model with 10,000 tensors has about 1 MB. At the format's own limit of 100 MB its Python dictionary
# would take gigabytes.
MAX_HEADER_BYTES = 25_000_000
# The braces of a valid header are its tensors'; counting them is cheaper than parsing a header that is not valid.
MAX_ENTRIES = 250_000
MAX_DIMS = 32
# Sub-byte types (F4, F6_*) are missing: no graph could refer to them.
ITEM_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4,
    "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
_AGAIN = "download the file again"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """The place of one tensor: ``offset`` counts from the start of ``file`` (a base name)."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """The tensors of one file, in file order, with its size and the SHA-256 of its header bytes."""

    tensors: dict[str, TensorInfo]
    size: int
    sha256: str


def read_header(path: Path) -> Header:
    """Reads and checks the header of a safetensors file.

    Raises:
        CheckpointError: naming the file, and the tensor or the byte counts at fault.
    """
    try:
        with open(path, "rb", opener=open_regular) as stream:
            size = os.fstat(stream.fileno()).st_size
            prefix = stream.read(8) or b""  # None, of some files of /proc
            if len(prefix) < 8:
                raise CheckpointError(f"{path}: truncated, {size} bytes are no safetensors file", hint=_AGAIN)
            length = int.from_bytes(prefix, "little")
            if length > MAX_HEADER_BYTES:
                raise CheckpointError(
                    f"{path}: not a safetensors file (its header would have {length} bytes, "
                    f"the limit is {MAX_HEADER_BYTES})",
                    hint=_AGAIN,
                )
            text = stream.read(length)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read: {error.strerror or error}", hint="check the file's permissions"
        ) from None
    if len(text) < length:
        raise CheckpointError(
            f"{path}: truncated, its header ends at byte {8 + length} but the file has {size} bytes", hint=_AGAIN
        )
    if max(text.count(b"{"), text.count(b"[") // 2) > MAX_ENTRIES:
        raise CheckpointError(f"{path}: damaged safetensors header: more than {MAX_ENTRIES} entries", hint=_AGAIN)
    data = parse_json(text, path, "safetensors header")
    data.pop("__metadata__", None)
    start = 8 + length
    tensors = [_tensor(path, name, entry, start) for name, entry in data.items()]
    _check_layout(path, tensors, start, size)
    return Header({tensor.name: tensor for tensor in tensors}, size, hashlib.sha256(prefix + text).hexdigest())


def parse_json(text: bytes, path: Path, what: str) -> dict[str, Any]:
    """Parses untrusted JSON that must be one object with no duplicate keys.

    Raises:
        CheckpointError: naming the file.
    """
    try:
        return parse_object(text)
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged {what}: {error}", hint=_AGAIN) from None


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _tensor(path: Path, name: str, entry: Any, start: int) -> TensorInfo:
    def bad(reason: str, hint: str = _AGAIN) -> CheckpointError:
        return CheckpointError(f"{path}: tensor {shown(name)}: {reason}", hint=hint)

    if not isinstance(entry, dict):
        raise bad("its entry is not an object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
        raise bad(f"unknown dtype {shown(dtype)}", hint=f"known: {', '.join(ITEM_SIZES)}")
    if isinstance(shape, list) and len(shape) > MAX_DIMS:
        raise bad(f"{len(shape)} dimensions, the limit is {MAX_DIMS}")
    if not isinstance(shape, list) or not all(_count(n) for n in shape):
        raise bad(f"invalid shape {shown(shape)}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_count(n) for n in offsets):
        raise bad(f"invalid data_offsets {shown(offsets)}")
    nbytes = math.prod(shape) * ITEM_SIZES[dtype]
    if offsets[1] - offsets[0] != nbytes:
        raise bad(
            f"{dtype} {shown(shape)} needs {shown(nbytes)} bytes, its data_offsets {offsets} span "
            f"{offsets[1] - offsets[0]}"
        )
    return TensorInfo(name, path.name, dtype, tuple(shape), start + offsets[0], nbytes)


def _check_layout(path: Path, tensors: list[TensorInfo], start: int, size: int) -> None:
    end = start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.offset != end:
            what = "overlaps the tensor before it" if tensor.offset < end else "leaves a gap before it"
            raise CheckpointError(
                f"{path}: tensor {shown(tensor.name)}: its data {what} (byte {tensor.offset}, expected {end})",
                hint=_AGAIN,
            )
        end += tensor.nbytes
    if size < end:
        raise CheckpointError(f"{path}: truncated, expected {end} bytes, found {size}", hint=_AGAIN)
    if size > end:
        raise CheckpointError(
            f"{path}: {size - end} bytes after the last tensor (expected {end} bytes, found {size})", hint=_AGAIN
        )
