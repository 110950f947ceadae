"""Qwen3-VL's tower at random sizes of the tower and of images, against transformers: features, levels and saliency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel
from transformers.vision_utils import get_vision_interpolation_indices_and_weights

from tests.kit import tiny
from tests.kit.rtx import Network
from tests.kit.runner import session
from trtprune.checkpoint.safetensors import read_header
from trtprune.components.config import Section
from trtprune.components.patch_positions import patch_places, resampled_positions
from trtprune.components.qwen2_vl_vision import PackedTowerConfig, build_packed_tower, packed_tower_weights
from trtprune.graph import Graph, Lowering
from trtprune.models.qwen3_vl import Qwen3VlFamily

SALIENCY = ("mean_query_attention", "deep_attention")


def positions(rows: int, columns: int) -> np.ndarray:
    """Row and column of each visual token."""
    return np.stack(np.divmod(np.arange(rows * columns), columns), axis=1)


@given(st.integers(1, 48), st.integers(1, 90), st.integers(1, 90), st.integers(1, 3))
@settings(max_examples=120, deadline=None)
def test_resampled_table(side: int, rows: int, columns: int, merge: int) -> None:
    """Indices and weights of transformers, on a table whose entries tell their places; single rows and columns too."""
    table = np.random.default_rng(side).normal(size=(side**2, 3)).astype(np.float32)
    g = Graph("table")
    places = patch_places(g, g.input("token_positions", "int64", ["visual_tokens", 2]), merge)
    found = resampled_positions(g, places, g.constant(table, "table"), side)
    g.output(found, "positions", "float32", [1, "patches", 3])
    (ours,) = session(g).run(None, {"token_positions": positions(rows, columns)})
    grid = torch.tensor([[1, rows * merge, columns * merge]])
    index, weights = get_vision_interpolation_indices_and_weights(
        grid, side, align_corners=True, spatial_merge_size=merge
    )
    wanted = (torch.from_numpy(table)[index] * weights[..., None]).sum(1).numpy()
    np.testing.assert_allclose(ours[0], wanted, rtol=0, atol=2e-6)


@st.composite
def towers(draw: Any) -> dict[str, Any]:
    """``vision_config`` of a small tower."""
    depth, heads = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    levels = draw(st.lists(st.integers(0, depth - 1), unique=True, max_size=3))
    return {
        "depth": depth,
        "num_heads": heads,
        "hidden_size": 4 * heads * draw(st.integers(1, 4)),
        "intermediate_size": draw(st.integers(3, 40)),
        "patch_size": draw(st.integers(1, 5)),
        "temporal_patch_size": draw(st.integers(1, 2)),
        "spatial_merge_size": draw(st.integers(1, 3)),
        "out_hidden_size": draw(st.integers(4, 24)),
        "num_position_embeddings": draw(st.integers(1, 7)) ** 2,
        "deepstack_visual_indexes": levels,
        "hidden_act": draw(st.sampled_from(["gelu_pytorch_tanh", "gelu", "silu"])),
    }


def written(path: Path, values: dict[str, Any], seed: int) -> tuple[Any, PackedTowerConfig]:
    """A random tower of transformers, its weights in ``path``, and what the family reads from its config."""
    config = Qwen3VLVisionConfig(**values)
    config._attn_implementation = "eager"
    model = Qwen3VLVisionModel(config).eval()
    tiny.draw(model, seed, False)
    (path / "weights").mkdir(parents=True, exist_ok=True)
    save_file({f"visual.{name}": p.detach() for name, p in model.named_parameters()}, path / "weights/a.safetensors")
    return model, Qwen3VlFamily().read_tower(Section(values, "vision_config"))


def tower_graph(path: Path, cfg: PackedTowerConfig, lowering: Lowering, dtype: str = "float32") -> Graph:
    """The vision graph, with every weight that the tower says it has and no other."""
    tensors = read_header(path / "weights/a.safetensors").tensors
    assert {name: info.shape for name, info in tensors.items()} == packed_tower_weights(cfg, "visual.")
    g = Graph("vision", dtype=dtype, lowering=lowering, tensors=tensors)
    tower = build_packed_tower(g, cfg, "visual.", SALIENCY)
    g.output(tower.features, "image_features", dtype, [1, "visual_tokens", cfg.output_size])
    if tower.levels is not None:
        g.output(tower.levels, "deepstack_features", dtype, [1, "visual_tokens", cfg.levels * cfg.output_size])
    for name in SALIENCY:
        g.output(tower.extras[name], name, "float32", [1, "visual_tokens"])
    return g


@given(towers(), st.integers(0, 10**6), st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1))
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_towers(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any], seed: int, grids: list[tuple[int, int]]
) -> None:
    path = tmp_path_factory.mktemp("tower")
    model, cfg = written(path, values, seed)
    forms = (Lowering.for_backend("onnxruntime"), Lowering.for_backend("tensorrt"))
    sessions = [session(tower_graph(path, cfg, lowering), path) for lowering in forms]
    for rows, columns in grids[:3]:
        patches = rows * columns * cfg.unit
        pixels = np.random.default_rng(seed).normal(size=(patches, cfg.patch_width)).astype(np.float32)
        with torch.no_grad():
            grid = torch.tensor([[1, rows * cfg.merge, columns * cfg.merge]])
            wanted = model(torch.from_numpy(pixels), grid_thw=grid)
        for own in sessions:
            names = [value.name for value in own.get_outputs()]
            feed = {"pixel_values": pixels, "token_positions": positions(rows, columns)}
            found = dict(zip(names, own.run(None, feed), strict=True))
            np.testing.assert_allclose(found["image_features"][0], wanted.pooler_output.numpy(), rtol=0, atol=5e-5)
            if cfg.levels:
                levels = torch.cat(wanted.deepstack_features, -1).numpy()
                np.testing.assert_allclose(found["deepstack_features"][0], levels, rtol=0, atol=5e-5)
            else:
                assert "deepstack_features" not in found
            for name in SALIENCY:
                assert found[name].shape == (1, rows * columns)
                np.testing.assert_allclose(found[name].sum(), 1, rtol=1e-5)


VALUES = {
    **{"depth": 3, "num_heads": 2, "hidden_size": 32, "intermediate_size": 40, "patch_size": 4},
    **{"out_hidden_size": 24, "num_position_embeddings": 49, "deepstack_visual_indexes": [0, 1]},
}


def test_half_precision(tmp_path: Path) -> None:
    """The table is resampled in float32 and no index is lost."""
    model, cfg = written(tmp_path, VALUES, 3)
    g = tower_graph(tmp_path, cfg, Lowering.for_backend("onnxruntime"), "float16")
    pixels = np.random.default_rng(3).normal(size=(4 * 300, cfg.patch_width)).astype(np.float16)
    with torch.no_grad():
        wanted = model(torch.from_numpy(pixels.astype(np.float32)), grid_thw=torch.tensor([[1, 6, 200]]))
    feed = {"pixel_values": pixels, "token_positions": positions(3, 100)}
    features, levels = session(g, tmp_path).run(["image_features", "deepstack_features"], feed)
    for found, theirs in ((features, wanted.pooler_output), (levels, torch.cat(wanted.deepstack_features, -1))):
        np.testing.assert_allclose(found[0], theirs.numpy(), rtol=0, atol=0.03 * float(theirs.abs().max()))


def test_builds_in_tensorrt_rtx(tmp_path: Path) -> None:
    """The resampling, with its indices made at run time."""
    _, cfg = written(tmp_path, VALUES, 4)
    g = tower_graph(tmp_path, cfg, Lowering.for_backend("tensorrt-rtx"), "float16")
    assert Network(g.to_bytes(), tmp_path).build() > 0
