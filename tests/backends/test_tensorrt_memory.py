"""Device arrays against NumPy, and the choice of profiles: pure parts of the TensorRT runtime, at random."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.fake_cuda import FakeDriver
from trtprune.backends.host import HostMemory
from trtprune.backends.tensorrt.execution import Workspace
from trtprune.backends.tensorrt.memory import ALIGNMENT, KEEP_BYTES, DeviceMemory, block_size
from trtprune.backends.tensorrt.profiles import Limits, component_profiles
from trtprune.backends.tensorrt.shapes import choose_profile, max_batch, plan_call
from trtprune.engine_dir import ComponentInfo, Part, TensorSpec
from trtprune.errors import BackendError, TrtpruneError


@pytest.fixture
def memory() -> DeviceMemory:
    return DeviceMemory(FakeDriver())


def fresh() -> DeviceMemory:
    return DeviceMemory(FakeDriver())


# -- arrays


@given(st.data())
def test_indexing_is_that_of_numpy(data: Any) -> None:
    memory = fresh()
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple))
    host = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    device = memory.upload(host)
    for _ in range(data.draw(st.integers(1, 4))):
        if not host.ndim or not host.size:
            break
        n = len(host)
        key = data.draw(
            st.one_of(
                st.none(),
                st.integers(-n, n - 1),
                st.slices(n).filter(lambda s: s.step in (None, 1)),
                st.lists(st.integers(0, n - 1), min_size=1).map(lambda rows: np.array(rows, np.int64)),
            )
        )
        host, device = host[key], device[key]
        assert device.shape == host.shape
    np.testing.assert_array_equal(memory.to_host(device), host)


def test_what_cannot_be_indexed(memory: DeviceMemory) -> None:
    array = memory.zeros((3, 2), "int64")
    for key in (3, -4, slice(None, None, 2), np.array([0, 3]), np.array([-1])):
        with pytest.raises(IndexError):
            array[key]


@given(
    st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=4),
    st.integers(0, 3),
    st.integers(1, 5),
)
def test_joining_is_that_of_numpy(rows: list[list[int]], padding: int, width: int) -> None:
    memory, rng = fresh(), np.random.default_rng(0)
    host = [[rng.normal(size=(n, width)).astype(np.float16) for n in row] for row in rows]
    length = max(map(sum, rows)) + padding
    # Every other piece is one of the host's.
    device = [[memory.upload(p) if i % 2 == 0 else p for i, p in enumerate(row)] for row in host]
    expected = HostMemory().join(host, length)
    assert expected.shape == (len(rows), length, width)
    found = memory.join(device, length)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(memory.to_host(found), expected)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=5), st.integers(1, 5), st.booleans())
def test_concatenation_is_that_of_numpy(lengths: list[int], width: int, flat: bool) -> None:
    """Of pieces and of views into one array; nothing crosses to the host."""
    memory = fresh()
    whole = np.random.default_rng(0).normal(size=(sum(lengths), *([] if flat else [width]))).astype(np.float16)
    pieces = np.split(whole, np.cumsum(lengths)[:-1])
    found = memory.concatenate([memory.upload(piece) for piece in pieces])
    assert (found.dtype, found.shape) == (np.float16, whole.shape)
    np.testing.assert_array_equal(memory.to_host(found), whole)
    array, order = memory.upload(whole), np.random.default_rng(1).permutation(len(whole))
    views = memory.concatenate([array[order[:2]], array[order[2:]], array[1:1]])
    np.testing.assert_array_equal(memory.to_host(views), whole[order])


def test_odd_addresses_are_bound_as_copies(memory: DeviceMemory) -> None:
    array = memory.upload(np.arange(300, dtype=np.float32).reshape(3, 100))
    assert memory.aligned(array) is array
    view = memory.aligned(array[1])
    assert view.address % ALIGNMENT == 0 != array[1].address % ALIGNMENT
    np.testing.assert_array_equal(memory.to_host(view), np.arange(100, 200))


def test_bfloat16(memory: DeviceMemory) -> None:
    import ml_dtypes

    host = np.arange(8, dtype=ml_dtypes.bfloat16).reshape(2, 4)
    np.testing.assert_array_equal(memory.to_host(memory.upload(host)[1]), host[1])


# -- blocks


@given(st.integers(1, 1 << 34))
def test_block_sizes(nbytes: int) -> None:
    size = block_size(nbytes)
    assert nbytes <= size <= max(nbytes + ALIGNMENT, nbytes * 9 // 8)
    assert size % ALIGNMENT == 0
    assert block_size(size) == size


def test_few_sizes_serve_all_lengths() -> None:
    """Prompts of 1 to 1,088 tokens of a 7B model: a handful of blocks, not a thousand."""
    assert len({block_size(8192 * tokens) for tokens in range(1, 1089)}) < 80
    assert len({block_size(8192 * tokens) for tokens in range(544, 1089)}) <= 10


def test_memory_is_used_again(memory: DeviceMemory) -> None:
    driver: Any = memory.driver
    first = memory.empty((1000,), "float32")
    address, view = first.address, first[3:5]
    del first
    second = memory.empty((1000,), "float32")
    assert second.address != address  # the view still needs it
    del view
    gc.collect()
    assert memory.empty((990,), "float32").address == address
    assert len(driver.allocations) == 2


def test_large_blocks_go_back(memory: DeviceMemory) -> None:
    driver: Any = memory.driver
    array = memory.empty((KEEP_BYTES + 1,), "uint8")
    assert driver.used > KEEP_BYTES
    del array
    gc.collect()
    assert driver.used == 0


def test_no_memory_left() -> None:
    driver = FakeDriver(total=10_000)
    memory = DeviceMemory(driver)
    for size in (3000, 4000):
        memory.empty((size,), "uint8")
    # What lies about unused is given back first.
    whole = memory.empty((9000,), "uint8")
    with pytest.raises(BackendError, match="no memory on the GPU for 0 MB more") as caught:
        memory.empty((4000,), "uint8")
    assert "--max-seq-len" in str(caught.value)
    del whole


def test_the_workspace_grows_once_for_all(memory: DeviceMemory) -> None:
    driver: Any = memory.driver
    workspace = Workspace(memory)
    for size in (1000, 5000, 3000):
        workspace.reserve(size)
    assert not driver.allocations
    address, generation = workspace.address, workspace.generation
    assert (workspace.nbytes, workspace.address) == (5000, address)
    workspace.reserve(4000)
    assert workspace.generation == generation
    workspace.reserve(50_000)
    assert workspace.generation > generation  # whoever holds the old address sees that it changed
    driver.view(workspace.address, 50_000)


# -- profiles

DECODER = (
    TensorSpec("inputs_embeds", "float32", ("batch", "sequence", 64)),
    TensorSpec("position_ids", "int64", ("batch", 1, "sequence")),
    TensorSpec("write_index", "int64", ("batch",)),
    TensorSpec("logits_index", "int64", ("batch", "logits_rows")),
)
PRUNER = (
    TensorSpec("image_features", "float32", ("batch", "visual_tokens", 64)),
    TensorSpec("text_embeds", "float32", ("batch", "text_tokens", 64)),
    TensorSpec("keep", "int64", (1,)),
)
PRUNED = (
    TensorSpec("kept_indices", "int64", ("batch", "keep")),
    TensorSpec("pruned_features", "float32", ("batch", "keep", 64)),
)


def component(name: str, inputs: Any, limits: Limits, backend: str = "tensorrt", outputs: Any = ()) -> ComponentInfo:
    profiles = component_profiles(Part(name), inputs, limits, backend)
    return ComponentInfo(name, name, None, "x.onnx", "x.engine", inputs, outputs, profiles, "float32")


@st.composite
def limits(draw: Any) -> Limits:
    tokens = draw(st.integers(1, 600))
    low = draw(st.integers(1, tokens))
    high = draw(st.integers(low, tokens))
    capacity = draw(st.integers(2, 4096))
    return Limits(
        tokens,
        draw(st.integers(low, high)),
        (low, high),
        capacity,
        draw(st.integers(1, 8)),
        draw(st.integers(1, capacity)),
        draw(st.integers(1, 4)),
    )


@given(limits(), st.integers(1, 10), st.integers(1, 5000), st.sampled_from(["tensorrt", "tensorrt-rtx"]))
def test_decoder_profiles(made: Limits, rows: int, length: int, backend: str) -> None:
    """Everything within the limits is served, single tokens by their own profile, and nothing else."""
    decoder = component("decoder", DECODER, made, backend)
    shapes = {
        "inputs_embeds": (rows, length, 64),
        "position_ids": (rows, 1, length),
        "write_index": (rows,),
        "logits_index": (rows, 1),
    }
    assert max_batch(decoder) == made.max_batch_size
    if rows <= made.max_batch_size and length <= made.max_sequence:
        assert choose_profile(decoder, shapes, {}) == (backend == "tensorrt" and length == 1)
        return
    with pytest.raises(TrtpruneError) as caught:
        choose_profile(decoder, shapes, {})
    flag = "--max-batch-size" if rows > made.max_batch_size else "--max-input-len"
    assert flag in str(caught.value)


@given(limits(), st.integers(0, 700), st.integers(0, 5000))
def test_pruner_calls(made: Limits, keep: int, text: int) -> None:
    """Output shapes follow from the value of ``keep``."""
    pruner = component("pruner", PRUNER, made, outputs=PRUNED)
    shapes = {"image_features": (1, made.visual_tokens, 64), "text_embeds": (1, text, 64), "keep": (1,)}
    dtypes = {"image_features": "float32", "text_embeds": "float32", "keep": "int64"}
    low, high = made.keep_range
    if low <= keep <= high and 1 <= text <= made.max_text:
        call = plan_call(pruner, PRUNER, PRUNED, shapes, dtypes, {"keep": (keep,)})
        assert call.outputs == {"kept_indices": (1, keep), "pruned_features": (1, keep, 64)}
        return
    with pytest.raises(TrtpruneError) as caught:
        plan_call(pruner, PRUNER, PRUNED, shapes, dtypes, {"keep": (keep,)})
    wrong = [
        w for w, bad in (("--max-input-len", text > made.max_text), ("--keep-range", not low <= keep <= high)) if bad
    ]
    assert any(flag in str(caught.value) for flag in wrong) or text < 1


def test_other_refusals() -> None:
    made = Limits(16, 4, (1, 9), 256)
    decoder = component("decoder", (*DECODER, TensorSpec("past", "float32", ("batch", 2, "capacity", 8))), made)
    shapes: dict[str, Any] = {"inputs_embeds": (1, 3, 64), "past": (1, 2, 128, 8)}
    with pytest.raises(BackendError, match="--max-seq-len"):
        choose_profile(decoder, shapes, {})
    with pytest.raises(BackendError, match="logits_index has shape"):
        choose_profile(decoder, {"logits_index": (1, 2)}, {})
    assert choose_profile(ComponentInfo("x", "x", None, "x", "x", (), (), (), "float32"), {}, {}) == 0
    pruner = component("pruner", PRUNER, made)
    with pytest.raises(BackendError, match="does not follow"):
        plan_call(
            pruner,
            PRUNER[:2],
            PRUNED,
            {"image_features": (1, 16, 64), "text_embeds": (1, 3, 64)},
            {"image_features": "float32", "text_embeds": "float32"},
            {},
        )
