"""Text to ids and back: turns to ids, ids to text, questions to CLIP's segments.

The files are of unknown origin, so this runs in the process of ``service``; each step is announced first, so that an
error can name the step that takes too much.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trtprune.errors import EngineDirError, InputError
from trtprune.text.limits import MAX_RENDERED_CHARS, too_long
from trtprune.text.pieces import PieceTemplate, template_from
from trtprune.text.template import ChatTemplate, Rendered, Turn, find_template
from trtprune.text.tokens import is_panic, load_tokenizer, open_tokens

__all__ = ["ClipModel", "TextModel"]

Announce = Callable[[str, float], None]
"""A function of the name of a step and its limit of processor time in seconds."""
TEMPLATE_SECONDS, LOAD_SECONDS, ENCODE_SECONDS = 3.0, 12.0, 5.0
TEMPLATE, TOKENIZER, CLIP_TOKENIZER = "the chat template", "tokenizer.json", "CLIP's tokenizer.json"


class TextModel:
    """Tokenizer and chat template of one model.

    Args:
        announce: Called with the name of the next step.
        files: Content of the text files by name.
        image_token: The placeholder's text.
        image_token_id: Its id in the model.
        template: The chat template as pieces, plain data of :class:`trtprune.text.info.TemplateInfo`; None: the
            template of the files.

    Raises:
        EngineDirError: if a file is broken, or tokenizer and model disagree on the placeholder.
    """

    def __init__(
        self,
        announce: Announce,
        files: Mapping[str, str],
        image_token: str,
        image_token_id: int,
        template: Mapping[str, Any] | None = None,
    ) -> None:
        self._announce = announce
        self.image_token, self.image_token_id = image_token, image_token_id
        announce(TOKENIZER, LOAD_SECONDS)
        self.tokens = open_tokens(files)
        self._check_placeholder()
        announce(TEMPLATE, TEMPLATE_SECONDS)
        self.template: ChatTemplate | PieceTemplate
        if template is None:
            self.template = ChatTemplate(find_template(files), image_token, self.tokens.named)
        else:
            self.template = PieceTemplate(template_from(template))

    def info(self) -> dict[str, Any]:
        """Facts for the other process."""
        return {
            "named": dict(self.tokens.named),
            "byte_ids": sorted(self.tokens.byte_ids),
            "skipped_ids": sorted(self.tokens.skipped_ids),
            "plain_decoder": self.tokens.plain_decoder,
            "tokens": self.tokens.tokenizer.get_vocab_size(with_added_tokens=True),
        }

    def encode(
        self, turns: Sequence[Sequence[Any]], raw: bool, markers: Sequence[Sequence[str]] | None = None
    ) -> dict[str, Any]:
        """``ids`` of turns (role, text, images), ``question``, indices of the tokens of the last turn's text, and
        ``markers``, indices of the tokens of the images' markers.

        Args:
            turns: Role, text and number of images of each.
            raw: Whether the last turn's text is the whole prompt.
            markers: For each image the text around and between its spans; None: there is none.

        Raises:
            InputError: if the numbers of image placeholders and images differ.
        """
        given = [Turn(*turn) for turn in turns]
        images = sum(turn.images for turn in given)
        if raw:
            rendered = Rendered(given[-1].text, 0, len(given[-1].text))
        else:
            self._announce(TEMPLATE, TEMPLATE_SECONDS)
            rendered = self.template.render(given)
        rendered, added = _with_markers(rendered, self.image_token, markers)
        self._announce(TOKENIZER, ENCODE_SECONDS)
        # As in transformers: no second copy of a first special token that the template itself prints.
        bos = self.tokens.named.get("bos_token")
        add = not (bos and not raw and rendered.text.startswith(bos))
        encoding = _encode(self.tokens.tokenizer, rendered.text, add)
        ids = encoding.ids
        found, spans = ids.count(self.image_token_id), sum(map(len, markers or ())) - len(markers or ())
        if found != (images if markers is None else spans):
            raise self._miscounted(rendered.text.count(self.image_token), found, images, given, raw)
        own = [i for i, place in enumerate(encoding.offsets) if _overlaps(place, added)]
        question = [i for i, place in enumerate(encoding.offsets) if _overlaps(place, [(rendered.start, rendered.end)])]
        outside = {*own, *(i for i, number in enumerate(ids) if number == self.image_token_id)}
        return {
            "ids": ids,
            "question": [i for i in question if i not in outside],
            "markers": [i for i in own if ids[i] != self.image_token_id],
        }

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, without special tokens."""
        self._announce(TOKENIZER, ENCODE_SECONDS)
        return str(self.tokens.tokenizer.decode(list(ids), skip_special_tokens=True))

    def rehearse(self) -> list[str]:
        """Asks template and tokenizer the questions that every user will ask; returns notes for users.

        Raises:
            EngineDirError, InputError: if not even one question about one image can be asked.
        """
        first, second = ("user", "What is in the image?", 1), ("user", "And what else?", 0)
        self.decode(self.encode([first], False)["ids"])
        notes = []
        try:
            self.encode([first, ("assistant", "Nothing.", 0), second], False)
        except (EngineDirError, InputError) as error:
            notes.append(f"conversations of more than one question will be refused: {error.message}")
        for role, what in (("assistant", "earlier answers"), ("system", "system prompts"), ("user", "the question")):
            self._announce(TEMPLATE, TEMPLATE_SECONDS)
            if isinstance(self.template, ChatTemplate) and self.template.drops(role):
                notes.append(f"the chat template leaves out {what}")
        return notes

    def describe(self) -> dict[str, Any]:
        """Tokenizer and template for ``config.json``, plain data of :class:`trtprune.text.info.TextInfo`."""
        from trtprune.text.describing import COMPILE_SECONDS, describe_texts

        assert isinstance(self.template, ChatTemplate)
        self._announce(TEMPLATE, COMPILE_SECONDS + TEMPLATE_SECONDS)
        return dataclasses.asdict(describe_texts(self.tokens, self.template))

    def _check_placeholder(self) -> None:
        tokenizer, text = self.tokens.tokenizer, self.image_token
        number = tokenizer.token_to_id(text)
        if number == self.image_token_id:
            ids = _encode(tokenizer, text, False).ids
            if ids == [number]:
                return
            raise EngineDirError(
                f"tokenizer.json: splits the placeholder {text!r} into {len(ids)} tokens",
                hint=f"add {text!r} to added_tokens (or to tokenizer_config.json's added_tokens_decoder) as special",
            )
        theirs = tokenizer.id_to_token(self.image_token_id)
        have = f"has no token {text!r}" if number is None else f"{text!r} is token {number}"
        known = "has no such token" if theirs is None else f"has {theirs!r} there"
        raise EngineDirError(
            f"tokenizer.json: {have}; the model's placeholder is token {self.image_token_id}: the tokenizer {known}",
            hint="config.json's image_token_index and the tokenizer must be of one model: correct the one that is not",
        )

    def _miscounted(self, written: int, found: int, images: int, turns: Sequence[Turn], raw: bool) -> InputError:
        token = self.image_token
        message = f"the prompt has {found} {token} for {images} image(s)"
        if raw:
            return InputError(message, hint=f"a raw prompt needs one {token} an image")
        if written != found:
            message = f"tokenizer.json makes {found} image placeholders of the {written} {token} in the prompt"
            return InputError(message, hint=f"add {token!r} to the tokenizer as a special token and build again")
        if self.template.own_images:
            hint = f"the chat template writes {token} by itself: it takes one image, and " + (
                "a conversation of one question" if len(turns) > 1 else "no more"
            )
            return InputError(message, hint=hint)
        hint = f"the chat template leaves out or repeats images: correct it and build again, or place {token} yourself"
        return InputError(message, hint=f"{hint} in a raw prompt (raw_prompt)")


