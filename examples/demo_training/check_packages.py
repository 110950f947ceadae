"""Imported first by the training scripts: says in one line what they need and is missing; ``--help`` works without."""

from __future__ import annotations

import importlib.util
import sys

NEEDED = ("torch", "safetensors", "transformers")
missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
if missing:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(sys.modules["__main__"].__doc__)
        sys.exit(0)
    sys.exit(f"error: {', '.join(missing)} not installed\nhint:  pip install 'trtprune[torch]'")
