"""The option groups of the command line, and the types of their values; no command, no heavy import."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trtprune._console import log_options

if TYPE_CHECKING:
    from trtprune._engine_options import EngineOptions

__all__ = [
    "ATTENTION",
    "CLIP",
    "ENGINE_DIRECTORY",
    "PATH",
    "KeepRange",
    "KeyValue",
    "build_options",
    "engine_options",
    "run_options",
    "take_engine_options",
]

PATH = click.Path(path_type=Path)


class _EngineDirectory(click.Path):
    """A path, or the hub's ``owner/name``, which ``./owner/name`` is not: a :class:`Path` forgets the difference."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        here = str(value).startswith("./") and not path.exists()
        return Path.cwd() / path if here else path


ENGINE_DIRECTORY = _EngineDirectory()

CLIP = click.option(
    "--clip", metavar="CHECKPOINT", help="For methods that read CLIP's text; see `trtprune build --help`."
)


class KeepRange(click.ParamType):
    """``LOW:HIGH``, both inclusive."""

    name = "low:high"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        try:
            low, high = (int(part) for part in str(value).split(":"))
        except ValueError:
            self.fail(f"{value!r} is not LOW:HIGH, for example 16:576", param, ctx)
        return low, high


class KeyValue(click.ParamType):
    """``KEY=VALUE``."""

    name = "key=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        key, equals, text = str(value).partition("=")
        if not equals or not key:
            self.fail(f"{value!r} is not KEY=VALUE", param, ctx)
        return key, text


