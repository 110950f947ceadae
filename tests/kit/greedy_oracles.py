"""Float64 oracles of the greedy methods, written from the papers' formulas and not from ``trtprune.pruning``.

An oracle knows the value of every token given those chosen before, computed afresh in each step, and how far rounding
can move it.  So it says what the choice is, and whether another choice is one that rounding leads to.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.kit.pruning_cases import UNIT

Array = np.ndarray
BAD = -1e30


class Vectors:
    """Rows of one image: which are finite, their cosines (those equal in exact arithmetic made equal), and errors."""

    def __init__(self, rows: Array, center: bool = False) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            self.good = np.sqrt((rows.astype(np.float32) ** 2).sum(axis=1, dtype=np.float64)) < 1e19
        rows = np.where(self.good[:, None], rows, 0).astype(np.float64)
        self.unit, length = _unit(rows)
        self.width, self.error = rows.shape[1], UNIT * (rows.shape[1] + 8)
        if center:
            moved = np.where(self.good[:, None], rows - rows.sum(axis=0) / max(self.good.sum(), 1), 0)
            away = np.linalg.norm(moved, axis=1)
            clear = away > 1e-5 * np.maximum(length, 1e-12)
            self.unit, _ = _unit(np.where(clear[:, None], moved, 0))
            worst = (length[clear] / away[clear]).max() if clear.any() else 0
            self.error *= 1 + 4 * worst

    def cosines(self, other: Vectors | None = None) -> Array:
        return np.round(self.unit @ (other or self).unit.T, 13)


def _unit(rows: Array) -> tuple[Array, Array]:
    length = np.linalg.norm(rows, axis=1)
    return rows / np.maximum(length, 1e-12)[:, None], length


def scaled(values: Array, good: Array, above: float = 0.0, widen: float = 0.0, least: float = 0.0) -> Array:
    """Min-max over the good ones; all 1 where the range is not above ``least``."""
    if not good.any():
        return np.zeros(len(values))
    low, high = values[good].min(), values[good].max()
    with np.errstate(invalid="ignore"):
        span = high - low + widen
        result = (values - low + above) / span if span > least else np.ones(len(values))
    return np.where(good, result, 0)


def rarity(features: Array, good: Array) -> tuple[Array, float]:
    """Cen-Prune's g from its definition, and its error; ``good`` are the tokens that can be chosen."""
    vectors = Vectors(features)
    similarity, count = vectors.cosines(), len(features)
    np.fill_diagonal(similarity, 0)
    mean = np.round(similarity.sum(axis=1) / count, 11)
    span = np.ptp(mean[good]) if good.any() else 0
    return scaled(-mean, good, least=1e-5), 4 * UNIT * (vectors.width + count + 8) / span if span else 0.0


class Oracle:
    """``values(chosen)`` is what is maximised; ``slack`` is how far each may be off."""

    good: Array
    slack: float | Array = 0.0

    def __init__(self, row: dict[str, Any], options: dict[str, Any]) -> None:
        self.row, self.options, self.keep = row, options, row["keep"]
        self.prepare(center=options.get("center") == "true")

    def prepare(self, center: bool) -> None:
        raise NotImplementedError

    def values(self, chosen: list[int]) -> Array:
        raise NotImplementedError

    def choose(self, wanted: set[int] | None = None) -> list[int] | None:
        """The choice; with ``wanted``, what is within rounding of the best is resolved towards it."""
        chosen: list[int] = []
        while len(chosen) < self.keep:
            values = np.where(self.good, np.round(self.values(chosen), 11), BAD)
            values[chosen] = -np.inf
            best = int(np.argmax(values))
            if wanted is not None:
                near = values + 2 * np.broadcast_to(self.slack, values.shape) >= values[best] - 2 * np.max(self.slack)
                left = [j for j in np.flatnonzero(near) if j in wanted and j not in chosen]
                if not left or (values[best] > BAD) != (values[left].max() > BAD):
                    return None
                best = max(left, key=lambda j: (values[j], -j))
            chosen.append(int(best))
        return sorted(chosen)

    def explains(self, got: list[int]) -> bool:
        return self.choose(set(got)) == sorted(got)


class DivPruneOracle(Oracle):
    def prepare(self, center: bool) -> None:
        vectors = Vectors(self.row["image_features"], center)
        self.good, self.distance, self.slack = vectors.good, 1 - vectors.cosines(), vectors.error
        if center:
            factor, error = rarity(self.row["image_features"], self.good)
            self.distance = factor[None, :] * self.distance
            self.slack += 2 * error

    def values(self, chosen: list[int]) -> Array:
        if chosen:
            return self.distance[chosen].min(axis=0)
        others = np.where(self.good[:, None] & ~np.eye(len(self.good), dtype=bool), self.distance, 9.0)
        return others.min(axis=0)


