"""Builds of quantised checkpoints beside transformers with the same weights dequantised."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.numpy

import trtprune
from tests.kit import tiny
from tests.kit.quantized_checkpoints import Recipe, quantize
from tests.kit.tiny_files import complete
from trtprune.backends.running import Running
from trtprune.compare import CompareSettings, Draw, compare


@pytest.mark.parametrize("family", ["llava", "qwen2.5-vl"])
def test_against_transformers(tmp_path: Path, family: str) -> None:
    """Without the method's own library; with other scales in the checkpoint it does not pass."""
    complete(tmp_path / "plain", tiny.Tiny(family, max_positions=1024, layers=2))
    recipe = Recipe(more=lambda name: name.endswith("lm_head.weight"))
    quantize(tmp_path / "plain", tmp_path / "source", replace(recipe, group=32))
    trtprune.build(tmp_path / "source", tmp_path / "out", method="none")
    settings = CompareSettings(
        checkpoint=str(tmp_path / "source"),
        draw=Draw(iterations=2),
        running=Running(provider_options={"activations": "float32"}),
        allow_other_weights=True,
    )
    found = compare(tmp_path / "out", "transformers", settings)
    assert found.passed, [o for c in found.components for o in c.outputs if not o.passed]
    assert "decoder" in [c.name for c in found.components]
    path = tmp_path / "source/model.safetensors"
    arrays = safetensors.numpy.load_file(path)
    name = next(name for name in arrays if name.endswith("o_proj.scales"))
    arrays[name] = 2 * arrays[name]
    safetensors.numpy.save_file(arrays, path, {"format": "pt"})
    assert not compare(tmp_path / "out", "transformers", settings).passed
