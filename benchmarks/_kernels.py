"""The kernels of plugins/ through their C ABI, and what they must give, by NumPy."""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = "libtrtprune_kernels.so"
# With the TensorRT plugins, as plugins/ is built on a machine with a network; and the kernels alone.
FOLDERS = (ROOT / "build" / "plugins", ROOT / "build" / "kernels")
DTYPES = {"float32": 0, "float16": 1, "bfloat16": 2}
MODES = {"maxmin": 0, "meansim": 1}
PICKED = np.float32(3.0e38)


class Memory(Protocol):
    """Where the kernels read and write."""

    def put(self, array: np.ndarray) -> tuple[int, Any]:
        """Address of a copy of ``array``, and what keeps it alive."""

    def get(self, held: Any, like: np.ndarray) -> np.ndarray:
        """What is there now, as an array of the shape and dtype of ``like``."""


class TorchMemory:
    """Memory of the GPU, through torch (or, in tests, of the CPU)."""

    def __init__(self, device: str = "cuda") -> None:
        self._device = device

    def put(self, array: np.ndarray) -> tuple[int, Any]:
        import torch

        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8).copy()
        held = torch.from_numpy(flat).to(self._device)
        return held.data_ptr(), held

    def get(self, held: Any, like: np.ndarray) -> np.ndarray:
        return held.cpu().numpy().view(like.dtype).reshape(like.shape)


class Kernels:
    """The library, with arguments as Python has them. Every pointer is an address as an int."""

    def __init__(self, path: Path) -> None:
        lib = ctypes.CDLL(str(path))
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        lib.trtprune_topk_gather.argtypes = [
            pointer, ctypes.c_int, pointer, ctypes.c_int, size, size, size, size,
            pointer, pointer, pointer, ctypes.c_size_t, pointer,
        ]  # fmt: skip
        lib.trtprune_topk_gather_workspace.argtypes = [size, size, size]
        lib.trtprune_topk_gather_workspace.restype = ctypes.c_size_t
        lib.trtprune_topk_gather_launches.argtypes = [size]
        lib.trtprune_maxmin_select.argtypes = [pointer, pointer, size, size, size, ctypes.c_int] + [pointer] * 3
        for name in ("trtprune_kernels_version", "trtprune_error_string"):
            getattr(lib, name).restype = ctypes.c_char_p
        self._lib = lib
        self.version = lib.trtprune_kernels_version().decode()

    def devices(self) -> int:
        """GPUs the library can use."""
        return int(self._lib.trtprune_device_count())

    def workspace(self, batch: int, tokens: int, keep: int) -> int:
        """Bytes of scratch memory a call needs."""
        return int(self._lib.trtprune_topk_gather_workspace(batch, tokens, keep))

    def launches(self, tokens: int) -> int:
        """Kernels a call puts on the stream."""
        return int(self._lib.trtprune_topk_gather_launches(tokens))

    def topk_gather(
        self,
        scores: int,
        scores_dtype: str,
        features: int,
        features_dtype: str,
        dims: tuple[int, int, int, int],
        kept: int,
        indices: int,
        workspace: tuple[int, int] = (0, 0),
        stream: int = 0,
    ) -> None:
        """``dims`` is (batch, tokens, width, keep), ``workspace`` (address, bytes)."""
        code = self._lib.trtprune_topk_gather(
            scores, DTYPES[scores_dtype], features, DTYPES[features_dtype], *dims,
            kept, indices, workspace[0] or None, workspace[1], stream or None,
        )  # fmt: skip
        self._check(code)

    def maxmin_select(
        self,
        similarity: int,
        close: int,
        dims: tuple[int, int, int],
        mode: str,
        close_out: int,
        picks: int,
        stream: int = 0,
    ) -> None:
        """``dims`` is (batch, tokens, steps)."""
        code = self._lib.trtprune_maxmin_select(similarity, close, *dims, MODES[mode], close_out, picks, stream or None)
        self._check(code)

    def _check(self, code: int) -> None:
        if code:
            raise RuntimeError(f"the kernel was not launched: {self._lib.trtprune_error_string(code).decode()}")


def find(name: str, folders: Sequence[Path] = FOLDERS) -> Path | None:
    """A file among what was built from plugins/."""
    return next((folder / name for folder in folders if (folder / name).exists()), None)


def build(folders: Sequence[Path] = FOLDERS) -> Path:
    """The library of the kernels; compiled for the GPU at hand, which takes a minute, if it is not there.

    Raises:
        SystemExit: if it is not there and cannot be compiled.
    """
    path = find(LIBRARY, folders)
    if path is not None:
        return path
    if shutil.which("cmake") is None or shutil.which("nvcc") is None:
        raise SystemExit(f"{LIBRARY} is not in {folders[0]}, and compiling it needs cmake and nvcc on PATH")
    options = ["-DTRTPRUNE_PLUGIN=OFF", "-DCMAKE_CUDA_ARCHITECTURES=native"]
    for command in (["-S", str(ROOT / "plugins"), "-B", str(folders[-1]), *options], ["--build", str(folders[-1])]):
        subprocess.run(["cmake", *command], check=True)
    return folders[-1] / LIBRARY


