"""Graphs of random small LLaVA checkpoints against transformers: hidden features, CLS attention row, logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.kit import tiny
from tests.kit.runner import Chain
from trtprune.graph import Lowering

TOLERANCE = 1e-4

YARN = {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [2.0 + 0.7 * i for i in range(8)],
    "original_max_position_embeddings": 24,
    "factor": 4.0,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 3.0}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}

CASES: dict[str, tiny.Tiny] = {
    "clip-llama": tiny.Tiny(),
    "clip-llama-mha-f16-full": tiny.Tiny(seed=1, kv_heads=4, dtype="float16", strategy="full"),
    "clip-llama-biases-list": tiny.Tiny(
        seed=2, feature_layer=[-3, 1, -1], text={"attention_bias": True, "mlp_bias": True}, rope=LINEAR
    ),
    "clip-mistral-window-bf16-shards": tiny.Tiny(
        seed=3, decoder="mistral", dtype="bfloat16", shards=True, text={"sliding_window": 11}
    ),
    "clip-qwen2-tied-last": tiny.Tiny(seed=4, decoder="qwen2", tied=True, feature_layer=-1, projector_bias=False),
    "clip-llama-llama3-headdim": tiny.Tiny(
        seed=5, rope=LLAMA3, text={"head_dim": 24}, feature_layer=2, old_names=False
    ),
    "clip-llama-yarn-gelu": tiny.Tiny(
        seed=6, rope=YARN, vision={"hidden_act": "gelu"}, image_size=42, max_positions=128
    ),
    "clip-llama-longrope-embeddings": tiny.Tiny(seed=7, rope=LONGROPE, feature_layer=[0], max_positions=96),
    "dinov2-qwen2-mixed-window": tiny.Tiny(
        seed=8,
        tower="dinov2",
        decoder="qwen2",
        kv_heads=1,
        text={"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    ),
    "dinov2-llama-swiglu-full": tiny.Tiny(
        seed=9, tower="dinov2", strategy="full", vision={"use_swiglu_ffn": True}, projector_act="gelu_pytorch_tanh"
    ),
    "dinov2-mistral-swiglu-new-names": tiny.Tiny(
        seed=10,
        tower="dinov2",
        decoder="mistral",
        old_names=False,
        vision={"use_swiglu_ffn": True, "qkv_bias": False},
        text={"sliding_window": None},
        dtype="bfloat16",
        tied=True,
    ),
    "clip-qwen3-tied": tiny.Tiny(seed=14, decoder="qwen3", tied=True, dtype="bfloat16"),
    "dinov2-qwen3-biases-mixed-window": tiny.Tiny(
        seed=15,
        tower="dinov2",
        decoder="qwen3",
        rope=YARN,
        text={
            "attention_bias": True,
            "head_dim": 16,
            "use_sliding_window": True,
            "sliding_window": 7,
            "max_window_layers": 1,
        },
    ),
    "siglip-llama-dynamic-default": tiny.Tiny(seed=11, tower="siglip", rope=DYNAMIC, max_positions=20),
    "siglip-qwen2-full-list": tiny.Tiny(
        seed=12, tower="siglip", decoder="qwen2", strategy="full", feature_layer=[-2, 2], shards=True, image_size=60
    ),
    "siglip-mistral-nohead-f16": tiny.Tiny(
        seed=13,
        tower="siglip",
        decoder="mistral",
        strategy="full",
        feature_layer=-1,
        dtype="float16",
        vision={"vision_use_head": False},
        text={"sliding_window": None},
        projector_act="gelu_new",
    ),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    t = CASES[request.param]
    path = tmp_path_factory.mktemp("tiny")
    model = tiny.make(path, t)
    return t, model, path, Chain(path)


def reference_logits(model, embeds: torch.Tensor, **kwargs) -> np.ndarray:
    mask = torch.ones(embeds.shape[:2], dtype=torch.long)
    with torch.no_grad():
        out = model.model.language_model(inputs_embeds=embeds, attention_mask=mask, use_cache=False, **kwargs)
        return model.lm_head(out.last_hidden_state).numpy()


def close(actual: np.ndarray, expected: np.ndarray, tolerance: float = TOLERANCE) -> None:
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


def expected_row(t: tiny.Tiny, model, pixel_values: torch.Tensor) -> np.ndarray | None:
    """The CLS row out of transformers' full attention maps."""
    if t.tower == "siglip":
        return None
    layers = t.feature_layer if isinstance(t.feature_layer, list) else [t.feature_layer]
    deepest = max(i % (t.vision_layers + 1) for i in layers)
    if deepest == 0:
        return None
    with torch.no_grad():
        maps = model.model.vision_tower(pixel_values, output_attentions=True).attentions
    row = maps[deepest - 1].mean(1)[:, 0]
    return (row[:, 1:] if t.strategy == "default" else row).numpy()


