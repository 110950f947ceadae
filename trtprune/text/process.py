"""The process of ``service``: started when needed, asked, and ended when it takes too much time or memory.

One process serves all models of a program.  It is a fresh interpreter, not a fork: the program may run threads.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

from trtprune import errors
from trtprune.errors import BackendError, EngineDirError, InputError
from trtprune.text.service import LENGTH

__all__ = ["OFF", "TextModel", "stop"]

OFF = "TRTPRUNE_TEXT_PROCESS"
"""Set to ``off``, this environment variable keeps templates and tokenizers in the program, without limits."""
OPEN_SECONDS, ASK_SECONDS, DESCRIBE_SECONDS = 12.0, 6.0, 12.0
"""Limit of processor time for opening a model's files, asking it once, and describing it, in seconds."""
MEMORY = 1_500_000_000
"""Limit of the process's address space in bytes; reading a tokenizer of 256,000 tokens takes 320 to 630 MB."""
# On a shared processor, more time passes than is used.
WALL = 4.0 if sys.platform != "win32" else 1.0
TRUST = "use the tokenizer and template files of a checkpoint you trust"
START = "import sys; sys.path[:] = {path!r}; from trtprune.text.service import main; main({memory})"


class _Process:
    """The process, and the order of its messages."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.generation = 0
        self.served: set[int] = set()
        self.closed: collections.deque[int] = collections.deque()
        self._child: subprocess.Popen[bytes] | None = None
        self._local: Any = None

    def ask(self, message: dict[str, Any], seconds: float) -> Any:
        """The answer to a message; ``generation`` changes when a process and its models have ended.

        Raises:
            TrtpruneError: the service's own, or because it took too much time or memory.
        """
        closed = [self.closed.popleft() for _ in range(len(self.closed))]
        self.served = self.served - set(closed) | {message["model"]}
        message = {**message, "closed": closed, "seconds": seconds}
        if os.environ.get(OFF, "").lower() == "off":
            return self._here(message)
        data = json.dumps(message).encode("ascii")
        child = self._running()
        assert child.stdin is not None
        assert child.stdout is not None
        late = threading.Event()
        watch = threading.Timer(seconds * WALL, _kill, (child, late))
        watch.daemon = True
        watch.start()
        stage, allowed, answer = "the process for templates and tokenizers", seconds, None
        try:
            child.stdin.write(LENGTH.pack(len(data)) + data)
            child.stdin.flush()
            while True:
                header = child.stdout.read(LENGTH.size)
                if len(header) < LENGTH.size:
                    break
                answer = json.loads(child.stdout.read(LENGTH.unpack(header)[0]))
                if "stage" not in answer:
                    break
                stage, allowed, answer = answer["stage"], min(seconds, answer["seconds"]), None
        except (OSError, ValueError):
            answer = None
        except BaseException:  # an interrupt: a late answer would be taken for the next one
            self.end()
            raise
        finally:
            watch.cancel()
        if answer is None or "out_of_memory" in answer:
            code = self.end()
            raise _too_much(stage, allowed, late.is_set() or code == -24, answer is None, code)
        return _result(answer, stage)

    def end(self) -> int:
        """Ends the process, if one runs; returns its exit code."""
        child, self._child = self._child, None
        self.generation += 1
        self.served = set()
        if child is None:
            return 0
        with contextlib.suppress(OSError):
            if child.stdin is not None:
                child.stdin.close()
        try:
            child.wait(0.2)
        except subprocess.TimeoutExpired:
            child.kill()
        code = child.wait()
        if child.stdout is not None:
            child.stdout.close()
        return code

    def forget(self) -> None:
        """After a fork: the process is the parent's."""
        self.lock, self._child, self.served = threading.RLock(), None, set()
        self.generation += 1

    def _here(self, message: dict[str, Any]) -> Any:
        from trtprune.text.service import Service

        if self._local is None:
            self._local = Service(lambda stage, seconds: None)
        # Through JSON as from the process, so that tuples are lists here, too.
        answer = json.loads(json.dumps(self._local.answer(message)))
        if "out_of_memory" in answer:
            raise EngineDirError("templates and tokenizers take more memory than there is", hint=TRUST)
        return _result(answer, "the tokenizer or the chat template")

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._child.poll() is None:
            return self._child
        if self._child is not None:
            self.end()
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("PYTHON")},
            # One thread and one heap: further ones would reserve unused address space.
            "RAYON_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "MALLOC_ARENA_MAX": "1",
        }
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", "-c", START.format(path=_search_path(), memory=MEMORY)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                # An interrupt of the program must not reach this process.
                start_new_session=True,
            )
        except (OSError, ValueError, TypeError) as error:
            raise BackendError(
                f"no second Python process can be started for templates and tokenizers: {error}",
                hint=f"{OFF}=off reads them in this one, without limits of time and memory: for files you trust",
            ) from None
        return self._child


