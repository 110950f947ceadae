"""The inputs of a reference: checked, one image at a time, in float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from trtprune.arguments import arg
from trtprune.errors import InputError
from trtprune.pruning.grids import MOST_CROPS, full_grid
from trtprune.pruning.inputs import INPUTS

__all__ = ["read_images"]


def read_images(
    method: str,
    needs: frozenset[str],
    image_features: Any,
    inputs: Mapping[str, Any],
    *,
    of_each_crop: frozenset[str] = frozenset(),
) -> list[dict[str, Any]]:
    """The images of a batch, each with the inputs that the method needs.

    Args:
        method: The method's name, for errors.
        needs: :attr:`trtprune.pruning.Method.needs`.
        image_features: [N, D] or [B, N, D].
        inputs: Inputs by name; others are ignored.
        of_each_crop: :meth:`trtprune.pruning.BaseMethod.of_each_crop`.

    Returns:
        For each image ``image_features`` float32 [N, D] and each needed input by name, without the text rows that the
        mask excludes.

    Raises:
        InputError: for a missing input or one of the wrong shape.
    """
    features = np.asarray(image_features)
    if features.ndim not in (2, 3) or 0 in features.shape:
        raise InputError(f"image_features has shape {features.shape}; it must be [N, D] or [B, N, D] and not empty")
    batched, (tokens, width) = features.ndim == 3, features.shape[-2:]
    images: list[dict[str, Any]] = [{} for _ in range(features.shape[0] if batched else 1)]

    def give(name: str, array: Any, dims: tuple[int | str, ...], dtype: Any) -> None:
        for image, part in zip(images, _fitting(method, name, array, dims, features.shape), strict=True):
            image[name] = part.astype(dtype)

    give("image_features", features, (tokens, width), np.float32)
    sizes: dict[str, int] = {"N": tokens, "D": width}
    for name, entry in INPUTS.items():
        if name in needs:
            dtype = np.int64 if entry.dtype == "int64" else np.float32
            array = _grid(inputs.get(name), features.shape) if name == "grid" else inputs.get(name)
            crops = ("crops",) if name in of_each_crop else ()
            give(name, array, (*crops, *entry.shape(sizes)), dtype)
    if "text_embeds" in needs and inputs.get("text_mask") is not None:
        give("text_mask", inputs["text_mask"], (images[0]["text_embeds"].shape[0],), np.bool_)
        for image in images:
            image["text_embeds"] = image["text_embeds"][image.pop("text_mask")]
    if "seed" in needs:
        seed = _seed(inputs.get("seed"))
        for image in images:
            image["seed"] = seed
    return images


def _grid(grid: Any, features: tuple[int, ...]) -> np.ndarray | None:
    r"""A grid as int64 [\*batch, N, 3]; rows and columns of patches stand for that of one whole crop."""
    if grid is None:
        return None
    array = np.asarray(grid)
    if array.dtype.kind not in "iu":
        raise InputError(f"grid is {array.dtype.name}; crop, row and column are whole numbers")
    if array.shape == (2,):
        rows, columns = (int(side) for side in array)
        if min(rows, columns) < 1 or rows * columns != features[-2]:
            raise InputError(f"grid has {rows} rows and {columns} columns; there are {features[-2]} visual tokens")
        array = full_grid(rows, columns)
    if array.ndim == 2:
        array = np.broadcast_to(array, (*features[:-2], *array.shape))
    if array.size and not (array.min() >= -1 and array.max() < 1 << 20 and array[..., 0].max() < MOST_CROPS):
        raise InputError(f"grid: crop, row and column must lie between -1 and {1 << 20}, crops below {MOST_CROPS}")
    return array.astype(np.int64)


def _fitting(method: str, name: str, array: Any, dims: tuple[int | str, ...], features: tuple[int, ...]) -> np.ndarray:
    r"""``array`` as [B, \*dims], if it fits image features of that shape."""
    if array is None:
        raise InputError(f"method {method} needs {name}")
    array = np.asarray(array)
    wanted = (*features[:-2], *dims)
    fits = array.ndim == len(wanted) and all(
        isinstance(w, str) or w == a for w, a in zip(wanted, array.shape, strict=True)
    )
    if not fits or 0 in array.shape:
        raise InputError(
            f"{name} has shape {array.shape}; with image_features {features} it must be [{', '.join(map(str, wanted))}]"
        )
    return array if len(features) == 3 else array[None]


def _seed(seed: Any) -> int:
    number = 0 if seed is None else int(np.asarray(seed).reshape(()))
    if not 0 <= number < 2**63:
        raise InputError(f"{arg('seed', number)}: out of range", hint="0 to 2**63 - 1")
    return number
