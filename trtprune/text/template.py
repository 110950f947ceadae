"""The chat template: from turns to the text the model was trained on.

The form of a message's content (a list of parts, or text), and whether the template writes the image placeholder
itself, differ between templates and between roles; trial turns decide.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trtprune.errors import EngineDirError, InputError
from trtprune.text.limits import CORRECT, MAX_RENDERED_CHARS, RAW, too_long

__all__ = ["MARK", "ChatTemplate", "Rendered", "Turn", "find_template"]

# Private-use characters: no template tests for them or changes them, no user types them.
MARK = "\ue000\ue001\ue000"
LIST, TEXT, OWN = "list", "text", "own"
"""Forms of a message's content: parts; text with placeholders; text alone, if the template writes the placeholders."""


@dataclass(frozen=True)
class Turn:
    """One message. ``images`` is the number of images before the text; ``role`` is system, user or assistant."""

    role: str
    text: str
    images: int = 0


@dataclass(frozen=True)
class Rendered:
    """The prompt's text, and the place [start, end) of the last user turn's text in it."""

    text: str
    start: int
    end: int


def find_template(files: Mapping[str, str]) -> str | None:
    """The chat template among a checkpoint's text files, in the order of transformers' processors.

    Args:
        files: Content of those of ``processor_config.json``, ``chat_template.json``, ``chat_template.jinja``,
            ``tokenizer_config.json`` that exist.

    Raises:
        EngineDirError: if a file is not JSON, a template is not text, or several templates have no default.
    """
    for name in ("processor_config.json", "chat_template.json", "chat_template.jinja", "tokenizer_config.json"):
        if name not in files:
            continue
        if name.endswith(".jinja"):
            return files[name]
        found = _in_json(name, files[name])
        if found is not None:
            return found
    return None


