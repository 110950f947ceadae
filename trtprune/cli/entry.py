"""The program's start: an interrupt during the import of libraries gives no traceback either."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Runs the command line."""
    try:
        from trtprune.cli import main as command

        command()
    except KeyboardInterrupt:
        sys.stderr.write("trtprune: interrupted\n")
        sys.exit(130)
