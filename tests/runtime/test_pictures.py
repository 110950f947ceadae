"""Pictures: equal to transformers' image processors, and every bad one refused in one line."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from transformers import BitImageProcessorPil, CLIPImageProcessorPil, LlavaImageProcessorPil, SiglipImageProcessorPil

from trtprune.errors import EngineDirError, InputError, TrtpruneError
from trtprune.runtime.images import CropShape
from trtprune.runtime.images.single import Single
from trtprune.runtime.pictures import load_picture, max_pixels_from

CROP = {"size": {"shortest_edge": 30}, "crop_size": {"height": 28, "width": 28}}
PROCESSORS: dict[str, tuple[type, dict[str, Any]]] = {
    "clip": (CLIPImageProcessorPil, {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}),
    "clip-crop-smaller": (CLIPImageProcessorPil, {**CROP, "resample": 2}),
    "clip-pads-with-zeros": (
        CLIPImageProcessorPil,
        {"size": {"shortest_edge": 20}, "crop_size": {"height": 28, "width": 28}},
    ),
    "clip-exact": (CLIPImageProcessorPil, {"size": {"height": 28, "width": 28}, "do_center_crop": False}),
    "clip-ints": (CLIPImageProcessorPil, {"size": 28, "crop_size": 28}),
    "siglip": (SiglipImageProcessorPil, {"size": {"height": 28, "width": 28}}),
    "siglip-lanczos": (SiglipImageProcessorPil, {"size": {"height": 28, "width": 28}, "resample": 1}),
    "siglip-no-normalize": (SiglipImageProcessorPil, {"size": {"height": 28, "width": 28}, "do_normalize": False}),
    "siglip-no-rescale": (SiglipImageProcessorPil, {"size": {"height": 28, "width": 28}, "do_rescale": False}),
    "dinov2": (
        BitImageProcessorPil,
        {**CROP, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
    ),
    "llava-pads": (LlavaImageProcessorPil, {**CROP, "do_pad": True}),
    "llava-pads-no-crop": (
        LlavaImageProcessorPil,
        {"size": {"height": 28, "width": 28}, "do_pad": True, "do_center_crop": False},
    ),
    "llava-pads-no-normalize": (LlavaImageProcessorPil, {**CROP, "do_pad": True, "do_normalize": False}),
    "llava": (LlavaImageProcessorPil, {**CROP, "do_pad": False}),
}


def processor(config: dict[str, Any], where: str = "") -> Single:
    """The processor of a ``preprocessor_config.json`` for a tower of 28 × 28 pixels."""
    return Single.from_settings({**config, **CropShape(28, 28, (7, 7)).settings()}, where)


def noise(width: int, height: int, seed: int = 0, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize("name", PROCESSORS)
@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 90), height=st.integers(1, 90), seed=st.integers(0, 9))
def test_equals_transformers(name: str, width: int, height: int, seed: int) -> None:
    kind, values = PROCESSORS[name]
    theirs = kind(**values)
    image = Image.fromarray(noise(width, height, seed))
    ours = processor(theirs.to_dict())
    expected = theirs(image, return_tensors="np")["pixel_values"][0]
    found = ours.prepare(image).pixel_values[0]
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, expected.astype(np.float32))


def test_old_configs() -> None:
    """Files of older transformers: the class's suffix, missing keys, plain numbers."""
    for kind in ("CLIPImageProcessorFast", "CLIPFeatureExtractor", "CLIPImageProcessor"):
        made = processor({"image_processor_type": kind, "size": 28, "crop_size": 28})
        assert made.prepare(Image.fromarray(noise(40, 33))).pixel_values.shape == (1, 3, 28, 28)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"image_processor_type": "Qwen2VLImageProcessor"}, "Qwen2VLImageProcessor"),
        ({"image_processor_type": "LlavaNextImageProcessor"}, "LlavaNextImageProcessor"),
        ({"size": {"shortest_edge": 28, "longest_edge": 50}}, "not supported"),
        ({"size": {"height": "x", "width": 3}}, "not a valid"),
        ({"size": []}, "not a valid"),
        ({"size": {"shortest_edge": 10**9}}, "not a valid"),
        ({"image_mean": [0.5]}, "not a valid"),
        ({"image_mean": ["a", "b", "c"]}, "not a valid"),
        ({"crop_size": {"height": 56, "width": 56}}, "56"),
        ({"resample": 77}, "77"),
        ({"do_pad": True}, "do_pad"),
        ({"resample": float("inf")}, "resample"),
        ({"resample": 10**400}, "resample"),
        ({"resample": "3"}, "resample"),
        ({"resample": True}, "resample"),
        ({"rescale_factor": 10**400}, "rescale_factor"),
        ({"rescale_factor": float("nan")}, "rescale_factor"),
        ({"rescale_factor": "0.1"}, "rescale_factor"),
        ({"rescale_factor": 3e38}, "beyond every float32"),
        ({"image_mean": [10**400, 0, 0]}, "image_mean"),
        ({"image_mean": 10**5000}, "not a valid"),
        ({"image_std": [0.1, 0, 0.1]}, "image_std"),
        ({"image_std": [0.1, 1e-60, 0.1]}, "image_std"),
        ({"image_std": [0.1, 1e-44, 0.1]}, "beyond every float32"),
        ({"do_resize": "false"}, "do_resize"),
        ({"do_normalize": 2}, "do_normalize"),
        ({"crop_size": [28, 28]}, "not a valid"),
        ({"crop_size": {"height": 28}}, "not a valid"),
        ({"image_processor_type": 10**5000}, "image_processor_type"),
        ({"image_processor_type": ["CLIPImageProcessor"]}, "image_processor_type"),
        ({"image_processor_type": "LlavaImageProcessor", "do_pad": True, "image_mean": 3}, "image_mean"),
    ],
)
def test_processors_that_are_refused(config: dict[str, Any], named: str) -> None:
    base = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 28}, "crop_size": 28}
    with pytest.raises(EngineDirError, match=named) as caught:
        processor(base | config, "preprocessor_config.json")
    assert caught.value.hint


