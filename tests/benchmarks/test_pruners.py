"""benchmarks/bench_pruners.py at a size that takes no time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tests.kit.bench  # noqa: F401
from tests.kit.tiny import Tiny
from tests.kit.tiny_files import complete
from trtprune import pruning

import bench_pruners  # isort: skip


def test_every_method_has_its_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = complete(tmp_path / "tiny", Tiny())
    out = tmp_path / "results" / "pruners.json"
    image = Path(__file__).parents[2] / "examples" / "scene.png"
    arguments = ["--model", str(model), "--keep", "8,4", "--rounds", "1", "--threads", "1"]
    bench_pruners.main([*arguments, "--image", str(image), "--json", str(out)])
    result = json.loads(out.read_text())
    labels = [variant.label for variant in bench_pruners.default_methods()]
    assert {*pruning.names(inside=False), "divprune center=true", "zspaprune center=true"} - {"none"} <= {*labels}
    assert [(row["method"], row["keep"]) for row in result["rows"]] == [(n, k) for k in (8, 4) for n in labels]
    assert (result["visual_tokens"], result["width"]) == (16, 64)
    for row in result["rows"]:
        assert row["ms"]["n"] == row["prefill_ms"]["n"] == 1
        assert abs(row["share_of_prefill"] - row["ms"]["median"] / row["prefill_ms"]["median"]) < 0.01
    assert capsys.readouterr().out.count("prefill") == len(result["rows"])
