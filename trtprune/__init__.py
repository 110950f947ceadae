"""trtprune: vision-language models with visual-token pruning, compiled into engines.

    import trtprune
    trtprune.build("demo", "out", keep=64, method="adafv")
    vlm = trtprune.load("out")
    print(vlm.generate("cat.jpg", "What is on the table?", keep=32).text)

Importing the package is instant; the libraries that a call needs are imported by that call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trtprune._version import __version__
from trtprune.errors import TrtpruneError

if TYPE_CHECKING:
    from trtprune import pruning
    from trtprune._build import build
    from trtprune._engine_options import EngineOptions
    from trtprune.runtime import load

__all__ = ["EngineOptions", "TrtpruneError", "__version__", "build", "load", "pruning"]


def __getattr__(name: str) -> Any:
    if name == "build":
        from trtprune._build import build

        return build
    if name == "EngineOptions":
        from trtprune._engine_options import EngineOptions

        return EngineOptions
    if name == "load":
        from trtprune.runtime import load

        return load
    if name == "pruning":
        import trtprune.pruning

        return trtprune.pruning
    raise AttributeError(f"module 'trtprune' has no attribute {name!r}")
