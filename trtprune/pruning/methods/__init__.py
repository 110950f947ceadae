"""The pruning methods, one file each; a file's name is its method's."""

from __future__ import annotations

__all__ = ["MODULES"]

MODULES = (
    "none", "random", "uniform", "downsample",
    "fastervlm", "adafv", "zspaprune", "visionzip", "hiprune", "vispruner", "trim",
    "divprune", "cdpruner", "mmtok", "scope", "dart", "mmr",
    "sparsevlm", "fastv", "pyramiddrop",
)  # fmt: skip
"""The files, in the order of the help texts."""
