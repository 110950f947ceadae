"""The C++ library beside the Python package, on one engine directory: speed, start, memory, size.

    make cpp && python benchmarks/bench_cpp.py demo_out --image examples/scene.png [--json benchmarks/results/cpp.json]

Two processes, one in each language, are asked the same questions in turn; each answer must have the same tokens. Ratios
are C++ over Python, taken round by round. A start is a new process with warm files, up to the first piece of text.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _machine import machine, summary, write_json

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = ("What color is the star?", "What shape is the largest object?", "How many objects are there?")
STREAM = """
import json, sys, trtprune
request = json.loads(sys.stdin.readline())
vlm = trtprune.load(sys.argv[1], threads=int(sys.argv[2]))
options = {name: request[name] for name in ("keep", "max_new_tokens")}
for piece in vlm.stream(request["image"], request["prompt"], ignore_eos=True, **options):
    if piece:
        print(piece, end="", flush=True)
        break
"""


def serve(directory: str, threads: int) -> None:
    """The Python process: an answer a line, with the peak memory of this process and of its children."""
    import psutil

    import trtprune

    vlm = trtprune.load(directory, threads=threads)
    for line in sys.stdin:
        request = json.loads(line)
        options = {name: request[name] for name in ("keep", "max_new_tokens")}
        answer = vlm.generate(request["image"], request["prompt"], ignore_eos=True, **options).to_json()
        family = [psutil.Process(), *psutil.Process().children(recursive=True)]
        answer["peak_kib"] = sum(peak_kib(process.pid) for process in family)
        print(json.dumps(answer), flush=True)


def peak_kib(pid: int) -> int:
    """The largest resident memory of a process so far, in KiB."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+)", text, re.MULTILINE)
    return int(found[1]) if found else 0


class Peer:
    """A process that answers a request a line."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"error: a process ended with {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def start_ms(command: list[str], request: dict[str, Any], environment: dict[str, str]) -> float:
    """Milliseconds from the start of a process to its first piece of text."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(request).encode() + b"\n")
    process.stdin.flush()
    piece = process.stdout.read(1)
    elapsed = 1e3 * (time.perf_counter() - began)
    process.communicate()
    if not piece:
        raise SystemExit(f"error: {command[0]} printed nothing")
    return elapsed


def compared(cpp: list[float], python: list[float]) -> dict[str, Any]:
    """Both sides' times, and the ratio round by round."""
    ratios = [own / other for own, other in zip(cpp, python, strict=True)]
    return {"ratio": summary(ratios), "cpp": summary(cpp), "python": summary(python)}


def answers(commands: dict[str, list[str]], requests: list[dict[str, Any]], rounds: int, env: Any) -> dict[str, Any]:
    """Time to the first token, milliseconds a token and peak memory of two processes in turn."""
    peers = {name: Peer(command, env) for name, command in commands.items()}
    samples: dict[str, dict[str, list[float]]] = {name: {"first": [], "token": []} for name in peers}
    peak = dict.fromkeys(peers, 0)
    for number in range(rounds + 1):
        for request in requests:
            order = list(peers) if number % 2 else list(reversed(peers))
            both = {name: peers[name].ask(request) for name in order}
            if both["cpp"]["token_ids"] != both["python"]["token_ids"]:
                raise SystemExit(f"error: answers differ: {both['cpp']['text']!r}, {both['python']['text']!r}")
            for name, answer in both.items():
                peak[name] = max(peak[name], answer["peak_kib"])
                if number:  # the first round warms up
                    samples[name]["first"].append(answer["time_to_first_token_ms"])
                    samples[name]["token"].append(answer["timings_ms"]["decode"] / (len(answer["token_ids"]) - 1))
    for peer in peers.values():
        peer.close()
    memory = {name: round(kib * 1024 / 1e6) for name, kib in peak.items()}
    return {
        "first_token_ms": compared(samples["cpp"]["first"], samples["python"]["first"]),
        "ms_per_token": compared(samples["cpp"]["token"], samples["python"]["token"]),
        "peak_mb": {"ratio": round(memory["cpp"] / memory["python"], 3), **memory},
    }


def starts(commands: dict[str, list[str]], request: dict[str, Any], rounds: int, env: Any) -> dict[str, Any]:
    """Process start to first token, in turn."""
    samples: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            elapsed = start_ms(command, request, env)
            if number:
                samples[name].append(elapsed)
    return compared(samples["cpp"], samples["python"])


