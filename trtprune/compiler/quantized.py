"""The weight files of a quantised build: planned from shapes alone, so that the graphs can refer to them, then written
one matrix at a time from the memory-mapped checkpoint.

* ``decoder.int8.safetensors`` (or ``int4``): integers and scales of the decoder's matrices.
* ``rest.safetensors``: copies of the other used tensors of checkpoint files that are mostly unused.  The remaining
  files are linked as in any build; without the copies a file with a few used norms would be kept as a whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trtprune.checkpoint.safetensors_writer import FileLayout, SafetensorsWriter, plan_layout
from trtprune.errors import BuildError, CheckpointError
from trtprune.graph.tensors import QuantizedMatrix

if TYPE_CHECKING:
    import numpy as np

    from trtprune.checkpoint import Checkpoint, TensorInfo

__all__ = ["QuantizedWeights", "plan_quantized"]

REST = "rest.safetensors"
# Number of weights that are processed at a time; each takes about 12 bytes.
CHUNK = 1 << 21
# Shortest time between two progress lines, in seconds.
REPORT_EVERY = 10.0
SCALE_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True)
class QuantizedWeights:
    """The stored tensors of a quantised build, instead of the checkpoint's.

    Attributes:
        matrices: Canonical name → places of integers and scales.
        moved: Canonical name → place of the copy, for tensors that are copied unchanged.
    """

    matrices: dict[str, QuantizedMatrix]
    moved: dict[str, TensorInfo]
    _sources: dict[str, TensorInfo]
    _layouts: tuple[FileLayout, ...]
    _dtype: str

    @property
    def files(self) -> tuple[str, ...]:
        """Base names of the files of :meth:`write`."""
        return tuple(layout.file for layout in self._layouts)

    def write(self, checkpoint: Checkpoint, folder: Path, say: Callable[[str], None]) -> None:
        """Writes the files into ``folder``.

        Needs memory for the integers of the largest matrix, one byte per weight, and some 30 MB.

        Raises:
            CheckpointError: naming a tensor with a NaN, an infinity or a value beyond the scales' range.
        """
        shown = time.monotonic()
        with SafetensorsWriter(folder, self._layouts[0]) as writer:
            for done, (key, matrix) in enumerate(self.matrices.items()):
                if time.monotonic() - shown > REPORT_EVERY:
                    shown = time.monotonic()
                    say(f"quantised {done} of {len(self.matrices)} matrices")
                self._write_matrix(checkpoint, self._sources[key], matrix, writer)
        for layout in self._layouts[1:]:
            with SafetensorsWriter(folder, layout) as writer:
                for name in layout.tensors:
                    for chunk in _chunks(checkpoint.read(name).reshape(1, -1).T):
                        writer.append(name, chunk)
        kinds = sorted({matrix.bits for matrix in self.matrices.values()}, reverse=True)
        counts = (f"{sum(m.bits == bits for m in self.matrices.values())} to int{bits}" for bits in kinds)
        say(f"quantised {' and '.join(counts)}; {sum(layout.nbytes for layout in self._layouts) / 1e6:,.0f} MB written")

    def _write_matrix(
        self, checkpoint: Checkpoint, source: TensorInfo, matrix: QuantizedMatrix, writer: SafetensorsWriter
    ) -> None:
        import ml_dtypes
        import numpy as np

        from trtprune.compiler.rounding import pack_int4, quantize

        width, rows = matrix.shape
        scale_dtype = np.dtype(ml_dtypes.bfloat16 if self._dtype == "bfloat16" else self._dtype)
        integers = np.empty((width, rows), np.int8)
        scales = np.empty((1 if matrix.block is None else width // matrix.block, rows), scale_dtype)
        start = 0
        for chunk in _chunks(checkpoint.read(source.name)):
            stop = start + len(chunk)
            try:
                values, steps = quantize(chunk, bits=matrix.bits, block=matrix.block, scale_dtype=scale_dtype)
            except ValueError as error:
                raise CheckpointError(
                    f"{source.file}: tensor {source.name!r} {error}",
                    hint="it cannot be quantised; leave --weight-dtype out, or download the file again",
                ) from None
            integers[:, start:stop], scales[:, start:stop] = values.T, steps.T
            start = stop
        writer.append(matrix.scales.name, scales)
        # An even number of rows at a time: a byte has two weights, and a row may end in the middle of one.
        for chunk in _chunks(integers, multiple=2):
            writer.append(matrix.integers.name, chunk if matrix.bits == 8 else pack_int4(np.ascontiguousarray(chunk)))


def plan_quantized(
    checkpoint: Checkpoint,
    *,
    linears: Mapping[str, TensorInfo],
    used: Mapping[str, TensorInfo],
    int8_only: frozenset[str],
    dtype: str,
    weight_dtype: str,
) -> QuantizedWeights:
    """Lays out the files; reads no weight.

    Args:
        linears: Canonical name → matrix to quantise, [out, in].
        used: All tensors of the graphs, with ``linears``.
        int8_only: Names of ``linears`` that are int8 in an int4 build, too.
        dtype: Compute dtype, also of the scales.
        weight_dtype: ``"int8"`` or ``"int4"``; a matrix whose width no int4 block divides is int8 as well.

    Raises:
        BuildError: if int4 blocks fit no matrix, or a file of the checkpoint has the name of one of these files.
    """
    from trtprune.compiler.rounding import BLOCKS, int4_block

    file = f"decoder.{weight_dtype}.safetensors"
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    forms: dict[str, tuple[int, int | None]] = {}
    for key, info in linears.items():
        rows, width = info.shape
        block = int4_block(width) if weight_dtype == "int4" and key not in int8_only else None
        forms[key] = (8, None) if block is None else (4, block)
        if block is None:
            tensors[info.name] = ("I8", (width, rows))
            tensors[f"{info.name}_scale"] = (SCALE_DTYPES[dtype], (rows,))
        else:
            packed = (width, rows // 2) if rows % 2 == 0 else (width * rows // 2,)
            tensors[info.name] = ("U8", packed)
            tensors[f"{info.name}_scale"] = (SCALE_DTYPES[dtype], (width // block, rows))
    if weight_dtype == "int4" and all(bits == 8 for bits, _ in forms.values()):
        raise BuildError(
            f"--weight-dtype int4: no width of this model's matrices is a multiple of {BLOCKS[-1]}",
            hint="--weight-dtype int8",
        )
    layout = plan_layout(file, tensors, {"format": "trtprune", "weight_dtype": weight_dtype})
    matrices = {
        key: QuantizedMatrix(
            layout.tensors[info.name], layout.tensors[f"{info.name}_scale"], (info.shape[1], info.shape[0]), *forms[key]
        )
        for key, info in linears.items()
    }
    moved = {key: info for key, info in used.items() if key not in linears and info.file in _sparse(linears, used)}
    layouts = [layout]
    if moved:
        layouts.append(plan_layout(REST, {info.name: (info.dtype, info.shape) for info in moved.values()}))
    clash = {layout.file for layout in layouts} & set(checkpoint.files)
    if clash:
        raise BuildError(f"{checkpoint.path / min(clash)}: the build writes a file of this name", hint="rename it")
    return QuantizedWeights(
        matrices,
        {key: layouts[1].tensors[info.name] for key, info in moved.items()},
        dict(linears),
        tuple(layouts),
        dtype,
    )


def _sparse(linears: Mapping[str, TensorInfo], used: Mapping[str, TensorInfo]) -> set[str]:
    """Files whose quantised part is larger than their otherwise used part."""
    balance: dict[str, int] = {}
    for key, info in used.items():
        balance[info.file] = balance.get(info.file, 0) + (-info.nbytes if key in linears else info.nbytes)
    return {file for file, rest in balance.items() if rest < 0}


def _chunks(array: np.ndarray, multiple: int = 1) -> Iterator[np.ndarray]:
    """Slices of about ``CHUNK`` items along the first axis; all but the last have a multiple of ``multiple`` rows."""
    rows = max(1, CHUNK // max(1, array[:1].size) // multiple) * multiple
    for start in range(0, len(array), rows):
        yield array[start : start + rows]
