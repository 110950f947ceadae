"""Time to the first token of an InternVL with all visual tokens, with a part of them, and in transformers.

    python benchmarks/bench_internvl.py [--shape internvl-small] [--side 1000] [--rounds 5]
        [--json benchmarks/results/internvl.json]

The model has made-up weights in float32 and InternVL3's tiles: an image of 1000 × 1000 pixels is 10 crops and 2,560
visual tokens, one of 640 × 640 pixels 5 crops and 1,280.  In each round all take turns: ours with all tokens, with 25 %
and with 10 % of them, and transformers with all.  Milliseconds from the image to the first token, ratios round by
round, medians over rounds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _internvl_checkpoints import write_internvl
from _machine import machine, summary, write_json
from PIL import Image

import trtprune

PROMPT = "w10 <IMG_CONTEXT> w9 w11 w13 w12 w21 w34"
SHARES = (1.0, 0.25, 0.1)
METHOD = "divprune"


class Theirs:
    """The same checkpoint in transformers; its processor, with the image half in Pillow, is retold from its parts."""

    def __init__(self, path: Path, threads: int) -> None:
        import torch
        import transformers
        from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

        torch.set_num_threads(threads)
        self._torch = torch
        self._images = GotOcr2ImageProcessorPil.from_pretrained(path)
        self._words = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"))
        self._model = transformers.InternVLForConditionalGeneration.from_pretrained(
            path, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()

    def first_token(self, image: Image.Image, tokens: int) -> tuple[float, int]:
        """Milliseconds to the first token of an image of so many visual tokens, and the token."""
        start = time.perf_counter()
        pixels = self._images([image], return_tensors="pt", crop_to_patches=True)["pixel_values"]
        text = PROMPT.replace("<IMG_CONTEXT>", f"<img>{'<IMG_CONTEXT>' * tokens}</img>")
        inputs = self._words(text, return_tensors="pt")
        with self._torch.inference_mode():
            ids = self._model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                pixel_values=pixels,
                max_new_tokens=1,
                do_sample=False,
            )
        return 1e3 * (time.perf_counter() - start), int(ids[0, -1])


def answer_times(shape: str, side: int, rounds: int, threads: int) -> dict[str, Any]:
    """Times to the first token of one shape, interleaved."""
    coarse = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
    times: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "checkpoint", Path(folder) / "out"
        path.mkdir()
        write_internvl(path, shape, seed=0)
        trtprune.build(str(path), out, method=METHOD, dtype="float32", keep=1)
        vlm, theirs = trtprune.load(out, threads=threads), Theirs(path, threads)
        tokens = vlm.pipeline.processor.plan(side, side).tokens
        for number in range(rounds + 1):
            found: dict[str, float] = {}
            for share in SHARES:
                start = time.perf_counter()
                ours = vlm.generate(image, PROMPT, keep_ratio=share, max_new_tokens=1, raw_prompt=True, ignore_eos=True)
                found[f"{share:.0%}"] = 1e3 * (time.perf_counter() - start)
                if share == 1:
                    first = ours.token_ids[0]
            found["transformers"], other = theirs.first_token(image, tokens)
            assert first == other, "another first token than in transformers"
            if number:  # the first round warms up
                for name, value in found.items():
                    times[name].append(value)
    ratios = {
        name: round(statistics.median(b / a for a, b in zip(values, times["transformers"], strict=True)), 3)
        for name, values in times.items()
    }
    milliseconds = {name: summary(values) for name, values in times.items()}
    return {"visual_tokens": tokens, "ms": milliseconds, "times_as_fast_as_transformers": ratios}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="internvl-small", help="see benchmarks/_internvl_checkpoints.py")
    parser.add_argument("--side", type=int, default=1000, help="of the square image, in pixels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    found = answer_times(given.shape, given.side, given.rounds, given.threads)
    result = {
        "command": " ".join(["python", *sys.argv]),
        "machine": machine(),
        "method": METHOD,
        "threads": given.threads,
        **found,
    }
    for name, ratio in found["times_as_fast_as_transformers"].items():
        print(f"{name:<14}{found['ms'][name]['median']:10.1f} ms  {ratio:.2f} x transformers")
    if given.json:
        write_json(given.json, result)


if __name__ == "__main__":
    main()
