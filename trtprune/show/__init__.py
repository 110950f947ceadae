"""Pictures of what a pruning method kept.

picture = overlay(image, result.kept_indices, patch_grid=(24, 24), geometry=view.geometry)
panels(image, [[picture, …], …], caption=prompt).save("kept.png")  # rows are methods, columns are budgets
"""

from __future__ import annotations

from trtprune.show.overlay import Geometry, overlay
from trtprune.show.panels import caption_for, panels

__all__ = ["Geometry", "caption_for", "overlay", "panels"]
