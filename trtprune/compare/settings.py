"""The settings of a comparison: the keywords of ``compare``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TypedDict

from trtprune.backends.running import Running
from trtprune.compare.draw import Draw
from trtprune.compare.tolerance import Tolerance

__all__ = ["CompareKeywords", "CompareSettings", "Question"]


@dataclass(frozen=True)
class Question:
    """A real input: images and a prompt."""

    images: tuple[str, ...]
    prompt: str
    system: str | None = None


class CompareKeywords(TypedDict, total=False):
    """The settings of a comparison as keyword arguments; :class:`CompareSettings` describes them."""

    components: Sequence[str]
    checkpoint: str | None
    draw: Draw
    question: Question | None
    load_inputs: Path | None
    tolerance: Tolerance
    validate: bool
    layerwise: bool
    save_inputs: Path | None
    save_outputs: Path | None
    allow_other_weights: bool
    running: Running


@dataclass(frozen=True)
class CompareSettings:
    """The settings of a comparison.

    Attributes:
        components: Names of components; empty: all that both sides have.
        checkpoint: Directory, alias or hub id of the checkpoint, for transformers; None: the recorded one.
        draw: Settings of random inputs, and the budget and number of decode steps of real ones.
        question: A real input instead of random ones.
        load_inputs: Saved inputs of one component instead.
        tolerance: Tolerances that replace the defaults of the dtypes.
        validate: Whether NaN and infinity in an output fail, too.
        layerwise: Whether to find the first inner tensor beyond tolerance.
        save_inputs, save_outputs: Files in Polygraphy's JSON; for several components ``FILE.COMPONENT.json``.
        allow_other_weights: Whether the reference may have other weights of the same sizes.
        running: Provider, threads and checks.
    """

    _: KW_ONLY
    components: Sequence[str] = ()
    checkpoint: str | None = None
    draw: Draw = field(default_factory=Draw)
    question: Question | None = None
    load_inputs: Path | None = None
    tolerance: Tolerance = field(default_factory=Tolerance)
    validate: bool = False
    layerwise: bool = False
    save_inputs: Path | None = None
    save_outputs: Path | None = None
    allow_other_weights: bool = False
    running: Running = field(default_factory=Running)
