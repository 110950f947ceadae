"""Builds with packed towers in TensorRT-RTX: every graph, profiles, the masks of windows."""

from __future__ import annotations

from pathlib import Path

import pytest

import trtprune
from tests.kit import tiny
from tests.kit.tiny_files import complete
from trtprune.compiler.engine_options import EngineOptions
from trtprune.engine_dir.roles import PRUNER, VISION

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed", exc_type=ImportError)

CASES = {family: tiny.Tiny(family=family, seed=31, dtype="float16", layers=2) for family in tiny.PACKED}
METHODS = {
    "qwen2.5-vl": ("hiprune", {"object_layer": 1}),
    "qwen2-vl": ("vispruner", {"received": "all"}),
    "qwen3-vl": ("vispruner", {}),
}


@pytest.mark.parametrize("family", [pytest.param(f, marks=pytest.mark.slow) if f == "qwen2-vl" else f for f in CASES])
@pytest.mark.parametrize("dtype", ["float16", pytest.param("float32", marks=pytest.mark.slow)])
def test_engines(tmp_path: Path, family: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Profiles follow the processor's bounds, or the user's where they are narrower."""
    monkeypatch.setattr("trtprune.backends.tensorrt.gpus.find_gpus", list)
    method, options = METHODS[family]
    made = trtprune.build(
        str(complete(tmp_path / "model", CASES[family])),
        tmp_path / "out",
        method=method,
        options=options,
        keep=9,
        max_image_pixels=784 * 300,
        backend="tensorrt-rtx",
        dtype=dtype,
        engine=EngineOptions(compute_capability=("sm89",), max_images=2),
    )
    assert all(component.engine is not None for component in made.components)
    (profile,) = made.part(VISION).profiles
    assert profile["pixel_values"] == ((16, 1176), (1200, 1176), (1200, 1176))
    assert profile["token_positions"] == ((4, 2), (300, 2), (300, 2))
    if family == "qwen2.5-vl":
        low, _, high = profile["window_index"]
        assert (low, high[1]) == ((1, 4), 4)
        assert 75 <= high[0] <= 151
    (pruner,) = made.part(PRUNER).profiles
    assert pruner["image_features"][2][1] == 300
    assert made.vision.tokens == (4, 300)
