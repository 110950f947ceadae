"""Chat templates in the styles of published models: what transformers renders, spans, refusals, which file counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip import CLIPImageProcessorPil
from transformers.utils.chat_template_utils import render_jinja_template

from tests.kit.chat_templates import LLAVA, STYLES, Style
from tests.runtime.test_prompt import byte_level
from trtprune.errors import EngineDirError, InputError
from trtprune.runtime.prompt import PromptEncoder
from trtprune.text.template import ChatTemplate, Turn, find_template

NAMED = {"bos_token": "<s>", "eos_token": "</s>"}
QUESTION = "Which of  the two is larger?"
SYSTEM, USER = Turn("system", "Be brief."), Turn("user", QUESTION, 1)
SAID, NEXT = Turn("assistant", "The first."), Turn("user", "Why?")
CONVERSATIONS = {
    "question": [USER],
    "two-images": [Turn("user", QUESTION, 2)],
    "system": [SYSTEM, USER],
    "second": [USER, SAID, NEXT],
    "all": [SYSTEM, USER, SAID, NEXT],
    "later-image": [Turn("user", "Hello."), SAID, Turn("user", QUESTION, 1)],
}


def theirs(style: Style, turns: list[Turn]) -> str:
    """What transformers' users get, who know the form each role takes."""
    messages = []
    for turn in turns:
        form = {"user": style.user, "assistant": style.assistant, "system": style.system}[turn.role]
        content: Any = ("" if form == "own" else "<image>\n" * turn.images) + turn.text
        if form == "list":
            content = [*({"type": "image"} for _ in range(turn.images)), {"type": "text", "text": turn.text}]
        messages.append({"role": turn.role, "content": content})
    texts, _ = render_jinja_template([messages], chat_template=style.source, add_generation_prompt=True, **NAMED)
    return texts[0]


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", STYLES)
def test_text_is_that_of_transformers(name: str, conversation: str) -> None:
    style, turns = STYLES[name], CONVERSATIONS[conversation]
    made = ChatTemplate(style.source, "<image>", NAMED)
    roles = {turn.role for turn in turns}
    if ("system" in roles and style.system is None) or ("assistant" in roles and style.assistant is None):
        with pytest.raises(InputError, match="refuses these turns") as caught:
            made.render(turns)
        assert caught.value.hint
        assert ("system" in caught.value.hint) == ("system" in roles)
        return
    rendered = made.render(turns)
    assert rendered.text == theirs(style, turns)
    # The last question's words, wherever else they stand.
    assert rendered.text[rendered.start : rendered.end].strip().removeprefix("<image>\n") == turns[-1].text


@pytest.mark.parametrize("name", STYLES)
def test_forms(name: str) -> None:
    style = STYLES[name]
    forms = ChatTemplate(style.source, "<image>", NAMED).formats
    assert forms["user"] == style.user
    assert style.assistant in (None, forms["assistant"])
    assert style.system in (None, forms["system"])


def files(source: str, tokenizer: Tokenizer | None = None) -> dict[str, str]:
    made = tokenizer or byte_level()
    made.add_special_tokens(["<s>", "</s>", "<image>"])
    return {
        "tokenizer.json": made.to_str(),
        "tokenizer_config.json": json.dumps(NAMED),
        "chat_template.jinja": source,
    }


def encoder(source: str) -> PromptEncoder:
    found = files(source)
    return PromptEncoder(found, "<image>", Tokenizer.from_str(found["tokenizer.json"]).token_to_id("<image>"))


@pytest.mark.parametrize("name", STYLES)
def test_rehearsal(name: str) -> None:
    """What a build says of a template is what happens at the second question."""
    style = STYLES[name]
    made = encoder(style.source)
    notes = made.rehearse()
    assert any("more than one question" in note for note in notes) == (not style.second)
    if style.second:
        assert len(made.encode([USER, SAID, NEXT]).image_positions) == 1
    else:
        with pytest.raises(InputError) as caught:
            made.encode([USER, SAID, NEXT])
        assert "conversation of" in (caught.value.hint or "")


