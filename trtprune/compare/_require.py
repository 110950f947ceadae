"""Polygraphy, if it is installed, with its log in ours."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from typing import Any

from trtprune.errors import BackendError
from trtprune.reports.installer import to_install

__all__ = ["as_error", "polygraphy", "set_flavour"]

# The first version that is known to save inputs and outputs, and to return a result for each comparison function.
OLDEST = (0, 53)

logger = logging.getLogger("trtprune")


class _Forward(logging.Handler):
    """Polygraphy's lines as debug lines of our log: shown with ``-v`` and in ``--log-file``, never on stdout."""

    def emit(self, record: logging.LogRecord) -> None:
        logger.debug("%s", record.getMessage())


def polygraphy() -> Any:
    """The package ``polygraphy``, ready to use.

    Raises:
        BackendError: if it is not installed or does not load.
    """
    try:
        import polygraphy
        from polygraphy.logger import G_LOGGER
    except ImportError as error:
        raise BackendError(
            f"trtprune compare needs Polygraphy: {str(error).splitlines()[0]}", hint=to_install(extra="compare")
        ) from None
    version = tuple(int(part) for part in re.findall(r"\d+", polygraphy.__version__)[:2])
    if version < OLDEST:
        raise BackendError(
            f"trtprune compare needs Polygraphy {OLDEST[0]}.{OLDEST[1]}; {polygraphy.__version__} is installed",
            hint=to_install(f"polygraphy>={OLDEST[0]}.{OLDEST[1]}", upgrade=True),
        )
    theirs = logging.getLogger("Polygraphy")
    if not any(isinstance(handler, _Forward) for handler in theirs.handlers):
        theirs.addHandler(_Forward())
        theirs.propagate = False
        # Polygraphy prints to stdout, but only results belong there.
        G_LOGGER.use_python_logging_system = True
        G_LOGGER.colors = False
    shown = any(handler.level <= logging.DEBUG for handler in logger.handlers)
    # Its statistics of every output take time even if they are not shown.
    G_LOGGER.module_severity = G_LOGGER.INFO if shown else G_LOGGER.CRITICAL
    theirs.setLevel(1)
    return polygraphy


@contextlib.contextmanager
def as_error(what: str) -> Iterator[None]:
    """Turns Polygraphy's exceptions, and those of the libraries it calls, into one line about ``what``."""
    from polygraphy.exception import PolygraphyException

    try:
        yield
    except Exception as error:
        # TensorRT and torch raise RuntimeError; ONNX Runtime its own classes, derived from Exception.
        foreign = type(error).__module__.startswith("onnxruntime")
        if not foreign and not isinstance(error, PolygraphyException | RuntimeError):
            raise
        logger.debug("traceback of the error below", exc_info=error)
        text = " ".join(str(error).split())[:400] or type(error).__name__
        raise BackendError(f"{what}: {text}", hint="-v shows what Polygraphy says in full") from None


def set_flavour(backend: str) -> None:
    """Sets the TensorRT of Polygraphy's runners, ``tensorrt`` or ``tensorrt-rtx``.

    Polygraphy decides that at the first import of its TensorRT modules, once per process.

    Raises:
        BackendError: if they were imported for the other one.
    """
    import sys

    config = polygraphy().config
    rtx = backend == "tensorrt-rtx"
    if rtx != config.USE_TENSORRT_RTX and "polygraphy.backend.trt.runner" in sys.modules:
        raise BackendError(
            "engines of TensorRT and of TensorRT-RTX cannot be run in one process",
            hint="compare each of the two with --against onnxruntime",
        )
    config.USE_TENSORRT_RTX = rtx
