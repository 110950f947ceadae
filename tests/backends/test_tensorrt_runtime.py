"""The chain on TensorRT engines against transformers: real shapes, profiles, buffers and graphs on a made-up GPU."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import trtprune
from tests.kit import tiny, trt_kit
from tests.kit.runtime_kit import Kit, kept_rows, picture, same
from tests.kit.trt_kit import QUESTION, REQUESTS
from trtprune.compiler.engine_options import EngineOptions
from trtprune.errors import BudgetError, InputError
from trtprune.runtime import Request, Vlm
from trtprune.show.references import select

TOKENS = 12
TOLERANCE = 1e-4
BACKENDS = ["tensorrt", "tensorrt-rtx"]
CASES = {
    "clip-llama": tiny.Tiny(),
    "dinov2-qwen2": tiny.Tiny(seed=8, tower="dinov2", decoder="qwen2", kv_heads=1, tied=True),
    "siglip-mistral": tiny.Tiny(seed=2, tower="siglip", decoder="mistral", strategy="full", text={"sliding_window": 9}),
}


class Logits:
    """Every logits array the sampler got, in order."""

    def __init__(self, vlm: Vlm) -> None:
        self.found: list[np.ndarray] = []
        decoder: Any = vlm.pipeline.decoder
        prefill, step = decoder.prefill, vlm.chain._backend.step

        def recorded_step(*arguments: Any) -> Any:
            run = step(*arguments)

            def call(*inputs: Any) -> np.ndarray:
                self.found.append(run(*inputs).copy())
                return self.found[-1]

            return call

        def recorded_prefill(*arguments: Any) -> Any:
            done = prefill(*arguments)
            self.found.append(done.logits)
            return done

        decoder.prefill = recorded_prefill
        vlm.chain._backend.step = recorded_step  # type: ignore[method-assign]

    def take(self) -> np.ndarray:
        """[tokens, V] of the last request."""
        found = np.concatenate(self.found)
        self.found.clear()
        return found


@pytest.fixture(scope="module", params=CASES)
def kit(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit.make(tmp_path_factory.mktemp("trt") / request.param, CASES[request.param])


@pytest.mark.parametrize("backend", BACKENDS)
def test_unpruned(kit: Kit, backend: str) -> None:
    """Ids and logits, prompts of one picture and of several."""
    vlm, fake = trt_kit.load(trt_kit.make_dir(kit, "none", backend=backend, method="none", max_images=2))
    logits = Logits(vlm)
    for count in (1, 2):
        images = [picture(i, (90 + 30 * i, 70)) for i in range(count)]
        ids, expected = kit.generate(TOKENS, **kit.inputs(images, QUESTION))
        result = vlm.generate(images, QUESTION, max_new_tokens=TOKENS)
        assert result.token_ids == ids
        np.testing.assert_allclose(logits.take(), expected, rtol=0, atol=TOLERANCE)
    # TensorRT's steps are launches of one recorded graph; TensorRT for RTX records by itself.
    assert fake.driver.recordings == (1 if backend == "tensorrt" else 0)
    assert (fake.driver.launches > 0) == (backend == "tensorrt")


@pytest.mark.parametrize("positions", ["compact", "original"])
def test_pruned(kit: Kit, positions: str) -> None:
    """transformers continues from the rows that the pruner left, numbered as the build says."""
    out = trt_kit.make_dir(kit, positions, method="random", keep=5, keep_range=(2, 9), positions=positions)
    vlm, _ = trt_kit.load(out)
    logits = Logits(vlm)
    for keep in (5, 9, 2):
        result = vlm.generate(picture(7), QUESTION, keep=keep, max_new_tokens=TOKENS, seed=keep)
        assert len(result.kept_indices[0]) == keep
        inputs = kit.inputs([picture(7)], QUESTION)
        rows = kept_rows(inputs["input_ids"][0].numpy(), result.kept_indices, vlm.config.model.visual_tokens)
        embeds = kit.embeds(inputs)[:, rows]
        extra = {"position_ids": torch.from_numpy(rows)[None]} if positions == "original" else {}
        mask = torch.ones(embeds.shape[:2], dtype=torch.long)
        ids, expected = kit.generate(TOKENS, inputs_embeds=embeds, attention_mask=mask, **extra)
        np.testing.assert_allclose(logits.take(), expected, rtol=0, atol=TOLERANCE)
        assert result.token_ids == ids


# -- one model from here on, beside the same graphs in ONNX Runtime


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit.make(tmp_path_factory.mktemp("trt-one") / "clip", tiny.Tiny(seed=21))


@pytest.fixture(scope="module")
def out(one: Kit) -> Path:
    """Serves up to five rows, text-aware."""
    return trt_kit.make_dir(one, "adafv", keep=6, keep_range=(2, 12), max_batch_size=5, max_images=2)


@pytest.fixture(scope="module")
def twin(out: Path) -> Vlm:
    """The same directory's graphs in ONNX Runtime."""
    return trtprune.load(out, provider="cpu", threads=1)


