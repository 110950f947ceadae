"""The greedy methods: graph, NumPy reference and a float64 oracle choose the same tokens, but for ties by rounding."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings

from tests import pruning_cases as pc
from tests.greedy_oracles import ORACLES
from trtprune import pruning
from trtprune.graph import Lowering
from trtprune.pruning.graph import build_pruner

QUICK = {"deadline": None, "database": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("divprune", {}),
    ("divprune", {"center": "true"}),
    ("cdpruner", {}),
    ("cdpruner", {"center": "true", "relevance": "positive"}),
    ("cdpruner", {"theta": "0.5"}),
    ("mmtok", {}),
    ("mmtok", {"center": "true"}),
    ("scope", {}),
    ("scope", {"alpha": 2.0, "center": "true"}),
    ("scope", {"combine": "add"}),
    ("dart", {}),
    ("dart", {"image_pivots": 2, "text_pivots": 0}),
    ("mmr", {}),
    ("mmr", {"importance": 0.2, "center": "true"}),
]
COVERING = {"scope", "mmtok"}
FORMS = {"every": Lowering(), "lazy": Lowering(coverage="lazy"), "sm75": Lowering(products="primitives")}


def _id(value: Any) -> str:
    return value if isinstance(value, str) else ",".join(f"{k}={v}" for k, v in value.items()) or "default"


@pytest.mark.parametrize(("method", "options"), CASES, ids=_id)
def test_graph_reference_and_oracle(method: str, options: dict[str, Any]) -> None:
    forms = ["every", "lazy"] if method in COVERING else ["every", "sm75"] if method == "cdpruner" else ["every"]
    sessions = [pc.open_graph(build_pruner(method, pc.WIDTH, lowering=FORMS[form], options=options)) for form in forms]
    count: Counter[str] = Counter()

    def check(case: dict[str, Any]) -> None:
        found = {"reference": pruning.get(method).reference(**pc.arguments(case), **options)}
        for form, session in zip(forms, sessions, strict=True):
            found[form], features = pc.run(session, case)
            taken = np.take_along_axis(case["image_features"], found[form][..., None], axis=1)
            np.testing.assert_array_equal(features, taken)
        for number, row in enumerate(pc.rows(case)):
            oracle = ORACLES[method](row, options)
            exact = oracle.choose()
            count["rows"] += 1
            for name, indices in found.items():
                got = indices[number].tolist()
                assert sorted(set(got)) == got, (name, got)
                assert len(got) == case["keep"]
                if got != exact:
                    count[name] += 1
                    count[case["kind"]] += 1
                    assert oracle.explains(got), (name, case["kind"], got, exact)

    @settings(max_examples=70, **QUICK)
    @given(pc.cases(max_tokens=20))
    @example(pc.make(0, 1, 1, 1, 1, "integer"))
    @example(pc.make(1, 2, 1, 3, 1, "holes"))
    def small(case: dict[str, Any]) -> None:
        check(case)

    small()
    check(pc.make(0, 1, 577, 5, 16, "aligned"))
    print(f"\n{method} {options}: {dict(count)}")
    assert count["rows"] > 100
    for name in ("reference", *forms):
        assert count[name] <= count["rows"] // 12, count
