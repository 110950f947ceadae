"""From the body of a request to a question for the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtprune.runtime.answer import AnswerSettings
from trtprune.serving.engine import Question
from trtprune.serving.faults import ApiError
from trtprune.serving.images import Sources, prepare
from trtprune.serving.schema import ChatRequest, ImagePart, Message
from trtprune.text.template import Turn

if TYPE_CHECKING:
    from trtprune.runtime.pipeline import Pipeline

__all__ = ["question_of"]

MAX_IMAGES = 64


def question_of(pipeline: Pipeline, asked: ChatRequest, sources: Sources) -> Question:
    """A checked question; decodes its images.

    Raises:
        ApiError, InputError, BudgetError: for a conversation, setting or image that cannot be used.
    """
    turns, urls = _turns(asked.messages)
    budget = pipeline.budget(asked.keep, asked.keep_ratio)
    settings = AnswerSettings.of(
        pipeline.config.generation,
        max_new_tokens=asked.longest,
        min_new_tokens=asked.min_tokens,
        temperature=asked.temperature,
        top_k=asked.top_k,
        top_p=asked.top_p,
        repetition_penalty=asked.repetition_penalty,
        seed=asked.seed,
        stop=asked.stop,
        ignore_eos=asked.ignore_eos,
    )
    return Question(turns, prepare(pipeline, sources, urls), budget, settings)


def _turns(messages: list[Message]) -> tuple[list[Turn], list[str]]:
    """The conversation and the addresses of its images, in their order."""
    turns, urls = [], []
    for number, message in enumerate(messages):
        own: list[str] = []
        texts = [message.content] if isinstance(message.content, str) else []
        for part in [] if isinstance(message.content, str) else message.content:
            if isinstance(part, ImagePart):
                own.append(part.image_url.url)
            else:
                texts.append(part.text)
        role = "system" if message.role == "developer" else message.role
        if own and role != "user":
            raise _refused("images are in messages of the user only")
        if role == "system" and number:
            raise _refused("a system message is the first one")
        turns.append(Turn(role, "\n".join(texts), len(own)))
        urls += own
    if turns[-1].role != "user":
        raise _refused("the last message is the user's")
    if len(urls) > MAX_IMAGES:
        raise _refused(f"{len(urls)} images; at most {MAX_IMAGES}")
    return turns, urls


def _refused(message: str) -> ApiError:
    return ApiError(400, message, param="messages")
