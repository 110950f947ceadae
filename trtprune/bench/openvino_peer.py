"""OpenVINO's own runtime on our unpruned graphs, with the same question and the same clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtprune.bench.cells import BuildCell, Workload
from trtprune.errors import BackendError
from trtprune.variants import Variant, Variants

if TYPE_CHECKING:
    from trtprune.backends.openvino import OpenVinoBackend

__all__ = ["PRECISIONS", "openvino_cells", "require_openvino"]

PRECISIONS = {"openvino float32": "float32", "openvino bf16": "bf16"}
"""Peer → precision of its products."""


def require_openvino(name: str = "openvino float32", threads: int | None = None) -> OpenVinoBackend:
    """The backend of a peer.

    Raises:
        BackendError: if OpenVINO is missing.
    """
    from trtprune.backends.openvino import OpenVinoBackend

    try:
        return OpenVinoBackend(threads, {"precision": PRECISIONS[name]})
    except BackendError as error:
        message = error.flag_message.replace("--provider openvino", "--against openvino")
        raise BackendError(message, hint=error.hint) from None


def openvino_cells(variants: Variants, question: Workload, threads: int | None) -> list[BuildCell]:
    """One cell per precision, of one build with OpenVINO's operators.

    Raises:
        BackendError, CheckpointError: as :meth:`trtprune.variants.Variants.config`, or if OpenVINO refuses a graph.
    """
    from trtprune.runtime import Vlm
    from trtprune.runtime.pictures import max_pixels_from

    made, found = variants.build_for("openvino", Variant.make("none")), []
    for name in PRECISIONS:
        vlm = Vlm(made, require_openvino(name, threads), max_pixels=max_pixels_from(None))
        found.append(BuildCell(vlm, name, made.model.visual_tokens, question, peer=True))
    return found
