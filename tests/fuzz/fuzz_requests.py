"""Request files: broken lines, hostile values, pictures that are none, names that are none."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

SHORT = 15
PRELOAD = ("numpy", "PIL.Image", "trtprune.runtime", "trtprune.runtime.requests")
GOOD: dict[str, Any] = {"image": "a.png", "prompt": "what"}
KEYS = (
    "id", "image", "images", "prompt", "question", "keep", "max_new_tokens", "seed", "system", "raw_prompt",
    "min_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "stop", "ignore_eos", "answer",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 64, 2.5, 10**400, float("nan"), "", " ", "x" * 100_000, "\x1b[2J", "\ud800", "\u2028", [], [[]],
    {}, {"a": {}}, ["a.png"] * 1000, "a\0b", "../" * 2000, "/dev/zero", "fifo", "http://127.0.0.1/", "file://h/x",
    "data:,x", "data:image/png;base64,@@", "https:" + "/" * 3000, "loop", "e" * 5000,
)  # fmt: skip


def make_case(rng: random.Random) -> bytes:
    """Bytes of a request file."""
    lines = [_line(rng) for _ in range(rng.choice((1, 3, 10)))]
    data = rng.choice((b"", b"", b"\xef\xbb\xbf", b"\xff\xfe")) + rng.choice((b"\n", b"\n", b"\r\n", b"\r")).join(lines)
    return data + rng.choice((b"", b"\n"))


def _line(rng: random.Random) -> bytes:
    kind = rng.random()
    if kind < 0.15:
        return rng.choice(
            (
                b"[" * 10**6,
                b'{"a":' * 10**5,
                b'{"prompt": ' + b"9" * 10**6 + b"}",
                b'{"image": "a.png", "prompt": "' + b"x" * (18 << 20),
                b"[" + b"{}," * (4 << 20),
                rng.randbytes(1000).replace(b"\n", b""),
                b"\0" * 10**6,
            )
        )
    row = GOOD | {rng.choice(KEYS): rng.choice(VALUES) for _ in range(rng.choice((0, 1, 1, 2)))}
    text = json.dumps(row, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    if rng.random() < 0.2:
        text = text[: rng.randrange(len(text))]
    return text


def attempt(data: bytes, folder: Path) -> None:
    """Every row is one that can be answered, or says in a printable line why not."""
    import os

    from PIL import Image

    from trtprune.errors import one_line
    from trtprune.runtime.requests import RequestFile

    Image.new("RGB", (4, 4)).save(folder / "a.png")
    os.mkfifo(folder / "fifo")
    (folder / "loop").symlink_to("loop")
    (folder / "rows.jsonl").write_bytes(data)
    with RequestFile(folder / "rows.jsonl") as rows:
        for row in rows:
            assert one_line(row.fault) == row.fault, row.fault
            json.dumps(row.echo()).encode()
            if not row.fault:
                row.to_request({})
        rows.survey()
