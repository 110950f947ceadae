"""A loopback server that speaks as much of the hub's protocol as a download needs, with faults on demand."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the server offers and what it was asked.

    ``cut`` maps a file to the number of bytes after which its first transfer is cut off; ``fail`` is the status and
    ``X-Error-Code`` of every answer of the API.
    """

    repo: str
    files: dict[str, bytes]
    cut: dict[str, int] = field(default_factory=dict)
    fail: tuple[int, str] | None = None
    requests: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)
    """(method, path, Range, Authorization)"""
    url: str = ""
    others: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Further repositories, by id."""

    def find(self, path: str) -> tuple[str, dict[str, bytes]]:
        """The repository that a path of the API or of a file is about, by id, and its files; empty if there is none."""
        repos = {self.repo: self.files, **self.others}
        parts = path.removeprefix("/api/models/").strip("/").split("/")
        repo = "/".join(parts[:2])
        return (repo, repos[repo]) if repo in repos else ("", {})

    def gets(self, file: str) -> list[str | None]:
        """The Range header of each GET of a file's content."""
        return [r[2] for r in self.requests if r[0] == "GET" and "/resolve/" in r[1] and r[1].endswith("/" + file)]


@contextlib.contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Runs the server on a free port; ``hub.url`` is what ``HF_ENDPOINT`` takes."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path, self.headers.get("Range"), self.headers.get("Authorization")))
            repo, files = hub.find(path)
            if hub.fail is not None:
                status, code = hub.fail
                self.reply(status, b"{}", {"X-Error-Code": code} if code else {})
            elif not repo:
                self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            elif path.startswith(f"/api/models/{repo}/tree/"):
                rows = [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in files.items()
                ]
                self.reply(200, json.dumps(rows).encode())
            elif path in (f"/api/models/{repo}{end}" for end in ("", "/revision/main", f"/revision/{COMMIT}")):
                siblings = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
                info = {"id": repo, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
                self.reply(200, json.dumps(info).encode())
            elif path.startswith(f"/api/models/{repo}/revision/"):
                self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            elif path.startswith(f"/{repo}/resolve/"):
                self.file(path.removeprefix(f"/{repo}/resolve/").partition("/")[2], files)
            else:
                self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})

        def file(self, name: str, files: dict[str, bytes]) -> None:
            data = files.get(name)
            if data is None:
                self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            extra = {
                "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
                "X-Repo-Commit": COMMIT,
                "Accept-Ranges": "bytes",
            }
            wanted = self.headers.get("Range")
            if wanted is None:
                self.reply(200, data, extra, stop=hub.cut.pop(name, None) if self.command == "GET" else None)
                return
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            extra["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self.reply(206, data[start:], extra)

        def reply(self, status: int, body: bytes, extra: dict[str, str] | None = None, stop: int | None = None) -> None:
            self.send_response(status)
            for key, value in (extra or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            self.wfile.write(body if stop is None else body[:stop])
            if stop is not None:
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
