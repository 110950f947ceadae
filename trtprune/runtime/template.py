"""The chat template: from turns to the text the model was trained on.

A template comes from the checkpoint and is untrusted code: it runs in jinja2's immutable sandbox, may write a bounded
amount of text, and every way it can fail is a TrtpruneError.  Tokens are in ``prompt``.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trtprune.errors import EngineDirError, InputError

__all__ = ["ChatTemplate", "Rendered", "Turn", "find_template"]

MAX_TEMPLATE_CHARS = 1 << 20
MAX_RENDERED_CHARS = 1 << 24
MAX_RANGE = 100_000
MAX_ARGUMENT = 1 << 20
_LONG_NUMBER = re.compile(r"\d{6}")
# Private-use characters: no template tests for them, no user types them.
MARK = "\ue000trtprune\ue001"


@dataclass(frozen=True)
class Turn:
    """One message. ``images`` pictures stand before the text; ``role`` is system, user or assistant."""

    role: str
    text: str
    images: int = 0


@dataclass(frozen=True)
class Rendered:
    """The prompt's text, and the characters [start, end) of it that are the last user turn's text."""

    text: str
    start: int
    end: int


def find_template(files: Mapping[str, str]) -> str | None:
    """The chat template among a checkpoint's text files, in the order transformers looks.

    Args:
        files: Content of those of ``chat_template.jinja``, ``chat_template.json``, ``processor_config.json``,
            ``tokenizer_config.json`` that exist.

    Raises:
        EngineDirError: if a file is not JSON or a template is not text.
    """
    if "chat_template.jinja" in files:
        return files["chat_template.jinja"]
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        if name not in files:
            continue
        try:
            data = json.loads(files[name])
        except (json.JSONDecodeError, RecursionError) as error:
            raise EngineDirError(f"{name}: not JSON: {error}") from None
        found = data.get("chat_template") if isinstance(data, dict) else None
        if isinstance(found, list):  # several named ones
            named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
            found = named.get("default")
        if found is not None:
            if not isinstance(found, str):
                raise EngineDirError(f"{name}: chat_template is not text")
            return found
    return None


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: The jinja2 text; None for LLaVA-1.5's ``USER: <image>\\nQUESTION ASSISTANT:``.
        image_token: The placeholder.
        tokens: Special tokens by name (``bos_token`` …), which templates print.
    """

    def __init__(self, source: str | None, image_token: str, tokens: Mapping[str, str]) -> None:
        self.image_token = image_token
        self._tokens = dict(tokens)
        self._template: Any = None
        self._budget = [0]
        if source is not None:
            self._template, self._budget = _compile(source)
        self._as_list = self._template is not None and self._takes_lists()

    def render(self, turns: Sequence[Turn]) -> Rendered:
        """The prompt for ``turns``, of which the last is the user's, ready for the assistant's answer.

        Raises:
            InputError: if the template refuses these turns (for example a system prompt).
            EngineDirError: if the template itself is broken.
        """
        last = turns[-1]
        text = self._text(turns)
        if not last.text.strip():
            return Rendered(text, len(text), len(text))
        # The same turns with a marker for the question show what stands before and after it, however often its
        # words occur elsewhere and whatever the template does around them.
        marked = self._text([*turns[:-1], Turn(last.role, MARK, last.images)])
        before, found, after = marked.partition(MARK)
        if not found or MARK in after or not text.startswith(before) or not text.endswith(after):
            return Rendered(text, len(text), len(text))
        return Rendered(text, len(before), len(text) - len(after))

    def _text(self, turns: Sequence[Turn]) -> str:
        if self._template is None:
            return self._llava(turns)
        return self._run([self._message(turn, self._as_list) for turn in turns])

    def _llava(self, turns: Sequence[Turn]) -> str:
        names = {"system": "", "user": "USER: ", "assistant": "ASSISTANT: "}
        parts = [names[t.role] + (self.image_token + "\n") * t.images + t.text + " " for t in turns]
        return "".join(parts) + "ASSISTANT:"

    def _message(self, turn: Turn, as_list: bool) -> dict[str, Any]:
        if not as_list:
            return {"role": turn.role, "content": (self.image_token + "\n") * turn.images + turn.text}
        content: list[dict[str, str]] = [{"type": "image"} for _ in range(turn.images)]
        return {"role": turn.role, "content": [*content, {"type": "text", "text": turn.text}]}

    def _takes_lists(self) -> bool:
        """Whether the template prints an image and a text out of a list, as templates of processors do."""
        try:
            text = self._run([self._message(Turn("user", MARK, 1), True)])
        except (InputError, EngineDirError):
            return False
        return text.count(self.image_token) == 1 and text.count(MARK) == 1 and "'type'" not in text

    def _run(self, messages: list[dict[str, Any]]) -> str:
        import jinja2

        assert self._template is not None
        pieces, size = [], 0
        self._budget[0] = MAX_RANGE
        try:
            for piece in self._template.generate(messages=messages, add_generation_prompt=True, **self._tokens):
                size += len(piece)
                if size > MAX_RENDERED_CHARS:
                    raise InputError(f"the chat template writes more than {MAX_RENDERED_CHARS} characters")
                pieces.append(piece)
        except InputError:
            raise
        except jinja2.exceptions.SecurityError as error:
            raise EngineDirError(f"the chat template does what the sandbox forbids: {error}") from None
        except jinja2.TemplateError as error:
            raise InputError(
                f"the chat template refuses these turns: {error}", hint="leave out the system prompt, or --raw-prompt"
            ) from None
        # Untrusted code: a template can provoke any exception, and none of them is a bug here.
        except Exception as error:
            raise EngineDirError(f"the chat template fails: {type(error).__name__}: {error}") from None
        return "".join(pieces)


