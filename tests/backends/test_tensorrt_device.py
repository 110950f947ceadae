"""What the TensorRT runtime does with a GPU: what crosses to the host, what is allocated, what is recorded and when."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest

import trtprune
from tests.kit import fake_tensorrt, tiny, trt_kit
from tests.kit.fake_cuda import FakeDriver
from tests.kit.runtime_kit import Kit, picture, same
from tests.kit.trt_kit import QUESTION, REQUESTS
from trtprune.errors import BackendError
from trtprune.runtime import Vlm


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


def test_what_crosses_to_the_host(out: Path) -> None:
    """Pixels and ids go over; kept indices and logits come back.  Features, embeddings and the cache never do."""
    vlm, fake = trt_kit.load(out)
    driver, model = fake.driver, vlm.config.model
    vlm.generate(picture(1), QUESTION, keep=6, max_new_tokens=4)
    driver.h2d.clear(), driver.d2h.clear()
    result = vlm.generate(picture(1), QUESTION, keep=6, max_new_tokens=4)
    logits = 4 * model.vocab_size
    assert driver.d2h == [6 * 8] + 4 * [logits]
    prompt, text = result.prompt_tokens, result.prompt_tokens - 6 + 1
    pixels = 4 * 3 * 56 * 56
    # ids; pixels; text mask of the question; positions, write index and row of the prefill; three steps.
    assert driver.h2d[:2] == [pixels, 8 * text]
    assert driver.h2d[2] < 8 * text
    assert sorted(driver.h2d[3:6]) == [8, 8, 8 * prompt]
    assert driver.h2d[6:] == [3 * 256] * 3


def test_nothing_is_allocated_once_warm(out: Path) -> None:
    vlm, fake = trt_kit.load(out)
    for keep in (6, 5):
        vlm.generate(picture(1), QUESTION, keep=keep, max_new_tokens=8)
    before = len(fake.driver.allocations), fake.driver.used
    for keep in (6, 5, 6):
        vlm.generate(picture(2), QUESTION, keep=keep, max_new_tokens=8)
    assert (len(fake.driver.allocations), fake.driver.used) == before


def test_one_wait_a_step(out: Path) -> None:
    """Python waits for a picture's features, its selection, the first logits, and for each step once."""
    vlm, fake = trt_kit.load(out)
    fake.driver.waits = 0
    result = vlm.generate(picture(1), QUESTION, max_new_tokens=10)
    assert fake.driver.waits == 3 + len(result.token_ids) - 1


def test_prefill_and_steps_have_their_own_profiles(out: Path) -> None:
    vlm, fake = trt_kit.load(out)
    vlm.generate(picture(1), QUESTION, max_new_tokens=6)
    decoder = next(engine for engine in fake.engines if engine.file == "decoder")
    prompts, short_prompts, steps = decoder.contexts
    assert (prompts.profile, short_prompts.profile, steps.profile) == (0, 1, 1)
    assert prompts.shapes["inputs_embeds"][1] > 1 == steps.shapes["inputs_embeds"][1]
    assert (prompts.runs, short_prompts.runs, steps.runs) == (1, 0, 2)  # the second of steps is the recording


def test_rtx_records_by_itself(one: Kit) -> None:
    path = trt_kit.make_dir(one, "rtx", backend="tensorrt-rtx", keep=6)
    for option in ("on", "off"):
        vlm, fake = trt_kit.load(path, provider_options={"cuda_graph": option})
        vlm.generate(picture(1), QUESTION, max_new_tokens=6)
        decoder = next(engine for engine in fake.engines if engine.file == "decoder")
        strategies = [context.config.cuda_graph_strategy.name for context in decoder.contexts]
        assert [context.runs for context in decoder.contexts] == [1, 5]
        assert strategies == ["DISABLED", "WHOLE_GRAPH_CAPTURE" if option == "on" else "DISABLED"]
        assert len({id(c.config.cache) for engine in fake.engines for c in engine.contexts}) == 1
        assert fake.driver.recordings == 0


def test_a_gpu_of_just_enough_memory(out: Path, twin: Vlm) -> None:
    """Caches of other batch sizes make room for each other, larger ones too."""
    vlm, fake = trt_kit.load(out)
    vlm.generate_batch(REQUESTS)
    enough = fake.driver.used + (128 << 10)  # a row's cache takes 390 kB
    small = FakeDriver(total=300 << 20)
    vlm, _ = trt_kit.load(out, small)
    small.total = enough
    for rows in (1, 5, 1, 4, 2, 3, 5):
        found = vlm.generate_batch(REQUESTS[:rows])
        assert same(found[0], twin.generate_batch(REQUESTS[:1])[0])


