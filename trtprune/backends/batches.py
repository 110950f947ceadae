"""The batches of a run, which the runtime cuts its work into and engines are built for."""

from __future__ import annotations

__all__ = ["TEXT_BATCH", "VISION_BATCH"]

VISION_BATCH = 8
"""The largest number of crops in one vision run: more would add memory for activations and no speed."""

TEXT_BATCH = 8
"""The largest number of segments in one run of CLIP's text tower: a question has one, and a text of many pages must
not take memory for all of them at once."""
