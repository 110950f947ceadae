"""Peak memory of one cell: what a process that does nothing else has ever had resident.

A cell of the interleaved run cannot say it: its process holds all builds, and shares sessions between them.  So each is
run once more in a process of its own, and the peak is that process's ``VmHWM``: interpreter, libraries, mapped weight
files and all.  (``ru_maxrss`` would not do: a child begins with what its parent had.)  Memory of a GPU is not in it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import trtprune

__all__ = ["measure_peak", "peak_of_this_process"]

TIME_LIMIT = 600


def peak_of_this_process() -> int | None:
    """Bytes; None where the system does not say."""
    try:
        with open("/proc/self/status", encoding="ascii") as stream:
            for line in stream:
                if line.startswith("VmHWM:"):
                    return 1024 * int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return None


def measure_peak(job: Mapping[str, Any]) -> tuple[int | None, str]:
    """Runs one cell in a process of its own.

    Args:
        job: As :func:`run_job` takes it; plain values.

    Returns:
        Its peak in bytes and "", or None and why not.
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
        return None, str(error).splitlines()[0]
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        return None, f"exit code {done.returncode}: {last}"[:300]
    try:
        found = json.loads(done.stdout.splitlines()[-1])["peak"]
        return (None if found is None else int(found)), ""
    except (ValueError, KeyError, IndexError, TypeError):
        return None, "the process said nothing"


def run_job(job: Mapping[str, Any]) -> None:
    """Answers one question with a build (``directory``) or with transformers (``checkpoint``, ``dtype``)."""
    from PIL import Image

    from trtprune.bench.cells import BuildCell, Question

    question = Question(Image.open(job["image"]).convert("RGB"), job["prompt"], job["tokens"])
    if "checkpoint" in job:
        from trtprune.bench.transformers_peer import TransformersPeer

        TransformersPeer(Path(job["checkpoint"]), job["dtype"], question, threads=job["threads"]).run()
        return
    vlm = trtprune.load(
        job["directory"],
        provider=job["provider"],
        threads=job["threads"],
        provider_options=job["provider_options"],
        verify="none",
    )
    BuildCell(vlm, "", job["keep"], question).run()


if __name__ == "__main__":
    run_job(json.load(sys.stdin))
    print(json.dumps({"peak": peak_of_this_process()}))