def test_a_cache_makes_room_for_a_larger_one(out: Path) -> None:
    """Both need not fit at once."""
    vlm, fake = trt_kit.load(out)
    memory: Any = vlm.chain.memory
    decoder, driver = vlm.chain.session("decoder"), fake.driver
    small = decoder.new_cache(1, 16)
    memory.release()
    row = small.slab.block.nbytes
    driver.total = driver.used + 4 * row
    large = decoder.new_cache(5, 16, reuse=small)
    assert large.nbytes == 5 * small.nbytes
    assert not memory.to_host(large.slab).any()
    assert decoder.new_cache(2, 16, reuse=large).slab.address == large.slab.address


def test_a_workspace_that_moved(out: Path) -> None:
    """Nothing refers to the old one any more: neither contexts nor a recording, which is made again."""
    vlm, fake = trt_kit.load(out)
    expected = vlm.generate(picture(1), QUESTION, max_new_tokens=9)
    assert fake.driver.recordings == 1
    memory: Any = vlm.chain.memory
    workspace = vlm.chain._backend._workspace  # type: ignore[attr-defined]
    old, size = workspace.address, workspace.nbytes
    workspace.reserve(1 << 20)
    other = memory.zeros((size,), "uint8")
    assert other.address == old
    assert same(vlm.generate(picture(1), QUESTION, max_new_tokens=9), expected)
    assert fake.driver.recordings == 2
    assert not memory.to_host(other).any()


def test_everything_is_given_back(out: Path) -> None:
    vlm, fake = trt_kit.load(out)
    vlm.generate(picture(1), QUESTION, max_new_tokens=4)
    driver = fake.driver
    assert driver.used
    fake.engines.clear(), fake.runtimes.clear()
    del vlm
    gc.collect()
    assert driver.used == 0


# -- what TensorRT says reaches the user


@pytest.mark.parametrize("call", ["set_input_shape", "set_tensor_address", "execute_async_v3"])
def test_refusals_of_tensorrt(out: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm, _ = trt_kit.load(out)
    monkeypatch.setattr(fake_tensorrt.Context, call, lambda self, *_: self.fail("no\nreason"))
    with pytest.raises(BackendError, match=r"vision: .*TensorRT: IExecutionContext: Error Code 3: .*\(no reason\)"):
        vlm.generate(picture(1), QUESTION)


def test_an_error_that_is_only_logged(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT may report success all the same."""
    vlm, _ = trt_kit.load(out)
    monkeypatch.setattr(fake_tensorrt.Context, "execute_async_v3", lambda self, _: not self.fail("something"))
    with pytest.raises(BackendError, match="something"):
        vlm.generate(picture(1), QUESTION)


def test_shapes_that_differ_from_the_graph(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm, _ = trt_kit.load(out)
    shape = fake_tensorrt.Context.get_tensor_shape
    monkeypatch.setattr(fake_tensorrt.Context, "get_tensor_shape", lambda self, name: (*shape(self, name)[:-1], 7))
    with pytest.raises(BackendError, match=r"output \w+: TensorRT: has shape \[1, 16, 7\], expected \[1, 16, 64\]"):
        vlm.generate(picture(1), QUESTION)


def test_shapes_that_cannot_be_inferred(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(self: Any) -> None:
        raise RuntimeError("shape\nmachine")

    vlm, _ = trt_kit.load(out)
    monkeypatch.setattr(fake_tensorrt.Context, "infer_shapes", raises)
    with pytest.raises(BackendError, match="shapes: TensorRT: shape machine"):
        vlm.generate(picture(1), QUESTION)
    monkeypatch.setattr(fake_tensorrt.Context, "infer_shapes", lambda self: ["pixel_values"])
    with pytest.raises(BackendError, match="input pixel_values: TensorRT: it has no shape or value"):
        vlm.generate(picture(1), QUESTION)


def test_a_step_that_cannot_be_recorded(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No stepping on without a graph in silence: the user is told how to."""

    def record(work: Any) -> None:
        raise BackendError("CUDA, recording: cudaErrorStreamCaptureUnsupported: operation not permitted")

    vlm, fake = trt_kit.load(out)
    monkeypatch.setattr(fake.driver, "record", record)
    with pytest.raises(BackendError, match="StreamCaptureUnsupported") as caught:
        vlm.generate(picture(1), QUESTION)
    assert "cuda_graph=off" in str(caught.value)
    vlm, fake = trt_kit.load(out, provider_options={"cuda_graph": "off"})
    monkeypatch.setattr(fake.driver, "record", record)
    assert vlm.generate(picture(1), QUESTION).token_ids
