"""The logger of the package, ``trtprune``: silent until a program, such as the command line, gives it a handler."""

from __future__ import annotations

import logging

__all__ = ["logger"]

logger = logging.getLogger("trtprune")
