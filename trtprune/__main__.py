"""``python -m trtprune``."""

from trtprune.cli import main

main()
