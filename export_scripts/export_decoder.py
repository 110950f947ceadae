#!/usr/bin/env python3
"""Export the language model of a LLaVA checkpoint, straight from transformers.

    python export_scripts/export_decoder.py --model DIR --output decoder.onnx --dtype float32

Inputs ``inputs_embeds`` [batch, sequence, D], ``position_ids`` int64 [batch, sequence], ``attention_mask`` int64
[batch, past + sequence] (1 = a token, 0 = padding), and per layer ``past_key_values.{i}.key|value``
[batch, Hkv, past, head_dim]; outputs ``logits`` float32 [batch, sequence, V] and ``present.{i}.key|value``
[batch, Hkv, past + sequence, head_dim].  One graph serves prefill (past = 0) and decode (sequence = 1).

The cache grows by concatenation here, as in transformers; the decoder that trtprune builds writes into a cache of
fixed capacity instead.  Both give the same logits.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from export_common import (
    Failure,
    check,
    common_options,
    load_config,
    load_model,
    open_session,
    output_path,
    report,
    run,
    run_session,
    tolerance,
    torch_dtype,
    write,
)

PREFILL, STEPS = 11, 3
"""Tokens of the check."""


def cache_names(layers: int, prefix: str) -> list[str]:
    """``past_key_values.0.key``, ``past_key_values.0.value``, …"""
    return [f"{prefix}.{i}.{name}" for i in range(layers) for name in ("key", "value")]


def decoder_module(model: Any) -> Any:
    """The module to export: decoder layers, final norm and output projection over an explicit cache."""
    import torch
    import transformers

    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.head = model.model.language_model, model.lm_head

        def forward(
            self, inputs_embeds: Any, position_ids: Any, attention_mask: Any, past: list[tuple[Any, Any]]
        ) -> tuple[Any, list[Any]]:
            # A cache made without a config keeps every token, also where a layer's window sees only the last ones.
            cache = transformers.DynamicCache()
            for i, (key, value) in enumerate(past):
                cache.update(key, value, i)
            out = self.layers(
                inputs_embeds=inputs_embeds,
                position_ids=position_ids,
                # Without a mask transformers would read gaps between positions as packed sequences.
                attention_mask=attention_mask,
                past_key_values=cache,
                use_cache=True,
            )
            present = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
            return self.head(out.last_hidden_state).float(), present

    return Decoder().eval()


def _check_rope(config: Any, model: str) -> None:
    rope = getattr(config.text_config, "rope_parameters", None) or {}
    kinds = (
        {rope.get("rope_type")}
        if "rope_type" in rope
        else {r.get("rope_type") for r in rope.values() if isinstance(r, dict)}
    )
    for kind in kinds & {"dynamic", "longrope"}:
        raise Failure(
            f"--model {model}: rope_type {kind!r} picks its frequencies in Python, torch cannot export that",
            "trtprune build writes this decoder itself",
        )


def export(arguments: argparse.Namespace) -> None:
    """Write the graph and check it."""
    import torch

    path = output_path(arguments.output)
    _check_rope(load_config(arguments.model), arguments.model)
    model = load_model(arguments.model, arguments.dtype, part="decoder", attention="sdpa")
    module, dtype, text = decoder_module(model), torch_dtype(arguments.dtype), model.config.text_config
    count, heads = text.num_hidden_layers, text.num_key_value_heads
    dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads

    def inputs(batch: int, sequence: int, past: int) -> tuple[Any, ...]:
        return (
            torch.randn(batch, sequence, text.hidden_size, dtype=dtype),
            (past + torch.arange(sequence)).expand(batch, sequence),
            torch.ones(batch, past + sequence, dtype=torch.int64),
            [tuple(torch.randn(batch, heads, past, dim, dtype=dtype) for _ in "kv") for _ in range(count)],
        )

    cache_axes = {0: "batch", 2: "past"}
    cache_shape = ["batch", heads, "past + sequence", dim]
    present = cache_names(count, "present")
    write(
        module,
        inputs(2, 5, 7),
        path,
        inputs=["inputs_embeds", "position_ids", "attention_mask", *cache_names(count, "past_key_values")],
        outputs=["logits", *present],
        dynamic_shapes=(
            {0: "batch", 1: "sequence"},
            {0: "batch", 1: "sequence"},
            {0: "batch", 1: "past + sequence"},
            [(cache_axes, cache_axes)] * count,
        ),
        opset=arguments.opset,
        shapes=dict.fromkeys(present, cache_shape),
    )
    report(path)
    if not arguments.check:
        return
    if arguments.dtype == "bfloat16":
        print("not checked: ONNX Runtime has no bfloat16 kernels on the CPU")
        return
    _check(open_session(path), model, tolerance(arguments))


def _check(session: Any, model: Any, limit: float) -> None:
    """A prefill and single steps through the graph's cache, against transformers in one pass without a cache."""
    import torch

    text, total, batch = model.config.text_config, PREFILL + STEPS, 2
    generator = torch.Generator().manual_seed(0)
    table = model.get_input_embeddings().weight
    tokens = torch.randint(0, len(table), (batch, total), generator=generator)
    embeds = table[tokens].detach()
    mask = torch.ones(batch, total, dtype=torch.int64)
    with torch.no_grad():
        expected = model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).logits.float()
    names = cache_names(text.num_hidden_layers, "past_key_values")
    heads = text.num_key_value_heads
    dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    cache = {name: torch.zeros(batch, heads, 0, dim, dtype=model.dtype) for name in names}
    start = 0
    for stop in (PREFILL, *range(PREFILL + 1, total + 1)):
        found = run_session(
            session,
            {
                "inputs_embeds": embeds[:, start:stop],
                "position_ids": torch.arange(start, stop).expand(batch, -1),
                "attention_mask": mask[:, :stop],
                **cache,
            },
        )
        what = "prefill" if start == 0 else f"step {stop - PREFILL}"
        check(f"logits, {what}", found["logits"], expected[:, start:stop], limit)
        cache = {name: torch.from_numpy(found[name.replace("past_key_values", "present")]) for name in names}
        start = stop


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "-m", "--model", required=True, help="LLaVA checkpoint: a directory in transformers' layout, or a hub id"
    )
    common_options(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    return run(export, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