def _search_path() -> list[str]:
    """The search path of libraries, with those of import hooks."""
    found = [os.path.abspath(entry or ".") for entry in sys.path]
    for name in ("trtprune", "jinja2", "markupsafe", "tokenizers"):
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            found.append(str(Path(spec.origin).parent.parent))
    return list(dict.fromkeys(found))


class _OutOfMemory(EngineDirError):
    """The process exceeded its memory limit."""


def _kill(child: subprocess.Popen[bytes], late: threading.Event) -> None:
    late.set()
    child.kill()


def _too_much(stage: str, seconds: float, late: bool, died: bool, code: int) -> errors.TrtpruneError:
    if late:
        return EngineDirError(f"{stage} takes more than {seconds:.0f} s of processor time", hint=TRUST)
    if not died or code < 0:
        return _OutOfMemory(f"{stage} takes more than {MEMORY / 1e9:.1f} GB of memory", hint=TRUST)
    return BackendError(
        f"the process for templates and tokenizers ended with exit code {code}",
        hint=f"{sys.executable} must be able to import trtprune, jinja2 and tokenizers; or set {OFF}=off",
    )


def _result(answer: dict[str, Any], stage: str) -> Any:
    if "result" in answer:
        return answer["result"]
    if "error" in answer:
        kind = {"InputError": InputError}.get(answer["error"], EngineDirError)
        raise kind(answer["message"], hint=answer["hint"])
    raise EngineDirError(
        f"{stage} fails: {answer['failed']}", hint="correct the checkpoint's tokenizer and template, and build again"
    )


_PROCESS = _Process()
_NUMBERS = itertools.count()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_PROCESS.forget)
atexit.register(_PROCESS.end)


class TextModel:
    """A model of the service.

    Args:
        kind: ``text`` or ``clip``; see ``trtprune.text.model``.
        arguments: Arguments of its constructor, JSON values.

    Raises:
        EngineDirError: if its files are broken, or reading them takes too much time or memory.
    """

    def __init__(self, kind: str, **arguments: Any) -> None:
        self._opening = {"kind": kind, "arguments": arguments}
        self._number = next(_NUMBERS)
        self._generation = -1
        # Called by the garbage collector at any time: the next message passes it on.
        weakref.finalize(self, _PROCESS.closed.append, self._number).atexit = False
        self.info: dict[str, Any] = self.ask("info")

    def ask(self, method: str, **arguments: Any) -> Any:
        """The result of a method of the model."""
        with _PROCESS.lock:
            crowded = bool(_PROCESS.served - {self._number})
            try:
                return self._ask(method, arguments)
            except _OutOfMemory:
                # Perhaps only because of the other models; they are opened again at their next question.
                if not crowded:
                    raise
                return self._ask(method, arguments)

    def _ask(self, method: str, arguments: dict[str, Any]) -> Any:
        if self._generation != _PROCESS.generation:
            _PROCESS.ask({"model": self._number, **self._opening}, OPEN_SECONDS)
            self._generation = _PROCESS.generation
        seconds = DESCRIBE_SECONDS if method == "describe" else ASK_SECONDS
        return _PROCESS.ask({"model": self._number, "method": method, "arguments": arguments}, seconds)


def stop() -> None:
    """Ends the process; the next question starts it again."""
    with _PROCESS.lock:
        _PROCESS.end()
