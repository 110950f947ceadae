"""Prompts: ids equal to transformers' processor, spans, streaming, templates that misbehave."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip import CLIPImageProcessorPil

from tests.kit.runtime_kit import picture
from trtprune.errors import EngineDirError, InputError, TrtpruneError
from trtprune.runtime.prompt import PromptEncoder
from trtprune.text import process
from trtprune.text.template import ChatTemplate, Turn, find_template

CORPUS = [
    "What is on the table? Is the cat left of the dog, or right?",
    "USER: describe the image ASSISTANT: A red circle and two blue squares.",
    "Größe, naïve café, 東京タワー, Привет, 🙂🙃 emoji",
    "system prompt: you are a helpful assistant. user question answer\n\n",
] * 3
LLAVA = (
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'].upper() + ': ' }}{% endif %}"
    "{% for c in m['content'] if c['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] | trim }}"
    "{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WITH_BOS = "{{ bos_token }}" + LLAVA
STRINGS_ONLY = "{% for m in messages %}{{ '[' + m['role'] + '] ' + m['content'] + eos_token }}{% endfor %}[assistant]"
TEMPLATES = {"llava": LLAVA, "chatml": CHATML, "with-bos": WITH_BOS}


def byte_level() -> Tokenizer:
    """As GPT-2, Qwen and SmolLM2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<pad>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def llama() -> Tokenizer:
    """As Llama 2: spaces as ▁, bytes as fallback, a beginning-of-sequence token put in front."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.train_from_iterator(CORPUS[:2] * 4, trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>"]))
    data = json.loads(trained.to_str())["model"]
    vocab = {"<unk>": 0} | {f"<0x{byte:02X}>": byte + 1 for byte in range(256)}
    for text in data["vocab"]:
        vocab.setdefault(text, len(vocab))
    merges = [tuple(merge) for merge in data["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = trained.normalizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def metaspace() -> Tokenizer:
    """As newer SentencePiece conversions."""
    tokenizer = llama()
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return tokenizer


SPECIALS = ["<s>", "</s>", "<image>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="module", params=["byte-level", "llama", "metaspace"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    made = {"byte-level": byte_level, "llama": llama, "metaspace": metaspace}[request.param]()
    made.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIALS])
    if request.param != "byte-level":
        bos = made.token_to_id("<s>")
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", bos)]
        )
    return made


def files(tokenizer: Tokenizer, template: str | None) -> dict[str, str]:
    found = {
        "tokenizer.json": tokenizer.to_str(),
        "tokenizer_config.json": json.dumps({"bos_token": "<s>", "eos_token": {"content": "</s>"}}),
    }
    return found if template is None else found | {"chat_template.jinja": template}


def encoder(tokenizer: Tokenizer, template: str | None = LLAVA) -> PromptEncoder:
    return made_of(tokenizer.to_str(), template)


@functools.lru_cache(10)
def made_of(text: str, template: str | None) -> PromptEncoder:
    tokenizer = Tokenizer.from_str(text)
    return PromptEncoder(files(tokenizer, template), "<image>", tokenizer.token_to_id("<image>"))


def theirs(tokenizer: Tokenizer, template: str, turns: list[Turn], images: int) -> list[int]:
    """transformers' processor; each image of 2 × 2 patches is 4 placeholders, of which one is left here."""
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>"),
        patch_size=14,
        vision_feature_select_strategy="full",
        chat_template=template,
    )
    conversation = [
        {
            "role": turn.role,
            "content": [
                *({"type": "image", "image": picture(0)} for _ in range(turn.images)),
                {"type": "text", "text": turn.text},
            ],
        }
        for turn in turns
    ]
    out = processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=True, return_dict=True)
    ids, placeholder, left, run = list(out["input_ids"][0]), tokenizer.token_to_id("<image>"), [], 0
    for token in ids:
        run = run + 1 if token == placeholder else 0
        if run % 4 in (0, 1) and not (token == placeholder and run % 4 == 0):
            left.append(token)
    return left


