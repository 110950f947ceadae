"""What a method that a build was not made with can read of a picture: for its NumPy reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from trtprune import pruning
from trtprune.errors import BudgetError
from trtprune.pruning.inputs import INPUTS

if TYPE_CHECKING:
    import numpy as np

    from trtprune.backends.base import Array
    from trtprune.engine_dir import EngineDir
    from trtprune.pruning import Method
    from trtprune.runtime.chain import Features

__all__ = ["picture_inputs"]


def picture_inputs(
    config: EngineDir, method: Method, features: Features, fetch: Callable[[Array], np.ndarray]
) -> dict[str, Any]:
    """Everything the method needs but text and seed, on the host.

    Args:
        config: The build that made the features.
        method: With its default options.
        features: Of the picture.
        fetch: Brings an array to the host.

    Raises:
        BudgetError: naming what this build's vision graph does not return.
    """
    hint = f"trtprune build --method {method.name}, and take that build"
    found: dict[str, Any] = {}
    for name, entry in INPUTS.items():
        if name not in method.needs or entry.source == "embed":
            continue
        if name in features.extras:
            found[name] = fetch(features.extras[name])
        elif name.startswith("cls_") and not config.model.has_cls:
            raise BudgetError(
                f"--method {method.name} needs {entry.words}; the vision tower of this model has no CLS token",
                hint="trtprune methods says what each needs",
            )
        else:
            graph = "vision graph" if entry.source == "vision" else "build"
            raise BudgetError(
                f"--method {method.name} needs {entry.words}; the {graph} of {config.root.name} returns no {name}",
                hint=hint,
            )
    if "shallow_attention" in found:
        built = pruning.get(config.pruning.method).tower_layer(config.pruning.options)
        wanted = method.tower_layer()
        if built != wanted:
            raise BudgetError(
                f"--method {method.name} needs {INPUTS['shallow_attention'].words}: layer {wanted}; the vision graph "
                f"of {config.root.name} returns that of layer {built}",
                hint=hint,
            )
    if "grid" in method.needs:
        rows, columns = config.model.patch_grid
        if config.model.first_patch != 0 or rows * columns != config.model.visual_tokens:
            raise BudgetError(
                f"--method {method.name} needs the grid of patches; this model's image features are not one a patch",
                hint="trtprune methods says what each needs",
            )
        found["grid"] = (rows, columns)
    return found
