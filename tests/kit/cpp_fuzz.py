"""Inputs to begin with for the fuzzers of ``cpp/fuzz``, one folder for each.

``python -m tests.kit.cpp_fuzz FOLDER`` writes them, for runs by hand.
"""

from __future__ import annotations

import io
import json
import random
import sys
from pathlib import Path

from PIL import Image

from tests.kit import cpp_package, tokenizer_styles

FUZZERS = ("c_api", "config", "image", "template", "tokenizer")
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
MODES = ("RGB", "L", "P", "RGBA", "CMYK", "I;16", "1")
ENGINES = "engines"
"""The place below the folder where the engine directory is that the fuzzer of the C interface loads."""


def write_seeds(folder: Path) -> None:
    """Fills ``folder / NAME`` for each fuzzer, and ``folder / ENGINES``."""
    for name in FUZZERS:
        (folder / name).mkdir(parents=True)
    engines = cpp_package.engines(folder / "model").rename(folder / ENGINES)
    config = (engines / "config.json").read_bytes()
    (folder / "config/config").write_bytes(b"c" + config)
    (folder / "config/json").write_bytes(b"j" + config[:600])
    smallest = min(engines.rglob("*.onnx"), key=lambda path: path.stat().st_size)
    (folder / "config/graph").write_bytes(b"g" + smallest.read_bytes()[:20_000])
    _write_images(folder / "image", json.loads(config)["vision"]["settings"])
    tokenizer_styles.main(str(folder / "tokenizer"))
    drawn = random.Random(1)
    for name in ("c_api", "template"):
        for number in range(40):
            (folder / name / str(number)).write_bytes(drawn.randbytes(300))


def _write_images(folder: Path, settings: dict[str, object]) -> None:
    (folder / "settings").write_bytes(bytes((1, 40, 60)) + json.dumps(settings).encode())
    whole = Image.effect_noise((9, 7), 60)
    for mode in MODES:
        for kind in FORMATS:
            file = io.BytesIO()
            try:
                whole.convert(mode).save(file, kind)
            except (OSError, ValueError):  # no file of this format has pixels of this kind
                continue
            (folder / f"{mode}-{kind}".replace(";", "")).write_bytes(b"\0" + file.getvalue())


if __name__ == "__main__":
    write_seeds(Path(sys.argv[1]))
