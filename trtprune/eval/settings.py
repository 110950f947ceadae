"""The settings of an evaluation: the keywords of ``evaluate``, and the flags of ``trtprune eval``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TypedDict

from trtprune.backends.running import Running
from trtprune.errors import InputError
from trtprune.eval.parts import Share

__all__ = ["EvalKeywords", "EvalSettings"]


class EvalKeywords(TypedDict, total=False):
    """The settings of an evaluation as keyword arguments; :class:`EvalSettings` describes them."""

    methods: str | None
    keeps: Sequence[int] | None
    metric: str | None
    limit: int | None
    seed: int
    images: Path | None
    strict: bool
    max_new_tokens: int
    prompt_suffix: str | None
    stop: Sequence[str]
    controls: bool
    force: bool
    so_far: bool
    part: str | None
    plot: bool | str | os.PathLike[str] | None
    others: Sequence[str | os.PathLike[str]]
    model: str | os.PathLike[str] | None
    clip: str | os.PathLike[str] | None
    provider: str | None
    provider_options: Mapping[str, str] | None
    threads: int | None
    verify: str
    max_pixels: int | None


@dataclass(frozen=True)
class EvalSettings:
    """The settings of an evaluation.

    Attributes:
        methods: ``adafv,divprune:center=true``, or ``all``; None: as built.
        keeps: Budgets; None: a third and a ninth of all tokens, and as built.
        metric: The metric, instead of the data's own.
        limit: The largest number of questions, drawn with ``seed``; None: all.
        seed: The seed of that draw, of method ``random``, of wrong pictures and of the bootstrap.
        images: The folder of the images, if it is not the usual one.
        strict: Whether a row that cannot be used is an error.
        max_new_tokens: The largest length of an answer in tokens.
        prompt_suffix: A line behind every question, instead of the set's own; "" for none.
        stop: Texts that end an answer.
        controls: Whether each question is also asked about a wrong and about a grey picture.
        force: Whether answers in the output are discarded.
        so_far: Whether to report on the answers in the output without asking more.
        part: ``1/2`` asks the first of two shares of the pictures, for processes side by side with one output; its
            answers go to results-1of2.jsonl. Without it the answers of all parts count, and the report is written.
        plot: Whether to draw accuracy.png, or another file; needs matplotlib; None: if that is installed.
        others: Engine directories of other methods; see :class:`trtprune.variants.Variants`.
        model: The checkpoint, if the directory's weights differ from it (quantised ones).
        clip: The CLIP checkpoint of the vision tower, for methods that read its text; see :func:`trtprune.build`.
        provider, provider_options, threads, verify: See :class:`trtprune.backends.running.Running`.
        max_pixels: Limit of an image's pixels; None: the default of ``load``.

    Raises:
        InputError: for an invalid length or part.
        BudgetError: for an unknown method or option.
    """

    _: KW_ONLY
    methods: str | None = None
    keeps: Sequence[int] | None = None
    metric: str | None = None
    limit: int | None = None
    seed: int = 0
    images: Path | None = None
    strict: bool = False
    max_new_tokens: int = 16
    prompt_suffix: str | None = None
    stop: Sequence[str] = ()
    controls: bool = False
    force: bool = False
    so_far: bool = False
    part: str | None = None
    plot: bool | str | os.PathLike[str] | None = None
    others: Sequence[str | os.PathLike[str]] = ()
    model: str | os.PathLike[str] | None = None
    clip: str | os.PathLike[str] | None = None
    provider: str | None = None
    provider_options: Mapping[str, str] | None = None
    threads: int | None = None
    verify: str = "auto"
    max_pixels: int | None = None

    def __post_init__(self) -> None:
        # Imports every method; the options of the command line do not need that.
        from trtprune.variants.planning import parse_methods

        _ = self.share
        if self.max_new_tokens < 1:
            raise InputError(f"--max-new-tokens {self.max_new_tokens}: must be at least 1")
        if self.methods is not None:
            parse_methods(self.methods)

    @property
    def share(self) -> Share | None:
        """The share of the images; None: all."""
        return None if self.part is None else Share.parse(self.part)

    @property
    def running(self) -> Running:
        """Settings of the builds' runs."""
        return Running(self.provider, self.provider_options or {}, self.threads, self.verify)

    def ask(self, question: str) -> str:
        """The text for the model, for a question of the data."""
        return f"{question}\n{self.prompt_suffix}" if self.prompt_suffix else question