@pytest.mark.parametrize("kind", ["LlamaTokenizer", "GPT2TokenizerFast", "Qwen2Tokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize(
    "extra",
    [
        {"add_bos_token": True, "legacy": False},
        {"add_bos_token": False, "add_prefix_space": True},
        {"clean_up_tokenization_spaces": True},
        {"additional_special_tokens": ["b"]},
        {"extra_special_tokens": {"image_token": "<image>"}},
    ],
)
def test_tokenizer_settings(tokenizer: Tokenizer, tmp_path: Path, kind: str, extra: dict[str, Any]) -> None:
    """For LLaVA, transformers takes tokenizer.json as it is, whatever the class and flags beside it say."""
    settings = {"tokenizer_class": kind, "bos_token": "<s>", "eos_token": "</s>", **extra}
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    hugging = AutoTokenizer.from_pretrained(tmp_path)
    texts = {name: (tmp_path / name).read_text() for name in ("tokenizer.json", "tokenizer_config.json")}
    made = PromptEncoder(texts, "<image>", tokenizer.token_to_id("<image>"))
    for question in [*QUESTIONS, "a b , c . <image>\nWhat?"]:
        ids = hugging(question)["input_ids"]
        prompt = made.encode([Turn("user", question, question.count("<image>"))], raw=True)
        assert prompt.ids.tolist() == ids
        assert made.decode(ids) == hugging.decode(ids, skip_special_tokens=True)


QUESTIONS = ["What is on the table?", "  spaces  ", "Größe 東京 🙂", "a\nb", "USER: ASSISTANT: describe", "?", "</s> x"]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("images", [1, 3])
def test_ids(tokenizer: Tokenizer, template: str, question: str, images: int) -> None:
    turns = [
        Turn("system", "you are helpful."),
        Turn("user", question, images),
        Turn("assistant", "A red circle"),
        Turn("user", question),
    ]
    for some in (turns, turns[:2], turns[1:2]):
        prompt = encoder(tokenizer, TEMPLATES[template]).encode(some)
        assert prompt.ids.tolist() == theirs(tokenizer, TEMPLATES[template], some, images)
        assert len(prompt.image_positions) == images
        assert prompt.ids.dtype == np.int64


@pytest.mark.parametrize("template", [*TEMPLATES.values(), STRINGS_ONLY, None])
@pytest.mark.parametrize("question", QUESTIONS)
def test_spans(tokenizer: Tokenizer, template: str | None, question: str) -> None:
    made = encoder(tokenizer, template)
    # The question's words are also elsewhere: in the system prompt and in an earlier turn.
    turns = [Turn("system", question), Turn("user", question, 2), Turn("assistant", question), Turn("user", question)]
    for some in (turns[:2], turns):
        prompt = made.encode(some)
        span = prompt.span("question")
        assert len(span)
        text = tokenizer.decode(prompt.ids[span].tolist(), skip_special_tokens=False)
        assert "".join(question.split()) == "".join(text.split())
        images = list(prompt.image_positions)
        if len(some) > 2:
            assert span.min() > max(images)
        everything = prompt.span("all")
        assert sorted([*everything, *images]) == list(range(len(prompt.ids)))
        after = prompt.span("after_image")
        assert after.tolist() == list(range(max(images) + 1, len(prompt.ids)))


def test_a_blank_question_falls_back_to_what_follows_the_image(tokenizer: Tokenizer) -> None:
    prompt = encoder(tokenizer).encode([Turn("user", " ", 1)])
    assert prompt.span("question").tolist() == prompt.span("after_image").tolist()


def test_default_template(tokenizer: Tokenizer) -> None:
    made = ChatTemplate(None, "<image>", {})
    assert made.render([Turn("user", "Why?", 1)]).text == "USER: <image>\nWhy? ASSISTANT:"
    turns = [Turn("system", "Be brief."), Turn("user", "Why?", 2), Turn("assistant", "So."), Turn("user", "How?")]
    expected = "Be brief. USER: <image>\n<image>\nWhy? ASSISTANT: So. USER: How? ASSISTANT:"
    assert made.render(turns).text == expected
    assert ChatTemplate(LLAVA, "<image>", {}).render(turns).text == expected


def test_templates_for_plain_text(tokenizer: Tokenizer) -> None:
    made = ChatTemplate(STRINGS_ONLY, "<image>", {"eos_token": "</s>"})
    assert made.render([Turn("user", "Why?", 1)]).text == "[user] <image>\nWhy?</s>[assistant]"


def test_raw_prompts(tokenizer: Tokenizer) -> None:
    made = encoder(tokenizer)
    text = "Look: <image> and <image>, what?"
    prompt = made.encode([Turn("user", text, 2)], raw=True)
    assert prompt.ids.tolist() == tokenizer.encode(text).ids
    assert prompt.span("all").size == len(prompt.ids) - 2
    for bad in ("no placeholder", "<image> one"):
        with pytest.raises(InputError, match="for 2 image"):
            made.encode([Turn("user", bad, 2)], raw=True)


def test_a_placeholder_in_the_question(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="stands for an image"):
        encoder(tokenizer).encode([Turn("user", "what is <image>?", 1)])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a lone \ud800 surrogate", "character 7"),
        (None, "NoneType"),
        (5, "int"),
        (b"bytes", "bytes"),
        ("x" * 1_000_000, "1,000,000 characters"),
    ],
)
@pytest.mark.parametrize("raw", [False, True])
def test_questions_that_are_no_text(tokenizer: Tokenizer, text: Any, said: str, raw: bool) -> None:
    with pytest.raises(InputError, match=said) as caught:
        encoder(tokenizer).encode([Turn("user", text, 1)], raw=raw)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "raw", "notes"), [("", False, 1), (" \n", False, 1), ("", True, 0), ("Why?", False, 0)]
)
def test_an_empty_question_is_noted(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture, text: str, raw: bool, notes: int
) -> None:
    made = PromptEncoder(files(tokenizer, LLAVA), "<image>", tokenizer.token_to_id("<image>"))
    for _ in range(2):  # said once
        made.encode([Turn("user", text, 0 if raw else 1)], raw=raw)
    assert len(caplog.records) == notes
    assert all("empty" in record.message for record in caplog.records)


