"""A session whose runs are observed, for tools that count or record a component's inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trtprune.backends.base import Session

__all__ = ["ObservedSession"]


class ObservedSession:
    """Another session with an observer of its runs.

    Args:
        session: The session that runs.
        observe: Receiver of the inputs and the cache, before every run.
    """

    def __init__(self, session: Session, observe: Callable[[Mapping[str, Any], Any], None]) -> None:
        self._session, self._observe = session, observe

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, inputs: Mapping[str, Any], cache: Any = None) -> Mapping[str, Any]:
        """See :class:`trtprune.backends.base.Session`."""
        self._observe(inputs, cache)
        return self._session.run(inputs, cache)
