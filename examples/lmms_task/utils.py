"""The pictures of the task beside this file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

FOLDER = Path(__file__).parent


def doc_to_visual(doc: dict[str, Any]) -> list[Image.Image]:
    with Image.open(FOLDER / doc["image"]) as image:
        return [image.convert("RGB")]