def _in_json(name: str, text: str) -> str | None:
    hint = f"correct {name} and build again"
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EngineDirError(f"{name}: not JSON: {str(error)[:200]}", hint=hint) from None
    found = data.get("chat_template") if isinstance(data, dict) else None
    if isinstance(found, list):  # several named ones
        named = {
            str(t["name"]): t["template"] for t in found if isinstance(t, dict) and {"name", "template"} <= t.keys()
        }
        found = named
    if isinstance(found, dict):
        if "default" not in found:
            names = ", ".join(list(map(str, found))[:10]) or "none"
            raise EngineDirError(f"{name}: no chat_template is called 'default' (there is {names[:200]})", hint=hint)
        found = found["default"]
    if found is not None and not isinstance(found, str):
        raise EngineDirError(f"{name}: chat_template is not text", hint=hint)
    return found


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: The jinja2 text; None for LLaVA-1.5's ``USER: <image>\\nQUESTION ASSISTANT:``.
        image_token: The placeholder.
        tokens: Special tokens by name (``bos_token`` …), which templates print.

    Attributes:
        formats: The form of a message's content by role: ``list``, ``text`` or ``own``.
        source: The jinja2 text.
        dated: Whether the template has asked for the date.

    Raises:
        EngineDirError: if the template cannot be compiled.
    """

    def __init__(self, source: str | None, image_token: str, tokens: Mapping[str, str]) -> None:
        self.image_token, self.source, self.dated = image_token, source, False
        self._tokens = dict(tokens)
        self._template: Any = None
        self.formats = dict.fromkeys(("system", "user", "assistant"), TEXT)
        if source is not None:
            from trtprune.text.sandbox import compile_template

            self._template = compile_template(source, self._note_date)
            self._find_formats()

    def render(self, turns: Sequence[Turn]) -> Rendered:
        """The prompt for ``turns``, whose last is the user's, ready for the assistant's answer.

        Raises:
            InputError: if the template refuses these turns (for example a system prompt).
            EngineDirError: if the template itself is broken.
        """
        last = turns[-1]
        text = self.text(turns)
        if not last.text.strip():
            return Rendered(text, len(text), len(text))
        # The same turns with a marker for the question show the text before and after it, even if its words occur
        # elsewhere, and whatever the template does around them.
        marked = self.text([*turns[:-1], Turn(last.role, MARK, last.images)])
        before, found, after = marked.partition(MARK)
        start, end = len(before), len(text) - len(after)
        alone = found and MARK not in after and text.startswith(before) and text.endswith(after)
        # A text can be trimmed to nothing.
        return Rendered(text, start, end) if alone and start < end else Rendered(text, len(text), len(text))

    def drops(self, role: str) -> bool:
        """Whether the template omits the text of this role's turns; False for a role that it refuses."""
        turns = {
            "system": [Turn("system", MARK), Turn("user", "a", 1)],
            "user": [Turn("user", MARK, 1)],
            "assistant": [Turn("user", "a", 1), Turn("assistant", MARK), Turn("user", "b")],
        }[role]
        try:
            return MARK not in self.text(turns)
        except (InputError, EngineDirError):
            return False

    def text(self, turns: Sequence[Turn]) -> str:
        """As :meth:`render`, without the place of the question."""
        if self._template is None:
            return self._llava(turns)
        return self._run([self._message(turn, self.formats.get(turn.role, TEXT)) for turn in turns])

    @property
    def own_images(self) -> bool:
        """Whether the template writes placeholders by itself."""
        return self.formats["user"] == OWN

    def _note_date(self) -> None:
        self.dated = True

    def _llava(self, turns: Sequence[Turn]) -> str:
        names = {"system": "", "user": "USER: ", "assistant": "ASSISTANT: "}
        parts = [names[t.role] + (self.image_token + "\n") * t.images + t.text + " " for t in turns]
        return "".join(parts) + "ASSISTANT:"

    def _message(self, turn: Turn, form: str) -> dict[str, Any]:
        if form == LIST:
            content: list[dict[str, str]] = [{"type": "image"} for _ in range(turn.images)]
            return {"role": turn.role, "content": [*content, {"type": "text", "text": turn.text}]}
        before = "" if form == OWN else (self.image_token + "\n") * turn.images
        return {"role": turn.role, "content": before + turn.text}

    def _find_formats(self) -> None:
        """Asks the template for one turn of each role, the user's first."""
        question = Turn("user", MARK, 1)
        user = next((form for form in (LIST, OWN, TEXT) if self._prints([(question, form)], 1)), TEXT)
        asked, said = (Turn("user", "a", 1), user), (Turn("user", "b"), user)
        # The user's form is the most likely one of other roles; a template without a case for lists takes text.
        for role, around in (("assistant", (asked, said)), ("system", (None, asked))):
            self.formats[role] = TEXT if user == OWN else user
            for form in dict.fromkeys((self.formats[role], TEXT, LIST)):
                first, second = around
                turns = [*([first] if first else []), (Turn(role, MARK), form), second]
                if self._prints(turns, None):
                    self.formats[role] = form
                    break
        self.formats["user"] = user

    def _prints(self, turns: Sequence[tuple[Turn, str]], images: int | None) -> bool:
        """Whether the marker is printed once, as text and not as a part of a list, with this number of placeholders."""
        try:
            text = self._run([self._message(turn, form) for turn, form in turns])
        except (InputError, EngineDirError):
            return False
        if text.count(MARK) != 1 or "'type'" in text or '"type"' in text:
            return False
        return images is None or text.count(self.image_token) == images

    def _run(self, messages: list[dict[str, Any]]) -> str:
        import jinja2

        from trtprune.text.sandbox import Refusal

        assert self._template is not None
        pieces, size = [], 0
        try:
            for piece in self._template.generate(messages=messages, add_generation_prompt=True, **self._tokens):
                size += len(piece)
                if size > MAX_RENDERED_CHARS:
                    raise too_long()
                pieces.append(piece)
        except (EngineDirError, MemoryError):
            raise
        except Refusal as error:
            hint = f"{_way_out(messages)}; {RAW}"
            raise InputError(f"the chat template refuses these turns: {error}", hint=hint) from None
        except jinja2.exceptions.SecurityError as error:
            message = f"the chat template does what the sandbox forbids: {str(error)[:300]}"
            raise EngineDirError(message, hint=f"{CORRECT}, {RAW}") from None
        # Untrusted code: a template can raise any exception, and none of them is a bug here.
        except Exception as error:
            message = f"the chat template fails: {type(error).__name__}: {str(error)[:300]}"
            raise EngineDirError(message, hint=f"{CORRECT}, {RAW}") from None
        return "".join(pieces)


def _way_out(messages: Sequence[Mapping[str, Any]]) -> str:
    """The features of these turns that a template may refuse, as a hint."""
    if any(message["role"] == "system" for message in messages):
        return "leave out the system prompt"
    if len(messages) > 1:
        return "ask each question in a conversation of its own"
    return "ask in another way"
