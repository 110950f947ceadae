"""Vectors that every runtime of engine directories must reproduce, and the scripts that write them.

The expected values come from transformers and NumPy, never from trtprune itself.
"""
