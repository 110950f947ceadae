"""What each method keeps of an image in several crops, in loops over float64: the rules of the authors' code, retold.

Not in the shape of that code, and not in that of ``trtprune.pruning``. Scores are rounded to 11 digits behind the
point so that what is equal in exact arithmetic is equal here, and the lower index wins. ``multicrop_vectors.json``
holds these rules to the code itself. Positions are those of ``tests.kit.multicrop.raster``, for DivPrune those of
``unpadded``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tests.kit.multicrop import Case, positions, raster, unpadded

Arrays = dict[str, np.ndarray]


def best(scores: Sequence[float] | np.ndarray, count: int) -> list[int]:
    """The indices of the highest scores, best first."""
    return sorted(range(len(scores)), key=lambda j: (-scores[j], j))[:count]


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = (x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1)[:, None] for x in (a, b))
    return np.round(a @ b.T, 13)


def placed(case: Case, kept: Iterable[tuple[int, int]]) -> list[int]:
    """Positions, ascending, of patches named by crop and number."""
    return sorted(positions(case, [crop * case.patches + patch for crop, patch in kept]).tolist())


def each_crop(case: Case, kept: Iterable[Iterable[int]]) -> list[int]:
    """Positions of the patches that every crop keeps."""
    return placed(case, ((crop, patch) for crop, patches in enumerate(kept) for patch in patches))


def adafv(case: Case, arrays: Arrays, overall: int, mended: bool) -> tuple[int, list[int]]:
    """How many the text list picks, and the positions of all picks, ascending.

    Text scores and their ranks: over all crops. CLS ranks: within each crop, 2k of them. The share that is always
    taken of the CLS list is taken from the list of one crop after the other, so it is the whole image's first.
    """
    per_crop = 2 * (overall // 2 // case.crops)
    keep = per_crop * case.crops
    image = arrays["image_features"].reshape(-1, case.width)[raster(case)]
    scores = np.full(len(image), -np.inf)
    for row in 100 * cosines(arrays["text_embeds"], image):
        scores = np.maximum(scores, row - row.max() - math.log(np.exp(row - row.max()).sum()))
    scores = np.exp(np.round(scores, 10))
    by_text = best(scores, keep)
    cls = arrays["cls_attention"].astype(np.float64)
    by_cls = [(crop, patch) for crop in range(case.crops) for patch in best(cls[crop], per_crop)]
    always = keep // 4
    rest = sorted(by_cls[always:], key=lambda pick: -cls[pick])
    texts, others = [scores[j] for j in by_text[always:]], [cls[pick] for pick in rest]
    free = keep - 2 * always
    products = [math.fsum(texts[:n]) * math.fsum(others[: free - n]) for n in range(free + 1)]
    more = products.index(max(products))
    chosen = by_cls[:always] + rest[: free - more]
    where = [crop + patch for crop, patch in chosen]
    if mended:
        where = positions(case, [crop * case.patches + patch for crop, patch in chosen]).tolist()
    return always + more, sorted(by_text[: always + more] + where)


def fastervlm(case: Case, arrays: Arrays, each: int) -> list[int]:
    return each_crop(case, [best(crop, each) for crop in arrays["cls_attention"]])


def cdpruner(case: Case, arrays: Arrays, each: int, scale: str = "image") -> list[int]:
    """``scale``: relevance is scaled over the ``image`` (the code), or over each ``crop``."""
    text = arrays["clip_text_embeds"]
    relevance = np.array([-cosines(crop, text).mean(axis=1) for crop in arrays["clip_image_embeds"]])
    over = None if scale == "image" else 1
    low, high = relevance.min(over, keepdims=True), relevance.max(over, keepdims=True)
    relevance = (relevance - low + 1e-6) / (high - low)
    kept = []
    for crop, factor in zip(arrays["image_features"], relevance, strict=True):
        kernel, chosen = factor[:, None] * cosines(crop, crop) * factor, []
        for _ in range(each):
            gain = np.where(np.isin(np.arange(case.patches), chosen), -np.inf, np.round(np.diag(kernel), 11))
            pick = int(gain.argmax())
            kernel = kernel - np.outer(kernel[:, pick], kernel[pick]) / kernel[pick, pick]
            chosen.append(pick)
        kept.append(chosen)
    return each_crop(case, kept)


def divprune(case: Case, arrays: Arrays, ratio: float) -> list[int]:
    """Positions in the order of picking; newlines are tokens as all others, all equal to one another."""
    ids = unpadded(case)
    rows = arrays["image_features"].reshape(-1, case.width)[ids]
    rows[ids < 0] = arrays["newline"]
    distance = np.round(1 - cosines(rows, rows), 11)
    near = np.sort(distance, axis=0)[1]
    chosen: list[int] = []
    for _ in range(round(ratio * len(ids))):
        chosen.append(int(near.argmax()))
        near = distance[chosen].min(axis=0)
    return chosen


def vispruner(case: Case, arrays: Arrays, each: int) -> list[int]:
    kept = []
    for attention, features in zip(arrays["cls_attention"], arrays["vision_features"], strict=True):
        order, similarity = best(attention, case.patches), cosines(features, features)
        important, left = order[: each // 2], order[each // 2 :]
        while len(left) > each - len(important):
            even, odd = left[::2], left[1::2]
            gone = min(8, len(left) - (each - len(important)))
            scores = [similarity[j, odd].max() for j in even]
            left = [even[j] for j in best(scores, len(even))[gone:]] + odd
        kept.append([*important, *left])
    return each_crop(case, kept)


def hiprune(case: Case, arrays: Arrays, overall: int) -> list[int]:
    keep = overall // case.crops
    kept = []
    for shallow, deep in zip(arrays["shallow_attention"], arrays["deep_attention"], strict=True):
        chosen = set()
        for anchor in best(shallow, round(keep * 0.1 / 5)):
            for step in (0, -1, 1, -case.side, case.side):
                chosen.add(min(max(anchor + step, 0), case.patches - 1))
        others = [j for j in best(deep, case.patches) if j not in chosen]
        kept.append([*chosen, *others[: keep - len(chosen)]])
    return each_crop(case, kept)


def mmtok(case: Case, arrays: Arrays, each: int) -> list[int]:
    kept = []
    for image, seen in zip(arrays["image_features"], arrays["vision_features"], strict=True):
        cover = []
        for cosine, heat, share in (
            (cosines(arrays["text_embeds"], image), 0.02, 1.0),
            (cosines(seen, seen), 0.2, 0.5),
        ):
            power = np.exp(cosine / heat)
            cover.append(share * power / power.sum(axis=1, keepdims=True) / len(power))
        cover, chosen = np.concatenate(cover), []
        for _ in range(each):
            held = cover[:, chosen].max(axis=1, initial=0)
            gain = np.maximum(cover - held[:, None], 0).sum(axis=0)
            gain[chosen] = -1
            chosen.append(int(gain.argmax()))
        kept.append(chosen)
    return each_crop(case, kept)


def visionzip(case: Case, arrays: Arrays, dominant: int, contextual: int) -> dict[str, Any]:
    """``rows``, ``merged``, ``into`` as in the vectors: the whole image's rows together, those of the tiles by kind."""
    into = np.empty(case.crops * case.patches, np.int64)
    where = positions(case, range(case.crops * case.patches)).reshape(case.crops, case.patches)
    patches, contexts = [], []
    for crop in range(case.crops):
        chosen = sorted(best(arrays["cls_attention"][crop], dominant - 1))
        others = [j for j in range(case.patches) if j not in chosen]
        targets = others[:: max(1, len(others) // contextual)][:contextual]
        similarity = cosines(arrays["vision_keys"][crop], arrays["vision_keys"][crop])
        for j in range(case.patches):
            free = j not in chosen and j not in targets
            into[where[crop, j]] = where[crop, max(targets, key=lambda t: similarity[j, t]) if free else j]
        patches.append(where[crop, chosen].tolist())
        contexts.append(where[crop, targets].tolist())
    crops = range(1, case.crops)
    tiles = sorted(position for crop in crops for position in patches[crop])
    others = [position for crop in crops for position in contexts[crop]]
    rows = [-1, *patches[0], *contexts[0], *tiles, *(-1 - crop for crop in crops), *others]
    merged = [*range(dominant, dominant + contextual), *range(len(rows) - len(others), len(rows))]
    return {"rows": rows, "merged": merged, "into": into.tolist()}
