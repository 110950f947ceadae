"""Model families: the graphs of a checkpoint, and the tensors that they need.

``get_family(config)`` picks the family from ``config.json``; a new family is one more module here and one more entry in
``_families``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trtprune.arguments import arg
from trtprune.checkpoint.advice import for_architecture
from trtprune.checkpoint.aliases import ALIASES
from trtprune.checkpoint.quantized import read_scheme
from trtprune.errors import BuildError, CheckpointError, shown
from trtprune.models.spec import BoundedFamily, Family, Model, ModelSpec

if TYPE_CHECKING:
    from trtprune.checkpoint import Checkpoint
    from trtprune.runtime.images import PixelBounds

__all__ = ["ALIASES", "Family", "Model", "ModelSpec", "get_family", "open_model", "supported"]


def _families() -> list[Family]:
    from trtprune.models.internvl import InternVLFamily
    from trtprune.models.llava import LlavaFamily
    from trtprune.models.llava_next import LlavaNextFamily
    from trtprune.models.llava_onevision import LlavaOnevisionFamily
    from trtprune.models.qwen2_5_vl import Qwen25VlFamily
    from trtprune.models.qwen2_vl import Qwen2VlFamily
    from trtprune.models.qwen3_vl import Qwen3VlFamily
    from trtprune.models.smolvlm import Idefics3Family, SmolVLMFamily

    llava = (LlavaFamily(), LlavaNextFamily(), LlavaOnevisionFamily())
    qwen = (Qwen2VlFamily(), Qwen25VlFamily(), Qwen3VlFamily())
    return [*llava, *qwen, SmolVLMFamily(), Idefics3Family(), InternVLFamily()]


def open_model(checkpoint: Checkpoint, layout: str | None = None, bounds: PixelBounds | None = None) -> Model:
    """The checkpoint as a model of its family, parsed once.

    Args:
        checkpoint: The checkpoint.
        layout: Layout of an image's visual tokens; None: the model's own.
        bounds: Bounds of the pixels that images are scaled to; None: the checkpoint's own.

    Raises:
        CheckpointError: for an architecture that no family serves, or a part of it that is not supported.
        BuildError: for bounds of a model whose images all have one size.
    """
    family = get_family(checkpoint.config)
    read_scheme(checkpoint.config)  # here too, as a checkpoint on the hub is judged by its config alone
    if bounds is None:
        return family.open(checkpoint, layout)
    if not isinstance(family, BoundedFamily):
        name = "min_image_pixels" if bounds.most is None else "max_image_pixels"
        raise BuildError(
            f"{arg(name)}: the image processor of this model brings every image or tile to one size",
            hint=f"leave out {arg(name)}",
        )
    return family.open_bounded(checkpoint, layout, bounds)


def get_family(config: Mapping[str, Any]) -> Family:
    """The family of a checkpoint, by ``architectures`` (or ``model_type`` if that is missing).

    Raises:
        CheckpointError: for an architecture that no family serves; the hint lists the supported ones.
    """
    families = _families()
    architectures = config.get("architectures")
    if architectures is None:
        architectures = []
    # Only a list: a string would be searched for the name.
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise CheckpointError(
            f"config.json: architectures is {shown(architectures)}, expected a list of names",
            hint="download config.json again, or correct it",
        )
    for family in families:
        if family.architecture in architectures or (
            not architectures and config.get("model_type") == family.model_type
        ):
            return family
    if architectures:
        problem = f"config.json: architectures is {shown(architectures)}"
    else:
        problem = f"config.json: model_type is {shown(config.get('model_type'))}"
    supported = "supported: " + ", ".join(family.name for family in families)
    advice = for_architecture(config)
    raise CheckpointError(
        f"{problem}, which trtprune does not support", hint=f"{advice}; {supported}" if advice else supported
    )


def supported() -> list[dict[str, Any]]:
    """The list of ``trtprune models``: a dict per family, plain lists and strings."""
    return [family.describe() for family in _families()]
