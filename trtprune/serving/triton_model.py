"""A model of Triton's Python backend around an engine directory: decoupled, all requests in one running batch.

Names of tensors follow Triton's vLLM backend: ``text_input``, ``image``, ``stream``, ``sampling_parameters``;
``text_output``, ``finish_reason``.  Here an image is the bytes of its file, or a ``data:`` address.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from trtprune.errors import one_line
from trtprune.runtime import load
from trtprune.runtime.inflight import Order
from trtprune.serving.engine import Engine
from trtprune.serving.faults import ApiError, api_error
from trtprune.serving.images import Sources
from trtprune.serving.questions import question_of
from trtprune.serving.schema import ChatRequest
from trtprune.serving.sizes import BatchSizes

if TYPE_CHECKING:
    from trtprune.runtime import Features, Result

__all__ = ["TritonModel"]

logger = logging.getLogger("trtprune")


class _Sender:
    """A listener that answers through Triton's response sender.

    Args:
        utils: Triton's ``triton_python_backend_utils``.
        sender: The request's response sender.
        stream: Whether each piece is a response of its own.
    """

    def __init__(self, utils: Any, sender: Any, stream: bool) -> None:
        self._utils, self._sender, self._stream = utils, sender, stream
        self.order: Order | None = None

    def on_text(self, piece: str) -> None:
        """See :class:`trtprune.runtime.inflight.Listener`."""
        if self._sender.is_cancelled():
            assert self.order is not None
            self.order.cancelled = True
            self._sender.send(flags=self._utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        elif self._stream:
            self._sender.send(self._response(piece))

    def on_result(self, result: Result, pictures: Sequence[Features], cached_tokens: int) -> None:
        """See :class:`trtprune.runtime.inflight.Listener`."""
        text = "" if self._stream else result.text
        numbers = {
            "num_input_tokens": result.prompt_tokens,
            "num_output_tokens": len(result.token_ids),
            "visual_tokens": result.visual_tokens,
            "kept_tokens": result.kept_tokens,
        }
        response = self._response(text, result.finish_reason, numbers)
        self._sender.send(response, flags=self._utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def on_error(self, error: Exception) -> None:
        """See :class:`trtprune.runtime.inflight.Listener`."""
        fault = api_error(error)
        if fault.status >= 500 and not isinstance(error, ApiError):
            logger.error("a request failed: %s", error)
        codes = {400: "INVALID_ARG", 429: "UNAVAILABLE", 503: "UNAVAILABLE"}
        code = getattr(self._utils.TritonError, codes.get(fault.status, "INTERNAL"))
        response = self._utils.InferenceResponse(error=self._utils.TritonError(fault.message, code))
        self._sender.send(response, flags=self._utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _response(self, text: str, reason: str = "", numbers: dict[str, int] | None = None) -> Any:
        def tensor(name: str, value: Any) -> Any:
            return self._utils.Tensor(name, np.array([value]))

        tensors = [tensor("text_output", text.encode()), tensor("finish_reason", reason.encode())]
        tensors += [tensor(name, np.int32(number)) for name, number in (numbers or {}).items()]
        return self._utils.InferenceResponse(tensors)


class TritonModel:
    """The class that a model repository's ``model.py`` gives to Triton.

    Args:
        utils: Triton's ``triton_python_backend_utils``.
    """

    def __init__(self, utils: Any) -> None:
        self._utils = utils

    def initialize(self, args: dict[str, str]) -> None:
        """Opens the engine directory beside ``model.py``, with the parameters of ``config.pbtxt``."""
        parameters = json.loads(args["model_config"])["parameters"]
        values = {name: entry["string_value"] for name, entry in parameters.items()}
        root = Path(args["model_repository"]) / args["model_version"] / "engine"
        threads = values.get("threads")
        vlm = load(root, provider=values.get("provider") or None, threads=int(threads) if threads else None)
        sizes = BatchSizes.from_texts(values)
        self._engine = Engine(vlm, sizes.limits, max_queued=sizes.max_queued_requests)

    def execute(self, requests: Sequence[Any]) -> None:
        """Hands requests to the batch; their responses come later."""
        for request in requests:
            sender = request.get_response_sender()
            stream = self._bool(request, "stream")
            answers = _Sender(self._utils, sender, stream)
            try:
                question = question_of(self._engine.vlm.pipeline, self._asked(request), Sources())
                order = Order(question.turns, question.pictures, question.budget, question.settings, answers)
                answers.order = order
                self._engine.submit(order)
            except Exception as error:
                answers.on_error(error)

    def finalize(self) -> None:
        """Answers what is there, and stops."""
        self._engine.close()

    def _asked(self, request: Any) -> ChatRequest:
        """The request in the form of OpenAI's API, with images as addresses of their bytes."""
        texts, images = self._texts(request, "text_input"), self._bytes(request, "image")
        parameters = (self._texts(request, "sampling_parameters") or ["{}"])[0]
        messages = (self._texts(request, "messages") or [""])[0]
        try:
            own = json.loads(parameters)
            if not isinstance(own, dict):
                raise ApiError(400, "sampling_parameters is no JSON object", param="sampling_parameters")
            if messages:
                own["messages"] = json.loads(messages)
        except ValueError as error:
            raise ApiError(400, f"not JSON: {one_line(str(error), 200)}") from None
        if bool(messages) == bool(texts):
            raise ApiError(400, "either text_input or messages is needed")
        if not messages:
            urls = [
                image.decode("ascii", "replace")
                if image[:5].lower() == b"data:"
                else "data:;base64," + base64.b64encode(image).decode()
                for image in images
            ]
            parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
            own["messages"] = [{"role": "user", "content": [*parts, {"type": "text", "text": texts[0]}]}]
        elif images:
            raise ApiError(400, "the images of messages are in them: leave out image")
        try:
            asked = ChatRequest.model_validate(own)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"] if not isinstance(part, int))
            raise ApiError(400, one_line(f"{place}: {first['msg']}", 300)) from None
        asked.check()
        return asked

    def _bytes(self, request: Any, name: str) -> list[bytes]:
        tensor = self._utils.get_input_tensor_by_name(request, name)
        return [] if tensor is None else [bytes(value) for value in tensor.as_numpy().reshape(-1)]

    def _texts(self, request: Any, name: str) -> list[str]:
        try:
            return [value.decode("utf-8") for value in self._bytes(request, name)]
        except UnicodeDecodeError:
            raise ApiError(400, f"{name} is not UTF-8", param=name) from None

    def _bool(self, request: Any, name: str) -> bool:
        tensor = self._utils.get_input_tensor_by_name(request, name)
        return tensor is not None and bool(tensor.as_numpy().reshape(-1)[0])