def test_vision(case) -> None:
    t, model, _, chain = case
    pixel_values = tiny.pixels(t, batch=3)
    with torch.no_grad():
        expected = torch.stack(list(model.get_image_features(torch.from_numpy(pixel_values)).pooler_output)).numpy()
    out = chain.vision(pixel_values)
    assert expected.std() > 0.05
    close(out["image_features"], expected)
    row = expected_row(t, model, torch.from_numpy(pixel_values))
    assert ("cls_attention" in out) == chain.spec.has_cls == (row is not None)
    if row is not None:
        assert out["cls_attention"].dtype == np.float32
        close(out["cls_attention"], row, 1e-5)
    assert chain.spec.visual_tokens == expected.shape[1]


def test_embed_prefill_and_decode(case) -> None:
    """One-shot logits, then the same sequence as a prefill and single steps through the cache."""
    t, model, _, chain = case
    ids = np.random.default_rng(t.seed).integers(6, t.vocab, (1, 30))
    embeds = chain.embed(ids)
    with torch.no_grad():
        close(embeds, model.get_input_embeddings()(torch.from_numpy(ids)).numpy(), 0)
    expected = reference_logits(model, torch.from_numpy(embeds))
    assert expected.std() > 0.5
    close(chain.decoder(1, 30)(embeds, [0]), expected)
    if t.rope is not None and t.rope["rope_type"] in ("dynamic", "longrope"):
        return  # cached keys keep the frequencies of the length they were written at
    decoder = chain.decoder(1, 37)
    parts = [decoder(embeds[:, :22], [0])]
    parts += [decoder(embeds[:, i : i + 1], [i]) for i in range(22, 30)]
    close(np.concatenate(parts, 1), expected)


def test_generation_with_image(case) -> None:
    """Greedy ids of the whole chain equal ``generate`` on pixels and ids, whatever the rope does with growth."""
    t, model, path, chain = case
    if t.rope is not None and t.rope["rope_type"] == "dynamic":
        model = tiny.load(path)  # transformers' dynamic rope remembers the longest sequence it has seen
    pixel_values = tiny.pixels(t, batch=1, seed=7)
    n = chain.spec.visual_tokens
    ids = np.array([[1, 9, *[tiny.IMAGE_TOKEN_ID] * n, 33, 21, 8]])
    with torch.no_grad():
        out = model.generate(
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.ones(ids.shape, dtype=torch.long),
            pixel_values=torch.from_numpy(pixel_values),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
            output_logits=True,
            return_dict_in_generate=True,
        )
    embeds = chain.embed(ids)
    embeds[0, 2 : 2 + n] = chain.vision(pixel_values)["image_features"][0]
    length = ids.shape[1]
    decoder = chain.decoder(1, length + 12)
    logits = [decoder(embeds, [0], logits_index=[[length - 1]])[:, 0]]
    tokens = [int(logits[0].argmax())]
    for step in range(11):
        logits.append(decoder(chain.embed([[tokens[-1]]]), [length + step])[:, 0])
        tokens.append(int(logits[-1].argmax()))
    close(np.concatenate(logits), torch.cat(out.logits).numpy())
    assert tokens == out.sequences[0, length:].tolist()


def test_lowerings_agree(case) -> None:
    """Operators, primitives and the backends' choices give the same numbers."""
    t, _, path, _ = case
    pixel_values = tiny.pixels(t)
    ids = np.random.default_rng(1).integers(6, t.vocab, (2, 19))
    results = []
    for lowering in (Lowering.for_backend("tensorrt"), Lowering.for_backend("openvino")):
        other = Chain(path, lowering=lowering)
        decoder = other.decoder(2, 24)
        first = decoder(other.embed(ids[:, :16]), [0, 0])
        second = decoder(other.embed(ids[:, 16:]), [16, 16])
        results.append((*other.vision(pixel_values).values(), first, second, *decoder.cache.values()))
    for a, b in zip(*results, strict=True):
        close(a, b)
