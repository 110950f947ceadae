"""The longest prompt, and the words that errors of chat templates share."""

from __future__ import annotations

from trtprune.errors import EngineDirError

__all__ = ["CORRECT", "MAX_RENDERED_CHARS", "RAW", "too_long"]

MAX_RENDERED_CHARS = 1 << 20
CORRECT = "correct the checkpoint's chat template (chat_template.jinja) and build again"
RAW = "or write the whole prompt yourself (raw_prompt)"


def too_long() -> EngineDirError:
    """The error for a template whose prompts are too long."""
    message = f"the chat template writes more than {MAX_RENDERED_CHARS:,} characters"
    return EngineDirError(message, hint=f"{CORRECT}, {RAW}")
