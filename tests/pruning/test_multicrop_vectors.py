"""The vectors of the authors' multi-crop code: their inputs can be made again, and the rules retold give the same."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from tests.kit import crop_rules, multicrop
from tests.kit.multicrop import Case

CASES = multicrop.cases()


def name(case: Case) -> str:
    return f"{case.method}-{case.side}-{case.grid[0]}x{case.grid[1]}-{case.kind}-{case.seed}"


def of(method: str) -> list[Any]:
    chosen = [pytest.param(case, record, id=name(case)) for case, record in CASES if case.method == method]
    assert len(chosen) >= 5
    return chosen


@pytest.mark.parametrize(("case", "record"), [pytest.param(*entry, id=name(entry[0])) for entry in CASES])
def test_inputs_are_those_of_the_vectors(case: Case, record: dict[str, Any]) -> None:
    arrays = multicrop.inputs(case)
    assert multicrop.digest(arrays) == record["digest"]
    assert all(np.isfinite(x).all() and x.dtype == np.float32 for x in arrays.values())


@pytest.mark.parametrize(("case", "record"), of("adafv"))
def test_adafv(case: Case, record: dict[str, Any]) -> None:
    arrays = multicrop.inputs(case)
    for run in record["runs"]:
        for form in ("official", "mended"):
            text, kept = crop_rules.adafv(case, arrays, run["overall"], form == "mended")
            assert (text, kept) == (run["text"], run[form])
            assert len(kept) == 2 * (run["overall"] // 2 // case.crops) * case.crops


def test_adafv_official_keeps_a_token_more_than_twice_and_no_cls_pick_beyond_the_first_crop() -> None:
    """What the wrong offset does: indices of all crops fall onto the whole image, onto one another as well."""
    case, record = next(entry for entry in CASES if entry[0].method == "adafv" and entry[0].side == 24)
    run = record["runs"][0]
    assert max(Counter(run["official"]).values()) > 2
    assert max(Counter(run["mended"]).values()) == 2
    beyond = [sum(p >= case.patches + case.crops for p in run[form]) for form in ("official", "mended")]
    assert beyond[0] <= run["text"] < beyond[1]


@pytest.mark.parametrize(("case", "record"), of("cdpruner"))
def test_cdpruner(case: Case, record: dict[str, Any]) -> None:
    arrays = multicrop.inputs(case)
    for run in record["runs"]:
        assert crop_rules.cdpruner(case, arrays, run["each"]) == run["kept"]


def test_cdpruner_scales_relevance_over_all_crops() -> None:
    apart = [
        crop_rules.cdpruner(case, multicrop.inputs(case), run["each"], scale="crop") != run["kept"]
        for case, record in CASES
        if case.method == "cdpruner"
        for run in record["runs"]
        if run["each"] > 1
    ]
    assert sum(apart) > len(apart) // 2


@pytest.mark.parametrize(("case", "record"), of("divprune"))
def test_divprune(case: Case, record: dict[str, Any]) -> None:
    arrays = multicrop.inputs(case)
    for run in record["runs"]:
        assert crop_rules.divprune(case, arrays, run["ratio"]) == run["picks"]


def test_divprune_picks_a_newline_where_it_is_far_from_all_else() -> None:
    newlines = [
        sum(int(multicrop.unpadded(case)[p] < 0) for p in run["picks"])
        for case, record in CASES
        if case.method == "divprune"
        for run in record["runs"]
    ]
    assert max(newlines) >= 1


@pytest.mark.parametrize(("case", "record"), of("visionzip"))
def test_visionzip(case: Case, record: dict[str, Any]) -> None:
    arrays = multicrop.inputs(case)
    for run in record["runs"]:
        found = crop_rules.visionzip(case, arrays, run["dominant"], run["contextual"])
        assert found == {key: run[key] for key in found}
        assert len(run["rows"]) == case.crops * (run["dominant"] + run["contextual"])


@pytest.mark.parametrize("method", ["fastervlm", "vispruner", "mmtok"])
def test_methods_with_a_budget_of_a_crop(method: str) -> None:
    for case, record in (entry.values for entry in of(method)):
        arrays = multicrop.inputs(case)
        for run in record["runs"]:
            kept = getattr(crop_rules, method)(case, arrays, run["each"])
            assert kept == run["kept"], name(case)
            assert len(kept) == case.crops * run["each"]


@pytest.mark.parametrize(("case", "record"), of("hiprune"))
def test_hiprune(case: Case, record: dict[str, Any]) -> None:
    arrays = multicrop.inputs(case)
    for run in record["runs"]:
        kept = crop_rules.hiprune(case, arrays, run["overall"])
        assert kept == run["kept"]
        assert len(kept) == case.crops * (run["overall"] // case.crops)


def test_layouts() -> None:
    case = Case("divprune", 0, side=2, grid=(1, 2), image=(1, 4))
    assert multicrop.raster(case).tolist() == [0, 1, 2, 3, 4, 5, 8, 9, 6, 7, 10, 11]
    # 1 x 4 on 2 x 4 patches: the height is 1, and half a row is cut from neither side.
    assert multicrop.unpadded(case).tolist() == [0, 1, 2, 3, 4, 5, 8, 9, -1, 6, 7, 10, 11, -1]
    real = {(336, 336): (2, 1), (480, 640): (2, 2), (640, 480): (2, 2), (720, 1280): (2, 2), (1000, 1000): (2, 2)}
    counts = {(336, 336): 1176, (480, 640): 2340, (640, 480): 2352, (720, 1280): 1948, (1000, 1000): 2928}
    for image, grid in real.items():
        assert len(multicrop.unpadded(Case("divprune", 0, side=24, grid=grid, image=image))) == counts[image]
    wide = Case("divprune", 0, side=24, grid=(1, 2), image=(10, 1000))
    assert len(multicrop.unpadded(wide)) == 576
