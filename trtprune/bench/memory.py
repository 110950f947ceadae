"""Peak memory of a build at a budget: the peak resident size of a process that does nothing else.

The interleaved run cannot measure it, because its process has all builds and shares sessions between them.  So each
build runs once more in a process of its own, with budgets from the smallest up.  The peak of a budget is that process's
``VmHWM`` behind it, with interpreter, libraries and mapped weight files.  A larger budget takes more at every step, so
the smaller ones before it add a few megabytes at most.  (``ru_maxrss`` of a child begins with its parent's.)  Memory of
a GPU is not included.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import trtprune

__all__ = ["measure_peaks", "peak_of_this_process"]

TIME_LIMIT = 600
MARK = "peak "


def peak_of_this_process() -> int | None:
    """The peak in bytes; None on a system without this figure."""
    try:
        with open("/proc/self/status", encoding="ascii") as stream:
            for line in stream:
                if line.startswith("VmHWM:"):
                    return 1024 * int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return None


def measure_peaks(job: Mapping[str, Any]) -> tuple[dict[int, int | None], str]:
    """Runs one build in a process of its own.

    Args:
        job: Arguments of :func:`run_job`, plain values.

    Returns:
        Budget → bytes, for the finished budgets; and "", or the error.
    """
    home = str(Path(trtprune.__file__).parent.parent)
    path = os.pathsep.join(part for part in (home, os.environ.get("PYTHONPATH", "")) if part)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "trtprune.bench.memory"],
            input=json.dumps(dict(job)),
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT,
            env={**os.environ, "PYTHONPATH": path},
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {}, str(error).splitlines()[0][:300]
    peaks: dict[int, int | None] = {}
    for line in done.stdout.splitlines():
        if line.startswith(MARK):
            keep, peak = json.loads(line.removeprefix(MARK))
            peaks[int(keep)] = peak
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        return peaks, f"exit code {done.returncode}: {last}"[:300]
    return peaks, ""


def run_job(job: Mapping[str, Any]) -> Iterator[int]:
    """Answers one question with a build (``directory``) or with transformers (``checkpoint``, ``dtype``).

    Yields:
        Each of ``keeps`` in ascending order, after its run.
    """
    from PIL import Image

    from trtprune.bench.cells import BuildCell, Workload

    question = Workload(Image.open(job["image"]).convert("RGB"), job["prompt"], job["tokens"])
    if "checkpoint" in job:
        from trtprune.bench.transformers_peer import TransformersPeer

        TransformersPeer(Path(job["checkpoint"]), job["dtype"], question, threads=job["threads"]).run()
        yield from job["keeps"]
        return
    vlm = trtprune.load(
        job["directory"],
        provider=job["provider"],
        threads=job["threads"],
        provider_options=job["provider_options"],
        verify="none",
    )
    for keep in sorted(job["keeps"]):
        BuildCell(vlm, "", keep, question).run()
        yield keep


if __name__ == "__main__":
    for done in run_job(json.load(sys.stdin)):
        print(f"{MARK}{json.dumps([done, peak_of_this_process()])}", flush=True)
