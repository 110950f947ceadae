"""The request of a build: the arguments of ``trtprune.build``, one field each, with all checks that need no model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from trtprune.arguments import arg
from trtprune.backends.opening import PROVIDERS
from trtprune.compiler.engine_options import EngineOptions, check_options
from trtprune.compiler.weights import check_way
from trtprune.errors import BuildError

if TYPE_CHECKING:
    from trtprune.runtime.images import PixelBounds

__all__ = [
    "ACTIVATION_DTYPES",
    "BACKENDS",
    "DTYPES",
    "GENERATION_CONFIGS",
    "LAYOUTS",
    "NEWLINES",
    "WEIGHT_DTYPES",
    "BuildRequest",
    "BuildSettings",
]

BACKENDS = ("onnxruntime", "tensorrt", "tensorrt-rtx")
DTYPES = ("float32", "float16", "bfloat16")
DTYPE_ALIASES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
WEIGHT_DTYPES = ("int8", "int4")
ACTIVATION_DTYPES = ("float32", "int8")
GENERATION_CONFIGS = ("checkpoint", "ignore")
LAYOUTS = ("model", "paper")
NEWLINES = ("drop", "keep", "candidates")


class BuildSettings(TypedDict, total=False):
    """The settings of a build with a default, as keyword arguments; :class:`BuildRequest` describes them."""

    keep: int | None
    keep_range: tuple[int, int] | None
    method: str
    options: Mapping[str, Any] | None
    positions: str | None
    layout: str | None
    newlines: str | None
    min_image_pixels: int | None
    max_image_pixels: int | None
    backend: str
    provider: str
    dtype: str | None
    weight_dtype: str | None
    activation_dtype: str
    calibration: str | os.PathLike[str] | None
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
    """The source, the settings and the place of a build; all checks that need no model are done at its creation.

    Attributes:
        model: Alias (``"llava-1.5-7b"``, ``"demo"``), hub id, or directory of a transformers checkpoint.
        output: The directory to write; it appears completely or not at all.  For a symbolic link, its target.
        keep: Default budget, visual tokens kept per image (default 64, or all of them for ``none``).
        keep_range: Inclusive limits of the budget at run time (default: 1 to all).
        method: A name from ``trtprune.pruning.names()``.
        options: Options of the method by name; the method's defaults for missing ones.
        positions: ``"compact"`` or ``"original"`` position ids of the kept tokens (default: the method's own).
        layout: Layout of an image's visual tokens: ``"model"``, the checkpoint's own, or ``"paper"``, without unpadding
            and newline tokens, for models of several crops an image (default: ``"model"``).
        newlines: What happens to the newline tokens of a pruned image: ``"drop"``, ``"keep"`` those of lines with a
            kept token, beside the budget, or ``"candidates"``: a method that reads nothing of the tower chooses among
            them, too (default: ``"drop"``; a method inside the decoder treats them like the rest).
        min_image_pixels, max_image_pixels: Bounds of the pixels that an image is scaled to, and so of its visual
            tokens, for models that keep its shape; as ``min_pixels`` and ``max_pixels`` of transformers' processors
            (default: the checkpoint's).
        backend: ``"onnxruntime"``, ``"tensorrt"`` or ``"tensorrt-rtx"``.
        provider: Target of the graphs and default of runs: ``cpu``, ``cuda`` (ONNX Runtime), ``openvino``.
        dtype: Compute dtype (default ``float32``; ``float16`` on ``cuda`` and the TensorRT backends).
        weight_dtype: ``"int8"`` or ``"int4"`` for quantised matrices of the decoder; None: as in the checkpoint.
            Matrices that the checkpoint has quantised stay as they are.
        activation_dtype: ``"int8"`` for products of 8-bit integers in ONNX Runtime on a CPU: the features that int8
            matrices of the decoder's layers are multiplied with are rounded to 8 bits, row by row.
        calibration: A file of requests with pictures, as of ``run --requests``, from whose features the build finds the
            scales for ``activation_dtype="int8"``; None: a few built-in requests.
        max_seq_len: KV capacity in tokens, prompt and answer together (default: what the model's positions allow; of
            engines the longest prompt they serve, and 256 tokens or more for the answer).
        weights: ``"copy"``, ``"link"`` (hard links where possible), or ``"auto"``: reflinks, else copies of up to 4 GB,
            else links, which ``onnx`` refuses to load (``trtprune.compiler.weights``).
        revision: Branch, tag or commit of a hub model (default: its main branch).
        allow_extra_tensors: Whether unused tensors only give a warning, instead of refusing the checkpoint.
        lowering: Forms of attention, norm and rotary embedding, instead of the backend's choice.
        engine: Options of the TensorRT backends, and their GPUs (default: ``EngineOptions()``).
        clip: The CLIP checkpoint that the model's vision tower was taken from, for methods that read CLIP's text;
            alias, hub id or directory.  With another method it is only kept in the build, for ``eval`` and ``bench``.
        generation_config: ``"checkpoint"`` takes the settings of the checkpoint's ``generation_config.json`` as
            defaults of every answer; ``"ignore"`` leaves them out, but for the tokens that end an answer.
        force: Whether to build even if the same build exists, and to replace another engine directory at ``output``; a
            directory with other files than those of its build is refused.
        export_only: Whether to write only the backend's graphs, without engines.

    Raises:
        BudgetError: for an unknown method or option.
        BuildError: naming a setting with an invalid value, or two that exclude each other.
    """

    model: str | os.PathLike[str]
    output: str | os.PathLike[str]
    _: KW_ONLY
    keep: int | None = None
    keep_range: tuple[int, int] | None = None
    method: str = "adafv"
    options: Mapping[str, Any] | None = None
    positions: str | None = None
    layout: str | None = None
    newlines: str | None = None
    min_image_pixels: int | None = None
    max_image_pixels: int | None = None
    backend: str = "onnxruntime"
    provider: str = "cpu"
    dtype: str | None = None
    weight_dtype: str | None = None
    activation_dtype: str = "float32"
    calibration: str | os.PathLike[str] | None = None
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
        # Imports every method; the options of the command line do not need that.
        from trtprune import pruning

        check_way(self.weights)
        pruning.get(self.method).validate_options(dict(self.options or {}))
        _check_choice("backend", self.backend, BACKENDS)
        _check_choice("provider", self.provider, PROVIDERS)
        if self.layout is not None:
            _check_choice("layout", self.layout, LAYOUTS)
        if self.newlines is not None:
            _check_choice("newlines", self.newlines, NEWLINES)
        self._check_image_pixels()
        self._check_dtype()
        self._check_weight_dtype()
        self._check_activation_dtype()
        if self.generation_config not in GENERATION_CONFIGS:
            raise BuildError(
                f"{arg('generation_config', self.generation_config)}: unknown", hint=" or ".join(GENERATION_CONFIGS)
            )
        check_options(self.engine_options, self.backend, self.export_only)

    @property
    def compute_dtype(self) -> str:
        """The graphs' compute dtype, one of :data:`DTYPES`."""
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

    @property
    def pixel_bounds(self) -> PixelBounds | None:
        """The bounds of an image's pixels; None without any."""
        from trtprune.runtime.images import PixelBounds

        bounds = PixelBounds(self.min_image_pixels, self.max_image_pixels)
        return bounds if bounds.settings() else None

    def _check_image_pixels(self) -> None:
        low, high = self.min_image_pixels, self.max_image_pixels
        for name, value in (("min_image_pixels", low), ("max_image_pixels", high)):
            if value is not None and value < 1:
                raise BuildError(f"{arg(name, value)}: must be at least 1")
        if low is not None and high is not None and low > high:
            raise BuildError(f"{arg('min_image_pixels', low)}: above {arg('max_image_pixels', high)}")

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

    def _check_activation_dtype(self) -> None:
        _check_choice("activation_dtype", self.activation_dtype, ACTIVATION_DTYPES)
        if self.activation_dtype == "float32":
            if self.calibration is not None:
                raise BuildError(
                    f"{arg('calibration', self.calibration)}: only for {arg('activation_dtype', 'int8')}",
                    hint=f"leave it out, or add {arg('activation_dtype', 'int8')}",
                )
            return
        flag, weights = arg("activation_dtype", self.activation_dtype), arg("weight_dtype", "int8")
        if self.backend != "onnxruntime" or self.provider != "cpu":
            target = self.provider if self.backend == "onnxruntime" else self.backend
            also = ", which rounds activations, too, in blocks" if target == "openvino" else ""
            raise BuildError(
                f"{flag}: products of 8-bit integers are written for ONNX Runtime on a CPU, not for {target}",
                hint=f"leave it out; {weights} alone is the next best there{also}",
            )
        if self.compute_dtype != "float32":
            raise BuildError(
                f"{flag}: sums of 8-bit products do not fit into {self.compute_dtype}", hint=arg("dtype", "float32")
            )
        if self.weight_dtype == "int4":
            raise BuildError(
                f"{flag}: int4 matrices have no such product",
                hint=f"{weights}, or leave {arg('activation_dtype')} out",
            )


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise BuildError(f"{arg(name, value)}: unknown", hint=f"one of {', '.join(choices)}")
