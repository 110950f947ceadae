"""A method's options: settings that are fixed when its graph is built."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from trtprune.arguments import arg
from trtprune.errors import BudgetError

__all__ = ["PROMPT_TOKENS", "TEXT_SPANS", "Option", "OptionValue"]

OptionValue = str | int | float

TEXT_SPANS = {
    "question": "the tokens of the user's question only",
    "after_image": "every token after the image: question and template (e.g. ' ASSISTANT:')",
    "all": "every text token of the prompt, system prompt and template included",
}
"""Spans of the prompt's tokens that the runtime can pass as ``text_embeds``."""

PROMPT_TOKENS = {"question": "question", "after_image": "after_image", "all_text": "all"}
"""Choices of the option ``prompt_tokens`` → key of :data:`TEXT_SPANS`."""


@dataclass(frozen=True)
class Option:
    """A setting of a method that is fixed when the graph is built.

    Either ``choices`` (a string from a list), text that matches ``pattern``, or a number within
    ``minimum``..``maximum``, whole if ``default`` is.
    """

    name: str
    default: OptionValue
    help: str
    choices: tuple[str, ...] = ()
    minimum: float = -math.inf
    maximum: float = math.inf
    pattern: str = ""

    @property
    def valid(self) -> str:
        """The valid values in words, for help texts and errors."""
        if self.pattern:
            return f"text of the form {self.pattern}"
        if self.choices:
            return "one of " + ", ".join(self.choices)
        kind = "a whole number" if isinstance(self.default, int) else "a number"
        return f"{kind} from {self.minimum:g} to {self.maximum:g}"

    def parse(self, value: object, method: str) -> OptionValue:
        """``value`` (text of a command line, or a Python value) as the option's type.

        Raises:
            BudgetError: naming the option, its value and the valid values.
        """
        if self.pattern:
            value = str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value
            if isinstance(value, str) and re.fullmatch(self.pattern, value):
                return value
        elif self.choices:
            if isinstance(value, bool) and set(self.choices) == {"false", "true"}:
                return str(value).lower()
            if isinstance(value, str) and value in self.choices:
                return value
        elif not isinstance(value, bool) and isinstance(value, (str, int, float)):
            try:
                number = int(value) if isinstance(self.default, int) else float(value)
                if self.minimum <= number <= self.maximum and (isinstance(value, str) or number == value):
                    return number
            except (ValueError, OverflowError):
                pass
        raise BudgetError(f"{arg('options', {self.name: value})}: not valid for method {method}", hint=self.valid)