class PoolLimit(click.ParamType):
    """``POOL:BYTES`` with K, M or G."""

    name = "pool:bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        from trtprune._engine_options import parse_pool_limit

        try:
            return parse_pool_limit(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def build_options(command: Any) -> Any:
    options = [
        click.option("-m", "--model", required=True, help="Alias (see `trtprune models`), hub id, or local directory."),
        click.option("-o", "--output", type=PATH, required=True, help="The engine directory to write."),
        click.option("--keep", type=int, help="Visual tokens kept per image by default.  [default: 64]"),
        click.option("--keep-range", type=KeepRange(), help="Budgets the build serves.  [default: 1 to all]"),
        click.option("--method", default="adafv", show_default=True, help="See `trtprune methods`."),
        click.option(
            "--option", "options", type=KeyValue(), multiple=True, help="An option of the method; repeatable."
        ),
        click.option("--positions", type=click.Choice(["compact", "original"]), help="Position ids of kept tokens."),
        click.option("--dtype", "--precision", help="float32, float16 or bfloat16.  [default: by provider]"),
        click.option(
            "--weight-dtype",
            type=click.Choice(["int8", "int4"]),
            help="Store the language model's matrices quantised.  [default: as in the checkpoint]",
        ),
        click.option(
            "--provider",
            type=click.Choice(["cpu", "cuda", "openvino"]),
            default="cpu",
            show_default=True,
            help="What to write the graphs for: ONNX Runtime on a CPU or a GPU, or OpenVINO.",
        ),
        click.option(
            "--max-seq-len",
            "--max-kv-cache-capacity",
            type=int,
            help="KV capacity in tokens, prompt and answer.  [default: the model's positions; of engines the longest "
            "prompt and 256]",
        ),
        click.option(
            "--lowering",
            type=KeyValue(),
            multiple=True,
            help="attention|vision_attention|norm|rotary|cache|products=op|primitives (attentions also with -float32), "
            "coverage=every|lazy; repeatable.",
        ),
        click.option(
            "--weights",
            type=click.Choice(["auto", "copy", "link"]),
            default="auto",
            show_default=True,
            help="Copy the checkpoint's weight files, or hard-link them; auto: share their blocks where the file "
            "system can, else copy up to 4 GB, else link.",
        ),
        click.option(
            "--clip",
            metavar="CHECKPOINT",
            help="The CLIP that the model's vision tower was taken from, for methods that read its text (see `trtprune "
            "methods`), such as openai/clip-vit-large-patch14-336.",
        ),
        click.option(
            "--generation-config",
            type=click.Choice(["checkpoint", "ignore"]),
            default="checkpoint",
            show_default=True,
            help="How answers are generated by default: as the checkpoint's generation_config.json says, or greedily.",
        ),
        click.option("--revision", help="Revision of a hub model."),
        click.option(
            "--allow-extra-tensors", is_flag=True, help="Only warn of tensors the architecture has no use for."
        ),
        click.option("--force", is_flag=True, help="Build again, and replace another engine directory at OUTPUT."),
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout."),
    ]
    for option in reversed(options):
        command = option(command)
    return log_options(command)


ATTENTION = click.option(
    "--attention",
    type=click.Choice(["fused", "fp32-boundary", "decomposed"]),
    default="fused",
    show_default=True,
    help="The decoder's attention in engines: TensorRT's kernels, the same in float32, or plain operators.",
)


def engine_options(command: Any) -> Any:
    """The flags of the TensorRT backends; :func:`take_engine_options` gathers them."""
    options = [
        click.option("--max-batch-size", type=int, default=1, show_default=True, help="Engines: rows of a batch."),
        click.option("--max-input-len", type=int, help="Engines: text tokens of a prompt.  [default: 512]"),
        click.option("--max-images", type=int, default=1, show_default=True, help="Engines: pictures of a prompt."),
        ATTENTION,
        click.option(
            "--compute-capability",
            multiple=True,
            metavar="SM,...",
            help="Engines: GPUs to build for, such as sm89,sm120 (TensorRT-RTX only).  [default: the GPU that is here]",
        ),
        click.option("--builder-optimization-level", type=int, help="Engines: 0 (builds quickly) to 5 (runs fast)."),
        click.option("--pool-limit", type=PoolLimit(), multiple=True, help="Engines: workspace:4G; repeatable."),
        click.option("--load-timing-cache", type=PATH, help="TensorRT: kernel timings of an earlier build."),
        click.option("--save-timing-cache", type=PATH, help="TensorRT: where to keep kernel timings."),
        click.option("--version-compatible", is_flag=True, help="TensorRT: engines that later versions load too."),
        click.option(
            "--hardware-compatibility-level",
            type=click.Choice(["none", "ampere_plus", "same_compute_capability"]),
            default="none",
            show_default=True,
            help="TensorRT: other GPUs that load the engines too.",
        ),
        click.option("--weight-streaming", is_flag=True, help="Engines that can keep some weights in host memory."),
        click.option(
            "--profiling-verbosity",
            type=click.Choice(["layer_names_only", "none", "detailed"]),
            default="layer_names_only",
            show_default=True,
            help="Engines: what they say of their layers.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def take_engine_options(arguments: dict[str, Any]) -> EngineOptions:
    """Removes the values of :func:`engine_options` from a command's arguments."""
    from dataclasses import fields

    from trtprune._engine_options import EngineOptions

    values = {f.name: arguments.pop(f.name) for f in fields(EngineOptions) if f.name in arguments}
    if "pool_limit" in values:
        values["pool_limit"] = dict(values["pool_limit"])
    return EngineOptions(**values)


def run_options(command: Any) -> Any:
    options = [
        click.argument("directory", type=ENGINE_DIRECTORY, metavar="OUT"),
        click.option(
            "--provider",
            type=click.Choice(["cpu", "cuda", "openvino"]),
            help="Run in ONNX Runtime on this, or in OpenVINO; of TensorRT engines, the graphs they were built from."
            "  [default: as built]",
        ),
        click.option(
            "--provider-option",
            "provider_options",
            type=KeyValue(),
            multiple=True,
            help="Of the provider: activations=int8|float32 (cpu, openvino), precision=float32|bf16 (openvino); or "
            "TensorRT's: device_id, cuda_graph=on|off, runtime_cache=FILE; repeatable.",
        ),
        click.option("--threads", type=click.IntRange(1), help="CPU threads of the provider.  [default: all cores]"),
        click.option(
            "--verify",
            type=click.Choice(["auto", "none", "fast", "full"]),
            default="auto",
            show_default=True,
            help="How much of the directory to check before use.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return log_options(command)
