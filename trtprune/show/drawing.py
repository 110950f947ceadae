"""``trtprune show``: kept tokens of an image by several methods at several budgets, with answers, as one sheet."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtprune import pruning
from trtprune.compiler.budget import describe_budget
from trtprune.errors import BackendError, BudgetError, CheckpointError, InputError, TrtpruneError
from trtprune.show.crops import crops_width, overlay_crops
from trtprune.show.fonts import missing
from trtprune.show.overlay import overlay
from trtprune.show.panels import answer_under, caption_for, panel_size, panels
from trtprune.show.references import merged_into, select
from trtprune.variants import Variant, Variants

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from trtprune.runtime import Vlm
    from trtprune.runtime.pictures import ImageInput
    from trtprune.runtime.viewing import View

__all__ = ["Panel", "SheetRequest", "check_output", "draw", "find_panels", "save"]

logger = logging.getLogger("trtprune")


@dataclass(frozen=True)
class SheetRequest:
    """The request of a sheet.

    Attributes:
        image: The image.
        prompt: The question; text-aware methods select by it.
        keeps: Budgets, one column each; empty: as built.
        methods: ``METHOD[:OPTION=VALUE]…``, one row each; empty: as built.
        seed: Seed of method ``random``.
        answers: Whether to answer the question with each selection and with all tokens.
        max_new_tokens: Longest answer, in tokens.
    """

    image: ImageInput
    prompt: str
    keeps: Sequence[int] = ()
    methods: Sequence[str] = ()
    seed: int | None = None
    answers: bool = True
    max_new_tokens: int = 32


@dataclass(frozen=True)
class Panel:
    """The selection of a method at a budget.

    Attributes:
        method, keep: Method and budget.
        kept_indices: int64, ascending; for a method inside the decoder, the tokens in its last segment.
        merged_into: As in :func:`trtprune.show.references.merged_into`.
        answer: The answer; None if not requested or not possible here.
        segment_tokens: Tokens in each segment of a segmented decoder.
    """

    method: str
    keep: int
    kept_indices: np.ndarray
    merged_into: np.ndarray | None = None
    answer: str | None = None
    segment_tokens: Sequence[int] = ()

    @property
    def merged(self) -> list[list[int]]:
        """The tokens of each row that stands for several."""
        groups: dict[int, list[int]] = {}
        for token, target in enumerate([] if self.merged_into is None else self.merged_into):
            if target >= 0:
                groups.setdefault(int(target), []).append(token)
        return [group for _, group in sorted(groups.items()) if len(group) > 1]

    def caption(self, total: int) -> str:
        """The panel's title."""
        if self.segment_tokens:
            steps = " → ".join(map(str, self.segment_tokens))
            merged = f", {len(self.merged)} merged" if self.merged else ""
            return f"{self.method} · {self.keep} a layer: {steps}{merged}"
        return caption_for(self.method, len(self.kept_indices), total, len(self.merged))

    def to_json(self) -> dict[str, Any]:
        """The data of ``--json``."""
        found: dict[str, Any] = {"method": self.method, "keep": self.keep}
        found["kept_indices"] = [int(index) for index in self.kept_indices]
        if self.merged_into is not None:
            found["merged"] = self.merged
        if self.answer is not None:
            found["answer"] = self.answer
        return found


@dataclass
class Sheet:
    """The whole content: the image as the model sees it, one row of panels per method, and the unpruned answer."""

    view: View
    rows: list[list[Panel | None]] = field(default_factory=list)
    unpruned: str | None = None

    @property
    def panels(self) -> list[Panel]:
        """All panels, row by row."""
        return [panel for row in self.rows for panel in row if panel is not None]


def check_output(path: Path) -> None:
    """Refuses an output that cannot be written, before any work.

    Raises:
        InputError: for a missing folder, or a file type that is no picture.
    """
    from PIL import Image

    if not path.parent.is_dir():
        raise InputError(f"-o {path}: there is no directory {path.parent}", hint="make it first")
    if path.is_dir():
        raise InputError(f"-o {path}: is a directory", hint="name a file")
    Image.init()
    if Image.EXTENSION.get(path.suffix.lower()) not in Image.SAVE:
        raise InputError(f"-o {path}: not a kind of picture that can be written", hint="a .png or .jpg file")


