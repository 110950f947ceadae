"""The tables of README and docs, from the results in ``results/``: no figure in them is typed.

    python benchmarks/tables.py [--check]

Each table stands between ``<!-- table NAME -->`` and ``<!-- end -->`` in a document; this rewrites what is between.
With ``--check`` nothing is written, and a table that is not what the results say is an error.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = ("README.md", "docs/methods.md", "docs/bench.md", "docs/eval.md")
MARK = re.compile(r"(<!-- table (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def result(name: str) -> Any:
    """A result file."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table with its first column left and the others as they come."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def speed() -> str:
    """README: the default method at its budgets, and the peers."""
    found = result("bench-demo.json")
    ratios = {(r["method"], r["keep"], r["against"]): r["first_token"]["p50"] for r in found["ratios"]}
    rows = []
    for row in found["rows"]:
        if row["method"] not in ("none", "adafv", "sparsevlm") and not row["peer"]:
            continue
        name = row["method"] if row["peer"] else f"trtprune {row['method']}, {row['keep']} tokens"
        against = ratios.get((row["method"], row["keep"], "transformers float32"), 1.0)
        rows.append(
            [
                name,
                f"{row['first_token_ms']['p50']:.0f}",
                f"{against:.2f} ×",
                f"{row['tokens_per_second']['p50']:.1f}",
                f"{row['kv_cache_bytes'] / 1e6:.1f}",
                f"{row['gap']['first_token']:.2f}" if row.get("gap") else "",
            ]
        )
    rows.sort(key=lambda row: not row[0].startswith("transformers"))
    return markdown(["", "time to first token, ms", "speed-up", "tokens/s", "KV cache, MB", "time / floor"], rows)


def pruners() -> str:
    """docs/methods.md: what each selection takes."""
    found = result("pruners.json")["rows"]
    budgets = sorted({row["keep"] for row in found}, reverse=True)
    by = {(row["method"], row["keep"]): row for row in found}
    rows = [
        [f"`{name}`"]
        + [f"{by[name, k]['ms']['median']:.1f} ms, {100 * by[name, k]['share_of_prefill']:.1f} %" for k in budgets]
        for name in dict.fromkeys(row["method"] for row in found)
    ]
    return markdown(["pruner", *(f"{k} of 576" for k in budgets)], rows)


def methods() -> str:
    """docs/methods.md: methods at equal budgets, answers and time."""
    found = result("methods.json")["rows"]
    names = {"easy": "easy-VQA", "large": "largest object", "small": "another object"}
    first = next(row["first_token_ms"] for row in found if row["method"] == "none")
    rows = []
    for row in found:
        marks = []
        for key in names:
            mark = row["accuracy"][key]
            marks.append(f"{100 * mark['right'] / mark['of']:.1f} [{100 * mark['low']:.0f}, {100 * mark['high']:.0f}]")
        times = [""] * 4
        if row.get("first_token_ms"):
            times = [
                f"{row['first_token_ms']:.0f} ({first / row['first_token_ms']:.2f} ×)",
                f"{row['ms_per_token']:.1f}",
                f"{row['kv_cache_bytes'] / 1e6:.1f}",
                f"{row['giga_operations']:.0f}",
            ]
        rows.append([row["method"], str(row["keep"]), *marks, *times])
    head = ["method", "keep", *(f"{name}, %" for name in names.values())]
    return markdown([*head, "first token, ms", "ms/token", "KV, MB", "GFLOP"], rows)


TABLES: dict[str, Callable[[], str]] = {"speed": speed, "pruners": pruners, "methods": methods}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    stale = []
    for name in DOCUMENTS:
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        fresh = MARK.sub(lambda m: m[1] + TABLES[m[2]]() + m[4], text)
        if fresh != text and given.check:
            stale.append(name)
        elif fresh != text:
            path.write_text(fresh, encoding="utf-8")
            print(name)
    if stale:
        print(f"not what the results say: {', '.join(stale)}; python benchmarks/tables.py", file=sys.stderr)
    return len(stale)


if __name__ == "__main__":
    sys.exit(main())
