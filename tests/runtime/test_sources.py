"""Where pictures come from: photographs, animations, addresses, streams; and what is refused before it costs much."""

from __future__ import annotations

import base64
import http.server
import io
import logging
import os
import threading
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.fuzz import fuzz_pictures
from tests.fuzz.fuzz_pictures import prepare, thin
from tests.fuzz.kit import Attempts
from tests.runtime.test_pictures import encoded, frames, noise
from trtprune.errors import InputError
from trtprune.runtime import sources
from trtprune.runtime.pictures import FORMATS, load_picture

ARRAY = noise(12, 9)
PICTURE = encoded(Image.fromarray(ARRAY))


def same(picture: Image.Image, array: np.ndarray = ARRAY) -> bool:
    return np.array_equal(np.asarray(picture), array)


# -- photographs and animations


def test_photographs_with_a_preview(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Cameras and phones write .jpg files of the Multi-Picture Format; everyone takes the first picture."""
    from transformers.image_utils import load_image

    photo = Image.fromarray(noise(64, 48))
    path = tmp_path / "photo.jpg"
    photo.save(path, format="MPO", save_all=True, append_images=[photo.resize((16, 12))])
    assert Image.open(path).format == "MPO"
    for strict in (False, True):
        assert same(load_picture(path, strict=strict), np.asarray(load_image(str(path))))
    assert not caplog.records


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animations(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The first frame, as transformers', with a note; or an error for who wants one."""
    from transformers.image_utils import load_image

    path = tmp_path / "moving"
    path.write_bytes(frames(kind))
    caplog.set_level(logging.INFO, "trtprune")
    assert same(load_picture(path), np.asarray(load_image(str(path))))
    assert [record.getMessage() for record in caplog.records] == [
        f"image {path}: has several frames; the first one is taken"
    ]
    with pytest.raises(InputError, match="several frames") as caught:
        load_picture(path, strict=True)
    assert "strict_images" in str(caught.value.hint)
    assert "--strict-images" in str(caught.value.flag_hint)


def test_the_frame_the_caller_went_to() -> None:
    image = Image.open(io.BytesIO(frames("GIF")))
    image.seek(2)
    assert same(load_picture(image, strict=True), np.asarray(image.convert("RGB")))


# -- formats


@pytest.mark.parametrize("kind", ["EPS", "ICO", "ICNS", "PCX", "TGA", "SGI", "PDF", "JPEG2000"])
def test_formats_that_are_not_opened(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever they are called; Ghostscript is not started."""
    started = tmp_path / "started"
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {started}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    data = encoded(Image.fromarray(noise(32, 32)), kind)
    path = tmp_path / "holiday.png"
    path.write_bytes(data)
    for source in (data, path):
        with pytest.raises(InputError, match="not a picture that can be read") as caught:
            load_picture(source)
        assert all(name in str(caught.value.hint) for name in FORMATS)
    assert not started.exists()


@pytest.mark.parametrize("kind", [*FORMATS, "AVIF"])
def test_formats_that_are(kind: str) -> None:
    if kind == "AVIF":
        from PIL import features

        if not features.check("avif"):
            pytest.skip("Pillow without AVIF")
    assert load_picture(encoded(Image.fromarray(ARRAY), kind)).size == (12, 9)


def test_an_error_of_avif_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any) -> None:
        raise RuntimeError("Failed to decode frame 0: Decoding of color planes failed")

    image = Image.open(io.BytesIO(PICTURE))
    monkeypatch.setattr(type(image), "load", broken)
    with pytest.raises(InputError, match="damaged or cut off: Failed to decode"):
        load_picture(image)


# -- sources


def test_addresses_of_data() -> None:
    text = base64.b64encode(PICTURE).decode()
    for address in (
        f"data:image/png;base64,{text}",
        f"DATA:;base64,{urllib.parse.quote(text)}",
        f"data:image/png;name=a;base64,{text[:40]}\n{text[40:]}",
        f"data:image/png,{urllib.parse.quote_from_bytes(PICTURE)}",
    ):
        assert same(load_picture(address))
    for address, message in (
        ("data:image/png;base64,@@@@", "not base64"),
        ("data:image/png;base64," + "é" * 20_000, "not base64"),
        ("data:image/png;base64,", "not a picture"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            load_picture(address)
        assert len(str(caught.value)) < 300


def test_file_addresses(tmp_path: Path) -> None:
    path = tmp_path / "a b%.png"
    path.write_bytes(PICTURE)
    assert same(load_picture(path.as_uri()))
    assert same(load_picture(path.as_uri().replace("file://", "file://localhost")))
    with pytest.raises(InputError, match="another machine"):
        load_picture("file://server/share/a.png")
    with pytest.raises(InputError, match="no such file"):
        load_picture((tmp_path / "gone.png").as_uri())


def test_open_files(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PICTURE)
    memory = io.BytesIO(PICTURE)
    memory.seek(7)  # Pillow begins at the beginning, too
    with path.open("rb") as stream:
        assert same(load_picture(memory))
        assert same(load_picture(memory))
        assert same(load_picture(stream))
    with pytest.raises(InputError, match="cannot be read"):
        load_picture(stream)
    with path.open(encoding="latin-1") as text, pytest.raises(InputError, match="gives str") as caught:
        load_picture(text)  # type: ignore[arg-type]
    assert "rb" in str(caught.value.hint)
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as pipe, os.fdopen(write_end, "wb") as writer:
        writer.write(PICTURE)
        writer.close()
        assert same(load_picture(pipe))


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.png"
    os.mkfifo(fifo)
    start = time.monotonic()
    for path in (fifo, "/dev/zero", "/dev/stdin"):
        with pytest.raises(InputError, match="cannot be read"):
            load_picture(path)
    assert time.monotonic() - start < 5


def test_large_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_BYTES", 100)
    path = tmp_path / "a.png"
    path.write_bytes(PICTURE)
    for source in (path, io.BytesIO(PICTURE), "data:;base64," + base64.b64encode(PICTURE).decode()):
        with pytest.raises(InputError, match="larger than 100 bytes"):
            load_picture(source)


# -- the network


class Server(http.server.BaseHTTPRequestHandler):
    """Pictures, and what else a server may do."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/away":
            return self.redirect("file:///etc/hostname")
        if path == "/ftp":
            return self.redirect("ftp://127.0.0.1/a.png")
        if path == "/round":
            return self.redirect("/round")
        if path == "/once":
            return self.redirect("/a.png")
        if path == "/missing":
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")  # says nothing
        self.end_headers()
        if path == "/drip":
            for _ in range(100):
                time.sleep(0.05)
                self.wfile.write(b"x")
                self.wfile.flush()
        else:
            self.wfile.write(PICTURE if path == "/a.png" else b"<html>")

    def redirect(self, where: str) -> None:
        self.send_response(302)
        self.send_header("Location", where)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as found:
        found.daemon_threads = True
        thread = threading.Thread(target=found.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_addresses_on_the_network(server: str) -> None:
    assert same(load_picture(f"{server}/a.png?size=1", urls=True))
    assert same(load_picture(f"{server}/once", urls=True))
    with pytest.raises(InputError, match="not opened here") as caught:
        load_picture(f"{server}/a.png")
    assert "urls=True" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/missing", "404"),
        ("/away", "is not allowed"),
        ("/ftp", "redirects to a ftp: address"),
        ("/round", "infinite loop|redirect"),
        ("/page", "not a picture"),
    ],
)
def test_addresses_that_give_none(server: str, path: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_picture(server + path, urls=True)


def test_no_secrets_of_an_address_in_messages(server: str) -> None:
    with pytest.raises(InputError) as caught:
        load_picture(f"{server.replace('//', '//user:pass@')}/missing?key=secret", urls=True)
    assert "pass" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_slow_and_large_answers(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "TOTAL_SECONDS", 0.3)
    start = time.monotonic()
    with pytest.raises(InputError, match="not here after"):
        load_picture(f"{server}/drip", urls=True)
    assert time.monotonic() - start < 3
    monkeypatch.setattr(sources, "TOTAL_SECONDS", 20)
    monkeypatch.setattr(sources, "MAX_BYTES", 100)
    with pytest.raises(InputError, match="larger than 100"):
        load_picture(f"{server}/a.png", urls=True)


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:1/a.png", "http://", "http://[::1/a", "https://a b/c", "http://é.invalid/"]
)
def test_addresses_of_nothing(address: str) -> None:
    with pytest.raises(InputError, match="cannot be fetched"):
        load_picture(address, urls=True)


# -- what costs more than it should


CLIP = {"size": {"shortest_edge": 336}, "crop_size": 336}
ATTEMPTS = Attempts(fuzz_pictures.PRELOAD)
LLAVA = CLIP | {"image_processor_type": "LlavaImageProcessor", "do_pad": True}


@pytest.mark.parametrize(
    ("size", "config"),
    [
        ((2000, 1), CLIP),
        ((1, 2300), CLIP),
        ((1, 30_000), LLAVA),
        ((60_000, 1), LLAVA),
        ((590, 1), CLIP),
        ((8000, 1), LLAVA),
    ],
)
def test_thin_pictures_count_what_they_take(size: tuple[int, int], config: dict[str, Any]) -> None:
    outcome = ATTEMPTS.run(prepare, thin(*size), config)
    large = max(size) * 336 * 336 > 64 << 20 if config is CLIP else max(size) > 8192
    assert outcome.ending == ("refused" if large else "answered"), outcome
    assert "too narrow" in outcome.message or not large
    assert outcome.seconds < 8
    assert outcome.megabytes < 1000


@pytest.mark.parametrize(
    "data",
    [
        b"P6 #" + b"c" * 50_000_000 + b"\n1 1 255 abc",
        b"P3 1 1 255\n#" + b"c" * 50_000_000,
        b"P2 4000 4000 255\n" + b"1 " * 16_000_000,
        b"P5" + b" #\n" * 10_000_000,
    ],
    ids=["header", "body", "numbers", "comments"],
)
def test_slow_ppm(data: bytes) -> None:
    start = time.process_time()
    with pytest.raises(InputError):
        load_picture(data)
    assert time.process_time() - start < 10


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 40), height=st.integers(1, 40), plain=st.booleans(), comment=st.booleans())
def test_ppm_as_pillow_reads_it(width: int, height: int, plain: bool, comment: bool) -> None:
    array = noise(width, height)
    body = b" ".join(b"%d" % value for value in array.ravel()) if plain else array.tobytes()
    head = b"%s%s\n%d %d\n255\n" % (b"P3" if plain else b"P6", b"\n# made by hand" if comment else b"", width, height)
    assert same(load_picture(head + body), array)
