"""Digests of the files of an engine directory: of every byte, or of a small part of a large file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO

__all__ = ["FULL_CHECK_BYTES", "digest_file", "digest_head", "digest_weights"]

# Hashing runs at about 1–2 GB/s: below this size a check of every byte takes little time.
FULL_CHECK_BYTES = 1 << 30


def digest_file(path: Path) -> str:
    """``sha256:HEX`` of all bytes of a file."""
    with path.open("rb") as stream:
        return "sha256:" + _sha256(stream)


def _sha256(stream: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def digest_weights(path: Path) -> str:
    """``sha256-header-size:HEX`` of a safetensors file: its header and its size, not its data."""
    with path.open("rb") as stream:
        prefix = stream.read(8)
        length = min(int.from_bytes(prefix, "little"), 100_000_000)
        header = stream.read(length)
    digest = hashlib.sha256(prefix + header + str(path.stat().st_size).encode())
    return "sha256-header-size:" + digest.hexdigest()


def digest_head(path: Path) -> str:
    """``sha256-head-size:HEX`` of a large file: its first MiB and its size."""
    with path.open("rb") as stream:
        head = stream.read(1 << 20)
    return "sha256-head-size:" + hashlib.sha256(head + str(path.stat().st_size).encode()).hexdigest()
