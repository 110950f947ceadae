"""The process of templates and tokenizers: limits first, then one answer for each message.

Messages and answers are JSON behind their length.  Answers are numbers and text only, so that faults stay in this
process.
"""

from __future__ import annotations

import json
import math
import os
import signal
import struct
import sys
import time
from typing import Any, BinaryIO

from trtprune.errors import TrtpruneError
from trtprune.text.model import ClipModel, TextModel

__all__ = ["LENGTH", "Service", "main"]

LENGTH = struct.Struct(">Q")
KINDS = {"text": TextModel, "clip": ClipModel}
METHODS = ("decode", "describe", "encode", "info", "rehearse", "segments")


class Service:
    """Keeps models and runs their methods."""

    def __init__(self, announce: Any) -> None:
        self._announce = announce
        self._models: dict[int, Any] = {}

    def handle(self, message: dict[str, Any]) -> Any:
        """Opens (``kind``) or asks (``method``) the model with the number ``model``, and closes those of ``closed``."""
        number, arguments = message["model"], message.get("arguments", {})
        for other in message.get("closed", ()):
            self._models.pop(other, None)
        if "kind" in message:
            self._models[number] = KINDS[message["kind"]](self._announce, **arguments)
            return None
        if message["method"] not in METHODS:
            raise ValueError(message["method"])
        return getattr(self._models[number], message["method"])(**arguments)

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        """The answer to a message: a ``result``, or the error."""
        try:
            return {"result": self.handle(message)}
        except TrtpruneError as error:
            return {"error": type(error).__name__, "message": error.message, "hint": error.hint}
        except MemoryError:
            return {"out_of_memory": True}
        except BaseException as error:  # a panic of a Rust library is not an Exception
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            return {"failed": f"{type(error).__name__}: {str(error)[:500]}"}


def main(memory: int) -> None:
    """Answers until standard input ends, in an address space of ``memory`` bytes."""
    source, target = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # Output of a library must not mix with the answers.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit_memory(memory)
    limit = _TimeLimit()

    def announce(stage: str, seconds: float) -> None:
        limit.step(seconds)
        _send(target, {"stage": stage, "seconds": seconds})

    service = Service(announce)
    while len(header := source.read(LENGTH.size)) == LENGTH.size:
        try:
            message = json.loads(source.read(LENGTH.unpack(header)[0]))
            limit.begin(message["seconds"])
            _send(target, service.answer(message))
        except MemoryError:
            _send(target, {"out_of_memory": True})


def _send(target: BinaryIO, answer: dict[str, Any]) -> None:
    data = json.dumps(answer).encode("ascii")
    target.write(LENGTH.pack(len(data)) + data)
    target.flush()


def _limit_memory(size: int) -> None:
    if sys.platform == "win32":  # has no such limits; only the time of a call is bounded there
        return
    import resource

    # macOS refuses or ignores the first.
    for kind, value in ((resource.RLIMIT_AS, size), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
        try:
            resource.setrlimit(kind, (value, value))
        except (OSError, ValueError):
            continue


class _TimeLimit:
    """Ends the process when it has computed for too long, even if its parent is gone."""

    def begin(self, seconds: float) -> None:
        """Begins a message with a limit of processor time in seconds."""
        self._end = time.process_time() + seconds
        self.step(seconds)

    def step(self, seconds: float) -> None:
        """Begins a step of the message with a limit of its own, within the message's."""
        if sys.platform == "win32":
            return
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        # Whole seconds, rounded up.
        limit = math.ceil(min(self._end, time.process_time() + seconds))
        resource.setrlimit(resource.RLIMIT_CPU, (limit if hard < 0 else min(limit, hard), hard))
