"""CLIP beside a LLaVA: its text tower, its patches and its segments against transformers, and builds that use them."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import hypothesis.strategies as st
import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings

import trtprune
from tests.kit import tiny
from tests.kit.clip_kit import END, LENGTH, VOCAB, WIDTH, ClipKit
from tests.kit.runner import session
from tests.kit.runtime_kit import Kit, picture
from trtprune import pruning
from trtprune.graph import Graph, Lowering
from trtprune.models.clip_text import Clip, build_clip_text, open_clip
from trtprune.pruning import Method, registry
from trtprune.runtime import Request, Vlm
from trtprune.runtime.prompt import Prompt
from trtprune.show.references import select

QUESTION = "What is on the table left of the red cup?"
LONG = " ".join(f"Is there a {i}th cup on the table, or at the wall?" for i in range(9))
LOWERINGS = {name: Lowering.for_backend(name) for name in ("onnxruntime", "openvino", "tensorrt-rtx")}


class Nearest(Method):
    """The patches nearest to the question in CLIP's space: as plain as a method that reads CLIP's text can be."""

    name: ClassVar[str] = "clip-nearest"
    summary: ClassVar[str] = "for tests"
    needs: ClassVar[frozenset[str]] = frozenset({"clip_image_embeds", "clip_text_embeds"})

    def select(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> np.ndarray:
        score = inputs["clip_image_embeds"] @ inputs["clip_text_embeds"].mean(0)
        return np.sort(np.argsort(-score, kind="stable")[:keep])

    def scores(self, g: Graph, inputs: Mapping[str, ir.Value], **options: Any) -> ir.Value | None:
        text = g.op.ReduceMean(inputs["clip_text_embeds"], g.ints(1), keepdims=1)
        return g.op.ReduceSum(g.op.Mul(inputs["clip_image_embeds"], text), g.ints(2), keepdims=0)


@pytest.fixture(autouse=True)
def nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._methods, Nearest.name, Nearest())


@dataclasses.dataclass(frozen=True)
class Pair:
    """A LLaVA and its CLIP, in both worlds."""

    llava: Kit
    clip: ClipKit
    read: Clip

    def build(self, name: str, **arguments: Any) -> Path:
        out = self.llava.path.parent / f"out-{name}"
        trtprune.build(self.llava.path, out, clip=self.clip.path, **{"method": Nearest.name, "keep": 5, **arguments})
        return out

    def hidden(self, pixels: np.ndarray) -> torch.Tensor:
        """What feeds the projector, all tokens of it."""
        with torch.no_grad():
            out = self.llava.model.model.vision_tower(torch.from_numpy(pixels), output_hidden_states=True)
        return out.hidden_states[-2]

    def wanted(self, image: Any, ids: Any, keep: int) -> list[int]:
        """Of one picture and the segments of a text, by transformers alone."""
        pixels = self.llava.inputs([image], "?")["pixel_values"].numpy()
        text = self.clip.text_embeds(ids).mean(0)
        score = self.clip.image_embeds(self.hidden(pixels)[:, 1:])[0] @ text
        return sorted(torch.topk(score, keep).indices.tolist())

    def segments(self, text: str) -> list[list[int]]:
        """Ids of a text, cut where the tower's 77 places are full."""
        start, *ids, end = self.clip.tokenizer(text)["input_ids"]
        pieces = [ids[i : i + LENGTH - 2] for i in range(0, len(ids), LENGTH - 2)] or [[]]
        return [[start, *piece, end] for piece in pieces]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    root = tmp_path_factory.mktemp("clip")
    llava = Kit.make(root / "llava", tiny.Tiny(seed=41, layers=2))
    clip = ClipKit.make(root / "clip", llava.tiny, llava.model.model.vision_tower)
    return Pair(llava, clip, open_clip(clip.path))


@pytest.fixture(scope="module")
def vlm(pair: Pair) -> Vlm:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry._methods, Nearest.name, Nearest())
        return trtprune.load(pair.build("main"), threads=1)


def ids_of(rng: np.random.Generator, rows: int, length: int) -> np.ndarray:
    """Texts of several lengths, padded with the end-of-text token; the last fills its row."""
    ids = rng.integers(0, VOCAB - 2, (rows, length))
    ids[:, 0] = VOCAB - 2
    for row, end in zip(ids, [*rng.integers(1, length, rows - 1), length - 1], strict=True):
        row[end:] = END
    return ids