class ClipModel:
    """CLIP's tokenizer, which splits a text into segments that fit the text tower.

    Args:
        announce: As in :class:`TextModel`.
        text: Content of its ``tokenizer.json``.
        length: Tokens of a segment; None if the file has the number itself, as in an engine directory.

    Raises:
        EngineDirError: if the tokenizer is broken or does not split texts.
    """

    def __init__(self, announce: Announce, text: str, name: str, length: int | None = None) -> None:
        self._announce = announce
        announce(CLIP_TOKENIZER, LOAD_SECONDS)
        self.text = text
        self.tokenizer = load_tokenizer(text, name)
        if length is not None:
            self._cut(length)
        self.around = _encode(self.tokenizer, "", True).ids
        limit = (self.tokenizer.truncation or {}).get("max_length")
        if length is None and (not isinstance(limit, int) or limit < 3 or len(self.around) != 2):
            raise EngineDirError(f"{name} does not cut texts into segments", hint="build the directory again")

    def _cut(self, length: int) -> None:
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        # The tokenizers library then gives every segment its own first and last token.
        data = json.loads(self.text)
        data["truncation"] = {"direction": "Right", "max_length": length, "strategy": "LongestFirst", "stride": 0}
        data["padding"] = None
        self.text = json.dumps(data, ensure_ascii=False)

    def info(self) -> dict[str, Any]:
        """Ids ``around`` an empty text, ``size`` of the vocabulary, and the ``text`` to keep."""
        size = max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        return {"around": self.around, "size": size, "text": self.text}

    def segments(self, text: str) -> list[list[int]]:
        """Ids of a text's segments, each with CLIP's first and last token."""
        self._announce(CLIP_TOKENIZER, ENCODE_SECONDS)
        whole = _encode(self.tokenizer, text, True)
        return [whole.ids, *(piece.ids for piece in whole.overflowing)]


