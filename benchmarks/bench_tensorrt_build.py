"""Time and peak memory of building TensorRT engines, on a machine that needs no GPU for it.

    python benchmarks/bench_tensorrt_build.py [--shape 1b] [--json benchmarks/results/tensorrt-build.json]
    python benchmarks/bench_tensorrt_build.py --shape tiny --each sm75,sm80,sm86,sm89,sm120,sm121

A LLaVA-shaped checkpoint with made-up float16 weights (1b: CLIP-L and the decoder of TinyLlama-1.1B) goes through
``trtprune build --backend tensorrt-rtx``, each repeat a process of its own. Peak memory is the highest resident set of
that process, memory-mapped weights counted while they are mapped; "anonymous" is what cannot be dropped when memory is
short. The decoder's engine, the last and largest, makes the peak.
Where others work on the machine too, seconds of processors say more than those of the clock; both are given.
Target: about 10 s for the decoder's engine, and under 2.5 times the bytes of the decoder's weights at the peak.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _checkpoints import SHAPES, checkpoint_in, decoder_bytes, weight_bytes
from _machine import machine, summary, write_json

ENGINE = re.compile(r"(?P<name>\w+) +engine for (?P<targets>[^:]+): (?P<size>[\d.,]+) MB in (?P<seconds>[\d.]+) s")


class Watch(threading.Thread):
    """Highest resident and anonymous memory of a process, in bytes, looked at every 20 ms.

    What the kernel reports at the end (``ru_maxrss``) would do for the former, but begins with that of the parent.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak = {"VmHWM": 0, "RssAnon": 0}
        self._status, self._over = Path(f"/proc/{pid}/status"), threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.02):
            try:
                lines = self._status.read_text().splitlines()
            except OSError:
                return
            for line in lines:
                key, _, value = line.partition(":")
                if key in self.peak:
                    self.peak[key] = max(self.peak[key], int(value.split()[0]) * 1024)

    def stop(self) -> dict[str, int]:
        self._over.set()
        self.join()
        return self.peak


def measure(command: Sequence[str]) -> dict[str, Any]:
    """Runs a build; seconds by the clock and of processors, peak memory, and each engine's seconds as it says them.

    Raises:
        SystemExit: with what it said, if it fails.
    """
    start, before = time.perf_counter(), os.times()
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        watch = Watch(process.pid)
        watch.start()
        assert process.stderr is not None
        lines = list(process.stderr)
        process.wait()
        peak = watch.stop()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}\nended with status {process.returncode}:\n{''.join(lines[-5:])}")
    found = {match["name"]: match for line in lines if (match := ENGINE.match(line))}
    after = os.times()
    return {
        "total_s": time.perf_counter() - start,
        "cpu_s": after.children_user - before.children_user + after.children_system - before.children_system,
        "peak_rss_bytes": peak["VmHWM"],
        "peak_anonymous_bytes": peak["RssAnon"],
        "engine_s": {name: float(match["seconds"]) for name, match in found.items()},
    }


def build(checkpoint: Path, out: Path, given: argparse.Namespace, targets: str) -> dict[str, Any]:
    """One build in its own process, and the sizes of its engines."""
    command = [sys.executable, "-m", "trtprune", "build", "-m", str(checkpoint), "-o", str(out), "--force"]
    command += ["--backend", given.backend, "--keep", str(given.keep), "--dtype", given.dtype]
    if targets:
        command += ["--compute-capability", targets]
    if given.max_seq_len:
        command += ["--max-seq-len", str(given.max_seq_len)]
    row = measure(command)
    row["engine_bytes"] = {path.stem: path.stat().st_size for path in sorted((out / "engines").glob("*.engine"))}
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="1b")
    parser.add_argument("--backend", choices=["tensorrt", "tensorrt-rtx"], default="tensorrt-rtx")
    parser.add_argument("--compute-capability", default="sm89", help="empty for full TensorRT")
    parser.add_argument("--each", help="then build once more for each of these alone, for the sizes of the engines")
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--keep", type=int)
    parser.add_argument("--max-seq-len", type=int)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument(
        "--folder", type=Path, help="where the checkpoint is or goes, and stays, and the engines for the while"
    )
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    given.keep = given.keep or (4 if given.shape == "tiny" else 64)
    if given.folder is not None:
        given.folder.mkdir(parents=True, exist_ok=True)
    weights, load = weight_bytes(given.shape), os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        checkpoint, out = checkpoint_in(given.folder or Path(name), given.shape), Path(name) / "out"
        targets = "" if given.backend == "tensorrt" else given.compute_capability
        rows = [build(checkpoint, out, given, targets) for _ in range(given.repeats)]
        each = {}
        for target in (given.each or "").split(",") if given.each else []:
            row = build(checkpoint, out, given, target)
            each[target] = {"total_s": round(row["total_s"], 2), "engine_bytes": row["engine_bytes"]}
    decoder = decoder_bytes(given.shape)
    peak = max(row["peak_rss_bytes"] for row in rows)
    result = {
        "command": f"python benchmarks/bench_tensorrt_build.py --shape {given.shape} --repeats {given.repeats}",
        "peak_over_decoder_weights": round(peak / decoder, 2),
        "peak_over_all_weights": round(peak / weights, 2),
        "anonymous_over_decoder_weights": round(max(row["peak_anonymous_bytes"] for row in rows) / decoder, 2),
        "decoder_weight_bytes": decoder,
        "weight_bytes": weights,
        "peak_rss_bytes": peak,
        "peak_anonymous_bytes": max(row["peak_anonymous_bytes"] for row in rows),
        "total_s": summary([row["total_s"] for row in rows]),
        "cpu_s": summary([row["cpu_s"] for row in rows]),
        "load_before": round(load, 2),
        "engine_s": {name: summary([row["engine_s"][name] for row in rows]) for name in rows[0]["engine_s"]},
        "engine_bytes": rows[-1]["engine_bytes"],
        **({"each": each} if each else {}),
        "settings": {"backend": given.backend, "targets": targets, "dtype": given.dtype, "keep": given.keep},
        "machine": machine(),
    }
    print(f"weights {weights / 1e9:.2f} GB, of that the decoder's {decoder / 1e9:.2f} GB")
    print(
        f"peak memory {result['peak_over_decoder_weights']:.2f}x the decoder's weights, "
        f"{result['peak_over_all_weights']:.2f}x all weights ({peak / 1e9:.2f} GB); anonymous "
        f"{result['anonymous_over_decoder_weights']:.2f}x the decoder's ({result['peak_anonymous_bytes'] / 1e9:.2f} GB)"
    )
    for name, seconds in result["engine_s"].items():
        print(f"{name:<8} {seconds['median']:7.1f} s  engine {result['engine_bytes'][name] / 1e6:9.1f} MB")
    total, cpu = result["total_s"]["median"], result["cpu_s"]["median"]
    print(f"in all   {total:7.1f} s, {cpu:.1f} s of processors; load before {load:.1f}")
    for target, row in each.items():
        print(target, {name: f"{size / 1e6:.1f} MB" for name, size in row["engine_bytes"].items()})
    if given.json:
        write_json(given.json, result)


if __name__ == "__main__":
    main()
