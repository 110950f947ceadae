"""The number of threads for ONNX Runtime on this machine."""

from __future__ import annotations

import math
import os
from pathlib import Path

__all__ = ["available_threads"]


def available_threads() -> int:
    """Processors this process may use: its affinity mask, cut to the container's CPU quota; at least 1."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for quota, period in _quotas():
        if quota > 0 and period > 0:
            count = min(count, math.ceil(quota / period))
    return max(1, count)


def _quotas() -> list[tuple[int, int]]:
    found = []
    try:  # cgroup v2: "QUOTA PERIOD" or "max PERIOD"
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        found.append((int(quota), int(period)))
    except (OSError, ValueError):
        pass
    try:  # cgroup v1; a quota of -1 means no limit
        base = Path("/sys/fs/cgroup/cpu")
        found.append(
            (
                int((base / "cpu.cfs_quota_us").read_text(encoding="ascii")),
                int((base / "cpu.cfs_period_us").read_text(encoding="ascii")),
            )
        )
    except (OSError, ValueError):
        pass
    return found
