"""Allowed differences of two outputs: Polygraphy's tolerances, with a default for each dtype.

Defaults, by the less precise of the two sides; none is ever widened because something failed:

* float32: ``elemwise``, absolute 1e-4 or relative 1e-5. 1e-4 is this project's bound of logits against transformers;
  1e-5, Polygraphy's own default, is float32's 6e-8 after some thousand additions, and matters only for numbers above
  10.
* float16, bfloat16: ``mean`` of 1e-2, absolute or relative: NVIDIA's recipe for float16 engines. The mean, because
  single elements of a residual stream in half precision differ by more than any useful bound.
* attention (``cls_attention``, ``mean_query_attention``, ``shallow_attention``, ``deep_attention``,
  ``rater_attention``): N numbers add up to 1, so the absolute tolerance above would accept anything. A score with an
  error of ε multiplies its weight by about 1 + ε: the absolute tolerance becomes the relative one, and 1/N of it the
  absolute one. In the tower, and packed, N is the features of a crop.
* ``kept_indices``: the same tokens, all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from trtprune.errors import InputError
from trtprune.tensor_names import KEPT_INDICES, PACKED, RATER_ATTENTION, SALIENCY

__all__ = ["STATS", "Tolerance", "defaults", "per_output"]

STATS = ("max", "mean", "median", "elemwise", "quantile")
QUANTILE = 0.99
T = TypeVar("T")


def per_output(flag: str, values: Sequence[str], convert: Callable[[str], T]) -> dict[str, T]:
    """Values of a flag in Polygraphy's spelling, ``[name:]value``; ``""`` is for all other outputs.

    Raises:
        InputError: for a value that does not convert.
    """
    found: dict[str, T] = {}
    for value in values:
        name, _, text = value.rpartition(":")
        try:
            found[name] = convert(text)
        except ValueError:
            raise InputError(f"{flag} {value}: not a valid value", hint=f"{flag} 1e-3, or {flag} logits:1e-3") from None
    return found


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number) or number < 0:
        raise ValueError(text)
    return number


def _fraction(text: str) -> float:
    number = _number(text)
    if number > 1:
        raise ValueError(text)
    return number


def _stat(text: str) -> str:
    if text not in STATS:
        raise ValueError(text)
    return text


@dataclass(frozen=True)
class Tolerance:
    """Tolerances by output name; ``""`` is for all other outputs."""

    atol: Mapping[str, float] = field(default_factory=dict)
    rtol: Mapping[str, float] = field(default_factory=dict)
    stat: Mapping[str, str] = field(default_factory=dict)
    quantile: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def parse(
        cls,
        atol: Sequence[str] = (),
        rtol: Sequence[str] = (),
        stat: Sequence[str] = (),
        quantile: Sequence[str] = (),
    ) -> Tolerance:
        """Tolerances from the command line's ``[name:]value``.

        Raises:
            InputError: naming the flag.
        """
        return cls(
            per_output("--atol", atol, _number),
            per_output("--rtol", rtol, _number),
            per_output("--check-error-stat", stat, _stat),
            per_output("--error-quantile", quantile, _fraction),
        )

    def over(self, base: Tolerance) -> Tolerance:
        """The user's tolerances, with defaults for the rest.

        A value without a name replaces the default of every output but the selection, which has no tolerance.
        """

        def merge(mine: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
            kept = {name: value for name, value in default.items() if name == KEPT_INDICES or "" not in mine}
            return {**kept, **mine}

        return Tolerance(
            merge(self.atol, base.atol),
            merge(self.rtol, base.rtol),
            merge(self.stat, base.stat),
            merge(self.quantile, base.quantile),
        )

    def of(self, output: str) -> tuple[str, float, float]:
        """(statistic, absolute, relative) for one output."""
        return tuple(  # type: ignore[return-value]
            table.get(output, table.get("")) for table in (self.stat, self.atol, self.rtol)
        )

    def compare_func(self) -> Any:
        """Polygraphy's comparison with these tolerances."""
        from polygraphy.comparator import CompareFunc

        return CompareFunc.simple(
            atol=dict(self.atol),
            rtol=dict(self.rtol),
            check_error_stat=dict(self.stat),
            error_quantile=dict(self.quantile),
        )


def defaults(dtype: str, visual_tokens: int, crop_features: int | None = None) -> Tolerance:
    """The defaults above for the less precise dtype of two sides.

    Args:
        dtype: That dtype.
        visual_tokens: The most visual tokens of an image.
        crop_features: Features of a crop; None: as many.
    """
    half = dtype in ("float16", "bfloat16")
    atol, rtol, stat = (1e-2, 1e-2, "mean") if half else (1e-4, 1e-5, "elemwise")
    share = atol / (crop_features or visual_tokens)
    rows = dict.fromkeys((*SALIENCY, *(PACKED + name for name in SALIENCY)), share)
    rows[RATER_ATTENTION] = atol / visual_tokens
    return Tolerance(
        {"": atol, **rows, KEPT_INDICES: 0.0},
        {"": rtol, **dict.fromkeys(rows, atol), KEPT_INDICES: 0.0},
        {"": stat, KEPT_INDICES: "max"},
        {"": QUANTILE},
    )
