"""The programs of plugins/harness on the GPU at hand: kernels, and the plugins' own enqueue, proven and timed.

    python benchmarks/bench_plugin_harness.py [--json benchmarks/results/plugin-harness.json]

kernel_bench needs nothing but the GPU. plugin_harness creates the plugins through the registry of a TensorRT runtime,
for which the lean one is enough. Both are compiled by: cmake -S plugins -B build/plugins && cmake --build build/plugins
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _kernels import FOLDERS, ROOT, find
from _machine import machine, write_json

LEAN = "libnvinfer_lean.so.10"
SECONDS = 300


def run(command: Sequence[str], lean: Path | None = None) -> dict[str, Any]:
    """What a program printed as JSON, and its status."""
    environment = dict(os.environ)
    if lean is not None:
        places = [str(lean.parent), *filter(None, [environment.get("LD_LIBRARY_PATH")])]
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(places)
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"exit_status": None, "error": str(error)[:300]}
    found: dict[str, Any] = {"exit_status": done.returncode}
    try:
        found |= json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        found["error"] = " ".join(done.stderr.split())[-300:] or "nothing was printed"
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, action="append", help="where the programs are; repeatable")
    parser.add_argument("--lean", type=Path, help=f"{LEAN}.  Default: what plugins/fetch_dependencies.py fetched")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    folders = given.folder or FOLDERS
    found = {name: find(name, folders) for name in ("kernel_bench", "plugin_harness", "libtrtprune_plugins.so")}
    lean = given.lean or next(iter(sorted((ROOT / "build" / "dependencies").rglob(LEAN))), None)
    rows: dict[str, Any] = {}
    if found["kernel_bench"]:
        rows["kernels"] = run([str(found["kernel_bench"])])
    if found["plugin_harness"] and found["libtrtprune_plugins.so"]:
        rows["plugins"] = run([str(found["plugin_harness"]), str(found["libtrtprune_plugins.so"])], lean)
    if not rows:
        sys.exit(f"bench_plugin_harness.py: kernel_bench is not in {folders[0]}; see plugins/CMakeLists.txt")
    for name, row in rows.items():
        said = row.get("error") or f"{row.get('cases')} cases, {row.get('failed')} failed"
        print(f"{name:<8} {said}")
        for entry in row.get("times", []):
            print("  ", entry)
    if given.json:
        command = "python benchmarks/bench_plugin_harness.py"
        write_json(given.json, {"command": command, "machine": machine(), **rows})
    if any(row["exit_status"] != 0 for row in rows.values()):
        sys.exit("; ".join(f"{name}: {row.get('error', 'failed')}" for name, row in rows.items() if row["exit_status"]))


if __name__ == "__main__":
    main()
