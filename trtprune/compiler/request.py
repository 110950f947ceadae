"""A build as it is asked for: what ``trtprune.build`` takes, one field for each setting, and what is wrong with it
whatever the model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, TypedDict

from trtprune.arguments import arg
from trtprune.backends.opening import PROVIDERS
from trtprune.compiler.engine_options import EngineOptions, check_options
from trtprune.compiler.weights import check_way
from trtprune.errors import BuildError

__all__ = [
    "BACKENDS",
    "DTYPES",
    "GENERATION_CONFIGS",
    "WEIGHT_DTYPES",
    "BuildRequest",
    "BuildSettings",
]

BACKENDS = ("onnxruntime", "tensorrt", "tensorrt-rtx")
DTYPES = ("float32", "float16", "bfloat16")
DTYPE_ALIASES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
WEIGHT_DTYPES = ("int8", "int4")
GENERATION_CONFIGS = ("checkpoint", "ignore")


class BuildSettings(TypedDict, total=False):
    """The settings of a build that have a default, as keyword arguments; :class:`BuildRequest` says what each is."""

    keep: int | None
    keep_range: tuple[int, int] | None
    method: str
    options: Mapping[str, Any] | None
    positions: str | None
    backend: str
    provider: str
    dtype: str | None
    weight_dtype: str | None
    max_seq_len: int | None
    weights: str
    revision: str | None
    allow_extra_tensors: bool
    lowering: Mapping[str, str] | None
    engine: EngineOptions | None
    clip: str | os.PathLike[str] | None
    generation_config: str
    force: bool
    export_only: bool


@dataclass(frozen=True)
class BuildRequest:
    """What to build, from what, and where to; checked when it is made, as far as no model is needed for that.

    Attributes:
        model: Alias (``"llava-1.5-7b"``, ``"demo"``), hub id, or directory of a transformers checkpoint.
        output: The directory to write; it appears whole or not at all.  Where it is a symbolic link, the folder that
            the link leads to.
        keep: Default budget, visual tokens kept per image (default 64, or all of them for ``none``).
        keep_range: Inclusive limits of the budget at run time (default: 1 to all).
        method: A name from ``trtprune.pruning.names()``.
        options: Options of the method by name; those that are left out have the method's defaults.
        positions: ``"compact"`` or ``"original"`` position ids of the kept tokens (default: the method's own).
        backend: ``"onnxruntime"``, ``"tensorrt"`` or ``"tensorrt-rtx"``.
        provider: What the graphs are written for and run on by default: ``cpu``, ``cuda`` (ONNX Runtime), ``openvino``.
        dtype: Compute dtype (default ``float32``; ``float16`` on ``cuda`` and the TensorRT backends).
        weight_dtype: ``"int8"`` or ``"int4"`` stores the decoder's matrices quantised; None as in the checkpoint.
        max_seq_len: KV capacity in tokens, prompt and answer together (default: what the model's positions allow; of
            engines the longest prompt they serve, and 256 tokens or more for the answer).
        weights: ``"copy"``, ``"link"`` (hard links where possible), or ``"auto"``: reflinks, else copies of up to 4 GB,
            else links, which ``onnx`` refuses to load (``trtprune.compiler.weights``).
        revision: Branch, tag or commit of a hub model (default: its main branch).
        allow_extra_tensors: Warn of tensors that the architecture does not use, instead of refusing the checkpoint.
        lowering: How attention, norm and rotary are written out, over the backend's choice.
        engine: How the TensorRT backends build their engines, and for which GPUs (default: ``EngineOptions()``).
        clip: The CLIP checkpoint that the model's vision tower was taken from, for methods that read CLIP's text;
            alias, hub id or directory.  With another method it is only kept in the build, for ``eval`` and ``bench``.
        generation_config: ``"checkpoint"`` takes the settings of the checkpoint's ``generation_config.json`` as
            defaults of every answer; ``"ignore"`` leaves them out, but for the tokens that end an answer.
        force: Build even if the same build is there, and replace another engine directory at ``output``; one that
            holds other files than those of its build is refused.
        export_only: Write the graphs in the spelling of the backend, and no engines.

    Raises:
        BudgetError: for an unknown method, or an option it does not have.
        BuildError: naming the setting that has no such value, or does not go with another.
    """

    model: str | os.PathLike[str]
    output: str | os.PathLike[str]
    _: KW_ONLY
    keep: int | None = None
    keep_range: tuple[int, int] | None = None
    method: str = "adafv"
    options: Mapping[str, Any] | None = None
    positions: str | None = None
    backend: str = "onnxruntime"
    provider: str = "cpu"
    dtype: str | None = None
    weight_dtype: str | None = None
    max_seq_len: int | None = None
    weights: str = "auto"
    revision: str | None = None
    allow_extra_tensors: bool = False
    lowering: Mapping[str, str] | None = None
    engine: EngineOptions | None = None
    clip: str | os.PathLike[str] | None = None
    generation_config: str = "checkpoint"
    force: bool = False
    export_only: bool = False

    def __post_init__(self) -> None:
        # Imports every method, which the options of the command line have no need of.
        from trtprune import pruning

        check_way(self.weights)
        pruning.get(self.method).validate_options(dict(self.options or {}))
        _check_choice("backend", self.backend, BACKENDS)
        _check_choice("provider", self.provider, PROVIDERS)
        self._check_dtype()
        self._check_weight_dtype()
        if self.generation_config not in GENERATION_CONFIGS:
            raise BuildError(
                f"{arg('generation_config', self.generation_config)}: unknown", hint=" or ".join(GENERATION_CONFIGS)
            )
        check_options(self.engine_options, self.backend, self.export_only)

    @property
    def compute_dtype(self) -> str:
        """What the graphs compute in: one of :data:`DTYPES`."""
        if self.dtype is None:
            return "float16" if self._on_gpu else "float32"
        return DTYPE_ALIASES.get(self.dtype, self.dtype)

    @property
    def engine_options(self) -> EngineOptions:
        """``engine``, or the defaults."""
        return self.engine or EngineOptions()

    @property
    def builds_engines(self) -> bool:
        """Whether TensorRT engines are part of the build."""
        return self.backend != "onnxruntime" and not self.export_only

    @property
    def _on_gpu(self) -> bool:
        return self.backend != "onnxruntime" or self.provider == "cuda"

    def _check_dtype(self) -> None:
        dtype = self.compute_dtype
        _check_choice("dtype", dtype, DTYPES)
        if dtype == "bfloat16" and not self._on_gpu:
            raise BuildError(
                f"{arg('dtype', 'bfloat16')}: ONNX Runtime has no bfloat16 kernels for provider {self.provider}",
                hint=f"{arg('dtype', 'float32')} computes in float32 from the same bfloat16 weights",
            )

    def _check_weight_dtype(self) -> None:
        if self.weight_dtype is None:
            return
        if self.weight_dtype not in WEIGHT_DTYPES:
            raise BuildError(
                f"{arg('weight_dtype', self.weight_dtype)}: unknown",
                hint=f"one of {', '.join(WEIGHT_DTYPES)}; {arg('dtype')} is what the graphs compute in",
            )
        if self.backend == "onnxruntime" and self.compute_dtype == "bfloat16":
            raise BuildError(
                f"{arg('weight_dtype', self.weight_dtype)}: ONNX Runtime dequantises to float32 and float16 only, not "
                "to bfloat16",
                hint=arg("dtype", "float16"),
            )


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise BuildError(f"{arg(name, value)}: unknown", hint=f"one of {', '.join(choices)}")
