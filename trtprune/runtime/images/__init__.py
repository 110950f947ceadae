"""From an image to the vision graph's arrays and the decoder's visual tokens: one file per processor.

Everything is a pure function of the image's size and of the checkpoint's processor settings, and equal to
transformers' processor for every size.  This package knows no model family: ``config.json`` names the processor and
holds its settings.
"""

from __future__ import annotations

from trtprune.runtime.images.base import CropShape, Prepared, Processor, TokenPlan
from trtprune.runtime.images.packed import PackedShape
from trtprune.runtime.images.registry import PROCESSORS, PixelBounds, processor_from_files, processor_from_settings
from trtprune.runtime.images.settings import PROCESSOR_FILES

__all__ = [
    "PROCESSORS",
    "PROCESSOR_FILES",
    "CropShape",
    "PackedShape",
    "PixelBounds",
    "Prepared",
    "Processor",
    "TokenPlan",
    "processor_from_files",
    "processor_from_settings",
]
