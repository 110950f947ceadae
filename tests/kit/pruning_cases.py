"""Random inputs for the pruners, float64 oracles for the two methods with rounding, and reused sessions.

The oracles are written from the papers' formulas with plain loops and torch, not from ``trtprune.pruning``.  They also
say which *other* selections rounding can lead to: a selection that differs from the reference must be one of those.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
import numpy as np
import onnxruntime
import torch

from trtprune.graph import Graph
from trtprune.pruning import grids as grids_of
from trtprune.pruning.graph import build_pruner

WIDTH = 12
WIDTHS = {"C": 10, "K": 6, "P": 8}
"""Of the tower's features, its keys and CLIP's joint space: each its own, so that none passes for another."""
HEADS = {"H": 4, "G": 2, "W": 5}
"""Query heads and key heads of the decoder's first layer, and the width of one."""
UNIT = 2.0**-24  # rounding unit of float32
KINDS = ("normal", "aligned", "integer", "few rows", "constant", "peaked", "holes")
_COMBINATIONS = 3000


@st.composite
def cases(draw: st.DrawFn, max_tokens: int = 48, sizes: tuple[int, ...] = ()) -> dict[str, Any]:
    """Inputs of one batch: all of ``trtprune.pruning.inputs.INPUTS``, text mask, seed, grid, keep.

    Only sizes and the kind of data are drawn; the numbers come from a generator, so that a case costs a millisecond.
    Most kinds use small integers: their dot products are exact, so that equal scores are exactly equal.
    """
    tokens = draw(st.sampled_from(sizes)) if sizes else draw(st.integers(1, max_tokens))
    keep = draw(st.one_of(st.just(1), st.just(tokens), st.integers(1, tokens)))
    batch = draw(st.integers(1, 3))
    text = draw(st.one_of(st.just(1), st.integers(1, 9)))
    kind = draw(st.sampled_from(KINDS))
    number = draw(st.integers(0, 2**32 - 1))
    grid = draw(st.sampled_from(grids(tokens))) if tokens <= max_tokens else None
    return make(number, batch, tokens, text, keep, kind, grid)


