"""The one-crop image processor under the names that the runtime asks for: an image to one array, and where it lies.

What is done to an image is in :mod:`trtprune.runtime.images`; reading files is in ``pictures``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trtprune.runtime.images.base import CropShape
from trtprune.runtime.images.settings import processor_section
from trtprune.runtime.images.single import Single
from trtprune.runtime.images.steps import Geometry

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

__all__ = ["Geometry", "Preprocessor"]


@dataclass(frozen=True)
class Preprocessor:
    """One model's image processor; make it with :meth:`from_config`."""

    single: Single

    @classmethod
    def from_files(cls, files: Mapping[str, str], image_size: tuple[int, int]) -> Preprocessor:
        """Reads the image processor's settings out of a checkpoint's text files, content by name.

        Raises:
            EngineDirError: as :meth:`from_config`, or if there are none.
        """
        settings, where = processor_section(files)
        return cls.from_config(settings, image_size, where)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], image_size: tuple[int, int], where: str = "") -> Preprocessor:
        """Reads the content of ``preprocessor_config.json``.

        Args:
            config: The parsed file.
            image_size: (height, width) of the vision graph's input.
            where: File name for errors.

        Raises:
            EngineDirError: for a processor that is not supported, or settings that do not lead to ``image_size``.
        """
        shape = CropShape(*image_size, patch=image_size)  # patches do not matter here
        return cls(Single.from_settings({**config, **shape.settings()}, where))

    def pixels_taken(self, width: int, height: int) -> int:
        """Pixels of the largest picture on the way from (width, height) to the model's input."""
        return self.single.pixels_taken(width, height)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """``pixel_values`` of one RGB image: float32 [3, H, W].

        Raises:
            InputError: if the processor does not bring this picture to the size the vision graph takes.
        """
        pixels: np.ndarray = self.single.prepare(image).pixel_values[0]
        return pixels

    def geometry(self, image: Image.Image) -> Geometry:
        """Where the model's input lies in ``image``; parts of it may lie outside (padding)."""
        return self.single.geometry(image.height, image.width)
