"""Time to the first token of a LLaVA-NeXT with all visual tokens of a large image, with few, and in transformers.

    python benchmarks/bench_tiles.py [--shape next-small] [--keep 640,320,160] [--rounds 5]
        [--methods adafv,fastervlm,…] [--json benchmarks/results/tiles.json]

The model has made-up weights in float32 and LLaVA-NeXT's crops: the image of 1000 × 1000 pixels is five crops and 2,928
visual tokens (2,880 patches and 48 newline tokens).  In each round all take turns: ours with all tokens and with each
budget, transformers with all tokens, and the pruner of each method on the features of the same image.  Ratios and
shares are taken round by round, medians over rounds.

The floor of a prefill is its operations: ``gflop`` of the decoder's prefill at each length, counted in its graph, and
what a product of two large matrices reaches on this machine, ``gflop_per_s``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _checkpoints import checkpoint_in, prompt
from _machine import machine, summary, write_json
from PIL import Image

import trtprune
from trtprune.engine_dir.roles import PACK
from trtprune.variants import parse_variants

SIZE = (1000, 1000)
WORDS = 32
METHODS = "fastervlm,adafv,zspaprune,visionzip,vispruner,divprune,mmtok,scope,dart,mmr"


def large_image() -> Image.Image:
    """A smooth random image."""
    coarse = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC)


class Theirs:
    """The same checkpoint in transformers.

    Args:
        path: The checkpoint.
        image: The image of the question.
        threads: CPU threads.
    """

    def __init__(self, path: Path, image: Image.Image, threads: int) -> None:
        import torch
        import transformers

        torch.set_num_threads(threads)
        self._torch, self._image = torch, image
        words = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"), pad_token="</s>")
        self._processor = transformers.LlavaNextProcessor.from_pretrained(
            path,
            tokenizer=words,
            image_processor=transformers.LlavaNextImageProcessorPil.from_pretrained(path),
            patch_size=14,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            image_token="<image>",
        )
        self._model = transformers.LlavaNextForConditionalGeneration.from_pretrained(
            path, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()

    def first_token(self) -> tuple[float, int, int]:
        """Milliseconds from the image to the first token, the prompt's length, and the token."""
        start = time.perf_counter()
        inputs = self._processor(images=self._image, text=prompt(WORDS), return_tensors="pt")
        with self._torch.inference_mode():
            ids = self._model.generate(**inputs, max_new_tokens=1, do_sample=False)
        length = int(inputs["input_ids"].shape[1])
        return 1e3 * (time.perf_counter() - start), length, int(ids[0, length])


def first_token(vlm: Any, image: Any, keep: int | None) -> Any:
    """The result of an answer of one token."""
    return vlm.generate(image, prompt(WORDS), keep=keep, max_new_tokens=1, raw_prompt=True, ignore_eos=True)


def pruner_time(vlm: Any, features: Any, embeds: np.ndarray, keep: int) -> float:
    """Milliseconds of the pruner alone."""
    pruner = vlm.pipeline.pruner
    start = time.perf_counter()
    pruner.prune(features, embeds if pruner.reads_embeds else None, keep, 0)
    return 1e3 * (time.perf_counter() - start)


def pack_time(vlm: Any, prepared: Any) -> float:
    """Milliseconds of the pack graph alone, on crop features of the right shape."""
    chain = vlm.chain
    component = chain.config.part(PACK)
    rng, rows = np.random.default_rng(0), {}
    for spec in component.inputs:
        if not spec.name.startswith("pack_"):
            rows[spec.name] = rng.standard_normal((prepared.plan.crops, *spec.shape[1:]), np.float32)
    start = time.perf_counter()
    chain._pack(rows, prepared.plan)
    return 1e3 * (time.perf_counter() - start)


def reached() -> float:
    """GFLOP/s of a product of two large matrices in ONNX Runtime's library of choice, NumPy's here."""
    one = np.random.default_rng(0).standard_normal((1536, 1536), np.float32)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        one @ one
        times.append(time.perf_counter() - start)
    return float(2 * 1536**3 / 1e9 / min(times))