def grids(tokens: int) -> list[tuple[int, int]]:
    """Every (rows, columns) of ``tokens`` patches, the squarest first, wider ones before taller ones."""
    found = [(tokens // c, c) for c in range(1, tokens + 1) if tokens % c == 0]
    return sorted(found, key=lambda grid: (max(grid), -grid[1]))


def make(
    number: int, batch: int, tokens: int, text: int, keep: int, kind: str, grid: tuple[int, int] | None = None
) -> dict[str, Any]:
    """One batch of inputs; the same tokens have the same ``grid`` unless one is given."""
    rng = np.random.default_rng(number)
    features = rng.standard_normal((batch, tokens, WIDTH))
    embeds = rng.standard_normal((batch, text, WIDTH))
    cls = rng.random((batch, tokens)) ** 3
    if kind == "aligned":  # as real features are: close to one direction, so that the softmax is flat
        features, embeds = 0.25 * features + features[:1, :1], 0.25 * embeds + features[:1, :1]
    if kind == "peaked":  # text close to one token: the softmax of all others nearly vanishes
        embeds[:, 0] = 5 * features[:, tokens // 2] + 0.1 * embeds[:, 0]
    if kind not in ("normal", "aligned", "peaked"):
        features, embeds = np.round(1.5 * features), np.round(1.5 * embeds)
        cls = np.round(cls * 16) / 64
    if kind == "few rows":
        features = features[:, rng.integers(0, min(tokens, 4), tokens)]
        cls = cls[:, rng.integers(0, min(tokens, 4), tokens)]
    if kind == "constant":
        features[:], cls[:] = features[:, :1], cls[:, :1]
    if kind == "holes":
        features[rng.random((batch, tokens)) < 0.2] = 0
        features[rng.random((batch, tokens)) < 0.1] = np.inf
        features[rng.random((batch, tokens)) < 0.1, 0] = np.nan
        cls[rng.random((batch, tokens)) < 0.1] = np.nan
        embeds[rng.random((batch, text)) < 0.1] = np.nan
    mask = (rng.random((batch, text)) < 0.7).astype(np.int64)
    mask[:, 0] = 1
    if rng.random() < 0.5:
        mask[:] = 1
    embeds[mask == 0] = rng.choice([np.nan, 1e4, 0.0])  # padding must not matter, whatever is in it
    return {
        "image_features": features.astype(np.float32),
        "cls_attention": cls.astype(np.float32),
        "text_embeds": embeds.astype(np.float32),
        "text_mask": mask,
        "seed": int(rng.integers(0, 2**63)),
        "keep": keep,
        "kind": kind,
        "grid": grid or grids(tokens)[0],
        **_more(np.random.default_rng(number + 1), batch, tokens, kind),
        **_first_layer(np.random.default_rng(number + 2), batch, tokens, kind),
    }


def _more(rng: np.random.Generator, batch: int, tokens: int, kind: str) -> dict[str, np.ndarray]:
    """What the vision tower and CLIP return besides; drawn apart, so that the other inputs stay what they are."""
    segments = int(rng.integers(1, 4))
    found = {
        "vision_features": rng.standard_normal((batch, tokens, WIDTHS["C"])),
        "vision_keys": rng.standard_normal((batch, tokens, WIDTHS["K"])),
        "cls_feature": rng.standard_normal((batch, WIDTH)),
        "shallow_attention": rng.random((batch, tokens)) ** 3,
        "deep_attention": rng.random((batch, tokens)) ** 3,
        "clip_image_embeds": rng.standard_normal((batch, tokens, WIDTHS["P"])),
        "clip_text_embeds": rng.standard_normal((batch, segments, WIDTHS["P"])),
        "mean_query_attention": rng.random((batch, tokens)) ** 3,
    }
    per_token = [name for name in found if name not in ("cls_feature", "clip_text_embeds")]
    if kind == "aligned":
        for name in ("vision_features", "vision_keys", "clip_image_embeds"):
            found[name] = 0.25 * found[name] + found[name][:1, :1]
    if kind == "peaked":
        found["clip_text_embeds"][:, 0] = 3 * found["clip_image_embeds"][:, tokens // 2]
    if kind not in ("normal", "aligned", "peaked"):
        for name, array in found.items():
            found[name] = np.round(array * 16) / 64 if name.endswith("_attention") else np.round(1.5 * array)
    for name in per_token if kind in ("few rows", "constant") else ():
        same = rng.integers(0, min(tokens, 4), tokens) if kind == "few rows" else np.zeros(tokens, np.int64)
        found[name] = found[name][:, same]
    if kind == "holes":
        for name in per_token:
            bad = found[name] if found[name].ndim == 2 else found[name][..., 0]
            if found[name].ndim == 3:
                found[name][rng.random((batch, tokens)) < 0.15] = 0
            bad[rng.random((batch, tokens)) < 0.1] = np.inf
            bad[rng.random((batch, tokens)) < 0.1] = np.nan
        found["clip_text_embeds"][rng.random((batch, segments)) < 0.2] = np.nan
    return {name: array.astype(np.float32) for name, array in found.items()}


def _first_layer(rng: np.random.Generator, batch: int, tokens: int, kind: str) -> dict[str, np.ndarray]:
    """The text's query and the image's keys in the decoder's first layer."""
    heads, groups, width = HEADS.values()
    query, keys = rng.standard_normal((batch, heads, width)), rng.standard_normal((batch, groups, tokens, width))
    if kind == "peaked":
        query[:, 0] = 3 * keys[:, 0, tokens // 2]
    if kind not in ("normal", "aligned", "peaked"):
        query, keys = np.round(1.5 * query), np.round(1.5 * keys)
    if kind in ("few rows", "constant"):
        same = rng.integers(0, min(tokens, 4), tokens) if kind == "few rows" else np.zeros(tokens, np.int64)
        keys = keys[:, :, same]
    if kind == "holes":
        keys[:, 0, :, 0][rng.random((batch, tokens)) < 0.1] = np.inf
        keys[:, -1, :, -1][rng.random((batch, tokens)) < 0.1] = np.nan
    return {"text_query": query.astype(np.float32), "image_keys": keys.astype(np.float32)}


@functools.cache
def session(
    method: str,
    options: tuple[tuple[str, Any], ...] = (),
    dtype: str = "float32",
    width: int = WIDTH,
) -> onnxruntime.InferenceSession:
    return open_graph(build_pruner(method, width, dtype, options=dict(options)))


def open_graph(g: Graph) -> onnxruntime.InferenceSession:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(g.to_bytes(), settings, providers=["CPUExecutionProvider"])


def run(pruner: onnxruntime.InferenceSession, case: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """kept_indices and pruned_features of the graph."""
    feed = {i.name: np.asarray(case[i.name]) for i in pruner.get_inputs()}
    if "grid" in feed and feed["grid"].ndim == 1:  # rows and columns of one crop
        feed["grid"] = np.tile(grids_of.full_grid(*case["grid"]), (len(case["image_features"]), 1, 1))
    for name in ("seed", "keep"):
        if name in feed:
            feed[name] = feed[name].reshape(1).astype(np.int64)
    indices, features = pruner.run(["kept_indices", "pruned_features"], feed)
    return indices, features


def arguments(case: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in case.items() if k != "kind"}


def rows(case: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The images of a batch one by one, padding removed from the text."""
    for i in range(len(case["image_features"])):
        row = {name: value[i] if isinstance(value, np.ndarray) else value for name, value in case.items()}
        row["text_embeds"] = row["text_embeds"][row.pop("text_mask") != 0]
        yield row


def _finite(x: np.ndarray) -> np.ndarray:
    return np.isfinite(x).all(axis=1)


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosines in float64, those that are equal in exact arithmetic made equal."""
    unit = [torch.nn.functional.normalize(torch.from_numpy(x.astype(np.float64)), dim=-1) for x in (a, b)]
    return np.round((unit[0] @ unit[1].T).numpy(), 13)


def _top_sets(scores: np.ndarray, count: int, slack: float) -> Iterator[set[int]]:
    """Every set of ``count`` tokens that is the top of ``scores`` when each is off by up to ``slack``.

    The first is the one without error, equal scores in index order.
    """
    order = sorted(range(len(scores)), key=lambda j: (-scores[j], j))
    yield set(order[:count])
    if 0 < count < len(scores):
        low, high = scores[order[count]], scores[order[count - 1]]
        sure = {j for j in order[:count] if scores[j] > low + 2 * slack}
        open_ = [j for j in order if j not in sure and scores[j] >= high - 2 * slack]
        for extra in itertools.islice(itertools.combinations(open_, count - len(sure)), _COMBINATIONS):
            yield sure | set(extra)


class AdaFvOracle:
    """§ method "adav" of the authors, for one image, in float64."""

    def __init__(
        self, row: dict[str, Any], mode: str = "distinct", temperature: float = 100.0, quota: float = 0.25
    ) -> None:
        features, text, cls = row["image_features"], row["text_embeds"], row["cls_attention"].astype(np.float64)
        self.mode, self.keep, tokens = mode, row["keep"], len(features)
        self.quota = int(quota * self.keep)
        good = _finite(features)
        text = text[_finite(text)]
        self.cls = np.where(np.isnan(cls), -2e30, cls)
        if len(text) == 0 or not good.any():
            self.log = np.zeros(tokens)
        else:
            logits = torch.full((len(text), tokens), -math.inf, dtype=torch.float64)
            logits[:, torch.from_numpy(good)] = temperature * torch.from_numpy(_cosines(text, features[good]))
            self.log = torch.log_softmax(logits, dim=1).max(dim=0).values.numpy()
        self.cls_order = sorted(range(tokens), key=lambda j: (-self.cls[j], j))
        # The bound of |log s| computed in float32: the dot products and norms (times the temperature), the sum of N
        # exponentials, its logarithm, and the roundings of numbers up to a few times the temperature.
        self.slack = UNIT * (temperature * (WIDTH + 8) + tokens + 6 * temperature + 64)

    def split(self) -> list[int]:
        """Every T2I count that rounding can choose; the first is the one without error."""
        keep, quota = self.keep, self.quota
        text_order = sorted(range(len(self.log)), key=lambda j: (-self.log[j], j))
        log = self.log[text_order[quota:keep]]
        l1 = [math.exp(x - log[0]) if x > -math.inf else 0.0 for x in log] if log[0] > -math.inf else [1.0] * len(log)
        l2 = [self.cls[j] for j in self.cls_order[quota:keep]]
        rest = keep - 2 * quota
        products = [math.fsum(l1[:k]) * math.fsum(l2[: rest - k]) for k in range(rest + 1)]
        best = max(range(rest + 1), key=lambda k: (products[k], -k))
        error = 4 * self.slack + 4 * UNIT * keep
        near = [k for k in range(rest + 1) if abs(products[k] - products[best]) <= error * abs(products[best])]
        return [quota + k for k in dict.fromkeys([best, *near])]

    def pick(self, from_text: set[int]) -> list[int]:
        count = self.keep - len(from_text)
        if self.mode == "official":
            return sorted([*from_text, *self.cls_order[:count]])
        return sorted([*from_text, *[j for j in self.cls_order if j not in from_text][:count]])

    def selections(self) -> Iterator[list[int]]:
        for count in self.split():
            for from_text in _top_sets(self.log, count, self.slack):
                yield self.pick(from_text)

    def decided(self) -> bool:
        """Whether no rounding within the bound changes the selection."""
        first = next(self.selections())
        return all(other == first for other in self.selections())


class ZspaOracle:
    """Relevance core and greedy diversity for one image, O(K · N · |S|), in float64."""

    def __init__(self, row: dict[str, Any], ratio: float = 0.5, diversity: str = "maxmin") -> None:
        features, text = row["image_features"], row["text_embeds"]
        self.keep, self.diversity = row["keep"], diversity
        self.good = _finite(features)
        safe = np.where(self.good[:, None], features, 0).astype(np.float64)
        text = text[_finite(text)].astype(np.float64)
        prompt = text.mean(axis=0) if len(text) else np.zeros(WIDTH)
        self.relevance = np.where(self.good, _cosines(prompt[None], safe)[0], -math.inf)
        self.similarity = _cosines(safe, safe)
        self.core = max(1, math.floor(ratio * self.keep + 0.5))
        # Dot products and norms; the sum over text cancels, so its error counts relative to the length of the result.
        spread = np.linalg.norm(text, axis=1).sum() / max(np.linalg.norm(prompt) * max(len(text), 1), 1e-300)
        self.core_slack = UNIT * (WIDTH + 8 + (len(text) + 2) * (spread if len(text) else 1.0))
        self.slack = UNIT * (WIDTH + 8) * (1 if diversity == "maxmin" else self.keep) + (
            UNIT * self.keep**2 if diversity == "meansim" else 0
        )

    def closeness(self, j: int, chosen: list[int]) -> float:
        if not self.good[j]:
            return 1e30
        values = [self.similarity[i, j] for i in chosen]
        # A token's closeness is compared with others': equal multisets of cosines must give equal sums.
        return max(values) if self.diversity == "maxmin" else round(math.fsum(values), 11)

    def greedy(self, core: set[int], wanted: set[int] | None) -> list[int] | None:
        """The greedy completion; with ``wanted``, ties within rounding are resolved towards it."""
        chosen = sorted(core)
        while len(chosen) < self.keep:
            close = {j: self.closeness(j, chosen) for j in range(len(self.good)) if j not in chosen}
            best = min(close.values())
            if wanted is None:
                chosen.append(min(j for j, c in close.items() if c == best))
                continue
            near = [j for j, c in close.items() if c <= best + 2 * self.slack and j in wanted]
            if not near:
                return None
            chosen.append(min(near, key=lambda j: (close[j], j)))
        return sorted(chosen)

    def exact(self) -> list[int]:
        result = self.greedy(next(_top_sets(self.relevance, self.core, 0)), None)
        assert result is not None
        return result

    def explains(self, got: list[int]) -> bool:
        wanted = set(got)
        for core in _top_sets(self.relevance, self.core, self.core_slack):
            if core <= wanted and self.greedy(core, wanted) == sorted(got):
                return True
        return False
