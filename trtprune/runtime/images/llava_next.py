"""The image processor of LLaVA-NeXT (LLaVA 1.6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from trtprune.runtime.images.anyres import MODEL, PAPER, AnyRes

__all__ = ["LlavaNext"]

PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))


class LlavaNext(AnyRes):
    """An overview and a plane of tiles; each image of a prompt is cut in this way.

    Layout ``model``: 576 tokens of the overview, then the unpadded plane line by line, a newline token behind each
    line.  Layout ``paper``: neither unpadding nor newline tokens, so that every crop gives all of its patches, as the
    codes of AdaV, CDPruner, VisPruner and FasterVLM have it (``mm_patch_merge_type="spatial"``).
    """

    name: ClassVar[str] = "llava_next"
    kinds: ClassVar[tuple[str, ...]] = ("LlavaNextImageProcessor",)
    layouts: ClassVar[tuple[str, ...]] = (MODEL, PAPER)
    model_pinpoints: ClassVar[Sequence[Sequence[int]]] = PINPOINTS
    defaults: ClassVar[Mapping[str, Any]] = {
        "do_resize": True,
        "size": {"shortest_edge": 224},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": (0.48145466, 0.4578275, 0.40821073),
        "image_std": (0.26862954, 0.26130258, 0.27577711),
        "do_pad": True,
        "image_grid_pinpoints": PINPOINTS,
    }
