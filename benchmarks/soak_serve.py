"""Whether `trtprune serve` stays as it is under a full load of good, bad and rude clients.

    python benchmarks/soak_serve.py [OUT] [--minutes 20] [--clients 12] [--json benchmarks/results/soak.json]

Clients ask whole answers and streams about changing images, hang up before the first token and within a stream, read
slowly, and send what must be refused: no key, broken JSON and base64, a decompression bomb, a body too large, an
unknown model, settings out of range.  The server's limits are small, so that caches are full early and the queue often.
Every refusal must have its status and OpenAI's form; the same question must have the same answer every time; at the
end no request may be left.

Every few seconds the script notes the resident memory of the server and its children, its file descriptors and threads,
and the gauges of /metrics.  It fails if the last fifth of the time needs more than the second one: memory by its median
(5 % or 16 MiB), files and threads by their maximum (8).  The exit code is 1 then, and the result says why.

Without OUT the tests' tiny model is built and served; that needs a clone and the extra [test].
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import hashlib
import io
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from _machine import machine, write_json
from PIL import Image

KEY = "soak"
PICTURES, QUESTIONS = 60, 8
SAMPLE_S = 5.0
MIB = 1 << 20
BOMB = "iVBORw0KGgoAAAANSUhEUgAA6mAAAOpgCAIAAABZ0nLyAAAAAElFTkSuQmCC"
"""A PNG header of 60000 × 60000 pixels."""
GAUGES = ("queued_requests", "active_requests", "kv_cache_bytes")


class Server:
    """`trtprune serve` in a process of its own, with small limits.

    Args:
        out: The engine directory.
        log: A file for what it says.
    """

    def __init__(self, out: Path, log: Path) -> None:
        options = {"port": 0, "api-key": KEY, "max-batch-size": 4, "max-queued-requests": 6, "max-body-mb": 1}
        options |= {"image-cache-mb": 1, "prefix-cache-mb": 4, "threads": 1}
        command = [sys.executable, "-m", "trtprune", "serve", str(out)]
        command += [text for name, value in options.items() for text in (f"--{name}", str(value))]
        self._log = log.open("wb")
        self.process = subprocess.Popen(command, stderr=self._log)
        self.address = self._address(log)

    def _address(self, log: Path) -> str:
        for _ in range(1200):
            said = re.search(r" at (http://[\d.:]+)/v1", log.read_text(errors="replace"))
            if said:
                return said[1]
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        raise SystemExit(f"the server did not start:\n{log.read_text(errors='replace')}")

    def sample(self, client: httpx.Client) -> dict[str, float]:
        """What it needs at the moment, and what its gauges say."""
        own = psutil.Process(self.process.pid)
        rss = own.memory_info().rss
        for child in own.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                rss += child.memory_info().rss
        text = client.get(f"{self.address}/metrics").text
        gauges = {name: float(re.findall(rf"^trtprune_{name} (\S+)$", text, re.MULTILINE)[0]) for name in GAUGES}
        return {"rss_mib": round(rss / MIB, 1), "files": own.num_fds(), "threads": own.num_threads()} | gauges

    def requests(self, client: httpx.Client) -> dict[str, int]:
        """Requests by status, as it counts them itself."""
        text = client.get(f"{self.address}/metrics").text
        found = re.findall(r'^trtprune_requests_total\{status="(\d+)"\} (\S+)$', text, re.MULTILINE)
        return {status: int(float(count)) for status, count in found}

    def close(self) -> int:
        """Ends it as a user does; its exit code."""
        self.process.terminate()
        try:
            return self.process.wait(60)
        finally:
            self.process.kill()
            self._log.close()


def address_of(number: int) -> str:
    """The picture of this number as a ``data:`` address."""
    draw = np.random.default_rng(number)
    coarse = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    size = (int(draw.integers(40, 400)), int(draw.integers(40, 400)))
    stream = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def about(url: str, text: str, **fields: Any) -> dict[str, Any]:
    """The body of a request about one image."""
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    return {"messages": [{"role": "user", "content": content}], **fields}


@dataclass
class Load:
    """The clients and what they saw.

    Attributes:
        address: The server's address.
        statuses: Requests by status, those without an answer left out.
        kinds: Requests by kind of client.
        faults: What went wrong, at most once for each text.
        answers: Answer to every question so far.
    """

    address: str
    statuses: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    answers: dict[str, str] = field(default_factory=dict)
    end: float = 0.0

    def __post_init__(self) -> None:
        self._pictures = [address_of(number) for number in range(PICTURES)]
        self._url = f"{self.address}/v1/chat/completions"
        self._bad = self._bad_requests()

    def _bad_requests(self) -> list[tuple[int, dict[str, Any]]]:
        """Status → arguments of a POST that must have it."""
        good, key = self._pictures[0], {"Authorization": f"Bearer {KEY}"}
        broken = "data:image/png;base64,"
        bodies = [about(url, "x") for url in (broken + "@@", broken + BOMB, good[:-400], "file:///etc/passwd", "x" * 9)]
        bodies += [
            about(good, "x", **fields) for fields in ({"keep": 10**6}, {"max_tokens": -1}, {"temperature": "hot"})
        ]
        bodies += [{"messages": []}, about(good, "x" * 200_000), about("http://127.0.0.1:1/x.png", "x")]
        bodies += [about(good, "x", n=2), about(good, "x", stop=["x"] * 99)]
        found: list[tuple[int, dict[str, Any]]] = [(400, {"json": body, "headers": key}) for body in bodies]
        found += [(400, {"content": b'{"messages":', "headers": {**key, "Content-Type": "application/json"}})]
        found += [(404, {"json": about(good, "x", model="other"), "headers": key})]
        found += [(401, {"json": about(good, "x")}), (401, {"json": {}, "headers": {"Authorization": "Bearer other"}})]
        found += [(413, {"content": b"x" * (2 * MIB), "headers": key})]
        return found

    def fault(self, text: str) -> None:
        """Notes something that must not happen."""
        if text not in self.faults:
            print(text, file=sys.stderr)
        self.faults[text[:300]] += 1

    def _question(self, draw: random.Random) -> dict[str, Any]:
        picture, question = draw.randrange(PICTURES), draw.randrange(QUESTIONS)
        fields: dict[str, Any] = {"max_tokens": draw.choice((1, 4, 12, 30)), "keep": draw.choice((3, 6, 12))}
        fields |= {"temperature": draw.choice((0, 0.8)), "seed": 3}
        body = about(self._pictures[picture], "Why? " * (1 + 3 * question), **fields)
        if draw.random() < 0.2:
            other = {"type": "image_url", "image_url": {"url": self._pictures[(picture + 1) % PICTURES]}}
            body["messages"][0]["content"].insert(0, other)
        return body

    def _same(self, body: dict[str, Any], text: str) -> None:
        """Compares an answer with that to the same question before."""
        key = json.dumps({name: value for name, value in body.items() if name != "stream"})
        name = hashlib.sha256(key.encode()).hexdigest()
        if self.answers.setdefault(name, text) != text:
            self.fault("two answers to one question")

    async def _whole(self, client: httpx.AsyncClient, draw: random.Random) -> None:
        body = self._question(draw)
        response = await client.post(self._url, json=body)
        await self._count(response)
        if response.status_code == 200:
            self._same(body, response.json()["choices"][0]["message"]["content"])

    async def _stream(self, client: httpx.AsyncClient, draw: random.Random, *, slow: bool = False) -> None:
        body = self._question(draw) | {"stream": True}
        pieces, last = [], ""
        async with client.stream("POST", self._url, json=body) as response:
            if response.status_code != 200:
                await response.aread()
                await self._count(response)
                return
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line[6:])
                    if "error" in event:
                        self.fault(f"an error in a stream: {event['error']}")
                        continue
                    pieces.append(event["choices"][0]["delta"].get("content") or "")
                last = line or last
                if slow:
                    await asyncio.sleep(0.1)
        await self._count(response)
        if last != "data: [DONE]":
            self.fault("a stream without an end")
        self._same(body, "".join(pieces))

    async def _hang_up_in_stream(self, client: httpx.AsyncClient, draw: random.Random) -> None:
        body = self._question(draw) | {"stream": True, "max_tokens": 30}
        left = draw.randrange(8)
        async with client.stream("POST", self._url, json=body) as response:
            async for _ in response.aiter_lines():
                left -= 1
                if left < 0:
                    return

    async def _hang_up_before(self, client: httpx.AsyncClient, draw: random.Random) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(draw.random() * 0.1):
                await client.post(self._url, json=self._question(draw) | {"max_tokens": 30})

    async def _half_a_body(self, client: httpx.AsyncClient, draw: random.Random) -> None:
        """A connection that breaks within the body."""
        host, port = self.address.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {KEY}\r\n"
        writer.write(
            f"{head}Content-Type: application/json\r\nContent-Length: 5000\r\n\r\n".encode() + b'{"messages": ['
        )
        await writer.drain()
        await asyncio.sleep(draw.random() * 0.2)
        writer.close()

    async def _refused(self, client: httpx.AsyncClient, draw: random.Random) -> None:
        status, request = draw.choice(self._bad)
        async with httpx.AsyncClient(timeout=120) as own:  # without the key
            response = await own.post(self._url, **request)
        await self._count(response)
        if response.status_code not in (status, 429):
            self.fault(f"{response.status_code} in place of {status}: {response.text[:150]}")

    async def _count(self, response: httpx.Response) -> None:
        """Notes a status, and looks at an error; after a 429 the client waits for a while."""
        self.statuses[str(response.status_code)] += 1
        if response.status_code == 200:
            return
        try:
            error = response.json()["error"]
            good = set(error) == {"message", "type", "param", "code"} and "\n" not in error["message"]
        except (ValueError, KeyError, TypeError):
            good = False
        if not good or response.status_code >= 500:
            self.fault(f"{response.status_code}: {response.text[:200]}")
        if response.status_code == 429:
            await asyncio.sleep(0.2)

    async def client(self, number: int) -> None:
        """One client until the end."""
        draw = random.Random(number)
        kinds = {"whole": 8, "stream": 5, "slow reader": 1, "hangs up in a stream": 2, "hangs up before": 2}
        kinds |= {"half a body": 1, "refused": 4}
        ways = {"whole": self._whole, "stream": self._stream, "hangs up in a stream": self._hang_up_in_stream}
        ways |= {"hangs up before": self._hang_up_before, "half a body": self._half_a_body, "refused": self._refused}
        async with httpx.AsyncClient(timeout=120, headers={"Authorization": f"Bearer {KEY}"}) as client:
            while time.monotonic() < self.end:
                [kind] = draw.choices(list(kinds), list(kinds.values()))
                self.kinds[kind] += 1
                try:
                    if kind == "slow reader":
                        await self._stream(client, draw, slow=True)
                    else:
                        await ways[kind](client, draw)
                except (httpx.HTTPError, OSError) as error:
                    self.fault(f"{kind}: {type(error).__name__}: {error}")

    async def run(self, clients: int, minutes: float) -> None:
        """All clients for so long."""
        self.end = time.monotonic() + 60 * minutes
        await asyncio.gather(*(self.client(number) for number in range(clients)))


async def soak(server: Server, load: Load, clients: int, minutes: float) -> list[dict[str, float]]:
    """Runs the load; what the server needed meanwhile."""
    samples: list[dict[str, float]] = []
    start = time.monotonic()

    def watch() -> None:
        with httpx.Client(timeout=60) as client:
            while time.monotonic() < start + 60 * minutes:
                samples.append({"s": round(time.monotonic() - start, 1)} | server.sample(client))
                time.sleep(SAMPLE_S)

    await asyncio.gather(load.run(clients, minutes), asyncio.to_thread(watch))
    return samples


def growth(samples: Sequence[dict[str, float]]) -> tuple[dict[str, Any], list[str]]:
    """Second and last fifth of the samples, and what is more in the last one."""
    fifth = max(1, len(samples) // 5)
    early, late = samples[fifth : 2 * fifth], samples[-fifth:]
    found: dict[str, Any] = {}
    faults = []
    for name in ("rss_mib", "files", "threads", *GAUGES):
        middle = [round(statistics.median(row[name] for row in rows), 1) for rows in (early, late)]
        most = [max(row[name] for row in rows) for rows in (early, late)]
        found[name] = {"median": middle, "max": most}
    before, after = found["rss_mib"]["median"]
    if after > before + max(16, 0.05 * before):
        faults.append(f"memory grew from {before} to {after} MiB")
    for name in ("files", "threads"):
        before, after = found[name]["max"]
        if after > before + 8:
            faults.append(f"{name} grew from {before:.0f} to {after:.0f}")
    return found, faults


def emptied(server: Server, client: httpx.Client) -> dict[str, float]:
    """The server without clients: what is left after up to half a minute."""
    for _ in range(60):
        state = server.sample(client)
        if state["queued_requests"] == state["active_requests"] == 0:
            break
        time.sleep(0.5)
    time.sleep(3)  # connections of clients that left
    return server.sample(client)


def measure(out: Path, args: argparse.Namespace, log: Path) -> dict[str, Any]:
    """The whole result; ``faults`` is empty if all is well."""
    server = Server(out, log)
    try:
        with httpx.Client(timeout=60) as client:
            idle = server.sample(client)
            load = Load(server.address)
            samples = asyncio.run(soak(server, load, args.clients, args.minutes))
            left = emptied(server, client)
            counted = server.requests(client)
        found, faults = growth(samples)
        faults += [f"{count} times: {text}" for text, count in load.faults.items()]
        if left["queued_requests"] or left["active_requests"]:
            faults.append(f"requests are left: {left}")
        if left["files"] > idle["files"] + 8:
            faults.append(f"{left['files']} files are open, {idle['files']} before")
        for status, count in load.statuses.items():
            # Requests of clients that hung up may have any of the other statuses.
            if (counted.get(status, 0) != count) if status in ("401", "404", "413") else counted.get(status, 0) < count:
                faults.append(f"status {status}: {count} were seen, {counted.get(status, 0)} counted")
        code = server.close()
        if code:
            faults.append(f"the server's exit code is {code}")
    finally:
        server.process.kill()
    tracebacks = log.read_text(errors="replace").count("Traceback")
    if tracebacks:
        faults.append(f"{tracebacks} tracebacks in the server's log")
    return {
        "minutes": args.minutes,
        "clients": args.clients,
        "requests": sum(load.kinds.values()),
        "by_client": dict(sorted(load.kinds.items())),
        "seen_by_status": dict(sorted(load.statuses.items())),
        "counted_by_status": dict(sorted(counted.items())),
        "different_questions": len(load.answers),
        "idle": idle,
        "second_and_last_fifth": found,
        "left": left,
        "samples": samples[:: max(1, len(samples) // 60)],
        "faults": faults,
    }


def tiny(folder: Path) -> Path:
    """An engine directory of the tests' tiny model."""
    import trtprune
    from tests.kit.tiny_files import complete

    trtprune.build(complete(folder / "model"), folder / "out", keep=6, method="adafv")
    return folder / "out"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--log", type=Path, help="the server's log; without it, it is thrown away")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = args.out or tiny(Path(folder))
        result = measure(out, args, args.log or Path(folder) / "log")
    for name, value in result["second_and_last_fifth"].items():
        print(
            f"{name:16} median {value['median'][0]} → {value['median'][1]}, max {value['max'][0]} → {value['max'][1]}"
        )
    print(f"{result['requests']} requests: {result['seen_by_status']}")
    print("\n".join(result["faults"]) or "nothing grew, nothing was lost")
    if args.json:
        command = [name for name in sys.argv[1:] if not name.startswith("/")]
        what = "the tests' tiny model" if args.out is None else args.out.name
        write_json(
            args.json, {"machine": machine(), "command": ["benchmarks/soak_serve.py", *command], "model": what} | result
        )
    return 1 if result["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