def test_find_template() -> None:
    config = {"tokenizer_config.json": json.dumps({"chat_template": "C"})}
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    assert find_template({}) is None
    assert find_template({"tokenizer_config.json": "{}"}) is None
    assert find_template(config) == "C"
    assert find_template(config | {"chat_template.json": json.dumps({"chat_template": "J"})}) == "J"
    assert find_template(config | {"chat_template.jinja": "X"}) == "X"
    assert find_template({"tokenizer_config.json": json.dumps({"chat_template": named})}) == "D"
    for bad in ("{", json.dumps({"chat_template": 3})):
        with pytest.raises(EngineDirError, match="chat_template"):
            find_template({"chat_template.json": bad})


GROW = (
    "{{% set n = namespace(x={start}) %}}{{% for i in range(99) %}}{{% set n.x = {step} %}}{{% endfor %}}{{{{ n.x }}}}"
)
HOSTILE = {
    "syntax": "{% for %}",
    "unclosed": "{{ messages",
    "dunder": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "attr-filter": "{{ ''|attr('__class__') }}{{ ''.__class__.__mro__ }}",
    "globals": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "range": "{% for i in range(10**12) %}x{% endfor %}",
    "nested": "{% for i in range(99999) %}{% for j in range(99999) %}xxxxxxxx{% endfor %}{% endfor %}",
    "repeat": "{{ 'x' * 10**10 }}",
    "power": "{{ 9**9**9 }}",
    "raises": "{{ raise_exception('only alternating roles') }}",
    "mutates": "{{ messages.append(1) }}",
    "undefined-call": "{{ nothing() }}",
    "type-error": "{{ 1 + 'a' }}",
    "division": "{{ 1 / 0 }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "include": "{% include '/etc/passwd' %}",
    "format": "{{ '%0999999999d' % 1 }}",
    "center": "{{ 'a'|center(9999999999) }}",
    "idle-loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "zfill": "{{ 'a'.zfill(9999999999) }}",
    "format-method": "{{ '{:9999999999}'.format(1) }}",
    "format-filter": "{{ '%09999999999d'|format(1) }}",
    "indent": "{{ 'a\nb'|indent(9999999999) }}",
    "doubling": GROW.format(start="'aaaaaaaa'", step="n.x + n.x"),
    "lists": GROW.format(start="[1]", step="n.x + n.x"),
    "tilde": GROW.format(start="'aa'", step="n.x ~ n.x"),
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}",
    "replace": "{{ ('a' * 9999)|replace('a', 'a' * 99999) }}",
    "indent-of-json": "{{ messages|tojson(indent=999999999) }}",
    "nested-lists": GROW.format(start="[]", step="[n.x, n.x]"),
    "sum": GROW.format(start="[[1]]", step="[n.x|sum(start=n.x[0])] * 2"),
    "break": "{% break %}",
    "deep": "{% if 1 %}" * 30 + "{% endif %}" * 30,
    "long-number": "{{ " + "1" * 5000 + " }}",
    "no-image": "{% for m in messages %}{{ m['role'] }}{% endfor %}",
}


