"""The command ``trtprune show``: pictures of kept tokens, with the answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from trtprune.backends.running import Running
from trtprune.cli.console import echo_json, log_options, logger, progress
from trtprune.cli.flags import OUTPUT, Command, Gathered, Options, option
from trtprune.cli.options import CLIP, DIRECTORY, MAX_PIXELS, PATH, RUN, keeps_option, methods_option, others_option

__all__ = ["show"]

QUESTION = "Question"
DEFAULT = Path("kept.png")


@dataclass(frozen=True)
class _Flags:
    """What is drawn, and how the builds are run."""

    image: str
    prompt: str
    answers: bool
    max_new_tokens: int
    seed: int | None
    max_pixels: int | None
    keeps: tuple[int, ...] | None
    methods: str | None
    others: tuple[Path, ...]
    clip: str | None
    running: Running


_FLAGS: Options = (
    option("--image", required=True, metavar="PICTURE", group=QUESTION, help="The picture."),
    option(
        "--prompt",
        metavar="TEXT",
        default="Describe the image.",
        show_default=True,
        group=QUESTION,
        help="The question, by which text-aware methods select.",
    ),
    option(
        "--answers/--no-answers",
        default=True,
        group=QUESTION,
        help="Whether the answer is written under each panel.  [default: answers]",
    ),
    option(
        "--max-new-tokens",
        type=click.IntRange(1),
        metavar="N",
        default=32,
        show_default=True,
        group=QUESTION,
        help="The largest length of an answer in tokens.",
    ),
    option("--seed", type=int, group=QUESTION, help="The seed of method random."),
    MAX_PIXELS,
    keeps_option("as built"),
    methods_option("Pruning methods, a row each."),
    others_option("drawn"),
    CLIP,
    option("-o", "--output", type=PATH, group=OUTPUT, help=f"The picture to write.  [default: {DEFAULT}]"),
    option("--font", type=PATH, group=OUTPUT, help="A font file for letters that the fonts found here lack."),
    option(
        "--json",
        "as_json",
        is_flag=True,
        group=OUTPUT,
        help="Print kept indices, merged tokens and answers as JSON on stdout.",
    ),
    Gathered("running", Running, RUN),
)


@click.command(cls=Command, short_help="Draw what methods keep of a picture, with the answers.")
@DIRECTORY
@Gathered("flags", _Flags, _FLAGS, apart=("output", "font", "as_json"))
@log_options
def show(directory: Path, flags: _Flags, output: Path | None, font: Path | None, as_json: bool) -> None:
    """Draw what methods keep of a picture, a row a method and a column a budget, with the answers.

    \b
    trtprune show out --image cat.jpg --prompt "What is on the table?"
    trtprune show out --image cat.jpg --keep 192,64 --methods adafv,visionzip
    """
    from trtprune.runtime.pictures import load_picture, max_pixels_from
    from trtprune.show import drawing
    from trtprune.show.fonts import check_font
    from trtprune.variants import Variants, split_methods, warnings_only

    # A wrong name, font or image is reported before a model is loaded.
    path = output or DEFAULT
    drawing.check_output(path)
    check_font(font)
    limit = max_pixels_from(flags.max_pixels)
    picture = load_picture(flags.image, limit, urls=True)
    asked = drawing.SheetRequest(
        picture,
        flags.prompt,
        flags.keeps or (),
        split_methods(flags.methods or ""),
        seed=flags.seed,
        answers=flags.answers,
        max_new_tokens=flags.max_new_tokens,
    )
    with (
        progress("show") as report,
        Variants(
            directory,
            flags.running,
            others=flags.others,
            max_pixels=limit,
            build_options={"clip": flags.clip} if flags.clip else None,
            report=warnings_only(report),
        ) as variants,
    ):
        report.live("loading")
        sheet = drawing.find_panels(variants, asked, report.live)
        drawn = drawing.draw(sheet, asked, variants.base.model, font=font)
    if output is None and path.exists():
        logger.info("%-9s the %s that was here is replaced", "show", path)
    drawing.save(drawn, path)
    if as_json:
        found = {"output": str(path), "panels": [panel.to_json() for panel in sheet.panels]}
        echo_json(found if sheet.unpruned is None else {**found, "unpruned": sheet.unpruned})
    else:
        click.echo(str(path))
