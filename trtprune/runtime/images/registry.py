"""All image processors.  A new one is a file beside this one and an entry of :data:`PROCESSORS`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from trtprune.arguments import arg
from trtprune.errors import EngineDirError, shown
from trtprune.runtime.images.base import CropShape, Processor
from trtprune.runtime.images.internvl import InternVL
from trtprune.runtime.images.llava_next import LlavaNext
from trtprune.runtime.images.llava_onevision import LlavaOnevision
from trtprune.runtime.images.packed import PackedShape
from trtprune.runtime.images.qwen2_vl import Qwen2Vl
from trtprune.runtime.images.settings import named, processor_section
from trtprune.runtime.images.single import Single
from trtprune.runtime.images.smolvlm import SmolVLM

__all__ = ["PROCESSORS", "PixelBounds", "processor_from_files", "processor_from_settings"]

PROCESSORS: dict[str, type[Processor]] = {
    kind.name: kind for kind in (Single, LlavaNext, LlavaOnevision, InternVL, Qwen2Vl, SmolVLM)
}
"""Processor by its name in ``config.json``."""


@dataclass(frozen=True)
class PixelBounds:
    """A user's bounds of the pixels that images are scaled to; None: the checkpoint's."""

    least: int | None = None
    most: int | None = None

    def settings(self) -> dict[str, int]:
        """The bounds as settings of a processor."""
        found = {"min_pixels": self.least, "max_pixels": self.most}
        return {name: value for name, value in found.items() if value is not None}


def processor_from_files(
    files: Mapping[str, str],
    shape: CropShape | PackedShape,
    config: Mapping[str, Any],
    names: Collection[str],
    layout: str | None = None,
    bounds: PixelBounds | None = None,
    *,
    more: Mapping[str, Any] | None = None,
) -> Processor:
    """The image processor of a checkpoint.

    Args:
        files: The checkpoint's text files, content by name.
        shape: The crop of the model's vision tower, or the patches of a packed one.
        config: The checkpoint's ``config.json``.
        names: Processors that fit the model, keys of :data:`PROCESSORS`; the first one is used if the file names
            none.
        layout: One of the processor's layouts; None: the model's own.
        bounds: Bounds of the pixels that images are scaled to, in place of the file's; only of a packed tower.
        more: Settings from further files of the checkpoint.

    Raises:
        EngineDirError: naming the file and the setting, for a processor that does not fit or an invalid setting.
    """
    values, where = processor_section(files)
    processor = _named(values, where, names)
    with named("config.json"):
        model = processor.model_settings(config)
    if layout is not None and layout not in processor.layouts:
        raise EngineDirError(
            f"{arg('layout', layout)}: not offered for this model", hint=f"one of {', '.join(processor.layouts)}"
        )
    own = {} if bounds is None else bounds.settings()
    settings = {**values, **model, **(more or {}), **shape.settings(), **own, "layout": layout}
    return processor.from_settings(settings, where)


def processor_from_settings(name: str, settings: Mapping[str, Any], where: str) -> Processor:
    """The image processor that an engine directory names.

    Args:
        name: Key of :data:`PROCESSORS`.
        settings: The result of its :meth:`~Processor.settings` at build time.
        where: File name for errors.

    Raises:
        EngineDirError: for an unknown name or an invalid setting.
    """
    if name not in PROCESSORS:
        raise EngineDirError(
            f"{where}: image processor {shown(name)} is not known",
            hint=f"built by a newer trtprune? Known here: {', '.join(PROCESSORS)}",
        )
    return PROCESSORS[name].from_settings(settings, where)


def _named(values: Mapping[str, Any], where: str, names: Collection[str]) -> type[Processor]:
    """The class for these files, out of those that fit."""
    kind = values.get("image_processor_type") or values.get("feature_extractor_type")
    fitting = [PROCESSORS[name] for name in names]
    if kind is None:
        return fitting[0]
    if not isinstance(kind, str):
        raise EngineDirError(f"{where}: image_processor_type is no text", hint="correct it, or fetch the file again")
    name = kind.removesuffix("Fast").removesuffix("Pil")
    for processor in fitting:
        if name in processor.kinds:
            return processor
    expected = ", ".join(name for processor in fitting for name in processor.kinds)
    raise EngineDirError(
        f"{where}: image processor {shown(kind)} does not fit this model",
        hint=f"it takes {expected}: fetch the checkpoint's own preprocessor_config.json",
    )
