"""Lines of text in and under pictures, in the font that Pillow brings."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image, ImageFont

__all__ = ["PAPER", "font", "paragraph", "title_strip"]

PAPER = (255, 255, 255)
INK = (28, 30, 34)
STRIP = 30


def font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font."""
    from PIL import ImageFont

    return ImageFont.load_default(size)


def title_strip(picture: Image.Image, title: str) -> Image.Image:
    """The picture with a line of text under it, made smaller if it would not fit."""
    from PIL import Image, ImageDraw

    size = 17.0
    while size > 9 and font(size).getlength(title) > picture.width:
        size -= 0.5
    # A very narrow picture gets a margin, its text would be cut off otherwise.
    width = max(picture.width, int(font(size).getlength(title)) + 1)
    sheet = Image.new("RGB", (width, picture.height + STRIP), PAPER)
    sheet.paste(picture, ((width - picture.width) // 2, 0))
    middle = (width / 2, picture.height + STRIP / 2 + 1)
    ImageDraw.Draw(sheet).text(middle, title, fill=INK, font=font(size), anchor="mm")
    return sheet


def paragraph(text: str, width: int, *, size: float = 19, lines: int = 3) -> Image.Image:
    """A left-aligned paragraph as a picture of the given width; what does not fit in ``lines`` ends in an ellipsis."""
    from PIL import Image, ImageDraw

    face = font(size)
    wrapped: list[str] = [""]
    for word in text.split():
        longer = f"{wrapped[-1]} {word}".strip()
        if face.getlength(longer) <= width or not wrapped[-1]:
            wrapped[-1] = longer
        else:
            wrapped.append(word)
    if len(wrapped) > lines:
        wrapped = [*wrapped[: lines - 1], f"{wrapped[lines - 1]} …"]
    for number, line in enumerate(wrapped):
        while len(line) > 1 and face.getlength(line) > width:
            line = f"{line.removesuffix('…').rstrip()[:-1]}…"
        wrapped[number] = line
    step = round(size * 1.35)
    sheet = Image.new("RGB", (width, step * len(wrapped)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(wrapped):
        draw.text((0, number * step + step / 2), line, fill=INK, font=face, anchor="lm")
    return sheet
