"""The commands on a model whose images are several crops: each says what an image has, not what one can have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.kit import tiled
from tests.kit.runtime_kit import picture
from trtprune.cli import main

LARGE = (150, 90)


@pytest.fixture(scope="module", params=tiled.FAMILIES)
def out(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("commands")
    picture(1, LARGE).save(place / "large.png")
    picture(2, tiled.few_tokens(request.param)).save(place / "small.png")
    return tiled.build(tiled.checkpoint(place / "model", request.param), place / "out")


def command(*words: Any, text: str | None = None) -> Any:
    found = CliRunner().invoke(main, [str(word) for word in words], input=text)
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return found


def totals(out: Path) -> tuple[int, int]:
    """Visual tokens of the two images, from a run that keeps all."""
    config = json.loads((out / "config.json").read_text())
    most = config["model"]["visual_tokens"]
    found = []
    for name in ("large", "small"):
        ran = command("run", out, "--image", out.parent / f"{name}.png", "--prompt", "?", "--keep", most, "--json")
        found.append(json.loads(ran.stdout)["visual_tokens"])
    return found[0], found[1]


def test_inspect(out: Path) -> None:
    found = json.loads(command("inspect", out, "--verify", "none", "--json").stdout)
    config = json.loads((out / "config.json").read_text())
    least, most = config["vision"]["tokens"]
    assert found["vision"].items() >= config["vision"].items()
    assert found["vision"]["saliency"] == ["cls_attention" if config["model"]["has_cls"] else "mean_query_attention"]
    text = command("inspect", out, "--verify", "none").stdout
    assert f"{found['vision']['saliency'][0]}: the attention" in text
    few = f"{100 * 12 / most:.1f} to {100 * min(1, 12 / least):.1f} % kept"
    assert f"{least} to {most} → 12 visual tokens ({few}); any budget from 1 to {most}" in text
    assert f"{least} to {most} visual tokens; processor {config['vision']['processor']}" in text
    assert ("; newline tokens" in text) == config["model"]["family"].startswith("llava-")
    fewest, crops = config["vision"]["crops"]
    assert f"{fewest} to {crops} crops of 56 x 56 pixels" in text


def test_run_says_which_image_stays_whole(out: Path) -> None:
    large, small = totals(out)
    images = ["--image", out.parent / "large.png", "--image", out.parent / "small.png"]
    family = json.loads((out / "config.json").read_text())["model"]["family"]
    # With newline tokens, as many as an image has are more than there are to choose from.
    keep = small + (not family.startswith("llava-"))
    ran = command(
        "run", out, "--image", out.parent / "small.png", "--prompt", "Why?", "--prompt", "So?", "--keep", keep
    )
    assert ran.stderr.count(f"image 1 has {small} visual tokens: --keep {keep} leaves it as it is") == 1
    assert f"{small} → {small} visual tokens (100.0 % kept)" in ran.stderr
    ran = command("run", out, *images[:2], "--prompt", "Why?", "--keep", 12, "--json")
    result = json.loads(ran.stdout)
    assert (result["visual_tokens"], result["kept_tokens"]) == (large, 12)
    assert "leaves it as it is" not in ran.stderr
    if family == "llava-next":  # LLaVA-OneVision makes one crop of each of several images
        ran = command("run", out, *images, "--prompt", "Why?", "--keep", small, "--json")
        assert f"image 2 has {small} visual tokens" in ran.stderr
        assert "image 1" not in ran.stderr
        kept = json.loads(ran.stdout)["kept_indices_per_image"]
        assert [len(indices) for indices in kept] == [small, small]


def test_chat(out: Path) -> None:
    large, _ = totals(out)
    ran = command("chat", out, "--image", out.parent / "large.png", "-v", "--max-new-tokens", 2, text="/keep 5\nWhy?\n")
    assert f"1 picture, 5 of {large} visual tokens" in ran.stderr
    least, most = json.loads((out / "config.json").read_text())["vision"]["tokens"]
    ran = command("chat", out, text="/keep\n")
    assert f"12 of {least} to {most} visual tokens each" in ran.stderr


def test_compare_unpruned(out: Path) -> None:
    large, _ = totals(out)
    ran = command(
        "compare",
        out,
        "--against",
        "unpruned",
        "--image",
        out.parent / "large.png",
        "--prompt",
        "?",
        "--max-new-tokens",
        2,
    )
    assert f": {large} → 12 visual tokens" in ran.stderr
    assert "leaves it as it is" not in ran.stderr
