"""Made-up checkpoints of all families by the name of their shape."""

from __future__ import annotations

from pathlib import Path

from _checkpoints import write_checkpoint
from _internvl_checkpoints import INTERNVL, write_internvl
from _packed_checkpoints import PACKED, write_packed
from _qwen3_checkpoints import QWEN3, write_qwen3
from _smolvlm_checkpoints import SMOLVLM, write_smolvlm

WRITERS = {
    **dict.fromkeys(PACKED, write_packed),
    **dict.fromkeys(QWEN3, write_qwen3),
    **dict.fromkeys(INTERNVL, write_internvl),
    **dict.fromkeys(SMOLVLM, write_smolvlm),
}
"""Shape → its writer; every other one is LLaVA's, see ``_checkpoints.py``."""


def write_shape(folder: Path, shape: str, *, seed: int | None = None) -> int:
    """A checkpoint; arguments and result as of ``write_checkpoint``."""
    return WRITERS.get(shape, write_checkpoint)(folder, shape, seed=seed)
