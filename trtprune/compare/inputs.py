"""The inputs of both sides: dtype, budget, fit with the profiles, and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trtprune.compare._require import as_error, polygraphy
from trtprune.compare.numerics import Feed
from trtprune.compiler.budget import check_keep
from trtprune.errors import InputError
from trtprune.tensor_names import is_past

if TYPE_CHECKING:
    from trtprune.engine_dir import ComponentInfo

__all__ = ["check_feeds", "check_keep", "fit_profile", "load_feeds", "narrow", "wire_dtype"]


def wire_dtype(dtype: str) -> np.dtype:
    """The dtype of an input array: float32 for bfloat16, because NumPy's files and Polygraphy lack it."""
    return np.dtype("float32" if dtype == "bfloat16" else dtype)


def narrow(array: np.ndarray, dtypes: Sequence[str]) -> np.ndarray:
    """Rounds to numbers that all of ``dtypes`` can represent, so that no side rounds its inputs."""
    for dtype in dtypes:
        if dtype == "bfloat16":
            import ml_dtypes

            array = array.astype(ml_dtypes.bfloat16).astype(np.float32)
        elif dtype == "float16":
            array = array.astype(np.float16)
    return array


def fit_profile(component: ComponentInfo, feed: Mapping[str, np.ndarray]) -> None:
    """Refuses inputs that no profile of the component's engine serves.

    Raises:
        InputError: naming the input, its shape and the engine's range.
    """
    if not component.profiles or component.engine is None:
        return
    misfits = []
    for profile in component.profiles:
        wrong = None
        for name, (low, _, high) in profile.items():
            if name not in feed or is_past(name):
                continue  # the engine's runner extends caches to the engine's capacity
            have = tuple(feed[name].tolist()) if name == "keep" else feed[name].shape
            if len(have) != len(low) or not all(a <= b <= c for a, b, c in zip(low, have, high, strict=True)):
                wrong = f"{name} {list(have)}, and the engine takes {list(low)} to {list(high)}"
        if wrong is None:
            return
        misfits.append(wrong)
    raise InputError(
        f"{component.name}: input {misfits[0]}",
        hint="smaller --batch-size, --text-tokens or --keep, or build with larger limits",
    )


def load_feeds(path: Path) -> list[Feed]:
    """Inputs from a file or directory of ``--save-inputs`` or Polygraphy.

    Raises:
        InputError: if it cannot be read or has other content.
    """
    polygraphy()
    from polygraphy.comparator.data_loader import StreamingDataLoader

    if not path.exists():
        raise InputError(f"--load-inputs {path}: no such file", hint="a file that --save-inputs wrote")
    bad = "a JSON file that --save-inputs, or Polygraphy, wrote"
    try:
        with as_error(f"--load-inputs {path}"):
            loaded: list[Any] = list(StreamingDataLoader(str(path)))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"--load-inputs {path}: cannot be read: {str(error)[:200]}", hint=bad) from None
    for feed in loaded:
        if not isinstance(feed, dict) or not all(isinstance(array, np.ndarray) for array in feed.values()):
            raise InputError(f"--load-inputs {path}: holds no inputs (name: array)", hint=bad)
    if not loaded:
        raise InputError(f"--load-inputs {path}: is empty", hint=bad)
    return [dict(feed) for feed in loaded]


def check_feeds(component: ComponentInfo, feeds: Sequence[Feed], path: Path) -> None:
    """Refuses loaded inputs of another component: Polygraphy would match them by position.

    Raises:
        InputError: naming the input.
    """
    from trtprune.backends.binding import bind_dims
    from trtprune.errors import BackendError

    where = f"--load-inputs {path}: does not fit {component.name}"
    for feed in feeds:
        try:
            bind_dims(component.inputs, {name: array.shape for name, array in feed.items()})
        except BackendError as error:
            message = f"{where}: {error.marked_message}"
            raise InputError(message, hint="--component says which graph it is for") from None
        for spec in component.inputs:
            have, want = feed[spec.name].dtype, wire_dtype(spec.dtype)
            if have.kind != want.kind:
                raise InputError(f"{where}: input {spec.name} is {have}, the graph takes {spec.dtype}")
