"""The folder of what trtprune keeps between two runs; all of it can be deleted at any time."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_root"]


def cache_root(cache_dir: Path | None = None) -> Path:
    """``cache_dir``, else ``$TRTPRUNE_CACHE``, else ``~/.cache/trtprune``."""
    if cache_dir is not None:
        return Path(cache_dir)
    named = os.environ.get("TRTPRUNE_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "trtprune"
