"""Requests a second, time to the first token and per token of `trtprune serve`, beside fixed batches and a peer.

    python benchmarks/bench_serve.py OUT [--keep 576,64] [--concurrency 1,4,8,16] [--waves 2] [--rounds 3]
        [--max-new-tokens 16] [--max-batch-size 8] [--prefill-chunk N] [--peer NAME=http://127.0.0.1:8001]
        [--json benchmarks/results/serve.json]
    python benchmarks/bench_serve.py --checkpoint FOLDER

The server runs in a process of its own with the memory of images and prompts off, so that every request does all of its
work: another image and another question each time.  Clients ask over HTTP with streams and keep so many requests open
as ``concurrency`` says, ``waves`` times that many in all.  ``fixed`` is the same runtime in this process without a
server: as many requests at a time as the server has rows, the next ones when all of these are done; its first tokens
come when the whole batch has one.  ``--peer`` is another OpenAI-compatible server that the user started on the same
checkpoint with as many rows; it does not prune, so it is asked with the first budget only, which is to be all tokens.
Answers have a fixed length (``ignore_eos``); several lengths, as ``16,4``, are taken in turn.

In each round all take turns; figures are medians over rounds, ratios are taken round by round, percentiles are of all
requests of all rounds.  ``--json`` adds to a file that is there: rows of another budget or concurrency stay, so that a
long measurement may be made in pieces.

``--checkpoint`` writes a checkpoint that peers read, too: the demo model's sizes and text files with CLIP's tower in
place of DINOv2's, and made-up weights.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import itertools
import json
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from _checkpoints import write_checkpoint
from _machine import machine, summary, write_json
from PIL import Image

import trtprune
from trtprune.demo import assemble
from trtprune.engine_dir import open_engine_dir

QUESTION = "What is in this picture, and what is behind it? Number {}."


@dataclass(frozen=True)
class Timed:
    """One answer: seconds to its first text and to its end, and its tokens."""

    first: float
    total: float
    tokens: int


@dataclass(frozen=True)
class Asked:
    """A request: the number of its picture and question, its budget, and the length of its answer."""

    number: int
    keep: int
    tokens: int


def picture(number: int) -> Image.Image:
    """A smooth random image, another one for each number."""
    coarse = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((336, 336), Image.Resampling.BICUBIC)


class Clients:
    """Clients of an OpenAI-compatible server.

    Args:
        address: The server's address, without a path.
        prunes: Whether it is told how many visual tokens to keep.
    """

    def __init__(self, address: str, *, prunes: bool) -> None:
        self._address, self._prunes = address, prunes
        self._model = httpx.get(f"{address}/v1/models").raise_for_status().json()["data"][0]["id"]

    async def _ask(self, client: httpx.AsyncClient, body: dict[str, Any]) -> Timed:
        start, first, tokens = time.perf_counter(), 0.0, 0
        async with client.stream("POST", f"{self._address}/v1/chat/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                if event["choices"] and event["choices"][0]["delta"].get("content"):
                    first = first or time.perf_counter() - start
                tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
        total = time.perf_counter() - start
        return Timed(first or total, total, tokens)

    def load(self, requests: Sequence[Asked], concurrency: int) -> tuple[float, list[Timed]]:
        """Seconds for all requests, and each one's times."""
        bodies = [self._body(asked) for asked in requests]

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

    def _body(self, asked: Asked) -> dict[str, Any]:
        stream = io.BytesIO()
        picture(asked.number).save(stream, "PNG")
        url = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": QUESTION.format(asked.number)},
        ]
        own = {"max_tokens": asked.tokens, "ignore_eos": True, "temperature": 0, "stream": True, "model": self._model}
        own |= {"keep": asked.keep} if self._prunes else {}
        return {"messages": [{"role": "user", "content": content}], "stream_options": {"include_usage": True}} | own


class Server:
    """`trtprune serve` in a process of its own.

    Args:
        args: The command's.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        command = [sys.executable, "-m", "trtprune", "serve", str(args.out), "--port", "0"]
        command += ["--max-batch-size", str(args.max_batch_size), "--max-queued-requests", "1024"]
        command += ["--image-cache-mb", "0", "--prefix-cache-mb", "0"]
        command += [] if args.threads is None else ["--threads", str(args.threads)]
        command += [] if args.prefill_chunk is None else ["--prefill-chunk", str(args.prefill_chunk)]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        self.address = self._process.stderr.readline().split(" at ")[1].split("/v1")[0]

    def close(self) -> None:
        """Ends it."""
        self._process.terminate()
        self._process.wait(60)


def fixed(vlm: trtprune.Vlm, asked: Sequence[Asked], rows: int) -> tuple[float, list[Timed]]:
    """The same requests in batches of ``rows``, one after the other."""
    start, answers = time.perf_counter(), []
    for first in range(0, len(asked), rows):
        requests = [
            trtprune.Request(picture(a.number), QUESTION.format(a.number), keep=a.keep, max_new_tokens=a.tokens)
            for a in asked[first : first + rows]
        ]
        begin = time.perf_counter()
        results = vlm.generate_batch(requests, temperature=0, ignore_eos=True)
        total = time.perf_counter() - begin
        answers += [Timed(r.time_to_first_token_ms / 1000, total, len(r.token_ids)) for r in results]
    return time.perf_counter() - start, answers


Samples = dict[tuple[int, int, str], list[tuple[float, list[Timed]]]]
"""Budget, concurrency and way → for each round the seconds for all requests, and each one's times."""


