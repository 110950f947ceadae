"""Saves the graphs of an engine directory as this machine's kernels want them, so that it opens sooner."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trtprune.arguments import arg
from trtprune.backends.onnxruntime import prepacked
from trtprune.backends.onnxruntime.backend import OrtBackend
from trtprune.engine_dir import open_engine_dir
from trtprune.engine_dir.graphs import read_graph
from trtprune.errors import BackendError, InputError
from trtprune.files.cache import cache_root
from trtprune.reports.downloads import size as in_words
from trtprune.runtime.loading import load
from trtprune.tensor_names import LOGITS

if TYPE_CHECKING:
    from trtprune.backends.base import Session

__all__ = ["LIMIT", "Prepacked", "prepack", "unpack"]

LIMIT = 64 << 30
"""The most bytes of all prepacked graphs together, where nothing else is said."""


@dataclass(frozen=True)
class Prepacked:
    """The prepacked graphs of a directory.

    Attributes:
        folder: Their place in the cache.
        sizes: Bytes on disk by component.
        removed: Graph files, of other directories, whose prepacked form made room.
    """

    folder: Path
    sizes: Mapping[str, int]
    removed: tuple[str, ...]


def prepack(
    path: str | os.PathLike[str],
    *,
    provider_options: Mapping[str, str] | None = None,
    limit: int = LIMIT,
    progress: Callable[[str], None] = lambda line: None,
) -> Prepacked:
    """Saves the graphs of an engine directory in the form that ONNX Runtime's CPU provider makes of them at load.

    What opens the directory afterwards on this machine, with the same ONNX Runtime and the same provider options, maps
    the saved weights.  Answers do not change: a short one is computed before and after, and its logits must be equal to
    the bit.  Weights are saved twice, as they are and packed, in the precision of the kernels; those of graphs with
    quantised weights once, and packed at load.

    Args:
        path: The directory of a build.
        provider_options: The options it will be opened with; see :class:`OrtBackend`.
        limit: The most bytes of all prepacked graphs together; the least recently used ones of other directories are
            removed.
        progress: A function of one line.

    Raises:
        EngineDirError: if the directory is damaged or foreign.
        InputError: if the graphs can take more than ``limit``, or more than the disk has left.
        BackendError: if ONNX Runtime is missing or refuses a graph, or the cache cannot be written.
    """
    config = open_engine_dir(path)
    if config.backend != "onnxruntime" or config.built_with.get("provider", "cpu") != "cpu":
        raise InputError(
            f"{config.root}: prepacking is for ONNX Runtime's CPU provider",
            hint="this directory is opened by another one" if config.backend == "onnxruntime" else "it holds engines",
        )
    backend = OrtBackend("cpu", options=provider_options)
    asked = partial(_ask, path, provider_options)
    graphs = [config.root / component.onnx for component in config.components]
    _check_room(sum(map(_most_bytes, graphs)), limit)
    unpack(path)
    before = asked()
    sizes = {}
    for component in config.components:
        sizes[component.name] = backend.prepack(component, config.root)
        progress(f"{component.name}: {in_words(sizes[component.name])}")
    _check_saved(path, before, asked)
    removed = prepacked.shrink(limit, graphs)
    return Prepacked(cache_root() / "sessions", sizes, tuple(entry.onnx for entry in removed))


def unpack(path: str | os.PathLike[str]) -> int:
    """Removes the prepacked graphs of an engine directory; returns their bytes.

    Raises:
        EngineDirError: if the directory is damaged or foreign.
    """
    config = open_engine_dir(path, verify="none")
    return sum(prepacked.remove(config.root / component.onnx) for component in config.components)


class _Listener:
    """A session that keeps the logits of every run."""

    def __init__(self, session: Session, seen: list[np.ndarray]) -> None:
        self._session, self._seen = session, seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, inputs: Mapping[str, Any], cache: Any = None) -> Mapping[str, Any]:
        out = self._session.run(inputs, cache)
        if LOGITS in out:
            self._seen.append(np.array(out[LOGITS]))
        return out


def _ask(path: str | os.PathLike[str], options: Mapping[str, str] | None) -> list[np.ndarray]:
    """The logits behind each token of a short answer about a picture of noise."""
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    seen: list[np.ndarray] = []
    with (
        load(path, provider="cpu", provider_options=options, verify="none") as vlm,
        vlm.chain.wrapped(lambda component, session: _Listener(session, seen)),
    ):
        vlm.generate(noise, "?", max_new_tokens=3, ignore_eos=True)
    return seen


def _check_saved(path: str | os.PathLike[str], before: list[np.ndarray], asked: Callable[[], list[np.ndarray]]) -> None:
    """Removes what was saved if it does not compute the same logits, to the bit; raises BackendError then."""
    try:
        after = asked()
    except BackendError:
        after = []
    if len(after) == len(before) and all(map(np.array_equal, before, after)):
        return
    unpack(path)
    raise BackendError(
        f"{path}: ONNX Runtime computes other logits from the saved graphs, so they were removed",
        hint="open the directory as it is; another release of onnxruntime may do better",
    )


def _most_bytes(onnx: Path) -> int:
    """The most that a saved graph takes: each weight in float32, as it is and packed."""
    return 2 * sum(4 * math.prod(tensor.dims) for tensor in read_graph(onnx).graph.initializer)


def _check_room(need: int, limit: int) -> None:
    if need > limit:
        raise InputError(
            f"prepacked, the graphs take up to {in_words(need)}; {arg('limit')} is {in_words(limit)}",
            hint=f"a higher {arg('limit')}",
        )
    root = cache_root()
    existing = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if need > free:
        raise BackendError(
            f"prepacked, the graphs take up to {in_words(need)}; {root} has {in_words(free)} left",
            hint="free some space, or set TRTPRUNE_CACHE to a larger disk",
        )
