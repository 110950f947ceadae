"""Operations to the first token of LLaVA-1.5-7B, counted in the graphs that trtprune builds for it; nothing is run.

    python benchmarks/count_flops_7b.py [--json benchmarks/results/flops-7b.json]

One picture of 576 tokens, 35 tokens of text before and 54 behind it, as the template and a short question have.  What
is counted is in trtprune.bench.flops: products, two operations for a multiply-and-add, attention over what is cached.
The checkpoint is of the real shape and sparse on disk.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from _checkpoints import write_checkpoint
from _machine import machine

import trtprune
from trtprune.bench import count_chain
from trtprune.engine_dir import EngineDir

BEFORE, BEHIND = 35, 54
# A third of the text behind the image rates it: what the count of raters is in practice depends on the question.
RATERS = BEHIND // 3
BUDGETS = (192, 128, 64)
METHODS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("sparsevlm", {}), ("sparsevlm", {"version": "2.0"}), ("fastv", {}), ("pyramiddrop", {"first": 2}), ("adafv", {}),
    ("zspaprune", {}), ("fastervlm", {}), ("random", {}),
)  # fmt: skip


def count(made: EngineDir, keep: int) -> dict[str, Any]:
    """Operations by component, and what is cached."""
    info, tokens = made.pruning.schedule, made.model.visual_tokens
    text = BEFORE + BEHIND
    dims: dict[str, dict[str, int]] = {"vision": {"batch": 1}}
    step = {"batch": 1, "logits_rows": 1}
    if info is not None:
        schedule = info.schedule(keep, tokens)
        visual = (tokens, *schedule.after)
        layers = made.kv.segment_layers
        for k, count in enumerate(visual):
            length = text + count
            dims[f"decoder.{k}"] = {**step, "sequence": length, "capacity": length, "raters": RATERS}
        for k, kept in enumerate(schedule.kept):
            recycled, merged = info.merged_counts(visual[k] - kept)
            dims[f"pruner.{k}"] = {
                "sequence": text + visual[k], "visual_tokens": visual[k], "raters": RATERS, "keep": kept,
                "recycled": recycled, "merged": merged,
            }  # fmt: skip
        if made.find("raters") is not None:
            dims["raters"] = {"visual_tokens": tokens, "text_tokens": BEHIND}
        cached = [text + n for n in visual]
    else:
        length, layers, cached = text + keep, (made.kv.num_layers,), [text + keep]
        dims["pruner"] = {"batch": 1, "visual_tokens": tokens, "text_tokens": BEHIND, "keep": keep}
        dims["decoder"] = {**step, "sequence": length, "capacity": length}
    found = count_chain(made, dims)
    parts = {
        part: sum(n for name, n in found.items() if made.component(name).role in roles) / 1e12
        for part, roles in (("vision", ("vision",)), ("pruner", ("pruner", "raters")), ("decoder", ("decoder",)))
    }
    per_token = made.kv.bytes_per_token / made.kv.num_layers
    return {
        "tera_operations": {**parts, "total": sum(parts.values())},
        "kv_mb": sum(n * count for n, count in zip(layers, cached, strict=True)) * per_token / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="7b", help="7b, 1b or tiny")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        checkpoint.mkdir()
        write_checkpoint(checkpoint, arguments.shape)

        def add(name: str, keep: int, options: dict[str, Any]) -> None:
            wanted = {} if name == "none" else {"keep": keep, "options": options}
            made = trtprune.build(
                str(checkpoint), Path(folder) / "out", method=name, dtype="float16", backend="tensorrt",
                export_only=True, force=True, **wanted,
            )  # fmt: skip
            label = " ".join([name, *(f"{key}={value}" for key, value in options.items())])
            rows.append({"method": label, "keep": keep, **count(made, made.pruning.keep)})

        add("none", 576, {})
        for keep in BUDGETS:
            for name, options in METHODS:
                add(name, keep, options)
    whole = rows[0]["tera_operations"]
    print(f"{'method':<24}{'keep':>5}{'decoder':>10}{'total':>9}{'TFLOP':>8}{'vision':>8}{'pruner':>9}{'KV MB':>8}")
    for row in rows:
        found = row["tera_operations"]
        row["decoder_less"] = 1 - found["decoder"] / whole["decoder"]
        row["total_less"] = 1 - found["total"] / whole["total"]
        print(
            f"{row['method']:<24}{row['keep']:>5}{-100 * row['decoder_less']:>8.1f} %{-100 * row['total_less']:>7.1f} %"
            f"{found['total']:>8.2f}{found['vision']:>8.2f}{found['pruner']:>9.5f}{row['kv_mb']:>8.1f}"
        )
    if arguments.json:
        result = {"command": "python benchmarks/count_flops_7b.py", "machine": machine(), "rows": rows}
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
