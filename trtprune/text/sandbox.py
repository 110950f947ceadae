"""Compiling a chat template as transformers does, in jinja2's immutable sandbox.

The sandbox restricts a template to its arguments.  It does not bound time or memory: the process of the template does.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jinja2
import jinja2.exceptions
import jinja2.nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from trtprune.errors import EngineDirError
from trtprune.text.limits import CORRECT

__all__ = ["MAX_TEMPLATE_CHARS", "Constants", "Refusal", "compile_template", "constants"]

MAX_TEMPLATE_CHARS = 1 << 20
STRIPPING = ("lstrip", "rstrip", "strip", "trim")


class Refusal(jinja2.exceptions.TemplateError):
    """A template's own ``raise_exception``: it refuses these turns."""


class _Generation(Extension):
    """``{% generation %}…{% endgeneration %}`` marks training targets; for inference it prints its body."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's interface)

    def parse(self, parser: Any) -> jinja2.nodes.Node:
        """Replaces the block by its body, in a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


class _Namespace(jinja2.utils.Namespace):
    """jinja2's, without attributes that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"an attribute {name[:50]!r} of a namespace")


class _Dict:
    """``dict`` without the class's attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """``dict.fromkeys``."""
        return dict.fromkeys(*args)


def _raise_exception(message: object) -> None:
    raise Refusal(str(message)[:2000])


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes HTML, but models were not trained on that.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def compile_template(source: str, on_date: Callable[[], object] = lambda: None) -> jinja2.Template:
    """The compiled template.

    Args:
        source: The jinja2 text.
        on_date: Called when the template asks for the date.

    Raises:
        EngineDirError: naming the line, if it is not a valid template.
    """
    if len(source) > MAX_TEMPLATE_CHARS:
        raise EngineDirError(f"the chat template is longer than {MAX_TEMPLATE_CHARS:,} characters", hint=CORRECT)

    def strftime_now(form: str) -> str:
        on_date()
        return datetime.datetime.now().strftime(form)

    environment = _environment()
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = strftime_now
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _Namespace
    environment.globals["cycler"] = environment.globals["joiner"] = environment.globals["lipsum"] = None
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        message = f"the chat template is not valid: {str(error.message)[:300]} (line {error.lineno})"
        raise EngineDirError(message, hint=CORRECT) from None
    except MemoryError:
        raise
    # jinja2 passes Python code to the compiler, which refuses more: a break outside of a loop, blocks nested too
    # deeply, numbers too long.
    except Exception as error:
        message = f"the chat template cannot be compiled: {type(error).__name__}: {str(error)[:200]}"
        raise EngineDirError(message, hint=CORRECT) from None


@dataclass(frozen=True)
class Constants:
    """What a template names, and its conditions can depend on: texts, numbers, and characters that it strips."""

    texts: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    stripped: tuple[str, ...] = ()


def constants(source: str) -> Constants:
    """The constants of a valid template."""
    tree = _environment().parse(source)
    found = [node.value for node in tree.find_all(jinja2.nodes.Const)]
    numbers = {value for value in found if isinstance(value, int) and not isinstance(value, bool)}
    stripped = ""
    for node in tree.find_all((jinja2.nodes.Call, jinja2.nodes.Filter)):
        assert isinstance(node, jinja2.nodes.Call | jinja2.nodes.Filter)
        name = node.name if isinstance(node, jinja2.nodes.Filter) else getattr(node.node, "attr", "")
        if name in STRIPPING:
            stripped += "".join(str(arg.value) for arg in node.args if isinstance(arg, jinja2.nodes.Const))
    texts = dict.fromkeys(value for value in found if isinstance(value, str))
    return Constants(tuple(texts), tuple(sorted(numbers)), tuple(sorted(set(stripped))))


def _environment() -> ImmutableSandboxedEnvironment:
    return ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