@pytest.mark.parametrize("cuda_graph", ["on", "off"])
def test_ragged_rows(out: Path, twin: Vlm, cuda_graph: str) -> None:
    """Batches of every size, after each other: each answer as in ONNX Runtime, whatever ran before."""
    vlm, fake = trt_kit.load(out, provider_options={"cuda_graph": cuda_graph})
    alone = [twin.generate_batch([request])[0] for request in REQUESTS]
    for rows in (5, 1, 3, 5, 2, 1):
        found = vlm.generate_batch(REQUESTS[:rows])
        assert all(same(*pair) for pair in zip(found, alone, strict=False))
    assert vlm.generate_batch([]) == []
    assert (fake.driver.recordings > 0) == (cuda_graph == "on")


@pytest.mark.parametrize("repick", [True, False])
def test_turns(out: Path, twin: Vlm, repick: bool) -> None:
    """Two conversations at a time, so that their caches and recorded steps take turns."""
    vlm, fake = trt_kit.load(out)
    ours = [vlm.chat([picture(1), picture(2)]), vlm.chat(picture(3))]
    theirs = [twin.chat([picture(1), picture(2)]), twin.chat(picture(3))]
    for number, question in enumerate(["What is it?", "Why is it so?", "And now?"]):
        for ask, check in zip(ours, theirs, strict=True):
            settings: dict[str, Any] = {"repick": repick, "max_new_tokens": 9 + 2 * number, "stop": "~"}
            assert same(ask.ask(question, **settings), check.ask(question, **settings))
    if not repick:  # the caches stayed where they were, and so did the two recordings
        assert fake.driver.recordings == 2


def test_a_stream_beside_other_answers(out: Path, twin: Vlm) -> None:
    vlm, _ = trt_kit.load(out)
    stream, expected = vlm.stream(picture(2), "Why?", max_new_tokens=20), twin.generate(picture(2), "Why?")
    first = next(stream)
    assert same(vlm.generate(picture(1), QUESTION), twin.generate(picture(1), QUESTION))
    text = first + "".join(stream)
    assert expected.text.startswith(text)
    assert stream.result.token_ids == expected.token_ids[:20]


def test_select_and_show(out: Path, twin: Vlm) -> None:
    """Selections of other methods run as NumPy references, on features fetched for that."""
    vlm, _ = trt_kit.load(out)
    for method in ("adafv", "fastervlm", "zspaprune", "random"):
        found = [select(v, v.look(picture(5), QUESTION), keep=7, method=method, seed=3) for v in (vlm, twin)]
        np.testing.assert_array_equal(*found)


def test_what_build_writes(one: Kit) -> None:
    """Shapes, capacity and limits of a real build of engines; only the engines themselves are exchanged."""
    pytest.importorskip("tensorrt_rtx")
    path = one.path.parent / "built"
    options = EngineOptions(max_batch_size=2, max_input_len=128, max_images=2, compute_capability=("sm89",))
    made = trtprune.build(str(one.path), path, backend="tensorrt-rtx", keep=6, max_seq_len=256, engine=options)
    assert made.kv.capacity == 256
    assert made.dtype == "float16"
    trt_kit.fake_engines(made)
    vlm, fake = trt_kit.load(path)
    other = trtprune.load(path, provider="cpu", threads=1)
    found = [v.generate_batch(REQUESTS[:2], max_new_tokens=8) for v in (vlm, other)]
    assert all(same(*pair) for pair in zip(*found, strict=True))
    assert np.dtype("float16") in fake.engines[0].dtypes()
    with pytest.raises(InputError, match="max_batch_size"):
        vlm.generate_batch(REQUESTS[:3])