def numpy_dtype(name: str) -> np.dtype:
    """The NumPy dtype of a name; bfloat16 is that of ml_dtypes."""
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def select(scores: np.ndarray, keep: int) -> np.ndarray:
    """Ascending indices int64 [batch, keep] of the best scores: NaN counts as -inf, ties go to the lower index."""
    wide = scores.astype(np.float64)
    wide = np.where(np.isnan(wide), -np.inf, wide)
    return np.sort(np.argsort(-wide, axis=1, kind="stable")[:, :keep], axis=1)


def greedy(similarity: np.ndarray, close: np.ndarray, steps: int, mode: str) -> tuple[np.ndarray, np.ndarray]:
    """Picks int32 [batch, steps] and the last ``close`` float32 [batch, tokens] of the greedy selection."""
    close, rows = close.copy(), np.arange(len(close))
    picks = np.empty((len(close), steps), np.int32)
    for step in range(steps):
        best = close.argmin(axis=1)
        near = similarity[rows, best]
        close = np.maximum(close, near) if mode == "maxmin" else close + near
        close[rows, best] = PICKED
        picks[:, step] = best
    return picks, close


def score_cases(rng: np.random.Generator, batch: int, tokens: int) -> Iterator[tuple[str, np.ndarray]]:
    """Scores float32 [batch, tokens] of every kind that is easy to get wrong."""
    shape = (batch, tokens)
    normal = rng.standard_normal(shape).astype(np.float32)
    yield "normal", normal
    yield "ties", rng.integers(-3, 4, shape).astype(np.float32)
    yield "all equal", np.full(shape, 0.5, np.float32)
    yield "zeros of both signs", np.where(rng.random(shape) < 0.5, np.float32(0), np.float32(-0.0))
    some = normal.copy()
    some[rng.random(shape) < 0.3] = np.nan
    some[rng.random(shape) < 0.1] = -np.nan
    yield "some NaN", some
    yield "all NaN", np.full(shape, np.nan, np.float32)
    infinite = some.copy()
    infinite[rng.random(shape) < 0.2] = np.inf
    infinite[rng.random(shape) < 0.2] = -np.inf
    yield "infinities and NaN", infinite
    yield "ascending", np.sort(normal, axis=1)


def check_topk(kernels: Any, memory: Memory, dims: tuple[int, int, int, int], seed: int) -> Iterator[tuple[str, str]]:
    """Every kind of scores in every pair of dtypes; gives (what was run, what was wrong or "")."""
    batch, tokens, width, keep = dims
    rng = np.random.default_rng(seed)
    numbers = rng.standard_normal((batch, tokens, width), np.float32)
    rows_of = {of: numbers.astype(numpy_dtype(of)) for of in DTYPES}
    for (case, values), (kind, of) in itertools.product(
        score_cases(rng, batch, tokens), itertools.product(DTYPES, DTYPES)
    ):
        scores, features = values.astype(numpy_dtype(kind)), rows_of[of]
        # Poisoned, so that what is not written shows.
        kept = np.full((batch, keep, width), np.nan, features.dtype)
        indices = np.full((batch, keep), -1, np.int64)
        size = kernels.workspace(batch, tokens, keep)
        arrays = (scores, features, kept, indices, np.full(max(size, 1), 0xA5, np.uint8))
        (s, _0), (f, _1), (k, held_kept), (i, held_indices), (w, _4) = map(memory.put, arrays)
        kernels.topk_gather(s, kind, f, of, dims, k, i, (w, size) if size else (0, 0))
        found, rows = memory.get(held_indices, indices), memory.get(held_kept, kept)
        expected = select(scores, keep)
        name = f"{case}, scores {kind}, features {of}, {batch}x{tokens}x{width} keep {keep}"
        if not np.array_equal(found, expected):
            at = tuple(int(n) for n in np.argwhere(found != expected)[0])
            yield name, f"index {at} is {found[at]}, should be {expected[at]}"
        elif rows.tobytes() != np.take_along_axis(features, expected[..., None], 1).tobytes():
            yield name, "the indices are right and the rows are not"
        else:
            yield name, ""


def check_greedy(kernels: Any, memory: Memory, dims: tuple[int, int, int], seed: int) -> Iterator[tuple[str, str]]:
    """Both modes, on cosine-like similarities and on ones with many ties."""
    batch, tokens, steps = dims
    rng = np.random.default_rng(seed)
    for kind, mode in itertools.product(("cosine", "ties"), MODES):
        if kind == "cosine":
            points = rng.standard_normal((batch, tokens, 8)).astype(np.float32)
            points /= np.linalg.norm(points, axis=2, keepdims=True)
            similarity = np.ascontiguousarray(points @ points.transpose(0, 2, 1))
        else:
            similarity = rng.integers(-2, 3, (batch, tokens, tokens)).astype(np.float32)
        close = rng.integers(-1, 2, (batch, tokens)).astype(np.float32)
        picks = np.full((batch, max(steps, 1)), -1, np.int32)
        out = np.full_like(close, np.nan)
        (s, _0), (c, _1), (o, held_out), (p, held_picks) = map(memory.put, (similarity, close, out, picks))
        kernels.maxmin_select(s, c, dims, mode, o, p)
        expected, last = greedy(similarity, close, steps, mode)
        name = f"{kind}, {mode}, {batch}x{tokens} steps {steps}"
        if not np.array_equal(memory.get(held_picks, picks)[:, :steps], expected):
            yield name, "other picks"
        else:
            same = np.array_equal(memory.get(held_out, out), last)
            yield name, "" if same else "the picks are right, what is left over is not"