def find_panels(variants: Variants, asked: SheetRequest, say: Callable[[str], None] | None = None) -> Sheet:
    """Runs every method at every budget.

    Methods other than the directory's own are built first.  If that is impossible (engines), the method's NumPy
    reference selects from the outputs of the directory's vision graph, and there is no answer.

    Raises:
        BudgetError: for a method, option or budget that cannot be served.
        InputError: for an image that cannot be read.
    """
    chosen = _variants(variants, asked.methods)
    base = variants.open(variants.own)
    budgets = list(dict.fromkeys(asked.keeps)) or [variants.base.pruning.keep]
    total = variants.base.model.visual_tokens
    sheet = Sheet(base.look(asked.image, asked.prompt))
    for variant in chosen:
        if say is not None:
            say(variant.label)
        keeps = [total] if variant.method == "none" else budgets
        vlm = _open(variants, variant, asked)
        row = [_panel(variants, vlm, variant, keep, sheet.view, asked, alone=len(chosen) == 1) for keep in keeps]
        sheet.rows.append([*row, *[None] * (len(budgets) - len(row))])
    if not sheet.panels:
        raise BudgetError("no method serves any of these budgets", hint="trtprune inspect says which a build serves")
    if asked.answers:
        sheet.unpruned = _unpruned(variants, sheet, asked)
    return sheet


def _variants(variants: Variants, methods: Sequence[str]) -> list[Variant]:
    """The variants; the directory's own method without options gets its options of the build."""
    found = []
    for text in methods:
        parsed = Variant.parse(text, tower=variants.tower)
        found.append(variants.own if text.strip() == variants.own.method else parsed)
    return list(dict.fromkeys(found)) or [variants.own]


def _open(variants: Variants, variant: Variant, asked: SheetRequest) -> Vlm | None:
    """A build of the method; None if only its NumPy reference is available."""
    try:
        return variants.open(variant)
    except (BackendError, CheckpointError, ModuleNotFoundError) as error:
        defaults = Variant.make(variant.method, tower=variants.tower)
        if variant != defaults or pruning.get(variant.method).inside:
            raise
        logger.warning("%s: selected by its NumPy reference, and no answer: %s", variant.label, _reason(error))
        return None


def _reason(error: Exception) -> str:
    return error.flag_message if isinstance(error, TrtpruneError) else f"{error}, which building it needs"


def _panel(
    variants: Variants, vlm: Vlm | None, variant: Variant, keep: int, view: View, asked: SheetRequest, *, alone: bool
) -> Panel | None:
    total = view.features.visual_tokens
    if vlm is None:
        base = variants.open(variants.own)
        indices = select(base, view, keep=keep, method=variant.method, seed=asked.seed)
        logger.info("%-10s %s", variant.label, describe_budget(total, len(indices)))
        where = merged_into(base, view, keep=keep, seed=asked.seed, name=variant.method)
        return Panel(variant.label, keep, indices, where)
    try:
        vlm.check_keep(keep)
    except BudgetError as error:
        if alone:
            raise
        # Methods inside the decoder cannot reach budgets as small as others: their place stays empty.
        logger.warning("%s at %d: %s", variant.label, keep, error.flag_message)
        return None
    own = view if variant == variants.own else vlm.look(view.image, asked.prompt)
    if not asked.answers:
        import numpy as np

        found = np.asarray(vlm.select(own, keep=keep, seed=asked.seed))
        panel = Panel(variant.label, keep, found, merged_into(vlm, own, keep=keep, seed=asked.seed))
    else:
        panel = _answered(vlm, variant.label, keep, own, asked)
    logger.info("%-10s %s", variant.label, describe_budget(total, len(panel.kept_indices)))
    return panel


