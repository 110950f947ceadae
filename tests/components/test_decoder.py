"""The decoder graph's cache, mask and positions: batches of unequal rows, padding, windows, gaps."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from tests.kit import tiny
from tests.kit.runner import Chain
from trtprune.checkpoint import open_checkpoint
from trtprune.graph import Lowering
from trtprune.models import open_model

LOWERINGS = {b: Lowering.for_backend(b) for b in ("onnxruntime", "tensorrt", "openvino")}
LOWERINGS["mixed"] = Lowering(attention="primitives", vision_attention="primitives", cache="primitives")  # opset 23
CASES = {
    "llama": tiny.Tiny(seed=21),
    "mistral-window": tiny.Tiny(seed=22, decoder="mistral", text={"sliding_window": 6}),
    "qwen2-mixed": tiny.Tiny(
        seed=23,
        decoder="qwen2",
        kv_heads=4,
        text={"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
    ),
    "qwen3": tiny.Tiny(seed=24, decoder="qwen3", text={"attention_bias": True}),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory):
    made = {}
    for name, t in CASES.items():
        path = tmp_path_factory.mktemp(name)
        made[name] = tiny.make(path, t), path
    return made


@pytest.fixture(scope="module", params=[(c, b) for c in CASES for b in LOWERINGS], ids="-".join)
def case(request: pytest.FixtureRequest, models):
    name, backend = request.param
    model, path = models[name]
    return model, Chain(path, lowering=LOWERINGS[backend])


def reference(model, embeds: np.ndarray, positions: np.ndarray | None = None) -> np.ndarray:
    """Logits of all rows in one go.  The mask keeps transformers from reading gaps in positions as packing."""
    with torch.no_grad():
        out = model.model.language_model(
            inputs_embeds=torch.from_numpy(embeds),
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
            position_ids=None if positions is None else torch.from_numpy(positions),
            use_cache=False,
        )
        return model.lm_head(out.last_hidden_state).numpy()


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return (0.7 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def close(actual: np.ndarray, expected: np.ndarray, tolerance: float = 1e-4) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


def test_ragged_batch_equals_single_rows(case) -> None:
    """Right-padded prompts of four lengths, then decode steps at four write indices, against each row alone."""
    model, chain = case
    lengths = [17, 3, 9, 1]
    steps = 7
    full = draw(4, max(lengths) + steps, 64)
    rows = [reference(model, full[b : b + 1, : n + steps])[0] for b, n in enumerate(lengths)]
    decoder = chain.decoder(4, 40)
    prompt = np.full((4, max(lengths), 64), 3.0, np.float32)  # padding is no zero vector
    for b, n in enumerate(lengths):
        prompt[b, :n] = full[b, :n]
    last = decoder(prompt, [0, 0, 0, 0], logits_index=[[n - 1] for n in lengths])
    for b, n in enumerate(lengths):
        close(last[b, 0], rows[b][n - 1])
    for step in range(steps):
        token = np.stack([full[b, n + step] for b, n in enumerate(lengths)])[:, None]
        logits = decoder(token, [n + step for n in lengths])
        for b, n in enumerate(lengths):
            close(logits[b, 0], rows[b][n + step])


def test_chunks_of_any_size(case) -> None:
    """Prefill in pieces (a second turn of a conversation) equals one go."""
    model, chain = case
    embeds = draw(2, 23, 64, seed=1)
    decoder, done, parts = chain.decoder(2, 23), 0, []
    for size in (8, 1, 5, 9):
        parts.append(decoder(embeds[:, done : done + size], [done, done]))
        done += size
    close(np.concatenate(parts, 1), reference(model, embeds))


def test_stale_slots_do_not_matter(case) -> None:
    """What an earlier, longer request left in the cache changes nothing, bit for bit."""
    _, chain = case
    embeds = draw(1, 9, 64, seed=2)
    clean = chain.decoder(1, 32)
    dirty = chain.decoder(1, 32, fill=50.0)
    a, b = clean(embeds, [0]), dirty(embeds, [0])
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(clean(embeds[:, :1], [9]), dirty(embeds[:, :1], [9]))


def test_capacity_does_not_matter(case) -> None:
    model, chain = case
    embeds = draw(1, 12, 64, seed=3)
    expected = reference(model, embeds)
    for capacity in (12, 13, 100):
        close(chain.decoder(1, capacity)(embeds, [0]), expected)


def test_original_positions_with_gaps(case) -> None:
    """Pruned prompts that keep their original positions: cache slots are dense, position ids have gaps."""
    model, chain = case
    embeds = draw(2, 14, 64, seed=4)
    rng = np.random.default_rng(0)
    positions = np.stack([np.sort(rng.choice(60, 14, replace=False)) for _ in range(2)])
    expected = reference(model, embeds, positions)
    assert np.abs(expected - reference(model, embeds)).max() > 1e-2
    decoder = chain.decoder(2, 20)
    first = decoder(embeds[:, :10], [0, 0], positions[:, :10])
    rest = [decoder(embeds[:, i : i + 1], [i, i], positions[:, i : i + 1]) for i in range(10, 14)]
    close(np.concatenate([first, *rest], 1), expected)


def test_logits_index_picks_rows(case) -> None:
    _, chain = case
    embeds = draw(2, 11, 64, seed=5)
    every = chain.decoder(2, 11)(embeds, [0, 0])
    index = np.array([[10, 0, 4], [3, 3, 9]])
    picked = chain.decoder(2, 11)(embeds, [0, 0], logits_index=index)
    close(picked, np.take_along_axis(every, index[..., None], 1), 1e-5)
    assert picked.dtype == np.float32


def test_cache_holds_what_was_written(case) -> None:
    """present = past outside the slots that were written."""
    _, chain = case
    decoder = chain.decoder(2, 16, fill=7.0)
    decoder(draw(2, 3, 64, seed=6), [0, 5])
    for cache in decoder.cache.values():
        assert (cache[0, :, 3:] == 7).all()
        assert (cache[0, :, :3] != 7).all()
        assert (cache[1, :, :5] == 7).all()
        assert (cache[1, :, 5:8] != 7).all()
        assert (cache[1, :, 8:] == 7).all()


def test_window_limits_the_past(models) -> None:
    """Beyond layers × window a change is not seen; within it is.  Without a window it is."""
    seen = {}
    for name in ("llama", "mistral-window"):
        _, path = models[name]
        chain = Chain(path)
        embeds = draw(1, 30, 64, seed=7)
        changed = embeds.copy()
        changed[0, 5] += 1
        a, b = (chain.decoder(1, 30)(e, [0])[0] for e in (embeds, changed))
        seen[name] = np.abs(a - b).max(-1) > 0
    reach = CASES["mistral-window"].layers * (6 - 1)
    assert not seen["mistral-window"][5 + reach + 1 :].any()
    assert seen["mistral-window"][5 : 5 + 6].all()
    assert seen["llama"][5:].all()
    assert not seen["llama"][:5].any()


@pytest.mark.parametrize("backend", LOWERINGS)
def test_float16(models, backend: str) -> None:
    """The float16 graph stays near the float32 one, and large activations do not overflow in the norms."""
    _, path = models["llama"]
    embeds = draw(1, 20, 64, seed=8)
    expected = Chain(path)
    half = Chain(path, dtype="float16", lowering=LOWERINGS[backend])
    a = expected.decoder(1, 24)(embeds, [0])
    b = half.decoder(1, 24)(embeds, [0])
    assert b.dtype == np.float32
    assert np.abs(a - b).max() < 0.05
    big = half.decoder(1, 24)(embeds * 300, [0])  # squares beyond float16
    assert np.isfinite(big).all()
    pixel_values = tiny.pixels(CASES["llama"])
    for name, value in half.vision(pixel_values).items():
        assert value.dtype == (np.float32 if name == "cls_attention" else np.float16)
        np.testing.assert_allclose(value, expected.vision(pixel_values)[name], rtol=0, atol=0.03)


def test_what_layers_share_is_computed_once(models) -> None:
    """One set of rotary angles; one mask for each window in use, whatever the number of layers."""
    for name, masks in (("llama", 1), ("mistral-window", 1), ("qwen2-mixed", 2)):
        checkpoint = open_checkpoint(models[name][1])
        model = open_model(checkpoint)
        for lowering in LOWERINGS.values():
            g = model.build_components(dtype="float32", lowering=lowering)["decoder"]
            count = Counter(node.op_type for node in g.builder.graph.all_nodes())
            assert (count["Cos"], count["Sin"]) == (1, 1)
            assert count["LessOrEqual"] == masks
            assert count["Where"] == (masks if lowering.attention == "primitives" else 0)
