"""The plugin library of ``plugins/``: its place, its compatibility, and its registration in TensorRT.

Graphs need no plugin: ``TopKGather`` has a body of standard operators.  If the plugin of that name is registered when
TensorRT parses a graph, TensorRT takes the plugin, and the engine then needs the library wherever it runs.
"""

from __future__ import annotations

import ctypes
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtprune._version import __version__
from trtprune.errors import BackendError

__all__ = [
    "LIBRARY_NAME",
    "LIBRARY_VARIABLE",
    "NAMESPACE",
    "PLUGINS",
    "PluginLibrary",
    "find_library",
    "load_plugins",
    "open_library",
    "register_plugins",
]

LIBRARY_VARIABLE = "TRTPRUNE_PLUGIN_LIBRARY"
"""Environment variable with the library's path."""
LIBRARY_NAME = "libtrtprune_plugins.so"
NAMESPACE = "trtprune"
PLUGINS = {"TopKGather": "1", "MaxMinSelect": "1"}
"""The library's plugins and their versions; a version changes when older engines would fail with the plugin."""

_BUILD = "cmake -S plugins -B build/plugins && cmake --build build/plugins"


@dataclass(frozen=True)
class PluginLibrary:
    """An opened library.

    Attributes:
        path: The file.
        version: The release of trtprune it belongs to.
        tensorrt: Major, minor and patch version of the TensorRT whose headers it was compiled with.
    """

    path: Path
    version: str
    tensorrt: tuple[int, int, int]
    _library: ctypes.CDLL

    def register(self) -> int:
        """Registers the plugins with every loaded TensorRT of the same major version; returns their number."""
        return int(self._library.trtpruneRegisterPlugins())


def find_library(environment: Mapping[str, str] | None = None) -> Path | None:
    """The library that :data:`LIBRARY_VARIABLE` names, or the one installed with the package, or None.

    Raises:
        BackendError: if the variable names a file that is not there.
    """
    named = (os.environ if environment is None else environment).get(LIBRARY_VARIABLE)
    if named:
        path = Path(named)
        if not path.is_file():
            raise BackendError(
                f"{LIBRARY_VARIABLE}: no file {named}", hint=f"{_BUILD}, or unset the variable to do without plugins"
            )
        return path.resolve()
    path = Path(__file__).parent / LIBRARY_NAME
    return path if path.is_file() else None


def open_library(path: Path) -> PluginLibrary:
    """Opens the library and checks that it belongs to this release; needs neither TensorRT nor a GPU.

    Raises:
        BackendError: if the file is no shared library, not this library, or from another release.
    """
    try:
        _check_complete(path)
        # By its absolute path: dlopen looks for a bare name elsewhere.
        library = ctypes.CDLL(str(path.resolve()))
    except OSError as error:
        reason = " ".join(str(error).split()).replace(f"{path.resolve()}: ", "")
        raise BackendError(f"plugin library {path} does not load: {reason}", hint=_BUILD) from None
    try:
        library.trtprunePluginVersion.restype = ctypes.c_char_p
        library.trtprunePluginTensorRTVersion.restype = ctypes.c_int
        library.trtpruneRegisterPlugins.restype = ctypes.c_int
    except AttributeError:
        raise BackendError(f"{path} is not trtprune's plugin library", hint=f"{LIBRARY_NAME} of: {_BUILD}") from None
    version = library.trtprunePluginVersion().decode()
    if version != __version__:
        raise BackendError(
            f"plugin library {path} belongs to trtprune {version}, this is {__version__}", hint=f"rebuild it: {_BUILD}"
        )
    number = library.trtprunePluginTensorRTVersion()
    return PluginLibrary(path, version, (number // 10000, number // 100 % 100, number % 100), library)


def register_plugins(trt: Any, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Registers the library's plugins with ``trt``, the imported module ``tensorrt``, if there is a library.

    Returns:
        The plugins that the parser will use, with their versions; empty without a library, and for
        TensorRT for RTX, which has no plugins.

    Raises:
        BackendError: if there is a library that does not fit.
    """
    if _is_rtx(trt):
        return {}
    path = find_library(environment)
    if path is None:
        return {}
    library = open_library(path)
    major = int(re.match(r"\d+", trt.__version__)[0])  # type: ignore[index]
    if library.tensorrt[0] != major:
        raise BackendError(
            f"plugin library {path} was compiled for TensorRT {library.tensorrt[0]}, installed is {trt.__version__}",
            hint=f"rebuild it with -DTENSORRT_ROOT=… of TensorRT {major}, or unset {LIBRARY_VARIABLE}",
        )
    registry = trt.get_plugin_registry()  # loads the library's dependencies
    library.register()
    missing = [name for name, version in PLUGINS.items() if not _known(registry, name, version)]
    if missing:
        raise BackendError(
            f"plugin library {path}: TensorRT {trt.__version__} does not take {', '.join(missing)}",
            hint=f"unset {LIBRARY_VARIABLE} to do without plugins",
        )
    return dict(PLUGINS)


def load_plugins(trt: Any, needed: Mapping[str, str], environment: Mapping[str, str] | None = None) -> None:
    """Registers the plugins that an engine was built with (name → version).

    Raises:
        BackendError: if one is missing, is there in another version only, or the library does not fit.
    """
    if not needed:
        return
    what = ", ".join(f"{name} {version}" for name, version in needed.items())
    if _is_rtx(trt):
        raise BackendError(f"the engines need the plugin {what}, and TensorRT for RTX has no plugins")
    registry = trt.get_plugin_registry()
    if all(_known(registry, name, version) for name, version in needed.items()):
        return
    have = register_plugins(trt, environment)
    if not have:
        raise BackendError(
            f"the engines need the plugin {what}, and no plugin library was found",
            hint=f"{_BUILD}, then set {LIBRARY_VARIABLE} to {LIBRARY_NAME}; or build the engines without it",
        )
    other = [f"{name} {version}" for name, version in needed.items() if not _known(registry, name, version)]
    if other:
        raise BackendError(
            f"the engines need the plugin {', '.join(other)}, which the plugin library of this release does not have",
            hint="build the engines anew",
        )


def _check_complete(path: Path) -> None:
    """Checks a library's length against its header, because opening a truncated one can kill the process.

    Raises:
        OSError: if it is not a 64-bit ELF file, or only its beginning.
    """
    with path.open("rb") as file:
        header = file.read(64)
        size = file.seek(0, os.SEEK_END)
        if len(header) < 64 or header[:6] != b"\x7fELF\x02\x01":
            raise OSError("not a shared library (64-bit ELF)")
        programs, sections = struct.unpack_from("<QQ", header, 32)
        program_size, program_count, section_size, section_count = struct.unpack_from("<4H", header, 54)
        end = max(programs + program_size * program_count, sections + section_size * section_count)
        if end <= size:
            file.seek(programs)
            for _ in range(program_count):
                _, _, offset, _, _, length, _, _ = struct.unpack("<IIQQQQQQ", file.read(program_size)[:56])
                end = max(end, offset + length)
        if end > size:
            raise OSError(f"the file is cut off: {size} of {end} bytes")


def _is_rtx(trt: Any) -> bool:
    return str(trt.__name__).startswith("tensorrt_rtx")


def _known(registry: Any, name: str, version: str) -> bool:
    return registry.get_creator(name, version, NAMESPACE) is not None
