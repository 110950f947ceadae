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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from trtprune.pruning import InLlmMethod, get  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = (
    "README.md",
    "docs/results.md",
    "docs/results-accuracy.md",
    "docs/methods-in-decoder.md",
    "docs/bench.md",
    "docs/eval-demo.md",
    "docs/cpp.md",
    "docs/run.md",
    "docs/serving.md",
)
MARK = re.compile(r"(<!-- table (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def result(name: str) -> Any:
    """A result file."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table with its first column left and the others as they come."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def speed(
    name: str = "bench-demo.json",
    *,
    floor: bool = True,
    methods: Sequence[str] = ("none", "adafv", "sparsevlm"),
    keeps: Sequence[int] | None = None,
) -> str:
    """docs/results.md, docs/bench.md, README: some methods at their budgets (all, or some), and the peers."""
    found = result(name)
    ratios = {(r["method"], r["keep"], r["against"]): r["first_token"]["p50"] for r in found["ratios"]}
    rows = []
    for row in found["rows"]:
        if not row["peer"] and (row["method"] not in methods or (keeps is not None and row["keep"] not in keeps)):
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
                *([f"{row['gap']['first_token']:.2f}" if row.get("gap") else ""] if floor else []),
            ]
        )
    rows.sort(key=lambda row: row[0].startswith("trtprune"))
    head = ["", "time to first token, ms", "speed-up", "tokens/s", "KV cache, MB"]
    return markdown([*head, "time / floor"] if floor else head, rows)


def pruners() -> str:
    """docs/results.md: what each selection takes."""
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
    """docs/methods-in-decoder.md: methods at equal budgets, answers and time."""
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


def survival() -> str:
    """docs/methods-in-decoder.md: what pruning inside the decoder leaves of the largest object."""
    rows = [
        [
            f"`{row['variant']}`",
            *(f"{row[key]} of {row['scenes']}" for key in ("right_largest", "right_other")),
            f"{row['left_asked']:.1f} of {row['tokens']:.1f}",
            f"{row['left_not_asked']:.1f}",
            f"{row['left_if_drawn']:.1f}",
            f"{row['jaccard']:.2f}",
        ]
        for row in result("in-llm-survival.json")["rows"]
    ]
    head = ["", "right, largest", "right, another", "left when asked", "when another is", "of a draw", "Jaccard"]
    return markdown(head, rows)


def percent(row: Any, key: str = "accuracy") -> str:
    """``93.1 [92, 94]``."""
    return f"{100 * row[key]:.1f} [{100 * row['low']:.0f}, {100 * row['high']:.0f}]"


STARRED = ("adafv", "visionzip", "mmtok", "sparsevlm", "pyramiddrop first=2")
"""Rows that :func:`deviations` says something about."""


def deviations() -> str:
    """docs/eval-demo.md: what rows deviate from their sources in, and what that comes to."""
    found = result("fidelity.json")
    merged, words = found["merged"], found["words"]
    drop, model = get("pyramiddrop"), (576, 30)
    assert isinstance(drop, InLlmMethod)
    options = drop.validate_options({"first": 2})
    counts = {keep: (576, *drop.schedule(keep, *model, options).after) for keep in (192, 128, 64)}
    stages = "; ".join(f"{' → '.join(map(str, after))} at {keep}" for keep, after in counts.items())
    least = drop.budgets(*model, drop.validate_options({}))[0]
    length = " to ".join(
        f"{q:.2f}" for q in sorted(row["length_here_over_code"][1] for row in merged)[:: len(merged) - 1]
    )
    apart = f"{percents(merged, 'relative_difference')} % of their length"
    lines = (
        "`adafv` is this project's form, `mode=distinct`; `adafv mode=official` is what the authors' code does. What "
        "is said of AdaFV holds for the form that is named.",
        "`visionzip` merges behind the projector, the code before it: the merged rows (5 of 32) differ by "
        f"{apart}, with a cosine of {mean(merged, 'cosine'):.2f} and {length} of the length "
        f"(at {keeps(merged)} tokens).",
        "`mmtok` covers all tokens of the question, the code none of its function words: with those left out, "
        f"{percents(words, 'shared')} % of the kept tokens are the same (at {keeps(words)}).",
        "`sparsevlm` cuts behind layers 2, 6 and 14 of these 30 and meets the budget; the code cuts behind 2, 6 and "
        "15 ([methods-in-decoder.md](methods-in-decoder.md)).",
        f"`pyramiddrop first=2` keeps {stages}. **This schedule is published nowhere:** the paper's first cut comes "
        f"after a quarter of the layers, which reaches no average below {least} here. These rows are a stress test, "
        "not the paper's method.",
    )
    return "".join(f"* {line}\n" for line in lines)


def keeps(rows: Sequence[Any]) -> str:
    """``192, 64, 16``."""
    return ", ".join(str(row["keep"]) for row in rows)


def percents(rows: Sequence[Any], key: str) -> str:
    """``30, 28, 28``."""
    return ", ".join(f"{100 * row[key]:.0f}" for row in rows)


def mean(rows: Sequence[Any], key: str) -> float:
    """Of a key of all rows."""
    return sum(row[key] for row in rows) / len(rows)


def agreement() -> str:
    """docs/results.md: kept sets of graphs and of NumPy references on real pictures."""
    found = result("fidelity.json")["agreement"]
    budgets = list(dict.fromkeys(row["keep"] for row in found))
    by = {(row["method"], row["keep"]): row for row in found}
    lines = []
    for name in dict.fromkeys(row["method"] for row in found):
        lines.append([f"`{name}`", *(shared(by[name, keep]) for keep in budgets)])
        if "float64" in by[name, budgets[0]]:
            lines.append([f"`{name}`, NumPy float32 and float64", *(shared(by[name, k]["float64"]) for k in budgets)])
    return markdown(["", *(f"{keep} of 576" for keep in budgets)], lines)


def shared(row: Any) -> str:
    """``58 of 60``, and where they differ the tokens that are shared."""
    same = f"{row['equal']} of {row['cases']}"
    return same if row["equal"] == row["cases"] else f"{same} ({100 * row['shared']:.0f} % of tokens shared)"


def rank() -> str:
    """docs/methods-in-decoder.md: the averages that ``ratio=rank`` reaches."""
    lines = [
        [
            f"`scale={row['scale']}`",
            str(row["keep"]),
            f"{row['nominal']['mean']:.1f}",
            f"{row['nominal']['min']:.1f} to {row['nominal']['max']:.1f}",
            f"{row['processed']:.1f}",
            f"{row['prompts']} of {row['text_tokens'][0]} to {row['text_tokens'][1]} text tokens",
        ]
        for row in result("fidelity.json")["rank"]
    ]
    return markdown(
        ["", "`--keep`", "average as papers count", "over prompts", "processed and cached", "prompts"], lines
    )


def layers() -> str:
    """docs/methods-in-decoder.md: SparseVLM in 40 layers, cut where the code cuts and where ours does."""
    lines = [
        [
            str(row["keep"]),
            row["cuts"],
            ", ".join(map(str, row["points"])),
            " → ".join(["576", *map(str, row["after"])]),
            f"{row['nominal']:.1f}",
            f"{row['processed']:.1f}",
            f"{row['decoder_tera_operations']:.2f}",
            f"{row['kv_mb']:.0f}",
        ]
        for row in result("fidelity.json")["layers"]
    ]
    head = ["named", "cuts", "behind", "tokens", "average as papers count", "processed", "decoder, TFLOP", "KV, MB"]
    return markdown(head, lines)


def forms() -> str:
    """docs/eval-demo.md: the authors' form of AdaFV less ours and less others, question by question."""
    found = [
        row for row in result("claim.json")["forms"] if row["set"] == "all" and row["text_aware"].startswith("adafv")
    ]
    others = list(dict.fromkeys(row["saliency"] for row in found))
    lines = []
    for data, keep, form in dict.fromkeys((row["data"], row["keep"], row["text_aware"]) for row in found):
        mine = {r["saliency"]: r for r in found if (r["data"], r["keep"], r["text_aware"]) == (data, keep, form)}
        first = mine[others[0]]
        right = f"{100 * first['text_aware_accuracy']:.1f} : {100 * first['saliency_accuracy']:.1f}"
        cells = [difference(mine[other]) if other in mine else "–" for other in others]
        lines.append([data, str(keep), right, *cells, f"{first['n']:,}"])
    return markdown(["", "keep", "official : ours, %", *(f"less `{other}`" for other in others), "n"], lines)


def cuts() -> str:
    """docs/methods-in-decoder.md: SparseVLM in 30 layers, cut where the code cuts less cut where ours does."""
    lines = [
        [
            row["data"],
            str(row["keep"]),
            f"{100 * row['text_aware_accuracy']:.1f}",
            f"{100 * row['saliency_accuracy']:.1f}",
            difference(row),
            f"{row['n']:,}",
        ]
        for row in result("claim.json")["forms"]
        if row["set"] == "all" and row["saliency"] == "sparsevlm"
    ]
    return markdown(["", "keep", "`layers=published`, %", "scaled (default), %", "difference", "n"], lines)


def difference(row: Any) -> str:
    """``+0.3 [-0.7, +1.2]`` points, bold where the interval excludes 0."""
    bold = "**" if row["low"] > 0 or row["high"] < 0 else ""
    return f"{bold}{100 * row['difference']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]{bold}"


def evaluated(name: str, sets: Sequence[str]) -> str:
    """docs/results-accuracy.md: all methods at all budgets, on some sets of one test set."""
    found = result(f"eval-{name}.json")
    blind = {row["set"]: row for row in found.get("controls", []) if row["method"] == "none"}
    text = []
    for part in sets:
        rows = [row for row in found["rows"] if row["set"] == part]
        base = next(row for row in rows if row["method"] == "none")
        keeps = sorted({row["keep"] for row in rows if row is not base}, reverse=True)
        by = {(row["method"], row["keep"]): row for row in rows if row is not base}
        lines = []
        for method in dict.fromkeys(row["method"] for row in rows if row is not base):
            cells = []
            for keep in keeps:
                row = by.get((method, keep))
                bold = "**" if row and 100 * row["change_low"] >= -1 else ""
                cells.append(f"{bold}{percent(row)}{bold}" if row else "–")
            count = sorted({by[method, keep]["n"] for keep in keeps if (method, keep) in by})
            star = " *" if method in STARRED else ""
            lines.append(
                [f"`{method}`{star}", *cells, "–".join(f"{n:,}" for n in dict.fromkeys((count[0], count[-1])))]
            )
        said = (
            f"{name}, {part}: unpruned {percent(base)} of {base['n']:,} questions about {base['pictures']:,} pictures"
        )
        if part in blind:
            row = blind[part]
            said += "".join(f"; {100 * mark:.1f} with a {kind} picture" for kind, mark in row["controls"].items())
            said += f" (n = {row['n']})"
        text.append(f"{said}\n\n" + markdown(["method", *map(str, keeps), "n"], lines))
    text.append("Asked with:\n\n```\n" + "".join(f"{line}\n" for line in found["commands"]) + "```\n")
    return "\n".join(text)


def claim(data: str) -> str:
    """docs/eval-demo.md: text-aware methods less those that only look at the picture, on one test set."""
    found = [row for row in result("claim.json")["rows"] if row["data"] == data]
    columns = list(dict.fromkeys((row["saliency"], row["set"]) for row in found))
    lines = []
    for keep, method in dict.fromkeys((row["keep"], row["text_aware"]) for row in found):
        mine = {(r["saliency"], r["set"]): r for r in found if (r["keep"], r["text_aware"]) == (keep, method)}
        cells = [difference(mine[column]) if column in mine else "–" for column in columns]
        lines.append([f"`{method}`", str(keep), *cells])
    return markdown(["", "keep", *(f"less `{other}`, {part}" for other, part in columns)], lines)


def frontier() -> str:
    """docs/results.md: the frontier's recommendations."""
    found = result("frontier.json")["sets"]
    return "".join(f"* {part['words']}\n" for part in found.values())


def cpp() -> str:
    """docs/cpp.md: C++ beside Python."""
    found = result("cpp.json")
    names = {
        "first_token_ms": "time to the first token",
        "ms_per_token": "time of a further token",
        "start_ms": "process start to the first token",
    }
    lines = []
    for key, name in names.items():
        ratio, own, other = (found[key][side] for side in ("ratio", "cpp", "python"))
        spread = f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"
        lines.append([name, spread, f"{own['median']:.1f} ms", f"{other['median']:.1f} ms"])
    peak, size = found["peak_mb"], found["size"]
    lines.append(["peak memory", f"{peak['ratio']:.2f}", f"{peak['cpp']} MB", f"{peak['python']} MB"])
    lines.append(["files to ship", f"{size['ratio']:.2f}", f"{size['cpp_mb']:.1f} MB", f"{size['python_mb']:.1f} MB"])
    return markdown(["", "C++ / Python", "C++", "Python"], lines)


def start() -> str:
    """docs/run.md: a process that opens a directory, with and without prepacked graphs."""
    lines = []
    for row in result("start.json")["rows"]:
        plain, saved, ratio = row["plain"], row["prepacked"], row["ratio"]
        parts = [
            f"{saved[key]['median']:.{digits}f} / {plain[key]['median']:.{digits}f} {unit} ({ratio[key]['median']:.2f})"
            for key, digits, unit in (("open", 2, "s"), ("process", 2, "s"), ("private", 0, "MB"))
        ]
        lines.append([row["weights"], *parts, f"{row['saved_mb']} MB"])
    return markdown(["weights", "all sessions open", "process to the first token", "private memory", "on disk"], lines)


def families() -> str:
    """docs/results.md: the first token of small made-up models, beside transformers."""
    lines = []
    for name, stem in (("Qwen2.5-VL", "qwen"), ("Qwen3-VL", "qwen3"), ("SmolVLM", "smolvlm")):
        found = result(f"first-token-{stem}.json")
        ratios = found["times_as_fast_as_transformers"]
        shares = [f"{found['ms'][share]['median']:.0f} ({ratios[share]:.2f} ×)" for share in ("100%", "25%", "10%")]
        lines.append([name, str(found["visual_tokens"]), f"{found['ms']['transformers']['median']:.0f}", *shares])
    return markdown(["shape", "visual tokens", "transformers, ms", "all", "25 %", "10 %"], lines)


def graph_builds() -> str:
    """docs/results.md: time and memory of writing the graphs, by shape."""
    shapes = ("qwen2.5-vl-7b", "qwen3-vl-8b", "internvl3-8b", "smolvlm-2.2b")
    lines = []
    for shape in shapes:
        found = result(f"graph-build-{shape}.json")
        time = found["build_s"]
        seconds = f"{time['median']:.1f} ({time['min']:.1f} to {time['max']:.1f})"
        memory, size = found["peak_rss_gb"]["median"], found["checkpoint_bytes"] / 1e9
        lines.append([shape, f"{size:.1f} GB", seconds, f"{memory:.2f} GB"])
    return markdown(["shape", "checkpoint", "time, s", "peak memory"], lines)


def serve() -> str:
    """docs/serving.md: the server beside fixed batches and a peer's."""
    found = result("serve.json")
    ratios = {(r["keep"], r["concurrency"], r["against"]): r["requests_per_s"] for r in found["ratios"]}
    others = list(dict.fromkeys(r["against"] for r in found["ratios"]))
    lines = []
    for row in found["rows"]:
        if row["way"] != "served":
            continue
        key = row["keep"], row["concurrency"]
        beside = [ratios.get((*key, other)) for other in others]
        shown = [f"{b['median']:.2f} ({b['min']:.2f} to {b['max']:.2f})" if b else "" for b in beside]
        first, later = row["first_token_s"]["p50"], row["per_token_ms"]["p50"]
        lines.append([*map(str, key), f"{row['requests_per_s']['median']:.2f}", *shown, f"{first:.2f}", f"{later:.0f}"])
    head = ["tokens", "open requests", "requests/s", *(f"/ {other}" for other in others)]
    return markdown([*head, "first token, s", "further token, ms"], lines)


TABLES: dict[str, Callable[[], str]] = {
    "speed": speed,
    "pruners": pruners,
    "methods": methods,
    "survival": survival,
    "scenes": lambda: evaluated("scenes", ("non-salient", "salient", "count", "yes/no", "all")),
    "easy": lambda: evaluated("easy-vqa", ("open", "yes/no", "all")),
    "signs": lambda: evaluated("signs", ("non-salient", "salient", "by number", "all")),
    "deviations": deviations,
    "agreement": agreement,
    "rank": rank,
    "layers": layers,
    "forms": forms,
    "cuts": cuts,
    "claim": lambda: claim("scenes"),
    "claim_signs": lambda: claim("signs"),
    "frontier": frontier,
    "cpp": cpp,
    "serve": serve,
    "families": families,
    "graph_builds": graph_builds,
    "start": start,
    "openvino": lambda: speed("bench-openvino.json", floor=False),
    "peers": lambda: speed("bench-peers.json"),
    "headline": lambda: speed(floor=False, methods=("none", "adafv"), keeps=(576, 192, 64, 16)),
}


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
