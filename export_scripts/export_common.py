"""What the export scripts share: reading a checkpoint through transformers, writing a graph, checking it.

Nothing here or in the scripts imports trtprune: these graphs are a second opinion on the ones trtprune builds, so they
come from transformers, torch and the papers alone.  torch is imported inside functions, so that ``--help`` and the
errors about arguments need nothing installed.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "DTYPES",
    "Failure",
    "check",
    "common_options",
    "load_config",
    "load_model",
    "open_session",
    "output_path",
    "report",
    "run",
    "run_session",
    "tolerance",
    "torch_dtype",
    "write",
]

DTYPES = ("float32", "float16", "bfloat16")
MIN_OPSET = 23
"""The first with Attention, RotaryEmbedding and RMSNormalization."""
MAX_OPSET = 25
"""The last that torch 2.13 converts to."""
TORCH_HINT = "pip install 'trtprune[torch]'"

# Largest difference accepted between ONNX Runtime and torch on numbers of size 1.
TOLERANCE = {"float32": 1e-4, "float16": 3e-2}


class Failure(Exception):
    """An expected failure: one line naming what is at fault, and what to change.

    Args:
        message: One line naming the file or argument.
        hint: What the user can change.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


def run(
    export: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> int:
    """Parse, export, and turn a :class:`Failure` into one line on stderr.

    Returns:
        The exit code: 0, or 1 after an expected failure.  Wrong usage exits with 2, as argparse does.
    """
    arguments = parser.parse_args(argv)
    try:
        _require("torch", "transformers", "onnx", "onnxscript", *(["onnxruntime"] if arguments.check else []))
        _quiet()
        export(arguments)
    except Failure as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint:  {error.hint}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our lines (head, less) has gone; that is its right
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def common_options(parser: argparse.ArgumentParser) -> None:
    """``--output``, ``--dtype``, ``--opset``, ``--check``, ``--tolerance``."""
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.onnx", help="the graph to write")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of weights and activations [%(default)s]")
    parser.add_argument(
        "--opset",
        type=int,
        default=MIN_OPSET,
        choices=range(MIN_OPSET, MAX_OPSET + 1),
        metavar=f"{MIN_OPSET}..{MAX_OPSET}",
        help="ONNX opset [%(default)s]",
    )
    parser.add_argument(
        "--check",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="run the written graph in ONNX Runtime (CPU) and compare it with torch [on]",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        help=f"largest absolute difference of the check [{TOLERANCE['float32']:g}; float16: {TOLERANCE['float16']:g}]",
    )


def tolerance(arguments: argparse.Namespace) -> float:
    """``--tolerance``, or what suits the dtype."""
    if arguments.tolerance is not None:
        return float(arguments.tolerance)
    return TOLERANCE.get(arguments.dtype, TOLERANCE["float16"])


def _require(*packages: str) -> None:
    import importlib

    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError:
            hint = {"onnxruntime": "pip install 'trtprune[cpu]', or --no-check"}.get(package, TORCH_HINT)
            raise Failure(f"{package} is not installed", hint) from None


