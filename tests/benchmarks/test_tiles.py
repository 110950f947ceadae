"""benchmarks/bench_tiles.py and the checkpoints of LLaVA-NeXT's shape, at a size that takes little time."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers

import tests.kit.bench  # noqa: F401

import _checkpoints  # isort: skip
import bench_tiles  # isort: skip


def test_a_checkpoint_is_what_transformers_reads(tmp_path: Path) -> None:
    size = _checkpoints.write_checkpoint(tmp_path, "next-tiny", seed=3)
    model, info = transformers.LlavaNextForConditionalGeneration.from_pretrained(
        tmp_path, dtype=torch.float16, output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert 2 * sum(p.numel() for p in model.parameters()) == size == _checkpoints.weight_bytes("next-tiny")


def test_sizes_of_the_shape() -> None:
    """7,566,747,648 is what the safetensors files of llava-v1.6-mistral-7b-hf hold."""
    assert _checkpoints.weight_bytes("next-7b") // 2 == 7_566_747_648


def test_first_tokens_are_those_of_transformers(tmp_path: Path) -> None:
    """The script refuses to compare runs that do not say the same."""
    path = tmp_path / "tiles.json"
    bench_tiles.main(
        ["--shape", "next-tiny", "--rounds", "1", "--keep", "320", "--methods", "adafv", "--json", str(path)]
    )
    found = json.loads(path.read_text())
    assert found["visual_tokens"] == 2928
    assert [row["keep"] for row in found["pruned"]] == [320]
    assert found["pruners"][0]["method"] == "adafv"
