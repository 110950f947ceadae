"""Time and peak memory of building the graphs of a 7B checkpoint.

    python benchmarks/bench_graph_build.py [--shape 7b] [--repeats 5] [--json benchmarks/results/graph-build.json]
    python benchmarks/bench_graph_build.py --shape next-7b --json benchmarks/results/graph-build-next.json
    python benchmarks/bench_graph_build.py --shape qwen2.5-vl-7b --method divprune

The checkpoint has the shape of llava-1.5-7b (or another one of ``_shapes.py``: ``qwen2.5-vl-7b``, ``qwen3-vl-8b``,
``internvl3-8b``, ``smolvlm-256m``, ``idefics3-8b``, …) in float16 with made-up weights: its files are sparse, so 14 GB
cost no disk.  Each repeat is a fresh process; "total" includes importing everything, as users wait for it, and "cpu" is
the processor time of all of it, of the text process, too.
Target: under 2 s and 0.5 GB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from _machine import machine, summary
from _shapes import write_shape

CHILD = """
import resource, sys, time
start = time.perf_counter()
from trtprune.compiler.building import build
imported = time.perf_counter()
build(sys.argv[1], sys.argv[2], keep=64, method=sys.argv[3], force=True)
end = time.perf_counter()
used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(end - imported, end - start, sum(u.ru_utime + u.ru_stime for u in used), used[0].ru_maxrss / 1e6)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="7b", help="see benchmarks/_shapes.py")
    parser.add_argument(
        "--method", default="adafv", help="one that needs no CLIP and no CLS token for families without"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, out = Path(folder) / "checkpoint", Path(folder) / "out"
        checkpoint.mkdir()
        size = write_shape(checkpoint, arguments.shape)
        rows = []
        for _ in range(arguments.repeats + 1):
            command = [sys.executable, "-c", CHILD, str(checkpoint), str(out), arguments.method]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append([float(number) for number in done.stdout.split()])
        rows = rows[1:]  # the first run compiles byte code
        onnx_bytes = sum(path.stat().st_size for path in (out / "onnx").iterdir())
    build, total, cpu, memory = (summary(list(column)) for column in zip(*rows, strict=True))
    result = {
        "command": f"python benchmarks/bench_graph_build.py --shape {arguments.shape} --method {arguments.method}",
        "machine": machine(),
        "checkpoint_bytes": size,
        "onnx_bytes": onnx_bytes,
        "build_s": build,
        "with_imports_s": total,
        "cpu_s": cpu,
        "peak_rss_gb": memory,
    }
    print(json.dumps(result, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
