"""Chat templates as pieces: what the template itself writes, with the place of the question, and its errors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.kit.chat_templates import NOT_COMPILED, STYLES
from tests.runtime.test_prompt import byte_level
from tests.text.test_template import CONVERSATIONS, NAMED, encoder, files, theirs
from trtprune.engine_dir.json_dataclasses import decode
from trtprune.errors import EngineDirError, InputError, TrtpruneError
from trtprune.runtime.prompt import PromptEncoder
from trtprune.text import describing
from trtprune.text.compiling import WHITE_SPACE, conversation
from trtprune.text.info import Piece, Rule, TemplateInfo, TextInfo, wrong_texts
from trtprune.text.pieces import PieceTemplate, template_from
from trtprune.text.template import ChatTemplate, Turn
from trtprune.text.tokens import open_tokens

SOURCES: dict[str, str | None] = {"none": None} | {name: style.source for name, style in STYLES.items()}
JINJA = {name: ChatTemplate(source, "<image>", NAMED) for name, source in SOURCES.items()}
_INFOS: dict[str, TextInfo] = {}


def described(name: str) -> TextInfo:
    """What a build says of a style, made once."""
    if name not in _INFOS:
        source = SOURCES[name]
        _INFOS[name] = encoder(source).describe() if source is not None else without_template().describe()
    return _INFOS[name]


def without_template() -> PromptEncoder:
    found = {name: text for name, text in files("").items() if name != "chat_template.jinja"}
    return PromptEncoder(found, "<image>", Tokenizer.from_str(found["tokenizer.json"]).token_to_id("<image>"))


def pieces(name: str) -> PieceTemplate:
    template = described(name).template
    assert template is not None, described(name).reason
    return PieceTemplate(template)


def outcome(template: ChatTemplate | PieceTemplate, turns: Sequence[Turn]) -> Any:
    try:
        return template.render(turns)
    except TrtpruneError as error:
        return type(error), error.message, error.hint


SPECIAL = [
    "<s>",
    "</s>",
    "<|im_end|>",
    "[INST]",
    "<<SYS>>",
    "{{ x }}",
    "{% raw %}",
    "#",
    "\\n",
    "'type'",
    "<image",
    "é",
    "🐈",
]
# Characters of private use mark the question's place for the template.
words = st.one_of(
    st.sampled_from([*SPECIAL, *WHITE_SPACE]), st.text(st.characters(exclude_categories=["Cs", "Co"]), max_size=4)
)
texts = st.lists(words, max_size=5).map("".join).map(lambda text: text.replace("<image>", ""))


@st.composite
def conversations(draw: st.DrawFn) -> list[Turn]:
    questions = draw(st.integers(1, 5))
    return conversation(
        draw(st.one_of(st.none(), texts)),
        [draw(texts) for _ in range(2 * questions - 1)],
        [draw(st.integers(0, 4)) for _ in range(questions)],
    )


@pytest.mark.parametrize("name", SOURCES)
@settings(max_examples=60, deadline=None)
@given(turns=conversations())
@example(turns=conversation("", ["", "", ""], [2, 0]))
@example(turns=conversation(" \n", ["\n", " ", "\u3000"], [0, 2]))
def test_pieces_write_what_the_template_writes(name: str, turns: list[Turn]) -> None:
    assert outcome(pieces(name), turns) == outcome(JINJA[name], turns)


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", STYLES)
def test_pieces_write_what_transformers_writes(name: str, conversation: str) -> None:
    style, turns = STYLES[name], CONVERSATIONS[conversation]
    roles = {turn.role for turn in turns}
    if ("system" in roles and style.system is None) or ("assistant" in roles and style.assistant is None):
        with pytest.raises(InputError, match="refuses these turns"):
            pieces(name).render(turns)
        return
    assert pieces(name).render(turns).text == theirs(style, turns)


@pytest.mark.parametrize("name", SOURCES)
def test_pieces_are_plain_data_of_the_schema(name: str) -> None:
    info = described(name)
    data = json.loads(json.dumps(dataclasses.asdict(info)))
    assert decode(TextInfo, data) == info
    assert template_from(data["template"]) == info.template
    assert not list(wrong_texts(info))


def test_few_rules() -> None:
    """The usual templates need no conditions; what is special about a turn is said of that turn."""
    one = {
        "llava": 1,
        "qwen": 1,
        "chatml": 1,
        "vicuna": 1,
        "llama-3": 1,
        "smolvlm": 2,
        "llama-2": 2,
        "mistral-mixed": 2,
    }
    for name, rules in one.items():
        template = described(name).template
        assert template is not None
        assert (len(template.user), len(template.assistant), len(template.end)) == (rules, 1, 1), name


def test_the_pieces_of_llava() -> None:
    """By hand."""
    text, nothing = Piece("text"), (None, None, None, None)
    user = (Piece("literal", "USER: "), Piece("images", "<image>\n"), text)
    assistant = (Piece("literal", " ASSISTANT: "), text, Piece("literal", " "))
    expected = TemplateInfo(
        begin=(),
        system=(Piece("system"), Piece("literal", " ")),
        user=(Rule(*nothing, user),),
        assistant=(Rule(*nothing, assistant),),
        end=(Rule(*nothing, (Piece("literal", " ASSISTANT:"),)),),
        refusals=(),
        own_images=False,
    )
    assert described("llava").template == expected
    assert described("none").template == expected


@pytest.mark.parametrize("name", NOT_COMPILED)
def test_templates_that_pieces_cannot_express(name: str) -> None:
    source, words = NOT_COMPILED[name]
    info = encoder(source).describe()
    assert info.template is None
    assert words in (info.reason or "")
    assert (info.reason or "").startswith("the chat template ")
    assert not list(wrong_texts(info))


def test_prompts_are_those_of_the_files() -> None:
    """The same ids and the same place of the question, whether the template or its pieces write the prompt."""
    for name in ("llava", "llama-2", "smolvlm", "joy"):
        source = STYLES[name].source
        found = files(source)
        image = Tokenizer.from_str(found["tokenizer.json"]).token_to_id("<image>")
        by_pieces = PromptEncoder(
            {key: text for key, text in found.items() if key != "chat_template.jinja"}, "<image>", image,
            described(name).template,
        )  # fmt: skip
        by_jinja = encoder(source)
        for turns in (
            conversation("Be  brief. ", [" Which one? "], [1]),
            conversation(None, ["a", " b ", "?"], [1, 0]),
        ):
            ours, jinjas = by_pieces.encode(turns), by_jinja.encode(turns)
            assert ours.ids.tolist() == jinjas.ids.tolist()
            assert (ours.question, ours.image_positions) == (jinjas.question, jinjas.image_positions)


def test_too_many_images_for_a_template_with_its_own() -> None:
    made = PieceTemplate(described("own").template)  # type: ignore[arg-type]
    assert made.own_images
    with pytest.raises(InputError, match="1 <image> for 2 image") as caught:
        encoder(STYLES["own"].source).encode([Turn("user", "a", 2)])
    assert "one image" in (caught.value.hint or "")


def test_a_prompt_that_is_too_long() -> None:
    with pytest.raises(EngineDirError, match="writes more than 1,048,576 characters"):
        pieces("llava").render([Turn("user", "a", 200_000)])
    with pytest.raises(EngineDirError, match="writes more than 1,048,576 characters"):
        pieces("llava").render([Turn("user", "a" * (1 << 20), 1)])


@pytest.mark.parametrize("roles", ["uu", "a", "ua", "us", "su s", "s", "x"])
def test_turns_that_are_no_conversation(roles: str) -> None:
    named = {"u": "user", "a": "assistant", "s": "system", "x": "tool"}
    with pytest.raises(InputError, match="not those of a conversation"):
        pieces("llava").render([Turn(named[role], "a") for role in roles if role in named])


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "open": ({"begin": (Piece("open"),)}, "begin: an open piece"),
    "close": ({"begin": (Piece("close"), Piece("open"))}, "begin: an open piece"),
    "text": ({"system": (Piece("text"),)}, "system: images and text"),
    "rules": ({"user": ()}, "user: there are turns"),
    "some": ({"assistant": (Rule(True, None, None, None, ()),)}, "assistant: there are turns"),
    "pieces": ({"begin": (Piece("literal", "a"),) * 5000}, "more than"),
    "characters": ({"begin": (Piece("literal", "a" * (1 << 20)), Piece("literal", "a"))}, "more than"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_pieces_from_a_file_are_checked(fault: str) -> None:
    template = described("llava").template
    assert template is not None
    changes, said = FAULTS[fault]
    info = dataclasses.replace(described("llava"), template=dataclasses.replace(template, **changes))
    assert any(said in line for line in wrong_texts(info))


def test_a_template_that_takes_too_long_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(describing, "COMPILE_SECONDS", 0.05)
    idle = "{% for i in range(99999) %}{% endfor %}"
    info = describing.describe_texts(
        open_tokens(files("")), ChatTemplate(idle + STYLES["chatml"].source, "<image>", NAMED)
    )
    assert (info.template, info.reason) == (None, "the chat template takes more than 0 s to compile")


def test_hundreds_of_special_tokens_cost_no_time() -> None:
    tokenizer = byte_level()
    tokenizer.add_special_tokens([f"<|reserved_{number}|>" for number in range(1000)])
    info = describing.describe_texts(open_tokens(files("", tokenizer)), JINJA["chatml"])
    assert info.template == described("chatml").template
    assert len(info.tokenizer.added_tokens) > 1000
