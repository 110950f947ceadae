"""Rotary tables and decoders of three-axis positions, against the text models of Qwen2.5-VL and Qwen3-VL."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import Qwen2_5_VLTextConfig, Qwen3VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRotaryEmbedding, Qwen2_5_VLTextModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel, Qwen3VLTextRotaryEmbedding

from tests.kit.rtx import Network
from tests.kit.runner import session
from trtprune.checkpoint.safetensors import read_header
from trtprune.components.config import Section
from trtprune.components.decoder import DecoderConfig, build_decoder
from trtprune.components.rope import Rope, RotaryAxes
from trtprune.errors import CheckpointError
from trtprune.graph import Graph, Lowering

CONTIGUOUS, INTERLEAVED = RotaryAxes((16, 24, 24)), RotaryAxes((24, 20, 20), interleaved=True)
SCALING: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 128},
    "dynamic": {"factor": 2.0},
}
LONGEST = 200
"""max_position_embeddings: dynamic rope is another one beyond."""
SIZES = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}


def tables(g: Graph, rope: Rope) -> None:
    """Writes cos and sin of the graph's position_ids."""
    position_ids = g.input("position_ids", "int64", ["batch", rope.axes, "sequence"])
    for name, value in zip(("cos", "sin"), rope.cos_sin(g, position_ids), strict=True):
        g.output(value, name, g.dtype_name, ["batch", "sequence", rope.dim // 2])


def theirs(interleaved: bool, dim: int, rope: dict[str, Any], positions: np.ndarray) -> list[np.ndarray]:
    """cos and sin [B, S, dim / 2] of transformers for positions [B, 3, S], row by row."""
    kind, module = (
        (Qwen3VLTextConfig, Qwen3VLTextRotaryEmbedding)
        if interleaved
        else (Qwen2_5_VLTextConfig, Qwen2_5_VLRotaryEmbedding)
    )
    settings = {"hidden_size": 2 * dim, "num_attention_heads": 2, "head_dim": dim, "max_position_embeddings": LONGEST}
    found = []
    for row in positions:  # a row's length is its own here, of the batch in transformers
        embedding = module(kind(**settings, rope_parameters=dict(rope)))
        found.append(embedding(torch.zeros(1), torch.from_numpy(row)[:, None]))
    return [torch.cat([pair[i] for pair in found])[..., : dim // 2].numpy() for i in range(2)]


@st.composite
def sections(draw: Any, interleaved: bool) -> tuple[int, int, int]:
    """Frequencies of each axis that the order has room for."""
    if not interleaved:
        return draw(st.tuples(*[st.integers(1, 24)] * 3))
    rows, columns = draw(st.integers(1, 16)), draw(st.integers(1, 16))
    # The last frequency of an axis must exist: 3n - 2 for row n - 1, 3n - 1 for column n - 1.
    least = max(3 * rows - 1, 3 * columns) - rows - columns
    return draw(st.integers(max(least, 1), least + 8)), rows, columns


@settings(max_examples=60, deadline=None)
@given(st.booleans().flatmap(lambda b: st.tuples(st.just(b), sections(b))), st.sampled_from([*SCALING]), st.data())
def test_tables(order: tuple[bool, tuple[int, int, int]], kind: str, data: st.DataObject) -> None:
    interleaved, parts = order
    dim = 2 * sum(parts)
    rope = {
        "rope_type": kind,
        "rope_theta": data.draw(st.sampled_from([1e4, 1e6, 5e6])),
        "mrope_section": list(parts),
        **SCALING[kind],
    }
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    shape = data.draw(st.tuples(st.integers(1, 3), st.just(3), st.integers(1, 9)))
    positions = rng.integers(0, data.draw(st.sampled_from([12, 150, 400])), shape)
    ours = Rope.from_config(
        Section({"rope_parameters": rope}, "text_config"), dim, LONGEST, INTERLEAVED if interleaved else CONTIGUOUS
    )
    assert (ours.sections, ours.axes) == (parts, 3)
    g = Graph("tables")
    tables(g, ours)
    found = session(g).run(None, {"position_ids": positions})
    # An angle is position x frequency, at most 1 x position: frequencies differ by units in the last place (float32
    # powers), those of dynamic rope, computed in the graph, by some more.
    units = 16 if kind == "dynamic" else 2
    tolerance = units * 2.0**-23 * float(positions.max()) + 1e-6
    for mine, wanted in zip(found, theirs(interleaved, dim, rope, positions), strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=0, atol=tolerance)


def test_equal_numbers_on_all_axes_are_one_axis() -> None:
    """Text, which has one number on all axes, is turned as in a decoder of one axis, bit for bit."""
    found = []
    for split in (None, CONTIGUOUS, INTERLEAVED):
        g = Graph("tables")
        rope = Rope.from_config(Section({}, ""), 128, LONGEST, split)
        tables(g, rope)
        positions = np.repeat(np.arange(50)[None, None], rope.axes, axis=1)
        found.append(session(g).run(None, {"position_ids": positions}))
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


@pytest.mark.parametrize("kind", ["default", "dynamic"])
def test_one_axis_costs_what_it_did(kind: str) -> None:
    """One axis: the operators of a decoder of int64 [B, S] positions, with a Transpose in place of an Unsqueeze, and
    no other; three: one Gather more."""
    counts = {}
    for split in (None, INTERLEAVED):
        g = Graph("tables")
        rope = {"rope_type": kind, "factor": 2.0}
        tables(g, Rope.from_config(Section({"rope_parameters": rope}, ""), 128, LONGEST, split))
        counts[split] = Counter(node.op_type for node in g.builder.graph.all_nodes())
    plain = Counter(Cast=1, Transpose=1, Mul=1, Cos=1, Sin=1)
    if kind == "dynamic":  # 3 Casts and 2 Unsqueezes before
        plain += Counter(
            ReduceMax=1, Add=1, Greater=1, Cast=1, Div=1, Mul=2, Sub=1, Max=1, Pow=2, Reciprocal=1, Where=1
        )
    assert counts[None] == plain
    assert counts[INTERLEAVED] - plain == Counter(Gather=1)


def text_config(parts: list[int]) -> dict[str, Any]:
    return {
        **SIZES,
        "vocab_size": 90,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": LONGEST,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": parts},
    }


TEXT_MODELS: dict[str, tuple[Any, Any, str, RotaryAxes]] = {
    "qwen2_5_vl": (Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel, "qwen2", CONTIGUOUS),
    "qwen3_vl": (Qwen3VLTextConfig, Qwen3VLTextModel, "qwen3_vl_text", INTERLEAVED),
}


@pytest.fixture(scope="module", params=TEXT_MODELS)
def qwen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A random text model of Qwen2.5-VL or Qwen3-VL, and the folder of its weights."""
    torch.manual_seed(0)
    config, kind, *_ = TEXT_MODELS[request.param]
    model = kind(config(**text_config(parts_of(request.param)), attn_implementation="eager")).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.25)
    folder = tmp_path_factory.mktemp("qwen") / request.param
    folder.mkdir()
    (folder / "weights").mkdir()
    weights = {**model.state_dict(), "head": torch.randn(90, 64)}
    save_file(weights, folder / "weights" / "model.safetensors")
    return model, folder


def parts_of(name: str) -> list[int]:
    return [2, 3, 3] if name == "qwen2_5_vl" else [4, 2, 2]


def decoder(folder: Path, lowering: Lowering, dtype: str = "float32") -> tuple[Graph, DecoderConfig]:
    """The graph of the model that the folder is called by."""
    _, _, kind, split = TEXT_MODELS[folder.name]
    raw = text_config(parts_of(folder.name)) | {"model_type": kind}
    raw["rope_parameters"] = raw["rope_parameters"] | {"rope_type": "mrope"}  # as the oldest files call it
    cfg = DecoderConfig.from_config(Section(raw, "text_config"), kind, split)
    tensors = read_header(folder / "weights" / "model.safetensors").tensors
    g = Graph("decoder", dtype=dtype, lowering=lowering, tensors=tensors)
    build_decoder(g, cfg, "", "head")
    return g, cfg


def feeds(cfg: DecoderConfig, capacity: int) -> dict[str, np.ndarray]:
    """A prompt of 11 tokens of two rows with an image in it, and 4 more tokens."""
    rng = np.random.default_rng(1)
    shape = (2, cfg.num_kv_heads, capacity, cfg.head_dim)
    cache = {
        f"past_key_values.{i}.{n}": np.zeros(shape, np.float32) for i in range(cfg.num_layers) for n in ("key", "value")
    }
    embeds = rng.standard_normal((2, 15, cfg.hidden_size)).astype(np.float32)
    return {"inputs_embeds": embeds, "position_ids": rng.integers(0, LONGEST, (2, 3, 15)), **cache}


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tensorrt"])
def test_decoder(qwen: tuple[Any, Path], backend: str) -> None:
    """Prefill and decode steps over the cache, in each lowering."""
    model, folder = qwen
    g, cfg = decoder(folder, Lowering.for_backend(backend))
    run, feed = session(g, folder), feeds(cfg, 20)
    embeds, positions = feed.pop("inputs_embeds"), feed.pop("position_ids")
    with torch.no_grad():
        states = model(
            inputs_embeds=torch.from_numpy(embeds),
            attention_mask=torch.ones(2, 15, dtype=torch.long),
            position_ids=torch.from_numpy(positions).transpose(0, 1),
            use_cache=False,
        ).last_hidden_state
    head = read_head(folder)
    names = [output.name for output in run.get_outputs()]
    begin, logits = 0, []
    for end in (11, 12, 13, 15):
        new = {
            "inputs_embeds": embeds[:, begin:end],
            "position_ids": positions[:, :, begin:end],
            "write_index": np.array([begin] * 2),
            "logits_index": np.tile(np.arange(end - begin), (2, 1)),
        }
        out = dict(zip(names, run.run(None, new | feed), strict=True))
        logits.append(out.pop("logits"))
        feed = {name.replace("present", "past_key_values"): value for name, value in out.items()}
        begin = end
    np.testing.assert_allclose(np.concatenate(logits, axis=1), states.numpy() @ head.T, rtol=0, atol=2e-4)


def read_head(folder: Path) -> np.ndarray:
    from safetensors.numpy import load_file

    return load_file(folder / "weights" / "model.safetensors")["head"]


def test_openvino(qwen: tuple[Any, Path]) -> None:
    """OpenVINO reads the decoder and computes what ONNX Runtime does."""
    from openvino import Core

    _, folder = qwen
    g, cfg = decoder(folder, Lowering.for_backend("openvino"))
    g.save(folder / "decoder.onnx", inline=True)
    onnx.checker.check_model(folder / "decoder.onnx", full_check=True)
    feed = feeds(cfg, 20) | {"write_index": np.zeros(2, np.int64), "logits_index": np.tile(np.arange(15), (2, 1))}
    expected = session(g, folder).run(["logits"], feed)[0]
    compiled = Core().compile_model(folder / "decoder.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    np.testing.assert_allclose(compiled(feed)[compiled.output("logits")], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("split", [CONTIGUOUS, INTERLEAVED], ids=["contiguous", "interleaved"])
def test_tables_build_in_tensorrt_rtx(split: RotaryAxes) -> None:
    g = Graph("tables", dtype="float16", lowering=Lowering.for_backend("tensorrt-rtx"))
    tables(g, Rope.from_config(Section({}, ""), 128, LONGEST, split))
    assert Network(g.to_bytes(), None).build() > 0


def test_decoder_builds_in_tensorrt_rtx(qwen: tuple[Any, Path]) -> None:
    _, folder = qwen
    g, _ = decoder(folder, Lowering.for_backend("tensorrt-rtx"), "float16")
    network = Network(g.to_bytes(), folder, {"capacity": 64})
    assert network.inputs["position_ids"] == ["batch", 3, "sequence"]
    assert network.build() > 0


@pytest.mark.parametrize(
    ("parts", "split", "words"),
    [
        ([16, 24], CONTIGUOUS, "expected a list of 3 integers"),
        ([16, 24, 0], CONTIGUOUS, r"mrope_section\[2\] is 0, expected an integer of at least 1"),
        ([16, 24, 24.0], CONTIGUOUS, r"mrope_section\[2\]"),
        ([16, 24, 23], CONTIGUOUS, "must add up to 64"),
        ([2, 31, 31], INTERLEAVED, r"\[2, 31, 31\], which cannot be interleaved"),
        ("16,24,24", CONTIGUOUS, "expected a list"),
    ],
)
def test_sections_that_cannot_be(parts: Any, split: RotaryAxes, words: str) -> None:
    section = Section({"rope_parameters": {"mrope_section": parts}}, "text_config")
    with pytest.raises(CheckpointError, match=words):
        Rope.from_config(section, 128, LONGEST, split)
    # A family of one axis does not read them.
    assert Rope.from_config(section, 128, LONGEST).sections == (64,)


def test_the_name_mrope_belongs_to_families_of_several_axes() -> None:
    section = Section({"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}, "text_config")
    assert Rope.from_config(section, 128, LONGEST, CONTIGUOUS).kind == "default"
    with pytest.raises(CheckpointError, match="mrope"):
        Rope.from_config(section, 128, LONGEST)
