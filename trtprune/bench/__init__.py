"""The cost of a build: time, memory and operations, measured beside other methods and peers."""

from __future__ import annotations

from trtprune.bench.flops import count_chain, count_flops

__all__ = ["count_chain", "count_flops"]
