"""The ways ``--attention`` can spell the decoder's attention give the same numbers in ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tests.kit.runner import Chain, session
from tests.kit.tiny import Tiny, make, pixels
from trtprune.errors import BuildError
from trtprune.graph import Graph, Lowering
from trtprune.graph.attention import attention
from trtprune.graph.lowering import Form

FORMS: tuple[Form, ...] = ("op", "op-float32", "primitives", "primitives-float32")
CAPACITY = 40


def one_layer(form: Form, dtype: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    g = Graph("attention", dtype=dtype, lowering=Lowering(attention=form))
    q, k, v = (g.input(name, dtype, list(arrays[name].shape)) for name in "qkv")
    g.output(attention(g, q, k, v, heads=4, kv_heads=2, head_dim=32, form=form), "y", dtype, [1, 4, 1, 32])
    return session(g).run(None, {name: a.astype(dtype) for name, a in arrays.items()})[0].astype(np.float64)


def test_float32_boundary_is_the_most_exact_in_float16() -> None:
    """One query over many keys with large scores: where half precision hurts (the single-token step)."""
    rng = np.random.default_rng(0)
    arrays = {
        "q": 4 * rng.standard_normal((1, 4, 1, 32)),
        "k": 2 * rng.standard_normal((1, 2, 1024, 32)),
        "v": rng.standard_normal((1, 2, 1024, 32)),
    }
    arrays = {name: a.astype(np.float16).astype(np.float64) for name, a in arrays.items()}
    q, k, v = (torch.from_numpy(arrays[name]) for name in "qkv")
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True).numpy()
    error = {form: np.abs(one_layer(form, "float16", arrays) - expected).max() for form in FORMS}
    for form in ("op-float32", "primitives-float32"):
        assert error[form] < 1e-3  # rounding of the result to float16
        assert error[form] <= min(error["op"], error["primitives"])
    assert max(error.values()) < 2e-2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("forms")
    make(path, Tiny(decoder="mistral", text={"sliding_window": 12}))
    return path


def answers(path: Path, form: Form, dtype: str) -> dict[str, np.ndarray]:
    """Logits of a prefill and a step of two rows of different lengths, the caches, and the tower's features."""
    chain = Chain(path, dtype=dtype, lowering=Lowering(attention=form, vision_attention=form))
    embeds = np.random.default_rng(1).standard_normal((2, 17, 64)).astype(np.float32)
    decoder = chain.decoder(2, CAPACITY)
    prefill = decoder(embeds, [0, 0], logits_index=np.array([[16], [9]]))
    step = decoder(embeds[:, 3:4], [17, 10])
    out = {"prefill": prefill, "step": step, "key": decoder.cache["past_key_values.2.key"][:, :, :10]}
    return out | chain.vision(pixels(Tiny()))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float16", 6e-2)])
@pytest.mark.parametrize("form", FORMS[1:])
def test_the_model_answers_alike(checkpoint: Path, form: Form, dtype: str, tolerance: float) -> None:
    expected, got = answers(checkpoint, "op", dtype), answers(checkpoint, form, dtype)
    assert np.abs(expected["step"]).max() > 1
    for name, array in expected.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_allclose(got[name].astype(np.float32), array.astype(np.float32), atol=tolerance, err_msg=name)


@pytest.mark.parametrize(
    ("form", "ops"),
    [("op-float32", ["Attention"]), ("primitives-float32", ["Transpose", "MatMul", "Softmax", "MatMul"])],
)
def test_float32_boundary_casts_only_the_attention(form: Form, ops: list[str]) -> None:
    g = Graph("attention", dtype="float16", lowering=Lowering(attention=form))
    q, k, v = (g.input(name, "float16", [1, 2, "s", 8]) for name in "qkv")
    y = attention(g, q, k, v, heads=2, kv_heads=2, head_dim=8, form=form)
    g.output(y, "y", "float16", [1, 2, "s", 8])
    proto = onnx.load_model_from_string(g.to_bytes())
    assert [node.op_type for node in proto.graph.node] == ["Cast", "Cast", "Cast", "Mul", *ops, "Cast"]


def chosen(backend: str, lowering: dict[str, str], attention: str = "fused") -> Lowering:
    """The forms of a build without a GPU to decide for."""
    from trtprune.compiler.engine_options import EngineOptions
    from trtprune.compiler.lowering import choose_lowering
    from trtprune.compiler.request import BuildRequest

    engine = None if backend == "onnxruntime" else EngineOptions(attention=attention)
    return choose_lowering(BuildRequest("m", "out", backend=backend, lowering=lowering, engine=engine), None)


def test_a_form_only_attention_has() -> None:
    assert chosen("onnxruntime", {"attention": "op-float32"}).attention == "op-float32"
    assert chosen("tensorrt", {}, "fp32-boundary").attention == "op-float32"
    rtx = Lowering.for_backend("tensorrt-rtx")
    assert chosen("tensorrt-rtx", {}, "fp32-boundary") == replace(rtx, attention="primitives-float32")
    forms = {"attention": "primitives", "norm": "primitives"}
    assert chosen("tensorrt-rtx", {"norm": "primitives"}, "decomposed") == replace(rtx, **forms)
    with pytest.raises(BuildError, match=r"lowering={'norm': 'op-float32'}"):
        chosen("tensorrt", {"norm": "op-float32"})
    with pytest.raises(BuildError, match="lowering attention=primitives"):
        chosen("tensorrt", {"attention": "primitives"})
