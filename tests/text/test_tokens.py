"""Tokens beside tokenizer.json: ids, texts and names as transformers has them, for every file that may hold them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer

from tests.runtime.test_prompt import byte_level, llama
from trtprune.errors import EngineDirError
from trtprune.text.tokens import open_tokens

NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
TEXTS = ["<a>", "<b>", "<image>", "cat", "the", "table", "<|im_start|>", "東", "x y", "<pad>", "</s>"]
BASE = {"byte-level": byte_level(), "llama": llama()}
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")

contents = st.sampled_from(TEXTS)
flags = st.fixed_dictionaries({flag: st.booleans() for flag in FLAGS})


def entry(content: str, given: dict[str, bool]) -> dict[str, Any]:
    return {"content": content, **given}


entries = st.builds(entry, contents, flags)
typed = entries.map(lambda value: {"__type": "AddedToken", **value})
# special_tokens_map.json says nothing of "special": it goes without saying.
of_map = entries.map(lambda value: {key: item for key, item in value.items() if key != "special"})
names = st.dictionaries(st.sampled_from([*NAMES, "image_token", "boi_token"]), st.one_of(contents, typed), max_size=3)
extra = st.one_of(
    st.fixed_dictionaries({"additional_special_tokens": st.lists(st.one_of(contents, typed), max_size=3)}),
    st.fixed_dictionaries({"extra_special_tokens": st.lists(st.one_of(contents, typed), max_size=3)}),
    st.fixed_dictionaries(
        {"extra_special_tokens": st.dictionaries(st.sampled_from(["image_token", "mark_token"]), contents, max_size=2)}
    ),
    st.just({}),
)
decoder = st.lists(entries, max_size=4, unique_by=lambda value: value["content"])
prompts = st.lists(st.sampled_from([*TEXTS, " ", "  ", "a", "s", "\n", "What is", "?", "é"]), max_size=12).map("".join)


@st.composite
def checkpoints(draw: st.DrawFn) -> dict[str, Any]:
    """Content by file name; of tokenizer.json, what is to be added to which tokenizer."""
    made = {"base": draw(st.sampled_from(sorted(BASE))), "tokens": draw(decoder)}
    size = BASE[made["base"]].get_vocab_size() + 8
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **draw(names), **draw(extra)}
    if draw(st.booleans()):  # as transformers 4 writes it
        numbers = draw(st.lists(st.integers(0, size + 4), min_size=4, max_size=4, unique=True))
        tokens = draw(decoder)
        config["added_tokens_decoder"] = {str(n): value for n, value in zip(numbers, tokens, strict=False)}
    if draw(st.booleans()):
        config["split_special_tokens"] = draw(st.booleans())
    files = {"tokenizer.json": made, "tokenizer_config.json": config}
    if draw(st.booleans()):
        found: dict[str, Any] = draw(st.dictionaries(st.sampled_from(NAMES), st.one_of(contents, of_map), max_size=3))
        if draw(st.booleans()):
            found["additional_special_tokens"] = draw(st.lists(contents, max_size=3))
        files["special_tokens_map.json"] = found
    if draw(st.booleans()):
        new = draw(st.lists(contents, max_size=3, unique=True))
        files["added_tokens.json"] = {text: size + number for number, text in enumerate(new)}
    return files


def write(folder: Path, files: dict[str, Any]) -> dict[str, str]:
    """The files of a drawn checkpoint, and their texts."""
    for old in folder.iterdir():
        old.unlink()
    made = files["tokenizer.json"]
    tokenizer = Tokenizer.from_str(BASE[made["base"]].to_str())
    tokenizer.add_special_tokens(["<s>", "</s>", "<unk>"])
    tokenizer.add_tokens([AddedToken(**value) for value in made["tokens"]])
    (folder / "config.json").write_text(json.dumps({"model_type": "llava", "transformers_version": "5.0.0"}))
    texts = {name: json.dumps(content) for name, content in files.items()} | {"tokenizer.json": tokenizer.to_str()}
    for name, text in texts.items():
        (folder / name).write_text(text)
    return texts


def same(folder: Path, texts: dict[str, str], some: list[str]) -> Any:
    theirs = AutoTokenizer.from_pretrained(folder)
    ours = open_tokens(texts)
    assert dict(ours.named) == theirs.special_tokens_map
    for text in [*some, "".join(TEXTS), " ".join(TEXTS)]:
        wanted = theirs(text)["input_ids"]
        encoding = ours.tokenizer.encode(text)
        assert encoding.ids == wanted
        wanted = theirs.decode(encoding.ids, skip_special_tokens=True)
        assert ours.tokenizer.decode(encoding.ids, skip_special_tokens=True) == wanted
    assert [repr(t) for t in ours.tokenizer.get_added_tokens_decoder().values()] == [
        repr(t) for t in theirs.added_tokens_decoder.values()
    ]
    return theirs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokens")


@pytest.mark.parametrize("in_map", [{}, {"additional_special_tokens": ["<a>"]}], ids=str)
@pytest.mark.parametrize("in_config", [None, [], ["<b>"]], ids=str)
def test_an_empty_list_of_further_tokens_counts(folder: Path, in_config: list[str] | None, in_map: Any) -> None:
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if in_config is not None:
        config["additional_special_tokens"] = in_config
    tokens = {"base": "byte-level", "tokens": []}
    files = {"tokenizer.json": tokens, "tokenizer_config.json": config, "special_tokens_map.json": in_map}
    same(folder, write(folder, files), ["<a> b", "<b> a"])


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(files=checkpoints(), some=st.lists(prompts, max_size=3))
def test_tokens_are_those_of_transformers(folder: Path, files: dict[str, Any], some: list[str]) -> None:
    same(folder, write(folder, files), some)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(files=checkpoints(), some=st.lists(prompts, max_size=3))
def test_files_that_transformers_saved(folder: Path, files: dict[str, Any], some: list[str]) -> None:
    """What is read of a checkpoint, and what is read of it when transformers has saved it again."""
    theirs = same(folder, write(folder, files), some)
    for old in folder.iterdir():
        old.unlink()
    theirs.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llava", "transformers_version": "5.0.0"}))
    same(folder, {path.name: path.read_text() for path in folder.iterdir()}, some)


def test_entries_that_do_not_say_what_they_are(folder: Path) -> None:
    """Transformers 4 wrote special tokens of special_tokens_map.json as plain objects; their flags count."""
    files = {
        "tokenizer.json": {"base": "byte-level", "tokens": []},
        "tokenizer_config.json": {},
        "special_tokens_map.json": {"additional_special_tokens": [{"content": "<new>", "rstrip": True}]},
    }
    found = open_tokens(write(folder, files))
    (number,) = found.tokenizer.encode("<new>   ").ids
    assert number in found.skipped_ids


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", {"additional_special_tokens": 5}),
        ("tokenizer_config.json", {"additional_special_tokens": [5]}),
        ("tokenizer_config.json", {"extra_special_tokens": {"a_token": []}}),
        ("tokenizer_config.json", {"added_tokens_decoder": []}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "a"}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"1": "a"}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"1": {"content": "a", "lstrip": "yes"}}}),
        ("tokenizer_config.json", {"bos_token": 7}),
        ("tokenizer_config.json", {"eos_token": {"content": None}}),
        ("special_tokens_map.json", {"additional_special_tokens": "<a>"}),
        ("special_tokens_map.json", ["<a>"]),
        ("added_tokens.json", {"<a>": "7"}),
        ("added_tokens.json", {"<a>": True}),
        ("tokenizer.json", {"version": "1.0"}),
    ],
)
def test_broken_entries(folder: Path, name: str, content: Any) -> None:
    files = {"tokenizer.json": {"base": "byte-level", "tokens": []}, "tokenizer_config.json": {}}
    texts = write(folder, files) | {name: json.dumps(content)}
    with pytest.raises(EngineDirError, match="token") as caught:
        open_tokens(texts)
    assert caught.value.hint


HOSTILE_TEXTS = {
    "objects": '{"a": [' + "{}," * 200_000 + "{}]}",
    "lists": '{"a": [' + "[]," * 4_100_000 + "[]]}",
    "values": '{"a": [' + "1," * 10_100_000 + "1]}",
    "characters": '"' + "x" * 64_100_000 + '"',
}


@pytest.mark.parametrize("kind", HOSTILE_TEXTS)
def test_files_of_which_a_parser_makes_too_much(kind: str) -> None:
    with pytest.raises(EngineDirError, match=f"tokenizer.json: .*{kind}") as caught:
        open_tokens({"tokenizer.json": HOSTILE_TEXTS[kind]})
    assert caught.value.hint
