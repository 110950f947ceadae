"""Requests a second and time to the first token of `trtprune serve`, by concurrency and budget, beside fixed batches.

    python benchmarks/bench_serve.py OUT [--keep 576,64] [--concurrency 1,4,16] [--requests 32] [--rounds 3]
        [--max-new-tokens 16] [--max-batch-size 8] [--json benchmarks/results/serve.json]

The server runs in a process of its own with the memory of images and prompts off, so that every request does all of its
work: another image and another question each time.  Clients ask over HTTP with streams and keep so many requests open
as ``concurrency`` says.  ``fixed`` is the same runtime in this process without a server: as many requests at a time as
the server has rows, the next ones when all of these are done; its first tokens come when the whole batch has one.  In
each round all take turns; figures are medians over rounds, percentiles are of all requests of all rounds.  With
concurrency 1 there is no batch, and the difference to ``fixed`` is that of the server alone.

Two lengths of answers take turns, the longest and a quarter of it: those of a fixed batch wait for the longest.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from _machine import machine, summary, write_json
from PIL import Image

import trtprune

QUESTION = "What is in this picture, and what is behind it? Number {}."


@dataclass(frozen=True)
class Timed:
    """One answer: seconds to its first text and to its end, and its tokens."""

    first: float
    total: float
    tokens: int


def picture(number: int) -> Image.Image:
    """A smooth random image, another one for each number."""
    coarse = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((336, 336), Image.Resampling.BICUBIC)


def length(number: int, longest: int) -> int:
    """The answer's length."""
    return longest if number % 2 == 0 else max(1, longest // 4)


class Server:
    """`trtprune serve` in a process of its own.

    Args:
        out: The engine directory.
        rows: Requests at once.
        threads: CPU threads; None: all cores.
    """

    def __init__(self, out: Path, rows: int, threads: int | None) -> None:
        command = [sys.executable, "-m", "trtprune", "serve", str(out), "--port", "0", "--max-batch-size", str(rows)]
        command += ["--max-queued-requests", "1024", "--image-cache-mb", "0", "--prefix-cache-mb", "0"]
        command += [] if threads is None else ["--threads", str(threads)]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        self.address = self._process.stderr.readline().split(" at ")[1].split("/v1")[0]

    def close(self) -> None:
        """Ends it."""
        self._process.terminate()
        self._process.wait(60)

    async def _ask(self, client: httpx.AsyncClient, body: dict[str, Any]) -> Timed:
        start, first, tokens = time.perf_counter(), 0.0, 0
        async with client.stream("POST", f"{self.address}/v1/chat/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                if event["choices"] and event["choices"][0]["delta"].get("content"):
                    first = first or time.perf_counter() - start
                tokens = event.get("usage", {}).get("completion_tokens", tokens)
        total = time.perf_counter() - start
        return Timed(first or total, total, tokens)

    def load(self, bodies: Sequence[dict[str, Any]], concurrency: int) -> tuple[float, list[Timed]]:
        """Seconds for all requests, and each one's times."""

        async def run() -> list[Timed]:
            gate = asyncio.Semaphore(concurrency)
            async with httpx.AsyncClient(timeout=600) as client:

                async def one(body: dict[str, Any]) -> Timed:
                    async with gate:
                        return await self._ask(client, body)

                return await asyncio.gather(*map(one, bodies))

        start = time.perf_counter()
        answers = asyncio.run(run())
        return time.perf_counter() - start, answers


def body_of(number: int, keep: int, longest: int) -> dict[str, Any]:
    """A request of the server."""
    stream = io.BytesIO()
    picture(number).save(stream, "PNG")
    url = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": QUESTION.format(number)},
    ]
    own = {"keep": keep, "max_tokens": length(number, longest), "temperature": 0, "stream": True}
    return {"messages": [{"role": "user", "content": content}], "stream_options": {"include_usage": True}} | own


def fixed(vlm: trtprune.Vlm, numbers: Sequence[int], keep: int, longest: int, rows: int) -> tuple[float, list[Timed]]:
    """The same requests in batches of ``rows``, one after the other."""
    start, answers = time.perf_counter(), []
    for first in range(0, len(numbers), rows):
        batch = numbers[first : first + rows]
        requests = [
            trtprune.Request(picture(n), QUESTION.format(n), keep=keep, max_new_tokens=length(n, longest))
            for n in batch
        ]
        begin = time.perf_counter()
        results = vlm.generate_batch(requests, temperature=0)
        total = time.perf_counter() - begin
        answers += [Timed(r.time_to_first_token_ms / 1000, total, len(r.token_ids)) for r in results]
    return time.perf_counter() - start, answers


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each budget, concurrency and way."""
    vlm = trtprune.load(args.out, threads=args.threads)
    server = Server(args.out, args.max_batch_size, args.threads)
    seconds: dict[tuple[int, int, str], list[float]] = defaultdict(list)
    answers: dict[tuple[int, int, str], list[Timed]] = defaultdict(list)
    number = 0
    try:
        for keep in args.keep:  # warm
            server.load([body_of(10**6 + keep, keep, 2)], 1)
            fixed(vlm, [10**6 + keep], keep, 2, 1)
        for _ in range(args.rounds):
            for keep in args.keep:
                for concurrency in args.concurrency:
                    numbers = range(number, number + args.requests)
                    number += args.requests
                    rows = min(concurrency, args.max_batch_size)
                    bodies = [body_of(n, keep, args.max_new_tokens) for n in numbers]
                    for name, (taken, found) in (
                        ("served", server.load(bodies, concurrency)),
                        ("fixed", fixed(vlm, numbers, keep, args.max_new_tokens, rows)),
                    ):
                        seconds[keep, concurrency, name].append(taken)
                        answers[keep, concurrency, name] += found
    finally:
        server.close()
    return [_row(key, args.requests, seconds[key], answers[key]) for key in seconds]


def _row(key: tuple[int, int, str], requests: int, seconds: Sequence[float], found: Sequence[Timed]) -> dict[str, Any]:
    keep, concurrency, name = key
    first = np.array([one.first for one in found])
    tokens = sum(one.tokens for one in found) / len(seconds)
    return {
        "keep": keep,
        "concurrency": concurrency,
        "way": name,
        "requests_per_s": round(requests / statistics.median(seconds), 3),
        "tokens_per_s": round(tokens / statistics.median(seconds), 2),
        "first_token_s": {f"p{q}": round(float(np.percentile(first, q)), 3) for q in (50, 95, 99)},
        "seconds": summary(seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser.add_argument("out", type=Path)
    parser.add_argument("--keep", type=numbers, default=[576, 64])
    parser.add_argument("--concurrency", type=numbers, default=[1, 4, 16])
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument("--max-batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = measure(args)
    for row in rows:
        first = row["first_token_s"]
        print(
            f"keep {row['keep']:4} concurrency {row['concurrency']:3} {row['way']:6} {row['requests_per_s']:7.2f} "
            f"requests/s {row['tokens_per_s']:8.1f} tokens/s, first token p50 {first['p50']:.2f} "
            f"p95 {first['p95']:.2f} s"
        )
    per_token = trtprune.load(args.out, threads=1).config.kv.bytes_per_token
    memory = {str(keep): round((1 << 30) / (per_token * (keep + 64)), 1) for keep in args.keep}
    if args.json:
        command = [name for name in sys.argv[1:] if not name.startswith("/")]
        write_json(
            args.json,
            {"machine": machine(), "command": ["benchmarks/bench_serve.py", *command], "rows": rows}
            | {"rows_in_1_gib_with_64_words": memory},
        )


if __name__ == "__main__":
    main()
