"""Time to the first token of a packed model beside transformers, with all, 25 % and 10 % of an image's visual tokens.

    python benchmarks/bench_packed.py [--shape qwen-small] [--rounds 15] [--json benchmarks/results/packed-small.json]

A made-up model (``_packed_checkpoints.py``) in float32, one picture of 480 × 640 pixels and a short question, from
picture to first token: trtprune in ONNX Runtime with ``--method`` at each share, and transformers' ``generate`` with
``sdpa`` attention and its Pillow image processor. In each round everything runs once, in random order; compare ratios,
not milliseconds of other machines.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _machine import machine, summary
from _packed_checkpoints import PACKED, write_packed
from PIL import Image

import trtprune

SIZE = (640, 480)
SHARES = (1.0, 0.25, 0.1)
QUESTION = " ".join(f"w{20 + i}" for i in range(24))


def peer(path: Path, threads: int) -> Callable[[Any], int]:
    """A function of a picture to transformers' first token."""
    import torch
    import transformers
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    images = Qwen2VLImageProcessorPil.from_pretrained(path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModelForImageTextToText.from_pretrained(
        path, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    model.generation_config.eos_token_id = None
    place = model.config.image_token_id

    def first(picture: Any) -> int:
        inputs = images(images=picture, return_tensors="pt")
        count = int(inputs["image_grid_thw"].prod()) // 4
        text = f" <|vision_start|> {'<|image_pad|> ' * count}<|vision_end|> {QUESTION} w9"
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids, mm_token_type_ids=(ids == place).int(), max_new_tokens=1, do_sample=False, **inputs
            )
        return int(out[0, -1])

    return first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="qwen-small", choices=list(PACKED))
    parser.add_argument("--method", default="vispruner")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, out = Path(folder) / "checkpoint", Path(folder) / "out"
        checkpoint.mkdir()
        write_packed(checkpoint, arguments.shape, seed=0)
        trtprune.build(str(checkpoint), out, method=arguments.method, keep=64)
        vlm = trtprune.load(out, threads=arguments.threads)
        total = vlm.features([picture])[0].visual_tokens
        keeps = {share: max(1, round(share * total)) for share in SHARES}

        def ours(keep: int) -> Callable[[], int]:
            return lambda: vlm.generate(picture, QUESTION, keep=keep, max_new_tokens=1, ignore_eos=True).token_ids[0]

        theirs = peer(checkpoint, arguments.threads)
        runs: dict[str, Callable[[], int]] = {"transformers": lambda: theirs(picture)}
        runs |= {f"{share:.0%}": ours(keep) for share, keep in keeps.items()}
        # The warm-up is the check: with all tokens both say the same.
        assert runs["100%"]() == runs["transformers"]()
        times: dict[str, list[float]] = {name: [] for name in runs}
        order = random.Random(0)
        for _ in range(arguments.rounds + 1):
            for name in order.sample(list(runs), len(runs)):
                start = time.perf_counter()
                runs[name]()
                times[name].append(1000 * (time.perf_counter() - start))
    rows = {name: summary(found[1:]) for name, found in times.items()}
    whole = rows["transformers"]["median"]
    for name, row in rows.items():
        print(f"{name:<14}{row['median']:>9.1f} ms{whole / row['median']:>7.2f} × transformers")
    if arguments.json:
        command = f"python benchmarks/bench_packed.py --shape {arguments.shape} --method {arguments.method}"
        result = {
            "command": command, "machine": machine(), "visual_tokens": total, "keep": list(keeps.values()),
            "threads": arguments.threads, "rounds": arguments.rounds, "first_token_ms": rows,
        }  # fmt: skip
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
