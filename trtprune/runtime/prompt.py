"""From turns to token ids, with the places of images and question; and from ids back to text.

Ids equal those of transformers' LLaVA processor with each run of image placeholders written once.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trtprune.arguments import arg
from trtprune.engine_dir.json_dataclasses import decode
from trtprune.errors import EngineDirError, InputError
from trtprune.text.info import TemplateInfo, TextInfo
from trtprune.text.limits import MAX_RENDERED_CHARS
from trtprune.text.process import TextModel
from trtprune.text.template import Turn
from trtprune.text.tokens import is_panic, open_tokens

__all__ = ["Detokenizer", "Prompt", "PromptEncoder"]

logger = logging.getLogger("trtprune")
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "processor_config.json",
    "chat_template.json",
    "chat_template.jinja",
)
MAX_CHARS = MAX_RENDERED_CHARS // 2


@dataclass(frozen=True)
class Prompt:
    """A tokenised prompt.

    Attributes:
        ids: int64 [T], with one placeholder for each span of an image.
        image_positions: Indices into ``ids`` of the placeholders, ascending.
        question: Indices into ``ids`` of the tokens of the last user turn's text; may be empty.
        text: That text, without placeholders.
        markers: Indices into ``ids`` of the tokens of the text around and between the spans of an image.
    """

    ids: np.ndarray
    image_positions: tuple[int, ...]
    question: tuple[int, ...]
    text: str = ""
    markers: tuple[int, ...] = ()

    def span(self, name: str) -> np.ndarray:
        """Indices (int64) of the text tokens a method selects by.

        ``question``: the user's words; ``after_image``: every text token behind the last image; ``all``: every text
        token.  Placeholders and the markers of images are never part of it.
        """
        images = {*self.image_positions, *self.markers}
        if name == "question" and self.question:
            chosen: Iterable[int] = self.question
        elif name == "all":
            chosen = range(len(self.ids))
        else:  # also a question of which no token can be told apart: what follows the image contains it
            chosen = range(max(images, default=-1) + 1, len(self.ids))
        found = [i for i in chosen if i not in images]
        return np.array(found, np.int64)


class PromptEncoder:
    """Tokenizer and chat template of one model.

    Both come from the checkpoint, so prompts are made in a second process with limits (:mod:`trtprune.text`).

    Args:
        files: Content of the tokenizer files by name: ``tokenizer.json`` and those that exist of
            ``tokenizer_config.json``, ``special_tokens_map.json``, ``added_tokens.json``, ``processor_config.json``,
            ``chat_template.*``.
        image_token: The placeholder's text.
        image_token_id: Its id in the model.
        template: The chat template as pieces; None: the template of the files, by jinja2.
        video_token: Text that stands for a video, which no prompt may hold; None: there is none.

    Raises:
        EngineDirError: if a file is broken, takes too much time or memory, or tokenizer and model disagree on the
            placeholder.
    """

    def __init__(
        self,
        files: Mapping[str, str],
        image_token: str,
        image_token_id: int,
        template: TemplateInfo | None = None,
        video_token: str | None = None,
    ) -> None:
        self.image_token, self.image_token_id = image_token, image_token_id
        self._video_token = video_token
        self._noted = False
        own = {name: files[name] for name in FILES if name in files}
        pieces = None if template is None else dataclasses.asdict(template)
        self._model = TextModel(
            "text", files=own, image_token=image_token, image_token_id=image_token_id, template=pieces
        )
        info = self._model.info
        self.byte_ids, self.skipped_ids = frozenset(info["byte_ids"]), frozenset(info["skipped_ids"])
        # Every token of an answer is decoded. Where that is known to be cheap it is done here: the same files were
        # read in the other process, within its limits.
        self._tokenizer = open_tokens(own).tokenizer if info["plain_decoder"] else None

    def encode(
        self, turns: Sequence[Turn], *, raw: bool = False, markers: Sequence[Sequence[str]] | None = None
    ) -> Prompt:
        """Tokenises turns through the chat template, or with ``raw`` the last turn's text as it is.

        Args:
            turns: A conversation, its last turn the user's.
            raw: Whether there is no template.
            markers: For each image of the conversation the text around and between its spans
                (:attr:`trtprune.runtime.images.TokenPlan.markers`); None: one span an image, and no such text.

        Raises:
            InputError: if the text holds another number of image placeholders than there are images, or cannot be
                tokenised.
        """
        for turn in turns:
            self._check(turn, raw)
        if not raw and not turns[-1].text.strip() and not self._noted:
            self._noted = True  # once: a file of requests may hold thousands
            logger.warning("the question is empty: the model sees the image and no words")
        plain = [[turn.role, turn.text, turn.images] for turn in turns]
        spans = None if markers is None else list(map(list, markers))
        found = self._model.ask("encode", turns=plain, raw=raw, markers=spans)
        ids = np.array(found["ids"], np.int64)
        positions = tuple(int(i) for i in np.flatnonzero(ids == self.image_token_id))
        text = turns[-1].text.replace(self.image_token, "")
        return Prompt(ids, positions, tuple(found["question"]), text, tuple(found["markers"]))

    def marker_tokens(self, markers: Sequence[str]) -> int:
        """The number of tokens of an image's markers (:attr:`trtprune.runtime.images.TokenPlan.markers`)."""
        if not any(markers):
            return 0
        return len(self.encode([Turn("user", self.image_token, 1)], raw=True, markers=[markers]).markers)

    def rehearse(self) -> list[str]:
        """Asks as a user will, to see at build what would fail at the first question.

        Returns:
            What users of the build should know, a line each.

        Raises:
            EngineDirError, InputError: if not even one question about one image can be asked.
        """
        notes: list[str] = self._model.ask("rehearse")
        return notes

    def describe(self) -> TextInfo:
        """Tokenizer and chat template for ``config.json``, the template as pieces if it can be written so.

        Raises:
            EngineDirError: if the template takes too much time or memory.
        """
        return decode(TextInfo, self._model.ask("describe"), "text")

    def decode(self, ids: Sequence[int]) -> str:
        """Text of an answer, without special tokens.

        Raises:
            EngineDirError: if the tokenizer cannot decode it.
        """
        numbers = [int(i) for i in ids]
        if self._tokenizer is None:
            return str(self._model.ask("decode", ids=numbers))
        try:
            return str(self._tokenizer.decode(numbers, skip_special_tokens=True))
        except BaseException as error:
            if not is_panic(error):
                raise
            raise EngineDirError(
                f"tokenizer.json cannot decode an answer: {str(error)[:200]}",
                hint="correct the checkpoint's tokenizer.json and build again",
            ) from None

    def token(self, number: int) -> str:
        """The text of one token, as far as possible."""
        named = None if self._tokenizer is None else self._tokenizer.id_to_token(number)
        return self.decode([number]) if named is None else str(named)

    def detokenizer(self, stop: Sequence[str] = (), shortest: int = 0) -> Detokenizer:
        """A detokenizer for one growing answer; arguments as of :class:`Detokenizer`."""
        return Detokenizer(self, stop, shortest)

    def _check(self, turn: Turn, raw: bool) -> None:
        if not isinstance(turn.text, str):
            raise InputError(
                f"the {turn.role} text is {type(turn.text).__name__} {str(turn.text)[:50]!r}, not a str",
                hint="give the question as text",
            )
        if len(turn.text) > MAX_CHARS:
            raise InputError(
                f"the {turn.role} text has {len(turn.text):,} characters; no prompt takes more than {MAX_CHARS:,}",
                hint="ask a shorter question",
            )
        try:
            turn.text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"the {turn.role} text is not Unicode text: a lone surrogate at character {error.start}",
                hint="it was read in another encoding than it was written in: read or set it as UTF-8",
            ) from None
        if self._video_token is not None and self._video_token in turn.text:
            raise InputError(
                f"the {turn.role} text contains {self._video_token!r}, which stands for a video",
                hint="videos are not supported: give single frames as images",
            )
        if not raw and self.image_token in turn.text:
            raise InputError(
                f"the {turn.role} text contains {self.image_token!r}, which stands for an image",
                hint="leave it out: images are put before the question; only a raw prompt holds it",
            )


