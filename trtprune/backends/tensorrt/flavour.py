"""Which TensorRT: the library behind a backend's name, and its log.

TensorRT reports most failures in its log only: a call returns None, or succeeds with another result.  So there is one
logger for each library, and callers of TensorRT record its messages during the call.
"""

from __future__ import annotations

import importlib
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from trtprune.errors import BackendError
from trtprune.reports.installer import to_install

__all__ = ["FLAVOURS", "Log", "MessageRecord", "get_log", "load_tensorrt", "one_line"]

FLAVOURS = ("tensorrt", "tensorrt-rtx")
MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
# RotaryEmbedding, TensorScatter and the KV-cache layer came with 10.15 (onnx-tensorrt's changelog); TensorRT for RTX
# has had them since the first version that was tried here.
OLDEST = {"tensorrt": (10, 15), "tensorrt-rtx": (1, 7)}
MAX_TEXT = 400

logger = logging.getLogger("trtprune")


def load_tensorrt(backend: str) -> Any:
    """The Python module of ``backend``: ``tensorrt`` or ``tensorrt_rtx``.

    Raises:
        BackendError: if it is not installed, does not load, or is too old for the graphs.
    """
    hint = to_install(extra=backend)
    try:
        trt = importlib.import_module(MODULES[backend])
    except ModuleNotFoundError as error:
        if error.name == MODULES[backend]:
            raise BackendError(f"--backend {backend}: {MODULES[backend]} is not installed", hint=hint) from None
        raise BackendError(f"--backend {backend}: does not load: {one_line(error)}", hint=hint) from None
    except (ImportError, OSError, RuntimeError) as error:  # libraries missing, or of another version
        raise BackendError(f"--backend {backend}: does not load: {one_line(error)}", hint=hint) from None
    version = getattr(trt, "__version__", None)
    if version is None or not hasattr(trt, "Builder"):
        raise BackendError(f"--backend {backend}: the installed {MODULES[backend]} cannot build engines", hint=hint)
    have = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if have < OLDEST[backend]:
        oldest = ".".join(map(str, OLDEST[backend]))
        raise BackendError(
            f"--backend {backend}: {MODULES[backend]} {version} is too old for the graphs, which need {oldest}",
            hint=to_install(f"{MODULES[backend].replace('_', '-')}-cu13>={oldest}", upgrade=True),
        )
    return trt


def one_line(text: object) -> str:
    """Text of a library as one line of limited length."""
    line = " ".join(str(text).split())
    return line if len(line) <= MAX_TEXT else line[: MAX_TEXT - 1] + "…"


@dataclass
class MessageRecord:
    """TensorRT's messages while the record was open, in order, each as one line."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def why(self, otherwise: str = "no reason was given") -> str:
        """The first error: later ones are mostly its consequences."""
        return self.errors[0] if self.errors else otherwise


class Log:
    """The logger of one library.

    ``ilogger`` is for TensorRT's constructors.  Warnings go to trtprune's log (shown with ``-v``); errors go there and
    to every open record, for the caller to raise.
    """

    def __init__(self, trt: Any) -> None:
        self._records: list[MessageRecord] = []
        self._lock = threading.Lock()
        severities = trt.ILogger.Severity
        names = {severities.INTERNAL_ERROR: "error", severities.ERROR: "error", severities.WARNING: "warning"}
        take = self._take

        class Recorder(trt.ILogger):
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                kind = names.get(severity)
                if kind is not None:
                    take(kind, message)

        self.ilogger: Any = Recorder()

    @contextmanager
    def recording(self) -> Iterator[MessageRecord]:
        """A record of all messages inside the block, from any thread."""
        record = MessageRecord()
        with self._lock:
            self._records.append(record)
        try:
            yield record
        finally:
            with self._lock:
                self._records = [other for other in self._records if other is not record]

    def _take(self, kind: str, message: str) -> None:
        if message.rstrip().endswith("has Int64 binding."):
            return  # a message about every int64 input since TensorRT 10, which binds them as int64
        text = one_line(message)
        logger.debug("tensorrt  %s: %s", kind, text)
        with self._lock:
            for record in self._records:
                (record.errors if kind == "error" else record.warnings).append(text)


_logs: dict[str, Log] = {}


def get_log(trt: Any) -> Log:
    """The logger of a library, the same one in the whole process.

    TensorRT keeps the first logger it is given for messages that belong to no object, so it must live on.
    """
    name = trt.__name__
    if name not in _logs:
        _logs[name] = Log(trt)
    return _logs[name]
