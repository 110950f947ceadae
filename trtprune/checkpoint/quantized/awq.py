"""AWQ in the layout "gemm": 4 bits, eight outputs of one input in a word.

``qweight`` int32 [in, out / 8], ``qzeros`` int32 [groups, out / 8], ``scales`` [groups, out].  Within a word, the four
bits of place p belong to output ``ORDER[p]``.

Source: https://arxiv.org/abs/2306.00978; ``WQLinear_GEMM`` in casper-hansen/AutoAWQ 0.2.9.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trtprune.checkpoint.quantized.settings import Settings
from trtprune.checkpoint.quantized.stored import (
    FLOATS,
    Read,
    Scheme,
    StoredMatrix,
    bad_tensor,
    expect,
    group_of,
    lacking,
    unpacked,
)
from trtprune.checkpoint.safetensors import TensorInfo

if TYPE_CHECKING:
    import numpy as np

__all__ = ["AwqScheme"]

BITS = 4
PACKED = 8
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class AwqMatrix(StoredMatrix):
    """See the module."""

    main = "qweight"
    scale = "scales"

    def integers(self, read: Read, inputs: slice, outputs: slice) -> np.ndarray:
        """As :meth:`StoredMatrix.integers`."""
        words = slice(outputs.start // PACKED, -(-outputs.stop // PACKED))
        return _in_order(read(self.parts["qweight"])[inputs, words])

    def zeros(self, read: Read) -> np.ndarray | None:
        """As :meth:`StoredMatrix.zeros`."""
        return _in_order(read(self.parts["qzeros"]))

    def scales(self, read: Read) -> np.ndarray:
        """As :meth:`StoredMatrix.scales`."""
        return read(self.parts["scales"])


def _in_order(words: np.ndarray) -> np.ndarray:
    """uint8 [a, 8 b] of int32 words [a, b]."""
    return unpacked(words, BITS, 1, ORDER)


class AwqScheme(Scheme):
    """AWQ as ``quantization_config`` describes it.

    Raises:
        CheckpointError: for another layout, or other bits.
    """

    parts = ("qweight", "qzeros", "scales")

    def __init__(self, settings: Settings) -> None:
        for name in ("version", "format", "checkpoint_format"):
            settings.choice(name, ("gemm",), "gemm")
        settings.bits("bits" if "bits" in settings.values else "w_bit", (BITS,))
        self.group = settings.group("group_size" if "group_size" in settings.values else "q_group_size", 128)
        self.label = f"AWQ, {BITS} bits, {'whole rows' if self.group == -1 else f'groups of {self.group}'}"

    def matrix(self, module: str, parts: Mapping[str, TensorInfo], read: Read) -> AwqMatrix:
        """As :meth:`Scheme.matrix`."""
        for end in self.parts:
            if end not in parts:
                raise lacking(module, parts, end)
        main = parts["qweight"]
        if main.dtype != "I32" or len(main.shape) != 2 or 0 in main.shape:
            raise bad_tensor(main, f"is {main.dtype} of shape {list(main.shape)}, expected I32 [in, out / {PACKED}]")
        width, rows = main.shape[0], main.shape[1] * PACKED
        group = group_of(main, width, self.group)
        expect(parts["qzeros"], ("I32",), (width // group, rows // PACKED))
        expect(parts["scales"], FLOATS, (width // group, rows))
        return AwqMatrix(f"{module}.weight", (rows, width), BITS, group, dict(parts))
