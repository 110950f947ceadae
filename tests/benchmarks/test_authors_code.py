"""benchmarks/_authors_code.py: functions out of files that nobody imports, on a checkout made up here."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import tests.kit.bench  # noqa: F401
from tests.kit import multicrop

import _authors_code  # isort: skip
import multicrop_oracles  # isort: skip

SOURCE = """
import a_package_that_is_not_there

class Model:
    @a_package_that_is_not_there.decorator
    def cut(self, x: Absent) -> Absent:
        return [limit(value, 575) for value in x] + [super().cut(576)]
"""


@pytest.fixture
def checkouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _authors_code.Checkouts:
    file = tmp_path / "AdaV" / _authors_code.LLAVA
    file.parent.mkdir(parents=True)
    file.write_text(SOURCE)
    monkeypatch.setitem(_authors_code.FILES, ("AdaV", _authors_code.LLAVA), hashlib.sha256(SOURCE.encode()).hexdigest())
    return _authors_code.Checkouts(tmp_path)


def test_a_method_runs_without_its_file(checkouts: _authors_code.Checkouts) -> None:
    class Parent:
        def cut(self, x: int) -> int:
            return -x

    names: dict[str, Any] = {"limit": min, "super": Parent}
    place = ("AdaV", _authors_code.LLAVA, "Model.cut")
    assert checkouts.function(*place, names)(None, [1, 1000]) == [1, 575, -576]
    assert checkouts.function(*place, names, {575: 35, 576: 36})(None, [1, 1000]) == [1, 35, -36]


def test_another_file_is_refused(checkouts: _authors_code.Checkouts) -> None:
    file = checkouts.folder / "AdaV" / _authors_code.LLAVA
    file.write_text(SOURCE + "\n")
    with pytest.raises(SystemExit, match="not the file of JiayiV/AdaV@58d1f8d"):
        checkouts.function("AdaV", _authors_code.LLAVA, "Model.cut", {})
    file.unlink()
    with pytest.raises(SystemExit, match=r"not there; put a checkout of JiayiV/AdaV@58d1f8d"):
        checkouts.function("AdaV", _authors_code.LLAVA, "Model.cut", {})


def test_the_first_of_equal_values_comes_first() -> None:
    x = torch.tensor([[0.0, 1, 1, 0, 1] * 40])
    before = torch.topk
    with _authors_code.lowest_index_first():
        assert torch.topk(x, 5, dim=-1)[1].tolist() == [[1, 2, 4, 6, 7]]
        assert x.topk(3, dim=1, largest=False).indices.tolist() == [[0, 3, 5]]
        assert x.argsort(dim=-1, descending=True)[0, :3].tolist() == [1, 2, 4]
        assert torch.sort(x, dim=1)[1][0, :3].tolist() == [0, 3, 5]
        assert x.cuda() is x
        with pytest.raises(RuntimeError, match="out of range"):
            torch.topk(x, 201, dim=-1)
    assert torch.topk is before


def test_every_source_is_listed() -> None:
    assert {repository for repository, _ in _authors_code.FILES} == set(_authors_code.REPOSITORIES)
    assert json.loads(multicrop.VECTORS.read_text())["sources"] == {
        method: _authors_code.REPOSITORIES[folder] for method, (folder, _) in multicrop_oracles.METHODS.items()
    }


def test_inputs_that_are_moved_keep_their_ties() -> None:
    case = multicrop.Case("adafv", 3, side=6, grid=(2, 2), kind="ties")
    arrays = multicrop.inputs(case)
    shifted = multicrop_oracles.moved(case, arrays, 1)
    assert (shifted["image_features"] == arrays["image_features"]).all()
    cls, other = arrays["cls_attention"].ravel(), shifted["cls_attention"].ravel()
    assert (cls != other).any()
    assert len(set(zip(cls, other, strict=True))) == len(set(cls)) == len(set(other))


def test_missing_checkouts_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["multicrop_oracles.py", str(tmp_path), "--out", str(tmp_path / "out.json")])
    with pytest.raises(SystemExit, match="put a checkout of"):
        multicrop_oracles.main()
    assert not (tmp_path / "out.json").exists()
