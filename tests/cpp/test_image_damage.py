"""Metadata and bad image files in C++ beside Python: turned as EXIF says, refused in the same words."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cpp.image_kit import OURS, Call, bmp, check, gif, pixels, png_of, read, request, rgba, same_text, smooth
from tests.runtime.test_pictures import BAD, encoded, frames, noise, png
from trtprune.errors import InputError
from trtprune.runtime.pictures import load_picture


@pytest.fixture(scope="module")
def call(driver: Callable[..., Any]) -> Call:
    """The driver of the C++ library."""
    program: Call = driver("images")
    return program


# -- EXIF


def exif_of(value: Any, *, kind: int = 3, big: bool = False, tag: int = 0x0112) -> bytes:
    """A TIFF with one tag."""
    order = ">" if big else "<"
    sizes = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 16: "Q"}
    head = (b"MM\0*" if big else b"II*\0") + struct.pack(order + "I", 8)
    values = value if isinstance(value, tuple) else (value,)
    data = struct.pack(order + sizes.get(kind, "I") * len(values), *values)
    count = len(values) // 2 if kind == 5 else len(values)
    field = data.ljust(4, b"\0") if len(data) <= 4 else struct.pack(order + "I", 26)
    entry = struct.pack(order + "HHHI", 1, tag, kind, count) + field + bytes(4)
    return head + entry + (data if len(data) > 4 else b"")


def with_exif(exif: bytes) -> dict[str, bytes]:
    image = Image.fromarray(noise(9, 5))
    raw = b"\nexif\n%8d\n" % len(exif) + exif.hex().encode()
    text = b"Raw profile type exif\0\0" + zlib.compress(raw)
    whole = encoded(image)
    body, end = whole[:-12], whole[-12:]
    header, rest = whole[8:33], whole[33:]
    return {
        "PNG": encoded(image, exif=exif),
        "PNG raw": png([]) + header + png([(b"zTXt", text)])[8:] + rest,
        "PNG behind": body + png([(b"eXIf", exif)])[8:] + end,
        "PNG text": png([]) + header + png([(b"tEXt", b"exif\0" + exif)])[8:] + rest,
        "JPEG": encoded(image, "JPEG", exif=b"Exif\0\0" + exif),
        "JPEG dpi": encoded(image, "JPEG", exif=b"Exif\0\0" + exif, dpi=(72, 72)),
        "WEBP": encoded(image, "WEBP", lossless=True, exif=exif),
    }


@pytest.mark.parametrize("orientation", range(10))
def test_orientation(orientation: int, call: Call) -> None:
    files = {}
    for big in (False, True):
        for kind, value in [(3, orientation), (4, orientation), (8, orientation), (11, float(orientation))]:
            for name, data in with_exif(exif_of(value, kind=kind, big=big)).items():
                files[f"{name} {kind} {big}"] = data
    check(call, files)


def test_orientation_of_odd_metadata(call: Call) -> None:
    kinds = {
        "a byte": exif_of(6, kind=1),
        "a rational": exif_of((12, 2), kind=5),
        "several": exif_of((6, 3, 1), kind=3),
        "a long one": exif_of(6, kind=16),
        "negative": exif_of(-6, kind=9),
        "half": exif_of(6.5, kind=11),
        "another tag": exif_of(6, tag=0x0113),
        "an unknown type": exif_of(6, kind=77),
        "none": b"",
        "short": b"II*\0",
        "text": b"hello, this is no TIFF",
        "no directory": b"II*\0\xff\xff\xff\xff",
        "beyond": exif_of((6, 3, 1), kind=4)[:-4],
    }
    for name, exif in kinds.items():
        check(call, {f"{name}: {kind}": data for kind, data in with_exif(exif).items()})


def test_orientation_of_xmp(call: Call) -> None:
    image = Image.fromarray(noise(9, 5))
    files = {}
    for text in [b'<x tiff:Orientation="6"/>', b"<tiff:Orientation>8</tiff:Orientation>", b'tiff:Orientation="x" 3']:
        files[f"JPEG {text!r}"] = encoded(image, "JPEG", xmp=text)
        files[f"WEBP {text!r}"] = encoded(image, "WEBP", lossless=True, xmp=text)
        whole = encoded(image)
        for mark, content in [(b"\0\0", text), (b"\1\0", zlib.compress(text))]:
            chunk = png([(b"iTXt", b"XML:com.adobe.xmp\0" + mark + b"\0\0" + content)])[8:]
            files[f"PNG {text!r} {mark!r}"] = whole[:33] + chunk + whole[33:]
        files[f"both {text!r}"] = encoded(image, "JPEG", xmp=text, exif=b"Exif\0\0" + exif_of(3))
    check(call, files)


# -- bad input


SVG = b"<svg xmlns='http://www.w3.org/2000/svg'/>"
HOSTILE: dict[str, bytes] = {
    **{name: data for name, (data, _) in BAD.items() if isinstance(data, bytes)},
    "svg": SVG,
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "pdf": b"%PDF-1.7\n",
    "ico": b"\0\0\1\0\1\0" + bytes(30),
    "mp4": b"\0\0\0\x18ftypisom\0\0\0\0isomiso2",
    "mov": b"\0\0\0\x14ftypqt  \0\0\0\0qt  ",
    "mkv": b"\x1aE\xdf\xa3" + b"\x01matroska" * 3,
    "webm": b"\x1aE\xdf\xa3" + b"\x01webm" * 3,
    "avi": b"RIFF\0\0\0\0AVI LIST",
    "mpeg": b"\0\0\1\xba" + bytes(20),
    "ts": b"G" + bytes(187) + b"G" + bytes(187),
    "flv": b"FLV\1\5" + bytes(9),
    "wmv": b"0&\xb2u" + bytes(9),
    "ogg": b"OggS" + bytes(9),
    "heic": b"\0\0\0\x18ftypmif1\0\0\0\0heic",
    "zeros": bytes(1000),
    "png-magic": b"\x89PNG\r\n\x1a\n",
    "jpeg-magic": b"\xff\xd8\xff",
    "webp-magic": b"RIFF\0\0\0\0WEBPVP8X",
    "bmp-magic": b"BM",
    "gif-magic": b"GIF89a",
    "no-width": png([(b"IHDR", struct.pack(">IIBBBBB", 0, 5, 8, 2, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b"")]),
    "no-height": png([(b"IHDR", struct.pack(">IIBBBBB", 5, 0, 8, 2, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b"")]),
    "no-pixels": png([(b"IHDR", struct.pack(">IIBBBBB", 5, 5, 8, 2, 0, 0, 0)), (b"IEND", b"")]),
    "wide-bmp": bmp(24, b"", (2**31 - 1, 2**24)),
    "no-bmp": bmp(24, b"", (0, 3)),
    "large-webp": b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<II", 10, 0) + b"\xff" * 6,
    "large-gif": gif((65535, 65535), (0, 0, 7, 6)),
    "large-jpeg": encoded(smooth(9, 9), "JPEG").replace(b"\x08\0\x09\0\x09\x03", b"\x08\xff\xff\xff\xff\x03"),
    "text-bomb": png([(b"IHDR", struct.pack(">IIBBBBB", 5, 5, 8, 2, 0, 0, 0))])
    + png([(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(1 << 22)))])[8:],
}


def test_hostile_files(call: Call) -> None:
    check(call, HOSTILE)


def test_formats_of_python_alone(call: Call) -> None:
    """TIFF, PPM and AVIF: refused as anything else, with the formats there are."""
    for kind in ("TIFF", "PPM"):
        (answer,) = call([request(encoded(smooth(9, 9), kind))])
        assert (answer["error"], answer["hint"]) == ("the picture: not a picture that can be read", OURS)


def test_files_and_paths(tmp_path: Path, call: Call) -> None:
    image = tmp_path / "a.png"
    Image.fromarray(noise(50, 40)).save(image)
    os.mkfifo(tmp_path / "pipe")
    for path in [tmp_path / "none.png", tmp_path, tmp_path / "pipe", image / "b", "x" * 5000, "a\0b", ""]:
        (answer,) = call([{"op": "file", "path": str(path)}])
        with pytest.raises(InputError) as caught:
            load_picture(str(path))
        assert (answer["error"], answer["hint"]) == (caught.value.message, caught.value.hint)
    (answer,) = call([{"op": "file", "path": str(image)}])
    np.testing.assert_array_equal(pixels(answer), noise(50, 40))
    (answer,) = call([{"op": "file", "path": str(image), "max_pixels": 1999}])
    assert answer["error"] == f"image {image}: 50 × 40 is above the limit of 1999 pixels"
    large = tmp_path / "large"
    with large.open("wb") as stream:
        stream.truncate((256 << 20) + 1)
    (answer,) = call([{"op": "file", "path": str(large)}])
    assert answer["error"] == f"image {large}: larger than 268435456 bytes"


@pytest.mark.parametrize("value", ["123", " 1_000 ", "many", "0", "-5", "+7", "1__0", "9" * 30, "", "1.5"])
def test_the_limit_of_the_environment(value: str, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTPRUNE_MAX_PIXELS", value)
    data = encoded(Image.fromarray(noise(50, 40)))
    (answer,) = call([request(data)])
    _, error = read(data)
    expected = (None, None) if error is None else (error.message, error.hint or "")
    assert (answer.get("error"), answer.get("hint")) == expected


@pytest.mark.parametrize("interlaced", [False, True])
def test_png_that_lacks_its_end(interlaced: bool, call: Call) -> None:
    """Cut off at each of the last places: a picture as long as all of its pixels are there."""
    for depth, colour, size in [(8, 2, (5, 7)), (1, 0, (9, 9)), (8, 0, (1, 9)), (16, 6, (3, 1))]:
        whole = png_of(depth, colour, interlaced, size=size)
        check(call, {f"{depth} {size} -{cut}": whole[:-cut] for cut in range(1, 40)})


def damaged(random: np.random.Generator, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(int(random.choice([1, 1, 2, 5]))):
        place = int(random.integers(0, min(len(changed), int(random.choice([60, len(changed)])))))
        match int(random.integers(0, 8)):
            case 0:
                del changed[max(1, place) :]
            case 1:
                changed[place:place] = random.bytes(3)
            case 2:
                del changed[place : place + 3]
                changed = changed or bytearray(b"x")
            case _:
                changed[place] = int(random.choice([0, 1, 255, int(random.integers(0, 256))]))
    return bytes(changed)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_damage(kind: str, call: Call) -> None:
    """Random damage is refused, or gives the same pixels."""
    random = np.random.default_rng(len(kind))
    images = [rgba().convert("RGB"), smooth(20, 31), rgba().convert("L")]
    images += [] if kind == "JPEG" else [rgba().convert("P")]
    whole = [encoded(image, kind) for image in images] + ([] if kind in ("BMP", "JPEG") else [frames(kind)])
    files = [damaged(random, whole[i % len(whole)]) for i in range(400)]
    answers = call([request(data, max_pixels=1 << 16) for data in files])
    taken = 0
    for data, answer in zip(files, answers, strict=True):
        expected, error = read(data, 1 << 16)
        if error is not None:
            assert same_text(answer, error), (data, answer, str(error))
            continue
        found = pixels(answer)
        assert found.shape == expected.shape
        # Coefficients beyond every picture's saturate differently in versions of libjpeg-turbo.
        differing = (found != expected).any(-1).mean()
        assert differing == 0 or (kind == "JPEG" and differing < 0.05), data
        taken += 1
    assert taken > 10
