"""The errors trtprune raises on purpose.

Every expected failure is a :class:`TrtpruneError`: one line that names the file or flag at fault, and a
``hint`` that says what to change.  The command line prints both and exits with 1; a traceback therefore always
means a bug in trtprune.
"""

from __future__ import annotations

__all__ = [
    "BackendError",
    "BudgetError",
    "BuildError",
    "CheckpointError",
    "EngineDirError",
    "InputError",
    "TrtpruneError",
]


class TrtpruneError(Exception):
    """Base of all expected failures.

    Args:
        message: One line naming the file, tensor or flag at fault.
        hint: What the user can change, in one line.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message} ({self.hint})"


class CheckpointError(TrtpruneError):
    """The model cannot be found, fetched, or is not a checkpoint trtprune can read."""


class BuildError(TrtpruneError):
    """The engine directory could not be written."""


class EngineDirError(TrtpruneError):
    """An engine directory is damaged, foreign, too new, or belongs to another backend."""


class BackendError(TrtpruneError):
    """A backend, provider or device is missing or refuses the work."""


class BudgetError(TrtpruneError):
    """A token budget, method or method option that this model or build cannot serve."""


class InputError(TrtpruneError):
    """An image, prompt or sampling parameter that cannot be used."""