# -- what the engines were not built for


@pytest.mark.parametrize(
    ("arguments", "error", "flag"),
    [
        ({"prompt": "x" * 300}, InputError, "--max-input-len"),
        ({"keep": 13}, BudgetError, "keep_range"),
        ({"keep": 1}, BudgetError, "keep_range"),
        ({"max_new_tokens": 1000}, InputError, "max_seq_len"),
    ],
)
def test_beyond_the_limits(out: Path, arguments: dict[str, Any], error: type[Exception], flag: str) -> None:
    vlm, _ = trt_kit.load(out)
    with pytest.raises(error, match=flag):
        vlm.generate(picture(1), **{"prompt": QUESTION, **arguments})
    assert vlm.generate(picture(1), QUESTION, max_new_tokens=2).token_ids


def test_a_batch_beyond_the_limit(out: Path) -> None:
    vlm, fake = trt_kit.load(out)
    with pytest.raises(InputError, match="max_batch_size"):
        vlm.generate_batch([REQUESTS[0]] * 6)
    assert not fake.driver.h2d  # before anything was computed


def test_more_pictures_than_the_limit(one: Kit) -> None:
    """The sum counts: many pictures fit if few of their tokens are kept."""
    vlm, _ = trt_kit.load(trt_kit.make_dir(one, "short", keep=6, keep_range=(2, 12), max_input_len=64))
    many = [picture(i) for i in range(8)]
    assert vlm.generate(many, "Which?", keep=2, max_new_tokens=2).kept_tokens == 16
    with pytest.raises(InputError, match="--max-images"):
        vlm.generate(many, "Which?", keep=12, max_new_tokens=2)


def test_rows_of_a_batch_against_transformers(one: Kit) -> None:
    vlm, _ = trt_kit.load(trt_kit.make_dir(one, "all", method="none", max_batch_size=3))
    images = [picture(i) for i in range(3)]
    found = vlm.generate_batch([Request(image, QUESTION) for image in images], max_new_tokens=TOKENS)
    for image, result in zip(images, found, strict=True):
        assert result.token_ids == kit_ids(one, image)


def kit_ids(kit: Kit, image: Any) -> list[int]:
    return kit.generate(TOKENS, **kit.inputs([image], QUESTION))[0]


def test_padded_pictures(one: Kit) -> None:
    """Padding is not chosen from: a narrow picture has fewer tokens to choose from than a square one."""
    kit = Kit.make(one.path.parent / "padded", one.tiny)
    settings = json.loads((kit.path / "preprocessor_config.json").read_text())
    settings |= {"image_processor_type": "LlavaImageProcessor", "do_pad": True}
    (kit.path / "preprocessor_config.json").write_text(json.dumps(settings))
    out = trt_kit.make_dir(kit, "pad", method="fastervlm", keep=4, keep_range=(2, 9))
    (pruner,) = trtprune.engine_dir.open_engine_dir(out, verify="none").part("pruner").profiles
    assert [shape[1] for shape in pruner["image_features"]] == [2, 16, 16]
    vlm, _ = trt_kit.load(out)
    graphs = trtprune.load(out, provider="cpu", threads=1)
    for size in ((56, 56), (90, 40), (20, 80)):
        for keep in (2, 4, 9):
            asked: dict[str, Any] = {"keep": keep, "max_new_tokens": 4}
            assert same(*(v.generate(picture(1, size), QUESTION, **asked) for v in (vlm, graphs)))


def test_a_checkpoint_in_float16(one: Kit) -> None:
    path = Kit.make(one.path.parent / "half", replace(one.tiny, dtype="float16"))
    vlm, _ = trt_kit.load(trt_kit.make_dir(path, "f16", method="none"))
    assert vlm.generate(picture(1), QUESTION, max_new_tokens=TOKENS).token_ids == kit_ids(path, picture(1))