class MmrOracle(Oracle):
    def prepare(self, center: bool) -> None:
        vectors, cls = Vectors(self.row["image_features"], center), self.row["cls_attention"].astype(np.float64)
        self.good = vectors.good & ~np.isnan(cls)
        self.worth = scaled(np.nan_to_num(cls), self.good, widen=1e-6)
        self.similarity, self.slack = vectors.cosines(), vectors.error + 16 * UNIT

    def values(self, chosen: list[int]) -> Array:
        weight = self.options.get("importance", 0.5)
        if not chosen:
            return self.worth
        return weight * self.worth - (1 - weight) * self.similarity[chosen].max(axis=0)


class ScoreOracle(Oracle):
    def prepare(self, center: bool) -> None:
        vectors, cls = Vectors(self.row["vision_features"], center), self.row["cls_attention"].astype(np.float64)
        self.good = vectors.good & Vectors(self.row["image_features"]).good & ~np.isnan(cls)
        self.salient = np.maximum(np.nan_to_num(cls), 0)
        self.weight = self.salient ** self.options.get("alpha", 1.0)
        self.distance, self.slack = 1 - vectors.cosines(), self.weight * (vectors.error + 8 * UNIT)

    def values(self, chosen: list[int]) -> Array:
        return self.weight * self.distance[chosen].min(axis=0) if chosen else self.salient


class CoverOracle(Oracle):
    """``cover`` [R, N] as in the papers: what is covered by what."""

    cover: Array
    weight: Array | None = None

    def values(self, chosen: list[int]) -> Array:
        best = self.cover[:, chosen].max(axis=1, initial=0)
        gain = np.maximum(self.cover - best[:, None], 0).sum(axis=0)
        if self.weight is None:
            return gain
        return gain + self.weight if self.options.get("combine") == "add" else gain * self.weight


class ScopeOracle(CoverOracle):
    def prepare(self, center: bool) -> None:
        vectors, cls = Vectors(self.row["vision_features"], center), self.row["cls_attention"].astype(np.float64)
        self.good = vectors.good & Vectors(self.row["image_features"]).good & ~np.isnan(cls)
        self.weight = np.maximum(np.nan_to_num(cls), 0) ** self.options.get("alpha", 1.0)
        self.cover, many = vectors.cosines(), len(cls)
        weight = 1.0 if self.options.get("combine") == "add" else self.weight
        self.slack = weight * many * (vectors.error + UNIT * many) + 16 * UNIT * self.weight


class MmTokOracle(CoverOracle):
    def prepare(self, center: bool) -> None:
        image, seen = Vectors(self.row["image_features"]), Vectors(self.row["vision_features"], center)
        text = Vectors(self.row["text_embeds"])
        self.good = image.good & seen.good
        parts, self.slack = [], 0.0
        for cosine, rows, temperature, share, error in (
            (text.cosines(image), text.good, 0.02, 1 / max(text.good.sum(), 1), image.error),
            (seen.cosines(), self.good, 0.2, 0.5 / len(self.good), seen.error),
        ):
            logits = np.where(self.good, cosine / temperature, -np.inf)
            power = np.exp(logits - logits.max(axis=1, keepdims=True)) if self.good.any() else np.zeros(logits.shape)
            part = np.where(rows[:, None], power / np.maximum(power.sum(axis=1, keepdims=True), 1e-300), 0) * share
            parts.append(part)
            self.slack += 2 * (error / temperature + UNIT * (len(self.good) + 40)) * part.sum(axis=0).max(initial=0)
        self.cover = np.concatenate(parts)


