"""Matrices that a checkpoint stores as integers with scales, in whatever layout.

``weight[o, i] = (integers[i, o] - zeros[g, o]) * scales[g, o]`` with ``g``, the group of input ``i``.  Integers and
zero points are unsigned here, whatever the file has: a signed -8 … 7 with the zero point 0 is 0 … 15 with 8.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from trtprune.checkpoint.safetensors import TensorInfo
from trtprune.errors import CheckpointError, shown

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Read", "Scheme", "StoredMatrix", "bad_tensor", "modules_of", "unpacked"]

Read = Callable[[TensorInfo], "np.ndarray"]
"""Maps a tensor of the checkpoint into memory."""
ALIGNED = 32
"""Slices of integers begin at multiples of this: no layout packs more of them into a word."""
FLOATS = ("F16", "BF16", "F32")
PIECE = 1 << 21
"""Weights that are dequantised at a time."""
AGAIN = "download the checkpoint again, or quantise the model again"


def bad_tensor(info: TensorInfo, problem: str, hint: str = AGAIN) -> CheckpointError:
    """The error about one tensor of a quantised matrix."""
    return CheckpointError(f"{info.file}: tensor {shown(info.name)} {problem}", hint=hint)


@dataclass(frozen=True)
class StoredMatrix(ABC):
    """One matrix; subclasses know a layout.

    Attributes:
        name: Its name if it were stored as it is: ``….weight``.
        shape: (out, in).
        bits: Of an integer: 4 or 8.
        group: Inputs in a group, a divisor of ``in``.
        parts: The tensors by the ends of their names.
    """

    name: str
    shape: tuple[int, int]
    bits: int
    group: int
    parts: Mapping[str, TensorInfo]

    main: ClassVar[str]
    """The part with the integers."""
    scale: ClassVar[str]
    """The part with the scales."""

    @abstractmethod
    def integers(self, read: Read, inputs: slice, outputs: slice) -> np.ndarray:
        """uint8 [inputs, outputs] of two slices; both begin at multiples of :data:`ALIGNED`."""

    @abstractmethod
    def zeros(self, read: Read) -> np.ndarray | None:
        """uint8 [groups, out]; None: all are the middle, ``1 << (bits - 1)``."""

    @abstractmethod
    def scales(self, read: Read) -> np.ndarray:
        """float [groups, out] of the file's dtype."""

    def group_index(self, read: Read) -> np.ndarray | None:
        """int64 [in], the group of each input, from 0 to groups - 1; None: ``i // group``.

        Raises:
            CheckpointError: for a group that is none.
        """
        return None

    @property
    def groups(self) -> int:
        """Groups along ``in``."""
        return self.shape[1] // self.group

    @property
    def info(self) -> TensorInfo:
        """The matrix as a tensor of the checkpoint; its dtype is none of safetensors'."""
        main = self.parts[self.main]
        size = sum(part.nbytes for part in self.parts.values())
        return TensorInfo(self.name, main.file, f"quantised int{self.bits}", self.shape, main.offset, size)

    @property
    def scale_info(self) -> TensorInfo:
        """The tensor of the scales."""
        return self.parts[self.scale]

    def index_of(self, info: TensorInfo, index: np.ndarray) -> np.ndarray | None:
        """The group of each input from a tensor int [in]; None if groups simply follow each other."""
        import numpy as np

        if index.size and (int(index.min()) < 0 or int(index.max()) >= self.groups):
            raise bad_tensor(info, f"has a group of {int(index.max())}, there are groups 0 to {self.groups - 1}")
        found = index.astype(np.int64)
        return None if np.array_equal(found, np.arange(self.shape[1]) // self.group) else found

    def dequantized(self, read: Read) -> Iterator[np.ndarray]:
        """The weights, float32 [k, in], some rows of the matrix at a time, in order.

        Their products are exact in float32 for scales of two bytes.
        """
        import numpy as np

        rows, width = self.shape
        zeros, scales, index = self.zeros(read), self.scales(read), self.group_index(read)
        middle = np.float32(1 << (self.bits - 1))
        step = max(ALIGNED, PIECE // width // ALIGNED * ALIGNED)
        for start in range(0, rows, step):
            some = slice(start, min(start + step, rows))
            # Turned as bytes, in a quarter of the time.
            values = np.ascontiguousarray(self.integers(read, slice(0, width), some).T).astype(np.float32)
            points = None if zeros is None else zeros[:, some].T.astype(np.float32)
            factors = scales[:, some].T.astype(np.float32)
            if index is not None:
                values -= middle if points is None else points[:, index]
                values *= factors[:, index]
            else:
                grouped = values.reshape(len(values), self.groups, self.group)
                grouped -= middle if points is None else points[:, :, None]
                grouped *= factors[:, :, None]
            yield values


class Scheme(ABC):
    """The way that ``quantization_config`` says matrices are stored."""

    label: str
    """In words, such as ``AWQ, 4 bits, groups of 128``."""
    notes: tuple[str, ...] = ()
    """What the checkpoint asks for beside its weights, and is not done."""
    parts: tuple[str, ...]
    """The ends of the names of a matrix's tensors."""
    beside: tuple[str, ...] = ()
    """Ends of names of tensors that the weights do not need."""

    @abstractmethod
    def matrix(self, module: str, parts: Mapping[str, TensorInfo], read: Read) -> StoredMatrix:
        """The matrix of a module from its tensors; raises CheckpointError if they do not fit each other."""


def modules_of(scheme: Scheme, tensors: Mapping[str, TensorInfo]) -> dict[str, dict[str, TensorInfo]]:
    """Module → its tensors by the ends of their names, of those that are of a scheme."""
    modules: dict[str, dict[str, TensorInfo]] = {}
    for name, info in tensors.items():
        module, _, end = name.rpartition(".")
        if end in scheme.parts:
            modules.setdefault(module, {})[end] = info
    return modules


def expect(info: TensorInfo, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> None:
    """Raises CheckpointError for a tensor of another dtype or shape."""
    if info.dtype not in dtypes:
        raise bad_tensor(info, f"has dtype {info.dtype}, expected {' or '.join(dtypes)}")
    if info.shape != shape:
        raise bad_tensor(info, f"has shape {list(info.shape)}, expected {list(shape)}")


def lacking(module: str, parts: Mapping[str, TensorInfo], end: str) -> CheckpointError:
    """The error about a module without one of its tensors."""
    some = next(iter(parts.values()))
    return CheckpointError(
        f"{some.file}: tensor {shown(f'{module}.{end}')} is missing, {shown(some.name)} is there", hint=AGAIN
    )


def group_of(info: TensorInfo, width: int, group: int) -> int:
    """The inputs in a group of a matrix with ``width`` inputs; ``group`` of -1 is a whole row.

    Raises:
        CheckpointError: if groups do not divide the inputs.
    """
    size = width if group == -1 else group
    if width % size:
        raise bad_tensor(info, f"has {width} inputs, and groups of {size} do not divide them")
    return size


def unpacked(words: np.ndarray, bits: int, axis: int, numbers: Sequence[int] | None = None) -> np.ndarray:
    """uint8 integers of int32 words [a, b] along an axis, the lowest bits first.

    Args:
        words: In the order of bytes of the file.
        bits: 4 or 8.
        axis: 0: [a · 32 / bits, b]; 1: [a, b · 32 / bits].
        numbers: For each place in a word the number that it holds; None: 0, 1, 2, …
    """
    import numpy as np

    count, (rows, columns) = 32 // bits, words.shape
    octets = np.ascontiguousarray(words).view(np.uint8).reshape(rows, columns, 4)
    found = np.empty((rows, count, columns) if axis == 0 else (rows, columns, count), np.uint8)
    for place in range(count):
        some: np.ndarray = octets[:, :, place * bits // 8]
        if bits == 4:
            some = some >> 4 if place % 2 else some & 0x0F
        number = place if numbers is None else numbers[place]
        found[(slice(None), number) if axis == 0 else (..., number)] = some
    return found.reshape(-1, columns) if axis == 0 else found.reshape(rows, -1)
