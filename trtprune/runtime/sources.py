"""Bytes of images from all kinds of sources: files, URLs, data URIs, open files.

All sources are untrusted, also in size and time.  Addresses on the network are opened only on request: the users of a
program that passes their text to ``generate`` must not reach the program's own network.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import os
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any

from trtprune._version import __version__
from trtprune.arguments import arg
from trtprune.errors import InputError, one_line
from trtprune.files.reading import open_regular

__all__ = ["MAX_BYTES", "is_address", "local_file", "opened", "picture_fault", "read_stream"]

MAX_BYTES = 256 << 20
"""The largest image file in bytes: more than 64 Mi uncompressed pixels of three bytes."""
MAX_REDIRECTS = 5
WAIT_SECONDS = 20.0
"""Longest wait for an answer of the server, or for more of it."""
TOTAL_SECONDS = 120.0
"""Longest time for a whole image from the network."""
FORMS = "a path, http(s):// or data: address, bytes, a binary file, a PIL image or a uint8 array [H, W, 3]"


@contextlib.contextmanager
def opened(source: Any, urls: bool) -> Iterator[tuple[IO[bytes], str]]:
    """A seekable stream of the image's bytes, and the image's name in errors.

    Args:
        source: Bytes, a path, an address (``http://``, ``https://``, ``data:``, ``file://``), or an open binary file.
        urls: Whether ``http(s)`` addresses are fetched.

    Raises:
        InputError: if there is no such image, or it may not be read.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        yield io.BytesIO(source), "the picture"
    elif isinstance(source, str) and (kind := _scheme(source)):
        data, name = _from_address(kind, source, urls)
        if data is None:
            with _opened_file(_local_path(source), name) as stream:
                yield stream, name
        else:
            yield io.BytesIO(data), name
    elif isinstance(source, str | os.PathLike):
        name = f"{arg('image')} {os.fspath(source)}"
        with _opened_file(os.fspath(source), name) as stream:
            yield stream, name
    elif callable(getattr(source, "read", None)):
        yield io.BytesIO(read_stream(source, "the picture's file")), "the picture"
    else:
        raise InputError(f"a picture cannot be a {type(source).__name__}", hint=FORMS)


def read_stream(stream: Any, name: str) -> bytes:
    """The content of a binary file object, from its beginning if it can be rewound.

    Raises:
        InputError: if it is empty, too large, gives text or cannot be read.
    """
    try:
        if callable(getattr(stream, "seekable", None)) and stream.seekable():
            stream.seek(0)
        data = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: cannot be read: {error}", hint="open it for reading, in binary mode") from None
    if not isinstance(data, bytes | bytearray | memoryview):
        raise InputError(f"{name}: gives {type(data).__name__}, not bytes", hint="open it in binary mode, 'rb'")
    if len(data) > MAX_BYTES:
        raise _too_large(name)
    return bytes(data)


def _too_large(name: str) -> InputError:
    return InputError(f"{name}: larger than {MAX_BYTES} bytes", hint="save it as PNG or JPEG, or smaller")


def _scheme(text: str) -> str:
    """The scheme of a supported address; empty for a path."""
    scheme = text[:8].partition(":")[0].lower()
    if scheme == "data":
        return scheme if "," in text[:1000] else ""
    return scheme if scheme in ("http", "https", "file") and text[len(scheme) :].startswith("://") else ""


@contextlib.contextmanager
def _opened_file(path: str | bytes, name: str) -> Iterator[IO[bytes]]:
    try:
        stream = open(path, "rb", opener=open_regular)  # noqa: SIM115
    except FileNotFoundError:
        raise InputError(f"{name}: no such file", hint="paths are relative to the current folder") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte
        reason = getattr(error, "strerror", None) or error
        if isinstance(error, OSError) and os.path.isdir(path):
            hint = "give one picture file; several are given one by one"
            raise InputError(f"{name}: is a directory", hint=hint) from None
        hint = f"a regular file; of the command line, {arg('image')} - is standard input"
        raise InputError(f"{name}: cannot be read: {reason}", hint=hint) from None
    with stream:
        if os.fstat(stream.fileno()).st_size > MAX_BYTES:
            raise _too_large(name)
        yield stream


def _local_path(address: str) -> str:
    parts = urllib.parse.urlsplit(address)
    if parts.netloc not in ("", "localhost"):
        raise InputError(
            f"{arg('image')} {address[:200]}: a file on another machine",
            hint="file:///path, with three slashes, or the path",
        )
    return urllib.request.url2pathname(parts.path)


def _from_address(kind: str, address: str, urls: bool) -> tuple[bytes | None, str]:
    """The bytes, None for the address of a local file; and the name in errors."""
    if kind == "data":
        return _from_data(address), "the data: picture"
    if kind == "file":
        return None, f"{arg('image')} {one_line(address, 200)}"
    name = f"{arg('image')} {_public(address)}"
    if not urls:
        raise InputError(
            f"{name}: addresses on the network are not opened here",
            hint="trtprune.load(..., urls=True), or `trtprune run --urls` for those in a file; or fetch it yourself",
        )
    return _fetched(address, name), name


def _public(address: str) -> str:
    """An address for messages: without its query, which may have keys, and without a password."""
    try:
        parts = urllib.parse.urlsplit(address)
        return one_line(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}", 200)
    except ValueError:
        return one_line(address.partition("?")[0], 200)


def _from_data(address: str) -> bytes:
    name, hint = "the data: picture", "data:image/png;base64,… with all of the picture's bytes"
    head, _, body = address.partition(",")
    if len(body) > MAX_BYTES // 3 * 4 + 4:
        raise _too_large(name)
    try:
        if head.rpartition(";")[2].strip().lower() != "base64":
            return urllib.parse.unquote_to_bytes(body)
        text = urllib.parse.unquote_to_bytes(body) if "%" in body else body.encode("ascii")
        return base64.b64decode(b"".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"{name}: not base64: {error}", hint=hint) from None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows few redirections, to http(s) addresses only."""

    max_redirections = MAX_REDIRECTS
    max_repeats = 2

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """As in urllib; None for an address of another kind."""
        if urllib.parse.urlsplit(newurl).scheme not in ("http", "https"):
            raise urllib.error.URLError(f"redirects to a {urllib.parse.urlsplit(newurl).scheme or 'local'}: address")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    # urllib's default handlers include file:, ftp: and data:.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    opener.addheaders = [("User-Agent", f"trtprune/{__version__}"), ("Accept", "image/*")]
    return opener


def _fetched(address: str, name: str) -> bytes:
    """The image at an http(s) address, within :data:`TOTAL_SECONDS`, even from a slow server."""
    found: list[bytes | Exception] = []

    def fetch() -> None:
        try:
            with _opener().open(address, timeout=WAIT_SECONDS) as answer:
                found.append(answer.read(MAX_BYTES + 1))
        except Exception as error:
            found.append(error)

    # A thread, because the timeout of a socket is per read. It ends with the process.
    thread = threading.Thread(target=fetch, daemon=True, name="trtprune picture")
    thread.start()
    thread.join(TOTAL_SECONDS)
    hint = "open it in a browser; or save the picture and give its path"
    if not found:
        raise InputError(f"{name}: not here after {TOTAL_SECONDS:.0f} s", hint=hint)
    if isinstance(found[0], bytes):
        if len(found[0]) > MAX_BYTES:
            raise _too_large(name)
        return found[0]
    if isinstance(found[0], OSError | HTTPException | ValueError):
        reason = getattr(found[0], "reason", None) or found[0]
        code = f"{found[0].code} " if isinstance(found[0], urllib.error.HTTPError) else ""
        raise InputError(f"{name}: cannot be fetched: {code}{one_line(str(reason), 200)}", hint=hint) from None
    raise found[0]


def is_address(source: str) -> bool:
    """Whether an image's name is an address or data rather than a path."""
    return bool(_scheme(source))


def local_file(source: str) -> Path | None:
    """The path behind an image's name; None for an address on the network, or data.

    Raises:
        InputError: for the address of a file on another machine.
    """
    kind = _scheme(source)
    if kind == "file":
        return Path(_local_path(source))
    return None if kind else Path(source)


def picture_fault(path: Path) -> str:
    """The reason why there is no image at ``path``, without opening it; empty if there may be one."""
    try:
        if path.is_file():
            return "" if path.stat().st_size else f"image {path}: is empty"
        if path.is_dir():
            return f"image {path}: is a directory"
        return f"image {path}: is no regular file" if path.exists() else f"image {path}: no such file"
    except (OSError, ValueError) as error:  # a name too long, or with a null byte
        return f"image {str(path)[:200]!r}: {getattr(error, 'strerror', None) or error}"
