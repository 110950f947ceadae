"""The weight files of a quantised build: planned from shapes, so that the graphs can refer to them, then written one
matrix at a time from the memory-mapped checkpoint.

* ``decoder.int8.safetensors`` (or ``int4``): integers and scales of the decoder's matrices;
  ``decoder.stored.safetensors`` if all of them are the checkpoint's own.
* ``dequantized.safetensors``: quantised matrices of the checkpoint that the graphs read as weights.
* ``rest.safetensors``: copies of the other used tensors of checkpoint files that are mostly unused.  The remaining
  files are linked as in any build; without the copies a file with a few used norms would be kept as a whole.
* ``smoothed.safetensors``: norms with the scales of their features, where activations are rounded, too.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from trtprune.arguments import arg
from trtprune.checkpoint.safetensors_writer import FileLayout, SafetensorsWriter, plan_layout
from trtprune.errors import BuildError, CheckpointError
from trtprune.graph.tensors import QuantizedMatrix

if TYPE_CHECKING:
    import numpy as np

    from trtprune.checkpoint import Checkpoint, TensorInfo
    from trtprune.compiler.carried import Carried, Forms
    from trtprune.compiler.smoothing import Smoothing
    from trtprune.models.spec import ScaledFeatures

__all__ = ["QuantizedWeights", "plan_quantized"]

REST = "rest.safetensors"
DEQUANTIZED = "dequantized.safetensors"
SMOOTHED = "smoothed.safetensors"
# Number of weights that are processed at a time; each takes about 12 bytes.
CHUNK = 1 << 21
# Shortest time between two progress lines, in seconds.
REPORT_EVERY = 10.0
SCALE_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
Item = TypeVar("Item")
Tensors = dict[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class QuantizedWeights:
    """The stored tensors of a quantised build, instead of the checkpoint's.

    Attributes:
        matrices: Canonical name → places of integers and scales.
        moved: Canonical name → place of the tensor, for those that are copied unchanged, dequantised or smoothed.
        smoothable: What :meth:`write` needs a smoothing of.
    """

    matrices: dict[str, QuantizedMatrix]
    moved: dict[str, TensorInfo]
    smoothable: tuple[ScaledFeatures, ...]
    _sources: dict[str, TensorInfo]
    _carried: tuple[Carried, ...]
    _orders: dict[str, np.ndarray]
    _norms: dict[str, str]
    _layouts: dict[str, FileLayout]
    _dtype: str

    @property
    def files(self) -> tuple[str, ...]:
        """Base names of the files of :meth:`write`."""
        return tuple(self._layouts)

    def write(
        self, checkpoint: Checkpoint, folder: Path, say: Callable[[str], None], smoothing: Smoothing | None = None
    ) -> None:
        """Writes the files into ``folder``.

        Needs memory for the integers of the largest matrix, one byte per weight, and some 30 MB.

        Raises:
            CheckpointError: naming a tensor with a NaN, an infinity or a value beyond the scales' range.
        """
        import ml_dtypes
        import numpy as np

        progress = _Progress(len(self._sources) + len(self._carried), say)
        dtype = np.dtype(ml_dtypes.bfloat16 if self._dtype == "bfloat16" else self._dtype)
        for file, layout in self._layouts.items():
            with SafetensorsWriter(folder, layout) as writer:
                if file == REST:
                    for name in layout.tensors:
                        for chunk in _chunks(checkpoint.read(name).reshape(1, -1).T):
                            writer.append(name, chunk)
                elif file == SMOOTHED:
                    assert smoothing is not None
                    for group in self.smoothable:
                        if group.is_norm:
                            norm = checkpoint.read(self._norms[group.writer]).astype(np.float32)
                            writer.append(self.moved[group.writer].name, norm * smoothing.norms[group.writer])
                elif file == DEQUANTIZED:
                    for carried in progress.over(c for c in self._carried if c.why_not):
                        carried.write_weights(checkpoint, dtype, writer)
                else:
                    self._write_matrices(checkpoint, writer, progress, smoothing)
        self._say_written(say)

    def _write_matrices(
        self, checkpoint: Checkpoint, writer: SafetensorsWriter, progress: _Progress, smoothing: Smoothing | None
    ) -> None:
        for key in progress.over(self._sources):
            factors = (None, None) if smoothing is None else (smoothing.rows.get(key), smoothing.columns.get(key))
            self._write_matrix(checkpoint, self._sources[key], self.matrices[key], writer, factors)
        for carried in progress.over(c for c in self._carried if not c.why_not):
            carried.write(checkpoint, writer)
        for name, order in self._orders.items():
            writer.append(name, order)

    def _say_written(self, say: Callable[[str], None]) -> None:
        """One line for each thing done with matrices, and the size of the files."""
        size = f"{sum(layout.nbytes for layout in self._layouts.values()) / 1e6:,.0f} MB written"
        done = []
        rounded = Counter(self.matrices[key].bits for key in self._sources)
        if rounded:
            counts = (f"{count} to int{bits}" for bits, count in sorted(rounded.items(), reverse=True))
            done.append(f"quantised {' and '.join(counts)}")
        kept = Counter(c.matrix.bits for c in self._carried if not c.why_not)
        if kept:
            counts = (f"{count} in int{bits}" for bits, count in sorted(kept.items(), reverse=True))
            done.append(f"kept {' and '.join(counts)} as the checkpoint has them")
        for why, count in Counter(c.why_not for c in self._carried if c.why_not).items():
            say(f"dequantised {count} to {self._dtype}: {why}")
        say(f"{'; '.join([*done, size])}")

    def _write_matrix(
        self,
        checkpoint: Checkpoint,
        source: TensorInfo,
        matrix: QuantizedMatrix,
        writer: SafetensorsWriter,
        factors: tuple[np.ndarray | None, np.ndarray | None],
    ) -> None:
        """``factors`` are those of rows [out] and of columns [in]."""
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
            if factors[1] is not None:
                chunk = chunk.astype(np.float32) * factors[1]
            if factors[0] is not None:
                chunk = chunk.astype(np.float32) * factors[0][start:stop, None]
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


class _Progress:
    """A line now and then about the number of matrices done."""

    def __init__(self, total: int, say: Callable[[str], None]) -> None:
        self._total, self._say, self._done, self._shown = total, say, 0, time.monotonic()

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, one after the other."""
        for item in items:
            if time.monotonic() - self._shown > REPORT_EVERY:
                self._shown = time.monotonic()
                self._say(f"{self._done} of {self._total} matrices written")
            yield item
            self._done += 1


