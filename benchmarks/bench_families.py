"""Time to the first token with all visual tokens of an image, with 25 % and 10 % of them, and in transformers.

    python benchmarks/bench_families.py --shape qwen-small|qwen3-small|internvl-small|smolvlm-small [--rounds 5]
        [--threads 2] [--method divprune] [--size 640x480] [--json benchmarks/results/first-token-qwen.json]

A made-up model in float32 (``_shapes.py``), an image and a short prompt, from the image to the first token.  In each
round all take turns: ours with each share of the tokens, and transformers with all.  The first tokens of both with all
visual tokens must be equal.  Ratios round by round, medians over rounds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _machine import machine, summary, write_json
from _peers import PEERS
from _shapes import write_shape
from PIL import Image

import trtprune

SHARES = (1.0, 0.25, 0.1)


def answer_times(shape: str, method: str, size: tuple[int, int], rounds: int, threads: int) -> dict[str, Any]:
    """Times to the first token of one shape, interleaved."""
    coarse = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    times: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "checkpoint", Path(folder) / "out"
        path.mkdir()
        write_shape(path, shape, seed=0)
        trtprune.build(str(path), out, method=method, dtype="float32", keep=1)
        theirs = next(peer for name, peer in PEERS.items() if shape.startswith(name))(path, threads)
        vlm = trtprune.load(out, threads=threads)
        for number in range(rounds + 1):
            found: dict[str, float] = {}
            for share in SHARES:
                start = time.perf_counter()
                ours = vlm.generate(
                    image, theirs.prompt, keep_ratio=share, max_new_tokens=1, raw_prompt=True, ignore_eos=True
                )
                found[f"{share:.0%}"] = 1e3 * (time.perf_counter() - start)
                if share == 1:
                    first, tokens = ours.token_ids[0], ours.visual_tokens
            found["transformers"], other = theirs.first_token(image)
            assert first == other, "another first token than in transformers"
            if number:  # the first round warms up
                for name, value in found.items():
                    times[name].append(value)
    ratios = {
        name: round(statistics.median(b / a for a, b in zip(values, times["transformers"], strict=True)), 3)
        for name, values in times.items()
    }
    milliseconds = {name: summary(values) for name, values in times.items()}
    return {"visual_tokens": tokens, "ms": milliseconds, "times_as_fast_as_transformers": ratios}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="qwen-small", help="see benchmarks/_shapes.py; not LLaVA's")
    parser.add_argument("--method", default="divprune")
    parser.add_argument("--size", default="640x480", help="of the image, WIDTHxHEIGHT in pixels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    width, height = map(int, given.size.split("x"))
    found = answer_times(given.shape, given.method, (width, height), given.rounds, given.threads)
    for name, ratio in found["times_as_fast_as_transformers"].items():
        print(f"{name:<14}{found['ms'][name]['median']:10.1f} ms  {ratio:.2f} x transformers")
    result = {
        "command": " ".join(["python", "benchmarks/bench_families.py", *(arguments or sys.argv[1:])]),
        "machine": machine(),
        "threads": given.threads,
        **found,
    }
    if given.json:
        write_json(given.json, result)


if __name__ == "__main__":
    main()
