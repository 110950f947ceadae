"""Visual-token pruning methods: one file a method, NumPy reference and graph builder side by side.

    >>> import trtprune
    >>> trtprune.pruning.get("adafv").reference(image_features, cls_attention=cls, text_embeds=text, keep=64)

Importing this package imports neither NumPy nor ONNX.
"""

from __future__ import annotations

import difflib

from trtprune.errors import BudgetError
from trtprune.pruning.adafv import AdaFv
from trtprune.pruning.base import TEXT_SPANS, Method, Option
from trtprune.pruning.fastervlm import FasterVlm
from trtprune.pruning.none import NoPruning
from trtprune.pruning.random import RandomTokens
from trtprune.pruning.zspaprune import ZspaPrune

__all__ = ["TEXT_SPANS", "Method", "Option", "all_methods", "get", "names"]

_METHODS: dict[str, Method] = {
    method.name: method for method in (NoPruning(), RandomTokens(), FasterVlm(), AdaFv(), ZspaPrune())
}


def names() -> list[str]:
    """The methods' names, in the order of the help texts."""
    return list(_METHODS)


def all_methods() -> list[Method]:
    """The methods, in the order of :func:`names`."""
    return list(_METHODS.values())


def get(name: str) -> Method:
    """The method called ``name``.

    Raises:
        BudgetError: if there is none; the hint lists the names.
    """
    if name in _METHODS:
        return _METHODS[name]
    close = difflib.get_close_matches(name, _METHODS, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise BudgetError(f"--method {name}: unknown method", hint=f"{hint}available: {', '.join(_METHODS)}")
