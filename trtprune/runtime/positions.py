"""Position rules: from a prompt's text and kept visual tokens to the positions that the decoder reads.

``config.positions`` names the rule and the number of axes of a position:

* One axis: a position is a number, and the tokens of a prompt are numbered 0, 1, 2 ….
* Three axes, time, row and column (M-RoPE, https://arxiv.org/abs/2409.12191 §2.1; ``get_rope_index`` of transformers'
  Qwen2.5-VL and Qwen3-VL): a text token has one number on all axes.  An image begins at the running position p, and
  its token in crop t, row r and column c of its grid has (p + t, p + r, p + c).

The rules differ in what the dropped tokens leave behind.  Text behind an image goes on at the largest position so far
plus one, which with three axes is no count of tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from trtprune.errors import EngineDirError

__all__ = ["RULES", "Compact", "ImageTokens", "Original", "Piece", "PositionRule", "Positions", "position_rule"]


@dataclass(frozen=True)
class ImageTokens:
    """The visual tokens of one span that stand in a prompt; an image has one or several.

    Attributes:
        kept: int64 [n], indices of these tokens among the span's N.
        grid: int [N, 3], crop, row and column of each of the N, see
            :attr:`trtprune.runtime.images.TokenPlan.grid`.
    """

    kept: np.ndarray
    grid: np.ndarray


Piece = int | ImageTokens
"""A part of a prompt: a number of text tokens, or a span of an image."""


@dataclass(frozen=True)
class Positions:
    """The positions of a prompt.

    Attributes:
        of_tokens: int64 [axes, S].
        next: The position of the token behind the prompt, the same on all axes.
    """

    of_tokens: np.ndarray
    next: int


def _extent(grid: np.ndarray) -> int:
    """The positions of a whole image with three axes: its most crops, rows or columns."""
    return int(grid.max(initial=-1)) + 1


class PositionRule(ABC):
    """A rule for prompts with images.

    Args:
        axes: Numbers of a position, 1 or 3.
    """

    name: ClassVar[str]
    """The rule's name in ``config.json``."""

    def __init__(self, axes: int) -> None:
        self.axes = axes

    def place(self, pieces: Sequence[Piece]) -> Positions:
        """The positions of the tokens of ``pieces``, in their order.

        Raises:
            EngineDirError: for a visual token without row and column, where positions have them.
        """
        columns, start = [np.zeros((self.axes, 0), np.int64)], 0
        for piece in pieces:
            if isinstance(piece, ImageTokens):
                offsets, length = self._image(piece)
            else:
                offsets, length = np.arange(piece)[None], piece
            columns.append(np.broadcast_to(start + offsets, (self.axes, offsets.shape[1])))
            start += length
        return Positions(np.concatenate(columns, axis=1), start)

    @abstractmethod
    def most(self, kept: int, grid: np.ndarray) -> int:
        """The most positions that an image takes of whose visual tokens ``kept`` are kept, whichever these are.

        Args:
            kept: Their number.
            grid: int [N, 3], see :class:`ImageTokens`.
        """

    @abstractmethod
    def _image(self, image: ImageTokens) -> tuple[np.ndarray, int]:
        """Offsets int64 [axes or 1, n] of an image's tokens to its first position, and the number of positions that
        it takes."""

    @staticmethod
    def _places(image: ImageTokens) -> np.ndarray:
        """Crop, row and column of an image's kept tokens, int64 [3, n]."""
        if len(image.kept) and (image.kept.min() < 0 or image.grid[image.kept].min() < 0):
            raise EngineDirError(
                "a kept visual token has no row and column, which this model's positions consist of",
                hint="build the directory again",
            )
        return image.grid[image.kept].T.astype(np.int64)


class Compact(PositionRule):
    """Dropped tokens leave no gap.

    One axis: all tokens are numbered 0 to S - 1.  Three axes: kept tokens stay at their row and column, and text goes
    on behind the largest kept one (OpenVINO GenAI's ``update_position_ids_3d``).
    """

    name = "compact"

    def most(self, kept: int, grid: np.ndarray) -> int:
        """See :class:`PositionRule`."""
        return kept if self.axes == 1 else _extent(grid)

    def _image(self, image: ImageTokens) -> tuple[np.ndarray, int]:
        offsets = np.arange(len(image.kept))[None] if self.axes == 1 else self._places(image)
        return offsets, int(offsets.max(initial=-1)) + 1


class Original(PositionRule):
    """Every token has the position that it would have if nothing had been dropped."""

    name = "original"

    def most(self, kept: int, grid: np.ndarray) -> int:
        """See :class:`PositionRule`."""
        return len(grid) if self.axes == 1 else _extent(grid)

    def _image(self, image: ImageTokens) -> tuple[np.ndarray, int]:
        if self.axes == 1:
            return image.kept[None], len(image.grid)
        return self._places(image), _extent(image.grid)


RULES: dict[str, type[PositionRule]] = {rule.name: rule for rule in (Compact, Original)}
"""The rules by name."""


def position_rule(name: str, axes: int) -> PositionRule:
    """The rule that a directory names.

    Raises:
        EngineDirError: for an unknown name.
    """
    if name not in RULES:
        raise EngineDirError(f"config.positions.rule: {name!r:.100} is unknown", hint=f"one of {', '.join(RULES)}")
    return RULES[name](axes)