@pytest.fixture(scope="module")
def little_memory() -> Iterator[None]:
    """To fill it takes less time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "MEMORY", 200_000_000)
        process.stop()
        yield
    process.stop()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates(little_memory: None, name: str) -> None:
    with pytest.raises(TrtpruneError) as caught:
        encoder(SMALL, HOSTILE[name]).encode([Turn("user", "Why?", 1)])
    assert "\n" not in str(caught.value)
    assert caught.value.hint


SMALL = byte_level()
SMALL.add_special_tokens(SPECIALS)


def test_template_helpers() -> None:
    source = "{{ {'b': 'ä<'}|tojson }} {% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{% endfor %}x"
    made = ChatTemplate(source, "<image>", {})
    assert made.render([Turn("user", "Why?")]).text == '{"b": "ä<"} x'
    assert ChatTemplate("{{ strftime_now('%Y')|length }}", "<image>", {}).render([Turn("user", "")]).text == "4"
    marked = "{% for m in messages %}a{% generation %}b{% endgeneration %}{% endfor %}"
    assert ChatTemplate(marked, "<image>", {}).render([Turn("user", "")]).text == "ab"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tokenizer.json": "{}"}, "tokenizer.json"),
        ({"tokenizer.json": None}, "tokenizer.json"),
        ({"tokenizer_config.json": "["}, "tokenizer_config.json"),
        ({"tokenizer_config.json": "[]"}, "tokenizer_config.json"),
    ],
)
def test_broken_files(changes: dict[str, Any], named: str) -> None:
    found = {name: text for name, text in (files(SMALL, None) | changes).items() if text is not None}
    with pytest.raises(EngineDirError, match=named):
        PromptEncoder(found, "<image>", SMALL.token_to_id("<image>"))


def test_a_placeholder_the_tokenizer_does_not_know() -> None:
    with pytest.raises(EngineDirError, match="placeholder"):
        PromptEncoder(files(SMALL, None), "<picture>", 7)


# -- streaming


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_pieces_add_up(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """Any ids: broken characters, special tokens, leading spaces."""
    made = encoder(tokenizer)
    if data.draw(st.booleans()):
        text = data.draw(st.text(max_size=30))
        ids = tokenizer.encode(text, add_special_tokens=False).ids
    else:
        ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=30))
    reader = made.detokenizer()
    pieces = [reader.add(token) for token in ids] + [reader.finish()]
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True) == reader.text
    for piece in pieces[:-1]:
        assert not piece.endswith("\ufffd")


@settings(max_examples=300, deadline=None)
@given(text=st.text("abcé ", max_size=40), stops=st.lists(st.text("abcé ", min_size=1, max_size=5), max_size=3))
def test_stop_strings(tokenizer: Tokenizer, text: str, stops: list[str]) -> None:
    """What is sent never holds a stop string, nor the beginning of one that came true."""
    made = encoder(tokenizer)
    reader = made.detokenizer(stops)
    sent = ""
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    whole = tokenizer.decode(ids)
    places = [place for stop in stops if (place := whole.find(stop)) >= 0]
    for token in ids:
        sent += reader.add(token)
        assert whole.startswith(sent)
        if reader.stopped:
            break
    sent += reader.finish()
    assert reader.stopped == bool(places)
    assert sent == reader.text
    if not places:
        assert sent == whole
    else:
        # A token may complete two stop strings at once; the first in the text ends it.
        assert not any(stop in sent for stop in stops)


@settings(max_examples=200, deadline=None)
@given(
    text=st.text("abcé ", max_size=40),
    stops=st.lists(st.text("abcé ", min_size=1, max_size=5), max_size=3),
    shortest=st.integers(0, 12),
)
def test_stop_strings_within_the_shortest_answer(
    tokenizer: Tokenizer, text: str, stops: list[str], shortest: int
) -> None:
    """Only a stop string that ends behind the first tokens' text ends the answer."""
    made = encoder(tokenizer)
    reader = made.detokenizer(stops, shortest)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    texts = [tokenizer.decode(ids[: count + 1]) for count in range(len(ids))]
    wanted, free = tokenizer.decode(ids), 0
    for count, whole in enumerate(texts, 1):
        if count <= shortest:
            free = len(whole)
            continue
        ends = [p for stop in stops for p in range(len(whole)) if whole.startswith(stop, p) and p + len(stop) > free]
        if ends:
            wanted = whole[: min(ends)]
            break
    sent = ""
    for token in ids:
        sent += reader.add(token)
        if reader.stopped:
            break
    assert sent + reader.finish() == wanted


def test_empty_stop_string(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="stop: an empty"):
        encoder(tokenizer).detokenizer([""])


def test_no_files_are_read(tmp_path: Path) -> None:
    """Templates come as text: nothing is looked up beside them."""
    (tmp_path / "x.jinja").write_text("secret")
    with pytest.raises(TrtpruneError):
        encoder(SMALL, "{% extends 'x.jinja' %}").encode([Turn("user", "Why?", 1)])
