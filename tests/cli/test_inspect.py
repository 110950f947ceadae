"""``inspect``: facts of a directory made by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.kit.engine_dirs import WEIGHTS, make
from trtprune.cli.inspect import describe, render
from trtprune.engine_dir import open_engine_dir
from trtprune.errors import EngineDirError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make(tmp_path / "out")
    return tmp_path / "out"


def test_facts(root: Path, tmp_path: Path) -> None:
    os.link(root / WEIGHTS, tmp_path / "another.safetensors")
    facts = json.loads(json.dumps(describe(root)))
    assert facts["model"]["id"] == "owner/name"
    assert facts["pruning"]["keep_range"] == [16, 576]
    assert facts["kv"]["bytes_at_capacity"] == 4096 * 1536
    assert (facts["kv"]["bytes_per_image"], facts["kv"]["bytes_per_image_unpruned"]) == (64 * 1536, 576 * 1536)
    # 64 pictures of 64 tokens would fill all 4,096 and leave no room for a question.
    assert (facts["kv"]["images_at_capacity"], facts["kv"]["images_at_capacity_unpruned"]) == (63, 7)
    assert facts["kv"]["text_at_capacity"] == 64
    (component,) = facts["components"]
    # Two branches of one node each, and the body of the function.
    assert component["ops"] == {"Add": 3, "If": 1, "trtprune::Twice": 1}
    assert component["inputs"][0] == {"name": "pixel_values", "dtype": "float32", "shape": ["batch", 3, 56, 56]}
    files = {file["name"]: file for file in facts["files"]}
    assert files[WEIGHTS]["links"] == 2
    assert files["tokenizer.json"]["links"] == 1
    assert facts["bytes"] == sum(p.stat().st_size for p in root.rglob("*") if p.is_file())


def test_text(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    facts = describe(open_engine_dir(root))
    text = render(facts)
    assert "576 → 64 visual tokens (11.1 % kept); any budget from 16 to 576 without building again" in text
    assert "63 pictures instead of 7, and 64 tokens of text and answer" in text
    assert "1.5 kB a token; a picture takes 98.3 kB instead of 884.7 kB" in text
    assert "pixel_values float32 [batch, 3, 56, 56]" in text
    assert "for runtimes with jinja2 only: the chat template prints the date; 0 added tokens" in text
    assert WEIGHTS in text
    assert max(map(len, text.splitlines())) <= 120
    assert not any(line != line.rstrip() for line in text.splitlines())


def test_rich_markup_in_a_name_is_text(root: Path) -> None:
    facts = describe(root)
    facts["model"]["id"] = "[red]owner[/red]/name"
    assert "[red]owner[/red]/name" in render(facts)


def test_a_graph_that_is_none(root: Path) -> None:
    made = open_engine_dir(root)
    (root / "onnx/vision.onnx").write_bytes(b"\x08\xff\xff")
    with pytest.raises(EngineDirError, match="not a readable ONNX graph"):
        describe(made)