@pytest.mark.parametrize("name", PROCESSORS)
@given(width=st.integers(1, 3000), height=st.integers(1, 3000))
def test_pixels_taken_are_those_of_the_largest_picture_on_the_way(name: str, width: int, height: int) -> None:
    """Of transformers' own steps, by the sizes it asks Pillow for."""
    kind, values = PROCESSORS[name]
    ours = processor(kind(**values).to_dict())
    sizes = [(width, height)]
    if values.get("do_pad"):
        sizes.append((max(width, height),) * 2)
    if values.get("do_resize", True):
        size = kind(**values).size
        if not size.get("shortest_edge"):
            sizes.append((28, 28))
        else:
            from transformers.image_transforms import get_resize_output_image_size

            blank = np.broadcast_to(np.uint8(0), (sizes[-1][1], sizes[-1][0], 3))
            edge = size["shortest_edge"]
            sizes.append(
                get_resize_output_image_size(blank, edge, default_to_square=False, input_data_format="channels_last")
            )
    assert ours.pixels_taken(width, height) == max(a * b for a, b in sizes)


def test_no_fixed_size() -> None:
    made = processor({"size": {"shortest_edge": 28}, "do_center_crop": False})
    assert made.prepare(Image.fromarray(noise(40, 40))).pixel_values.shape == (1, 3, 28, 28)
    with pytest.raises(InputError, match=r"takes exactly \(28, 28\)"):
        made.prepare(Image.fromarray(noise(40, 60)))


@pytest.mark.parametrize("name", ["clip", "clip-crop-smaller", "siglip", "llava-pads", "clip-pads-with-zeros"])
@pytest.mark.parametrize("size", [(60, 120), (120, 60), (90, 90)])
def test_geometry(name: str, size: tuple[int, int]) -> None:
    """A dot in the picture is found where the geometry says."""
    kind, values = PROCESSORS[name]
    ours = processor(kind(**values).to_dict())
    image = Image.new("RGB", size)
    dot = (size[0] * 0.55, size[1] * 0.45)
    ImageDraw.Draw(image).ellipse((dot[0] - 6, dot[1] - 6, dot[0] + 6, dot[1] + 6), fill="white")
    base = ours.prepare(Image.new("RGB", size)).pixel_values[0].sum(0)
    light = ours.prepare(image).pixel_values[0].sum(0) - base
    y, x = np.array(np.nonzero(np.ones_like(light))).reshape(2, 28, 28)
    at = ((light * (x + 0.5)).sum() / light.sum(), (light * (y + 0.5)).sum() / light.sum())
    where = ours.geometry(image.height, image.width)
    assert abs(where.left + at[0] * where.scale_x - dot[0]) < 1.5
    assert abs(where.top + at[1] * where.scale_y - dot[1]) < 1.5


