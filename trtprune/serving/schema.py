"""The body of ``POST /v1/chat/completions``: OpenAI's fields, as far as they are served, and a few of our own."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from trtprune.serving.faults import ApiError

__all__ = ["ChatRequest", "ImagePart", "ImageUrl", "Message", "StreamOptions", "TextPart"]

MAX_STOPS = 16
MAX_MESSAGES = 1000
UNSERVED: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
}
"""Fields of OpenAI's that change an answer and that this server does not have → the values that change nothing."""


class TextPart(BaseModel):
    """Text of a message."""

    type: Literal["text"]
    text: str


class ImageUrl(BaseModel):
    """Where an image is: a ``data:`` address, or what the server was started to allow."""

    url: str
    detail: str | None = Field(None, description="accepted, without effect")


class ImagePart(BaseModel):
    """An image of a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


class Message(BaseModel):
    """One turn. All images of a message stand before its text, whatever the order of its parts."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]


class StreamOptions(BaseModel):
    """Settings of a stream."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """A chat completion."""

    model_config: ClassVar[ConfigDict] = {"extra": "allow"}

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    model: str | None = None
    max_tokens: int | None = Field(None, ge=1, le=1 << 20)
    max_completion_tokens: int | None = Field(None, ge=1, le=1 << 20)
    min_tokens: int | None = Field(None, ge=0, le=1 << 20, description="no end before so many tokens")
    ignore_eos: bool = Field(False, description="whether the answer goes on to its largest length")
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1 << 30, description="0 is off")
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    seed: int | None = Field(None, ge=0, lt=1 << 63)
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    keep: int | None = Field(None, ge=1, description="visual tokens to keep of each image")
    keep_ratio: float | None = Field(None, gt=0, le=1, description="the same as a share of the image's own")
    return_kept: bool = Field(False, description="whether the answer says where the kept visual tokens lie")

    def check(self) -> None:
        """Refuses what would change the answer and is not served.

        Raises:
            ApiError: naming the field.
        """
        for name, value in (self.model_extra or {}).items():
            if name in UNSERVED and value is not None and value not in UNSERVED[name]:
                raise ApiError(400, f"{name} is not supported by this server", param=name, code="unsupported_parameter")
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > MAX_STOPS:
            raise ApiError(400, f"stop has {len(stops)} texts; at most {MAX_STOPS}", param="stop")
        if self.longest is not None and (self.min_tokens or 0) > self.longest:
            raise ApiError(400, f"min_tokens is above {self.longest}, the largest number", param="min_tokens")
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise ApiError(400, "max_tokens and max_completion_tokens differ; leave out one", param="max_tokens")

    @property
    def longest(self) -> int | None:
        """The longest answer in tokens."""
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens
