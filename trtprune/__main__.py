"""``python -m trtprune``."""

from trtprune.cli.entry import main

main()