def sizes(build: Path, onnxruntime: Path) -> dict[str, Any]:
    """Megabytes to ship: the library with what it loads, and the packages that `trtprune run` imports."""
    library = (build / "libtrtprune.so").resolve()
    listed = subprocess.run(["ldd", str(library)], capture_output=True, text=True, check=True).stdout
    images = [Path(path).resolve() for path in re.findall(r"=> (/\S*lib(?:jpeg|png16|webp)\S*)", listed)]
    cpp = {
        "libtrtprune": stripped(library),
        "images": sum(map(size, images)),
        "onnxruntime": size(onnxruntime),
    }
    required = re.findall(r"^([\w-]+)==", (ROOT / "docker/runtime.txt").read_text(), re.MULTILINE)
    python = {
        "trtprune": sum(size(path) for path in (ROOT / "trtprune").rglob("*.py")),
        "packages": sum(installed(name) for name in (*required, "onnxruntime")),
        "interpreter": sum(size(path) for path in standard_library()),
    }
    total = {"cpp": sum(cpp.values()), "python": sum(python.values())}
    return {
        "ratio": round(total["cpp"] / total["python"], 3),
        **{f"{name}_mb": round(count / 1e6, 2) for name, count in total.items()},
        **{f"{name}_mb": round(count / 1e6, 2) for part in (cpp, python) for name, count in part.items()},
    }


def size(path: Path) -> int:
    return path.stat().st_size


def stripped(library: Path) -> int:
    """The library's size without its symbol table."""
    copy = library.with_suffix(".stripped")
    subprocess.run(["strip", "--strip-unneeded", "-o", str(copy), str(library)], check=True)
    try:
        return size(copy)
    finally:
        copy.unlink()


def installed(name: str) -> int:
    """The size of a distribution's files."""
    files = importlib.metadata.files(name) or []
    return sum(size(path) for file in files if (path := Path(file.locate())).is_file() and path.suffix != ".pyc")


def standard_library() -> list[Path]:
    """Files of Python's own: its modules, without tests and installed packages, and its program or library."""
    folder = Path(sysconfig.get_path("stdlib"))
    skipped = {"test", "tests", "site-packages", "__pycache__", "idlelib", "ensurepip", "config-3"}
    modules = [
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part in skipped or part.startswith("config-") for part in path.parts)
    ]
    shared = Path(str(sysconfig.get_config_var("LIBDIR"))) / str(sysconfig.get_config_var("INSTSONAME"))
    return [*modules, shared if shared.is_file() else Path(sys.executable).resolve()]


def line(name: str, values: dict[str, Any], unit: str) -> str:
    ratio, cpp, python = (values[key]["median"] for key in ("ratio", "cpp", "python"))
    return f"{name:<34} {ratio:5.2f}   C++ {cpp:8.1f} {unit}   Python {python:8.1f} {unit}"


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], int(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--image", type=Path, default=ROOT / "examples/scene.png")
    parser.add_argument("--keep", type=int)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--build", type=Path, default=ROOT / "build/cpp")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()

    import onnxruntime

    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*.*")
    environment = {**os.environ, "TRTPRUNE_ONNXRUNTIME": str(library)}
    request = {"image": str(given.image), "keep": given.keep, "max_new_tokens": given.max_new_tokens}
    requests = [{**request, "prompt": prompt} for prompt in PROMPTS]
    driver, words = str(given.build / "bench_answers"), [str(given.directory), str(given.threads)]
    both = {"cpp": [driver, *words], "python": [sys.executable, __file__, "--serve", *words]}
    report: dict[str, Any] = answers(both, requests, given.rounds, environment)
    first = {"cpp": [driver, *words, "first"], "python": [sys.executable, "-c", STREAM, *words]}
    report["start_ms"] = starts(first, requests[0], given.rounds, environment)
    report["size"] = sizes(given.build, library)

    show: Callable[[str], None] = print
    show("C++ over Python")
    show(line("time to the first token", report["first_token_ms"], "ms"))
    show(line("time a further token", report["ms_per_token"], "ms"))
    show(line("process start to the first token", report["start_ms"], "ms"))
    peak, disk = report["peak_mb"], report["size"]
    show(f"{'peak memory':<34} {peak['ratio']:5.2f}   C++ {peak['cpp']:8d} MB   Python {peak['python']:8d} MB")
    show(f"{'size':<34} {disk['ratio']:5.2f}   C++ {disk['cpp_mb']:8.1f} MB   Python {disk['python_mb']:8.1f} MB")
    if given.json:
        settings = {"directory": given.directory.name, "image": given.image.name, "prompts": PROMPTS}
        settings |= {"keep": given.keep, "max_new_tokens": given.max_new_tokens}
        settings |= {"rounds": given.rounds, "threads": given.threads}
        write_json(given.json, {"machine": machine(), "settings": settings, **report})


if __name__ == "__main__":
    main()
