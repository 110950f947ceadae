"""The settings of a bench: the flags of ``trtprune bench``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from trtprune.backends.running import Running
from trtprune.errors import InputError

__all__ = ["PEERS", "PROMPT", "BenchSettings"]

PEERS = ("transformers", "openvino")
PROMPT = "What is the color of the largest shape?"


@dataclass(frozen=True)
class BenchSettings:
    """The settings of a bench.

    Attributes:
        keeps: Budgets; None: a third and a ninth of all tokens, and as built.
        methods: ``adafv,divprune:center=true``, or ``all``; None: as built.
        others: Engine directories of other methods; see :class:`trtprune.variants.Variants`.
        clip: The CLIP checkpoint of the vision tower, for methods that read its text.
        against: Peers in the same run, names of :data:`PEERS`.
        checkpoint: The checkpoint of the peer, or of a directory whose weights differ from it.
        image: The image; None: a generated scene.
        prompt: The question.
        rounds: Number of counted rounds; every cell runs once per round.
        warmup: Number of rounds before these.
        tokens: The length of every answer in tokens.
        seed: The seed of the order in each round.
        memory: Whether each build also runs in a process of its own, for its peak of memory.
        running: Provider, threads and checks.

    Raises:
        InputError: for an unknown peer, or answers too short to measure.
    """

    _: KW_ONLY
    keeps: Sequence[int] | None = None
    methods: str | None = None
    others: Sequence[str | os.PathLike[str]] = ()
    clip: str | None = None
    against: Sequence[str] = ()
    checkpoint: str | None = None
    image: str | Path | None = None
    prompt: str = PROMPT
    rounds: int = 10
    warmup: int = 2
    tokens: int = 16
    seed: int = 0
    memory: bool = True
    running: Running = field(default_factory=Running)

    def __post_init__(self) -> None:
        if self.tokens < 2:
            raise InputError(
                f"--max-new-tokens {self.tokens}: at least 2", hint="the second one is what ms/token is of"
            )
        for peer in self.against:
            if peer not in PEERS:
                raise InputError(f"--against {peer}: unknown", hint=f"of {', '.join(PEERS)}")

    @property
    def build_options(self) -> Mapping[str, Any] | None:
        """Options of the builds of other methods, beside the method."""
        return {"clip": self.clip} if self.clip else None
