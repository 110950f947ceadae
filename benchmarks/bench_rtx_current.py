"""Whether TensorRT-RTX's CURRENT builds and runs on the GPU at hand; and if so, its attention over a KV cache.

    python benchmarks/bench_rtx_current.py [--quick] [--json benchmarks/results/rtx-current.json]
    python benchmarks/bench_rtx_current.py --backend tensorrt        # the same of full TensorRT

1. An engine for the current GPU is built, loaded and run.
2. One attention step of llava-1.5-7b's geometry, capacities 512, 1024 and 4096, float16 and bfloat16, in every form the
   decoder's attention has: whether a fused kernel exists (the graph builds without being taken apart), its error
   against float64, whether the cache is written in place, whether what lies in unused slots changes the answer.
3. Microseconds a step by capacity, and those of a prefill.
4. Steps from a CUDA graph, the cache in place and the write position in memory, against steps one by one.

Each form is tried in a process of its own: a library that crashes says so, and the rest goes on. Without a GPU: one
line, exit status 1. The whole chain on engines: bench_cuda_chain.py --backend tensorrt-rtx.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from _attention_step import FORMS, Geometry, examine
from _gpu_bench import graph_medians, loop_medians, need_gpu
from _kernels import numpy_dtype
from _machine import machine, summary, write_json
from _trt import LIBRARIES, Builder, EngineStep, library

CAPACITIES = (512, 1024, 4096)
DTYPES = ("float16", "bfloat16")
PROMPT = 128
SECONDS = 240
SCRIPT = "bench_rtx_current.py"


def cases(backend: str, quick: bool) -> list[Geometry]:
    """Everything that is tried, the default form first."""
    capacities = CAPACITIES[:2] if quick else CAPACITIES
    forms = FORMS[backend][:1] if quick else FORMS[backend]
    return [Geometry(c, dtype, form=form) for form in forms for dtype in DTYPES for c in capacities]


def replay_steps(step: EngineStep, geometry: Geometry, count: int = 8) -> dict[str, Any]:
    """The same steps one by one, and as replays of one captured step; whether they agree bit for bit."""
    import torch

    rng, dtype = np.random.default_rng(1), numpy_dtype(geometry.dtype)

    def draw(heads: int, rows: int) -> np.ndarray:
        return rng.standard_normal((1, heads, rows, geometry.head_dim), np.float32).astype(dtype)

    cache = [draw(geometry.kv_heads, geometry.capacity) for _ in range(2)]
    q, k, v = draw(geometry.heads, 1), draw(geometry.kv_heads, 1), draw(geometry.kv_heads, 1)
    answers = []
    for captured in (False, True):
        step.fill(*cache)
        y = step.bind(q, k, v)
        step.at(0)
        step.enqueue()  # a first run outside of any graph: it may allocate
        torch.cuda.synchronize()
        step.fill(*cache)
        graph = torch.cuda.CUDAGraph()
        if captured:
            with torch.cuda.graph(graph):
                step.enqueue()
        found = []
        for i in range(count):
            step.at(PROMPT + i)
            if captured:
                graph.replay()
            else:
                step.enqueue()
            torch.cuda.synchronize()
            found.append(y.clone())
        answers.append((torch.stack(found), *(torch.from_numpy(a.view(np.uint8).copy()) for a in step.cache())))
    same = [torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(*answers, strict=True)]
    return {"steps": count, "answers_same": same[0], "cache_same": same[1] and same[2]}


def time_steps(step: EngineStep, geometry: Geometry, rows: int, replays: int) -> dict[str, Any]:
    """Microseconds of a step of so many tokens: from a CUDA graph of 16, or one by one if it cannot be captured."""
    rng, dtype = np.random.default_rng(2), numpy_dtype(geometry.dtype)
    heads = (geometry.heads, geometry.kv_heads, geometry.kv_heads)
    arrays = [rng.standard_normal((1, h, rows, geometry.head_dim), np.float32).astype(dtype) for h in heads]
    step.bind(*arrays)
    step.at(geometry.capacity - rows if rows == 1 else 0)
    try:
        return summary(graph_medians({"step": lambda _: step.enqueue()}, 16, replays)["step"])
    except RuntimeError as error:
        return summary(loop_medians(step.enqueue, 50, replays)) | {"not_captured": str(error)[:200]}


def one_case(backend: str, geometry: Geometry, quick: bool) -> dict[str, Any]:
    """Everything about one form; ``refused`` if it does not build."""
    row: dict[str, Any] = asdict(geometry)
    builder = Builder(library(backend, SCRIPT))
    longest = min(640, geometry.capacity)
    try:
        plan, seconds = builder.build_step(geometry, longest)
    except RuntimeError as error:
        return row | {"builds": False, "refused": str(error)[:300]}
    step = EngineStep(builder, plan, geometry)
    row |= {"builds": True, "build_s": round(seconds, 2), "engine_bytes": plan.nbytes}
    row |= {"aliases": step.aliases(), **examine(step, geometry, PROMPT)}
    replays = 5 if quick else 20
    try:
        if geometry.form != "causal":
            row["step_us"] = time_steps(step, geometry, 1, replays)
        row["prefill_us"] = {str(longest): time_steps(step, geometry, longest, replays)}
        if geometry.form != "causal":
            row["cuda_graph"] = replay_steps(step, geometry)
    except RuntimeError as error:
        row["not_timed"] = str(error)[:300]
    row["layers"] = step.layers()[:20]
    return row


def said(row: dict[str, Any]) -> str:
    """The findings of one case on one line."""
    parts = []
    for what in ("step_us", "prefill_us"):
        times = row.get(what, {})
        for tokens, time in times.items() if what == "prefill_us" else [("1", times)] if times else []:
            parts.append(f"{tokens} tokens {time['median']:.1f} us{' (not captured)' * ('not_captured' in time)}")
    for what in ("decode", "prefill"):
        if what in row:
            parts.append(f"{what} error {row[what]['rmse']:.1e} rms, {row[what]['max']:.1e} max")
    for what in ("in_place", "garbage_suffix_same", "nan_suffix_same"):
        if what in row:
            parts.append(f"{what.replace('_', ' ')}: {'yes' if row[what] else 'NO'}")
    graph = row.get("cuda_graph", {})
    if graph:
        same = graph["answers_same"] and graph["cache_same"]
        parts.append(f"CUDA graph: {'the same' if same else 'OTHER'}")
    return "; ".join([*parts, *([f"not timed: {row['not_timed']}"] if "not_timed" in row else [])])


def smallest(backend: str) -> dict[str, Any]:
    """The first question: does an engine for the current GPU build, load, run and give the right numbers."""
    geometry = Geometry(64, "float16", heads=4, kv_heads=4, head_dim=64)
    builder = Builder(library(backend, SCRIPT))
    try:
        plan, seconds = builder.build_step(geometry, 16)
        found = examine(EngineStep(builder, plan, geometry), geometry, 16)
    except RuntimeError as error:
        return {"works": False, "why": str(error)[:300]}
    works = found["prefill"]["relative"] < 1e-2 and found["decode"]["relative"] < 1e-2
    return {"works": works, "build_s": round(seconds, 2), **found}


def in_a_process(arguments: Sequence[str]) -> dict[str, Any]:
    """The JSON that this script prints as its last line when called so; or how it ended."""
    command = [sys.executable, str(Path(__file__).resolve()), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False)
        lines = done.stdout.strip().splitlines()
        if done.returncode == 0 and lines:
            found: dict[str, Any] = json.loads(lines[-1])
            return found
        said = (done.stderr.strip().splitlines() or ["nothing was said"])[-1][:300]
        return {"builds": False, "refused": f"the process ended with status {done.returncode}: {said}"}
    except (subprocess.TimeoutExpired, ValueError) as error:
        return {"builds": False, "refused": f"{type(error).__name__} ({SECONDS} s)"}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=list(LIBRARIES), default="tensorrt-rtx")
    parser.add_argument("--quick", action="store_true", help="the default form and two capacities only")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    need_gpu(SCRIPT)
    trt = library(given.backend, SCRIPT)
    if given.case:
        found = smallest(given.backend) if given.case == "smallest" else None
        if found is None:
            found = one_case(given.backend, Geometry(**json.loads(given.case)), given.quick)
        print(json.dumps(found))
        return
    common = ["--backend", given.backend] + (["--quick"] if given.quick else [])
    first = in_a_process([*common, "--case", "smallest"])
    works = bool(first.get("works"))
    what = f"{given.backend} {trt.__version__}"
    print(f"{what}: an engine built for the current GPU {'runs here' if works else 'does not run here'}", flush=True)
    rows = []
    for geometry in cases(given.backend, given.quick) if works else []:
        row = in_a_process([*common, "--case", json.dumps(asdict(geometry))])
        rows.append(asdict(geometry) | row)
        name = f"{geometry.form:<18} {geometry.dtype:<9} capacity {geometry.capacity:>4}"
        if not row.get("builds"):
            print(f"{name}  no engine: {row.get('refused')}", flush=True)
            continue
        print(f"{name}  {said(row)}", flush=True)
    if given.json:
        command = " ".join(["python benchmarks/bench_rtx_current.py", *common])
        versions = {"library": trt.__version__}
        write_json(given.json, {"command": command, "machine": machine(), **versions, "smallest": first, "rows": rows})
    if not works:
        sys.exit(f"{SCRIPT}: {first.get('why') or first.get('refused') or 'wrong numbers'}")


if __name__ == "__main__":
    main()