class Detokenizer:
    """Turns a growing list of ids into pieces of text whose concatenation is the decoded whole.

    Bytes of an incomplete character, and an ending that may become a stop string, are held back.

    Args:
        encoder: The tokenizer.
        stop: Texts that end the answer.
        shortest: Tokens without an end: a stop string within their text does not count.
    """

    def __init__(self, encoder: PromptEncoder, stop: Sequence[str] = (), shortest: int = 0) -> None:
        if any(not text for text in stop):
            raise InputError(
                f"{arg('stop')}: an empty stop string would end every answer at once",
                hint="leave it out, or give a text",
            )
        self._encoder = encoder
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._endless, self._free = shortest, 0
        self._loose = 0
        self._sent = 0
        self.text = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """Adds one id; returns the text that is now final. ``stopped`` is true after a stop string."""
        if self.stopped:
            return ""
        self._endless -= 1
        if token in self._encoder.skipped_ids:
            return ""
        self._ids.append(token)
        self._loose = self._loose + 1 if token in self._encoder.byte_ids else 0
        # The whole answer each time: otherwise some tokenizers treat the first and last token differently.
        text = self._encoder.decode(self._ids)
        if self._endless >= 0:
            self._free = len(text)
        cut = _first(text, self._stop, self._free)
        if cut is not None:
            self.text, self.stopped = text[:cut], True
            return self._send(cut)
        self.text = text
        certain = len(text.rstrip("\ufffd"))
        if self._loose:
            # A run of byte tokens that is not UTF-8 is replaced as a whole, with its valid part.
            certain = min(certain, len(self._encoder.decode(self._ids[: -self._loose])))
        return self._send(certain - _partial(text[:certain], self._stop))

    def finish(self) -> str:
        """The rest of the text, after the last id."""
        return self._send(len(self.text))

    def _send(self, end: int) -> str:
        piece = self.text[self._sent : end]
        self._sent = max(self._sent, end)
        return piece


def _first(text: str, stop: Sequence[str], free: int) -> int | None:
    """The first place of a stop string that does not end within the first ``free`` characters."""
    places = [place for s in stop if (place := text.find(s, max(0, free - len(s) + 1))) >= 0]
    return min(places, default=None)


def _partial(text: str, stop: Sequence[str]) -> int:
    """Length of the longest ending of ``text`` that begins a stop string."""
    longest = 0
    for s in stop:
        for length in range(min(len(s) - 1, len(text)), longest, -1):
            if text.endswith(s[:length]):
                longest = length
                break
    return longest