def run_text(kit: ClipKit, lowering: Lowering, ids: np.ndarray, **how: Any) -> np.ndarray:
    g = build_clip_text(open_clip(kit.path), **{"dtype": "float32", "lowering": lowering, "fixed_length": False, **how})
    root = kit.path / "engine"
    (root / "weights").mkdir(parents=True, exist_ok=True)
    target = root / "weights" / "clip-model.safetensors"
    if not target.exists():
        target.hardlink_to(kit.path / "model.safetensors")
    return session(g, root).run(None, {"input_ids": ids})[0]


# -- the tower


@pytest.mark.parametrize("length", [2, 19, LENGTH])
@pytest.mark.parametrize("name", LOWERINGS)
def test_text_tower(pair: Pair, name: str, length: int) -> None:
    ids = ids_of(np.random.default_rng(length), 3, length)
    out = run_text(pair.clip, LOWERINGS[name], ids, fixed_length=length == LENGTH)
    assert (out.dtype, out.shape) == (np.float32, (3, WIDTH))
    np.testing.assert_allclose(out, pair.clip.text_embeds(ids).numpy(), atol=1e-4)


@pytest.mark.parametrize("text", [{"eos_token_id": 2}, {"hidden_act": "gelu", "layer_norm_eps": 1e-3}], ids=str)
def test_text_tower_of_other_checkpoints(tmp_path: Path, text: dict[str, Any]) -> None:
    """The first is what openai's checkpoints say: there the largest id ends the text."""
    kit = ClipKit.make(tmp_path, tiny.Tiny(), None, dtype="float16", **text)
    ids = ids_of(np.random.default_rng(0), 4, 23)
    ids[0, 5] = END if text.get("eos_token_id") != 2 else VOCAB - 1  # a second end, inside: the first one counts
    out = run_text(kit, LOWERINGS["onnxruntime"], ids)
    np.testing.assert_allclose(out, kit.text_embeds(ids).numpy(), atol=1e-4)


def test_no_end_of_text(pair: Pair) -> None:
    ids = np.random.default_rng(3).integers(0, 500, (2, 9))
    out = run_text(pair.clip, LOWERINGS["onnxruntime"], ids)
    np.testing.assert_allclose(out, pair.clip.text_embeds(ids).numpy(), atol=1e-4)


def test_half_precision(pair: Pair) -> None:
    ids = ids_of(np.random.default_rng(1), 3, 30)
    out = run_text(pair.clip, LOWERINGS["onnxruntime"], ids, dtype="float16")
    want = pair.clip.text_embeds(ids).numpy()
    assert np.abs(out - want).max() < 0.02 * np.abs(want).max()


def test_old_config_sections(tmp_path: Path) -> None:
    """``text_config_dict``, which early checkpoints of openai carry beside ``text_config``, has the last word."""
    kit = ClipKit.make(tmp_path, tiny.Tiny(), None)
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8}
    tiny.edit_config(tmp_path, text_config_dict={**text, "vocab_size": VOCAB, "eos_token_id": END})
    from tests.kit.clip_kit import load

    ids = ids_of(np.random.default_rng(2), 2, 12)
    out = run_text(kit, LOWERINGS["onnxruntime"], ids)
    want = dataclasses.replace(kit, model=load(tmp_path)).text_embeds(ids).numpy()
    assert np.abs(want - kit.text_embeds(ids).numpy()).max() > 1e-2  # other heads, other numbers
    np.testing.assert_allclose(out, want, atol=1e-4)


# -- patches


