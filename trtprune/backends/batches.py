"""The largest batches of a run, for the runtime and for the engines' profiles."""

from __future__ import annotations

__all__ = ["TEXT_BATCH", "VISION_BATCH"]

VISION_BATCH = 8
"""The largest number of crops in one vision run: more needs more memory for activations and is not faster."""

TEXT_BATCH = 8
"""The largest number of segments in one run of CLIP's text tower: a question has one, and a text of many pages must
not take memory for all of them at once."""
