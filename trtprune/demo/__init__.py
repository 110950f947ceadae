"""The demo model: a small vision-language model that needs no model hub.

``assemble`` builds a standard LLaVA checkpoint from two packages and the weights trained for trtprune;
``scenes`` generates the pictures and questions it is tried on.
"""

from __future__ import annotations

from trtprune.demo.assemble import assemble

__all__ = ["assemble"]