def _answered(vlm: Vlm, label: str, keep: int, view: View, asked: SheetRequest) -> Panel:
    import numpy as np

    result = vlm.generate(view.features, asked.prompt, keep=keep, seed=asked.seed, max_new_tokens=asked.max_new_tokens)
    steps = result.segment_tokens[0] if result.segment_tokens else ()
    where = merged_into(vlm, view, keep=keep, seed=asked.seed)
    return Panel(label, keep, np.asarray(result.kept_indices[0]), where, result.text.strip(), steps)


def _unpruned(variants: Variants, sheet: Sheet, asked: SheetRequest) -> str | None:
    """The answer with all tokens, from a build that prunes nothing; without one, None and a note."""
    for panel in sheet.panels:
        if panel.method == "none":
            return panel.answer
    total = variants.base.model.visual_tokens
    try:
        vlm = variants.open(Variant.make("none"))
    except (BackendError, CheckpointError, ModuleNotFoundError) as error:
        if variants.base.pruning.keep_range[1] < total:
            logger.warning("unpruned: no answer: %s", _reason(error))
            return None
        tokens = sheet.view.features.visual_tokens
        logger.info("unpruned: %s with all %d tokens: %s", variants.own.label, tokens, _reason(error))
        vlm = variants.open(variants.own)
    return _answered(vlm, "none", total, vlm.look(sheet.view.image, asked.prompt), asked).answer


def draw(sheet: Sheet, asked: SheetRequest, model: Any, *, font: Path | None = None) -> Image.Image:
    """The sheet as a picture; notes the letters that no font on this machine has.

    Args:
        sheet: The content.
        asked: The request.
        model: The engine directory's model.
        font: A font file with priority over the system's fonts.
    """
    plan = sheet.view.features.plan
    size = panel_size(math.ceil(crops_width(plan) * max(map(len, sheet.rows))))
    drawn: list[list[Image.Image | None]] = []
    for row in sheet.rows:
        drawn.append([])
        for panel in row:
            if panel is None:
                drawn[-1].append(None)
                continue
            picture = _overlay(sheet.view, panel, model, size)
            same = sheet.unpruned in (None, panel.answer)
            drawn[-1].append(answer_under(picture, panel.answer, same=same, font=font))
    aside = []
    if sheet.unpruned is not None:
        aside.append(f"all {plan.tokens} tokens: {sheet.unpruned}")
        if any(panel.answer not in (None, sheet.unpruned) for panel in sheet.panels):
            aside.append("in red: another answer than with all tokens")
    if crops_width(plan) > 1:
        aside.append("each panel: the overview the model sees, and its tiles put together")
    if any(panel.merged for panel in sheet.panels):
        aside.append("outlined in blue, in one tint: patches merged into one token")
    absent = missing(" ".join([asked.prompt, *aside, *(panel.answer or "" for panel in sheet.panels)]), font)
    if absent:
        logger.warning(
            "no font here has %s: drawn as \ufffd (install one, such as Noto Sans CJK, or name one with --font)",
            " ".join(absent[:20]),
        )
    return panels(sheet.view.image, drawn, caption=asked.prompt, aside=aside, size=size, font=font)


def _overlay(view: View, panel: Panel, model: Any, size: int) -> Image.Image:
    """A panel's picture with its title: the whole image in one piece, or the overview beside the tiles."""
    merged, title = panel.merged_into, panel.caption(view.features.visual_tokens)
    if view.geometry is None:
        plan = view.features.plan
        return overlay_crops(view.image, panel.kept_indices, plan, merged_into=merged, title=title, size=size)
    return overlay(
        view.image,
        panel.kept_indices,
        patch_grid=model.patch_grid,
        geometry=view.geometry,
        first_patch=model.first_patch,
        merged_into=merged,
        title=title,
        size=size,
    )


def save(picture: Image.Image, path: Path) -> None:
    """Writes the picture, completely or not at all.

    Raises:
        InputError: if it cannot be written.
    """
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        picture.save(part, optimize=True)
        part.replace(path)
    except (OSError, ValueError) as error:
        part.unlink(missing_ok=True)
        raise InputError(f"-o {path}: cannot be written: {error}", hint="a .png or .jpg file") from None
