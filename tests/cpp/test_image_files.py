"""Image files read in C++ beside Python: every format, mode and depth, each pixel the same."""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cpp.image_kit import Call, bmp, check, gif, png_of, request, rgba, same_text, smooth
from tests.runtime.test_pictures import encoded, frames, noise, png
from trtprune.errors import InputError
from trtprune.runtime.pictures import load_picture


@pytest.fixture(scope="module")
def call(driver: Callable[..., Any]) -> Call:
    """The driver of the C++ library."""
    program: Call = driver("images")
    return program


# -- formats that Pillow writes


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "WEBP"])
def test_lossless_formats(kind: str, call: Call) -> None:
    modes = {"PNG": "1 L LA P RGB RGBA", "BMP": "1 L P RGB RGBA", "GIF": "1 L P RGB", "WEBP": "RGB RGBA"}[kind]
    files = {}
    for mode, (width, height) in itertools.product(modes.split(), [(37, 23), (1, 1), (8, 3), (3, 8), (257, 2)]):
        image = Image.fromarray(noise(width, height, 3, 4), "RGBA").convert(mode)
        options = {"WEBP": [{"lossless": True, "exact": True}], "GIF": [{"interlace": 0}, {"interlace": 1}]}
        for option in options.get(kind, [{}]):
            files[f"{mode} {width} {option}"] = encoded(image, kind, **option)
    for colours in (2, 3, 5, 17):
        files[f"{colours} colours"] = encoded(rgba().convert("RGB").quantize(colours), kind)
    check(call, files)


def test_jpeg(call: Call) -> None:
    """Equal too, with Debian's libjpeg-turbo 2.1 and the one that Pillow brings along (3.2)."""
    files = {}
    for mode, quality, progressive in itertools.product(["L", "RGB", "CMYK"], [10, 75, 100], [False, True]):
        for size in [(61, 83), (16, 16), (1, 1), (7, 200)]:
            for sampling in [0] if mode == "L" else [0, 1, 2]:
                options = {} if mode == "L" else {"subsampling": sampling}
                image = smooth(*size).convert(mode)
                key = f"{mode} {quality} {progressive} {size} {sampling}"
                files[key] = encoded(image, "JPEG", quality=quality, progressive=progressive, **options)
    files["noise"] = encoded(Image.fromarray(noise(90, 70)), "JPEG", quality=95)
    files["restarts"] = encoded(Image.fromarray(noise(90, 70)), "JPEG", restart_marker_rows=1)
    check(call, files)


def test_jpeg_of_other_colours(call: Call) -> None:
    """Inks by Adobe's mark: YCCK, CMYK, RGB without a transform."""
    data = encoded(smooth(20, 30).convert("CMYK"), "JPEG")
    place = data.index(b"Adobe") + 11
    files = {f"adobe {mark}": data[:place] + bytes([mark]) + data[place + 1 :] for mark in (0, 1, 2)}
    colour = encoded(smooth(20, 30), "JPEG", keep_rgb=True)
    check(call, files | {"rgb": colour, "no-jfif": colour[:2] + colour[20:]})


def test_lossy_webp(call: Call) -> None:
    files = {
        f"{mode} {quality} {method}": encoded(smooth(45, 61).convert(mode), "WEBP", quality=quality, method=method)
        for mode, quality, method in itertools.product(["RGB", "RGBA"], [5, 80], [0, 6])
    }
    layers = encoded(rgba(), "WEBP", quality=60, alpha_quality=30)
    check(call, files | {"alpha": layers})


def test_first_frames(call: Call) -> None:
    """Of animations; refused if they must not be one."""
    files = {kind: frames(kind) for kind in ("GIF", "WEBP", "PNG")}
    layers = [rgba(seed) for seed in range(3)]
    for kind in tuple(files):
        files[f"{kind} rgba"] = encoded(layers[0], kind, save_all=True, append_images=layers[1:])
    files["PNG default"] = encoded(layers[0], "PNG", save_all=True, append_images=layers[1:], default_image=True)
    check(call, files)
    for name, answer in zip(files, call([request(data, strict=True) for data in files.values()]), strict=True):
        with pytest.raises(InputError) as caught:
            load_picture(files[name], strict=True)
        assert same_text(answer, caught.value), (name, answer)
    single = encoded(Image.fromarray(noise(8, 8)), "GIF")
    assert "error" not in call([request(single, strict=True)])[0]


