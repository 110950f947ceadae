"""The model's features of an image, before pruning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trtprune.runtime.images import TokenPlan
from trtprune.tensor_names import CLS_ATTENTION

if TYPE_CHECKING:
    from trtprune.backends.base import Array

__all__ = ["Features"]


@dataclass(frozen=True)
class Features:
    """The outputs of the vision graph for one image.

    They stay in the backend's memory, like everything computed from them.  Calls with images also accept features:
    the vision graph does not run again for them.

    Attributes:
        image: [N, D] in the build's dtype, a row for each visual token.
        plan: What the visual tokens show.
        extras: The other outputs by name, without their batch dimension, such as ``cls_attention`` float32 [N].  Those
            without a row a patch are of the crop that shows the whole image.
        crops: The outputs without a row a patch, with a row for each crop: ``cls_feature`` [crops, D].
    """

    image: Array
    plan: TokenPlan
    extras: Mapping[str, Array] = field(default_factory=dict)
    crops: Mapping[str, Array] = field(default_factory=dict)

    @property
    def cls(self) -> Array | None:
        """``cls_attention``, float32 [N], if the tower has a CLS token."""
        return self.extras.get(CLS_ATTENTION)

    @property
    def visual_tokens(self) -> int:
        """N, the image's visual tokens before pruning."""
        return len(self.image)
