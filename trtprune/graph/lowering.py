"""The choice of ONNX operators for the fused pieces of a transformer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trtprune.errors import BackendError

__all__ = ["FORMS", "Form", "Lowering", "Pieces"]

Form = Literal["op", "op-float32", "primitives", "primitives-float32"]

FORMS: dict[str, tuple[str, ...]] = {
    "attention": ("op", "op-float32", "primitives", "primitives-float32"),
    "vision_attention": ("op", "op-float32", "primitives", "primitives-float32"),
    "norm": ("op", "primitives"),
    "rotary": ("op", "primitives"),
    "cache": ("op", "primitives"),
    "products": ("op", "primitives"),
    "coverage": ("every", "lazy"),
    "loop_order": ("sort", "count"),
    "activations": ("float", "int8"),
}
"""The values of each field of :class:`Lowering`."""


@dataclass(frozen=True)
class Lowering:
    """The forms of attention, norms, rotary embeddings and the KV-cache write.

    ``"op"`` is the standard operator (Attention-24, LayerNormalization/RMSNormalization-23, RotaryEmbedding-23,
    TensorScatter-24); ``"primitives"`` writes the same arithmetic with MatMul, Softmax, ReduceMean, ScatterElements
    and the like.  Both give the same numbers; backends differ in which they recognise and which they run faster.
    ``"op-float32"`` and ``"primitives-float32"``, for attention, first cast queries, keys and values to float32: for
    kernels that lose too much precision in half precision.  The cache stays in the compute dtype.
    """

    attention: Form = "op"
    """The decoder's attention over the KV cache."""
    vision_attention: Form = "op"
    """The vision tower's unmasked attention."""
    norm: Form = "op"
    rotary: Form = "op"
    cache: Form = "op"
    """The write of new keys and values into the cache."""
    products: Form = "op"
    """Float32 matrix products of the pruners.  TensorRT-RTX has none for Turing (sm75), where it fuses a product and
    a sum just as well; other backends would store every single product."""
    coverage: Literal["every", "lazy"] = "every"
    """A pruner's search for the token with the largest gain of coverage: ``every`` computes all gains in each step,
    ``lazy`` only those that can still be the largest.  The picks are the same; ``lazy`` takes a third of the time on a
    CPU, and more launches on a GPU."""
    loop_order: Literal["sort", "count"] = "sort"
    """An order of a run-time number of scores inside a pruner's loop: ``sort`` is TopK, whose length TensorRT must know
    there when it builds; ``count`` counts for each score how many go before it."""
    activations: Literal["float", "int8"] = "float"
    """What int8 matrices are multiplied with: the features as they are, or rounded to 8 bits, row by row
    (``graph.int8``)."""

    @property
    def opset(self) -> int:
        """The ONNX opset the graphs need."""
        if self.cache == "op" or "op" in (self.attention[:2], self.vision_attention[:2]):
            return 24
        return 23 if "op" in (self.norm, self.rotary) else 20

    @classmethod
    def for_backend(cls, backend: str) -> Lowering:
        """The choice for ``onnxruntime`` (CPU), ``cuda``, ``openvino``, ``tensorrt`` or ``tensorrt-rtx``.

        Both CPU choices are measured; ``cuda`` (ONNX Runtime's provider) takes the operators because its kernels for
        them are the fused ones.

        Raises:
            BackendError: for any other name.
        """
        if backend == "cuda":
            return cls()
        if backend in ("tensorrt", "tensorrt-rtx"):
            return cls(loop_order="count")
        if backend == "onnxruntime":
            # The CPU kernel of Attention is somewhat slower than MatMul + Softmax on an unmasked tower, and faster
            # with a mask and grouped heads; the other choices make no difference there.
            return cls(vision_attention="primitives", coverage="lazy")
        if backend == "openvino":
            # OpenVINO does not read TensorScatter, nor Attention as it stands over a cache written in place. Pruners
            # run in ONNX Runtime beside it.
            return cls("primitives", "primitives", "primitives", "primitives", "primitives", coverage="lazy")
        raise BackendError(
            f"unknown backend {backend!r}", hint="one of cuda, onnxruntime, openvino, tensorrt, tensorrt-rtx"
        )


@dataclass(frozen=True)
class Pieces:
    """How a graph puts a list in order.

    Attributes:
        count: TopK nodes, one after the other.
        entries: The most entries that one of them returns; ``count`` times as many are the longest list.
    """

    count: int
    entries: int

    @classmethod
    def of(cls, longest: int, entries: int) -> Pieces | None:
        """The pieces of lists of up to ``longest`` entries; None if one TopK does."""
        count = -(-longest // entries)
        return cls(count, entries) if count > 1 else None
