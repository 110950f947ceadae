"""Other methods on one build's weights, for comparisons."""

from __future__ import annotations

from trtprune.variants.variants import Variant, Variants, parse_variants, split_methods, warnings_only

__all__ = ["Variant", "Variants", "parse_variants", "split_methods", "warnings_only"]
