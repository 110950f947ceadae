"""SmolVLM: graph builds of the published shapes, and time to the first token beside transformers.

    python benchmarks/bench_smolvlm.py [--shapes 256m,500m,2.2b,8b] [--answers small] [--rounds 5]
        [--json benchmarks/results/smolvlm.json]

``builds``: time and peak memory of a build from a checkpoint of made-up weights in float16, whose file is sparse; each
repeat is a fresh process, with all imports.  ``cpu_s`` is the processor's time, which other programs do not change.
Target: under 2 s and 0.5 GB.

``answers``: an image of 480 × 640 pixels is 13 crops and 832 visual tokens.  In each round all take turns: ours with
all tokens, with 25 % and with 10 % of them, and transformers with all.  Milliseconds from the image to the first
token, ratios round by round, medians over rounds.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from _machine import machine, summary, write_json
from _smolvlm import AROUND, WHOLE, write_checkpoint
from PIL import Image

import trtprune

CHILD = """
import resource, sys, time
start = time.perf_counter()
from trtprune.compiler.building import build
build(sys.argv[1], sys.argv[2], keep=64, force=True)
used = resource.getrusage(resource.RUSAGE_SELF)
print(time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e6)
"""
PROMPT = "w7 <image> w9 w11 w13 w8 w21 w34"
SHARES = (1.0, 0.25, 0.1)


def build_times(shape: str, repeats: int) -> dict[str, Any]:
    """Seconds and gigabytes of the build of one shape."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, rows = Path(folder) / "checkpoint", []
        checkpoint.mkdir()
        size = write_checkpoint(checkpoint, shape)
        for _ in range(repeats + 1):
            command = [sys.executable, "-c", CHILD, str(checkpoint), str(Path(folder) / "out")]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append([float(number) for number in done.stdout.split()])
    # The first run compiles byte code.
    wall, cpu, memory = (summary(list(column)) for column in zip(*rows[1:], strict=True))
    return {"checkpoint_bytes": size, "build_s": wall, "cpu_s": cpu, "peak_rss_gb": memory}


class Theirs:
    """The same checkpoint in transformers; its processor, with the image half in Pillow, is retold from its parts."""

    def __init__(self, path: Path, threads: int) -> None:
        import torch
        import transformers
        from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

        torch.set_num_threads(threads)
        self._torch = torch
        self._images = SmolVLMImageProcessorPil.from_pretrained(path)
        self._words = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"))
        self._model = transformers.SmolVLMForConditionalGeneration.from_pretrained(
            path, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()

    def first_token(self, image: Image.Image) -> tuple[float, int]:
        """Milliseconds to the first token, and the token."""
        from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

        start = time.perf_counter()
        seen = self._images([[image]], return_tensors="pt", return_row_col_info=True)
        rows, columns = seen.pop("rows")[0][0], seen.pop("cols")[0][0]
        length = self._model.model.image_seq_len
        text = get_image_prompt_string(rows, columns, length, AROUND, "<image>", WHOLE)
        inputs = self._words(PROMPT.replace("<image>", text), return_tensors="pt")
        with self._torch.inference_mode():
            ids = self._model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                pixel_values=seen["pixel_values"],
                max_new_tokens=1,
                do_sample=False,
            )
        return 1e3 * (time.perf_counter() - start), int(ids[0, -1])


def answer_times(shape: str, rounds: int, threads: int) -> dict[str, Any]:
    """Times to the first token of one shape, interleaved."""
    coarse = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint"
        path.mkdir()
        write_checkpoint(path, shape, seed=0)
        trtprune.build(str(path), Path(folder) / "out", method="divprune", dtype="float32", keep=64)
        vlm, theirs = trtprune.load(Path(folder) / "out", threads=threads), Theirs(path, threads)
        times: dict[str, list[float]] = defaultdict(list)
        for number in range(rounds + 1):
            found: dict[str, float] = {}
            for share in SHARES:
                start = time.perf_counter()
                ours = vlm.generate(image, PROMPT, keep_ratio=share, max_new_tokens=1, raw_prompt=True, ignore_eos=True)
                found[f"{share:.0%}"] = 1e3 * (time.perf_counter() - start)
                if share == 1:
                    tokens, first = ours.visual_tokens, ours.token_ids[0]
            found["transformers"], other = theirs.first_token(image)
            assert first == other, "another first token than in transformers"
            if number:  # the first round warms up
                for name, value in found.items():
                    times[name].append(value)
    ratios = {
        name: round(statistics.median(b / a for a, b in zip(values, times["transformers"], strict=True)), 3)
        for name, values in times.items()
    }
    milliseconds = {name: summary(values) for name, values in times.items()}
    return {"shape": shape, "visual_tokens": tokens, "ms": milliseconds, "times_as_fast_as_transformers": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="256m,500m,2.2b,8b", help="see benchmarks/_smolvlm.py")
    parser.add_argument("--answers", default="small", help="the shape whose answers are timed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    result: dict[str, Any] = {"command": f"python {' '.join(sys.argv)}", "machine": machine(), "builds": {}}
    for shape in filter(None, arguments.shapes.split(",")):
        result["builds"][shape] = build_times(shape, arguments.rounds)
        print(shape, result["builds"][shape])
    if arguments.answers:
        result["answers"] = answer_times(arguments.answers, arguments.rounds, arguments.threads)
        print(result["answers"])
    if arguments.json is not None:
        write_json(arguments.json, result)


if __name__ == "__main__":
    main()
