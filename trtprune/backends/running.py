"""How an engine directory is to be run: what ``load``, ``eval``, ``bench``, ``show`` and ``compare`` all ask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Running"]


@dataclass(frozen=True)
class Running:
    """Provider, its settings, its threads, and how much of the directory is checked first.

    Attributes:
        provider: ``cpu``, ``cuda`` or ``openvino``; None: as built.
        provider_options: Settings of the provider, or of the TensorRT backend, by name.
        threads: CPU threads; None: all cores.
        verify: ``auto``, ``none``, ``fast`` or ``full``; see :func:`trtprune.engine_dir.open_engine_dir`.
    """

    provider: str | None = None
    provider_options: Mapping[str, str] = field(default_factory=dict)
    threads: int | None = None
    verify: str = "auto"