@pytest.mark.parametrize(("strategy", "layer"), [("default", 2), ("full", -2)])
def test_patches(pair: Pair, tmp_path: Path, strategy: str, layer: int) -> None:
    t = dataclasses.replace(pair.llava.tiny, strategy=strategy, feature_layer=layer)
    kit = Kit.make(tmp_path / "llava", t)
    clip = ClipKit.make(tmp_path / "clip", t, kit.model.model.vision_tower, dtype="float16")
    trtprune.build(kit.path, tmp_path / "out", method=Nearest.name, keep=4, clip=clip.path)
    vlm = trtprune.load(tmp_path / "out", threads=1)
    pixels = tiny.pixels(t)
    with torch.no_grad():
        states = kit.model.model.vision_tower(torch.from_numpy(pixels), output_hidden_states=True).hidden_states
    want = clip.image_embeds(states[layer])[:, strategy == "default" :].numpy()
    prepared = vlm.pipeline.processor.prepare(picture(0))
    crops = [dataclasses.replace(prepared, pixel_values=crop[None]) for crop in pixels]
    for found, expected in zip(vlm.chain.look(crops), want, strict=True):
        assert found.extras["clip_image_embeds"].dtype == np.float32
        np.testing.assert_allclose(found.extras["clip_image_embeds"], expected, atol=2e-4)


# -- segments


def rows_of(vlm: Vlm, text: str) -> list[list[int]]:
    """Segments without their padding."""
    return [row[: row.tolist().index(END) + 1].tolist() for row in vlm.pipeline.clip_text.segments(text)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "What is it?",
        "WHAT  is\n\tit",
        "Où est le café ☕?",
        "机の上に何がありますか",
        "\x00\ud7ff",
        LONG,
    ],
)
def test_segments(pair: Pair, vlm: Vlm, text: str) -> None:
    assert rows_of(vlm, text) == pair.segments(text)


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=("Cs",)), max_size=60), times=st.integers(1, 8))
def test_any_text(pair: Pair, vlm: Vlm, text: str, times: int) -> None:
    ids = vlm.pipeline.clip_text.segments(text * times)
    assert ids.shape[1] <= LENGTH
    assert (ids[:, 0] == VOCAB - 2).all()
    assert rows_of(vlm, text * times) == pair.segments(text * times)