# -- PNG, of all depths


DEPTHS = [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2), (1, 3), (2, 3), (4, 3), (8, 3)]
DEPTHS += [(8, 4), (16, 4), (8, 6), (16, 6)]


@pytest.mark.parametrize("interlaced", [False, True])
def test_png_of_every_depth(interlaced: bool, call: Call) -> None:
    """With palettes that are whole, short and missing, and with transparent colours of all kinds."""
    files = {}
    table = noise(256, 1, 5).tobytes()
    for depth, colour in DEPTHS:
        palettes = [[(b"PLTE", table[: 3 << depth])], [(b"PLTE", table[:6])], []] if colour == 3 else [[]]
        marks: list[list[bytes]] = {
            0: [[], [b"\0\0"], [b"\0\1"], [struct.pack(">H", (1 << depth) - 1)], [b"\x01\x07"]],
            2: [[], [struct.pack(">3H", 7, 8, 9)]],
            3: [[], [b"\xff\0\xff"], [b"\0"], [b"\x80\x10\0\xff"], [bytes(range(0, 256, 2))], [b"\xff\0\n"]],
        }.get(colour, [[]])
        for i, palette in enumerate(palettes):
            for j, mark in enumerate(marks):
                chunks = [*palette, *((b"tRNS", content) for content in mark)]
                files[f"{depth} {colour} {i} {j}"] = png_of(depth, colour, interlaced, *chunks)
        for size in [(1, 1), (2, 5), (5, 2), (1, 9)]:
            files[f"{depth} {colour} {size}"] = png_of(depth, colour, interlaced, size=size)
    raw = b"".join(b"\0" + bytes(pixel) * 3 for pixel in ([7, 8, 9], [1, 2, 3]))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 3, 2, 8, 2, 0, 0, 0)), (b"tRNS", struct.pack(">3H", 7, 8, 9))]
    files["a transparent colour"] = png([*chunks, (b"IDAT", zlib.compress(raw)), (b"IEND", b"")])
    check(call, files)


def test_png_of_wrong_depths(call: Call) -> None:
    files = {}
    for depth, colour in itertools.product([0, 1, 3, 8, 9, 16, 255], range(8)):
        header = struct.pack(">IIBBBBB", 3, 3, depth, colour, 0, 0, 0)
        files[f"{depth} {colour}"] = png([(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 200)), (b"IEND", b"")])
    check(call, files)


# -- BMP and GIF, of forms that Pillow does not write


def test_bmp_of_every_kind(call: Call) -> None:
    data, table = noise(40, 20, 2).tobytes(), noise(64, 16, 4, 4).tobytes()
    files = {"555": bmp(16, data[:24]), "24": bmp(24, data[:36]), "32": bmp(32, data[:48])}
    colours = {
        32: ["FF0000 FF00 FF", "FF000000 FF0000 FF00", "FF000000 FF00 FF", "FF FF00 FF0000", "0 0 0", "1 2 3"],
        24: ["FF0000 FF00 FF", "FF FF00 FF0000"],
        16: ["F800 7E0 1F", "7C00 3E0 1F", "F00 F0 F"],
    }
    for bits, kinds in colours.items():
        for kind in kinds:
            masks = struct.pack("<3I", *(int(part, 16) for part in kind.split()))
            files[f"{bits} {kind}"] = bmp(bits, data[:48], masks=masks)
            for alpha in (0, 0xFF, 0xFF0000, 0xFF000000):
                longer = bytearray(bmp(bits, data[:48], masks=masks + struct.pack("<I", alpha) + bytes(52)))
                longer[14:18] = struct.pack("<I", 108)  # the masks are a part of this header
                files[f"{bits} {kind} {alpha:x}"] = bytes(longer)
    for bits, count in [(1, 2), (4, 16), (4, 5), (8, 256), (8, 7)]:
        files[f"{bits} of {count}"] = bmp(bits, data[:24], (7, 3), table=table[: 4 * count])
        files[f"{bits} of {count} downwards"] = bmp(bits, data[:24], (7, -3), table=table[: 4 * count])
    shades = b"".join(bytes([i, i, i, 0]) for i in range(256))
    black = bytes(4) + b"\xff\xff\xff\0"
    for bits, size in [(4, (4, 3)), (4, (9, 3)), (8, (9, 2)), (1, (9, 2))]:
        files[f"shades {bits} {size}"] = bmp(bits, data[:36], size, table=shades[: 4 << bits])
        files[f"black and white {bits} {size}"] = bmp(bits, data[:36], size, table=black)
        files[f"one colour {bits} {size}"] = bmp(bits, data[:36], size, table=bytes(4))
    files["a large palette"] = bmp(8, data[:36], table=table[:1024] + table[:512], colours=384)
    files["rows that end early"] = bmp(24, data[:35])
    files["without the last padding"] = bmp(24, data[:13], (1, 3))[:-1]
    for bits in (0, 2, 5, 64):
        files[f"{bits} bits"] = bmp(bits, data[:48])
    for compression in (4, 5, 6, 11):
        files[f"compression {compression}"] = bmp(24, data[:48], compression=compression)
    core = struct.pack("<IHHHH", 12, 7, 3, 1, 4)
    files["OS/2"] = b"BM" + struct.pack("<IHHI", 0, 0, 0, 26 + 48) + core + table[:48] + data[:12]
    check(call, files)


