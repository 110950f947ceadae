"""The lowering of a build's graphs: the backend's choice, the request's changes, and the engines' limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from trtprune.arguments import arg
from trtprune.compiler.engine_options import ATTENTION_FORMS
from trtprune.errors import BuildError

if TYPE_CHECKING:
    from trtprune.compiler.engine_plan import Target
    from trtprune.compiler.request import BuildRequest
    from trtprune.graph import Lowering

__all__ = ["choose_lowering"]


def choose_lowering(request: BuildRequest, target: Target | None) -> Lowering:
    """The forms of all operations.

    Args:
        request: Backend, provider and ``lowering``, the changes to their choice.
        target: Library and GPUs of the engines; None without engines.

    Raises:
        BuildError: for an unknown form, or one that the engines cannot have.
    """
    from trtprune.graph import Lowering

    # The fast forms on a GPU and in OpenVINO differ from those of ONNX Runtime's CPU kernels.
    graphs_alone = request.backend == "onnxruntime" and request.provider != "cpu"
    lowering = Lowering.for_backend(request.provider if graphs_alone else request.backend)
    lowering = replace(lowering, **_changes(request))
    if target is not None:
        lowering = _for_engines(lowering, request.backend, target.names, request.compute_dtype)
    return lowering


def _changes(request: BuildRequest) -> dict[str, Any]:
    from trtprune.graph.lowering import FORMS

    forms: dict[str, Any] = dict(request.lowering or {})
    for name, form in forms.items():
        if form not in FORMS.get(name, ()):
            spellings = ", ".join(f"{field}={'|'.join(values)}" for field, values in sorted(FORMS.items()))
            raise BuildError(f"{arg('lowering', {name: form})}: unknown", hint=spellings)
    if request.backend != "onnxruntime":
        by_attention = ATTENTION_FORMS[request.backend]
        form = by_attention[request.engine_options.attention]
        if forms.setdefault("attention", form) != form:
            raise BuildError(
                f"{arg('lowering')} attention={forms['attention']}: for engines {arg('attention')} decides this",
                hint=f"{arg('attention')} {'|'.join(by_attention)}",
            )
    activations = "int8" if request.activation_dtype == "int8" else "float"
    if forms.setdefault("activations", activations) != activations:
        raise BuildError(
            f"{arg('lowering')} activations={forms['activations']}: {arg('activation_dtype')} decides this",
            hint=f"{arg('activation_dtype')} float32 or int8",
        )
    return forms


def _for_engines(lowering: Lowering, backend: str, targets: Sequence[str], dtype: str) -> Lowering:
    if lowering.cache != "op":
        raise BuildError(
            f"{arg('lowering', {'cache': lowering.cache})}: only TensorScatter becomes a cache that TensorRT "
            "updates in place",
            hint="leave it out",
        )
    if backend != "tensorrt-rtx":
        return lowering
    if lowering.vision_attention == "op-float32" and dtype != "float32":
        raise BuildError(
            f"{arg('lowering', {'vision_attention': 'op-float32'})}: TensorRT-RTX has no such attention kernel",
            hint=arg("lowering", {"vision_attention": "primitives-float32"}),
        )
    return replace(lowering, products="primitives") if "sm75" in targets else lowering