def test_segments_of_older_files(pair: Pair, tmp_path: Path) -> None:
    """tokenizer.json as transformers 4 wrote it: another post-processor, and a truncation of its own."""
    shutil.copytree(pair.clip.path, tmp_path / "clip", ignore=shutil.ignore_patterns("engine"))
    file = tmp_path / "clip" / "tokenizer.json"
    data = json.loads(file.read_text())
    data["post_processor"] = {
        "type": "RobertaProcessing",
        "sep": ["<|endoftext|>", END],
        "cls": ["<|startoftext|>", VOCAB - 2],
        "trim_offsets": False,
        "add_prefix_space": False,
    }
    data["truncation"] = {"direction": "Left", "max_length": 20, "strategy": "LongestFirst", "stride": 5}
    data["padding"] = {
        "strategy": {"Fixed": 77},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": END,
        "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }
    file.write_text(json.dumps(data))
    trtprune.build(pair.llava.path, tmp_path / "out", method=Nearest.name, keep=4, clip=tmp_path / "clip")
    vlm = trtprune.load(tmp_path / "out", threads=1)
    for text in (LONG, QUESTION, ""):
        assert rows_of(vlm, text) == pair.segments(text)


def test_a_long_text_is_read_in_several_runs(pair: Pair, vlm: Vlm) -> None:
    """More segments than one run takes, padded and joined, are what each of them is alone."""
    pieces = pair.segments(LONG * 6)
    assert len(pieces) > 16
    prompt = Prompt(np.zeros(4, np.int64), (), (), LONG * 6)
    found = vlm.pipeline.clip_text.read(prompt)["clip_text_embeds"]
    want = [pair.clip.text_embeds([piece])[0].numpy() for piece in pieces]
    np.testing.assert_allclose(found, want, atol=1e-4)


# -- from picture to answer


@functools.cache
def question_pictures() -> tuple[Any, Any]:
    return picture(3), picture(4, (60, 80))


@pytest.mark.parametrize("text", [QUESTION, "", LONG], ids=["question", "empty", "long"])
def test_selection(pair: Pair, vlm: Vlm, text: str) -> None:
    result = vlm.generate(picture(3), text, max_new_tokens=2)
    one_by_one = [pair.clip.text_embeds([piece])[0] for piece in pair.segments(text)]
    pixels = pair.llava.inputs([picture(3)], "?")["pixel_values"].numpy()
    score = pair.clip.image_embeds(pair.hidden(pixels)[:, 1:])[0] @ torch.stack(one_by_one).mean(0)
    assert result.kept_indices == [sorted(torch.topk(score, 5).indices.tolist())]


def test_the_question_decides(pair: Pair, vlm: Vlm) -> None:
    """Each row of a batch selects by its own words, each turn of a conversation by its last."""
    other = "a cat"
    images = question_pictures()
    raw = Request(images[1], f"<image>{other}", raw_prompt=True)
    results = vlm.generate_batch(
        [Request(list(images), QUESTION), Request(images[0], other), raw],
        keep=4,
        max_new_tokens=2,
    )
    want = {text: [pair.wanted(image, pair.segments(text), 4) for image in images] for text in (QUESTION, other)}
    assert results[0].kept_indices == want[QUESTION]
    assert results[1].kept_indices == want[other][:1]
    assert results[2].kept_indices == want[other][1:]
    assert want[QUESTION] != want[other]
    chat = vlm.chat(images[0])
    assert chat.ask(QUESTION, keep=4, max_new_tokens=2).kept_indices == want[QUESTION][:1]
    assert chat.ask(other, keep=4, max_new_tokens=2).kept_indices == want[other][:1]


def test_the_answer_is_that_of_the_kept_tokens(pair: Pair, vlm: Vlm) -> None:
    """Against transformers, fed the embeddings of the tokens that CLIP's own model would have kept."""
    from tests.kit.runtime_kit import kept_rows

    image = picture(3)
    result = vlm.generate(image, QUESTION, keep=6, max_new_tokens=8, ignore_eos=True)
    inputs = pair.llava.inputs([image], QUESTION)
    kept = [pair.wanted(image, pair.segments(QUESTION), 6)]
    rows = kept_rows(inputs["input_ids"][0].numpy(), kept, vlm.config.model.visual_tokens)
    ids, _ = pair.llava.generate(8, inputs_embeds=pair.llava.embeds(inputs)[:, rows], eos_token_id=-1)
    assert result.token_ids == ids


def test_another_method_as_reference(pair: Pair, vlm: Vlm, monkeypatch: pytest.MonkeyPatch) -> None:
    """``show`` runs other methods in NumPy; what CLIP says is there for them."""

    class Farthest(Nearest):
        name: ClassVar[str] = "clip-farthest"

        def select(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> np.ndarray:
            inputs["clip_text_embeds"] = -inputs["clip_text_embeds"]
            return super().select(image_features, keep=keep, **inputs)

    monkeypatch.setitem(registry._methods, Farthest.name, Farthest())
    view = vlm.look(picture(3), QUESTION)
    far = select(vlm, view, keep=5, method=Farthest.name)
    near = vlm.select(view, keep=vlm.config.model.visual_tokens - 5)
    assert sorted([*far, *near]) == list(range(vlm.config.model.visual_tokens))


def test_the_chain(pair: Pair, vlm: Vlm) -> None:
    config = vlm.config
    assert config.chain == ("vision", "embed", "clip_text", "pruner", "decoder")
    assert "onnx/weights/clip-model.safetensors" in config.files
    source = (pair.clip.path / "model.safetensors").read_bytes()
    assert (config.root / "onnx/weights" / "clip-model.safetensors").read_bytes() == source
    assert config.built_with["clip"] == "clip"
    # Nothing of the CLIP is in a graph: its vision tower is the model's.
    assert sum(path.stat().st_size for path in (config.root / "onnx").iterdir()) < 200_000


@pytest.mark.parametrize("name", sorted({"cdpruner", "trim"} & set(pruning.names())))
def test_real_methods(pair: Pair, name: str) -> None:
    """What the runtime selects is what the method's reference selects from transformers' numbers."""
    vlm = trtprune.load(pair.build(name, method=name), threads=1)
    image = picture(3)
    result = vlm.generate(image, QUESTION, keep=6, max_new_tokens=2)
    pixels = pair.llava.inputs([image], "?")["pixel_values"]
    with torch.no_grad():
        features = pair.llava.model.get_image_features(pixels).pooler_output[0]
    want = pruning.get(name).reference(
        features.numpy(),
        keep=6,
        clip_image_embeds=pair.clip.image_embeds(pair.hidden(pixels.numpy())[:, 1:])[0].numpy(),
        clip_text_embeds=pair.clip.text_embeds(pair.segments(QUESTION)).numpy(),
    )
    assert result.kept_indices == [want.tolist()]
