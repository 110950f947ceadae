"""The tokenizer's facts in ``config.json``: with ``tokenizer.json`` alone they give ids and texts of all files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, processors

from tests.runtime.test_prompt import byte_level, llama
from tests.text.test_tokens import TEXTS, checkpoints, prompts, write
from trtprune.text.describing import describe_texts
from trtprune.text.info import TextInfo, TokenizerInfo, wrong_texts
from trtprune.text.template import ChatTemplate
from trtprune.text.tokens import open_tokens

FLAGS = ("id", "content", "single_word", "lstrip", "rstrip", "normalized", "special")


def facts(texts: dict[str, str]) -> TokenizerInfo:
    info = describe_texts(open_tokens(texts), ChatTemplate(None, "<image>", {}))
    assert not list(wrong_texts(info))
    return info.tokenizer


def rebuilt(text: str, info: TokenizerInfo) -> Tokenizer:
    """``tokenizer.json`` with the member's tokens in place of its own, and nothing else."""
    data = json.loads(text)
    data["added_tokens"] = [{name: getattr(token, name) for name in FLAGS} for token in info.added_tokens]
    data["truncation"] = data["padding"] = None
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.encode_special_tokens = info.encode_special_tokens
    return tokenizer


def decoded(tokenizer: Tokenizer, info: TokenizerInfo, ids: list[int]) -> str:
    """An answer's text by the member: skipped ids left out, the decoder on the others' texts."""
    added = {token.id: token for token in info.added_tokens}
    kept = [number for number in ids if number not in added or not added[number].skipped]
    texts = [added[number].decoded if number in added else tokenizer.id_to_token(number) for number in kept]
    return str(tokenizer.decoder.decode(texts))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("facts")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(files=checkpoints(), some=st.lists(prompts, max_size=3))
def test_the_member_says_all(folder: Path, files: dict[str, Any], some: list[str]) -> None:
    texts = write(folder, files)
    ours, info = open_tokens(texts).tokenizer, facts(texts)
    alone = rebuilt(texts["tokenizer.json"], info)
    assert ours.decoder is not None
    for text in [*some, "".join(TEXTS), " ".join(TEXTS)]:
        ids = ours.encode(text).ids
        assert alone.encode(text).ids == ids
        assert decoded(alone, info, ids) == ours.decode(ids, skip_special_tokens=True)
    everything = list(range(ours.get_vocab_size()))
    assert decoded(alone, info, everything) == ours.decode(everything, skip_special_tokens=True)


def with_processor(processor: Any) -> dict[str, str]:
    tokenizer = byte_level()
    tokenizer.add_special_tokens(["<s>", "</s>", "<image>"])
    tokenizer.post_processor = processor
    return {"tokenizer.json": tokenizer.to_str(), "tokenizer_config.json": json.dumps({"bos_token": "<s>"})}


IDS = {"<s>": 400, "</s>": 401}


def template(single: str) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(single=single, pair="$A $B", special_tokens=list(IDS.items()))


@pytest.mark.parametrize(
    ("processor", "before", "after"),
    [
        (None, (), ()),
        (processors.ByteLevel(trim_offsets=True), (), ()),
        (template("<s> $A"), (400,), ()),
        (template("<s> $A </s>"), (400,), (401,)),
        (template("$A </s>"), (), (401,)),
        (template("<s> <s> $A"), (400, 400), ()),
        (template("$A"), (), ()),
        (template("<s> $A </s> $A"), None, None),
        (template("<s>"), None, None),
        (processors.BertProcessing(("</s>", 401), ("<s>", 400)), (400,), (401,)),
        (processors.RobertaProcessing(("</s>", 401), ("<s>", 400)), (400,), (401,)),
        (processors.Sequence([processors.ByteLevel(), template("<s> $A")]), (400,), ()),
    ],
)
def test_ids_around_a_text(processor: Any, before: tuple[int, ...] | None, after: tuple[int, ...] | None) -> None:
    texts = with_processor(processor)
    tokenizer, info = open_tokens(texts).tokenizer, facts(texts)
    assert tokenizer.token_to_id("<s>") == IDS["<s>"]
    assert (info.before, info.after, info.bos) == (before, after, "<s>")
    if before is not None and after is not None:
        for text in ("", "What is on the table?", "<s>a<image>", " \n"):
            plain = tokenizer.encode(text, add_special_tokens=False).ids
            assert tokenizer.encode(text).ids == [*before, *plain, *after]


def test_what_the_decoder_gets_for_a_normalized_token() -> None:
    """The library decodes it in its normal form, and does not skip it then, even if it is special."""
    tokenizer = llama()
    tokenizer.add_tokens([AddedToken("<a>", normalized=True, special=True), AddedToken("<b>", normalized=False)])
    texts = {"tokenizer.json": tokenizer.to_str()}
    found = {token.content: token for token in facts(texts).added_tokens}
    assert (found["<a>"].decoded, found["<a>"].special, found["<a>"].skipped) == ("▁<a>", True, False)
    assert (found["<b>"].decoded, found["<b>"].special, found["<b>"].skipped) == ("<b>", False, False)
    made = open_tokens(texts)
    number = made.tokenizer.token_to_id("<a>")
    assert made.tokenizer.decode([5, number], skip_special_tokens=True).endswith("<a>")
    assert number not in made.skipped_ids


def test_a_faulty_member() -> None:
    info = facts(with_processor(None))
    token = info.added_tokens[0]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"added_tokens": info.added_tokens[::-1]}, "ascending ids"),
        ({"added_tokens": (token, token)}, "ascending ids"),
        ({"added_tokens": (dataclasses.replace(token, id=-1),)}, "ascending ids"),
        ({"added_tokens": (token, dataclasses.replace(token, id=9999))}, "texts of their own"),
        ({"added_tokens": (dataclasses.replace(token, content=""),)}, "texts of their own"),
        ({"before": None}, "belong together"),
        ({"before": (-1,)}, "a token id is at least 0"),
    ]
    for changes, said in cases:
        faulty = TextInfo(dataclasses.replace(info, **changes), None, "a reason")
        assert any(said in line for line in wrong_texts(faulty)), changes
    assert any("reason" in line for line in wrong_texts(TextInfo(info, None)))