def plan_quantized(
    checkpoint: Checkpoint,
    *,
    linears: Mapping[str, TensorInfo],
    used: Mapping[str, TensorInfo],
    int8_only: frozenset[str],
    forms: Forms,
    weight_dtype: str | None,
    scaled: Sequence[ScaledFeatures] = (),
) -> QuantizedWeights:
    """Lays out the files; reads no weight, but zero points, scales and orders of a quantised checkpoint.

    Args:
        checkpoint: The checkpoint.
        linears: Canonical name → matrix of the decoder, [out, in].
        used: All tensors of the graphs, with ``linears``.
        int8_only: Names of ``linears`` that are int8 in an int4 build, too.
        forms: The forms that the build's target computes with.
        weight_dtype: ``"int8"`` or ``"int4"`` for those of ``linears`` that the checkpoint has in floating point; a
            matrix whose width no int4 block divides is int8 as well.  None: they stay as they are.
        scaled: Features whose scales are moved; those between matrices that are not quantised here are left out.

    Raises:
        BuildError: if int4 blocks fit no matrix, nothing is left to quantise, or a file of the checkpoint has the name
            of one of these files.
        CheckpointError: for scales or groups that are none.
    """
    from trtprune.compiler.carried import carry
    from trtprune.compiler.smoothing import smoothable

    quantize = {key: info for key, info in linears.items() if weight_dtype and info.name not in checkpoint.stored}
    if weight_dtype and not quantize:
        label = checkpoint.scheme.label if checkpoint.scheme else ""
        raise BuildError(
            f"{arg('weight_dtype', weight_dtype)}: the checkpoint has every matrix of the decoder quantised ({label})",
            hint=f"leave out {arg('weight_dtype')}: quantised matrices stay as they are",
        )
    carried = {
        key: carry(checkpoint, checkpoint.stored[info.name], forms, linear=key in linears)
        for key, info in used.items()
        if info.name in checkpoint.stored
    }
    tensors, bits = _rounded_tensors(quantize, int8_only, SCALE_DTYPES[forms.dtype], weight_dtype)
    more, weights, orders = _carried_tensors(carried.values(), SCALE_DTYPES[forms.dtype])
    tensors |= more
    scales = smoothable(scaled, quantize)
    norms = {group.writer: used[group.writer] for group in scales if group.is_norm}
    replaced = {*quantize, *carried, *norms}
    sparse = _sparse(replaced, used)
    rest = {key: info for key, info in used.items() if key not in replaced and info.file in sparse}
    main = f"decoder.{weight_dtype or 'stored'}.safetensors"
    files = {main: tensors, DEQUANTIZED: weights, SMOOTHED: {i.name: ("F32", i.shape) for i in norms.values()}}
    files[REST] = {i.name: (i.dtype, i.shape) for i in rest.values()}
    about = {main: {"format": "trtprune", "weight_dtype": weight_dtype or "stored"}}
    layouts = {file: plan_layout(file, entries, about.get(file)) for file, entries in files.items() if entries}
    clash = {*layouts} & set(checkpoint.files)
    if clash:
        raise BuildError(f"{checkpoint.path / min(clash)}: the build writes a file of this name", hint="rename it")
    matrices = {
        key: QuantizedMatrix(
            layouts[main].tensors[info.name],
            layouts[main].tensors[f"{info.name}_scale"],
            (info.shape[1], info.shape[0]),
            *bits[key],
        )
        for key, info in quantize.items()
    }
    names = {digest: name for name, (digest, _) in orders.items()}
    matrices |= {k: c.placed(layouts[main], names.get(c.order_digest)) for k, c in carried.items() if not c.why_not}
    moved = {key: layouts[REST].tensors[info.name] for key, info in rest.items()}
    moved |= {key: layouts[DEQUANTIZED].tensors[c.matrix.name] for key, c in carried.items() if c.why_not}
    moved |= {key: layouts[SMOOTHED].tensors[info.name] for key, info in norms.items()}
    return QuantizedWeights(
        matrices=matrices,
        moved=moved,
        smoothable=tuple(scales),
        _sources=quantize,
        _carried=tuple(carried.values()),
        _orders={name: order for name, (_, order) in orders.items()},
        _norms={key: info.name for key, info in norms.items()},
        _layouts=layouts,
        _dtype=forms.dtype,
    )


