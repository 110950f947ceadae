"""The components' inputs while a chain answers a real question.

The chain runs once with sessions that record their inputs, and the decoder's cache before each run.  Both sides of a
comparison then get the same inputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trtprune.backends.observed import ObservedSession
from trtprune.compare.numerics import Feed
from trtprune.engine_dir.roles import DECODER, PACK, VISION

if TYPE_CHECKING:
    from trtprune.backends.base import Backend
    from trtprune.engine_dir import ComponentInfo, EngineDir

__all__ = ["record"]


class _Backend:
    """A backend whose sessions record their inputs."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.seen: dict[str, list[Feed]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def session(self, component: ComponentInfo, root: Path) -> ObservedSession:
        """A session that copies its inputs and its cache before every run."""
        session: Any = self._backend.session(component, root)
        seen = self.seen.setdefault(component.name, [])

        def copy(inputs: Mapping[str, Any], cache: Any) -> None:
            feed = {name: np.array(array) for name, array in inputs.items()}
            if cache is not None:
                feed |= {pair.past: cache.read(pair.past) for pair in session.pairs}
            seen.append(feed)

        return ObservedSession(session, copy)


def record(
    made: EngineDir,
    backend: Backend,
    images: Sequence[str],
    prompt: str,
    *,
    keep: int | None,
    decode_steps: int,
    system: str | None = None,
) -> tuple[dict[str, list[Feed]], dict[str, list[str]]]:
    """Answers one question and returns the inputs of each component, and a description of each.

    Raises:
        InputError: for an image or prompt that cannot be used.
        BudgetError: for a budget the build does not serve.
        BackendError: if the graphs cannot be run.
    """
    from trtprune.runtime.pictures import max_pixels_from
    from trtprune.runtime.vlm import Vlm

    # The graphs run, whatever the directory's backend.
    plain = dataclasses.replace(made, backend="onnxruntime", engines=None)
    recorder: Any = _Backend(backend)
    vlm = Vlm(plain, recorder, max_pixels=max_pixels_from(None))
    settings: Any = {"max_new_tokens": 1 + decode_steps, "ignore_eos": True, "temperature": 0, "seed": 0}
    vlm.generate(list(images), prompt, keep=keep, system=system, **settings)
    names = {name: [f"run {i}" for i in range(len(feeds))] for name, feeds in recorder.seen.items()}
    for name in names:
        role = made.component(name).role
        if role == DECODER:
            steps = [f"decode {i}" for i in range(1, len(names[name]))]
            names[name] = ["prefill", *steps]
        elif len(names[name]) == 1:
            names[name] = ["picture" if role in (VISION, PACK) else "prompt"]
    return recorder.seen, names
