"""The numerical rank of an attention block, for chains without a component for it."""

from __future__ import annotations

import numpy as np

__all__ = ["matrix_rank"]


def matrix_rank(attention: np.ndarray) -> int:
    """``torch.linalg.matrix_rank`` of float32 [R, N], in NumPy."""
    block = np.asarray(attention, np.float32)
    if not np.isfinite(block).all():
        return 0
    singular = np.linalg.svd(block, compute_uv=False)
    return int((singular > max(block.shape) * np.finfo(np.float32).eps * singular.max(initial=0)).sum())
