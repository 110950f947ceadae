"""trtprune: vision-language models with visual-token pruning, compiled into engines.

    import trtprune
    trtprune.build("demo", "out", keep=64, method="adafv")
    vlm = trtprune.load("out")
    print(vlm.generate("cat.jpg", "What is on the table?", keep=32).text)

Importing the package is instant; the libraries that a call needs are imported by that call.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trtprune import errors
from trtprune._version import __version__
from trtprune.errors import (
    BackendError,
    BudgetError,
    BuildError,
    CheckpointError,
    EngineDirError,
    InputError,
    TrtpruneError,
)

if TYPE_CHECKING:
    from trtprune import pruning
    from trtprune.compiler.building import build
    from trtprune.compiler.engine_options import EngineOptions
    from trtprune.compiler.request import BuildRequest
    from trtprune.engine_dir import EngineDir, GenerationInfo, open_engine_dir
    from trtprune.runtime import Conversation, Features, Request, Result, Stream, Vlm, load
    from trtprune.runtime.prepacking import Prepacked, prepack, unpack

__all__ = [
    "BackendError",
    "BudgetError",
    "BuildError",
    "BuildRequest",
    "CheckpointError",
    "Conversation",
    "EngineDir",
    "EngineDirError",
    "EngineOptions",
    "Features",
    "GenerationInfo",
    "InputError",
    "Prepacked",
    "Request",
    "Result",
    "Stream",
    "TrtpruneError",
    "Vlm",
    "__version__",
    "build",
    "errors",
    "load",
    "open_engine_dir",
    "prepack",
    "pruning",
    "unpack",
]

_LATE = {
    "build": "trtprune.compiler.building",
    "BuildRequest": "trtprune.compiler.request",
    "EngineOptions": "trtprune.compiler.engine_options",
    **dict.fromkeys(("Prepacked", "prepack", "unpack"), "trtprune.runtime.prepacking"),
    **dict.fromkeys(("EngineDir", "GenerationInfo", "open_engine_dir"), "trtprune.engine_dir"),
    **dict.fromkeys(("Conversation", "Features", "Request", "Result", "Stream", "Vlm", "load"), "trtprune.runtime"),
}
"""Names whose module is imported when they are first used: it needs libraries that take time to load."""


def __getattr__(name: str) -> Any:
    if name == "pruning":
        return import_module("trtprune.pruning")
    if name not in _LATE:
        raise AttributeError(f"module 'trtprune' has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_LATE[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATE, "pruning"} - {"Any", "TYPE_CHECKING", "annotations", "import_module"})