def test_bmp_of_runs(call: Call) -> None:
    """Random ones: runs, plain parts, moves, and ends of lines at wrong places."""
    random = np.random.default_rng(3)
    files = {}
    table = noise(64, 16, 4, 4).tobytes()
    for place in range(120):
        nibbles = place % 2
        parts = []
        for _ in range(int(random.integers(1, 14))):
            kind = int(random.integers(0, 8))
            count, value = int(random.integers(1, 9)), int(random.integers(0, 256))
            if kind < 4:
                parts.append(bytes([count, value]))
            elif kind == 4:
                plain = random.bytes((count + 3) // 2 if nibbles else count + 2)
                parts.append(bytes([0, count + 2]) + plain + b"\0" * (len(plain) % 2))
            elif kind == 5:
                parts.append(b"\0\0")
            elif kind == 6:
                parts.append(bytes([0, 2, int(random.integers(0, 4)), int(random.integers(0, 2))]))
            else:
                parts.append(bytes([0, 1]) if random.random() < 0.1 else bytes([255, value]))
        data = b"".join(parts) + b"\0\0" * int(random.integers(0, 7))
        colours = table[: 64 if nibbles else 1024]
        size = (int(random.integers(1, 9)), int(random.integers(1, 6)))
        files[f"{place}"] = bmp(4 if nibbles else 8, data, size, table=colours, compression=2 if nibbles else 1)
    check(call, files)


def test_gif_frames_on_their_canvas(call: Call) -> None:
    files = {
        "inside": gif((20, 15), (3, 4, 7, 6)),
        "beyond": gif((8, 8), (3, 4, 17, 16)),
        "transparent": gif((20, 15), (3, 4, 7, 6), transparent=2),
        "transparent beyond the table": gif((20, 15), (3, 4, 7, 6), transparent=200),
        "own colours": gif((20, 15), (3, 4, 7, 6), local=True),
        "own colours, transparent": gif((20, 15), (3, 4, 7, 6), local=True, transparent=0),
        "shades": gif((20, 15), (3, 4, 7, 6), colours="shades"),
        "shades, transparent": gif((20, 15), (3, 4, 7, 6), colours="shades", transparent=3),
        "interlaced": gif((20, 15), (3, 4, 7, 6), interlace=1),
        "no height": gif((20, 15), (3, 4, 7, 6)).replace(
            struct.pack("<4H", 3, 4, 7, 6), struct.pack("<4H", 3, 4, 7, 0)
        ),
        "no canvas": gif((0, 0), (0, 0, 7, 6)),
        "comment": gif((9, 9), (0, 0, 7, 6), before=b"!\xfe\x03abc\x02de\0"),
        "loops": gif((9, 9), (0, 0, 7, 6), before=b"!\xff\x0bNETSCAPE2.0\x03\x01\0\0\0"),
        "an empty extension": gif((9, 9), (0, 0, 7, 6), before=b"!\x01\0\0"),
        "an end in front": gif((9, 9), (0, 0, 7, 6), before=b";"),
        "no frame": b"GIF89a" + bytes(7) + b";",
    }
    check(call, files)