def _check_operands(operator: str, left: Any, right: Any) -> None:
    import jinja2

    def size(value: Any) -> float:
        return len(value) if isinstance(value, str | bytes | list | tuple) else abs(value)

    try:
        if operator == "%":
            bad = isinstance(left, str) and _LONG_NUMBER.search(left) is not None
        elif operator == "**":
            bad = size(left) > 1000 or size(right) > 100
        elif operator == "*":
            bad = size(left) * size(right) > MAX_RENDERED_CHARS and not (
                isinstance(left, int | float) and isinstance(right, int | float)
            )
        else:
            bad = isinstance(left, str) and size(left) + size(right) > MAX_RENDERED_CHARS
    except TypeError:  # operands of other kinds: the operator itself will say so
        return
    if bad:
        raise jinja2.exceptions.SecurityError(f"{operator} with operands that large")


def _check_arguments(function: Any, arguments: Sequence[Any], named: Mapping[str, Any]) -> None:
    import jinja2

    for value in (*arguments, *named.values()):
        if isinstance(value, int | float) and abs(value) > MAX_ARGUMENT:
            raise jinja2.exceptions.SecurityError(f"an argument of {value:.3g}")
    # The sandbox wraps str.format; what it wraps knows the text.
    owner = getattr(getattr(function, "__wrapped__", function), "__self__", None)
    texts = [value for value in (owner, *arguments[:1]) if isinstance(value, str)]
    name = getattr(function, "__name__", "")
    if name in ("format", "format_map", "replace", "join", "expandtabs", "translate", "") and texts:
        if name in ("replace", "join", "translate") and sum(map(len, texts)) > MAX_ARGUMENT:
            raise jinja2.exceptions.SecurityError(f"{name} of a text that long")
        if name in ("format", "format_map", "") and any(_LONG_NUMBER.search(text) for text in texts[:1]):
            raise jinja2.exceptions.SecurityError("a format that wide")


def _compile(source: str) -> Any:
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}…{% endgeneration %}`` marks training targets; for inference it prints its body."""

        tags = {"generation"}  # noqa: RUF012 (jinja2's interface)

        def parse(self, parser: Any) -> Any:
            """Replaces the block by what is inside."""
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class Sandbox(ImmutableSandboxedEnvironment):
        """Also refuses the cheap ways to burn memory or time in one expression."""

        intercepted_binops = frozenset(["*", "**", "%", "+"])

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            """The operators that can make much out of little."""
            _check_operands(operator, left, right)
            return super().call_binop(context, operator, left, right)

        def call(self, context: Any, function: Any, *arguments: Any, **named: Any) -> Any:
            """Calls, methods of strings like ``center`` and ``zfill`` among them."""
            _check_arguments(function, arguments, named)
            return super().call(context, function, *arguments, **named)

    def bounded_range(*arguments: int) -> range:
        result = range(*arguments)
        budget[0] -= len(result)
        if budget[0] < 0:
            raise jinja2.exceptions.SecurityError(f"ranges of more than {MAX_RANGE} in all")
        return result

    def bounded(apply: Any) -> Any:
        @functools.wraps(apply)
        def checked(*arguments: Any, **named: Any) -> Any:
            _check_arguments(None, arguments, named)
            return apply(*arguments, **named)

        return checked

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        # jinja2's own filter escapes HTML, which no model was trained on.
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    budget = [MAX_RANGE]
    if len(source) > MAX_TEMPLATE_CHARS:
        raise EngineDirError(f"the chat template is longer than {MAX_TEMPLATE_CHARS} characters")
    # Without the optimiser, which would evaluate constant expressions while it compiles, past the checks above.
    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols], optimized=False)
    for name in ("center", "indent", "format", "wordwrap", "batch", "slice", "replace", "round", "truncate"):
        environment.filters[name] = bounded(environment.filters[name])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    environment.globals["range"] = bounded_range
    environment.globals["cycler"] = environment.globals["joiner"] = environment.globals["lipsum"] = None
    try:
        return environment.from_string(source), budget
    except jinja2.TemplateSyntaxError as error:
        raise EngineDirError(
            f"the chat template is not valid: {error.message} (line {error.lineno})", hint="see the checkpoint's files"
        ) from None
    except (RecursionError, MemoryError) as error:
        raise EngineDirError(f"the chat template cannot be compiled: {type(error).__name__}") from None
