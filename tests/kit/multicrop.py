"""One image in several crops, made up from a seed: what the vectors in multicrop_vectors.json were computed from.

Every number is a small multiple of a power of two and comes from raw bits of PCG64, a stream that NumPy promises never
to change, so that any machine and any version makes the same arrays; the vectors hold their digest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

VECTORS = Path(__file__).parent.parent / "pruning" / "multicrop_vectors.json"
NAMES = (
    "image_features", "text_embeds", "cls_attention", "vision_features", "vision_keys", "shallow_attention",
    "deep_attention", "clip_image_embeds", "clip_text_embeds", "newline",
)  # fmt: skip
"""Each has its own stream of random bits: their order and number must not change."""
BEFORE = 35
"""Text tokens before the image, in the code of AdaV and DivPrune a constant."""
WIDTHS = {"vision_features": 6, "vision_keys": 8, "clip": 10}
SEGMENTS = 2
"""Text segments of CLIP's."""
SHARED, SINGLE = 12, 4
"""A row with ties has ones in its first 12 places and four of ±1 in the other 12: its length is 4."""
LEVELS = 16
"""Different values of attention where there are ties."""


@dataclasses.dataclass(frozen=True)
class Case:
    """The shape of one image's crops, and how their numbers are made up."""

    method: str
    seed: int
    side: int
    """Rows and columns of patches of a crop."""
    grid: tuple[int, int]
    """Rows and columns of tiles; the whole image is one more crop, the first."""
    kind: str = "smooth"
    """``smooth``: no two values are equal. ``ties``: attention has 16 values, and cosines are multiples of 1/16."""
    image: tuple[int, int] = (0, 0)
    """Height and width of the picture; (0, 0): of the tiles' own aspect ratio, so that nothing is padded."""
    width: int = 24
    """Columns of features behind the projector; 24 where there are ties."""
    text: int = 7
    """Text tokens behind the image."""

    @property
    def patches(self) -> int:
        return self.side * self.side

    @property
    def crops(self) -> int:
        return 1 + self.grid[0] * self.grid[1]

    @property
    def picture(self) -> tuple[int, int]:
        """Height and width of the picture, in any unit."""
        return self.image if any(self.image) else (self.grid[0] * self.side, self.grid[1] * self.side)


