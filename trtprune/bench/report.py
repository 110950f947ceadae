"""The numbers of a bench as JSON and as a table."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtprune.bench.cells import STAGES
from trtprune.bench.cost import Cost, stage_of
from trtprune.bench.floor import ALLOWANCE, floor_ms
from trtprune.bench.interleave import ratio, spread
from trtprune.bench.machine import machine
from trtprune.errors import InputError
from trtprune.reports.tables import Column, lay_out, wrap

if TYPE_CHECKING:
    from trtprune.bench.running import Measured, Run

__all__ = ["SCHEMA", "render", "to_json", "write_json"]

SCHEMA = 1
VISION, PREFILL, TOKEN = "vision", "prefill", "token"
"""Keys of floors: the tower, the prompt, and one decode step, which is a key of flops and bytes, too."""


def to_json(run: Run, command: str) -> dict[str, Any]:
    """A finished bench as plain values; see docs/bench.md for the fields."""
    rows = [_row(measured, run) for measured in run.cells]
    return {
        "schema": SCHEMA,
        "command": command,
        "machine": machine(),
        "engine": run.engine,
        "provider": run.provider,
        "threads": run.threads,
        "prompt": run.settings.prompt,
        "tokens": run.settings.tokens,
        "rounds": run.settings.rounds,
        "warmup": run.settings.warmup,
        "seed": run.settings.seed,
        "rows": rows,
        "ratios": _ratios(run),
        "rates": {
            **{f"{probe.name.replace(' ', '_')}_gb_per_s": probe.rate.to_json() for probe in run.bandwidth},
            "best_gb_per_s": round((_bandwidth(run) or 0) / 1e9, 3) if run.bandwidth else None,
            "cache_bytes": run.cache_bytes,
            "products": [{"product": probe.name, "gflop_per_s": probe.rate.to_json()} for probe in run.products],
        },
        "notes": run.notes,
        "findings": [text for row in rows for text in _findings(row)],
    }


def _row(measured: Measured, run: Run) -> dict[str, Any]:
    cell, samples = measured.cell, measured.samples
    per_token = spread([s.per_token for s in samples])
    first = spread([s.first_token for s in samples])
    row: dict[str, Any] = {
        "method": cell.method,
        "keep": cell.keep,
        "unpruned": measured.baseline,
        "peer": cell.peer,
        "n": len(samples),
        "stages_ms": {stage: spread([s.stages.get(stage, 0.0) for s in samples]) for stage in STAGES},
        "first_token_ms": first,
        "ms_per_token": per_token,
        # The slow percentiles of the times give the slow percentiles of the rates.
        "tokens_per_second": {name: round(1000 / ms, 3) if ms else None for name, ms in per_token.items()},
        "total_ms": spread([s.total for s in samples]),
        "prompt_tokens": samples[0].prompt_tokens,
        "kv_cache_bytes": samples[0].kv_cache_bytes,
        "peak_memory_bytes": measured.peak,
        "flops": {},
        "bytes": {},
        "floor_ms": None,
    }
    if measured.prompt:
        row |= _costs(measured)
    if measured.prompt and run.bandwidth and not cell.peer:
        floors = _floors(measured, run)
        times = {stage: row["stages_ms"][stage]["p50"] for stage in floors if stage in row["stages_ms"]}
        times |= {"first_token": first["p50"], TOKEN: per_token["p50"]}
        floors["first_token"] = sum(ms for stage, ms in floors.items() if stage != TOKEN)
        row["floor_ms"] = round(floors["first_token"], 4)
        row["floor_stages_ms"] = {stage: round(ms, 4) for stage, ms in floors.items()}
        row["gap"] = {stage: round(times[stage] / ms, 3) for stage, ms in floors.items() if ms}
    return row


def _costs(measured: Measured) -> dict[str, Any]:
    """Operations and bytes, by component; ``token`` is one decode step."""
    found: dict[str, Cost] = {}
    for name, calls in ((None, measured.prompt), (TOKEN, measured.token)):
        for call, cost in calls:
            key = name or call.part.name
            found[key] = found.get(key, Cost()) + cost
    return {
        "flops": {name: cost.flops for name, cost in found.items()},
        "bytes": {
            name: {"weights": cost.weights, "kv": cost.kv, "activations": cost.activations}
            for name, cost in found.items()
        },
    }


def _bandwidth(run: Run) -> float | None:
    """Bytes per second of the fastest way to move them."""
    return max((probe.rate.best or 0.0 for probe in run.bandwidth), default=0.0) or None


def _findings(row: dict[str, Any]) -> list[str]:
    """Times below their floors: one of the two is wrong, and nothing that follows from it can be believed."""
    return [
        f"{row['method']} {row['keep']}: {stage.replace('_', ' ')} took {gap:.3f} of its floor, which is none then"
        for stage, gap in row.get("gap", {}).items()
        if gap < 1 - ALLOWANCE
    ]


def _floors(measured: Measured, run: Run) -> dict[str, float]:
    """Stage → the lowest possible time of its components, in milliseconds."""
    bandwidth = _bandwidth(run)
    floors: dict[str, float] = {}
    for stage, calls in ((None, measured.prompt), (TOKEN, measured.token)):
        for call, cost in calls:
            rate = max((probe.rate.best or 0.0 for probe in measured.products.get(call, ())), default=0.0)
            least = floor_ms(cost.flops, max(0, cost.nbytes - run.cache_bytes), rate or None, bandwidth)
            name = stage or stage_of(call.part)
            floors[name] = floors.get(name, 0.0) + least
    return floors


def _ratios(run: Run) -> list[dict[str, Any]]:
    """Speed-ups of every cell over unpruned and over each peer, round by round."""
    found = []
    for base in run.cells:
        if not base.baseline and not base.cell.peer:
            continue
        against = base.cell.method if base.cell.peer else "unpruned"
        for measured in run.cells:
            if measured is base:
                continue
            found.append(
                {
                    "method": measured.cell.method,
                    "keep": measured.cell.keep,
                    "against": against,
                    "first_token": ratio(
                        [s.first_token for s in base.samples], [s.first_token for s in measured.samples]
                    ),
                    "token": ratio([s.per_token for s in base.samples], [s.per_token for s in measured.samples]),
                    "total": ratio([s.total for s in base.samples], [s.total for s in measured.samples]),
                }
            )
    return found


def write_json(result: dict[str, Any], path: Path, flag: str = "--json") -> None:
    """Writes a result; ``-`` is stdout.

    Raises:
        InputError: if the file cannot be written.
    """
    text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
    if str(path) == "-":
        sys.stdout.write(text)
        return
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{flag} {path}: cannot be written: {error.strerror or error}", hint="another file") from None


def render(result: dict[str, Any], width: int | None = None) -> str:
    """The table: ratios first, then their parts; at most ``width`` columns wide."""
    ratios = {(r["method"], r["keep"], r["against"]): r["first_token"]["p50"] for r in result["ratios"]}
    peers = list(dict.fromkeys(r["against"] for r in result["ratios"] if r["against"] != "unpruned"))
    against = ["unpruned", *peers]
    columns = [Column("method", left=True), Column("keep")]
    columns += [Column("x unpruned"), *(Column("x " + "\n".join(name.rsplit(" ", 1)), 2) for name in peers)]
    columns += [Column("first\ntoken ms"), Column("p90", 8), Column("p99", 8)]
    columns += [Column("vision", 6), Column("prune", 6), Column("prefill", 6)]
    columns += [Column("ms/token"), Column("tok/s", 7), Column("KV MB", 1), Column("peak MB", 3)]
    columns += [Column("GFLOP", 5), Column("GB", 5), Column("floor ms", 4), Column("gap", 4)]
    columns += [Column(f"gap\n{name}", 7) for name in ("vision", "prefill", "token")]
    rows = []
    for row in result["rows"]:
        speed = [ratios.get((row["method"], row["keep"], name)) for name in against]
        moved = sum(sum(part.values()) for name, part in row["bytes"].items() if name != TOKEN)
        flops = sum(count for name, count in row["flops"].items() if name != TOKEN)
        first, stages = row["first_token_ms"], row["stages_ms"]
        peak, gap = row["peak_memory_bytes"], row.get("gap", {}).get("first_token")
        rows.append(
            [
                row["method"],
                str(row["keep"]),
                *("1.00" if number is None else f"{number:.2f}" for number in speed),
                *(f"{first[name]:.1f}" for name in ("p50", "p90", "p99")),
                *(f"{stages[stage]['p50']:.1f}" for stage in ("vision", "prune", "prefill")),
                f"{row['ms_per_token']['p50']:.2f}",
                f"{row['tokens_per_second']['p50'] or 0:.1f}",
                f"{row['kv_cache_bytes'] / 1e6:.1f}",
                "" if peak is None else f"{peak / 1e6:.0f}",
                f"{flops / 1e9:.1f}" if row["flops"] else "",
                f"{moved / 1e9:.2f}" if row["bytes"] else "",
                "" if row["floor_ms"] is None else f"{row['floor_ms']:.1f}",
                "" if gap is None else f"{gap:.2f}",
                *(f"{row['gap'][part]:.2f}" if part in row.get("gap", {}) else "" for part in (VISION, PREFILL, TOKEN)),
            ]
        )
    lines = lay_out(columns, rows, width=width, more="--json has all")
    return "\n".join([*lines, *(part for line in _footer(result) for part in wrap(line, width, "  "))])


def _footer(result: dict[str, Any]) -> list[str]:
    n, tokens = result["rounds"], result["tokens"]
    lines = [
        f"{n} rounds, {tokens} tokens; x unpruned: times as fast to the first token as with all visual tokens (x of a "
        "peer: as that peer), the median of the rounds' ratios"
    ]
    best = result["rates"].get("best_gb_per_s")  # reports of before had another floor, which was none
    if best is not None:
        largest = max((p["gflop_per_s"]["max"] for p in result["rates"]["products"]), default=0.0)
        lines.append(f"floor: products at up to {largest:.0f} GFLOP/s, bytes at {best:.1f} GB/s, the best of this run")
    return [*lines, *result["notes"], *(f"WRONG: {text}" for text in result.get("findings", ()))]
