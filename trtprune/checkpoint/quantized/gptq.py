"""GPTQ: 4 or 8 bits, consecutive inputs of one output in a word.

``qweight`` int32 [in · bits / 32, out], ``qzeros`` int32 [groups, out · bits / 32], ``scales`` [groups, out], and
``g_idx`` int32 [in], the group of each input: with ``desc_act`` the inputs of a group do not follow each other.  The
first checkpoint format has zero points less one, subtracted word by word with a borrow, the second has them as they
are.

Source: https://arxiv.org/abs/2210.17323; ``convert_gptq_v1_to_v2_format`` and ``dequantize_weight`` in
ModelCloud/GPTQModel 7.7.
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

__all__ = ["GptqScheme"]

# A one in each place of a word.
ONES = {4: 0x11111111, 8: 0x01010101}
FIRST, SECOND = "gptq", "gptq_v2"


@dataclass(frozen=True)
class GptqMatrix(StoredMatrix):
    """See the module; ``offset``: what is added to the words of zero points."""

    offset: int

    main = "qweight"
    scale = "scales"

    def integers(self, read: Read, inputs: slice, outputs: slice) -> np.ndarray:
        """As :meth:`StoredMatrix.integers`."""
        count = 32 // self.bits
        words = slice(inputs.start // count, -(-inputs.stop // count))
        return unpacked(read(self.parts["qweight"])[words, outputs], self.bits, 0)

    def zeros(self, read: Read) -> np.ndarray | None:
        """As :meth:`StoredMatrix.zeros`."""
        import numpy as np

        words = np.array(read(self.parts["qzeros"])).view(np.uint32)
        words += np.uint32(self.offset)  # a sum of 32 bits, with its carries
        return unpacked(words, self.bits, 1)

    def scales(self, read: Read) -> np.ndarray:
        """As :meth:`StoredMatrix.scales`."""
        return read(self.parts["scales"])

    def group_index(self, read: Read) -> np.ndarray | None:
        """As :meth:`StoredMatrix.group_index`."""
        info = self.parts.get("g_idx")
        return None if info is None else self.index_of(info, read(info))


class GptqScheme(Scheme):
    """GPTQ as ``quantization_config`` describes it.

    Raises:
        CheckpointError: for another layout, other bits, or bits that differ between modules.
    """

    parts = ("qweight", "qzeros", "scales", "g_idx")

    def __init__(self, settings: Settings) -> None:
        kinds = (FIRST, SECOND)
        form = settings.choice("format", kinds, FIRST)
        form = settings.choice("checkpoint_format", kinds, form)
        settings.absent("is_marlin_format", "checkpoint_format gptq and gptq_v2")
        self.bits = settings.bits("bits", (4, 8))
        self.group = settings.group("group_size", 128)
        self.offset = ONES[self.bits] if form == FIRST else 0
        self._refuse_overrides(settings)
        act = ", act-order" if settings.flag("desc_act", False) else ""
        size = "whole rows" if self.group == -1 else f"groups of {self.group}"
        self.label = f"GPTQ, {self.bits} bits, {size}{act}"

    def _refuse_overrides(self, settings: Settings) -> None:
        """Raises CheckpointError for modules with other bits or groups; modules may be left out."""
        for pattern, values in settings.section("dynamic").values.items():
            own = values if isinstance(values, Mapping) else {}
            mixed = [n for n, mine in (("bits", self.bits), ("group_size", self.group)) if own.get(n, mine) != mine]
            if mixed and not pattern.startswith("-:"):
                raise settings.unsupported(
                    f"dynamic[{pattern!r}].{mixed[0]}", own[mixed[0]], "the same for all modules"
                )

    def matrix(self, module: str, parts: Mapping[str, TensorInfo], read: Read) -> GptqMatrix:
        """As :meth:`Scheme.matrix`."""
        for end in ("qweight", "qzeros", "scales"):
            if end not in parts:
                raise lacking(module, parts, end)
        main, count = parts["qweight"], 32 // self.bits
        if main.dtype != "I32" or len(main.shape) != 2 or 0 in main.shape:
            raise bad_tensor(main, f"is {main.dtype} of shape {list(main.shape)}, expected I32 [in / {count}, out]")
        width, rows = main.shape[0] * count, main.shape[1]
        if rows % count:
            raise bad_tensor(main, f"has {rows} outputs, expected a multiple of {count} for {self.bits} bits")
        group = group_of(main, width, self.group)
        expect(parts["qzeros"], ("I32",), (width // group, rows // count))
        expect(parts["scales"], FLOATS, (width // group, rows))
        if "g_idx" in parts:
            expect(parts["g_idx"], ("I32", "I64"), (width,))
        return GptqMatrix(f"{module}.weight", (rows, width), self.bits, group, dict(parts), self.offset)