def _quiet() -> None:
    """Only our own lines: both libraries report progress and internals on stderr."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)


def output_path(path: Path) -> Path:
    """Refuse a path that cannot be written before minutes are spent on the export."""
    if path.is_dir():
        raise Failure(f"--output {path}: is a directory", "name the file, for example vision.onnx")
    if not path.parent.is_dir():
        raise Failure(f"--output {path}: no such directory: {path.parent}", "make it first")
    if not os.access(path.parent, os.W_OK):
        raise Failure(f"--output {path}: {path.parent} is not writable", "choose another directory")
    return path


# -- checkpoints ------------------------------------------------------------------------------------------------


def load_config(model: str) -> Any:
    """transformers' configuration of a LLaVA checkpoint.

    Args:
        model: A directory in transformers' layout, or a hub id.

    Raises:
        Failure: for a model that is not there or has another architecture.
    """
    import transformers

    path = Path(model)
    if path.exists():
        if not (path / "config.json").is_file():
            raise Failure(f"--model {model}: has no config.json", "a directory in transformers' layout, or a hub id")
        try:
            kind = json.loads((path / "config.json").read_text(encoding="utf-8")).get("model_type")
        except (OSError, ValueError, AttributeError) as error:
            raise Failure(f"{path / 'config.json'}: cannot be read: {_first_line(error)}") from None
        if kind != "llava":
            raise _unsupported(model, kind)
    elif model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise Failure(f"--model {model}: no such directory", "a directory in transformers' layout, or OWNER/NAME")
    try:
        config = transformers.AutoConfig.from_pretrained(model)
    except Exception as error:  # transformers and the hub raise many kinds
        raise Failure(f"--model {model}: {_first_line(error)}", "a transformers checkpoint of LLaVA") from None
    if config.model_type != "llava":
        raise _unsupported(model, config.model_type)
    return config


def _unsupported(model: str, kind: object) -> Failure:
    return Failure(
        f"--model {model}: model_type {kind!r} is not supported",
        "these scripts read llava (LlavaForConditionalGeneration), with any vision tower and decoder transformers has",
    )


def load_model(model: str, dtype: str, *, part: str, attention: str) -> Any:
    """``LlavaForConditionalGeneration`` in evaluation mode, with one of its two halves left out.

    Args:
        model: As for :func:`load_config`.
        dtype: One of :data:`DTYPES`.
        part: ``"vision"`` or ``"decoder"``; the other half's layers are not loaded, which for a 7B checkpoint is the
            difference between 1 GB and 28 GB.
        attention: transformers' ``attn_implementation``.
    """
    import transformers

    config = load_config(model)
    unused = config.text_config if part == "vision" else config.vision_config
    unused.num_hidden_layers = 0
    if getattr(unused, "layer_types", None) is not None:
        unused.layer_types = []
    try:
        return transformers.LlavaForConditionalGeneration.from_pretrained(
            model, config=config, dtype=torch_dtype(dtype), attn_implementation=attention
        ).eval()
    except Exception as error:
        raise Failure(f"--model {model}: {_first_line(error)}", "is the checkpoint complete?") from None


def torch_dtype(name: str) -> Any:
    import torch

    return getattr(torch, name)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


# -- graphs -----------------------------------------------------------------------------------------------------


def write(
    module: Any,
    example: tuple[Any, ...],
    path: Path,
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    dynamic_shapes: Any,
    opset: int,
    shapes: Mapping[str, Sequence[int | str]] | None = None,
) -> None:
    """Export ``module`` and save it; weights beyond 1.5 GB go to ``FILE.onnx.data`` beside it.

    Args:
        module: In evaluation mode; its ``forward`` takes ``example``.
        example: Inputs; no size that varies may be 0 or 1 in them, torch.export would take it for fixed.
        inputs, outputs: Names in the order of ``forward``, nested inputs flattened.
        dynamic_shapes: As torch.export takes them, with axis names.
        shapes: Shapes of outputs to write into the graph, where torch's own names are expressions.

    Raises:
        Failure: where torch cannot export the module, or the file cannot be written.
    """
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with torch.no_grad():
                program = torch.onnx.export(
                    module,
                    example,
                    dynamo=True,
                    opset_version=opset,
                    input_names=list(inputs),
                    output_names=list(outputs),
                    dynamic_shapes=dynamic_shapes,
                    verbose=False,
                )
        except torch.onnx.OnnxExporterError as error:
            cause = error.__cause__ or error
            raise Failure(f"torch cannot export this model: {_first_line(cause)}") from error
        assert program is not None
        if program.model.opset_imports[""] != opset:  # torch only logs that it could not convert
            raise Failure(f"--opset {opset}: this torch cannot write it", f"--opset {program.model.opset_imports['']}")
        _clean(program.model, shapes or {})
        try:
            program.save(path)
        except OSError as error:
            raise Failure(f"--output {path}: {error.strerror or error}", "choose another file") from None


def _clean(model: Any, shapes: Mapping[str, Sequence[int | str]]) -> None:
    """Drop the exporter's notes (stack traces with this machine's paths) and name the axes of outputs."""
    import onnx_ir as ir

    for graph in (model.graph, *model.functions.values()):
        graph.metadata_props.clear()
        for value in (*graph.inputs, *getattr(graph, "initializers", {}).values()):
            value.metadata_props.clear()
        for node in ir.traversal.RecursiveGraphIterator(graph):
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
    model.metadata_props.clear()
    model.producer_name, model.doc_string = "torch.onnx", None
    for value in model.graph.outputs:
        if value.name in shapes:
            value.shape = ir.Shape(list(shapes[value.name]))


def open_session(path: Path) -> Any:
    """An ONNX Runtime session on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise Failure(
            f"{path}: ONNX Runtime cannot load it: {_first_line(error)}", "--no-check writes it all the same"
        ) from None


def run_session(session: Any, feed: Mapping[str, Any]) -> dict[str, Any]:
    """Outputs by name; torch tensors are taken as they are, inputs the graph does not have are passed over."""
    known = [i.name for i in session.get_inputs()]
    values = session.run(None, {name: feed[name].detach().numpy() for name in known})
    return dict(zip([o.name for o in session.get_outputs()], values, strict=True))


def report(path: Path) -> None:
    """What was written: file, size, operators, inputs and outputs."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    data = path.with_name(path.name + ".data")
    size = path.stat().st_size + (data.stat().st_size if data.exists() else 0)
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    print(f"wrote {path} ({size / 1e6:.1f} MB, opset {opset}, {len(model.graph.node)} nodes)")
    for word, values in (("in", model.graph.input), ("out", model.graph.output)):
        for value in values:
            tensor = value.type.tensor_type
            kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
            shape = ", ".join(d.dim_param or str(d.dim_value) for d in tensor.shape.dim)
            print(f"  {word:<3} {value.name} {kind} [{shape}]")


def check(what: str, actual: Any, expected: Any, limit: float) -> None:
    """Compare an array of ONNX Runtime with a tensor of torch and say how far apart they are.

    Raises:
        Failure: beyond ``limit``, or where shapes differ or something is not finite.
    """
    import numpy as np

    want = expected.detach().double().numpy()
    if actual.shape != want.shape:
        raise Failure(f"check failed: {what} has shape {actual.shape}, torch gives {want.shape}")
    worst = float(np.abs(actual.astype(np.float64) - want).max(initial=0.0))
    if not worst <= limit:  # NaN too
        raise Failure(
            f"check failed: {what} differs from torch by {worst:.2e}, tolerance {limit:g}",
            "the file is written; --tolerance sets what is accepted",
        )
    print(f"check {what}: largest difference {worst:.1e}, tolerance {limit:g}: ok")
