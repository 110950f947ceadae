"""Names of a checkpoint's tensors, old and new, and the check of the required ones.

transformers has named LLaVA's modules in several ways over time (``language_model.model.layers…``,
``model.language_model.layers…``; ``vision_tower.vision_model.encoder…``, ``model.vision_tower.encoder…``).  The graphs
use the names of transformers 5, called canonical here; the checkpoint's own are mapped to them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from trtprune.arguments import arg
from trtprune.errors import CheckpointError, shown

if TYPE_CHECKING:
    from trtprune.checkpoint import TensorInfo

__all__ = ["canonical_tensors", "compare"]

RULES = (
    (re.compile(r"^model\.(?=language_model\.|vision_tower\.|multi_modal_projector\.)"), ""),
    (re.compile(r"^language_model\.lm_head\."), "lm_head."),
    (re.compile(r"^language_model\.model\."), "language_model."),
    (re.compile(r"^vision_tower\.vision_model\."), "vision_tower."),
    (re.compile(r"^(?=language_model\.|vision_tower\.|multi_modal_projector\.)"), "model."),
)


def canonical_tensors(
    tensors: Mapping[str, TensorInfo],
    renames: Iterable[tuple[str, str]] = (),
    more: Collection[str] = (),
    rules: Sequence[tuple[re.Pattern[str], str]] = RULES,
) -> dict[str, TensorInfo]:
    """The tensors under their canonical names.

    Args:
        tensors: The checkpoint's, by their own names.
        renames: Older parts of names → transformers 5's (of the vision tower).
        rules: Patterns of older names, and what takes their places, in order.
        more: Canonical names of further tensors of the family, which older files have without ``model.``.

    Raises:
        CheckpointError: if two tensors have the same canonical name.
    """
    renames = tuple(renames)
    result: dict[str, TensorInfo] = {}
    for name, info in tensors.items():
        key = name
        for pattern, replacement in rules:
            key = pattern.sub(replacement, key)
        for old, new in renames:
            key = key.replace(old, new)
        if f"model.{key}" in more:
            key = f"model.{key}"
        if key in result:
            raise CheckpointError(
                f"{info.file}: tensors {shown(name)} and {shown(result[key].name)} are the same weight under two names",
                hint="remove one of them from the checkpoint",
            )
        result[key] = info
    return result


def compare(
    required: Mapping[str, tuple[int, ...]],
    have: Mapping[str, TensorInfo],
    known: Iterable[str],
    *,
    unused: Collection[str] = (),
    zero: Collection[str] = (),
    allow_extra: bool,
) -> list[str]:
    """Check ``have`` against ``required``.

    Args:
        required: Canonical name → shape.
        have: Canonical name → tensor.
        known: Patterns of further tensors that belong to the architecture (whole canonical names).
        unused: Names of such tensors; thousands of patterns would take minutes.
        zero: Tensors that may be there or not, by their names in the file: they add nothing.
        allow_extra: Return a warning for an unknown tensor instead of raising.

    Returns:
        Warnings.

    Raises:
        CheckpointError: naming the first missing, misshapen or unknown tensor, and the number of others.
    """
    missing = [name for name in required if name not in have]
    if missing:
        raise CheckpointError(
            f"the checkpoint lacks tensor {shown(_spelled(missing[0], have))}{_more(missing)}",
            hint="is a shard missing, or does config.json describe another model?",
        )
    wrong = [name for name, shape in required.items() if tuple(have[name].shape) != shape]
    if wrong:
        info = have[wrong[0]]
        raise CheckpointError(
            f"{info.file}: tensor {shown(info.name)} has shape {list(info.shape)}, config.json asks for "
            f"{list(required[wrong[0]])}{_more(wrong)}",
            hint="config.json does not describe these weights",
        )
    allowed = re.compile("|".join(f"(?:{pattern})" for pattern in known) or r"(?!)")
    extra = [name for name in have if not (name in required or name in unused or allowed.fullmatch(name))]
    extra = [name for name in extra if have[name].name not in zero]
    if not extra:
        return []
    info = have[extra[0]]
    message = f"{info.file}: tensor {shown(info.name)} is not part of this architecture{_more(extra)}"
    if allow_extra:
        return [message + "; ignored"]
    raise CheckpointError(
        message,
        hint=f"the model may compute something trtprune does not; {arg('allow_extra_tensors')} ignores them",
    )


def _spelled(key: str, have: Mapping[str, TensorInfo]) -> str:
    """``key`` in this checkpoint's spelling, from a tensor of the same part."""
    for root in ("model.language_model.", "model.vision_tower.", "model.multi_modal_projector."):
        if key.startswith(root):
            for other, info in have.items():
                rest = other[len(root) :]
                if other.startswith(root) and info.name.endswith(rest):
                    return info.name[: len(info.name) - len(rest)] + key[len(root) :]
    return key


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
