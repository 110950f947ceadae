"""Visual-token pruning methods: one file per method, NumPy reference and graph builder side by side.

    >>> import trtprune
    >>> trtprune.pruning.get("adafv").reference(image_features, cls_attention=cls, text_embeds=text, keep=64)

Importing this package imports neither NumPy nor ONNX, and a method only when it is used.
"""

from __future__ import annotations

from trtprune.pruning.base import BaseMethod, BuildContext, LayerAccess
from trtprune.pruning.in_llm import InLlmMethod
from trtprune.pruning.method import Method
from trtprune.pruning.options import TEXT_SPANS, Option
from trtprune.pruning.registry import all_methods, get, names, register

__all__ = [
    "TEXT_SPANS",
    "BaseMethod",
    "BuildContext",
    "InLlmMethod",
    "LayerAccess",
    "Method",
    "Option",
    "all_methods",
    "get",
    "names",
    "register",
]
