"""What quantised weights cost and save on a CPU: disk, memory, prefill and decode of a decoder with random weights.

    python benchmarks/bench_weight_dtype.py [--rounds 7] [--threads 1] [--json benchmarks/results/weight-dtype.json]

A process for each form, so that memory can be told apart; one of them works at a time, all in turn each round. Ratios
to the unquantised build are taken round by round. Weights are random: this says nothing about quality.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from _machine import machine, summary

PREFILL, STEPS, CAPACITY = 128, 8, 256
FORMS = {
    "float32": (None, "int8"),
    "int8": ("int8", "int8"),
    "int4": ("int4", "int8"),
    "int8, activations=float32": ("int8", "float32"),
}


def make_checkpoint(folder: Path, hidden: int, layers: int, vocab: int) -> None:
    """A float16 LLaVA with a tiny vision tower."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=64
        ),
        text_config=transformers.LlamaConfig(
            vocab_size=vocab,
            hidden_size=hidden,
            intermediate_size=hidden * 11 // 4,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 64,
            max_position_embeddings=512,
        ),
        image_token_index=5,
    )
    transformers.LlavaForConditionalGeneration(config).half().save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")  # a build asks for one, these measurements do not


def worker(pipe: Connection, out: Path, activations: str, threads: int) -> None:
    """Opens the decoder, says how much memory that took, then times what it is told to."""
    import psutil

    from trtprune.backends.onnxruntime import OrtBackend
    from trtprune.engine_dir import open_engine_dir

    made = open_engine_dir(out, verify="none")
    backend = OrtBackend(threads=threads, options={"activations": activations})
    before = psutil.Process().memory_info().rss
    session = backend.session(made.component("decoder"), made.root)
    cache = session.new_cache(1, CAPACITY)
    rows = np.random.default_rng(0).normal(size=(1, PREFILL, made.model.hidden_size)).astype(np.float32)

    def run(count: int, start: int) -> float:
        inputs = {
            "inputs_embeds": rows[:, :count],
            "position_ids": np.arange(start, start + count)[None, None],
            "write_index": np.array([start]),
            "logits_index": np.array([[count - 1]]),
        }
        began = time.perf_counter()
        session.run(inputs, cache)
        return 1e3 * (time.perf_counter() - began)

    run(PREFILL, 0)
    run(1, PREFILL)
    pipe.send((psutil.Process().memory_info().rss - before) / 1e6)
    while pipe.recv():
        prefill = run(PREFILL, 0)
        pipe.send((prefill, statistics.median(run(1, PREFILL + i) for i in range(STEPS))))


def measure(folder: Path, rounds: int, threads: int) -> dict[str, Any]:
    import trtprune

    context, pipes = mp.get_context("spawn"), {}
    result: dict[str, Any] = {name: {} for name in FORMS}
    for name, (kind, activations) in FORMS.items():
        out = folder / str(kind)
        trtprune.build(folder / "checkpoint", out, method="none", weight_dtype=kind)
        result[name]["disk_mb"] = round(sum(p.stat().st_size for p in (out / "weights").iterdir()) / 1e6, 1)
        pipes[name], theirs = context.Pipe()
        context.Process(target=worker, args=(theirs, out, activations, threads), daemon=True).start()
        result[name]["memory_mb"] = round(pipes[name].recv())
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in FORMS}
    for _ in range(rounds):
        for name, pipe in pipes.items():
            pipe.send(True)
            times[name].append(pipe.recv())
    for pipe in pipes.values():
        pipe.send(False)
    for name, samples in times.items():
        for i, what in enumerate(("prefill_ms", "decode_ms")):
            own = [sample[i] for sample in samples]
            ratios = [base[i] / sample[i] for base, sample in zip(times["float32"], samples, strict=True)]
            result[name][what] = summary(own)
            result[name][what.replace("_ms", "_speedup")] = summary(ratios)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--vocab", type=int, default=8000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        make_checkpoint(Path(name) / "checkpoint", arguments.hidden, arguments.layers, arguments.vocab)
        forms = measure(Path(name), arguments.rounds, arguments.threads)
    settings = {key: value for key, value in vars(arguments).items() if key != "json"}
    for form, values in forms.items():
        print(
            f"{form:<27} {values['disk_mb']:7.1f} MB disk {values['memory_mb']:5d} MB memory   "
            f"prefill {values['prefill_ms']['median']:7.1f} ms ({values['prefill_speedup']['median']:.2f}x)   "
            f"decode {values['decode_ms']['median']:6.1f} ms ({values['decode_speedup']['median']:.2f}x)"
        )
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"machine": machine(), "settings": settings, "forms": forms}, indent=2)
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
