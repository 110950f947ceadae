"""The program's start: an interrupt during the import of libraries gives no traceback either."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any, NoReturn

__all__ = ["main"]

INTERRUPTED = "trtprune: interrupted\n"


def main() -> None:
    """Runs the command line."""
    # While modules are imported there is nothing to lose, and an exception that falls into one of the import system's
    # own callbacks would be printed and forgotten.
    usual = signal.getsignal(signal.SIGINT)
    if usual is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    try:
        from trtprune.cli import main as command

        if usual is signal.default_int_handler:
            signal.signal(signal.SIGINT, usual)
        command()
    except KeyboardInterrupt:
        sys.stderr.write(INTERRUPTED)
        sys.exit(130)


def _leave(*_: Any) -> NoReturn:
    os.write(2, INTERRUPTED.encode())
    os._exit(130)
