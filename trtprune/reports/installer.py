"""The command that adds packages to this installation, for the program that made it: pip, uv or pipx."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Any

__all__ = ["installed_by", "to_install", "to_uninstall"]

NAME = "trtprune"
# onnxruntime and onnxruntime-gpu install the same files: one must be removed before the other is installed.
EXCLUDED = {"cuda": {"cpu", "openvino"}, "cpu": {"cuda"}, "openvino": {"cuda"}}


def installed_by() -> str:
    """``pip``, ``uv`` (a virtual environment of uv's), ``uv tool`` or ``pipx``."""
    prefix = Path(sys.prefix)
    if (prefix / "uv-receipt.toml").is_file():
        return "uv tool"
    if (prefix / "pipx_metadata.json").is_file():
        return "pipx"
    try:
        installer = (importlib.metadata.distribution(NAME).read_text("INSTALLER") or "").strip()
    except importlib.metadata.PackageNotFoundError:
        installer = ""
    return "uv" if installer == "uv" or importlib.util.find_spec("pip") is None else "pip"


def to_install(requirement: str = "", *, extra: str = "", upgrade: bool = False, again: bool = False) -> str:
    """A shell command.

    Args:
        requirement: A package, such as ``onnx>=1.20``, or ``trtprune[extra]``; or
        extra: one of this package's own extras.
        upgrade: Whether an older version is replaced.
        again: Whether an installed one is replaced, as its files may be damaged.
    """
    wanted = f"{NAME}[{extra}]" if extra else requirement
    extra = wanted.removeprefix(f"{NAME}[").rstrip("]") if wanted.startswith(f"{NAME}[") else ""
    how = installed_by()
    if how == "uv tool":
        return _uv_tool([] if extra else [wanted], extra, again=again)
    if how == "pipx":
        # Into pipx's environment, because an index may not have this package.
        flags = ["--force"] if upgrade or again else []
        return shlex.join(["pipx", "inject", *flags, NAME, *(_packages_of(extra) if extra else [wanted])])
    flags = ["-U"] if upgrade else []
    if again:
        flags += ["--force-reinstall" if how == "pip" else "--reinstall", *([] if extra else ["--no-deps"])]
    return shlex.join([*_pip(how, "install"), *flags, wanted])


def to_uninstall(*packages: str) -> str:
    """A shell command that removes packages from this installation."""
    how = installed_by()
    if how == "pipx":
        return shlex.join(["pipx", "uninject", NAME, *packages])
    flags = ["-y"] if how == "pip" else []
    return shlex.join([*_pip(how, "uninstall"), *flags, *packages])


def _pip(how: str, verb: str) -> list[str]:
    if how == "pip":
        return ["pip", verb]
    # uv uses the activated environment, or the one of the current folder.
    here = [] if os.environ.get("VIRTUAL_ENV") == sys.prefix else ["--python", sys.executable]
    return ["uv", "pip", verb, *here]


def _packages_of(extra: str) -> list[str]:
    """The requirements of an extra of this package, including those of its other extras in it."""
    found = []
    for text in importlib.metadata.requires(NAME) or []:
        requirement, _, marker = text.partition(";")
        if f'extra == "{extra}"' not in marker.replace("'", '"'):
            continue
        requirement = requirement.strip()
        own = requirement.removeprefix(f"{NAME}[").rstrip("]")
        found += _packages_of(own) if own != requirement else [requirement]
    return found


def _uv_tool(packages: list[str], extra: str, *, again: bool) -> str:
    """Installs the tool again with its earlier packages and the new ones; uv keeps only the named ones."""
    extras, source, others = _receipt()
    extras = sorted({*extras, extra} - {""} - EXCLUDED.get(extra, set()))
    tool = f"{NAME}[{','.join(extras)}]" if extras else NAME
    words = ["uv", "tool", "install", *(["--reinstall"] if again else []), f"{tool} @ {source}" if source else tool]
    for package in [*others, *packages]:
        words += ["--with", package]
    return shlex.join(words)


def _receipt() -> tuple[list[str], str, list[str]]:
    """Extras and source of this package as uv installed it, and the packages installed with it."""
    try:
        receipt = tomllib.loads((Path(sys.prefix) / "uv-receipt.toml").read_text(encoding="utf-8"))
        listed: list[dict[str, Any]] = receipt["tool"]["requirements"]
        own = next(entry for entry in listed if entry["name"] == NAME)
        others = [f"{entry['name']}{entry.get('specifier', '')}" for entry in listed if entry is not own]
        return list(own.get("extras", [])), _source(own), others
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return [], "", []


def _source(entry: dict[str, Any]) -> str:
    for key in ("path", "directory", "editable"):
        if key in entry:
            return Path(entry[key]).as_uri()
    return f"git+{entry['git']}" if "git" in entry else str(entry.get("url", ""))
