"""Checks whether two engine directories can be compared, and the choice of components."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trtprune import pruning
from trtprune.engine_dir.roles import PRUNER, VISION
from trtprune.errors import EngineDirError, InputError

if TYPE_CHECKING:
    from trtprune.compare.sides import Side
    from trtprune.engine_dir import ComponentInfo, EngineDir

__all__ = ["check_same_model", "choose_components"]


def check_same_model(made: EngineDir, other: EngineDir, *, allow_other: bool) -> None:
    """Refuses another model; with ``allow_other`` the weights may differ, the sizes may not.

    Raises:
        EngineDirError: naming the difference.
    """

    def sizes(engine_dir: EngineDir) -> dict[str, object]:
        model, kv = engine_dir.model, engine_dir.kv
        return {
            "family": model.family,
            "hidden size": model.hidden_size,
            "vocabulary": model.vocab_size,
            "visual tokens": model.visual_tokens,
            "image size": model.image_size and list(model.image_size),
            "layers": kv.num_layers,
            "key-value heads": kv.num_kv_heads,
            "head size": kv.head_dim,
        }

    mine, theirs = sizes(made), sizes(other)
    for name, value in mine.items():
        if theirs[name] != value:
            raise EngineDirError(
                f"--against {other.root}: another model ({other.model.id}): {name} {theirs[name]}, not {value}",
                hint=f"a directory built from {made.model.id}",
            )
    if made.model.digest != other.model.digest and not allow_other:
        raise EngineDirError(
            f"--against {other.root}: built from another checkpoint ({other.model.id}) than {made.root} "
            f"({made.model.id})",
            hint="--allow-other-weights compares all the same",
        )


def choose_components(
    made: EngineDir, candidate: Side, reference: Side, asked: Sequence[str], other: EngineDir | None
) -> tuple[list[ComponentInfo], list[str]]:
    """The components to compare, in the chain's order, and notes on those left out.

    Raises:
        InputError: for a requested component that is unknown, or that a side cannot run.
    """
    have = [component.name for component in made.components]
    for name in asked:
        if name not in have:
            raise InputError(
                f"--component {name}: {made.root} has none of that name", hint=f"it has: {', '.join(have)}"
            )
    chosen, notes = [], []
    for component in made.components:
        if asked and component.name not in asked:
            continue
        why = next(
            (
                f"{side.name} has no {component.name}"
                for side in (candidate, reference)
                if component.name not in side.components()
            ),
            None,
        ) or _differs(made, component, other)
        if why is None:
            chosen.append(component)
        elif asked:
            raise InputError(f"--component {component.name}: {why}", hint="leave it out")
        else:
            notes.append(f"{component.name} is not compared: {why}")
    if not chosen:
        raise InputError(f"nothing to compare: {'; '.join(notes)}", hint="choose another --against")
    return chosen, notes


def _differs(made: EngineDir, component: ComponentInfo, other: EngineDir | None) -> str | None:
    """The difference between the tensors of a component in two directories; None without one."""
    if other is None:
        return None
    found = next((c for c in other.components if c.name == component.name), None)
    if found is None:
        return f"{other.root} has no {component.name}"
    methods = [(d.pruning.method, d.pruning.options) for d in (made, other)]
    if component.role == PRUNER and methods[0] != methods[1]:
        return f"it is {methods[0][0]} here and {methods[1][0]} in {other.root}, or has other options"
    for what, mine, theirs in (("input", component.inputs, found.inputs), ("output", component.outputs, found.outputs)):
        ours, others = ({spec.name: spec.shape for spec in specs} for specs in (mine, theirs))
        if component.role == VISION and what == "output":  # an output that only one of the methods needs
            layers = [pruning.get(method).tower_layer(options) for method, options in methods]
            if layers[0] != layers[1] and {"shallow_attention"} <= ours.keys() & others.keys():
                return f"shallow_attention is that of layer {layers[0]} here and {layers[1]} in {other.root}"
            ours = {name: shape for name, shape in ours.items() if name in others}
            others = {name: shape for name, shape in others.items() if name in ours}
        for name in sorted(ours.keys() ^ others.keys()):
            where = "only here" if name in ours else f"only in {other.root}"
            return f"{what} {name} is {where}"
        for name, shape in ours.items():
            if [d for d in shape if isinstance(d, int)] != [d for d in others[name] if isinstance(d, int)]:
                return f"{what} {name} is {list(shape)} here and {list(others[name])} in {other.root}"
    return None
