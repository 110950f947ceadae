"""``python -m trtprune``."""

from trtprune._entry import main

main()
