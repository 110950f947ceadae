"""The options of ``trtprune build`` and ``export``, and the types of their values; no command, no heavy import."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from trtprune.backends.opening import PROVIDERS
from trtprune.cli.flags import Gathered, Options, option
from trtprune.cli.options import CLIP, MODEL, OUTPUT, PATH, PRUNING, KeyValue, as_dict
from trtprune.compiler.engine_options import (
    ATTENTION_FORMS,
    HARDWARE_COMPATIBILITY,
    VERBOSITIES,
    EngineOptions,
    parse_pool_limit,
)
from trtprune.compiler.request import (
    ACTIVATION_DTYPES,
    BACKENDS,
    GENERATION_CONFIGS,
    LAYOUTS,
    NEWLINES,
    WEIGHT_DTYPES,
    BuildRequest,
)
from trtprune.compiler.weights import WAYS
from trtprune.engine_dir import POSITIONS

__all__ = ["build_request", "export_request"]

GRAPHS = "Graphs"
ENGINES, TENSORRT = "Engines of TensorRT and TensorRT-RTX", "Engines of TensorRT alone"


class KeepRange(click.ParamType):
    """``LOW:HIGH``, both inclusive."""

    name = "low:high"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        try:
            low, high = (int(part) for part in str(value).split(":"))
        except ValueError:
            self.fail(f"{value!r} is not LOW:HIGH, for example 16:576", param, ctx)
        return low, high


class PoolLimit(click.ParamType):
    """``POOL:BYTES`` with K, M or G."""

    name = "pool:bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        try:
            return parse_pool_limit(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


_SETTINGS: Options = (
    option(
        "-m",
        "--model",
        aliases=["--checkpoint"],
        required=True,
        group=MODEL,
        help="An alias (see `trtprune models`), a hub id, or a local directory.",
    ),
    option("--revision", group=MODEL, help="The branch, tag or commit of a hub model."),
    CLIP,
    option(
        "--weights",
        type=click.Choice(WAYS),
        default="auto",
        show_default=True,
        group=MODEL,
        help="What becomes of the checkpoint's weight files: copied, or hard-linked; with auto they share their "
        "blocks where the file system can, else are copied up to 4 GB, else linked.",
    ),
    option(
        "--generation-config",
        type=click.Choice(GENERATION_CONFIGS),
        default="checkpoint",
        show_default=True,
        group=MODEL,
        help="The settings that answers are generated with by default: those of the checkpoint's "
        "generation_config.json, or none, which is greedily.",
    ),
    option(
        "--weight-dtype",
        type=click.Choice(WEIGHT_DTYPES),
        group=MODEL,
        help="The type that the language model's matrices are quantised to.  [default: as in the checkpoint]",
    ),
    option(
        "--activation-dtype",
        type=click.Choice(ACTIVATION_DTYPES),
        default="float32",
        show_default=True,
        group=MODEL,
        help="What int8 matrices are multiplied with in ONNX Runtime on a CPU.  int8: features rounded row by row, "
        "for the fastest prompts.  float32: features as they are, which the kernel rounds in blocks, for the fastest "
        "answers.",
    ),
    option(
        "--calibration",
        type=PATH,
        metavar="FILE",
        group=MODEL,
        help="Requests with pictures, as of run --requests, that show --activation-dtype int8 how large features get.  "
        "[default: a few built-in ones]",
    ),
    option(
        "--allow-extra-tensors",
        is_flag=True,
        group=MODEL,
        help="Warn of tensors that the architecture does not use, instead of refusing the checkpoint.",
    ),
    option(
        "--method",
        aliases=["--methods"],
        default="adafv",
        show_default=True,
        group=PRUNING,
        help="The pruning method; `trtprune methods` lists them.",
    ),
    option(
        "--option",
        "options",
        type=KeyValue(),
        multiple=True,
        callback=as_dict,
        group=PRUNING,
        help="An option of the method; repeatable.",
    ),
    option(
        "--keep",
        type=int,
        metavar="N",
        group=PRUNING,
        help="The number of visual tokens kept per image where a run names none.  [default: 64]",
    ),
    option(
        "--keep-range",
        type=KeepRange(),
        group=PRUNING,
        help="The budgets that runs may ask for, both ends included.  [default: 1 to all]",
    ),
    option(
        "--positions",
        type=click.Choice(POSITIONS),
        group=PRUNING,
        help="The position ids of kept tokens: renumbered, or those of the whole image.  [default: the method's]",
    ),
    option(
        "--layout",
        type=click.Choice(LAYOUTS),
        group=PRUNING,
        help="The visual tokens of an image of several crops: as the model has them, or as in papers, without "
        "unpadding and newline tokens.  [default: model]",
    ),
    option(
        "--newlines",
        type=click.Choice(NEWLINES),
        group=PRUNING,
        help="What happens to the newline tokens of a pruned image: all are dropped, those of lines with a kept "
        "token are kept beside the budget, or the method chooses among them, too (divprune's own code on LLaVA-NeXT).  "
        "[default: drop]",
    ),
    option(
        "--min-image-pixels",
        type=int,
        metavar="N",
        group=PRUNING,
        help="The fewest pixels that an image is scaled to, in a model that keeps its shape.  [default: the "
        "checkpoint's]",
    ),
    option(
        "--max-image-pixels",
        type=int,
        metavar="N",
        group=PRUNING,
        help="The most pixels that an image is scaled to, in a model that keeps its shape: a bound of its visual "
        "tokens, and of what engines must serve.  [default: the checkpoint's]",
    ),
    option(
        "--provider",
        type=click.Choice(PROVIDERS),
        default="cpu",
        show_default=True,
        group=GRAPHS,
        help="What the graphs are written for: ONNX Runtime on a CPU or a GPU, or OpenVINO.",
    ),
    option(
        "--dtype",
        "--precision",
        group=GRAPHS,
        help="The type that is computed in: float32, float16 or bfloat16.  [default: by provider]",
    ),
    option(
        "--max-seq-len",
        "--max-kv-cache-capacity",
        type=int,
        metavar="N",
        group=GRAPHS,
        help="The capacity of the KV cache in tokens, of prompt and answer.  [default: the model's positions; "
        "of engines the longest prompt and 256]",
    ),
    option(
        "--lowering",
        type=KeyValue(),
        multiple=True,
        callback=as_dict,
        group=GRAPHS,
        help="How an operation is written out: attention, vision_attention, norm, rotary, cache or products = op "
        "or primitives (attentions also with -float32), coverage = every or lazy, loop_order = sort or "
        "count; repeatable.",
    ),
    option("-o", "--output", type=PATH, required=True, group=OUTPUT, help="The engine directory to write."),
    option(
        "--force",
        is_flag=True,
        group=OUTPUT,
        help="Build even if OUTPUT is up to date, and replace another engine directory there.",
    ),
)


_ATTENTION = option(
    "--attention",
    type=click.Choice(list(ATTENTION_FORMS["tensorrt"])),
    default="fused",
    show_default=True,
    group=GRAPHS,
    help="The form of the decoder's attention for engines: TensorRT's kernels, these in float32, or plain operators.",
)

_ENGINE: Options = (
    _ATTENTION,
    option(
        "--max-batch-size",
        type=int,
        metavar="N",
        default=1,
        show_default=True,
        group=ENGINES,
        help="The largest number of rows in a batch.",
    ),
    option(
        "--max-input-len",
        type=int,
        metavar="N",
        group=ENGINES,
        help="The largest number of text tokens in a prompt.  [default: 512]",
    ),
    option(
        "--max-images",
        type=int,
        metavar="N",
        default=1,
        show_default=True,
        group=ENGINES,
        help="The largest number of pictures in a prompt.",
    ),
    option(
        "--compute-capability",
        multiple=True,
        metavar="SM,...",
        group=ENGINES,
        help="The GPUs to build for, such as sm89,sm120 (TensorRT-RTX only).  [default: the GPU that is here]",
    ),
    option(
        "--builder-optimization-level",
        type=int,
        metavar="0-5",
        group=ENGINES,
        help="How long TensorRT looks for fast kernels, from 0 (builds quickly) to 5 (runs fast).",
    ),
    option(
        "--pool-limit",
        type=PoolLimit(),
        multiple=True,
        callback=as_dict,
        group=ENGINES,
        help="The most memory that a pool of the builder may take, such as workspace:4G; repeatable.",
    ),
    option(
        "--weight-streaming",
        is_flag=True,
        group=ENGINES,
        help="Build engines that can keep a part of their weights in host memory.",
    ),
    option(
        "--profiling-verbosity",
        type=click.Choice(VERBOSITIES),
        default="layer_names_only",
        show_default=True,
        group=ENGINES,
        help="How much the engines tell profilers about their layers.",
    ),
    option("--load-timing-cache", type=PATH, group=TENSORRT, help="The kernel timings of an earlier build."),
    option("--save-timing-cache", type=PATH, group=TENSORRT, help="The file to write kernel timings to."),
    option("--version-compatible", is_flag=True, group=TENSORRT, help="Build engines that later versions load too."),
    option(
        "--hardware-compatibility-level",
        type=click.Choice(HARDWARE_COMPATIBILITY),
        default="none",
        show_default=True,
        group=TENSORRT,
        help="The other GPUs that load the engines, too.",
    ),
)


def _request(backend_help: str, engine: Options, *, export_only: bool) -> Gathered:
    backend = option(
        "--backend",
        type=click.Choice(BACKENDS),
        default=BACKENDS[0],
        show_default=True,
        group=GRAPHS,
        help=backend_help,
    )
    options: Options = (*_SETTINGS, backend, Gathered("engine", EngineOptions, engine))
    return Gathered("request", partial(BuildRequest, export_only=export_only), options)


build_request = _request(
    "The library that runs the graphs, or the engines built from them.", _ENGINE, export_only=False
)
"""The options of ``trtprune build``, as its argument ``request``."""

export_request = _request(
    "The library whose forms of attention, norm and rotary the graphs use.", (_ATTENTION,), export_only=True
)
"""Those of ``trtprune export``: of engines, only what their graphs have to be like."""
