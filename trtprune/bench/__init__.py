"""What a build costs: operations counted in its graphs."""

from __future__ import annotations

from trtprune.bench.flops import count_chain, count_flops

__all__ = ["count_chain", "count_flops"]
