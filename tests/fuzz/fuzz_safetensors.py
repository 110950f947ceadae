"""Weight files: headers of one file, and an index with its shards."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

SHORT = 15
PRELOAD = ("numpy", "ml_dtypes", "trtprune.checkpoint")

DTYPES = ("F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F64", "C64", "F4", "f32", "")
SIZES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F64": 8, "C64": 8}
LENGTHS = (0, 1, 2, 3, 8, 100, 2**31, 2**62, 2**63, 2**64, -1, 1.5, True, None, "1", 10**4000)
NAMES = ("w", "lm_head.weight", "", "a" * 1000, "\x1b[2J", "a\nerror: b", "\u202e", "../x", "w" * 3_000_000)
FILES = ("model-1.safetensors", "model-2.safetensors")
PATHS = (*FILES, "../x", "/dev/zero", "m" * 5000, "", "a\0b", ".", "C:x", "missing.safetensors", 5, None, ["x"])


def make_header(rng: random.Random) -> tuple[dict[str, Any], int]:
    """A valid header of a few tensors, and the bytes behind it."""
    header: dict[str, Any] = {}
    end = 0
    for number in range(rng.randrange(1, 6)):
        dtype = rng.choice(tuple(SIZES))
        shape = [rng.choice((1, 2, 3)) for _ in range(rng.randrange(4))]
        size = SIZES[dtype]
        for n in shape:
            size *= n
        header[f"t{number}"] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    return header, end


def spoil(rng: random.Random, header: dict[str, Any]) -> None:
    """Changes an entry of a header."""
    name = rng.choice(list(header) or ["t0"])
    entry = header.setdefault(name, {})
    kind = rng.randrange(8)
    if not isinstance(entry, dict) or kind == 0:
        header[name] = rng.choice((None, 1, "x", [], {}, [entry]))
    elif kind == 1:
        entry["dtype"] = rng.choice((*DTYPES, 5, None, ["F32"], {"F32": 1}, "x" * 1_000_000))
    elif kind == 2:
        count = rng.choice((1, 2, 4, 32, 33, 100, 100_000, 1_000_000))
        entry["shape"] = rng.choice(([rng.choice(LENGTHS)] * min(count, 2000), [rng.choice(LENGTHS[:9])] * count))
    elif kind == 3:
        entry["data_offsets"] = [rng.choice(LENGTHS) for _ in range(rng.choice((1, 2, 2, 2, 3, 100_000)))]
    elif kind == 4:
        header[rng.choice(NAMES)] = header.pop(name)
    elif kind == 5:
        header["__metadata__"] = rng.choice(({"a": "b"}, None, {"x" * 1000: "y" * 5_000_000}, [1]))
    elif kind == 6:
        entry.pop(rng.choice(list(entry) or ["dtype"]), None)
    else:
        for number in range(rng.choice((10, 20_000))):
            header[f"more{number}"] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}


def make_file(rng: random.Random) -> bytes:
    """A file; most are spoiled somehow."""
    header, size = make_header(rng)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        spoil(rng, header)
    text = json.dumps(header, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    if rng.random() < 0.15:
        text = fill(rng)
    data = bytearray(text)
    if rng.random() < 0.2:
        for _ in range(rng.randrange(1, 5)):
            data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
    length = len(data)
    if rng.random() < 0.1:
        length = rng.choice((0, 1, length - 1, length + 1, 2 * length, 24_000_000, 2**32, 2**63, 2**64 - 1))
    if rng.random() < 0.1:
        size += rng.choice((-1, 1, 1000))
    return struct.pack("<Q", max(0, length)) + bytes(data) + bytes(max(0, size))


def fill(rng: random.Random) -> bytes:
    """JSON that is much larger once it is parsed."""
    units = (b"{},", b"[],", b'"\xc3\xa9",', b"257,", b"1e5,", b'{"":0},', b"[", b'{"a":', b'"t":{},', b" ")
    unit = rng.choice(units)
    count = rng.choice((1000, 1_000_000 // len(unit), 24_900_000 // len(unit), 95_000_000 // len(unit)))
    return rng.choice((b'{"a":[', b"{")) + unit * count + rng.choice((b"0]}", b'"z":0}'))


def make_index(rng: random.Random) -> bytes:
    """An index of the two shards, right or wrong."""
    names = {f"t{number}": rng.choice(FILES) for number in range(rng.randrange(1, 8))}
    for _ in range(rng.choice((0, 1, 2))):
        names[rng.choice((*names, *NAMES))] = rng.choice(PATHS)
    if rng.random() < 0.1:
        names |= {f"n{number}": rng.choice((*FILES, f"s{number}.safetensors")) for number in range(50_000)}
    if rng.random() < 0.1:
        return fill(rng)
    return json.dumps(rng.choice(({"weight_map": names}, {"weight_map": names}, names, [names]))).encode()


def make_case(rng: random.Random) -> dict[str, bytes]:
    """Files by name."""
    if rng.random() < 0.7:
        return {"model.safetensors": make_file(rng)}
    return {"model.safetensors.index.json": make_index(rng), **{name: make_file(rng) for name in FILES}}


def attempt(case: dict[str, bytes], folder: Path) -> None:
    """What is accepted is read in full."""
    from trtprune.checkpoint import open_checkpoint

    (folder / "config.json").write_text("{}")
    for name, data in case.items():
        (folder / name).write_bytes(data)
    found = open_checkpoint(folder)
    names = list(found.tensors)
    for name, info in found.tensors.items():
        if found.read(name).nbytes != info.nbytes:
            raise AssertionError(f"{name}: not what its header says")
    found.same_values(names[0], names[-1])
    found.digest()
