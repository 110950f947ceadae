"""One attention step over a KV cache: its graph as the decoder has it, and what an engine makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from _kernels import numpy_dtype

FORMS = {
    "tensorrt": ("op", "op-float32", "primitives", "primitives-float32", "lengths", "causal"),
    # Its compiler fails on attention between casts to float32, or brings the process down.
    "tensorrt-rtx": ("op", "primitives", "primitives-float32", "lengths", "causal"),
}
"""Backend → forms of :class:`trtprune.graph.Lowering`, and two that only serve to compare: ``lengths``, TensorRT's own
operator, told how far the cache is filled; ``causal``, for prompts alone: over the new tokens, without a mask."""


@dataclass(frozen=True)
class Geometry:
    """Of one layer; the default is that of llava-1.5-7b."""

    capacity: int
    dtype: str = "float16"
    heads: int = 32
    kv_heads: int = 32
    head_dim: int = 128
    form: str = "op"


class Step(Protocol):
    """An engine of :func:`step_graph` with its cache."""

    def fill(self, key: np.ndarray, value: np.ndarray) -> None:
        """Sets the whole cache, each [1, kv_heads, capacity, head_dim]."""

    def run(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, write_index: int) -> np.ndarray:
        """Writes ``k`` and ``v`` behind ``write_index`` rows and attends; [1, heads, S, head_dim]."""

    def cache(self) -> tuple[np.ndarray, np.ndarray]:
        """The whole cache."""


def step_graph(geometry: Geometry, *, static: bool = True) -> bytes:
    """The ONNX model; with ``static`` the capacity is a number, as TensorRT wants it."""
    import onnx_ir as ir

    from trtprune.graph import Graph, Lowering
    from trtprune.graph.attention import attention, cache_mask, cache_write

    own = geometry.form in ("lengths", "causal")
    lowering = Lowering() if own else Lowering(attention=geometry.form)  # type: ignore[arg-type]
    g = Graph("attention", dtype=geometry.dtype, lowering=lowering)
    op, int64 = g.op, ir.DataType.INT64
    capacity: int | str = geometry.capacity if static else "capacity"
    q = g.input("q", geometry.dtype, [1, geometry.heads, "sequence", geometry.head_dim])
    k, v = (g.input(name, geometry.dtype, [1, geometry.kv_heads, "sequence", geometry.head_dim]) for name in "kv")
    write_index = g.input("write_index", "int64", [1])
    shape: list[int | str] = [1, geometry.kv_heads, capacity, geometry.head_dim]
    past = [g.input(f"past_key_values.0.{name}", geometry.dtype, shape) for name in ("key", "value")]
    length = op.Squeeze(op.Shape(q, start=2, end=3), g.ints(0))
    steps = op.Range(g.scalar(0, int64), length, g.scalar(1, int64))
    slots = op.Add(op.Unsqueeze(write_index, g.ints(1)), steps)
    key, value = (cache_write(g, old, new, write_index, slots) for old, new in zip(past, (k, v), strict=True))
    if geometry.form == "causal":
        y = op.Attention(op.Mul(q, g.scalar(geometry.head_dim**-0.5)), k, v, is_causal=1, scale=1.0)
    elif own:
        filled = op.Cast(op.Add(write_index, op.Shape(q, start=2, end=3)), to=ir.DataType.INT32)
        scaled = op.Mul(q, g.scalar(geometry.head_dim**-0.5))
        y = op.TRT_Attention(scaled, key, value, None, None, filled, causal_kind="lower_right", _domain="trtprune")
    else:
        mask = cache_mask(g, slots, op.Shape(past[0], start=2, end=3), None)
        sizes = {"heads": geometry.heads, "kv_heads": geometry.kv_heads, "head_dim": geometry.head_dim}
        y = attention(g, q, key, value, mask=mask, form=lowering.attention, **sizes)
    g.output(y, "y", geometry.dtype, [1, geometry.heads, "sequence", geometry.head_dim])
    for name, tensor in (("key", key), ("value", value)):
        g.output(tensor, f"present.0.{name}", geometry.dtype, shape)
    return g.to_bytes()


def expected(q: np.ndarray, key: np.ndarray, value: np.ndarray, write_index: int) -> np.ndarray:
    """What the step must give, float64, from a cache that holds the new rows already."""
    q, key, value = (array.astype(np.float64) for array in (q, key, value))
    group = q.shape[1] // key.shape[1]
    rows = write_index + np.arange(q.shape[2])
    used = int(rows[-1]) + 1
    key, value = (np.repeat(array[:, :, :used], group, axis=1) for array in (key, value))
    scores = q @ key.transpose(0, 1, 3, 2) * q.shape[-1] ** -0.5
    scores = np.where(np.arange(used) <= rows[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray((weights / weights.sum(axis=-1, keepdims=True)) @ value)


def errors(found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Largest and root mean square difference, and the norm of it over that of the truth; infinite if not finite."""
    difference = found.astype(np.float64) - truth
    if not np.isfinite(difference).all():
        return dict.fromkeys(("max", "rmse", "relative"), float("inf"))
    relative = float(np.linalg.norm(difference) / np.linalg.norm(truth))
    return {
        "max": float(np.abs(difference).max()),
        "rmse": float(np.sqrt((difference**2).mean())),
        "relative": relative,
    }


