"""The command ``trtprune show``: what methods keep of a picture, and what is answered then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from trtprune._console import echo_json, logger, progress
from trtprune._options import CLIP, PATH, run_options

__all__ = ["show"]

DEFAULT = Path("kept.png")


@click.command()
@click.option("--image", required=True, help="The picture.")
@click.option(
    "--prompt", default="Describe the image.", show_default=True, help="The question; text-aware methods select by it."
)
@click.option(
    "--keep", "keeps", multiple=True, type=int, help="A budget; repeat for a column each.  [default: as built]"
)
@click.option(
    "--method",
    "methods",
    metavar="METHOD:OPTION=VALUE",
    multiple=True,
    help="A method; repeat for a row each.  [default: as built]",
)
@click.option("--answers/--no-answers", default=True, help="The answer under each panel.  [default: answers]")
@click.option("--max-new-tokens", type=click.IntRange(1), default=32, show_default=True, help="Longest answer.")
@click.option("--seed", type=int, help="For --method random.")
@click.option("--font", type=PATH, help="A font file for letters that the fonts found here lack.")
@click.option("--max-pixels", type=int, help="Refuse pictures larger than this.")
@click.option("--with", "others", type=PATH, multiple=True, help="A directory built with another method; repeatable.")
@CLIP
@click.option("-o", "--output", type=PATH, help=f"The picture to write.  [default: {DEFAULT}]")
@click.option("--json", "as_json", is_flag=True, help="Print kept indices, merged tokens and answers as JSON.")
@run_options
def show(directory: Path, output: Path | None, font: Path | None, as_json: bool, **given: Any) -> None:
    """Draw what methods keep of a picture, a row a method and a column a budget, with the answers.

    \b
    trtprune show out --image cat.jpg --prompt "What is on the table?"
    trtprune show out --image cat.jpg --keep 192 --keep 64 --method adafv --method visionzip -o kept.png
    """
    from trtprune.runtime.pictures import load_picture, max_pixels_from
    from trtprune.show import drawing
    from trtprune.show.fonts import check_font
    from trtprune.variants import Variants, warnings_only

    # A name, font or picture that is wrong should not cost the loading of a model.
    path = output or DEFAULT
    drawing.check_output(path)
    check_font(font)
    limit = max_pixels_from(given["max_pixels"])
    picture = load_picture(given["image"], limit)
    names = ("keeps", "methods", "seed", "answers", "max_new_tokens")
    asked = drawing.Asked(picture, given["prompt"], **{name: given[name] for name in names})
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
