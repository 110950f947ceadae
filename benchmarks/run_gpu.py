"""Everything that needs an NVIDIA GPU, in one command.

    python benchmarks/run_gpu.py                    # all parts, into benchmarks/results/gpu-NAME-OF-THE-GPU.json
    python benchmarks/run_gpu.py --list             # the parts, what each answers, how long it may take
    python benchmarks/run_gpu.py --only kernels,chain-7b --folder /scratch --budget 540

Each part is a process with a time limit of its own: one that fails or hangs costs the others nothing. The result file
is written again after each part, and a later run adds to it. What a part printed is in the .log beside it.
See README.md for what must be installed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import signal
import site
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _machine import machine, write_json

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


@dataclass(frozen=True)
class Part:
    """One process. ``{json}`` in ``command`` is where its result goes, ``{folder}`` scratch that all parts share."""

    name: str
    seconds: int
    about: str
    command: tuple[str, ...]
    after: str | None = None
    """Runs only if that part succeeded in this run, or as the result file has it."""

    def arguments(self, result: Path, folder: Path) -> list[str]:
        """``command`` with its places filled."""
        return [text.replace("{json}", str(result)).replace("{folder}", str(folder)) for text in self.command]


def _script(name: str, *arguments: str) -> tuple[str, ...]:
    return (str(HERE / name), *arguments, "--json", "{json}")


def _chain(shape: str, *arguments: str) -> tuple[str, ...]:
    return _script("bench_cuda_chain.py", "--shape", shape, "--folder", "{folder}", *arguments)


RTX = ("--backend", "tensorrt-rtx")
FULL = ("--backend", "tensorrt")
PARTS = (
    Part("doctor", 120, "what is installed and works", ("-m", "trtprune", "doctor", "--json")),
    Part("rtx-smallest", 180, "does TensorRT-RTX build for this GPU and run on it; one form of attention",
         _script("bench_rtx_current.py", "--quick")),
    Part("kernels", 420, "kernels of plugins/ against NumPy, torch and the memory's bandwidth",
         _script("bench_topk_gather.py")),
    Part("plugin-harness", 420, "the kernels in C++, and the plugins' own enqueue in a lean TensorRT runtime",
         _script("bench_plugin_harness.py")),
    Part("chain-tiny", 240, "ONNX Runtime CUDA on a tiny model: right, and on the GPU", _chain("tiny")),
    Part("chain-7b", 580, "ONNX Runtime CUDA against transformers, llava-1.5-7b's shape", _chain("7b")),
    Part("rtx-attention", 420, "attention over a KV cache: kernel, error, unused slots, CUDA graph",
         _script("bench_rtx_current.py"), after="rtx-smallest"),
    Part("rtx-chain-tiny", 240, "engines of a tiny model against transformers", _chain("tiny", *RTX),
         after="rtx-smallest"),
    Part("rtx-compare", 240, "engines of a tiny model beside their own graphs in ONNX Runtime, tensor by tensor",
         ("-m", "trtprune", "compare", "{folder}/out-tensorrt-rtx-tiny", "--against", "onnxruntime", "--report",
          "{json}"), after="rtx-chain-tiny"),
    Part("rtx-chain-7b", 580, "engines of llava-1.5-7b's shape against transformers", _chain("7b", *RTX),
         after="rtx-chain-tiny"),
    Part("rtx-chain-7b-4096", 580, "the same with a cache of 4096 tokens: what capacity costs",
         _chain("7b", *RTX, "--max-seq-len", "4096", "--keep", "64", "--rounds", "3"), after="rtx-chain-7b"),
    Part("rtx-build-7b", 580, "build time and peak memory of 7b engines for SM89 (needs 40 GB of memory, no GPU)",
         _script("bench_tensorrt_build.py", "--shape", "7b", "--folder", "{folder}")),
    Part("tensorrt-attention", 420, "as rtx-attention, of full TensorRT", _script("bench_rtx_current.py", *FULL)),
    Part("tensorrt-chain-7b", 580, "as rtx-chain-7b, of full TensorRT", _chain("7b", *FULL),
         after="tensorrt-attention"),
)  # fmt: skip


def environment() -> dict[str, str]:
    """This process's, with this project importable and the CUDA libraries of NVIDIA's packages where linkers look."""
    found = dict(os.environ)
    found["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [found.get("PYTHONPATH")])])
    found["PYTHONUNBUFFERED"] = "1"
    places = {*site.getsitepackages(), sysconfig.get_paths()["purelib"], *sys.path}
    libraries = sorted({str(lib) for place in places if place for lib in Path(place).glob("nvidia/*/lib")})
    found["LD_LIBRARY_PATH"] = os.pathsep.join([*libraries, *filter(None, [found.get("LD_LIBRARY_PATH")])])
    return found


def run_part(part: Part, folder: Path, log: Path, quick_seconds: float | None = None) -> dict[str, Any]:
    """Runs one part; its status (``ok``, ``failed`` or ``timeout``), seconds, last line and result."""
    result = folder / f"{part.name}.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, *part.arguments(result, folder)]
    limit = min(part.seconds, quick_seconds) if quick_seconds is not None else part.seconds
    start = time.perf_counter()
    with log.open("a") as stream:
        stream.write(f"\n=== {part.name}: {shlex.join(command)}\n")
        stream.flush()
        before = stream.tell()
        # A group of its own, so that what it started ends with it.
        process = subprocess.Popen(
            command, stdout=stream, stderr=stream, cwd=ROOT, env=environment(), start_new_session=True
        )
        try:
            status = "ok" if process.wait(limit) == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = "timeout"
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    with log.open(errors="replace") as stream:
        stream.seek(before)
        lines = [line.strip() for line in stream.read().splitlines() if line.strip()]
    row: dict[str, Any] = {
        "status": status,
        "exit_status": process.returncode,
        "seconds": round(time.perf_counter() - start, 1),
        "last_line": lines[-1][-400:] if lines else "",
    }
    if result.exists():
        row["result"] = json.loads(result.read_text())
    elif part.command[-1] == "--json" and lines:  # printed, not written
        with contextlib.suppress(ValueError):
            row["result"] = json.loads(lines[-1])
            row["last_line"] = ""
    return row


def choose(only: str | None, skip: str | None) -> list[Part]:
    """The parts to run, in their order.

    Raises:
        SystemExit: for a name that is none.
    """
    names = {part.name for part in PARTS}
    wanted = set(only.split(",")) if only else names
    left_out = set(skip.split(",")) if skip else set()
    unknown = sorted((wanted | left_out) - names)
    if unknown:
        raise SystemExit(f"run_gpu.py: no part is called {unknown[0]}; --list says which there are")
    return [part for part in PARTS if part.name in wanted - left_out]


def preflight(found: dict[str, Any]) -> list[str]:
    """What will keep parts from working, in words, from what :func:`machine` found."""
    versions, said = found["versions"], []
    if not found.get("gpus"):
        said.append("no NVIDIA GPU or driver found: every part but rtx-build-7b needs one")
    if "onnxruntime" in versions and "onnxruntime-gpu" in versions:
        said.append("onnxruntime and onnxruntime-gpu are both installed: pip uninstall -y onnxruntime")
    for package, parts in (
        ("onnxruntime-gpu", "chain-*"), ("tensorrt-rtx-cu13", "rtx-*"), ("cuda-bindings", "rtx-chain-*"),
        ("tensorrt-cu13", "tensorrt-*"), ("polygraphy", "rtx-compare"), ("transformers", "*chain-*"),
        ("torch", "all but doctor and rtx-build-7b"),
    ):  # fmt: skip
        if package not in versions:
            said.append(f"{package} is not installed, which {parts} need{'s' if parts[:3] == 'all' else ''}")
    return said


def result_path(found: dict[str, Any], out: Path) -> Path:
    """One file a kind of GPU."""
    gpus = found.get("gpus") or [{"name": "none"}]
    return out / f"gpu-{re.sub(r'[^a-z0-9]+', '-', gpus[0]['name'].lower()).strip('-')}.json"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="say what there is and end")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and what is missing, run nothing")
    parser.add_argument("--only", help="parts, with commas")
    parser.add_argument("--skip", help="parts, with commas")
    parser.add_argument("--budget", type=float, help="seconds in all: later parts get what is left")
    parser.add_argument("--folder", type=Path, help="scratch for checkpoints, 45 GB for all parts; kept")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    given = parser.parse_args(arguments)
    parts = choose(given.only, given.skip)
    if given.list:
        for part in parts:
            print(f"{part.name:<20}{part.seconds:>4} s  {part.about}{f'; after {part.after}' if part.after else ''}")
        return
    found = machine()
    for line in preflight(found):
        print(f"note: {line}", flush=True)
    path = result_path(found, given.out)
    with tempfile.TemporaryDirectory() as name:
        folder = given.folder or Path(name)
        if given.dry_run:
            for part in parts:
                print(shlex.join(["python", *part.arguments(path, folder)]))
            return
        folder.mkdir(parents=True, exist_ok=True)
        given.out.mkdir(parents=True, exist_ok=True)
        done = json.loads(path.read_text()) if path.exists() else {"parts": {}}
        done = {"command": "python benchmarks/run_gpu.py", "machine": found, "parts": done["parts"]}
        start = time.perf_counter()
        for part in parts:
            left = None if given.budget is None else given.budget - (time.perf_counter() - start)
            before = done["parts"].get(part.after or "", {})
            if part.after and before.get("status") != "ok":
                row: dict[str, Any] = {"status": "skipped", "last_line": f"{part.after} did not succeed"}
            elif left is not None and left < 20:
                row = {"status": "skipped", "last_line": "no time left"}
            else:
                row = run_part(part, folder, path.with_suffix(".log"), left)
            # What an earlier run found out is worth more than a part that was not tried again.
            if row["status"] != "skipped" or part.name not in done["parts"]:
                done["parts"][part.name] = row
            print(f"{row['status']:<8}{row.get('seconds', 0):>7.1f} s  {part.name:<20}{row['last_line']}", flush=True)
            write_json(path, done)
    print(path)
    if any(done["parts"][part.name]["status"] in ("failed", "timeout") for part in parts):
        sys.exit(1)


if __name__ == "__main__":
    main()
