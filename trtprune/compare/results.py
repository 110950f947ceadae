"""The result of a comparison, as data; the command line and the report only render it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Comparison", "ComponentResult", "Layers", "OutputResult", "PointResult"]


@dataclass(frozen=True)
class OutputResult:
    """One output over all iterations; errors are the largest over the iterations.

    ``error`` is the checked statistic (``stat``), absolute; ``iteration`` has the largest. Errors are None if shapes
    differ, which ``worst`` says.
    """

    name: str
    passed: bool
    stat: str
    atol: float
    rtol: float
    error: float | None
    relative: float | None
    max_abs: float | None
    mean_abs: float | None
    median_abs: float | None
    iteration: str
    note: str = ""


@dataclass(frozen=True)
class PointResult:
    """One tensor inside a component, as :class:`OutputResult`, its rows scaled as in ``layerwise.by_row_size``.

    ``magnitude`` is the reference's mean absolute value.  Numbers that are not finite are None.
    """

    label: str
    passed: bool
    error: float | None
    relative: float | None
    max_abs: float | None
    mean_abs: float | None
    magnitude: float | None


@dataclass(frozen=True)
class Layers:
    """The place inside a component where the two sides begin to differ.

    Attributes:
        residual: The residual stream behind each layer, and points outside of layers, in order.
        inside: The modules of the first of these beyond tolerance.
        tensors: The tensors of the graph around the first of these modules, if both sides have them.
        first: The first tensor beyond tolerance, as exactly as the two sides allow; None: all are within.
        note: Parts that could not be compared, and the reason.
        stat, atol: The statistic of inner tensors, and its absolute tolerance.
    """

    residual: tuple[PointResult, ...]
    inside: tuple[PointResult, ...] = ()
    tensors: tuple[PointResult, ...] = ()
    first: str | None = None
    note: str = ""
    stat: str = "elemwise"
    atol: float = 0.0


@dataclass(frozen=True)
class ComponentResult:
    """One component; ``runtime_ms`` are mean times of one run of candidate and reference."""

    name: str
    passed: bool
    outputs: tuple[OutputResult, ...]
    iterations: tuple[str, ...]
    runtime_ms: tuple[float, float]
    candidate: str
    reference: str
    invalid: tuple[str, ...] = ()
    layers: Layers | None = None
    repeat: str | None = None


@dataclass(frozen=True)
class Comparison:
    """All components of one ``trtprune compare``."""

    directory: str
    against: str
    inputs: str
    dtypes: tuple[str, str]
    components: tuple[ComponentResult, ...]
    notes: tuple[str, ...] = field(default_factory=tuple)

    @property
    def passed(self) -> bool:
        """Whether every component is within tolerance."""
        return all(component.passed for component in self.components)

    def to_json(self) -> dict[str, Any]:
        """The data of ``--json`` and ``--report``."""
        return {"passed": self.passed, **dataclasses.asdict(self)}