REFUSED_AT_BUILD = {
    "no-image": "{% for m in messages %}{{ m['role'] }}: {{ m.content[-1].text }}{% endfor %}",
    "two-images": "<image>{% for m in messages %}<image>{{ m['content'] }}{% endfor %}",
    "broken": "{{ messages[0].nothing.more }}",
    "refuses": "{{ raise_exception('no') }}",
    "syntax": "{% for m in messages %}",
    "outside": "{% break %}",
    "number": "{{ " + "1" * 5000 + " }}",
    "nested": "{% if a %}" * 60 + "{% endif %}" * 60,
    "forbidden": "{{ messages.__class__.__mro__ }}",
}


@pytest.mark.parametrize("name", REFUSED_AT_BUILD)
def test_templates_that_cannot_serve(name: str) -> None:
    with pytest.raises((EngineDirError, InputError)) as caught:
        encoder(REFUSED_AT_BUILD[name]).rehearse()
    assert caught.value.hint
    assert "template" in f"{caught.value.message} {caught.value.hint}"


def test_what_a_template_leaves_out() -> None:
    source = "{% for m in messages %}{% if m.role == 'user' %}Q: {{ m.content }}{% endif %}{% endfor %}"
    notes = encoder(source).rehearse()
    assert any("system prompts" in note for note in notes)
    assert any("earlier answers" in note for note in notes)
    assert encoder(LLAVA).rehearse() == []


def test_own_placeholder_takes_one_image() -> None:
    with pytest.raises(InputError, match="1 <image> for 2 image") as caught:
        encoder(STYLES["own"].source).encode([Turn("user", QUESTION, 2)])
    assert "one image" in (caught.value.hint or "")


def test_names_the_checkpoint_gives_to_tokens() -> None:
    """Transformers hands templates every named token, not only the usual seven."""
    found = files("{{ image_token }}{{ start_token }}{{ messages[0].content }}") | {
        "tokenizer_config.json": json.dumps({"image_token": "<image>", "extra_special_tokens": {"start_token": "<s>"}})
    }
    made = PromptEncoder(found, "<image>", Tokenizer.from_str(found["tokenizer.json"]).token_to_id("<image>"))
    ids = made.encode([Turn("user", "x", 1)]).ids
    assert made.decode([int(i) for i in ids if i not in made.skipped_ids]) == "x"
    assert len(ids) == 3


# -- which file counts

PLACES = {
    "processor_config.json": lambda text: json.dumps({"processor_class": "LlavaProcessor", "chat_template": text}),
    "chat_template.json": lambda text: json.dumps({"chat_template": text}),
    "chat_template.jinja": lambda text: text,
    "tokenizer_config.json": lambda text: json.dumps({"chat_template": text}),
}


@pytest.mark.parametrize(
    "places", [tuple(p for i, p in enumerate(PLACES) if n >> i & 1) for n in range(1, 16)], ids=str
)
def test_which_template_counts(tmp_path: Path, places: tuple[str, ...]) -> None:
    tokenizer = byte_level()
    tokenizer.add_special_tokens(["<image>"])
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(),
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer),
        patch_size=14,
        vision_feature_select_strategy="full",
    )
    processor.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    for place in places:
        data = json.loads((tmp_path / place).read_text()) if (tmp_path / place).exists() else {}
        text = PLACES[place](f"written in {place}")
        (tmp_path / place).write_text(text if place.endswith("jinja") else json.dumps(data | json.loads(text)))
    found = find_template({name: (tmp_path / name).read_text() for name in PLACES if (tmp_path / name).exists()})
    hugging = LlavaProcessor.from_pretrained(tmp_path)
    assert found == (hugging.chat_template or hugging.tokenizer.chat_template)


def test_several_templates() -> None:
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    assert find_template({"tokenizer_config.json": json.dumps({"chat_template": named})}) == "D"
    for bad in (named[:1], [["default"]], [{"name": ["default"], "template": "D"}], {"rag": "R"}, 3, {"default": 3}):
        with pytest.raises(EngineDirError, match=r"tokenizer_config.json: .*chat_template") as caught:
            find_template({"tokenizer_config.json": json.dumps({"chat_template": bad})})
        assert caught.value.hint
