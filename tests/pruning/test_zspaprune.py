"""ZSPAPrune against a naive float64 greedy, and its options."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from tests.kit import pruning_cases as pc
from trtprune import pruning
from trtprune.errors import BudgetError

QUICK = {"deadline": None, "database": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}
ZSPA = pruning.get("zspaprune")


@pytest.mark.parametrize("diversity", ["maxmin", "meansim"])
@pytest.mark.parametrize("ratio", [0.5, 0.0, 0.3])
def test_against_naive_greedy(diversity: str, ratio: float) -> None:
    count: Counter[str] = Counter()

    @settings(max_examples=350, **QUICK)
    @given(pc.cases(max_tokens=20))
    def check(case: dict[str, Any]) -> None:
        got = ZSPA.reference(**pc.arguments(case), diversity=diversity, core_ratio=ratio)
        for row, picks in zip(pc.rows(case), got.tolist(), strict=True):
            oracle = pc.ZspaOracle(row, ratio, diversity)
            count["rows"] += 1
            if picks != oracle.exact():
                count["ties"] += 1
                assert oracle.explains(picks), (case["kind"], picks, oracle.exact())

    check()
    print(f"\nzspaprune {diversity} {ratio} against float64: {dict(count)}")
    assert count["rows"] > 500
    assert count["ties"] <= count["rows"] // 20, count


def hand_case() -> dict[str, Any]:
    """Unit vectors at 0°, 10°, 100°, 170° and 180°; the prompt at 0°."""
    angles = np.deg2rad([0, 10, 100, 170, 180])
    return {
        "image_features": np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32),
        "text_embeds": np.array([[2, 0.3], [1, -0.3]], np.float32),
    }


def test_by_hand() -> None:
    # Core {0°}; the most dissimilar is 180°.  Then maxmin looks at the nearest selected one: 100° is 80° from 180°, the
    # others are 10° from one of the two.  meansim compares sums, which 0° and 180° cancel to 0 for all: index order.
    case = hand_case()
    assert ZSPA.reference(**case, keep=1).tolist() == [0]
    assert ZSPA.reference(**case, keep=2).tolist() == [0, 4]
    assert ZSPA.reference(**case, keep=3, core_ratio=0.34).tolist() == [0, 2, 4]
    assert ZSPA.reference(**case, keep=2, core_ratio=1).tolist() == [0, 1]
    assert ZSPA.reference(**case, keep=5).tolist() == [0, 1, 2, 3, 4]


def test_diversity_rules_differ() -> None:
    """Two selected far apart and a third direction: the largest cosine and the mean cosine disagree."""
    image = np.array([[1, 0, 0], [0.9, 0.1, 0], [-1, 0, 0], [0, 0, 1], [-0.9, -0.4, 0]], np.float32)
    case = {"image_features": image, "text_embeds": np.array([[1, 0.05, 0]], np.float32)}
    assert ZSPA.reference(**case, keep=4, diversity="maxmin").tolist() == [0, 1, 2, 3]
    assert ZSPA.reference(**case, keep=4, diversity="meansim").tolist() == [0, 1, 2, 4]


@pytest.mark.parametrize(
    ("keep", "ratio", "core"), [(3, 0.5, 2), (5, 0.5, 3), (1, 0.0, 1), (10, 0.25, 3), (10, 0.24, 2)]
)
def test_core_is_rounded_half_up(keep: int, ratio: float, core: int) -> None:
    """Along one axis only relevance differs: the core is the head of the ranking, the rest comes from the tail."""
    angles = np.linspace(0, np.pi, 40)
    image = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    got = ZSPA.reference(image, text_embeds=np.array([[1, 0]], np.float32), keep=keep, core_ratio=ratio)
    head = 0
    while head in got:
        head += 1
    assert head == core


def test_needs_no_cls_attention() -> None:
    assert ZSPA.needs == {"text_embeds"}
    assert ZSPA.text_span({"prompt_tokens": "all_text"}) == "all"
    assert ZSPA.text_span() == "question"


@pytest.mark.parametrize("value", ["-0.1", "1.01", "half", "nan"])
def test_core_ratio_out_of_range(value: str) -> None:
    with pytest.raises(BudgetError, match="core_ratio"):
        ZSPA.validate_options({"core_ratio": value})
