"""The methods by name: the package's own, those of other installed packages, and those that a program registers.

Another package adds a method with an entry point in the group :data:`GROUP`, whose name is the method's and
whose value its class::

    [project.entry-points."trtprune.methods"]
    mymethod = "my_package.mymethod:MyMethod"

A program without a package calls :func:`register`, which is also a class decorator.  Modules are imported when they are
needed: one for a name, all for a list of methods.
"""

from __future__ import annotations

import difflib
import re
import threading
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from trtprune.arguments import arg
from trtprune.errors import BudgetError
from trtprune.pruning.base import BaseMethod

__all__ = ["GROUP", "MODULES", "all_methods", "get", "names", "register"]

MODULES = (
    "none", "random", "uniform", "downsample",
    "fastervlm", "adafv", "zspaprune", "visionzip", "hiprune", "vispruner", "trim",
    "divprune", "cdpruner", "mmtok", "scope", "dart", "mmr", "score", "hawk",
    "sparsevlm", "fastv", "pyramiddrop",
)  # fmt: skip
"""The methods of this package, in the order of the help texts; each is a file of the same name in ``methods``."""
GROUP = "trtprune.methods"
"""The entry-point group of other packages' methods."""
NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
"""The pattern of a method's name; it also splits lists of methods on the command line."""

AnyMethod = TypeVar("AnyMethod", bound=type[BaseMethod])
_methods: dict[str, BaseMethod] = {}
_lock = threading.Lock()


def register(cls: AnyMethod) -> AnyMethod:
    """Adds a method under its class's name.

    Args:
        cls: A class that can be called without arguments.

    Returns:
        ``cls``, for use as a class decorator.

    Raises:
        BudgetError: for a name that another method has, or that is invalid.
    """
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise BudgetError(
            f"{cls.__module__}.{cls.__qualname__}: {name!r} is no name of a method",
            hint="a class attribute name: lower-case letters, digits, _ and -, a letter first, 32 at most",
        )
    with _lock:
        owner = type(_methods[name]) if name in _methods else None
        if owner is not None and owner is not cls:
            raise _clash(name, f"{owner.__module__}:{owner.__qualname__}", f"{cls.__module__}:{cls.__qualname__}")
        if name in MODULES and cls.__module__ != _module(name):
            raise _clash(name, _module(name), f"{cls.__module__}:{cls.__qualname__}")
        if owner is None:
            _methods[name] = cls()
    return cls


def names(*, inside: bool | None = None) -> list[str]:
    """The methods' names, in the order of the help texts.

    Args:
        inside: True: only methods that prune inside the decoder; False: only others.

    Raises:
        BudgetError: for two methods of one name, or one of another package that cannot be loaded.
    """
    every = list(dict.fromkeys((*MODULES, *sorted(_foreign()), *_methods)))
    return every if inside is None else [name for name in every if get(name).inside == inside]


def all_methods() -> list[BaseMethod]:
    """The methods, in the order of :func:`names`; raises as it does."""
    return [get(name) for name in names()]


def get(name: str) -> BaseMethod:
    """The method called ``name``.

    Raises:
        BudgetError: for an unknown name, with a hint that lists the names; and as :func:`names`.
    """
    foreign = _foreign()
    if name not in _methods:
        if name in MODULES:
            import_module(_module(name))
        elif name in foreign:
            _load(foreign[name])
    if name in _methods:
        return _methods[name]
    known = names()
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise BudgetError(f"{arg('method', name)}: unknown method", hint=f"{hint}available: {', '.join(known)}")


def _module(name: str) -> str:
    return f"trtprune.pruning.methods.{name}"


@cache
def _foreign() -> dict[str, EntryPoint]:
    """Other packages' methods by name, read once from the installed packages, without importing them."""
    points: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        if not NAME.fullmatch(point.name):
            raise BudgetError(
                f"package {_package(point)}: {point.name!r} is no name of a method",
                hint="lower-case letters, digits, _ and -, a letter first, 32 at most; or uninstall the package",
            )
        if point.name in MODULES:
            raise _clash(point.name, "trtprune", f"package {_package(point)}")
        other = points.setdefault(point.name, point)
        if other.value != point.value:
            raise _clash(point.name, f"package {_package(other)}", f"package {_package(point)}")
    return points


def _load(point: EntryPoint) -> None:
    where = f"{arg('method', point.name)}: package {_package(point)}"
    hint = "uninstall that package, or install a version of it that fits this trtprune"
    try:
        cls = point.load()
    except Exception as error:  # whatever another package's module does
        raise BudgetError(f"{where} cannot load {point.value}: {type(error).__name__}: {error}", hint=hint) from error
    if not (isinstance(cls, type) and issubclass(cls, BaseMethod)):
        raise BudgetError(f"{where}: {point.value} is no class of trtprune.pruning.Method or InLlmMethod", hint=hint)
    if getattr(cls, "name", None) != point.name:
        raise BudgetError(f"{where}: {point.value} calls itself {getattr(cls, 'name', None)!r}", hint=hint)
    try:
        register(cls)
    except TypeError as error:  # an abstract class, or a constructor with arguments
        raise BudgetError(f"{where}: {error}", hint=hint) from error


def _package(point: EntryPoint) -> str:
    dist = point.dist
    return f"{dist.metadata['Name']} {dist.version}" if dist is not None else point.value


def _clash(name: str, first: str, second: str) -> BudgetError:
    return BudgetError(
        f"two methods are called {name}: of {first} and of {second}", hint="rename one, or uninstall its package"
    )