def measure(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All numbers."""
    keeps = [int(part) for part in given.keep.split(",")]
    image, path = large_image(), checkpoint_in(folder, given.shape)

    def opened(name: str, method: str, options: dict[str, Any], keep: int | None) -> Any:
        out = folder / name
        trtprune.build(path, out, method=method, options=options, keep=keep, max_seq_len=4096, weights="link")
        return trtprune.load(out, threads=given.threads)

    whole = opened("whole", "none", {}, None)
    methods = {
        variant.label: opened(f"pruned-{number}", variant.method, dict(variant.options), keeps[0])
        for number, variant in enumerate(parse_variants(given.methods))
    }
    theirs = Theirs(path, image, given.threads)
    return _rounds(given.rounds, keeps, image, whole, methods, theirs)


def _rounds(rounds: int, keeps: Sequence[int], image: Any, whole: Any, methods: dict[str, Any], theirs: Theirs) -> Any:
    """All times, of each round."""
    first = next(iter(methods.values()))
    times: dict[Any, list[float]] = defaultdict(list)
    facts: dict[str, Any] = {}
    prepared = whole.pipeline.processor.prepare(image)
    views = {label: vlm.features([image])[0] for label, vlm in methods.items()}
    embeds = np.asarray(first.chain.embed(np.arange(3, 3 + WORDS)[None])[0])
    for number in range(rounds + 1):
        peer, length, token = theirs.first_token()
        mine = first_token(whole, image, None)
        row = {"transformers": peer, "ours": mine.timings["total"], "prefill": mine.timings["prefill"]}
        row |= {"prepare": mine.timings["preprocess"], "vision": mine.timings["vision"]}
        row["pack"] = pack_time(whole, prepared)
        facts = {"visual_tokens": mine.visual_tokens, "prompt_tokens": mine.prompt_tokens}
        assert (mine.prompt_tokens, mine.token_ids[0]) == (length, token), "the first tokens differ"
        for keep in keeps:
            pruned = first_token(first, image, keep)
            row |= {("ours", keep): pruned.timings["total"], ("prefill", keep): pruned.timings["prefill"]}
            row |= {(label, keep): pruner_time(vlm, views[label], embeds, keep) for label, vlm in methods.items()}
        if number:  # the first warms up
            for key, ms in row.items():
                times[key].append(ms)
    return facts | _table(times, keeps, list(methods))


def _ratio(above: Sequence[float], below: Sequence[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(above, below, strict=True)), 4)


def _table(times: dict[Any, list[float]], keeps: Sequence[int], labels: Sequence[str]) -> dict[str, Any]:
    names = ("transformers", "ours", "prefill", "vision", "prepare", "pack")
    rows = [
        {
            "keep": keep,
            "speedup_over_transformers": _ratio(times["transformers"], times["ours", keep]),
            "speedup_over_all_tokens": _ratio(times["ours"], times["ours", keep]),
            "first_token_ms": summary(times["ours", keep]),
            "prefill_ms": summary(times["prefill", keep]),
        }
        for keep in keeps
    ]
    shares = [
        {
            "method": label,
            "keep": keep,
            "share_of_prefill": _ratio(times[label, keep], times["prefill", keep]),
            "ms": summary(times[label, keep]),
        }
        for label in labels
        for keep in keeps
    ]
    return {
        "all_tokens": {
            "speedup_over_transformers": _ratio(times["transformers"], times["ours"]),
            "pack_share": _ratio(times["pack"], times["ours"]),
            "prepare_share": _ratio(times["prepare"], times["ours"]),
            **{f"{name}_ms": summary(times[name]) for name in names},
        },
        "pruned": rows,
        "pruners": shares,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="next-small", help="see benchmarks/_checkpoints.py")
    parser.add_argument("--keep", default="640,320,160")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(given, Path(folder))
    result = {
        "command": (
            f"python benchmarks/bench_tiles.py --shape {given.shape} --keep {given.keep} --rounds {given.rounds} "
            f"--methods {given.methods}"
        ),
        "machine": machine(),
        "threads": given.threads,
        "gflop_per_s": round(reached(), 1),
        **found,
    }
    all_tokens = result["all_tokens"]
    print(f"all {result['visual_tokens']} tokens  {all_tokens['speedup_over_transformers']:.2f} x transformers")
    for row in result["pruned"]:
        print(
            f"keep {row['keep']:>5}  {row['speedup_over_transformers']:.2f} x transformers  "
            f"{row['speedup_over_all_tokens']:.2f} x all tokens  {row['first_token_ms']['median']:8.1f} ms"
        )
    for row in result["pruners"]:
        print(f"{row['method']:<24}{row['keep']:>5}  {100 * row['share_of_prefill']:6.2f} % of the prefill it leaves")
    if given.json:
        write_json(given.json, result)


if __name__ == "__main__":
    main()