def encoded(image: Image.Image, kind: str = "PNG", **arguments: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **arguments)
    return stream.getvalue()


def png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "RGB", "PA"])
def test_modes_as_transformers(mode: str) -> None:
    """What transformers' convert_to_rgb gives, transparency on white included."""
    from transformers.image_transforms import convert_to_rgb

    image = Image.fromarray(noise(20, 10, channels=4), "RGBA").convert("LA" if mode == "PA" else mode)
    if mode == "PA":
        image = image.convert("PA")
    data = image if mode == "PA" else Image.open(io.BytesIO(encoded(image)))
    np.testing.assert_array_equal(np.asarray(load_picture(data)), convert_to_rgb(data, return_numpy=True))


def test_palette_with_a_transparent_colour() -> None:
    from transformers.image_transforms import convert_to_rgb

    image = Image.fromarray(noise(8, 8)).quantize(4)
    data = encoded(image, transparency=1)
    expected = convert_to_rgb(Image.open(io.BytesIO(data)), return_numpy=True)
    np.testing.assert_array_equal(np.asarray(load_picture(data)), expected)
    assert (expected == 255).all(-1).any()


def test_cmyk() -> None:
    image = Image.fromarray(noise(16, 16)).convert("CMYK")
    found = load_picture(encoded(image, "JPEG", quality=95))
    assert found.mode == "RGB"
    assert np.abs(np.asarray(found, int) - np.asarray(image.convert("RGB"), int)).mean() < 40
    np.testing.assert_array_equal(np.asarray(load_picture(encoded(image, "TIFF"))), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_scaled_not_clipped(kind: str) -> None:
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    data = encoded(Image.fromarray(values), kind)
    found = np.asarray(load_picture(data))
    np.testing.assert_array_equal(found[..., 0], np.rint(values / 257).astype(np.uint8))
    assert found.min() == 0
    assert found.max() == 255


def test_16_bit_rgb_png() -> None:
    """Pillow itself reduces colour of 16 bits to 8."""
    raw = b"".join(b"\0" + struct.pack(">3H", 65535, 32768, 0) * 2 for _ in range(2))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    assert load_picture(png(chunks)).getpixel((0, 0)) == (255, 128, 0)


def test_exif_rotation() -> None:
    image = Image.fromarray(noise(30, 20))
    for orientation, method in ((3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_270)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        found = load_picture(encoded(image, "PNG", exif=exif))
        np.testing.assert_array_equal(np.asarray(found), np.asarray(image.transpose(method)))


def test_sources(tmp_path: Path) -> None:
    array = noise(12, 9)
    path = tmp_path / "a.png"
    Image.fromarray(array).save(path)
    for source in (path, str(path), path.read_bytes(), array, Image.fromarray(array)):
        np.testing.assert_array_equal(np.asarray(load_picture(source)), array)
    np.testing.assert_array_equal(np.asarray(load_picture(array[:, :, 0]))[..., 1], array[:, :, 0])
    np.testing.assert_array_equal(np.asarray(load_picture(array[:, :, :1]))[..., 1], array[:, :, 0])


def bomb(width: int, height: int) -> bytes:
    """A PNG that promises more than it holds."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0" * 100))]
    return png(chunks)


def frames(kind: str) -> bytes:
    pictures = [Image.fromarray(noise(8, 8, seed)) for seed in range(3)]
    return encoded(pictures[0], kind, save_all=True, append_images=pictures[1:])


BAD = {
    "empty": (b"", "not a picture"),
    "text": (b"hello, I am a cat", "not a picture"),
    "cut-png": (encoded(Image.fromarray(noise(64, 64)))[:3000], "damaged or cut off"),
    "cut-jpeg": (encoded(Image.fromarray(noise(64, 64)), "JPEG")[:1200], "damaged or cut off"),
    "promises-more": (bomb(16, 16), "damaged or cut off"),
    "above-ours": (bomb(10_000, 9_000), "above the limit of 67108864"),
    "above-pillows": (bomb(100_000, 100_000), "above the limit"),
    "beyond-pillow": (bomb(2**31 - 1, 2**31 - 1), "above the limit"),
    "float-array": (np.zeros((4, 4, 3)), "uint8"),
    "wrong-shape": (np.zeros((3, 4, 5), np.uint8), "shape"),
    "empty-array": (np.zeros((0, 4, 3), np.uint8), "empty"),
    "no-picture": (17, "int"),
    "float-image": (Image.fromarray(np.zeros((4, 4), np.float32)), "mode F"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_pictures(name: str) -> None:
    data, message = BAD[name]
    with pytest.raises(InputError, match=message) as caught:
        load_picture(data)
    assert "\n" not in str(caught.value)


def test_single_frame_gif_is_fine() -> None:
    assert load_picture(encoded(Image.fromarray(noise(8, 8)), "GIF")).size == (8, 8)


def test_bad_paths(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.png", tmp_path, "a\0b.png", "x" * 5000):
        with pytest.raises(InputError, match=r"^image "):
            load_picture(path)


def test_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.fromarray(noise(50, 40)))
    assert load_picture(data, 2000).size == (50, 40)
    for source in (data, Image.open(io.BytesIO(data)), noise(50, 40)):
        with pytest.raises(InputError, match=r"50 × 40 is above the limit of 1999"):
            load_picture(source, 1999)
    monkeypatch.setenv("TRTPRUNE_MAX_PIXELS", "123")
    assert max_pixels_from(None) == 123
    assert max_pixels_from(9) == 9
    monkeypatch.setenv("TRTPRUNE_MAX_PIXELS", "many")
    with pytest.raises(InputError, match="many"):
        max_pixels_from(None)


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM"]),
    place=st.integers(0, 400),
    value=st.integers(0, 255),
    cut=st.integers(0, 2000),
)
def test_damage_is_never_a_traceback(kind: str, place: int, value: int, cut: int) -> None:
    data = bytearray(encoded(Image.fromarray(noise(16, 16)), kind))
    data[place % len(data)] = value
    with contextlib.suppress(TrtpruneError):
        assert load_picture(bytes(data[: max(1, len(data) - cut // 8)]), 1 << 16).mode == "RGB"


def box(kind: bytes, *brands: bytes) -> bytes:
    body = kind + b"\0\0\0\0" + b"".join(brands)
    return struct.pack(">I", 8 + len(body)) + b"ftyp" + body


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (box(b"isom", b"isom", b"mp41"), "MP4"),
        (box(b"qt  "), "QuickTime"),
        (struct.pack(">I", 8) + b"wide" + b"\0\0\0\0mdat", "QuickTime"),
        (b"\x1aE\xdf\xa3\x9fB\x86\x81\x01B\xf7\x81\x01B\x82\x84webm", "WebM"),
        (b"\x1aE\xdf\xa3\x9fB\x86\x81\x01B\xf7\x81\x01B\x82\x88matroska", "Matroska"),
        (b"RIFF\x00\x10\0\0AVI LIST", "AVI"),
        (b"\0\0\x01\xba" + b"D\0", "MPEG"),
        (b"G" + b"\0" * 187 + b"G" + b"\0" * 187, "MPEG transport stream"),
    ],
)
def test_videos_are_named(tmp_path: Path, data: bytes, kind: str) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(data + b"\0" * 500)
    for source in (path, data + b"\0" * 500):
        with pytest.raises(InputError, match=rf"a video \({kind}\); videos are not supported") as caught:
            load_picture(source)
        assert "frame" in (caught.value.hint or "")


def test_pictures_in_a_videos_container_are_no_videos() -> None:
    with pytest.raises(InputError, match="not a picture that can be read"):
        load_picture(box(b"heic", b"mif1", b"heic") + b"\0" * 100)
    assert load_picture(frames("GIF")).size == (8, 8)
    assert load_picture(frames("WEBP")).size == (8, 8)
