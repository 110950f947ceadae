"""Visual-token pruning methods: one file a method, NumPy reference and graph builder side by side.

    >>> import trtprune
    >>> trtprune.pruning.get("adafv").reference(image_features, cls_attention=cls, text_embeds=text, keep=64)

Importing this package imports neither NumPy nor ONNX.
"""

from __future__ import annotations

import difflib

from trtprune.arguments import arg
from trtprune.errors import BudgetError
from trtprune.pruning.base import TEXT_SPANS, Method, Option
from trtprune.pruning.in_llm import InLlmMethod
from trtprune.pruning.methods.adafv import AdaFv
from trtprune.pruning.methods.cdpruner import CdPruner
from trtprune.pruning.methods.dart import Dart
from trtprune.pruning.methods.divprune import DivPrune
from trtprune.pruning.methods.downsample import Downsample
from trtprune.pruning.methods.fastervlm import FasterVlm
from trtprune.pruning.methods.fastv import FastV
from trtprune.pruning.methods.hiprune import HiPrune
from trtprune.pruning.methods.mmr import Mmr
from trtprune.pruning.methods.mmtok import MmTok
from trtprune.pruning.methods.none import NoPruning
from trtprune.pruning.methods.pyramiddrop import PyramidDrop
from trtprune.pruning.methods.random import RandomTokens
from trtprune.pruning.methods.scope import Scope
from trtprune.pruning.methods.sparsevlm import SparseVlm
from trtprune.pruning.methods.trim import Trim
from trtprune.pruning.methods.uniform import Uniform
from trtprune.pruning.methods.visionzip import VisionZip
from trtprune.pruning.methods.vispruner import VisPruner
from trtprune.pruning.methods.zspaprune import ZspaPrune

__all__ = ["TEXT_SPANS", "InLlmMethod", "Method", "Option", "all_methods", "get", "names"]

_METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        NoPruning(),
        RandomTokens(),
        Uniform(),
        Downsample(),
        FasterVlm(),
        AdaFv(),
        ZspaPrune(),
        VisionZip(),
        HiPrune(),
        VisPruner(),
        Trim(),
        DivPrune(),
        CdPruner(),
        MmTok(),
        Scope(),
        Dart(),
        Mmr(),
        SparseVlm(),
        FastV(),
        PyramidDrop(),
    )
}


def names(*, inside: bool | None = None) -> list[str]:
    """The methods' names, in the order of the help texts.

    Args:
        inside: True: only methods that prune inside the decoder; False: only others.
    """
    return [name for name, m in _METHODS.items() if inside is None or isinstance(m, InLlmMethod) == inside]


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
    raise BudgetError(f"{arg('method', name)}: unknown method", hint=f"{hint}available: {', '.join(_METHODS)}")
