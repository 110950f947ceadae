"""What ``trtprune prepack`` saves: a process that opens a directory and answers, with and without, in turns.

    python benchmarks/bench_start.py OUT [OUT …] [--rounds 7] [--json FILE]

Each sample is a process of its own: the time to open all sessions, the time of the first answer (one token), and the
process's private and largest memory behind it.  The cache is one of its own, made and removed here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _machine import machine, summary, write_json

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = """
import json, re, sys, time
import numpy as np
import trtprune
start = time.perf_counter()
vlm = trtprune.load(sys.argv[1], provider="cpu", verify="none")
for component in vlm.config.components:
    vlm.chain.session(component.role, component.segment)
opened = time.perf_counter()
result = vlm.generate(sys.argv[2], "What color is the star?", max_new_tokens=1)
answered = time.perf_counter()
status = open("/proc/self/status").read()
memory = {name: int(re.search(name + r":\\s+(\\d+)", status)[1]) / 1024 for name in ("RssAnon", "VmHWM")}
print(json.dumps({"open": opened - start, "answer": answered - opened, "private": memory["RssAnon"],
                  "peak": memory["VmHWM"], "ids": result.token_ids}))
"""
FIGURES = {"open": "s", "answer": "s", "private": "MB", "peak": "MB", "process": "s"}


def sample(out: Path, cache: str) -> dict[str, Any]:
    environment = {**os.environ, "TRTPRUNE_CACHE": cache}
    image = str(ROOT / "examples" / "scene.png")
    begin = time.perf_counter()
    run = subprocess.run(
        [sys.executable, "-c", SAMPLE, str(out), image], env=environment, capture_output=True, text=True, check=True
    )
    return {**json.loads(run.stdout), "process": time.perf_counter() - begin}


def measure(out: Path, rounds: int, cache: str, empty: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "trtprune", "prepack", str(out)]
    subprocess.run(command, env={**os.environ, "TRTPRUNE_CACHE": cache}, check=True, capture_output=True)
    saved = sum(file.stat().st_size for file in Path(cache).rglob("*") if file.is_file())
    samples: dict[str, list[dict[str, Any]]] = {"plain": [], "prepacked": []}
    for number in range(rounds + 1):
        for name, folder in (("plain", empty), ("prepacked", cache))[:: 1 if number % 2 else -1]:
            found = sample(out, folder)
            if number:  # the first fills the page cache
                samples[name].append(found)
    assert len({tuple(s["ids"]) for found in samples.values() for s in found}) == 1, "other answers"
    ratios = {
        key: summary([b[key] / a[key] for a, b in zip(samples["plain"], samples["prepacked"], strict=True)])
        for key in FIGURES
    }
    each = {name: {key: summary([s[key] for s in found]) for key in FIGURES} for name, found in samples.items()}
    subprocess.run([*command, "--remove"], env={**os.environ, "TRTPRUNE_CACHE": cache}, check=True, capture_output=True)
    config = json.loads((out / "config.json").read_text())
    weights = config["weight_dtype"] or config["dtype"]
    return {"model": config["model"]["id"], "weights": weights, "saved_mb": round(saved / 1e6), "ratio": ratios, **each}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = []
    for out in given.out:
        with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryDirectory() as empty:
            rows.append(measure(out, given.rounds, cache, empty))
        print(json.dumps(rows[-1], indent=1))
    if given.json:
        command = "bench_start.py OUT … --rounds " + str(given.rounds)
        write_json(given.json, {"machine": machine(), "command": command, "units": FIGURES, "rows": rows})


if __name__ == "__main__":
    main()
