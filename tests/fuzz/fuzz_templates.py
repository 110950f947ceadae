"""Chat templates: hostile ones put together at random, and published ones that were damaged."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.fuzz_tokenizers import small_tokenizer
from tests.kit.chat_templates import STYLES

SHORT = 12
PRELOAD = ("trtprune.runtime.prompt", "tests.fuzz.fuzz_templates")

ATOMS = ("messages", "messages[0].content", "'ab'", "x", "[1, 2]", "ns.x", "{}", "7", "10**6", "bos_token", "m", "''")
FILTERS = (
    "join(x)", "list", "string", "length", "replace('a', 'a' * 1000)", "indent(10**7)", "tojson(indent=10**6)", "upper",
    "tojson(separators=('a' * 10**6, ':'))", "sum(start=[])", "center(10**9)", "batch(10**8)", "format(x, x)", "trim",
    "map('string')", "select", "sort", "unique", "wordwrap(1)", "truncate(10**9)", "urlize", "xmlattr",
    "groupby('role')", "batch(3, 'x' * 10**8)", "slice(10**9)", "first", "last", "attr('__class__')", "random",
    "pprint", "dictsort",
)  # fmt: skip
METHODS = (
    "format('a' * 10**7)", "zfill(10**10)", "ljust(10**10)", "replace('a', 'b' * 10**6)", "join(x)", "split('')",
    "encode()", "translate({97: 'a' * 10**6})", "expandtabs(10**9)", "__len__()", "append(x)", "items()", "copy()",
    "format_map({})", "splitlines()", "count('')", "to_bytes(10**9)", "__class__.__mro__",
)  # fmt: skip
CALLS = ("range(10**9)", "range(x)", "f()", "f(x)", "raise_exception(x)", "strftime_now('%c' * 10**6)", "dict(a=x)")
LOOPS = ("range(10**5)", "messages", "x", "'a' * 10**6", "x|list", "[x, x, x]", "ns.x", "messages[0].content")
OPERATORS = ("+", "*", "~", "**", "%", "//", "-", "==", "in", "and")


def _expression(random: Random, depth: int) -> str:
    if depth <= 0 or random.random() < 0.15:
        return random.choice(ATOMS)
    kind = random.randrange(6)
    inner = _expression(random, depth - 1)
    if kind == 0:
        return f"({inner} {random.choice(OPERATORS)} {_expression(random, depth - 1)})"
    if kind == 1:
        return f"({inner})|{random.choice(FILTERS)}"
    if kind == 2:
        return f"({inner}).{random.choice(METHODS)}"
    if kind == 3:
        return random.choice(CALLS)
    if kind == 4:
        return f"[{inner}, {inner}]"
    return f"({inner})[{random.choice(('0', '1:', ':-1', '::2', repr('role')))}]"


def _statement(random: Random, depth: int) -> str:
    kind = random.randrange(7)
    body = "".join(_statement(random, depth - 1) for _ in range(random.randint(1, 3))) if depth > 0 else "{{ x }}"
    expression = _expression(random, random.randint(0, 4))
    if kind == 0:
        return "{% for m in " + random.choice((expression, *LOOPS)) + " %}" + body + "{% endfor %}"
    if kind == 1:
        return "{% if " + expression + " %}" + body + random.choice(("{% else %}" + body, "")) + "{% endif %}"
    if kind == 2:
        return "{% macro f(x=1) %}" + body + random.choice(("{{ f(x) }}{{ f(x) }}", "")) + "{% endmacro %}{{ f('a') }}"
    if kind == 3:
        return "{% set x = " + expression + " %}" + body
    if kind == 4:
        return "{% set ns.x = " + random.choice((expression, "ns.x + ns.x", "ns.x ~ ns.x", "[ns.x, ns.x]")) + " %}"
    if kind == 5:
        return "{% set x %}" + body + "{% endset %}{{ x }}"
    return "{{ " + expression + " }}"


def _damage(random: Random, source: str) -> str:
    for _ in range(random.randint(1, 4)):
        start = random.randrange(len(source))
        end = min(len(source), start + random.randint(1, 30))
        kind = random.randrange(4)
        new = ("", source[start:end] * 2, "{{", _statement(random, 1))[kind]
        source = source[:start] + new + source[end if kind != 3 else start :]
    return source


def make_case(random: Random) -> str:
    """A template's source."""
    if random.random() < 0.3:
        return _damage(random, random.choice(sorted(STYLES.items()))[1].source)
    body = "".join(_statement(random, random.randint(1, 3)) for _ in range(random.randint(1, 4)))
    if random.random() < 0.5:  # grows with every round
        rounds = "{% for i in range(" + random.choice(("60", "10**5")) + ") %}"
        body = rounds + body + "{% endfor %}"
    # What is used is defined, and what is asked is answered, so that not all ends at the first mistake.
    before = (
        "{% set ns = namespace(x='a') %}{% set x = 'aa' %}{% set m = messages[0] %}{% macro f(x=1) %}{% endmacro %}"
    )
    return before + body + STYLES["llava"].source


def attempt(case: str, folder: Path) -> Any:
    """Two questions, as a build and a user ask them, and the same prompt from the template's pieces."""
    from trtprune.runtime.prompt import PromptEncoder
    from trtprune.text.process import stop
    from trtprune.text.template import Turn

    tokenizer = small_tokenizer()
    files = {
        "tokenizer.json": json.dumps(tokenizer),
        "tokenizer_config.json": json.dumps({"bos_token": "<s>", "eos_token": "</s>"}),
        "chat_template.jinja": case,
    }
    try:
        image = tokenizer["model"]["vocab"]["<image>"]
        turns = [Turn("system", "Be brief."), Turn("user", "What is it?", 1)]
        encoder = PromptEncoder(files, "<image>", image)
        encoder.rehearse()
        template = encoder.describe().template
        prompt = encoder.encode(turns)
        if template is not None:
            pieces = PromptEncoder(files, "<image>", image, template).encode(turns)
            assert pieces.ids.tolist() == prompt.ids.tolist()
            assert pieces.question == prompt.question
        return prompt
    finally:
        stop()
