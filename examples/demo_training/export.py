"""Turn a training checkpoint into the file that ``trtprune.demo.assemble`` takes: float16, statistics folded in.

python examples/demo_training/export.py runs/demo/trained.safetensors trtprune/demo/data/trained.safetensors
python examples/demo_training/export.py runs/signs/signs.safetensors trtprune/demo/data/signs.safetensors
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from trtprune.demo import _safetensors


def main(source: Path, target: Path) -> None:
    state = _safetensors.read(source)
    mean, std = state["projector.mean"].astype(np.float64), state["projector.std"].astype(np.float64)
    # linear_1((x - mean) / std) = (W / std) x + (bias - (W / std) mean)
    weight = state["projector.linear_1.weight"] / std
    out = {
        "multi_modal_projector.linear_1.weight": weight,
        "multi_modal_projector.linear_1.bias": state["projector.linear_1.bias"] - weight @ mean,
        "multi_modal_projector.linear_2.weight": state["projector.linear_2.weight"],
        "multi_modal_projector.linear_2.bias": state["projector.linear_2.bias"],
    }
    out |= {k: v for k, v in state.items() if k.startswith("layers.")}
    halves = {k: v.astype(np.float16) for k, v in out.items()}
    assert all(np.isfinite(v).all() for v in halves.values()), "a weight does not fit float16"
    _safetensors.write(target, halves, {"format": "pt"})
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB, {sum(v.size for v in halves.values()) / 1e6:.2f} M numbers")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="what the training wrote")
    parser.add_argument("target", type=Path, help="the file to write")
    given = parser.parse_args()
    main(given.source, given.target)