def _with_markers(
    rendered: Rendered, image_token: str, markers: Sequence[Sequence[str]] | None
) -> tuple[Rendered, list[tuple[int, int]]]:
    """A prompt with the markers of its images, and the places [start, end) of these in its text.

    Raises:
        InputError: if the prompt becomes too long.
    """
    pieces = rendered.text.split(image_token)
    if markers is None or len(pieces) != len(markers) + 1:  # wrong numbers of images are reported by their tokens
        return rendered, []
    size = len(rendered.text) + sum(len(text) + len(image_token) for texts in markers for text in texts)
    if size > MAX_RENDERED_CHARS:
        raise too_long()
    text, before, added = pieces[0], len(pieces[0]), []
    ends = {"start": rendered.start, "end": rendered.end}
    for piece, texts in zip(pieces[1:], markers, strict=True):
        written = image_token.join(texts)
        # A place behind the placeholder moves by what the image's text is longer than it.
        for name, place in (("start", rendered.start), ("end", rendered.end)):
            ends[name] += (len(written) - len(image_token)) if place > before else 0
        before += len(image_token) + len(piece)
        start = len(text)
        for number, marker in enumerate(texts):
            start += len(image_token) if number else 0
            added.append((start, start + len(marker)))
            start += len(marker)
        text += written + piece
    return Rendered(text, ends["start"], ends["end"]), [place for place in added if place[0] < place[1]]


def _overlaps(token: tuple[int, int], places: Sequence[tuple[int, int]]) -> bool:
    """Whether a token's place, which is not empty, has a common character with one of these."""
    return token[0] < token[1] and any(token[0] < end and token[1] > start for start, end in places)


def _encode(tokenizer: Any, text: str, add_special_tokens: bool) -> Any:
    if len(text) > MAX_RENDERED_CHARS:
        raise InputError(f"the prompt has more than {MAX_RENDERED_CHARS:,} characters", hint="ask a shorter question")
    try:
        return tokenizer.encode(text, add_special_tokens=add_special_tokens)
    except BaseException as error:  # the Rust library raises bare Exception, and panics
        if isinstance(error, MemoryError) or not (isinstance(error, Exception) or is_panic(error)):
            raise
        raise InputError(
            f"the prompt cannot be tokenised: {str(error)[:200]}",
            hint="the checkpoint's tokenizer.json is at fault, if other prompts fail, too",
        ) from None
