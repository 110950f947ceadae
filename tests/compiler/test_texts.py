"""Text files at build: what a run would refuse is refused before anything is written, and what it needs is there."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import trtprune
from tests.kit import tiny, tiny_files
from tests.kit.chat_templates import NOT_COMPILED, STYLES
from trtprune.compiler import building
from trtprune.errors import CheckpointError
from trtprune.text import process
from trtprune.text.template import Turn

FLAGS = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_files.complete(tmp_path / "model")


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(path.read_text()) if path.exists() else {}
    change(data)
    path.write_text(json.dumps(data))


def without_placeholder(data: dict[str, Any]) -> None:
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] != "<image>"]
    data["model"]["vocab"]["<unused>"] = data["model"]["vocab"].pop("<image>")


def split_placeholder(data: dict[str, Any]) -> None:
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] != "<image>"]


def wrong_index(model: Path) -> None:
    edit(model / "config.json", lambda data: data.update(image_token_index=9))


def no_placeholder(model: Path) -> None:
    edit(model / "tokenizer.json", without_placeholder)
    edit(model / "tokenizer_config.json", lambda data: data.pop("image_token"))


def no_special_placeholder(model: Path) -> None:
    edit(model / "tokenizer.json", split_placeholder)
    edit(model / "tokenizer_config.json", lambda data: data.pop("image_token"))


def no_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()


def growing_tokenizer(model: Path) -> None:
    part = {"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaa"}
    edit(
        model / "tokenizer.json", lambda data: data.update(normalizer={"type": "Sequence", "normalizers": [part] * 30})
    )


def endless_template(model: Path) -> None:
    (model / "chat_template.jinja").write_text("{{ 'a' * 10**12 }}")


def no_image(model: Path) -> None:
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content[-1].text }}{% endfor %}")


def no_template(model: Path) -> None:
    (model / "chat_template.jinja").write_text("{% for m in messages %}")


def other_processor(model: Path) -> None:
    edit(model / "preprocessor_config.json", lambda data: data.update(image_processor_type="NoSuchProcessor"))


BROKEN = {
    wrong_index: "image_token_index|placeholder",
    no_placeholder: "placeholder",
    no_special_placeholder: "splits the placeholder",
    no_tokenizer: "tokenizer.json is missing",
    growing_tokenizer: "tokenizer.json takes more than",
    endless_template: "chat template",
    no_image: "0 <image> for 1 image",
    no_template: "chat template is not valid",
    other_processor: "NoSuchProcessor",
}


@pytest.mark.parametrize("damage", BROKEN, ids=lambda damage: damage.__name__)
def test_refused_before_the_work(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None]
) -> None:
    damage(model)
    monkeypatch.setattr(process, "MEMORY", 200_000_000)  # to fill it takes less time
    process.stop()
    monkeypatch.setattr(building, "_write", lambda *_: pytest.fail("work has begun"))
    with pytest.raises(CheckpointError, match=BROKEN[damage]) as caught:
        trtprune.build(model, tmp_path / "out", method="none")
    assert caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_added_tokens_of_any_file_reach_the_run(model: Path, tmp_path: Path) -> None:
    """A placeholder and a word that only added_tokens.json knows, in a build of it and in a build of that build."""
    edit(model / "tokenizer.json", without_placeholder)
    edit(model / "tokenizer_config.json", lambda data: data.pop("image_token"))
    size = len(json.loads((model / "tokenizer.json").read_text())["model"]["vocab"])
    (model / "added_tokens.json").write_text(json.dumps({"<image>": size, "<new>": size + 1}))
    theirs = AutoTokenizer.from_pretrained(model)
    edit(model / "config.json", lambda data: data.update(image_token_index=theirs.convert_tokens_to_ids("<image>")))
    text = "<image> a <new> word"
    for source, out in ((model, tmp_path / "first"), (tmp_path / "first", tmp_path / "second")):
        made = trtprune.load(trtprune.build(source, out, method="none").root, threads=1)
        prompt = made.encoder.encode([Turn("user", text, 1)], raw=True)
        assert prompt.ids.tolist() == theirs(text)["input_ids"]


def test_what_users_should_know(model: Path, tmp_path: Path) -> None:
    (model / "chat_template.jinja").write_text(STYLES["one-question"].source)
    said: list[str] = []
    trtprune.build(model, tmp_path / "out", method="none", report=lambda name, text: said.append(text))
    assert any(text.startswith("warning: conversations of more than one question") for text in said)


def test_the_tiny_model_is_whole(model: Path, tmp_path: Path) -> None:
    said: list[str] = []
    trtprune.build(model, tmp_path / "out", method="none", report=lambda name, text: said.append(text))
    assert not any("warning" in text for text in said)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model"]["image_token_id"] == tiny.IMAGE_TOKEN_ID


def test_a_template_that_is_not_compiled_is_said_and_runs(model: Path, tmp_path: Path) -> None:
    (model / "chat_template.jinja").write_text(NOT_COMPILED["date"][0])
    said: list[str] = []
    made = trtprune.build(model, tmp_path / "out", method="none", report=lambda name, text: said.append(text))
    (line,) = (text for text in said if "jinja2" in text)
    assert line.startswith("the chat template prints the date, so it is not compiled")
    text = json.loads((tmp_path / "out" / "config.json").read_text())["text"]
    assert (text["template"], text["reason"]) == (None, "the chat template prints the date")
    with trtprune.load(made.root, threads=1) as vlm:
        prompt = vlm.encoder.encode([Turn("user", "What?", 1)])
        year = str(datetime.datetime.now().year)
        assert year in AutoTokenizer.from_pretrained(model).decode(prompt.ids)


def test_the_run_writes_prompts_from_the_pieces(model: Path, tmp_path: Path) -> None:
    """The directory's own words count, not a template that is put in its place."""
    made = trtprune.build(model, tmp_path / "out", method="none")
    path = tmp_path / "out" / "config.json"
    data = json.loads(path.read_text())
    assert data["text"]["reason"] is None
    with trtprune.load(made.root, threads=1) as vlm:
        before = vlm.encoder.encode([Turn("user", "What?", 1)]).ids.tolist()
    edit(path, lambda data: data["text"]["template"]["begin"].append({"kind": "literal", "value": "ab"}))
    with trtprune.load(made.root, threads=1) as vlm:
        assert vlm.encoder.encode([Turn("user", "What?", 1)]).ids.tolist() == [
            *AutoTokenizer.from_pretrained(model)("ab")["input_ids"],
            *before,
        ]
