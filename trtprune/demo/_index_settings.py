"""Package indexes of this machine, from the settings of pip and uv: environment variables, then configuration files.

Only settings of places and certificates are read; unreadable ones are ignored. A wrong place does no harm: the fetched
package must have its known digest.
"""

from __future__ import annotations

import configparser
import os
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trtprune.files.reading import SMALL_JSON_BYTES, read_bounded

__all__ = ["DEFAULT_INDEX", "Sources", "find_sources"]

DEFAULT_INDEX = "https://pypi.org/simple"
CERTIFICATES = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")


@dataclass
class Sources:
    """Places to look for a wheel, in order.

    Attributes:
        indexes: Addresses of simple indexes (PEP 503), http, https or file.
        find_links: Folders, or addresses of pages that list files.
        certificates: A file of certificates to trust; the system's otherwise.
    """

    indexes: list[str] = field(default_factory=list)
    find_links: list[str] = field(default_factory=list)
    certificates: str | None = None


def find_sources() -> Sources:
    """The indexes and folders that pip and uv would look into here."""
    env, pip, uv = os.environ, _pip_settings(), _uv_settings()
    main = (
        env.get("PIP_INDEX_URL")
        or env.get("UV_DEFAULT_INDEX")
        or env.get("UV_INDEX_URL")
        or pip.get("index-url")
        or uv["index"]
        or DEFAULT_INDEX
    )
    further = [
        *_words(env.get("PIP_EXTRA_INDEX_URL")),
        *_words(env.get("UV_INDEX")),
        *_words(env.get("UV_EXTRA_INDEX_URL")),
        *_words(pip.get("extra-index-url")),
        *uv["further"],
    ]
    # An index in uv's settings may have a name before its address.
    indexes = [word.partition("=")[2] if "=" in word.partition("://")[0] else word for word in [main, *further]]
    no_index = env.get("PIP_NO_INDEX") or env.get("UV_NO_INDEX") or pip.get("no-index") or ""
    links = [
        *_words(env.get("PIP_FIND_LINKS")),
        *_words(env.get("UV_FIND_LINKS"), ","),
        *_words(pip.get("find-links")),
        *uv["find_links"],
    ]
    return Sources(
        indexes=[] if no_index.lower() in ("1", "true", "yes", "on") or uv["no_index"] else _once(indexes),
        find_links=_once(links),
        certificates=next(filter(None, (*map(env.get, CERTIFICATES), pip.get("cert"))), None),
    )


def _words(text: str | None, separators: str = "") -> list[str]:
    for separator in separators:
        text = (text or "").replace(separator, " ")
    return (text or "").split()


def _once(items: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(items))


def _pip_settings() -> dict[str, str]:
    """Key → value of pip's configuration files; the last file with a key wins."""
    home, config = Path.home(), os.environ.get("XDG_CONFIG_HOME")
    system = (os.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(os.pathsep)
    files = [*(Path(folder) / "pip/pip.conf" for folder in system if folder), Path("/etc/pip.conf")]
    named = os.environ.get("PIP_CONFIG_FILE")
    if not named or not os.path.exists(named):
        files += [home / ".pip/pip.conf", (Path(config) if config else home / ".config") / "pip/pip.conf"]
    files += [Path(sys.prefix) / "pip.conf", *([Path(named)] if named else [])]
    if named == os.devnull:
        files = []
    found: dict[str, str] = {}
    for path in files:
        parser = configparser.RawConfigParser()
        try:
            parser.read_string(_text(path))
        except (OSError, ValueError, configparser.Error):
            continue
        for section in ("global", "install", "download"):
            if parser.has_section(section):
                found |= {key.replace("_", "-"): value for key, value in parser.items(section)}
    return found


def _uv_settings() -> dict[str, Any]:
    """The settings in the user's or the system's uv.toml."""
    config = os.environ.get("XDG_CONFIG_HOME")
    user = (Path(config) if config else Path.home() / ".config") / "uv/uv.toml"
    named = os.environ.get("UV_CONFIG_FILE")
    found: dict[str, Any] = {"index": None, "further": [], "find_links": [], "no_index": False}
    for path in [Path(named)] if named else [user, Path("/etc/uv/uv.toml")]:
        try:
            data = tomllib.loads(_text(path))
        except (OSError, ValueError):
            continue
        tables = [entry for entry in _list(data.get("index")) if isinstance(entry, dict) and _is_text(entry.get("url"))]
        default = [entry["url"] for entry in tables if entry.get("default") is True] + [data.get("index-url")]
        found["index"] = found["index"] or next(filter(_is_text, default), None)
        found["further"] += [entry["url"] for entry in tables if entry.get("default") is not True]
        found["further"] += filter(_is_text, _list(data.get("extra-index-url")))
        found["find_links"] += filter(_is_text, _list(data.get("find-links")))
        found["no_index"] = found["no_index"] or data.get("no-index") is True
    return found


def _text(path: Path) -> str:
    return (read_bounded(path, SMALL_JSON_BYTES) or b"").decode("utf-8")


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)
