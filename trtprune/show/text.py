"""Lines of text in and under pictures."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

from trtprune.show.fonts import clean, runs

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["INK", "PAPER", "paragraph", "stack", "title_strip", "width_of"]

PAPER = (255, 255, 255)
INK = (28, 30, 34)
STRIP = 30


def width_of(text: str, size: float, font: Path | None = None) -> float:
    """The width of a line in pixels."""
    return sum(face.getlength(piece) for piece, face in runs(clean(text), size, font))


def write(
    sheet: Image.Image, place: tuple[float, float], text: str, size: float, font: Path | None = None, ink: object = INK
) -> None:
    """Writes a line on a picture; ``place`` is the middle of its left end."""
    from PIL import ImageDraw

    draw, (x, y) = ImageDraw.Draw(sheet), place
    for piece, face in runs(clean(text), size, font):
        draw.text((x, y + 0.36 * size), piece, fill=ink, font=face, anchor="ls")  # type: ignore[arg-type]
        x += face.getlength(piece)


def title_strip(picture: Image.Image, title: str, font: Path | None = None) -> Image.Image:
    """The picture with a line of text under it, in smaller letters if it does not fit."""
    from PIL import Image

    size = 17.0
    while size > 9 and width_of(title, size, font) > picture.width:
        size -= 0.5
    # A very narrow picture gets a margin, otherwise its text would be cut off.
    length = width_of(title, size, font)
    width = max(picture.width, int(length) + 1)
    sheet = Image.new("RGB", (width, picture.height + STRIP), PAPER)
    sheet.paste(picture, ((width - picture.width) // 2, 0))
    write(sheet, ((width - length) / 2, picture.height + STRIP / 2 + 1), title, size, font)
    return sheet


def paragraph(
    text: str,
    width: int,
    *,
    size: float = 19,
    lines: int = 3,
    font: Path | None = None,
    ink: object = INK,
    centred: bool = False,
) -> Image.Image:
    """A paragraph as a picture of the given width; a text longer than ``lines`` ends in an ellipsis."""
    from PIL import Image

    wrapped = _wrap(clean(text), width, size, font)
    if len(wrapped) > lines:
        wrapped = [*wrapped[: lines - 1], f"{wrapped[lines - 1]} …"]
    for number, line in enumerate(wrapped):
        while len(line) > 1 and width_of(line, size, font) > width:
            line = f"{line.removesuffix('…').rstrip()[:-1]}…"
        wrapped[number] = line
    step = round(size * 1.35)
    sheet = Image.new("RGB", (width, step * len(wrapped)), PAPER)
    for number, line in enumerate(wrapped):
        left = (width - width_of(line, size, font)) / 2 if centred else 0
        write(sheet, (left, number * step + step / 2), line, size, font, ink)
    return sheet


def _wrap(text: str, width: int, size: float, font: Path | None) -> list[str]:
    wrapped = [""]
    for word, space in _words(text):
        longer = wrapped[-1] + (" " if space and wrapped[-1] else "") + word
        if width_of(longer, size, font) <= width or not wrapped[-1]:
            wrapped[-1] = longer
        else:
            wrapped.append(word)
    return wrapped


def _words(text: str) -> list[tuple[str, bool]]:
    """Pieces between possible line breaks, and whether a space is before each: Chinese and Japanese have none."""
    found: list[tuple[str, bool]] = []
    for word in text.split():
        piece, space = "", True
        for letter in word:
            wide = unicodedata.east_asian_width(letter) in "WF"
            if piece and wide and unicodedata.category(letter)[0] != "P":
                found.append((piece, space))
                piece, space = "", False
            piece += letter
        found.append((piece, space))
    return found


def stack(pictures: list[Image.Image], gap: int = 0) -> Image.Image:
    """The pictures under each other, left-aligned."""
    from PIL import Image

    width = max(picture.width for picture in pictures)
    sheet = Image.new("RGB", (width, sum(p.height for p in pictures) + gap * (len(pictures) - 1)), PAPER)
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height + gap
    return sheet
