"""The decoder cut into segments: the same numbers as in one piece, and the raters' attention as transformers has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.kit import tiny
from tests.kit.runner import link_weights, session
from trtprune.checkpoint import open_checkpoint
from trtprune.graph import Lowering
from trtprune.models import open_model

CASES = {
    "llama": tiny.Tiny(seed=41, layers=5),
    "mistral": tiny.Tiny(seed=42, decoder="mistral", layers=4, text={"sliding_window": 7}),
    "qwen2": tiny.Tiny(seed=43, decoder="qwen2", kv_heads=4, layers=4),
    "qwen3": tiny.Tiny(seed=44, decoder="qwen3", layers=4),
}
CUTS = {"one": (1,), "all": (0, 1, 2), "first": (0,)}
CAPACITY = 40


class Segments:
    """The segments of a checkpoint in ONNX Runtime, each with a cache of its own."""

    def __init__(self, path: Path, backend: str, cuts: tuple[int, ...], raters: Any = None) -> None:
        checkpoint = open_checkpoint(path)
        model = open_model(checkpoint)
        spec = model.spec
        link_weights(checkpoint, path / "engine")
        graphs = model.build_components(
            dtype="float32", lowering=Lowering.for_backend(backend), cuts=cuts, raters=raters
        )
        names = [name for name in graphs if name.startswith("decoder")]
        assert names == (["decoder"] if not cuts else [f"decoder.{i}" for i in range(len(cuts) + 1)])
        self.sessions = [session(graphs[name], path / "engine") for name in names]
        shape = (1, spec.num_kv_heads, CAPACITY, spec.head_dim)
        self.caches = [
            {i.name: np.zeros(shape, np.float32) for i in s.get_inputs() if i.name.startswith("past_key_values.")}
            for s in self.sessions
        ]
        held = sorted(name for cache in self.caches for name in cache)
        assert held == sorted(f"past_key_values.{i}.{n}" for i in range(spec.num_layers) for n in ("key", "value"))

    def step(self, k: int, x: np.ndarray, at: int, raters: list[int] | None = None) -> dict[str, np.ndarray]:
        """Runs segment ``k`` on [1, S, D] at slot ``at``."""
        s, length = self.sessions[k], x.shape[1]
        inputs = {
            "hidden_states" if k else "inputs_embeds": x,
            "position_ids": at + np.arange(length)[None, None],
            "write_index": np.array([at]),
            "logits_index": np.arange(length)[None],
            "rater_index": np.array([raters or [0]]),
        }
        wanted = {i.name for i in s.get_inputs()}
        fed = {name: value for name, value in inputs.items() if name in wanted}
        out = dict(zip([o.name for o in s.get_outputs()], s.run(None, fed | self.caches[k]), strict=True))
        for name in self.caches[k]:
            self.caches[k][name] = out.pop(name.replace("past_key_values", "present"))
        return out

    def logits(self, x: np.ndarray, at: int) -> np.ndarray:
        for k in range(len(self.sessions)):
            out = self.step(k, x, at)
            x = out.get("last_hidden_state", x)
        return out["logits"]


@pytest.fixture(scope="module", params=list(CASES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    path = tmp_path_factory.mktemp(request.param)
    return tiny.make(path, CASES[request.param]), path


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return (0.7 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def states(model: Any, embeds: np.ndarray) -> Any:
    with torch.no_grad():
        return model.model.language_model(
            inputs_embeds=torch.from_numpy(embeds),
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
            output_attentions=True,
            use_cache=False,
        )


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tensorrt-rtx"])
@pytest.mark.parametrize("cuts", CUTS.values(), ids=list(CUTS))
def test_segments_are_the_decoder(case: tuple[Any, Path], cuts: tuple[int, ...], backend: str) -> None:
    """Prefill in two chunks, then single steps: bit for bit the logits of the decoder in one piece."""
    _, path = case
    whole, parts = Segments(path, backend, ()), Segments(path, backend, cuts, "mean")
    x, at = draw(1, 19, 64), 0
    for size in (11, 3, 1, 1, 3):
        np.testing.assert_array_equal(
            parts.logits(x[:, at : at + size], at), whole.logits(x[:, at : at + size], at), strict=True
        )
        at += size


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("form", ["mean", "heads"])
def test_rater_attention(case: tuple[Any, Path], form: str, backend: str) -> None:
    """Rows of the attention map of the last layer of each segment, as transformers' eager attention returns it."""
    model, path = case
    parts = Segments(path, backend, (0, 2), form)
    x, raters = draw(1, 23, 64, seed=1), [22, 3, 0, 11]
    maps = states(model, x).attentions
    for k, layer in enumerate((0, 2)):
        out = parts.step(k, x, 0, raters)
        wanted = maps[layer][:, :, raters].numpy()
        wanted = wanted.mean(1) if form == "mean" else wanted
        assert out["rater_attention"].shape == wanted.shape
        np.testing.assert_allclose(out["rater_attention"], wanted, rtol=0, atol=2e-6)
        x = out["last_hidden_state"]


def test_rater_attention_of_a_step(case: tuple[Any, Path]) -> None:
    """In a decode step there is one token, which sees itself: the output costs nothing and means nothing."""
    _, path = case
    parts = Segments(path, "onnxruntime", (1,), "mean")
    parts.step(0, draw(1, 5, 64), 0)
    np.testing.assert_array_equal(parts.step(0, draw(1, 1, 64), 5)["rater_attention"], np.ones((1, 1, 1)))
