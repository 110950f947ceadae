"""Time to first token and tokens per second of the demo model, beside transformers on the same machine.

    python benchmarks/bench_demo_speed.py [--rounds 7] [--json benchmarks/results/demo-speed.json]

One process, all contenders in turn each round, medians over rounds; ratios are taken round by round and then their
median, because the speed of a shared machine drifts. Time to first token is wall time from a picture in memory to one
new token (preprocessing included, for both); tokens per second from the difference between 33 tokens and 1.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _machine import machine, summary
from PIL import Image

PROMPT = "What is the color of the largest shape?"
STEPS = 32
Answer = Callable[[int], Any]


def contenders(threads: int, keeps: list[int], method: str, image: Image.Image) -> dict[str, Answer]:
    """Name → function that generates so many tokens, ignoring end-of-sequence."""
    import torch
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    import trtprune
    from trtprune.demo.assemble import assemble

    torch.set_num_threads(threads)
    checkpoint = assemble()
    found: dict[str, Answer] = {}
    processor = AutoProcessor.from_pretrained(checkpoint)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)

    def torch_answer(model: Any) -> Answer:
        @torch.inference_mode()
        def answer(tokens: int) -> None:
            inputs = processor(images=image, text=text, return_tensors="pt")
            inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
            model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)

        return answer

    for name, dtype in (("transformers float32", torch.float32), ("transformers bfloat16", torch.bfloat16)):
        model = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=dtype).eval()
        found[name] = torch_answer(model)

    folder = Path(tempfile.mkdtemp()) / "out"
    trtprune.build(checkpoint, folder, keep=64, method=method)
    vlm = trtprune.load(folder, threads=threads)

    def ours(keep: int) -> Answer:
        return lambda tokens: vlm.generate(image, PROMPT, keep=keep, max_new_tokens=tokens, ignore_eos=True)

    for keep in keeps:
        found[f"trtprune {method} keep {keep}"] = ours(keep)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--keep", type=int, nargs="*", default=[576, 192, 128, 64, 32])
    parser.add_argument("--method", default="adafv")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--image", type=Path, default=Path(__file__).parent.parent / "examples" / "scene.png")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    image = Image.open(arguments.image).convert("RGB")
    found = contenders(arguments.threads, arguments.keep, arguments.method, image)
    first: dict[str, list[float]] = {name: [] for name in found}
    rate: dict[str, list[float]] = {name: [] for name in found}
    for number in range(arguments.rounds + 1):
        for name, answer in found.items():
            start = time.perf_counter()
            answer(1)
            one = time.perf_counter() - start
            start = time.perf_counter()
            answer(1 + STEPS)
            many = time.perf_counter() - start
            if number:  # round 0 warms up
                first[name].append(1000 * one)
                rate[name].append(STEPS / max(many - one, 1e-9))
    base = first["transformers float32"]
    rows = {
        name: {
            "ttft_ms": summary(first[name]),
            "tokens_per_s": summary(rate[name]),
            "ttft_speedup_over_transformers_float32": round(
                statistics.median(b / a for a, b in zip(first[name], base, strict=True)), 2
            ),
        }
        for name in found
    }
    width = max(map(len, rows))
    print(f"{'':<{width}}  TTFT ms   tok/s  speed-up of TTFT over transformers float32")
    for name, row in rows.items():
        line = f"{row['ttft_ms']['median']:8.0f}{row['tokens_per_s']['median']:8.1f}"
        print(f"{name:<{width}} {line}  {row['ttft_speedup_over_transformers_float32']:.2f}x")
    result = {
        "command": f"python benchmarks/bench_demo_speed.py --rounds {arguments.rounds} --method {arguments.method}",
        "machine": machine(),
        "threads": arguments.threads,
        "rows": rows,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
