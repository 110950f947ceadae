"""Letters for pictures: a font for each letter, or the list of letters without one.

Latin, Greek and Cyrillic come with the package (a part of DejaVu Sans). For all other letters, above all Chinese,
Japanese and Korean, the fonts of the system are searched when the first such letter is needed; a font given by name has
priority. A letter that no font has is drawn as U+FFFD, and :func:`missing` names it.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from trtprune.errors import InputError

if TYPE_CHECKING:
    from PIL import ImageFont

__all__ = ["check_font", "clean", "font_for", "missing", "runs", "system_folders"]

OWN = Path(__file__).with_name("data") / "DejaVuSans-subset.ttf"
REPLACEMENT = "\ufffd"
ABSENT = "\uffff"
"""Not a character: a font draws its sign for missing letters."""
MAX_FONTS = 4000
KINDS = (".ttf", ".ttc", ".otf", ".otc")
# Fonts with the most letters come first, so that a search opens few files.
BROAD = re.compile(
    r"noto ?sans ?(mono)?(cjk|sc|tc|hk|jp|kr)|source ?han ?sans|wqy|droid ?sans ?fallback|pingfang|hiragino|stheiti|"
    r"msyh|simsun|yugoth|meiryo|malgun|apple ?sd ?gothic|arial ?unicode|noto ?sans|unifont",
    re.IGNORECASE,
)


def system_folders() -> list[Path]:
    """The font folders of this system."""
    home = Path.home()
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA", str(home / "AppData" / "Local"))
        return [Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts", Path(local) / "Microsoft" / "Windows" / "Fonts"]
    if sys.platform == "darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library" / "Fonts"]
    shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    mine = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    return [mine / "fonts", home / ".fonts", *(Path(folder) / "fonts" for folder in shared.split(":") if folder)]


def check_font(path: Path | None) -> None:
    """Raises InputError if ``path`` is not a readable font."""
    from PIL import ImageFont

    try:
        if path is not None:
            ImageFont.truetype(str(path), 12)
    except OSError as error:
        hint = "a .ttf, .otf or .ttc file"
        raise InputError(f"--font {path}: no font that can be read: {error}", hint=hint) from None


def clean(text: str) -> str:
    """The text with letters and accents composed, and without control characters."""
    composed = unicodedata.normalize("NFC", text)
    return "".join(c for c in composed if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Cn") or c.isspace())


def runs(text: str, size: float, given: Path | None = None) -> list[tuple[str, ImageFont.FreeTypeFont]]:
    """The text in pieces, each with a font for its letters."""
    pieces: list[tuple[str, Path]] = []
    for letter in text:
        found = font_for(letter, given)
        letter, path = (letter, found) if found is not None else (REPLACEMENT, OWN)
        # A space, or an accent that could not be composed, stays with the text before it.
        if pieces and (pieces[-1][1] == path or letter.isspace() or unicodedata.combining(letter)):
            pieces[-1] = (pieces[-1][0] + letter, pieces[-1][1])
        else:
            pieces.append((letter, path))
    return [(piece, _open(path, round(2 * size) / 2)) for piece, path in pieces]


def missing(text: str, given: Path | None = None) -> str:
    """The letters of a text that no font on this machine has, each once."""
    return "".join(dict.fromkeys(letter for letter in clean(text) if font_for(letter, given) is None))


@functools.lru_cache(maxsize=65536)
def font_for(letter: str, given: Path | None = None) -> Path | None:
    """The first font with the letter."""
    if letter.isspace():
        return given or OWN
    return next((path for path in _fonts(given) if _has(path, letter)), None)


def _fonts(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given
    yield OWN
    yield from _installed()


@functools.cache
def _installed() -> tuple[Path, ...]:
    """matplotlib's DejaVu and the system's fonts, those with many letters first."""
    found: list[Path] = []
    spec = importlib.util.find_spec("matplotlib")
    if spec is not None and spec.origin is not None:
        found.append(Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf")
    listed = [path for folder in system_folders() for path in _files(folder)][:MAX_FONTS]
    return (*(path for path in found if path.is_file()), *sorted(listed, key=_rank))


def _files(folder: Path) -> Iterable[Path]:
    for where, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(where) / name for name in sorted(names) if name.lower().endswith(KINDS))


def _rank(path: Path) -> tuple[bool, bool, str]:
    plain = not re.search(r"bold|italic|oblique|light|thin|black|medium|mono|serif", path.stem, re.IGNORECASE)
    return not BROAD.search(path.stem.replace("-", " ")), not plain, str(path)


@functools.lru_cache(maxsize=64)
def _open(path: Path, size: float) -> ImageFont.FreeTypeFont:
    from PIL import ImageFont

    return ImageFont.truetype(str(path), size)


def _has(path: Path, letter: str) -> bool:
    """Whether the font draws something other than its sign for missing letters."""
    try:
        face = _open(path, 16)
        return bytes(face.getmask(letter)) != _absent(path)
    except (OSError, ValueError):  # not a font, or one of bitmaps in a fixed size
        return False


@functools.lru_cache(maxsize=MAX_FONTS)
def _absent(path: Path) -> bytes:
    return bytes(_open(path, 16).getmask(ABSENT))
