"""What machine a result was measured on; shared by the scripts here."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

# Behind what is installed: a clone that is not finds itself.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from trtprune.bench.machine import machine

__all__ = ["machine", "summary", "write_json"]


def summary(samples: list[float]) -> dict[str, float]:
    """Median, minimum and maximum, rounded to three digits behind the point."""
    return {
        "median": round(statistics.median(samples), 3),
        "min": round(min(samples), 3),
        "max": round(max(samples), 3),
        "n": len(samples),
    }


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Writes a result, and its folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
