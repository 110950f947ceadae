"""The question for CLIP: tokens of CLIP's own tokenizer, in segments that fit its text tower.

CLIP's tower reads 77 tokens at most, the first and the last of them fixed.  A longer question becomes several texts,
each with both; methods average over them.  (CDPruner's code cuts the row of ids instead, so that only the first piece
has a text's beginning and only the last one its end; up to 75 tokens there is no difference.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from trtprune.backends.batches import TEXT_BATCH
from trtprune.engine_dir.roles import CLIP_TEXT
from trtprune.errors import EngineDirError
from trtprune.runtime.kv_cache import check_length
from trtprune.tensor_names import CLIP_TEXT_EMBEDS, INPUT_IDS
from trtprune.text.process import TextModel

if TYPE_CHECKING:
    from trtprune.backends.base import Array
    from trtprune.runtime.chain import Chain
    from trtprune.runtime.prompt import Prompt

__all__ = ["ClipText"]

TOKENIZER = "clip_tokenizer.json"
OUTPUT = CLIP_TEXT_EMBEDS
AGAIN = "build the directory again"


class ClipText:
    """CLIP's tokenizer and the runs of its text tower.

    Args:
        chain: The chain of an engine directory, which may lack a component of role ``clip_text``.
        files: Content of the directory's text files by name.

    Raises:
        EngineDirError: if the tokenizer is missing or broken.
    """

    def __init__(self, chain: Chain, files: Mapping[str, str]) -> None:
        self._chain = chain
        self._model = _open(files) if chain.config.find(CLIP_TEXT) else None
        if self._model is not None:
            (spec,) = chain.config.part(CLIP_TEXT).inputs
            self._length = spec.shape[1] if isinstance(spec.shape[1], int) else None
            self._end = int(self._model.info["around"][-1])

    def read(self, prompt: Prompt) -> dict[str, Array]:
        """``clip_text_embeds`` float32 [M, P] of the user's words; empty without a text tower in the chain.

        Raises:
            InputError: if the text is longer than any prompt of this build.
        """
        if self._model is None:
            return {}
        chain = self._chain
        # Before minutes are spent on a text that will be refused.
        check_length(len(prompt.ids), 1, chain.config.kv.capacity)
        ids, session = self.segments(prompt.text), chain.session(CLIP_TEXT)
        size = min(TEXT_BATCH, session.max_batch)
        found = [session.run({INPUT_IDS: ids[i : i + size]})[OUTPUT] for i in range(0, len(ids), size)]
        return {OUTPUT: found[0] if len(found) == 1 else chain.memory.join([found], len(ids))[0]}

    def segments(self, text: str) -> np.ndarray:
        """int64 [M, length] ids of a text, each row padded with the end-of-text token.

        Raises:
            InputError: if it cannot be tokenised.
        """
        assert self._model is not None
        rows = self._model.ask("segments", text=text)
        ids = np.full((len(rows), self._length or max(map(len, rows))), self._end, np.int64)
        for row, found in zip(ids, rows, strict=True):
            if len(found) > len(row):
                raise EngineDirError(
                    f"{TOKENIZER} cuts texts into {len(found)} tokens, the text tower reads {len(row)}", hint=AGAIN
                )
            row[: len(found)] = found
        return ids


def _open(files: Mapping[str, str]) -> TextModel:
    if TOKENIZER not in files:
        raise EngineDirError(f"{TOKENIZER} is missing", hint=AGAIN)
    # A file of unknown origin, like the model's own; see trtprune.text.
    return TextModel("clip", text=files[TOKENIZER], name=TOKENIZER)