def examine(step: Step, geometry: Geometry, prompt: int, seed: int = 0) -> dict[str, Any]:
    """Prefill of ``prompt`` tokens into an empty cache and single steps behind it: errors, and what lies unused.

    Returns:
        ``prefill`` and ``decode`` (the worst of several fills): see :func:`errors`; ``in_place``: only the new rows of
        the cache changed; ``garbage_suffix_same`` and ``nan_suffix_same``: the answer is bit for bit the same with
        large numbers, or NaN, in the slots nobody wrote. Of the form ``causal``, ``prefill`` only.
    """
    rng, dtype = np.random.default_rng(seed), numpy_dtype(geometry.dtype)

    def draw(heads: int, rows: int) -> np.ndarray:
        return rng.standard_normal((1, heads, rows, geometry.head_dim), np.float32).astype(dtype)

    found: dict[str, Any] = {}
    empty = np.zeros((1, geometry.kv_heads, geometry.capacity, geometry.head_dim), dtype)
    q, k, v = draw(geometry.heads, prompt), draw(geometry.kv_heads, prompt), draw(geometry.kv_heads, prompt)
    step.fill(empty, empty)
    y = step.run(q, k, v, 0)
    found["prefill"] = errors(y, expected(q, k, v, 0))
    if geometry.form == "causal":
        return found
    decode: list[dict[str, float]] = []
    same: dict[str, list[bool]] = {"in_place": [], "garbage_suffix_same": [], "nan_suffix_same": []}
    for live in sorted({1, prompt, geometry.capacity // 2 + 3, geometry.capacity - 1}):
        q, k, v = draw(geometry.heads, 1), draw(geometry.kv_heads, 1), draw(geometry.kv_heads, 1)
        old = [draw(geometry.kv_heads, geometry.capacity) for _ in range(2)]
        answers = []
        for filler in (0.0, 1e4, np.nan):
            cache = [array.copy() for array in old]
            for array in cache:
                array[:, :, live:] = filler
            step.fill(*cache)
            answers.append(step.run(q, k, v, live))
            if filler == 0.0:
                for array, new in zip(cache, (k, v), strict=True):
                    array[:, :, live : live + 1] = new
                now = step.cache()
                decode.append(errors(answers[0], expected(q, *cache, live)))
                same["in_place"].append(all(a.tobytes() == b.tobytes() for a, b in zip(cache, now, strict=True)))
        same["garbage_suffix_same"].append(answers[1].tobytes() == answers[0].tobytes())
        same["nan_suffix_same"].append(answers[2].tobytes() == answers[0].tobytes())
    found["decode"] = {name: max(row[name] for row in decode) for name in decode[0]}
    return found | {name: all(values) for name, values in same.items()}
