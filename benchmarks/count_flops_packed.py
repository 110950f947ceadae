"""Operations to the first token of models with packed towers, counted in the graphs that trtprune builds; nothing runs.

    python benchmarks/count_flops_packed.py [--shape qwen2.5-vl-7b] [--json benchmarks/results/flops-qwen2.5-vl-7b.json]

One picture of 480 × 640 or 1080 × 1920 pixels (height × width) and 64 tokens of text, with all, 25 % and 10 % of its
visual tokens kept by a method before the decoder.  What is counted is in trtprune.bench.flops: products, two operations
for a multiply-and-add, empty slots of windows among them.  The checkpoint is of the published shape and sparse on disk.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from _machine import machine
from _packed_checkpoints import PACKED
from _qwen3_checkpoints import QWEN3
from _shapes import write_shape

import trtprune
from trtprune.bench import count_chain
from trtprune.compare.draw import open_processor
from trtprune.engine_dir import EngineDir

SIZES = ((480, 640), (1080, 1920))
SHARES = (1.0, 0.25, 0.1)
TEXT = 64


def count(made: EngineDir, size: tuple[int, int], share: float) -> dict[str, Any]:
    """Operations by component for one picture."""
    processor = open_processor(made)
    plan = processor.plan(*size)
    arrays = processor.arrays(plan)
    keep = max(1, round(share * plan.tokens))
    length = keep + TEXT
    dims = {
        "vision": {"patches": plan.tokens * processor.shape.unit, "visual_tokens": plan.tokens},
        "decoder": {"batch": 1, "logits_rows": 1, "sequence": length, "capacity": length},
    }
    if "window_index" in arrays:
        dims["vision"]["windows"] = len(arrays["window_index"])
    if keep < plan.tokens:
        dims["pruner"] = {"batch": 1, "visual_tokens": plan.tokens, "text_tokens": TEXT, "keep": keep}
    found = {name: number / 1e12 for name, number in count_chain(made, dims).items()}
    return {
        "height": size[0], "width": size[1], "visual_tokens": plan.tokens, "keep": keep,
        "tera_operations": {"pruner": 0.0, **found, "total": sum(found.values())},
        "kv_mb": length * made.kv.bytes_per_token / 1e6,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="qwen2.5-vl-7b", choices=[*PACKED, *QWEN3])
    parser.add_argument("--method", default="divprune")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        checkpoint.mkdir()
        write_shape(checkpoint, arguments.shape)
        made = trtprune.build(
            str(checkpoint), Path(folder) / "out", method=arguments.method, dtype="float16", backend="tensorrt",
            export_only=True,
        )  # fmt: skip
        rows = [count(made, size, share) for size in SIZES for share in SHARES]
    print(f"{'picture':<12}{'tokens':>7}{'kept':>6}{'TFLOP':>8}{'less':>8}{'vision':>8}{'pruner':>9}{'KV MB':>8}")
    for i, row in enumerate(rows):
        found, whole = row["tera_operations"], rows[i - i % len(SHARES)]["tera_operations"]
        row["total_less"] = 1 - found["total"] / whole["total"]
        print(
            f"{row['height']}×{row['width']:<8}{row['visual_tokens']:>6}{row['keep']:>6}{found['total']:>8.2f}"
            f"{-100 * row['total_less']:>6.1f} %{found['vision']:>8.2f}{found['pruner']:>9.4f}{row['kv_mb']:>8.1f}"
        )
    if arguments.json:
        command = f"python benchmarks/count_flops_packed.py --shape {arguments.shape} --method {arguments.method}"
        result = {"command": command, "machine": machine(), "rows": rows}
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
