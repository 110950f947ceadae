#!/usr/bin/env python3
"""Export a pruner written in torch from the papers' formulas (torch_pruners.py), as one ONNX graph.

    python export_scripts/export_pruner.py --method adafv --model DIR --output pruner.onnx --dtype float32
    python export_scripts/export_pruner.py --method zspaprune --hidden-size 4096 --output pruner.onnx

Inputs ``image_features`` [batch, visual_tokens, D], what the method needs of ``cls_attention`` float32 [batch,
visual_tokens], ``text_embeds`` [batch, text_tokens, D] and ``text_mask`` int64 [batch, text_tokens], and ``keep`` int64
[1]; outputs ``kept_indices`` int64 [batch, keep], ascending, and ``pruned_features`` [batch, keep, D].

It ranks in float64 by comparing all pairs: an oracle for ONNX Runtime, not a graph to deploy with TensorRT.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from export_common import (
    Failure,
    common_options,
    load_config,
    open_session,
    output_path,
    report,
    run,
    run_session,
    torch_dtype,
    write,
)

NAMES = ("adafv", "zspaprune", "fastervlm")
CHOICES = {"mode": ("distinct", "official"), "diversity": ("maxmin", "meansim")}
RANGES = {"temperature": (0.01, 1e4), "quota": (0.0, 0.5), "core_ratio": (0.0, 1.0)}
SIZES = ((1, 24, 5), (2, 9, 1), (3, 40, 7))
"""Batch, visual tokens and text tokens of the check."""


def parse_options(method: str, known: Mapping[str, Any], given: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` texts as the method's options."""
    options: dict[str, Any] = {}
    for text in given:
        name, _, value = text.partition("=")
        if name not in known:
            raise Failure(
                f"--option {text}: method {method} has no option {name!r}", f"it has: {', '.join(known) or 'none'}"
            )
        if name in CHOICES:
            if value not in CHOICES[name]:
                raise Failure(f"--option {text}: not valid", f"one of {', '.join(CHOICES[name])}")
            options[name] = value
            continue
        low, high = RANGES[name]
        try:
            options[name] = float(value)
        except ValueError:
            options[name] = float("nan")
        if not low <= options[name] <= high:
            raise Failure(f"--option {text}: not valid", f"a number from {low:g} to {high:g}")
    return options


def random_inputs(names: Sequence[str], width: int, dtype: Any, sizes: Sequence[int], seed: int) -> dict[str, Any]:
    """Inputs of every kind but ``keep``; the text is padded in all rows but the first."""
    import torch

    batch, tokens, text = sizes
    g = torch.Generator().manual_seed(seed)
    mask = (torch.rand(batch, text, generator=g) < 0.7).long()
    mask[0], mask[:, 0] = 1, 1
    values = {
        "image_features": torch.randn(batch, tokens, width, generator=g).to(dtype),
        "cls_attention": torch.rand(batch, tokens, generator=g),
        "text_embeds": torch.randn(batch, text, width, generator=g).to(dtype),
        "text_mask": mask,
    }
    return {name: values[name] for name in names if name in values}


def write_pruner(module: Any, width: int, dtype: str, path: Any, opset: int) -> None:
    """Export one of :mod:`torch_pruners` for features [.., width]."""
    import torch

    axes = {
        "image_features": {0: "batch", 1: "visual_tokens"},
        "cls_attention": {0: "batch", 1: "visual_tokens"},
        "text_embeds": {0: "batch", 1: "text_tokens"},
        "text_mask": {0: "batch", 1: "text_tokens"},
        "keep": None,
    }
    inputs = random_inputs(module.inputs, width, torch_dtype(dtype), (2, 9, 4), 0) | {"keep": torch.tensor([5])}
    write(
        module.eval(),
        tuple(inputs[name] for name in module.inputs),
        path,
        inputs=module.inputs,
        outputs=["kept_indices", "pruned_features"],
        dynamic_shapes=tuple(axes[name] for name in module.inputs),
        opset=opset,
        shapes={"kept_indices": ["batch", "keep"], "pruned_features": ["batch", "keep", width]},
    )


def _width(arguments: argparse.Namespace, needs_cls: bool) -> int:
    if arguments.model is None:
        return int(arguments.hidden_size)
    config = load_config(arguments.model)
    if needs_cls and config.vision_config.model_type.startswith("siglip"):
        raise Failure(
            f"--method {arguments.method}: needs CLS attention, and {config.vision_config.model_type} has no CLS token",
            "--method zspaprune",
        )
    return int(config.text_config.hidden_size)


def export(arguments: argparse.Namespace) -> None:
    """Write the graph and check it."""
    import torch
    from torch_pruners import METHODS

    path = output_path(arguments.output)
    kind = METHODS[arguments.method]
    module = kind(**parse_options(arguments.method, kind.options, arguments.option))
    width = _width(arguments, "cls_attention" in kind.inputs)
    write_pruner(module, width, arguments.dtype, path, arguments.opset)
    report(path)
    if not arguments.check:
        return
    if arguments.dtype == "bfloat16":
        print("not checked: ONNX Runtime has no bfloat16 kernels on the CPU")
        return
    session = open_session(path)
    for seed, sizes in enumerate(SIZES):
        inputs = random_inputs(kind.inputs, width, torch_dtype(arguments.dtype), sizes, seed)
        for keep in sorted({1, sizes[1] // 3, sizes[1]}):
            feed = {**inputs, "keep": torch.tensor([keep])}
            with torch.no_grad():
                expected = module(*(feed[name] for name in kind.inputs))
            found = run_session(session, feed)
            for name, want in zip(("kept_indices", "pruned_features"), expected, strict=True):
                if found[name].shape != tuple(want.shape) or (found[name] != want.numpy()).any():
                    raise Failure(f"check failed: {name} differs from torch, keep {keep} of {sizes[1]}")
    print(f"check kept_indices: equal to torch's, {len(SIZES)} inputs, keep 1 to all: ok")


def _width_of(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1 << 20:
        raise argparse.ArgumentTypeError(f"{text!r} is not a width, for example 4096")
    return int(text)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--method", choices=NAMES, default="adafv", help="[%(default)s]")
    size = p.add_mutually_exclusive_group(required=True)
    size.add_argument("-m", "--model", help="LLaVA checkpoint to take the width from: a directory, or a hub id")
    size.add_argument("--hidden-size", type=_width_of, metavar="D", help="width of the features")
    p.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="of the method; repeatable")
    common_options(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    return run(export, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
