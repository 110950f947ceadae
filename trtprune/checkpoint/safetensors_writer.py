"""Writes a safetensors file whose layout is known before its content.

The layout follows from names, dtypes and shapes, so graphs can refer to a file before its data is computed, and the
data can then be written piece by piece in any order of tensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from trtprune.checkpoint.safetensors import ITEM_SIZES, TensorInfo

__all__ = ["FileLayout", "SafetensorsWriter", "plan_layout"]


@dataclass(frozen=True)
class FileLayout:
    """The header of a file to be written, and the places of its tensors."""

    file: str
    header: bytes
    tensors: dict[str, TensorInfo]

    @property
    def nbytes(self) -> int:
        """Size of the whole file in bytes."""
        return len(self.header) + sum(info.nbytes for info in self.tensors.values())


def plan_layout(
    file: str, tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> FileLayout:
    """The layout of a file called ``file`` (a base name) with these tensors: name → (dtype, shape).

    The data begins at a multiple of 8 bytes and wider items come first, so each tensor is aligned to its items; the
    format allows no gaps to align further.

    Raises:
        ValueError: for a dtype that the format does not have.
    """
    for name, (dtype, _) in tensors.items():
        if dtype not in ITEM_SIZES:
            raise ValueError(f"tensor '{name}': no safetensors dtype {dtype!r}")
    order = sorted(tensors, key=lambda name: -ITEM_SIZES[tensors[name][0]])
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    spans, end = {}, 0
    for name in order:
        dtype, shape = tensors[name]
        start, end = end, end + math.prod(shape) * ITEM_SIZES[dtype]
        spans[name] = (start, end)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    infos = {
        name: TensorInfo(name, file, tensors[name][0], tuple(tensors[name][1]), len(header) + start, end - start)
        for name, (start, end) in spans.items()
    }
    return FileLayout(file, header, infos)


class SafetensorsWriter:
    """Writes the file of a layout into ``folder``; used as a context manager.

    Leaving the block without an exception checks that every tensor was written in full (ValueError otherwise).
    Errors of the file system come through as OSError, a full disk included.
    """

    def __init__(self, folder: Path, layout: FileLayout) -> None:
        self.path = folder / layout.file
        self._layout = layout
        self._written = dict.fromkeys(layout.tensors, 0)
        self._stream: BinaryIO | None = None

    def __enter__(self) -> SafetensorsWriter:
        self._stream = self.path.open("xb")
        self._stream.write(self._layout.header)
        return self

    def append(self, name: str, data: np.ndarray) -> None:
        """Adds the bytes of ``data`` to the tensor ``name``, behind those of earlier calls.

        Raises:
            ValueError: if the tensor has no room for them.
        """
        assert self._stream is not None, "the writer is used outside its with block"
        info = self._layout.tensors[name]
        if self._written[name] + data.nbytes > info.nbytes:
            raise ValueError(f"tensor '{name}': {data.nbytes} bytes more than its {info.nbytes}")
        self._stream.seek(info.offset + self._written[name])
        self._stream.write(np.ascontiguousarray(data).reshape(-1).view(np.uint8).data)
        self._written[name] += data.nbytes

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._stream is not None
        self._stream.close()
        if kind is not None:
            return
        for name, info in self._layout.tensors.items():
            if self._written[name] != info.nbytes:
                raise ValueError(f"tensor '{name}': {self._written[name]} of {info.nbytes} bytes written")
