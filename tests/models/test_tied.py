"""``tie_word_embeddings`` against what the file holds: all combinations, with transformers' logits as right value."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from tests.kit import tiny
from tests.kit.runner import Chain
from trtprune.checkpoint import checkpoint as checkpoint_module
from trtprune.checkpoint import open_checkpoint
from trtprune.errors import CheckpointError
from trtprune.models import open_model

T = tiny.Tiny(layers=1, vision_layers=2, seed=3)
FLAGS = (..., False, True)
EMBED, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
Weights = dict[str, np.ndarray]


def one_bit(weights: Weights) -> None:
    """A copy of the embedding of which the very last number is another."""
    weights[HEAD] = weights[EMBED].copy()
    weights[HEAD][-1, -1] += 1e-3


STORED: dict[str, Callable[[Weights], object]] = {
    "other": lambda weights: None,
    "one-bit": one_bit,
    "same": lambda weights: weights.update({HEAD: weights[EMBED].copy()}),
    "only-embedding": lambda weights: weights.pop(HEAD),
    "only-head": lambda weights: weights.pop(EMBED),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "model"
    tiny.make(path, T)
    return path


def variant(whole: Path, out: Path, stored: str) -> Path:
    shutil.copytree(whole, out)
    weights = load_file(out / "model.safetensors")
    STORED[stored](weights)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    return out


@pytest.mark.parametrize("stored", STORED)
def test_every_combination_answers_as_transformers(whole: Path, tmp_path: Path, stored: str) -> None:
    path = variant(whole, tmp_path / "model", stored)
    ids = np.random.default_rng(0).integers(6, T.vocab, (1, 9))
    for outer, inner in itertools.product(FLAGS, FLAGS):
        tiny.edit_config(path, tie_word_embeddings=outer, text_config__tie_word_embeddings=inner)
        model, loading = transformers.LlavaForConditionalGeneration.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
        checkpoint = open_checkpoint(path)
        ours = open_model(checkpoint)
        if loading["missing_keys"]:  # transformers draws them at random
            with pytest.raises(CheckpointError, match="lacks tensor"):
                ours.check_weights()
            continue
        warnings = ours.check_weights()
        tied = model.lm_head.weight is model.get_input_embeddings().weight
        flagged = True in (outer, inner)
        assert bool(warnings) == (flagged and not tied), (outer, inner)
        assert all(HEAD in warning for warning in warnings)
        assert ours.linear_weights().get("lm_head.weight") is (None if tied else True)
        chain = Chain(path)
        embeds = chain.embed(ids)
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(ids)).logits.numpy()
            np.testing.assert_array_equal(embeds, model.get_input_embeddings()(torch.from_numpy(ids)).numpy())
        np.testing.assert_allclose(chain.decoder(1, 16)(embeds, [0]), logits, rtol=0, atol=1e-4)


def test_an_lm_head_of_another_shape_is_an_error(whole: Path, tmp_path: Path) -> None:
    path = variant(whole, tmp_path / "model", "other")
    weights = load_file(path / "model.safetensors")
    weights[HEAD] = np.concatenate([weights[HEAD], weights[HEAD]])
    save_file(weights, path / "model.safetensors")
    tiny.edit_config(path, tie_word_embeddings=True)
    checkpoint = open_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"lm_head.weight' has shape \[320, 64\]"):
        open_model(checkpoint).check_weights()


def test_whole_tensors_are_compared_in_pieces(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_module, "PIECE", 1000)  # ten and a bit a tensor
    read: list[int] = []
    own = checkpoint_module.equal_values
    monkeypatch.setattr(checkpoint_module, "equal_values", lambda a, b: read.append(a.size) or own(a, b))
    total = T.vocab * T.hidden
    for stored, same in (("same", True), ("one-bit", False), ("other", False)):
        read.clear()
        found = open_checkpoint(variant(whole, tmp_path / stored, stored))
        assert found.same_values(EMBED, HEAD) is same
        assert max(read) == 1000
        assert sum(read) == (1000 if stored == "other" else total), "it stops at the first difference"
        assert found.same_values(EMBED, HEAD) is same
        assert sum(read) == (1000 if stored == "other" else total), "the answer is remembered"


def test_numbers_count_and_not_their_dtype(tmp_path: Path) -> None:
    import ml_dtypes

    a = np.linspace(-3, 3, 50, dtype=np.float32).astype(ml_dtypes.bfloat16)
    nan = np.array([1, np.nan], np.float32)
    tensors = {"bf16": a, "f32": a.astype(np.float32), "f16": a.astype(np.float32).astype(np.float16)}
    tensors |= {"nan": nan, "nan2": nan.copy(), "zero": np.zeros(2, np.float32), "minus": -np.zeros(2, np.float32)}
    (tmp_path / "config.json").write_text("{}")
    save_file(tensors, tmp_path / "model.safetensors")
    found = open_checkpoint(tmp_path)
    for first, second in itertools.combinations(tensors, 2):
        x, y = (torch.from_numpy(tensors[n].astype(np.float32)) for n in (first, second))
        assert found.same_values(first, second) == (x.shape == y.shape and torch.equal(x, y)), (first, second)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="shorter than its header says"):
        found.same_values("bf16", "bf16")
