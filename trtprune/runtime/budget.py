"""The budget of an image: how many of its visual tokens are kept."""

from __future__ import annotations

import math
from dataclasses import dataclass

from trtprune.arguments import arg
from trtprune.errors import InputError

__all__ = ["Budget"]


@dataclass(frozen=True)
class Budget:
    """A number of visual tokens to keep of each image, or a share of those it has.

    Attributes:
        keep: The number.
        ratio: The share, above 0 and at most 1, where it is one; ``keep`` does not count then.

    Raises:
        InputError: naming ``--keep-ratio``.
    """

    keep: int
    ratio: float | None = None

    def __post_init__(self) -> None:
        ratio = self.ratio
        if ratio is None:
            return
        number = isinstance(ratio, int | float) and not isinstance(ratio, bool)
        if not number or not math.isfinite(ratio) or not 0 < ratio <= 1:
            raise InputError(
                f"{arg('keep_ratio', ratio)}: must be a number above 0 and at most 1", hint=arg("keep_ratio", 0.25)
            )

    def of(self, visual_tokens: int) -> int:
        """Tokens to keep of an image with ``visual_tokens``; of a share at least 1, halves to the even number."""
        return self.keep if self.ratio is None else max(1, round(self.ratio * visual_tokens))