def _carried_tensors(carried: Iterable[Carried], dtype: str) -> tuple[Tensors, Tensors, dict[str, tuple[str, Any]]]:
    """The tensors of matrices as they are, those of dequantised ones, and of orders name → (digest, order)."""
    tensors: Tensors = {}
    weights: Tensors = {}
    orders: dict[str, tuple[str, Any]] = {}
    digests: set[str] = set()
    for c in carried:
        if c.why_not:
            weights[c.matrix.name] = (dtype, c.matrix.shape)
            continue
        tensors |= {f"{c.matrix.name}{end}": entry for end, entry in c.tensors().items()}
        if c.order is not None and c.order_digest not in digests:
            digests.add(c.order_digest)
            name = f"{c.matrix.name}_order"
            orders[name], tensors[name] = (c.order_digest, c.order), ("I64", c.order.shape)
    return tensors, weights, orders


def _rounded_tensors(
    linears: Mapping[str, TensorInfo], int8_only: frozenset[str], scale: str, weight_dtype: str | None
) -> tuple[Tensors, dict[str, tuple[int, int | None]]]:
    """The tensors of matrices that are quantised here, and (bits, block) of each; raises BuildError if none fits."""
    from trtprune.compiler.rounding import BLOCKS, int4_block

    tensors: Tensors = {}
    forms: dict[str, tuple[int, int | None]] = {}
    for key, info in linears.items():
        rows, width = info.shape
        block = int4_block(width) if weight_dtype == "int4" and key not in int8_only else None
        forms[key] = (8, None) if block is None else (4, block)
        if block is None:
            tensors[info.name] = ("I8", (width, rows))
            tensors[f"{info.name}_scale"] = (scale, (rows,))
        else:
            packed = (width, rows // 2) if rows % 2 == 0 else (width * rows // 2,)
            tensors[info.name] = ("U8", packed)
            tensors[f"{info.name}_scale"] = (scale, (width // block, rows))
    able = [key for key in linears if key not in int8_only]
    if weight_dtype == "int4" and able and all(forms[key][0] == 8 for key in able):
        raise BuildError(
            f"--weight-dtype int4: no width of this model's matrices is a multiple of {BLOCKS[-1]}",
            hint="--weight-dtype int8",
        )
    return tensors, forms


def _sparse(replaced: Collection[str], used: Mapping[str, TensorInfo]) -> set[str]:
    """Files whose quantised part is larger than their otherwise used part."""
    balance: dict[str, int] = {}
    for key, info in used.items():
        balance[info.file] = balance.get(info.file, 0) + (-info.nbytes if key in replaced else info.nbytes)
    return {file for file, rest in balance.items() if rest < 0}


def _chunks(array: np.ndarray, multiple: int = 1) -> Iterator[np.ndarray]:
    """Slices of about ``CHUNK`` items along the first axis; all but the last have a multiple of ``multiple`` rows."""
    rows = max(1, CHUNK // max(1, array[:1].size) // multiple) * multiple
    for start in range(0, len(array), rows):
        yield array[start : start + rows]
