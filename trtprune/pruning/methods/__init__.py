"""The pruning methods, one file each: NumPy reference and graph side by side."""
