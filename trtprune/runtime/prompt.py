"""From turns to token ids and where in them the images and the question are; and from ids back to text.

Ids equal those of transformers' LLaVA processor with each run of image placeholders written once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trtprune.errors import EngineDirError, InputError
from trtprune.runtime.template import ChatTemplate, Rendered, Turn, find_template

__all__ = ["Detokenizer", "Prompt", "PromptEncoder"]

SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Prompt:
    """A tokenised prompt.

    Attributes:
        ids: int64 [T], with one placeholder an image.
        image_positions: Indices into ``ids`` of the placeholders, ascending.
        question: Indices into ``ids`` of the tokens of the last user turn's text; may be empty.
        text: That text, without placeholders.
    """

    ids: np.ndarray
    image_positions: tuple[int, ...]
    question: tuple[int, ...]
    text: str = ""

    def span(self, name: str) -> np.ndarray:
        """Indices (int64) of the text tokens a method selects by.

        ``question``: the user's words; ``after_image``: every text token behind the last image; ``all``: every text
        token.  Placeholders are never part of it.
        """
        images = set(self.image_positions)
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

    Args:
        files: Content of the tokenizer files by name: ``tokenizer.json`` and those that exist of
            ``tokenizer_config.json``, ``special_tokens_map.json``, ``processor_config.json``, ``chat_template.*``.
        image_token: The placeholder's text.
        image_token_id: Its id in the model.

    Raises:
        EngineDirError: if a file is broken, or tokenizer and model disagree on the placeholder.
    """

    def __init__(self, files: Mapping[str, str], image_token: str, image_token_id: int) -> None:
        import tokenizers

        try:
            self.tokenizer = tokenizers.Tokenizer.from_str(files["tokenizer.json"])
        except KeyError:
            raise EngineDirError("tokenizer.json is missing", hint="build the directory again") from None
        except Exception as error:  # the Rust library raises bare Exception
            raise EngineDirError(f"tokenizer.json cannot be read: {str(error)[:200]}") from None
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.image_token, self.image_token_id = image_token, image_token_id
        settings = _settings(files)
        _mark_special(self.tokenizer, settings)
        if self.tokenizer.token_to_id(image_token) != image_token_id:
            raise EngineDirError(
                f"tokenizer.json: {image_token!r} is token {self.tokenizer.token_to_id(image_token)}, "
                f"the model's placeholder is {image_token_id}"
            )
        self.special = {name: text for name in SPECIAL if (text := _token_text(settings.get(name))) is not None}
        self.byte_ids, self.skipped_ids = _loose_ids(self.tokenizer)
        self.template = ChatTemplate(find_template(files), image_token, self.special)

    def encode(self, turns: Sequence[Turn], *, raw: bool = False) -> Prompt:
        """Tokenises turns through the chat template, or with ``raw`` the last turn's text as it is.

        Raises:
            InputError: if the text holds another number of image placeholders than there are images.
        """
        images = sum(turn.images for turn in turns)
        if raw:
            text = turns[-1].text
            rendered = Rendered(text, 0, len(text))
        else:
            for turn in turns:
                if self.image_token in turn.text:
                    raise InputError(
                        f"the {turn.role} text contains {self.image_token!r}, which stands for an image",
                        hint="leave it out: images are put before the question; or place them with --raw-prompt",
                    )
            rendered = self.template.render(turns)
        # As in transformers: a template that prints the first special token itself does not get it twice.
        bos = self.special.get("bos_token")
        add = not (bos and not raw and rendered.text.startswith(bos))
        try:
            encoding = self.tokenizer.encode(rendered.text, add_special_tokens=add)
        except Exception as error:
            raise InputError(f"the prompt cannot be tokenised: {str(error)[:200]}") from None
        ids = np.array(encoding.ids, np.int64)
        positions = tuple(int(i) for i in np.flatnonzero(ids == self.image_token_id))
        if len(positions) != images:
            raise InputError(
                f"the prompt has {len(positions)} {self.image_token} for {images} image(s)",
                hint=f"a raw prompt needs one {self.image_token} an image" if raw else "the chat template is at fault",
            )
        question = tuple(
            i
            for i, (start, end) in enumerate(encoding.offsets)
            if start < rendered.end and end > rendered.start and end > start and i not in positions
        )
        return Prompt(ids, positions, question, turns[-1].text.replace(self.image_token, ""))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of an answer, without special tokens."""
        return str(self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=True))

    def detokenizer(self, stop: Sequence[str] = ()) -> Detokenizer:
        """For one answer that is read while it grows."""
        return Detokenizer(self, stop)


class Detokenizer:
    """Turns a growing list of ids into pieces of text whose concatenation is the decoded whole.

    Held back are bytes that are not yet a whole character, and an ending that may become a stop string.
    """

    def __init__(self, encoder: PromptEncoder, stop: Sequence[str] = ()) -> None:
        if any(not text for text in stop):
            raise InputError("--stop: an empty stop string would end every answer at once")
        self._encoder = encoder
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._loose = 0
        self._sent = 0
        self.text = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """Takes one more id; returns the text that is now certain. ``stopped`` tells that a stop string came."""
        if self.stopped:
            return ""
        if token in self._encoder.skipped_ids:
            return ""
        self._ids.append(token)
        self._loose = self._loose + 1 if token in self._encoder.byte_ids else 0
        # The whole answer each time: only so is every tokenizer's treatment of the first and last token right.
        text = self._encoder.decode(self._ids)
        cut = _first(text, self._stop)
        if cut is not None:
            self.text, self.stopped = text[:cut], True
            return self._send(cut)
        self.text = text
        certain = len(text.rstrip("\ufffd"))
        if self._loose:
            # A run of byte tokens that turns out not to be UTF-8 is replaced as a whole, what was fine of it too.
            certain = min(certain, len(self._encoder.decode(self._ids[: -self._loose])))
        return self._send(certain - _partial(text[:certain], self._stop))

    def finish(self) -> str:
        """The rest, when no more ids come."""
        return self._send(len(self.text))

    def _send(self, end: int) -> str:
        piece = self.text[self._sent : end]
        self._sent = max(self._sent, end)
        return piece


def _loose_ids(tokenizer: Any) -> tuple[frozenset[int], frozenset[int]]:
    """Ids of single bytes (``<0x0A>``), if the decoder joins such to characters; and ids that decoding skips."""
    added = tokenizer.get_added_tokens_decoder()
    skipped = frozenset(number for number, token in added.items() if token.special)
    if '"ByteFallback"' not in json.dumps(json.loads(tokenizer.to_str()).get("decoder")):
        return frozenset(), skipped
    vocab = tokenizer.get_vocab()
    names = (f"<0x{byte:02X}>" for byte in range(256))
    return frozenset(vocab[name] for name in names if name in vocab), skipped


def _first(text: str, stop: Sequence[str]) -> int | None:
    places = [place for s in stop if (place := text.find(s)) >= 0]
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


def _settings(files: Mapping[str, str]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if name not in files:
            continue
        try:
            data = json.loads(files[name])
        except (json.JSONDecodeError, RecursionError) as error:
            raise EngineDirError(f"{name}: not JSON: {error}") from None
        if not isinstance(data, dict):
            raise EngineDirError(f"{name}: not a JSON object")
        merged |= data
    return merged


def _mark_special(tokenizer: Any, settings: Mapping[str, Any]) -> None:
    """Makes the tokens that ``tokenizer_config.json`` calls special special in ``tokenizer.json`` too."""
    named = [settings.get(name) for name in SPECIAL]
    named += settings.get("additional_special_tokens") or []
    extra = settings.get("extra_special_tokens")
    named += list(extra.values()) if isinstance(extra, dict) else extra if isinstance(extra, list) else []
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    texts = {text for value in named if (text := _token_text(value)) is not None}
    # Only those that have an id: a new one would lie beyond the model's vocabulary.
    tokenizer.add_special_tokens(sorted(t for t in texts - known if tokenizer.token_to_id(t) is not None))


def _token_text(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None
