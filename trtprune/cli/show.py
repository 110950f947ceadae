"""The command ``trtprune show``: what methods keep of a picture, and what is answered then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from trtprune.cli.console import echo_json, logger, progress
from trtprune.cli.flags import OUTPUT, Command, option
from trtprune.cli.options import CLIP, MAX_PIXELS, PATH, keeps_option, methods_option, others_option, run_options

__all__ = ["show"]

QUESTION = "Question"
DEFAULT = Path("kept.png")


@click.command(cls=Command, short_help="Draw what methods keep of a picture, with the answers.")
@option("--image", required=True, metavar="PICTURE", group=QUESTION, help="The picture.")
@option(
    "--prompt",
    metavar="TEXT",
    default="Describe the image.",
    show_default=True,
    group=QUESTION,
    help="The question, by which text-aware methods select.",
)
@option(
    "--answers/--no-answers",
    default=True,
    group=QUESTION,
    help="Whether the answer is written under each panel.  [default: answers]",
)
@option(
    "--max-new-tokens",
    type=click.IntRange(1),
    metavar="N",
    default=32,
    show_default=True,
    group=QUESTION,
    help="The largest length of an answer in tokens.",
)
@option("--seed", type=int, group=QUESTION, help="The seed of method random.")
@MAX_PIXELS
@keeps_option("as built")
@methods_option("Pruning methods, a row each.")
@others_option("drawn")
@CLIP
@option("-o", "--output", type=PATH, group=OUTPUT, help=f"The picture to write.  [default: {DEFAULT}]")
@option("--font", type=PATH, group=OUTPUT, help="A font file for letters that the fonts found here lack.")
@option(
    "--json",
    "as_json",
    is_flag=True,
    group=OUTPUT,
    help="Print kept indices, merged tokens and answers as JSON on stdout.",
)
@run_options
def show(directory: Path, output: Path | None, font: Path | None, as_json: bool, **given: Any) -> None:
    """Draw what methods keep of a picture, a row a method and a column a budget, with the answers.

    \b
    trtprune show out --image cat.jpg --prompt "What is on the table?"
    trtprune show out --image cat.jpg --keep 192,64 --methods adafv,visionzip
    """
    from trtprune.runtime.pictures import load_picture, max_pixels_from
    from trtprune.show import drawing
    from trtprune.show.fonts import check_font
    from trtprune.variants import Variants, split_methods, warnings_only

    # A name, font or picture that is wrong should not cost the loading of a model.
    path = output or DEFAULT
    drawing.check_output(path)
    check_font(font)
    limit = max_pixels_from(given["max_pixels"])
    picture = load_picture(given["image"], limit, urls=True)
    settings = {name: given[name] for name in ("seed", "answers", "max_new_tokens")}
    methods = split_methods(given["methods"] or "")
    asked = drawing.SheetRequest(picture, given["prompt"], given["keeps"] or (), methods, **settings)
    with (
        progress("show") as report,
        Variants(
            directory,
            others=given["others"],
            provider=given["provider"],
            threads=given["threads"],
            provider_options=dict(given["provider_options"]),
            verify=given["verify"],
            max_pixels=limit,
            build_options={"clip": given["clip"]} if given["clip"] else None,
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
