"""The package onnxruntime, and what is wrong with it where it does not load."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import logging
import re
from typing import Any

from trtprune.arguments import arg
from trtprune.errors import BackendError
from trtprune.reports.installer import to_install, to_uninstall

__all__ = ["first_line", "import_onnxruntime", "preload_cuda"]

OLDEST = (1, 25)
"""The first release with every operator of the graphs."""
logger = logging.getLogger("trtprune")


def import_onnxruntime(provider: str) -> Any:
    """The module ``onnxruntime``.

    Raises:
        BackendError: if it is missing, too old, broken, or there are two wheels of it.
    """
    wheels = [name for name in ("onnxruntime", "onnxruntime-gpu") if _installed(name)]
    if len(wheels) == 2:
        drop = "onnxruntime" if provider == "cuda" else "onnxruntime-gpu"
        keep = "onnxruntime-gpu" if provider == "cuda" else "onnxruntime"
        raise BackendError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files",
            hint=f"{to_uninstall(drop)} && {to_install(keep, again=True)}",
        )
    try:
        import onnxruntime
    except ImportError as error:
        if wheels:
            reason = f"onnxruntime does not load: {first_line(error)}"
        else:
            reason = f"{arg('provider', provider)} needs ONNX Runtime, which is not installed"
        raise BackendError(reason, hint=to_install(extra=provider)) from None
    have = tuple(int(part) for part in re.findall(r"\d+", onnxruntime.__version__)[:2])
    if have < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise BackendError(
            f"onnxruntime {onnxruntime.__version__} is too old for the graphs, which need {oldest}",
            hint=to_install(f"{wheels[0] if wheels else 'onnxruntime'}>={oldest}", upgrade=True),
        )
    return onnxruntime


def preload_cuda(ort: Any) -> None:
    """Loads CUDA and cuDNN from their own wheels, where the provider would not look for them.

    onnxruntime only prints what is missing; opening a graph then fails, because the provider does not load.
    """
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        ort.preload_dlls()
    if said.getvalue():
        logger.debug("onnxruntime.preload_dlls: %s", " ".join(said.getvalue().split()))


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def first_line(error: BaseException) -> str:
    """An error's text, or its class, in one line of at most 300 characters."""
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