class CdPrunerOracle(Oracle):
    def prepare(self, center: bool) -> None:
        vectors = Vectors(self.row["image_features"], center)
        prompt = self.options.get("relevance") == "prompt"
        factor, error = self.likeness() if prompt else self.clip(vectors.good)
        if "theta" in self.options:
            slope = float(self.options["theta"]) / (2 * (1 - float(self.options["theta"])))
            factor, error = np.exp(slope * factor), error * slope * np.exp(slope * factor.max())
        if center:
            rare, more = rarity(self.row["image_features"], self.good)
            factor, error = factor * rare, error + more * factor.max(initial=0)
        factor = np.where(self.good, factor, 0)
        weight = float(self.options.get("weight", 0.5 if prompt else 1))
        self.kernel = ((1 - weight) + weight * factor[:, None] * factor) * vectors.cosines()
        factor = np.sqrt((1 - weight) + weight * factor**2)
        diagonal = np.maximum(np.diag(self.kernel), 0)
        self.floor = 1e-5 * np.sqrt(diagonal * diagonal.max())
        top = factor.max(initial=0)
        self.slack = 3 * self.floor + 4 * (vectors.error * self.keep * factor + error) * top

    def clip(self, good: Array) -> tuple[Array, float]:
        """r and its error: CLIP's cosine to the question."""
        patches, text = Vectors(self.row["clip_image_embeds"]), Vectors(self.row["clip_text_embeds"])
        self.good = good & patches.good
        sign = 1 if self.options.get("relevance") == "positive" else -1
        mean = np.round(sign * patches.cosines(text).mean(axis=1), 11)
        span = np.ptp(mean[self.good]) if self.good.any() else 0
        return scaled(mean, self.good, above=1e-6, least=1e-6), 4 * patches.error / span if span else 0.0

    def likeness(self) -> tuple[Array, float]:
        """r and its error: the cosine to the mean of the prompt's embeddings."""
        image, text = Vectors(self.row["image_features"]), Vectors(self.row["text_embeds"])
        self.good = image.good
        rows = self.row["text_embeds"][text.good].astype(np.float64)
        mean = rows.mean(axis=0) if len(rows) else np.zeros(image.width)
        cosine = np.round(image.unit @ mean / max(np.linalg.norm(mean), 1e-12), 11)
        span = np.ptp(cosine[self.good]) if self.good.any() else 0
        # The sum over text cancels, so its error counts relative to the length of the result.
        spread = np.linalg.norm(rows, axis=1).sum() / max(np.linalg.norm(mean) * len(rows), 1e-300) if len(rows) else 1
        error = image.error * (1 + spread) * (len(rows) + 2)
        return scaled(cosine, self.good, widen=1e-6, least=2e-6), 4 * error / max(span, 1e-6)

    def values(self, chosen: list[int]) -> Array:
        """What each token adds to the determinant: det with it over det without, by orthogonal elimination."""
        kernel = self.kernel.copy()
        for j in chosen:
            if kernel[j, j] > self.floor[j]:
                kernel -= np.outer(kernel[:, j], kernel[j]) / kernel[j, j]
        left = np.diag(kernel)
        return np.where(left > self.floor, left, 0)


class DartOracle:
    def __init__(self, row: dict[str, Any], options: dict[str, Any]) -> None:
        image, text = Vectors(row["image_features"]), Vectors(row["text_embeds"])
        self.good, self.keep, self.slack = image.good, row["keep"], image.error
        size = [np.where(v.good, np.abs(rows).astype(np.float64).sum(axis=1), -1) for v, rows in (
            (image, np.nan_to_num(row["image_features"])), (text, np.nan_to_num(row["text_embeds"])))]  # fmt: skip
        self.first = _largest(size[0])[: min(options.get("image_pivots", 4), self.keep)]
        words = _largest(size[1])[: min(options.get("text_pivots", 4), text.good.sum())]
        self.cosine = np.concatenate([image.cosines()[self.first], text.cosines(image)[words]])

    def choose(self, wanted: set[int] | None = None) -> list[int]:
        chosen = list(self.first)
        each = int(np.ceil((self.keep - len(chosen)) / len(self.cosine)))
        for cosine in self.cosine:
            left = [j for j in range(len(cosine)) if j not in chosen]
            order = sorted(left, key=lambda j: (not self.good[j], cosine[j], j))
            take = min(each, self.keep - len(chosen), len(order))
            if wanted is not None and 0 < take < len(order):
                edge = cosine[order[take - 1]]
                order.sort(key=lambda j: (not self.good[j], cosine[j] > edge - 2 * self.slack, j not in wanted))
            chosen += order[:take]
        return sorted(int(j) for j in chosen)

    def explains(self, got: list[int]) -> bool:
        return self.choose(set(got)) == sorted(got)


def _largest(size: Array) -> list[int]:
    return [int(j) for j in np.lexsort((np.arange(len(size)), -np.round(size, 6)))]


ORACLES: dict[str, Any] = {
    "divprune": DivPruneOracle,
    "cdpruner": CdPrunerOracle,
    "mmtok": MmTokOracle,
    "scope": ScopeOracle,
    "dart": DartOracle,
    "mmr": MmrOracle,
    "score": ScoreOracle,
}
