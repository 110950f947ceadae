"""eval and bench of a model whose images are several crops: tokens are those of each image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

import trtprune
from tests.kit import tiled, tiny
from tests.kit.runtime_kit import picture, transformers_processor
from trtprune.cli import main
from trtprune.eval.planning import fitting
from trtprune.eval.rows import Row

SIZES = {"wide": (220, 90), "square": (110, 112), "dot": (1, 1)}


@pytest.fixture(scope="module", params=tiled.FAMILIES)
def out(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("eval")
    lines = []
    sizes = SIZES | {"dot": tiled.few_tokens(request.param)}
    for seed, (name, size) in enumerate(sizes.items()):
        picture(seed, size).save(place / f"{name}.png")
        lines.append(json.dumps({"id": name, "image": f"{name}.png", "question": "Why?", "answer": "x"}))
    (place / "q.jsonl").write_text("\n".join(lines) + "\n")
    return tiled.build(tiled.checkpoint(place / "model", request.param), place / "out")


def command(*words: Any) -> Any:
    found = CliRunner().invoke(main, [str(word) for word in words])
    assert found.exception is None, (found.exception, found.stderr)
    return found


def expected(out: Path) -> dict[str, int]:
    """Visual tokens of each image, by transformers' processor."""
    processor = transformers_processor(out.parent / "model")
    counts = {}
    for name in SIZES:
        with Image.open(out.parent / f"{name}.png") as image:
            inputs = processor(images=[[image.convert("RGB")]], text=processor.image_token, return_tensors="pt")
        counts[name] = int((inputs["input_ids"] == tiny.IMAGE_TOKEN_ID).sum())
    assert len(set(counts.values())) > 1
    return counts


def test_evaluation(out: Path, tmp_path: Path) -> None:
    command(
        "eval", out, "--data", out.parent / "q.jsonl", "--keep", "40,12", "--max-new-tokens", 3, "-o", tmp_path / "e"
    )
    counts = expected(out)
    answers = [json.loads(line) for line in (tmp_path / "e/results.jsonl").read_text().splitlines()]
    answers = [answer for answer in answers if "answer" in answer]
    assert len(answers) == 9
    for answer in answers:
        assert answer["visual"] == counts[answer["id"]]
        if answer["method"] == "none":
            assert answer["kept"] == answer["visual"]
        elif answer["keep"] == 12:
            assert answer["kept"] == min(12, answer["visual"])
    rows = json.loads((tmp_path / "e/report.json").read_text())["rows"]
    for row in rows:
        mean = sum(counts.values()) / 3
        assert row["visual"] == pytest.approx(mean)
        if row["keep"] == 12:
            assert row["share"] == pytest.approx(sum(min(12, count) for count in counts.values()) / 3 / mean)


def test_a_row_is_left_out_by_its_own_images_tokens(out: Path) -> None:
    """A cache that holds small images and not the largest one: only what does not fit is left out."""
    vlm = trtprune.load(out, threads=1)
    counts = expected(out)
    rows = [Row(name, out.parent / f"{name}.png", "Why?", ("x",)) for name in SIZES]
    opened: list[str] = []

    def tokens(row: Row | None) -> int:
        if row is None:
            return vlm.config.model.visual_tokens
        opened.append(row.id)
        return counts[row.id]

    words = len("USER: \nWhy?\nASSISTANT:")
    limits = {"max_new_tokens": 4, "positions": 10_000}
    middle = words + sorted(counts.values())[1] + 4
    good, bad = fitting(rows, lambda row: "Why?", vlm.encoder, visual_tokens=tokens, capacity=middle, **limits)
    assert {row.id for row in good} | bad.keys() == set(SIZES)
    assert all(counts[row.id] <= min(counts[name] for name in bad) for row in good)
    assert good
    assert bad
    opened.clear()
    good, _ = fitting(rows, lambda row: "Why?", vlm.encoder, visual_tokens=tokens, capacity=10_000, **limits)
    assert (len(good), opened) == (3, [])


def test_bench(out: Path, tmp_path: Path) -> None:
    """Budgets above what the benched image has are left out with a note; the unpruned row has all of its tokens."""
    most = json.loads((out / "config.json").read_text())["model"]["visual_tokens"]
    words = ["--rounds", 1, "--warmup", 1, "--max-new-tokens", 2, "--no-memory", "--no-plot", "--json"]
    found = command("bench", out, "--image", out.parent / "dot.png", "--keep", f"{most - 1},3", *words)
    report = json.loads(found.stdout)
    count = expected(out)["dot"]
    assert [(row["unpruned"], row["keep"]) for row in report["rows"]] == [(True, count), (False, 3)]
    assert any(f"{most - 1} is left out: the image has {count} visual tokens" in note for note in report["notes"])
    unpruned, pruned = report["rows"]
    assert unpruned["prompt_tokens"] - pruned["prompt_tokens"] == count - 3
