"""Numerics: an engine directory compared with its own graphs, its checkpoint, another build, or itself unpruned.

    from trtprune.compare import compare
    compare("out", "transformers", layerwise=True).passed

Built on Polygraphy: its Comparator, runners, tolerances and files.  Only the command line imports
this package.
"""

from __future__ import annotations

from trtprune.backends.running import Running
from trtprune.compare.comparing import compare, default_against
from trtprune.compare.draw import Draw
from trtprune.compare.results import Comparison, ComponentResult
from trtprune.compare.settings import CompareSettings, Question
from trtprune.compare.tolerance import Tolerance

__all__ = [
    "CompareSettings",
    "Comparison",
    "ComponentResult",
    "Draw",
    "Question",
    "Running",
    "Tolerance",
    "compare",
    "default_against",
]
