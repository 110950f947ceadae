"""hawk: published weights of heads, its own text, and layer 0 of a decoder as transformers computes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers

from tests.kit import pruning_cases as pc
from trtprune import pruning
from trtprune.components.config import Section
from trtprune.components.decoder import DecoderConfig
from trtprune.components.decoder_layer import DecoderLayer
from trtprune.errors import BudgetError, InputError
from trtprune.graph import Graph, Lowering
from trtprune.pruning.base import BuildContext
from trtprune.pruning.graph import build_pruner
from trtprune.pruning.inputs import read_of_run
from trtprune.pruning.methods.hawk import PUBLISHED

HAWK = pruning.get("hawk")


def heads_case(number: int, heads: int, groups: int, tokens: int) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    return {
        "image_features": rng.standard_normal((tokens, 3)),
        "text_query": rng.standard_normal((heads, 6)),
        "image_keys": rng.standard_normal((groups, tokens, 6)),
    }


def test_published_weights() -> None:
    """A head of weight 0 has no say, and the heaviest one has most."""
    assert len(PUBLISHED) == 28
    assert PUBLISHED[26] == min(PUBLISHED) == 0
    session = pc.open_graph(build_pruner("hawk", 3, options={"heads": "published"}))
    for number in range(20):
        case = heads_case(number, 28, 4, 40)
        match = np.einsum("hw,hnw->hn", case["text_query"], np.repeat(case["image_keys"], 7, axis=0))
        match /= np.linalg.norm(match, axis=1, keepdims=True)
        score = np.array(PUBLISHED) / sum(PUBLISHED) @ match
        wanted = sorted(np.argsort(-score)[:9].tolist())
        assert HAWK.reference(**case, keep=9, heads="published").tolist() == wanted
        feed = {name: array[None].astype(np.float32) for name, array in case.items()} | {"keep": np.array(9)}
        assert pc.run(session, feed)[0][0].tolist() == wanted
        silent = {**case, "text_query": case["text_query"].copy()}
        silent["text_query"][26] *= -3
        assert HAWK.reference(**silent, keep=9, heads="published").tolist() == wanted


def test_published_weights_of_another_number_of_heads() -> None:
    with pytest.raises(BudgetError, match=r"those of Qwen2\.5-VL-7B; this decoder has 32") as error:
        HAWK.check_heads(32, HAWK.validate_options({"heads": "published"}))
    assert error.value.hint == "options={'heads': 'uniform'}"
    HAWK.check_heads(32, HAWK.validate_options())
    HAWK.check_heads(28, HAWK.validate_options({"heads": "published"}))
    with pytest.raises(BudgetError, match="this decoder has 4"):
        HAWK.reference(**heads_case(0, 4, 2, 9), keep=3, heads="published")


def test_heads_that_do_not_fit() -> None:
    case = heads_case(0, 4, 2, 9)
    with pytest.raises(InputError, match=r"text_query has shape \(3, 6\), which does not fit"):
        HAWK.reference(**{**case, "text_query": case["text_query"][:3]}, keep=3)
    with pytest.raises(InputError, match="does not fit image_keys"):
        HAWK.reference(**{**case, "text_query": case["text_query"][:, :5]}, keep=3)


def test_a_run_feeds_the_text() -> None:
    assert read_of_run(HAWK.needs) == {"text_embeds"}
    assert read_of_run({"cls_attention", "grid"}) == {"cls_attention", "grid"}
    assert HAWK.text_span() == "question"
    assert HAWK.positions_of(3) == "original"


def decoder_of(kind: str, folder: Path, **config: Any) -> tuple[torch.nn.Module, DecoderConfig]:
    """A decoder with biases and grouped heads, its weights as a file, and its configuration as read here."""
    settings = getattr(transformers, f"{kind}Config")(
        vocab_size=20, hidden_size=32, intermediate_size=16, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, **config,
    )  # fmt: skip
    torch.manual_seed(4)
    model = getattr(transformers, f"{kind}Model")(settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model, DecoderConfig.from_config(Section(settings.to_dict(), "config.json"))


@pytest.mark.parametrize("kind", ["Qwen2", "Qwen3"])
@pytest.mark.parametrize("products", ["op", "primitives"])
def test_layer_0_is_that_of_transformers(tmp_path: Path, products: Any, kind: str) -> None:
    """Queries and keys come from the layer's own modules, by a hook; the choice is the formula's in float64."""
    model, cfg = decoder_of(kind, tmp_path)
    layer = model.layers[0]
    values = {f"layers.0.{name}": value.detach().numpy() for name, value in layer.state_dict().items()}

    class Weights(Graph):
        """A graph with these weights in it."""

        def weight(self, key: str, **_: Any) -> Any:
            return self.constant(values[key])

        def matrix(self, key: str) -> Any:
            return self.constant(values[key].T)

    context = BuildContext(
        lambda name: Weights(name, lowering=Lowering(products=products)), 32,
        layer_access=lambda number: DecoderLayer(cfg, "", number),
    )  # fmt: skip
    graph = HAWK.build_graphs(context, HAWK.validate_options())["pruner", None]
    session = onnxruntime.InferenceSession(graph.to_bytes(), providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["image_features", "text_embeds", "text_mask", "keep"]
    rng = np.random.default_rng(1)
    for tokens, text, keep in ((9, 1, 4), (50, 7, 11), (50, 3, 50)):
        image, words = rng.standard_normal((1, tokens, 32)), rng.standard_normal((1, text + 2, 32))
        words[:, text:] = np.nan  # padding
        seen: dict[str, np.ndarray] = {}

        def keep_output(name: str, into: dict[str, np.ndarray] = seen) -> Any:
            return lambda _module, _given, out: into.__setitem__(name, out[0].detach().double().numpy())

        names = ("q_norm", "k_norm") if kind == "Qwen3" else ("q_proj", "k_proj")
        hooks = [getattr(layer.self_attn, n).register_forward_hook(keep_output(n)) for n in names]
        with torch.no_grad():
            model(inputs_embeds=torch.from_numpy(np.concatenate([image, words[:, :text]], axis=1)).float())
        for hook in hooks:
            hook.remove()
        queries = seen[names[0]][tokens:].reshape(text, 4, 8)
        keys = np.repeat(seen[names[1]][:tokens].reshape(tokens, 2, 8), 2, axis=1)
        match = np.einsum("thd,nhd->htn", queries, keys).mean(axis=1) / np.sqrt(8)
        score = (match / np.linalg.norm(match, axis=1, keepdims=True)).mean(axis=0)
        feed = {
            "image_features": image.astype(np.float32),
            "text_embeds": words.astype(np.float32),
            "text_mask": np.array([[1] * text + [0, 0]]),
            "keep": np.array([keep]),
        }
        kept, rows = session.run(None, feed)
        assert kept[0].tolist() == sorted(np.argsort(-score)[:keep].tolist())
        np.testing.assert_array_equal(rows[0], feed["image_features"][0, kept[0]])
