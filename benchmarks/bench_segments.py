"""What cutting the decoder costs: the demo model's decoder in one piece and in four, with nothing pruned.

    python benchmarks/bench_segments.py [--rounds 30] [--json benchmarks/results/segments.json]

All run the same prompt of 640 tokens and the same single tokens in turn, in one process, in ONNX Runtime on the CPU;
what counts is the ratio within a round, median over the rounds. "cut" is the decoder in four pieces; "rated" also
returns its raters' attention, as the pieces do when a method prunes between them. Target: "cut" under 3 %.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _machine import machine, summary

import trtprune
from trtprune.backends.onnxruntime import OrtBackend
from trtprune.checkpoint import resolve
from trtprune.engine_dir import ComponentInfo, EngineDir, Part, TensorSpec
from trtprune.engine_dir.roles import DECODER
from trtprune.models import get_family

CUTS = (2, 6, 14)
PROMPT, RATERS, CAPACITY = 640, 12, 704
# Threads of the one that ran before spin for a while; they must not take time from the next.
REST = 0.05


def _spec(value: Any) -> TensorSpec:
    shape = tuple(dim if isinstance(dim, int) else str(dim.value) for dim in value.shape)
    return TensorSpec(str(value.name), str(value.dtype.numpy()), shape)


class Pieces:
    """A decoder, cut behind some layers, with its caches."""

    def __init__(self, made: EngineDir, cuts: tuple[int, ...], backend: OrtBackend, rated: bool = False) -> None:
        from trtprune.graph import Lowering

        checkpoint = resolve("demo")
        graphs = get_family(checkpoint.config).build_components(
            checkpoint,
            dtype="float32",
            lowering=Lowering.for_backend("onnxruntime"),
            cuts=cuts,
            raters="mean" if rated else None,
        )
        self.sessions = []
        self.rated = rated
        for part in [Part(DECODER, k) for k in range(len(cuts) + 1)] if cuts else [Part(DECODER)]:
            graph = graphs[part.name]
            inputs, outputs = (tuple(map(_spec, values)) for values in (graph.inputs, graph.outputs))
            path = f"onnx/{part.name}-{len(cuts)}-{rated}.onnx"
            graph.save(made.root / path)
            component = ComponentInfo(part.name, part.role, part.segment, path, None, inputs, outputs, (), "float32")
            self.sessions.append(backend.session(component, made.root))
        self.caches = [session.new_cache(1, CAPACITY) for session in self.sessions]

    def run(self, x: np.ndarray, at: int) -> tuple[np.ndarray, float]:
        """Logits of the last row, and milliseconds."""
        length = x.shape[1]
        positions = at + np.arange(length)[None]
        index = np.arange(length - min(length, RATERS), length)[None]
        start = time.perf_counter()
        for k, (session, cache) in enumerate(zip(self.sessions, self.caches, strict=True)):
            inputs: dict[str, Any] = {
                "hidden_states" if k else "inputs_embeds": x,
                "position_ids": positions[:, None],
                "write_index": np.array([at]),
            }
            if k == len(self.sessions) - 1:
                inputs["logits_index"] = np.array([[length - 1]])
            elif self.rated:
                inputs["rater_index"] = index
            out = session.run(inputs, cache)
            x = out.get("last_hidden_state", x)
        return out["logits"], 1000 * (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=20, help="single tokens a round")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = trtprune.build("demo", Path(folder) / "out", method="none")
        backend = OrtBackend("cpu", arguments.threads)
        pieces = {
            "whole": Pieces(made, (), backend),
            "cut": Pieces(made, CUTS, backend),
            "rated": Pieces(made, CUTS, backend, rated=True),
        }
        ids = np.random.default_rng(0).integers(10, 40_000, (1, PROMPT))
        embed = backend.session(made.component("embed"), made.root)
        x = embed.run({"input_ids": ids})["text_embeds"]
        found: dict[str, dict[str, list[float]]] = {part: {name: [] for name in pieces} for part in ("prompt", "token")}
        for round_ in range(arguments.rounds + 1):
            logits = {}
            for name in sorted(pieces, reverse=bool(round_ % 2)):
                time.sleep(REST)
                logits[name], prompt = pieces[name].run(x, 0)
                time.sleep(REST)
                steps = [pieces[name].run(x[:, :1], PROMPT + step)[1] for step in range(arguments.steps)]
                if round_:  # the first warms up
                    found["prompt"][name].append(prompt)
                    found["token"][name].append(statistics.median(steps))
            for name in pieces:
                assert np.array_equal(logits["whole"], logits[name]), f"{name} computes something else"
    result: dict[str, Any] = {"command": "python benchmarks/bench_segments.py", "machine": machine(), "cuts": CUTS}
    for part, times in found.items():
        result[part] = {}
        for name, values in times.items():
            ratio = statistics.median(b / a for a, b in zip(times["whole"], values, strict=True))
            result[part][name] = {"ratio": round(ratio, 4), "ms": summary(values)}
            print(f"{part:<7}{name:<6} {ratio:.3f} x   {statistics.median(values):8.2f} ms")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
