"""The kernels' own code, run thread by thread on the CPU, against NumPy.

``plugins/tests/emulator.hpp`` runs every thread of a block in random order between barriers and refuses races, reads
of memory that was not written, accesses out of bounds and barriers that not all threads reach; the first tests plant
such mistakes.  What only a GPU can show (the intrinsics themselves, the launch) is for ``plugins/harness/``.
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.kit.plugin_build import emulator
from trtprune.pruning.methods import zspaprune

SCORES = [np.float32, np.float16, ml_dtypes.bfloat16]
BITS = {4: np.uint32, 2: np.uint16}
FUZZ = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def kernels() -> Emulator:
    return Emulator()


class Emulator:
    """The emulated kernels as NumPy functions."""

    def __init__(self) -> None:
        pointer, size, seed = ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint64
        self._library = library = ctypes.CDLL(str(emulator()))
        library.emulate_mistake.argtypes = [ctypes.c_char_p, seed]
        library.emulate_topk_gather.argtypes = [
            *(pointer, ctypes.c_int, pointer, size, size, size, size, pointer, pointer),
            *(seed, ctypes.c_int, ctypes.c_int),
        ]
        library.emulate_maxmin_select.argtypes = [
            *(pointer, pointer, size, size, size, ctypes.c_int, pointer, pointer, pointer, seed)
        ]
        library.emulate_plan.argtypes = [size, size, size, size, ctypes.c_int, seed, pointer]
        for function in (library.emulate_mistake, library.emulate_topk_gather, library.emulate_maxmin_select):
            function.restype = ctypes.c_char_p

    def mistake(self, name: str, seed: int) -> str:
        return self._library.emulate_mistake(name.encode(), seed).decode()

    def topk_gather(
        self, scores: np.ndarray, features: np.ndarray, keep: int, seed: int = 0, launches: int = 0, shares: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        batch, tokens, width = features.shape
        kept = np.full((batch, keep, width), 77, features.dtype)
        indices = np.full((batch, keep), -1, np.int64)
        problem = self._library.emulate_topk_gather(
            scores.ctypes.data,
            SCORES.index(scores.dtype.type),
            features.ctypes.data,
            *(batch, tokens, keep, width * features.itemsize),
            *(kept.ctypes.data, indices.ctypes.data, seed, launches, shares),
        )
        assert problem == b""
        return kept, indices

    def maxmin_select(
        self, similarity: np.ndarray, close: np.ndarray, steps: int, mode: int, seed: int, *, on_device: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        batch, tokens = close.shape
        result = np.full_like(close, np.nan)
        picks = np.full((batch, steps), -1, np.int32)
        count = np.array([steps], np.int64)
        problem = self._library.emulate_maxmin_select(
            *(similarity.ctypes.data, close.ctypes.data, batch, tokens, steps, mode),
            *(result.ctypes.data, picks.ctypes.data, count.ctypes.data if on_device else None, seed),
        )
        assert problem == b""
        return result, picks

    def plan(self, batch: int, tokens: int, keep: int, row_bytes: int, key_bytes: int = 4, addresses: int = 0) -> Plan:
        out = np.zeros(5, np.int64)
        self._library.emulate_plan(batch, tokens, keep, row_bytes, key_bytes, addresses, out.ctypes.data)
        return Plan(bool(out[0]), *map(int, out[1:]))


@dataclass
class Plan:
    valid: bool
    launches: int
    shares: int
    unit: int
    shared_bytes: int


# -- what the emulator is worth -----------------------------------------------------------------------------------

MISTAKES = {
    "no barrier": "race|read before it is written",
    "overwritten while read": "race",
    "two writers": "race: two writes",
    "read while added to": "race",
    "not written": "read before it is written",
    "barrier not reached by all": "not all of its threads reach",
    "warp function not reached by all": "not all of its threads reach",
    "different warp functions": "different warp functions",
    "shared out of bounds": "shared memory out of bounds",
    "read out of bounds": "global read out of bounds",
    "write out of bounds": "global write out of bounds",
    "written twice": "written twice",
    "stale read": "cached read",
    "misaligned": "misaligned",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_emulator_sees_planted_mistakes(kernels: Emulator, mistake: str) -> None:
    for seed in range(5):
        assert re.search(MISTAKES[mistake], kernels.mistake(mistake, seed))


def test_emulator_passes_what_is_right(kernels: Emulator) -> None:
    assert [kernels.mistake("none", seed) for seed in range(5)] == [""] * 5


# -- TopKGather ---------------------------------------------------------------------------------------------------


def expected_indices(scores: np.ndarray, keep: int) -> np.ndarray:
    """NaN as -inf, best first, ties to the lower index (a stable sort), then ascending."""
    with np.errstate(invalid="ignore"):
        values = scores.astype(np.float64)  # exact, and -0.0 == 0.0
    values = np.where(np.isnan(values), -np.inf, values)
    return np.sort(np.argsort(-values, axis=1, kind="stable")[:, :keep], axis=1)


def random_scores(rng: np.random.Generator, kind: str, shape: tuple[int, int], dtype: type) -> np.ndarray:
    bits = BITS[np.dtype(dtype).itemsize]
    if kind == "normal":
        return rng.standard_normal(shape).astype(dtype)
    if kind == "attention":  # like the rows of a softmax: one exponent, a few outliers
        return (rng.exponential(1.0, shape) ** 3 / shape[1]).astype(dtype)
    if kind == "levels":
        return rng.integers(0, rng.integers(1, 40), shape).astype(dtype)
    if kind == "special":
        tiny = np.finfo(dtype).smallest_subnormal if dtype is not ml_dtypes.bfloat16 else 1e-40
        values = [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, tiny, -tiny, 2 * tiny, 1.0, -1.0]
        return np.array(values, np.float64).astype(dtype)[rng.integers(0, len(values), shape)]
    return rng.integers(0, np.iinfo(bits).max, shape, dtype=bits, endpoint=True).view(dtype)  # any bits


def random_features(rng: np.random.Generator, batch: int, tokens: int, width: int, itemsize: int) -> np.ndarray:
    bits = BITS[itemsize]
    return rng.integers(0, np.iinfo(bits).max, (batch, tokens, width), dtype=bits, endpoint=True)


IMAGES = (1, 576, 2928, 8765, 16384)
"""Visual tokens: of LLaVA-1.5, the largest images of LLaVA-NeXT and LLaVA-OneVision, and beyond."""
KINDS = st.sampled_from(["normal", "attention", "levels", "special", "bits"])


@settings(FUZZ, max_examples=1000)
@given(
    seed=st.integers(0, 2**32),
    kind=KINDS,
    dtype=st.sampled_from(SCORES),
    batch=st.integers(1, 3),
    tokens=st.one_of(st.integers(1, 70), st.integers(71, 1200)),
    width=st.integers(1, 40),
    itemsize=st.sampled_from([2, 4]),
    launches=st.sampled_from([0, 2]),
    shares=st.integers(0, 4),
    data=st.data(),
)
def test_topk_gather(kernels, seed, kind, dtype, batch, tokens, width, itemsize, launches, shares, data) -> None:
    """One launch and two, any number of blocks a row, every format."""
    keep = data.draw(st.integers(1, tokens), "keep")
    rng = np.random.default_rng(seed)
    scores = random_scores(rng, kind, (batch, tokens), dtype)
    features = random_features(rng, batch, tokens, width, itemsize)
    kept, indices = kernels.topk_gather(scores, features, keep, seed, launches, min(shares, keep))
    expected = expected_indices(scores, keep)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(kept, np.take_along_axis(features, expected[..., None], 1))


@settings(FUZZ, max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    kind=KINDS,
    dtype=st.sampled_from(SCORES),
    tokens=st.one_of(st.integers(4000, 4200), st.integers(4097, 32768)),
    data=st.data(),
)
@example(seed=1, kind="normal", dtype=np.float32, tokens=4096, data=None)
@example(seed=2, kind="bits", dtype=np.float16, tokens=32768, data=None)
def test_topk_gather_of_many_tokens(kernels, seed, kind, dtype, tokens, data) -> None:
    keep = data.draw(st.integers(1, tokens), "keep") if data else 3 * tokens // 4
    rng = np.random.default_rng(seed)
    scores = random_scores(rng, kind, (1, tokens), dtype)
    features = random_features(rng, 1, tokens, 1, 2)
    kept, indices = kernels.topk_gather(scores, features, keep, seed)
    expected = expected_indices(scores, keep)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(kept, np.take_along_axis(features, expected[..., None], 1))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("tokens", IMAGES)
def test_topk_gather_of_an_image(kernels: Emulator, tokens: int, dtype: type) -> None:
    """Budgets from one token to all, many scores equal."""
    for keep in sorted({1, min(64, tokens), tokens // 3 or 1, tokens - 1 or 1, tokens}):
        rng = np.random.default_rng(keep)
        scores = random_scores(rng, "levels", (1, tokens), dtype)
        features = random_features(rng, 1, tokens, 3, 2)
        kept, indices = kernels.topk_gather(scores, features, keep, keep)
        expected = expected_indices(scores, keep)
        np.testing.assert_array_equal(indices, expected)
        np.testing.assert_array_equal(kept, np.take_along_axis(features, expected[..., None], 1))


@pytest.mark.parametrize("dtype", SCORES)
def test_the_order_of_all_scores_of_16_bits(kernels: Emulator, dtype: type) -> None:
    """Every float16 and bfloat16 there is, in one row after the other; float32 on a stride over its bits."""
    rng = np.random.default_rng(0)
    if np.dtype(dtype).itemsize == 2:
        bits = rng.permutation(2**16).astype(np.uint16).reshape(2, -1)
    else:
        bits = rng.permutation(np.arange(0, 2**32, 2**17 + 1, dtype=np.uint64)[:32768]).astype(np.uint32)[None]
    scores = bits.view(dtype)
    keep = scores.shape[1] // 2
    _, indices = kernels.topk_gather(scores, np.zeros((*scores.shape, 1), np.uint16), keep)
    np.testing.assert_array_equal(indices, expected_indices(scores, keep))


@pytest.mark.parametrize(
    ("width", "offset", "unit"), [(8, 0, 16), (12, 0, 8), (6, 0, 4), (7, 0, 2), (8, 1, 2), (8, 4, 8)]
)
def test_rows_are_copied_in_the_widest_units_their_addresses_allow(
    kernels: Emulator, width: int, offset: int, unit: int
) -> None:
    rng = np.random.default_rng(width)
    memory = np.zeros(2 * 50 * width + 64, np.uint16)
    start = (-memory.ctypes.data // 2) % 8 + offset  # `offset` elements after a multiple of 16 bytes
    features = memory[start : start + 2 * 50 * width].reshape(2, 50, width)
    features[:] = random_features(rng, 2, 50, width, 2)
    scores = rng.standard_normal((2, 50)).astype(np.float32)
    kept, _ = kernels.topk_gather(scores, features, 20)
    np.testing.assert_array_equal(kept, np.take_along_axis(features, expected_indices(scores, 20)[..., None], 1))
    assert kernels.plan(2, 50, 20, 2 * width, addresses=features.ctypes.data).unit == unit


def test_plan(kernels: Emulator) -> None:
    """One launch up to 4096 tokens; blocks in proportion to the bytes; never more shared memory than 48 KiB."""
    llava = kernels.plan(1, 576, 192, 8192)
    assert (llava.launches, llava.unit, llava.shares) == (1, 16, 96)
    assert kernels.plan(1, 4096, 64, 8192).launches == 1
    assert kernels.plan(1, 4097, 64, 8192).launches == 2
    assert kernels.plan(1, 576, 3, 8192).shares == 2  # 24 KiB
    assert kernels.plan(1, 576, 1, 2**20).shares == 1  # a row is not divided
    assert kernels.plan(64, 576, 576, 8192).shares == 1024 // 64
    assert kernels.plan(5000, 576, 576, 8192).shares == 1
    for wrong in [(1, 0, 0, 2), (1, 32769, 1, 2), (1, 10, 11, 2), (1, 10, -1, 2), (-1, 10, 5, 2), (1, 10, 5, 2**25)]:
        assert not kernels.plan(*wrong).valid
    assert not kernels.plan(2**31, 10, 5, 2).valid  # blocks of a launch


@settings(FUZZ, max_examples=300)
@given(st.integers(1, 4096), st.integers(1, 2**20), st.sampled_from([2, 4]), st.integers(1, 5000), st.data())
def test_every_plan_fits_a_launch(kernels, tokens, row_bytes, key_bytes, batch, data) -> None:
    keep = data.draw(st.integers(1, tokens))
    plan = kernels.plan(batch, tokens, keep, 2 * row_bytes, key_bytes)
    assert plan.valid
    assert 1 <= plan.shares <= keep
    assert plan.shared_bytes <= 48 * 1024
    shares = [keep * i // plan.shares for i in range(plan.shares + 1)]
    assert max(b - a for a, b in pairwise(shares)) * 2 * row_bytes // plan.unit < 2**31


# -- MaxMinSelect -------------------------------------------------------------------------------------------------


def greedy(similarity: np.ndarray, close: np.ndarray, steps: int, mode: int) -> tuple[np.ndarray, list[int]]:
    """The loop of ZSPAPrune's reference, for one row."""
    picks = []
    for _ in range(steps):
        best = int(np.argmin(close))
        picks.append(best)
        close = np.maximum(close, similarity[best]) if mode == 0 else close + similarity[best]
        close[best] = np.float32(3.0e38)
    return close, picks


