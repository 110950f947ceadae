"""The facts of tokenizer and chat template for ``config.json``: what is needed beside ``tokenizer.json``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from trtprune.text.compiling import NotCompilableError, compile_pieces
from trtprune.text.info import AddedToken, TemplateInfo, TextInfo, TokenizerInfo
from trtprune.text.sandbox import Constants, constants
from trtprune.text.template import ChatTemplate, Turn
from trtprune.text.tokens import Tokens, without_decoder
from trtprune.text.verifying import check_pieces

__all__ = ["COMPILE_SECONDS", "describe_texts"]

COMPILE_SECONDS = 8.0
"""The processor time after which the compilation of a template is given up."""
MOST_SPECIAL = 20
"""Special tokens whose texts are tried in conversations."""
SAMPLES = ("", "a", "a b", "\n", "What is 3 + 4?", "é猫🐈")


def describe_texts(tokens: Tokens, template: ChatTemplate) -> TextInfo:
    """Tokenizer and template, the latter as pieces if it can be."""
    # Some tokenizers have hundreds of special tokens, all but the named ones reserved.
    special = list(dict.fromkeys([*tokens.named.values(), *sorted(tokens.special)]))[:MOST_SPECIAL]
    try:
        return TextInfo(_tokenizer(tokens), _pieces(template, special))
    except NotCompilableError as error:
        return TextInfo(_tokenizer(tokens), None, f"the chat template {error}")


def _tokenizer(tokens: Tokens) -> TokenizerInfo:
    tokenizer = tokens.tokenizer
    with without_decoder(tokenizer):
        added = tuple(
            AddedToken(
                id=number,
                content=token.content,
                single_word=token.single_word,
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                normalized=token.normalized,
                special=token.content in tokens.special,
                skipped=number in tokens.skipped_ids,
                decoded=tokenizer.decode([number], skip_special_tokens=False),
            )
            for number, token in sorted(tokenizer.get_added_tokens_decoder().items())
        )
    before, after = _around(tokenizer)
    bos = tokens.named.get("bos_token") or None
    return TokenizerInfo(added, tokenizer.encode_special_tokens, before, after, bos)


def _around(tokenizer: Any) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """The ids that are put around those of every text; None if anything else is done with special tokens."""
    places: set[tuple[tuple[int, ...], tuple[int, ...]]] | None = None
    for text in SAMPLES:
        plain = tokenizer.encode(text, add_special_tokens=False).ids
        whole = tokenizer.encode(text, add_special_tokens=True).ids
        size = len(plain)
        starts = (i for i in range(len(whole) - size + 1) if whole[i : i + size] == plain)
        found = {(tuple(whole[:start]), tuple(whole[start + size :])) for start in starts}
        places = found if places is None else places & found
    return next(iter(places)) if places is not None and len(places) == 1 else (None, None)


def _pieces(template: ChatTemplate, special: Sequence[str]) -> TemplateInfo:
    """The template's pieces, compared with it.

    Raises:
        NotCompilableError: if it cannot be written as pieces, or not in time.
    """
    end = time.process_time() + COMPILE_SECONDS

    def watch() -> None:
        if time.process_time() > end:
            raise NotCompilableError(f"takes more than {COMPILE_SECONDS:.0f} s to compile")
        if template.dated:
            raise NotCompilableError("prints the date")

    def text(turns: Sequence[Turn]) -> str:
        written = template.text(turns)
        watch()
        try:
            written.encode("utf-8")
        except UnicodeEncodeError:
            raise NotCompilableError("writes what is not Unicode text") from None
        return written

    named = Constants() if template.source is None else constants(template.source)
    info = compile_pieces(text, template.image_token, own_images=template.own_images, stripped=named.stripped)
    check_pieces(info, template, watch, named, special)
    watch()
    return info
