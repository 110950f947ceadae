"""Pictures of what a pruning method kept.

picture = overlay(image, result.kept_indices[0], patch_grid=(24, 24), geometry=view.geometry)
picture = overlay_crops(image, result.kept_indices[0], view.features.plan)  # of an image of several crops
panels(image, [[picture, …], …], caption=prompt).save("kept.png")  # rows are methods, columns are budgets
"""

from __future__ import annotations

from trtprune.show.crops import overlay_crops
from trtprune.show.overlay import Geometry, overlay
from trtprune.show.panels import caption_for, panels

__all__ = ["Geometry", "caption_for", "overlay", "overlay_crops", "panels"]