@settings(FUZZ, max_examples=100)
@given(
    seed=st.integers(0, 2**32),
    batch=st.integers(1, 2),
    tokens=st.integers(1, 700),
    steps=st.integers(0, 12),
    mode=st.sampled_from([0, 1]),
    levels=st.sampled_from([2, 5, 10**6]),
    on_device=st.booleans(),
)
def test_maxmin_select(kernels, seed, batch, tokens, steps, mode, levels, on_device) -> None:
    """Closeness bit for bit, picks in order, many ties; also more steps than there are tokens."""
    rng = np.random.default_rng(seed)
    similarity = (rng.integers(-levels, levels, (batch, tokens, tokens), endpoint=True) / levels).astype(np.float32)
    close = (rng.integers(-levels, levels, (batch, tokens), endpoint=True) / levels).astype(np.float32)
    close[rng.random(close.shape) < 0.1] = 3.0e38  # taken before
    close[rng.random(close.shape) < 0.1] = 1e30  # not finite: last
    close[rng.random(close.shape) < 0.1] *= -0.0
    result, picks = kernels.maxmin_select(similarity, close, steps, mode, seed, on_device=on_device)
    for row in range(batch):
        expected, expected_picks = greedy(similarity[row], close[row].copy(), steps, mode)
        np.testing.assert_array_equal(result[row], expected)
        np.testing.assert_array_equal(picks[row], expected_picks)