def cases(path: Path = VECTORS) -> list[tuple[Case, dict[str, Any]]]:
    """Every case of a vectors' file, with the record that holds its results."""
    names = {field.name for field in dataclasses.fields(Case)}
    listed = []
    for record in json.loads(path.read_text())["cases"]:
        values = {name: record[name] for name in names}
        case = Case(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
        listed.append((case, record))
    return listed


def inputs(case: Case) -> dict[str, np.ndarray]:
    """float32 arrays of C crops of P patches, crop by crop, the whole image first.

    image_features [C, P, D]; text_embeds [T, D]; cls_attention, shallow_attention, deep_attention [C, P];
    vision_features [C, P, 6]; vision_keys [C, P, 8]; clip_image_embeds [C, P, 10]; clip_text_embeds [2, 10];
    newline [D].
    """
    make = _ties if case.kind == "ties" else _smooth
    arrays = make(case)
    return {name: arrays[name].astype(np.float32) for name in NAMES}


def digest(arrays: dict[str, np.ndarray]) -> str:
    """The first 16 digits of the SHA-256 of all arrays, in the order of ``NAMES``."""
    bits = hashlib.sha256()
    for name in NAMES:
        bits.update(np.ascontiguousarray(arrays[name], "<f4").tobytes())
    return bits.hexdigest()[:16]


def bits(case: Case, name: str, count: int) -> np.ndarray:
    """``count`` numbers of 12 random bits for an array."""
    return (np.random.PCG64([case.seed, NAMES.index(name)]).random_raw(count) >> np.uint64(52)).astype(np.int64)


def _bell(case: Case, name: str, *shape: int) -> np.ndarray:
    """Values within ±2, multiples of 2^-12, most of them near 0."""
    return (bits(case, name, 4 * int(np.prod(shape))).reshape(*shape, 4).sum(axis=-1) - 8190) / 4096


def _around(case: Case, name: str, width: int, spread: float) -> np.ndarray:
    """Rows [C, P, width] around a direction that each crop shares with the others in part."""
    noise = _bell(case, name, case.crops + 1, case.patches, width)
    whole, crop = noise[-1, :1], noise[-1, 1 : case.crops + 1, None]
    return whole + crop / 4 + spread * noise[:-1]


def _permuted(case: Case, name: str) -> np.ndarray:
    """Different values [C, P] in (0, 1), a few of them much larger than the others; multiples of 2^-14."""
    count = case.crops * case.patches
    rank = np.argsort(np.argsort(bits(case, name, count), kind="stable"), kind="stable")
    return ((1 + rank + 2 * rank * rank // count) / 2**14).reshape(case.crops, case.patches)


def _smooth(case: Case) -> dict[str, np.ndarray]:
    crops, patches, width = case.crops, case.patches, case.width
    clip = _around(case, "clip_image_embeds", WIDTHS["clip"], 0.5)
    # Crops differ in how much they have to do with the text, so that it matters over what relevance is scaled.
    clip *= 2.0 ** -np.arange(crops)[:, None, None]
    clip += _bell(case, "clip_image_embeds", WIDTHS["clip"])
    image = _around(case, "image_features", width, 0.5)
    return {
        "image_features": image,
        "text_embeds": image.reshape(-1, width)[:1] / 2 + _bell(case, "text_embeds", case.text, width) / 2,
        "cls_attention": _permuted(case, "cls_attention"),
        "vision_features": _bell(case, "vision_features", crops, patches, WIDTHS["vision_features"]),
        "vision_keys": _bell(case, "vision_keys", crops, patches, WIDTHS["vision_keys"]),
        "shallow_attention": _permuted(case, "shallow_attention"),
        "deep_attention": _permuted(case, "deep_attention"),
        "clip_image_embeds": clip,
        "clip_text_embeds": _bell(case, "clip_text_embeds", SEGMENTS, WIDTHS["clip"]),
        "newline": _bell(case, "newline", width),
    }


def _exact(case: Case, name: str, *shape: int) -> np.ndarray:
    """Rows of length 4, whose cosines are multiples of 1/16 and exact in float32."""
    count = int(np.prod(shape))
    numbers = bits(case, name, count * (SHARED + 1)).reshape(count, SHARED + 1)
    rows = np.zeros((count, 2 * SHARED))
    rows[:, :SHARED] = 1
    places = np.argsort(numbers[:, :SHARED], axis=1, kind="stable")[:, :SINGLE] + SHARED
    signs = 1 - 2 * (numbers[:, SHARED:] >> np.arange(SINGLE) & 1)
    np.put_along_axis(rows, places, signs, axis=1)
    return rows.reshape(*shape, 2 * SHARED)


def _ties(case: Case) -> dict[str, np.ndarray]:
    crops, patches = case.crops, case.patches
    assert case.width == 2 * SHARED
    arrays = _smooth(case)
    for name in ("cls_attention", "shallow_attention", "deep_attention"):
        arrays[name] = (1 + bits(case, name, crops * patches).reshape(crops, patches) % LEVELS) / 64
    arrays["image_features"] = _exact(case, "image_features", crops, patches)
    arrays["text_embeds"] = _exact(case, "text_embeds", case.text)
    arrays["newline"] = _exact(case, "newline", 1)[0]
    return arrays


def raster(case: Case) -> np.ndarray:
    """The layout of most authors' code: ids [C · P] (crop · P + patch) in the order in which the decoder reads them.

    The whole image, then the tiles put together as one picture, row by row; padding stays, and no newline is added.
    """
    return np.concatenate([np.arange(case.patches), _picture(case).ravel()])


def unpadded(case: Case) -> np.ndarray:
    """The layout of LLaVA-NeXT itself: as :func:`raster`, padding cut off, and -1, a newline, behind each row of it."""
    picture, (height, width) = _picture(case), case.picture
    rows, columns = picture.shape
    if width / height > columns / rows:
        cut = (rows - int(height * (columns / width))) // 2
        picture = picture[cut : rows - cut]
    else:
        cut = (columns - int(width * (rows / height))) // 2
        picture = picture[:, cut : columns - cut]
    lines = np.concatenate([picture, np.full((len(picture), 1), -1)], axis=1)
    return np.concatenate([np.arange(case.patches), lines.ravel()])


def _picture(case: Case) -> np.ndarray:
    """Ids of the tiles' patches [rows · side, columns · side]."""
    tiles = np.arange(case.patches, case.crops * case.patches).reshape(*case.grid, case.side, case.side)
    return tiles.transpose(0, 2, 1, 3).reshape(case.grid[0] * case.side, case.grid[1] * case.side)


def positions(case: Case, ids: Sequence[int]) -> np.ndarray:
    """Positions in the layout of :func:`raster` of patches named by their ids."""
    return np.argsort(raster(case))[np.asarray(ids, np.int64)]
