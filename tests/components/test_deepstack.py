"""DeepStack levels in the decoder and in the pruner: rows carry them, and level l is added behind layer l."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

from tests.kit.runner import session
from trtprune import pruning
from trtprune.checkpoint.safetensors import TensorInfo, read_header
from trtprune.components.config import Section
from trtprune.components.decoder import DecoderConfig, build_decoder, build_embedding, segments
from trtprune.components.rope import RotaryAxes
from trtprune.graph import Graph, Lowering
from trtprune.pruning.base import BuildContext

HIDDEN, WORDS, LAYERS, TOKENS, CAPACITY = 64, 90, 5, 15, 20
TEXT: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": WORDS,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 200,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
}
CASES = [(3, ()), (3, (0,)), (3, (1,)), (3, (2,)), (3, (1, 3)), (1, (0, 1, 2, 3)), (LAYERS, ()), (LAYERS, (0, 1, 2, 3))]
"""Levels, and the layers behind which the decoder is cut."""


class Model:
    """transformers' language model of Qwen3-VL with random weights, on disk, too."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.text = Qwen3VLTextModel(Qwen3VLTextConfig(**TEXT, attn_implementation="eager")).eval()
        for parameter in self.text.parameters():
            torch.nn.init.normal_(parameter, std=0.25)
        self.head = torch.randn(WORDS, HIDDEN)
        self.folder = folder
        (folder / "weights").mkdir()
        path = folder / "weights" / "model.safetensors"
        save_file({**self.text.state_dict(), "head": self.head}, path)
        self.tensors: dict[str, TensorInfo] = dict(read_header(path).tensors)

    def config(self, levels: int) -> DecoderConfig:
        section = Section(TEXT | {"model_type": "qwen3_vl_text"}, "text_config")
        split = RotaryAxes((24, 20, 20), interleaved=True)
        return replace(DecoderConfig.from_config(section, "qwen3_vl_text", split), levels=levels)

    def graph(self, backend: str = "onnxruntime") -> Graph:
        return Graph("component", dtype="float32", lowering=Lowering.for_backend(backend), tensors=self.tensors)

    def logits(self, embeds: np.ndarray, levels: np.ndarray, image: np.ndarray, positions: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            states = self.text(
                inputs_embeds=torch.from_numpy(embeds),
                attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
                position_ids=torch.from_numpy(positions).transpose(0, 1),
                use_cache=False,
                visual_pos_masks=torch.from_numpy(image),
                deepstack_visual_embeds=[torch.from_numpy(level[image]) for level in levels],
            ).last_hidden_state
            return (states @ self.head.T).numpy()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tmp_path_factory.mktemp("deepstack"))


class Decoder:
    """The decoder's segments, each with a cache of its own, on two rows."""

    def __init__(self, model: Model, levels: int, backend: str, cuts: tuple[int, ...]) -> None:
        self.sessions = []
        for segment in segments(LAYERS, cuts, "mean" if cuts else None):
            g = model.graph(backend)
            build_decoder(g, model.config(levels), "", "head", segment)
            self.sessions.append(session(g, model.folder))
        shape = (2, 2, CAPACITY, 16)
        self.caches = [
            {i.name: np.zeros(shape, np.float32) for i in s.get_inputs() if i.name.startswith("past")}
            for s in self.sessions
        ]

    def __call__(self, x: np.ndarray, positions: np.ndarray, begin: int) -> np.ndarray:
        length = x.shape[1]
        for k, run in enumerate(self.sessions):
            feed = {
                "hidden_states" if k else "inputs_embeds": x,
                "position_ids": positions,
                "write_index": np.array([begin] * 2),
                "logits_index": np.tile(np.arange(length), (2, 1)),
                "rater_index": np.zeros((2, 1), np.int64),
            }
            wanted = {i.name for i in run.get_inputs()}
            fed = {name: value for name, value in feed.items() if name in wanted}
            out = dict(zip([o.name for o in run.get_outputs()], run.run(None, fed | self.caches[k]), strict=True))
            self.caches[k] = {n: out[n.replace("past_key_values", "present")] for n in self.caches[k]}
            x = out.get("last_hidden_state", x)
        logits: np.ndarray = out["logits"]
        return logits


@pytest.mark.parametrize(("levels", "cuts"), CASES, ids=str)
def test_levels_are_added_behind_their_layers(model: Model, levels: int, cuts: tuple[int, ...]) -> None:
    """Two rows with images at other places, in chunks and steps, whole and cut at every place."""
    rng = np.random.default_rng(levels)
    embeds = rng.standard_normal((2, TOKENS, HIDDEN)).astype(np.float32)
    image = np.zeros((2, TOKENS), bool)
    image[0, 3:9] = image[1, 5:8] = True
    own = rng.standard_normal((levels, 2, TOKENS, HIDDEN)).astype(np.float32) * image[..., None]
    positions = rng.integers(0, 200, (2, 3, TOKENS))
    expected = model.logits(embeds, own, image, positions)
    assert np.abs(expected - model.logits(embeds, 0 * own, image, positions)).max() > 1
    wide = np.concatenate((embeds, *own), axis=-1)
    for backend in ("onnxruntime", "openvino", "tensorrt-rtx"):
        decoder = Decoder(model, levels, backend, cuts)
        begin = 0
        for end in (11, 12, 13, TOKENS):
            found = decoder(wide[:, begin:end], positions[:, :, begin:end], begin)
            np.testing.assert_allclose(found, expected[:, begin:end], rtol=0, atol=1e-4)
            begin = end


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tensorrt-rtx"])
def test_text_has_no_levels(model: Model, backend: str) -> None:
    g = model.graph(backend)
    build_embedding(g, model.config(3), "embed_tokens.weight")
    rows = session(g, model.folder).run(None, {"input_ids": np.array([[3, 7]])})[0]
    wanted = np.pad(model.text.embed_tokens.weight[[3, 7]].detach().numpy(), ((0, 0), (0, 3 * HIDDEN)))
    np.testing.assert_array_equal(rows, wanted[None], strict=True)


@pytest.mark.parametrize("name", ["divprune", "cdpruner", "random", "zspaprune"])
def test_pruned_rows_keep_their_levels(name: str) -> None:
    """The selection is that of the features alone, and a kept row leaves the pruner as it came."""
    rng = np.random.default_rng(5)
    method, width = pruning.get(name), 24
    options = method.validate_options({"relevance": "prompt"} if name == "cdpruner" else None)
    g = method.build_graphs(BuildContext(Graph, width, levels=2), options)["pruner", None]
    run = session(g)
    for tokens, keep in ((40, 7), (9, 9), (23, 1)):
        rows = rng.standard_normal((1, tokens, 3 * width)).astype(np.float32)
        text = rng.standard_normal((1, 6, 3 * width)).astype(np.float32)
        feed = {
            "image_features": rows,
            "text_embeds": text,
            "text_mask": np.ones((1, 6), np.int64),
            "keep": np.array([keep]),
            "seed": np.array([0]),
        }
        wanted = {i.name for i in run.get_inputs()}
        kept, pruned = run.run(None, {n: a for n, a in feed.items() if n in wanted})
        alone = method.reference(rows[..., :width], keep=keep, text_embeds=text[..., :width], **options)
        np.testing.assert_array_equal(kept, alone)
        np.testing.assert_array_equal(pruned[0], rows[0, kept[0]])