@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize("tokens", IMAGES)
def test_maxmin_select_of_an_image(kernels: Emulator, tokens: int, mode: int) -> None:
    """Any image's number of tokens; only the rows that are picked have numbers, the others are never read."""
    rng = np.random.default_rng(tokens)
    similarity = np.zeros((1, tokens, tokens), np.float32)  # pages that nobody touches take no memory
    start = rng.uniform(-1, 1, (1, tokens)).astype(np.float32)
    close = start[0].copy()
    for _ in range(min(3, tokens)):
        best = int(np.argmin(close))
        similarity[0, best] = rng.uniform(-1, 1, tokens)
        close, _ = greedy(similarity[0], close, 1, mode)
    result, picks = kernels.maxmin_select(similarity, start, min(3, tokens), mode, tokens)
    expected, expected_picks = greedy(similarity[0], start[0].copy(), min(3, tokens), mode)
    np.testing.assert_array_equal(result[0], expected)
    assert picks[0].tolist() == expected_picks


@pytest.mark.parametrize("mode", ["maxmin", "meansim"])
def test_maxmin_select_is_zspaprunes_greedy_stage(kernels: Emulator, mode: str) -> None:
    """The published entry: features and a core in, the same tokens in the same order out."""
    from trtprune.pruning import ops

    rng = np.random.default_rng(5)
    features = rng.standard_normal((96, 32)).astype(np.float16).astype(np.float32)
    features[17, 3] = np.inf
    core = np.array([40, 3, 71])
    expected = zspaprune.greedy(features, core, 40, mode)

    image, norm, good = ops.norms(features)
    similarity = ops.cosine(image, norm, image, norm)
    if mode == "maxmin":
        close = similarity[core].max(axis=0)
    else:
        close = np.add.accumulate(similarity[core], axis=0, dtype=np.float32)[-1]
    close = np.where(good, close, np.float32(1e30)).astype(np.float32)
    close[core] = 3.0e38
    result, picks = kernels.maxmin_select(similarity[None], close[None], 37, ["maxmin", "meansim"].index(mode), 0)
    np.testing.assert_array_equal(np.concatenate([core, picks[0]]), expected)
    np.testing.assert_array_equal(np.flatnonzero(result[0] == np.float32(3.0e38)), np.sort(expected))


def test_nan_closeness_is_picked_last(kernels: Emulator) -> None:
    close = np.array([[np.nan, 0.5, -1.0, 2.0]], np.float32)
    _, picks = kernels.maxmin_select(np.full((1, 4, 4), -9, np.float32), close, 3, 0, 0)
    assert picks.tolist() == [[2, 1, 3]]
