"""The conformance vectors of turns: from the member ``text`` and ``tokenizer.json`` alone, as is documented."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import Tokenizer

from tests.conformance import write_turns
from tests.text.test_describing import decoded, rebuilt
from trtprune.engine_dir.json_dataclasses import decode
from trtprune.errors import TrtpruneError
from trtprune.text.info import TextInfo, wrong_texts
from trtprune.text.pieces import PieceTemplate
from trtprune.text.template import Rendered, Turn

FILE = json.loads(write_turns.PATH.read_text(encoding="utf-8"))


def encoded(directory: dict[str, Any], tokenizer: Tokenizer, info: TextInfo, case: dict[str, Any]) -> dict[str, Any]:
    """The steps of docs/engine-directory.md."""
    turns = [Turn(*turn) for turn in case["turns"]]
    if case["raw"]:
        rendered = Rendered(turns[-1].text, 0, len(turns[-1].text))
    else:
        assert info.template is not None
        rendered = PieceTemplate(info.template).render(turns)
    bos, of_tokens = info.tokenizer.bos, info.tokenizer
    plain = tokenizer.encode(rendered.text, add_special_tokens=False)
    bare = not case["raw"] and bos is not None and rendered.text.startswith(bos)
    assert of_tokens.before is not None
    assert of_tokens.after is not None
    before, after = ((), ()) if bare else (of_tokens.before, of_tokens.after)
    ids = [*before, *plain.ids, *after]
    places = [*((0, 0) for _ in before), *plain.offsets, *((0, 0) for _ in after)]
    image = directory["image_token_id"]
    return {
        "rendered": rendered.text,
        "ids": ids,
        "image_positions": [i for i, number in enumerate(ids) if number == image],
        "question": [
            i
            for i, (start, end) in enumerate(places)
            if start < rendered.end and end > rendered.start and end > start and ids[i] != image
        ],
        "decoded": decoded(tokenizer, of_tokens, ids),
    }


@pytest.mark.parametrize("directory", FILE["directories"], ids=lambda directory: directory["name"])
def test_this_runtime(directory: dict[str, Any]) -> None:
    info = decode(TextInfo, directory["text"])
    assert not list(wrong_texts(info))
    tokenizer = rebuilt(json.dumps(FILE["tokenizers"][directory["tokenizer"]]), info.tokenizer)
    for case in directory["cases"]:
        if "error" not in case:
            found = encoded(directory, tokenizer, info, case)
            assert found == {name: case[name] for name in found}
        elif "refuses" in case["error"][1]:
            assert info.template is not None
            with pytest.raises(TrtpruneError) as caught:
                PieceTemplate(info.template).render([Turn(*turn) for turn in case["turns"]])
            assert [type(caught.value).__name__, caught.value.message, caught.value.hint] == case["error"]


def test_the_vectors_cover_what_differs() -> None:
    infos = [decode(TextInfo, directory["text"]) for directory in FILE["directories"]]
    templates = [info.template for info in infos if info.template is not None]
    kinds = {piece.kind for template in templates for _, pieces in template.all_pieces() for piece in pieces}
    assert kinds == {"literal", "images", "text", "system", "open", "close"}
    conditions = {
        name
        for template in templates
        for rule in template.user
        for name in ("system", "first", "last", "images")
        if getattr(rule, name) is not None
    }
    assert conditions >= {"system", "last", "images"}
    assert any(template.refusals for template in templates)
    assert {info.tokenizer.encode_special_tokens for info in infos} == {False, True}
    assert any(info.tokenizer.before for info in infos)


def test_the_file_is_what_the_script_writes() -> None:
    assert json.loads(write_turns.text()) == FILE
