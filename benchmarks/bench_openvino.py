"""The forms of OpenVINO builds beside each other: tower, prompts and decode steps of a made-up LLaVA, and memory.

    python benchmarks/bench_openvino.py [--shape 0.3b] [--rounds 5] [--before CLONE] [--json FILE]

Every form is a process of its own; one of them works at a time, all in a new order each round, and ratios are taken
round by round against the first of its weights.  ``--before`` is a clone with an earlier backend: the forms that it
has, in its code, are the base.  Weights are made up: this says nothing about quality.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _checkpoints import config, write_checkpoint
from _machine import machine, summary, write_json

SHORT, LONG, STEPS = 104, 616, 16
"""Tokens of the prompts, and decode steps behind each."""
FORMS: tuple[tuple[str | None, dict[str, str]], ...] = (
    (None, {"precision": "bf16"}),
    (None, {"precision": "bf16", "kv_cache": "u8"}),
    (None, {"precision": "bf16", "kv_cache": "u8", "tower": "int8"}),
    ("int8", {"precision": "bf16"}),
    ("int8", {"precision": "bf16", "kv_cache": "u8", "tower": "int8"}),
)
"""Weight type of the build, and options of the provider."""
BEFORE = ({"precision": "bf16"},)
"""Options that earlier commits have."""


def work(out: Path, options: dict[str, str], threads: int) -> None:
    """Opens tower and decoder; runs them once for each line of stdin, and writes the milliseconds as JSON."""
    import resource

    from trtprune.backends.openvino import OpenVinoBackend
    from trtprune.engine_dir import open_engine_dir

    made, backend = open_engine_dir(out, verify="none"), OpenVinoBackend(threads, options)
    vision, decoder = (backend.session(made.component(name), made.root) for name in ("vision", "decoder"))
    rng = np.random.default_rng(0)
    rows = 0.05 * rng.standard_normal((1, LONG + STEPS, made.model.hidden_size), dtype=np.float32)
    shape = [1 if isinstance(size, str) else size for size in vision.inputs[0].shape]
    pixels = {vision.inputs[0].name: rng.standard_normal(shape, dtype=np.float32)}
    caches = {length: decoder.new_cache(1, length + STEPS) for length in (SHORT, LONG)}

    def timed(function: Any, *arguments: Any) -> float:
        start = time.perf_counter()
        function(*arguments)
        return 1e3 * (time.perf_counter() - start)

    def feed(start: int, count: int) -> dict[str, np.ndarray]:
        return {
            "inputs_embeds": np.ascontiguousarray(rows[:, start : start + count]),
            "position_ids": np.arange(start, start + count)[None, None],
            "write_index": np.array([start]),
            "logits_index": np.array([[count - 1]]),
        }

    def once() -> dict[str, float]:
        found = {"tower_ms": timed(vision.run, pixels)}
        for length, cache in caches.items():
            cache.zero()
            found[f"prompt_{length}_ms"] = timed(decoder.run, feed(0, length), cache)
            steps = [timed(decoder.run, feed(length + i, 1), cache) for i in range(STEPS)]
            found[f"step_behind_{length}_ms"] = statistics.median(steps)
        found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        return found

    once()
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps(once()), flush=True)


class Contender:
    """A form in a process of its own."""

    def __init__(
        self, out: Path, weights: str | None, options: dict[str, str], threads: int, tree: Path | None
    ) -> None:
        self.weights = weights or "float16"
        self.name = ", ".join([f"{self.weights} weights", *(f"{k}={v}" for k, v in options.items())])
        self.name += ", before" if tree else ""
        self.samples: list[dict[str, float]] = []
        command = [sys.executable, __file__, "--work", str(out), json.dumps(options), "--threads", str(threads)]
        path = os.pathsep.join([str(tree or Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise SystemExit(f"{self.name}: did not start")

    def run(self) -> None:
        """One round."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self.samples.append(json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def result(self, base: Contender) -> dict[str, Any]:
        """Medians, and ratios to ``base`` round by round."""
        found: dict[str, Any] = {"form": self.name, "base": base.name}
        for what in self.samples[0]:
            found[what] = summary([sample[what] for sample in self.samples])
            pairs = zip(base.samples, self.samples, strict=True)
            found[what.replace("_ms", "").replace("_mb", "") + "_ratio"] = summary(
                [b[what] / s[what] for b, s in pairs]
            )
        return found


def measure(folder: Path, shape: str, rounds: int, threads: int, before: Path | None) -> list[dict[str, Any]]:
    """All forms of a checkpoint of ``shape``, written into ``folder``."""
    import trtprune

    (folder / "checkpoint").mkdir()
    write_checkpoint(folder / "checkpoint", shape, shards=1, seed=0)
    for weights in dict.fromkeys(weights for weights, _ in FORMS):
        trtprune.build(
            str(folder / "checkpoint"), folder / str(weights), method="none", weight_dtype=weights, provider="openvino"
        )
    contenders = []
    for weights, options in FORMS:
        if before is not None and options in BEFORE:
            contenders.append(Contender(folder / str(weights), weights, options, threads, before))
        contenders.append(Contender(folder / str(weights), weights, options, threads, None))
    rng = random.Random(0)
    for _ in range(rounds):
        for contender in rng.sample(contenders, len(contenders)):
            contender.run()
    for contender in contenders:
        contender.close()
    base: dict[str, Contender] = {}
    return [contender.result(base.setdefault(contender.weights, contender)) for contender in contenders]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="0.3b")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--before", type=Path, metavar="CLONE")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", nargs=2, metavar=("OUT", "OPTIONS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        return work(Path(arguments.work[0]), json.loads(arguments.work[1]), arguments.threads)
    with tempfile.TemporaryDirectory() as name:
        forms = measure(Path(name), arguments.shape, arguments.rounds, arguments.threads, arguments.before)
    for form in forms:
        print(form["form"])
        for what in (key for key in form if key.endswith(("_ms", "_mb"))):
            ratio = form[what.replace("_ms", "").replace("_mb", "") + "_ratio"]
            print(f"    {what:20} {form[what]['median']:8.1f}   {ratio['median']:.2f} x")
    if arguments.json:
        settings = {"shape": arguments.shape, "rounds": arguments.rounds, "threads": arguments.threads}
        decoder = config(arguments.shape)["text_config"]
        write_json(arguments.json, {"machine": machine(), "settings": settings, "decoder": decoder, "forms": forms})
    return None


if __name__ == "__main__":
    main()
