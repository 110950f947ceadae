"""What each method's pruner takes, beside the prefill of the decoder that it prunes for.

    python benchmarks/bench_pruners.py [--keep 192,64,16] [--rounds 21] [--methods divprune,divprune:center=true,…]
        [--json benchmarks/results/pruners.json]

Every method that prunes before the decoder, its graph as a build for the CPU writes it, at the demo model's own number
of tokens and widths. Inputs are the demo model's: a picture's features before and behind the projector, its CLS
attention and the question's embeddings. What that model does not have (CLIP's joint space, keys, the attention of other
layers) is made of the features by fixed random projections. The prefill is that of the same model with as many tokens
kept, its features at hand. In each round all take turns; medians over rounds, and the share is taken round by round.
CLIP's text tower, which ``cdpruner`` and ``trim`` need, is not part of the time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from _machine import machine, summary, write_json
from PIL import Image

import trtprune
from trtprune import pruning
from trtprune.graph import Lowering
from trtprune.pruning.graph import build_pruner
from trtprune.pruning.grids import full_grid
from trtprune.variants import Variant, parse_variants

PROMPT = "What is the color of the small shape below the largest one?"
CENTRED = tuple(f"{name}:center=true" for name in ("zspaprune", "divprune", "cdpruner", "mmtok", "scope", "mmr"))
# Made-up widths of what the demo model lacks: those of LLaVA-1.5's tower.
KEY_WIDTH, CLIP_WIDTH = 64, 768
# Query heads, key heads and their width in the decoder's first layer, which a build computes in the pruner's graph: the
# time of its projections is not in the figure.
HEADS, KEY_HEADS, HEAD_WIDTH = 9, 3, 64


def default_methods() -> list[Variant]:
    """All that choose tokens before the decoder, and the mean-centred forms."""
    return parse_variants(",".join([*(n for n in pruning.names(inside=False) if n != "none"), *CENTRED]))


def pruner_inputs(features: Any, text: np.ndarray) -> dict[str, np.ndarray]:
    """Every array that a pruner can ask for, one image, float32."""
    rng = np.random.default_rng(0)
    image, tower = np.asarray(features.image), np.asarray(features.extras["vision_features"])
    cls = np.asarray(features.extras["cls_attention"])

    def projected(width: int) -> np.ndarray:
        return tower @ rng.standard_normal((tower.shape[1], width)).astype(np.float32) / tower.shape[1] ** 0.5

    found = {
        "image_features": image,
        "cls_attention": cls,
        "vision_features": tower,
        "vision_keys": projected(KEY_WIDTH),
        "cls_feature": image.mean(axis=0),
        "shallow_attention": rng.permutation(cls),
        "deep_attention": np.sqrt(np.maximum(cls, 0)),
        "clip_image_embeds": projected(CLIP_WIDTH),
        "clip_text_embeds": rng.standard_normal((1, CLIP_WIDTH)),
        "text_embeds": text,
        "text_query": rng.standard_normal((HEADS, HEAD_WIDTH)),
        "image_keys": rng.standard_normal((KEY_HEADS, len(image), HEAD_WIDTH)),
    }
    batched = {name: np.ascontiguousarray(array[None], np.float32) for name, array in found.items()}
    one = np.zeros(1, np.int64)
    return {**batched, "text_mask": np.ones((1, len(text)), np.int64), "seed": one}


class Pruner:
    """A method's graph in a session of its own."""

    def __init__(self, variant: Variant, inputs: Mapping[str, np.ndarray], threads: int) -> None:
        tokens, width = inputs["image_features"].shape[1:]
        rows = max(n for n in range(1, tokens + 1) if tokens % n == 0 and n * n <= tokens)
        given = {**inputs, "grid": full_grid(rows, tokens // rows)[None]}
        graph = build_pruner(
            variant.method, width, "float32", Lowering.for_backend("onnxruntime"), dict(variant.options),
            num_tokens=tokens, most_crops=1,
            widths={"C": inputs["vision_features"].shape[2], "K": KEY_WIDTH, "P": CLIP_WIDTH, "H": HEADS,
                    "G": KEY_HEADS, "W": HEAD_WIDTH},
        )  # fmt: skip
        options = onnxruntime.SessionOptions()
        # As trtprune's own runtime opens a pruner.
        options.intra_op_num_threads, options.log_severity_level = threads, 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.enable_mem_pattern = False
        self.label = variant.label
        self.session = onnxruntime.InferenceSession(graph.to_bytes(), options, providers=["CPUExecutionProvider"])
        self.feed = {i.name: given[i.name] for i in self.session.get_inputs() if i.name != "keep"}

    def time(self, keep: int) -> float:
        """Milliseconds of one run."""
        feed = self.feed | {"keep": np.array([keep])}
        start = time.perf_counter()
        self.session.run(None, feed)
        return 1000 * (time.perf_counter() - start)


def measure(vlm: Any, image: Any, pruners: Sequence[Pruner], keeps: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """A row for each method and budget."""
    prefill: dict[int, list[float]] = defaultdict(list)
    taken: dict[tuple[str, int], list[float]] = defaultdict(list)
    for number in range(rounds + 1):
        for keep in keeps:
            times = {pruner.label: pruner.time(keep) for pruner in pruners}
            timings = vlm.generate(image, PROMPT, keep=keep, max_new_tokens=1, ignore_eos=True).timings
            if number:  # the first warms up
                prefill[keep].append(timings["prefill"])
                for label, ms in times.items():
                    taken[label, keep].append(ms)
    return [
        {
            "method": label,
            "keep": keep,
            "cost": pruning.get(label.split()[0]).cost,
            "ms": summary(samples),
            "prefill_ms": summary(prefill[keep]),
            "share_of_prefill": round(
                statistics.median(a / b for a, b in zip(samples, prefill[keep], strict=True)), 5
            ),
        }
        for (label, keep), samples in taken.items()
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="a checkpoint with a CLS token")
    parser.add_argument("--keep", default="192,64,16")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--methods", help="METHOD[:OPTION=VALUE],…; default: all before the decoder, and centred ones")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--image", type=Path, default=Path(__file__).parent.parent / "examples" / "scene.png")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    keeps = [int(part) for part in given.keep.split(",")]
    variants = parse_variants(given.methods) if given.methods else default_methods()
    with tempfile.TemporaryDirectory() as folder:
        # SCOPE's build returns both what it reads and what the others do.
        out = trtprune.build(given.model, Path(folder) / "out", method="scope", keep=keeps[0])
        vlm = trtprune.load(out.root, threads=given.threads)
        view = vlm.look(Image.open(given.image).convert("RGB"), PROMPT)
        inputs = pruner_inputs(view.features, np.asarray(view.text_embeds)[view.prompt.span("question")])
        pruners = [Pruner(variant, inputs, given.threads) for variant in variants]
        rows = measure(vlm, view.features, pruners, keeps, given.rounds)
    for row in rows:
        print(
            f"{row['method']:<24}{row['keep']:>4}  {row['ms']['median']:8.3f} ms  "
            f"prefill {row['prefill_ms']['median']:7.1f} ms  {100 * row['share_of_prefill']:6.2f} %"
        )
    tokens, width = inputs["image_features"].shape[1:]
    result = {
        "command": f"python benchmarks/bench_pruners.py --keep {given.keep} --rounds {given.rounds}",
        "machine": machine(),
        "threads": given.threads,
        "visual_tokens": tokens,
        "width": width,
        "rows": rows,
    }
    if given.json:
        write_json(given.json, result)


if __name__ == "__main__":
    main()
