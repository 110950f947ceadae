"""Model families: the graphs of a checkpoint, and the tensors that they need.

``get_family(config)`` picks the family from ``config.json``; a new family is one more module here and one more entry in
``_families``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trtprune.checkpoint.advice import for_architecture
from trtprune.checkpoint.aliases import ALIASES
from trtprune.errors import CheckpointError, shown
from trtprune.models.spec import Family, Model, ModelSpec

if TYPE_CHECKING:
    from trtprune.checkpoint import Checkpoint

__all__ = ["ALIASES", "Family", "Model", "ModelSpec", "get_family", "open_model", "supported"]


def _families() -> list[Family]:
    from trtprune.models.llava import LlavaFamily
    from trtprune.models.llava_next import LlavaNextFamily
    from trtprune.models.llava_onevision import LlavaOnevisionFamily

    return [LlavaFamily(), LlavaNextFamily(), LlavaOnevisionFamily()]


def open_model(checkpoint: Checkpoint, layout: str | None = None) -> Model:
    """The checkpoint as a model of its family, parsed once.

    Args:
        checkpoint: The checkpoint.
        layout: Layout of an image's visual tokens; None: the model's own.

    Raises:
        CheckpointError: for an architecture that no family serves, or a part of it that is not supported.
    """
    return get_family(checkpoint.config).open(checkpoint, layout)


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
    supported = "supported: " + ", ".join(family.architecture for family in families)
    advice = for_architecture(config)
    raise CheckpointError(
        f"{problem}, which trtprune does not support", hint=f"{advice}; {supported}" if advice else supported
    )


def supported() -> list[dict[str, Any]]:
    """The list of ``trtprune models``: a dict per family, plain lists and strings."""
    return [family.describe() for family in _families()]
