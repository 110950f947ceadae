"""Questions with known answers: reading them, marking a model's answers, and the uncertainty of the marks.

>>> from trtprune.eval import evaluate
>>> evaluate("out", "easy-vqa", "results", methods="adafv,random", keeps=[192, 64]).figures
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trtprune.eval.evaluation import evaluate

__all__ = ["evaluate"]


def __getattr__(name: str) -> Any:
    # Marks and rows are useful without the runtime: the harness adapter and the data do not need it.
    if name == "evaluate":
        from trtprune.eval.evaluation import evaluate

        return evaluate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