def measure(args: argparse.Namespace) -> Iterator[Samples]:
    """The samples so far, behind each round of all ways."""
    vlm, server = trtprune.load(args.out, threads=args.threads), Server(args)
    samples: Samples = defaultdict(list)
    numbers = itertools.count()
    try:
        servers = {"served": Clients(server.address, prunes=True)}
        if args.peer:
            servers[args.peer[0]] = Clients(args.peer[1], prunes=False)
        for keep in args.keep:  # warm
            asked = [Asked(10**6 + keep, keep, 2)]
            for clients in servers.values():
                clients.load(asked, 1)
            fixed(vlm, asked, 1)
        for keep, concurrency, _ in itertools.product(args.keep, args.concurrency, range(args.rounds)):
            count, lengths = concurrency * args.waves, itertools.cycle(args.max_new_tokens)
            asked = [Asked(next(numbers), keep, next(lengths)) for _ in range(count)]
            for name, clients in servers.items():
                if name == "served" or keep == args.keep[0]:
                    samples[keep, concurrency, name].append(clients.load(asked, concurrency))
            rows = min(concurrency, args.max_batch_size)
            samples[keep, concurrency, "fixed"].append(fixed(vlm, asked, rows))
            yield samples
    finally:
        server.close()


def rows_of(samples: Samples) -> list[dict[str, Any]]:
    """A row for each budget, concurrency and way."""
    rows = []
    for (keep, concurrency, way), rounds in samples.items():
        found = [one for _, answers in rounds for one in answers]
        rates = [len(answers) / seconds for seconds, answers in rounds]
        later = [(one.total - one.first) / (one.tokens - 1) for one in found if one.tokens > 1]
        row = {"keep": keep, "concurrency": concurrency, "way": way, "requests_per_s": summary(rates)}
        row["first_token_s"] = _percentiles([one.first for one in found])
        if way != "fixed":  # its pieces come at the end
            row["per_token_ms"] = _percentiles([1000 * one for one in later])
        rows.append(row)
    return rows


def ratios_of(samples: Samples) -> list[dict[str, Any]]:
    """Requests a second of the server, divided by those of the other ways, and of itself with the first budget."""
    first, ratios = next(iter(samples))[0], []
    for keep, concurrency, way in samples:
        if way != "served":
            continue
        others = {"fixed": (keep, concurrency, "fixed"), f"served at {first}": (first, concurrency, way)}
        others |= {
            name: key for key in samples if (name := key[2]) not in ("served", "fixed") and key[1] == concurrency
        }
        for name, key in others.items():
            if key == (keep, concurrency, way):
                continue
            pairs = zip(samples[keep, concurrency, way], samples[key], strict=False)
            values = [len(mine) / seconds * theirs / len(other) for (seconds, mine), (theirs, other) in pairs]
            row = {"keep": keep, "concurrency": concurrency, "against": name}
            ratios.append(row | {"requests_per_s": summary(values)})
    return ratios


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{q}": round(float(np.percentile(values, q)), 3) for q in (50, 95, 99)} if values else {}


def write_peer_checkpoint(folder: Path) -> None:
    """The checkpoint of ``--checkpoint``."""
    folder.mkdir(parents=True, exist_ok=True)
    demo = assemble()
    write_checkpoint(folder, "135m", seed=0)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "processor_config.json"):
        shutil.copyfile(demo / name, folder / name)


def _join(old: dict[str, Any], new: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """The new result, with the old one's rows that it does not replace."""
    for name in ("rows", "ratios"):
        fresh = {tuple(row[key] for key in keys) for row in new[name]}
        new[name] = [row for row in old.get(name, []) if tuple(row[key] for key in keys) not in fresh] + new[name]
    return new


def write(args: argparse.Namespace, rows: list[dict[str, Any]], ratios: list[dict[str, Any]]) -> None:
    """Adds to the result; behind each round, so that a measurement may be broken off."""
    per_token = open_engine_dir(args.out, verify="none").kv.bytes_per_token
    memory = {str(keep): round((1 << 30) / (per_token * (keep + 64)), 1) for keep in args.keep}
    result = {"machine": machine(), "rows": rows, "ratios": ratios, "rows_in_1_gib_with_64_words": memory}
    result["settings"] = {"rows": args.max_batch_size, "tokens": args.max_new_tokens, "chunk": args.prefill_chunk}
    old = json.loads(args.json.read_text()) if args.json.exists() else {}
    write_json(args.json, _join(old, result, ("keep", "concurrency")))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--checkpoint", type=Path, metavar="FOLDER")
    parser.add_argument("--keep", type=numbers, default=[576, 64])
    parser.add_argument("--concurrency", type=numbers, default=[1, 4, 8, 16])
    parser.add_argument("--waves", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-new-tokens", type=numbers, default=[16])
    parser.add_argument("--max-batch-size", type=int, default=8)
    parser.add_argument("--prefill-chunk", type=int)
    parser.add_argument("--peer", type=lambda text: text.split("=", 1), metavar="NAME=ADDRESS")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if (args.out is None) == (args.checkpoint is None):
        parser.error("either OUT or --checkpoint")
    return args


def main() -> None:
    args = _arguments()
    if args.checkpoint is not None:
        write_peer_checkpoint(args.checkpoint)
        return
    for samples in measure(args):
        rows, ratios = rows_of(samples), ratios_of(samples)
        if args.json:
            write(args, rows, ratios)
    for row in rows:
        first, later = row["first_token_s"], row.get("per_token_ms", {})
        print(
            f"keep {row['keep']:4} concurrency {row['concurrency']:3} {row['way']:10} "
            f"{row['requests_per_s']['median']:7.2f} requests/s, first token p50 {first['p50']:.2f} p95 "
            f"{first['p95']:.2f} s, per token {later.get('p50', 0):.0f} ms"
        )
    for ratio in ratios:
        print(ratio)


if __name__ == "__main__":
    main()
