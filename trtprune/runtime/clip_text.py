"""The question as CLIP reads it: tokens of CLIP's own tokenizer, in segments its text tower can take.

CLIP's tower reads 77 tokens at most, the first and the last of them fixed.  A longer question becomes several texts,
each with both; methods average over them.  (CDPruner's code cuts the row of ids instead, so that only the first piece
begins and only the last one ends like a text; up to 75 tokens there is no difference.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from trtprune.errors import EngineDirError, InputError
from trtprune.runtime.kv_cache import check_length

if TYPE_CHECKING:
    from trtprune.backends.base import Array
    from trtprune.runtime.chain import Chain
    from trtprune.runtime.prompt import Prompt

__all__ = ["ClipText"]

COMPONENT = "clip_text"
TOKENIZER = "clip_tokenizer.json"
OUTPUT = "clip_text_embeds"
# Segments in one run: a question has one, and a text of many pages must not take memory for all of them at once.
BATCH = 8


class ClipText:
    """Tokenizer of CLIP and how its text tower is run.

    Args:
        chain: Of an engine directory; without a component ``clip_text`` there is nothing to read.
        files: Content of the directory's text files by name.

    Raises:
        EngineDirError: if the tokenizer is missing or broken.
    """

    def __init__(self, chain: Chain, files: Mapping[str, str]) -> None:
        self._chain = chain
        self.tokenizer = _load(files) if COMPONENT in chain.config.chain else None
        if self.tokenizer is not None:
            (spec,) = chain.config.component(COMPONENT).inputs
            self._length = spec.shape[1] if isinstance(spec.shape[1], int) else None
            self._end = int(self.tokenizer.encode("").ids[-1])

    def read(self, prompt: Prompt) -> dict[str, Array]:
        """``clip_text_embeds`` float32 [M, P] of the user's words; nothing where no text tower is in the chain.

        Raises:
            InputError: if the text is longer than any prompt of this build.
        """
        if self.tokenizer is None:
            return {}
        chain = self._chain
        # Before minutes are spent on what will be refused anyway.
        check_length(len(prompt.ids), 1, chain.config.kv.capacity)
        ids, session = self.segments(prompt.text), chain.session(COMPONENT)
        size = min(BATCH, session.max_batch)
        found = [session.run({"input_ids": ids[i : i + size]})[OUTPUT] for i in range(0, len(ids), size)]
        return {OUTPUT: found[0] if len(found) == 1 else chain.memory.join([found], len(ids))[0]}

    def segments(self, text: str) -> np.ndarray:
        """int64 [M, length] ids of a text, each row padded with the end-of-text token.

        Raises:
            InputError: if it cannot be tokenised.
        """
        assert self.tokenizer is not None
        try:
            whole: Any = self.tokenizer.encode(text)
        except Exception as error:  # the Rust library raises bare Exception
            raise InputError(f"the prompt cannot be tokenised for CLIP: {str(error)[:200]}") from None
        rows = [whole.ids, *(piece.ids for piece in whole.overflowing)]
        ids = np.full((len(rows), self._length or max(map(len, rows))), self._end, np.int64)
        for row, found in zip(ids, rows, strict=True):
            row[: len(found)] = found
        return ids


def _load(files: Mapping[str, str]) -> Any:
    import tokenizers

    again = "build the directory again"
    if TOKENIZER not in files:
        raise EngineDirError(f"{TOKENIZER} is missing", hint=again)
    try:
        tokenizer = tokenizers.Tokenizer.from_str(files[TOKENIZER])
        around = tokenizer.encode("").ids
    except Exception as error:  # the Rust library raises bare Exception
        raise EngineDirError(f"{TOKENIZER} cannot be read: {str(error)[:200]}", hint=again) from None
    limit = (tokenizer.truncation or {}).get("max_length")
    if not isinstance(limit, int) or limit < 3 or len(around) != 2:
        raise EngineDirError(f"{TOKENIZER} does not cut texts into segments", hint=again)
    return tokenizer
