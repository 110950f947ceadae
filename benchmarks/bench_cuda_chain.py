"""The whole chain beside transformers on one device: time to first token, ms a token, KV cache; and is it right?

    python benchmarks/bench_cuda_chain.py [--shape 7b] [--provider cuda] [--json benchmarks/results/cuda-chain.json]

A checkpoint of the shape of llava-1.5-7b with made-up weights is written where --folder says (14 GB), built in float16
and answered at several budgets; transformers runs the same weights in bfloat16 with sdpa attention and all visual
tokens. One process, all contenders in turn each round, medians over rounds; ratios are taken round by round.

Time to first token runs from normalised pixels to one new token: preparing the picture, on the CPU in both, is given
beside it. Milliseconds a token come from the difference between many new tokens and one. First of all the logits behind
the prompt are compared with transformers in float32, at each budget, with the rows that pruning dropped left out there.

--shape tiny --provider cpu runs the same code in seconds anywhere; --backend tensorrt or tensorrt-rtx measures engines.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _checkpoints import SHAPES, checkpoint_in, prompt, weight_bytes, write_checkpoint
from _machine import machine, summary, write_json
from PIL import Image

KEEPS = {"tiny": [16, 8, 4], "1b": [576, 192, 128, 64], "7b": [576, 192, 128, 64]}
SCENE = Path(__file__).resolve().parent.parent / "examples" / "scene.png"
# float16 and bfloat16 round at 2^-11 and 2^-8 in every one of dozens of layers; a wrong mask or row gives about 1.
MOST_ERROR = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}


@dataclass(frozen=True)
class Answer:
    """Milliseconds of one answer: in all, and of that for preparing the picture; and the bytes of its KV cache."""

    total: float
    prepare: float
    kv_bytes: int

    @property
    def rest(self) -> float:
        """Milliseconds from normalised pixels on."""
        return self.total - self.prepare


Contender = Callable[[int], Answer]


class Ours:
    """An engine directory, loaded."""

    def __init__(self, out: Path, provider: str, threads: int | None, text: str, image: Image.Image) -> None:
        import trtprune

        start = time.perf_counter()
        engines = json.loads((out / "config.json").read_text())["backend"] != "onnxruntime"
        settings: dict[str, Any] = {} if engines else {"provider": provider, "threads": threads}
        self.vlm = trtprune.load(out, verify="fast", **settings)
        self.load_s = time.perf_counter() - start
        self._text, self._image = text, image

    def answer(self, keep: int, tokens: int) -> tuple[Answer, Any]:
        """One answer of so many tokens, whatever they are."""
        start = time.perf_counter()
        result = self.vlm.generate(
            self._image, self._text, raw_prompt=True, keep=keep, max_new_tokens=tokens, ignore_eos=True
        )
        total = 1e3 * (time.perf_counter() - start)
        assert len(result.token_ids) == tokens
        return Answer(total, result.timings["preprocess"], result.kv_cache_bytes), result

    def logits(self, keep: int) -> tuple[np.ndarray, list[int]]:
        """Logits float32 [V] behind the prompt, and which visual tokens were kept."""
        decoder: Any = self.vlm.pipeline.decoder
        prefill, seen = decoder.prefill, []

        def record(*arguments: Any, **named: Any) -> Any:
            seen.append(prefill(*arguments, **named))
            return seen[-1]

        decoder.prefill = record
        try:
            _, result = self.answer(keep, 1)
        finally:
            decoder.prefill = prefill
        return np.asarray(seen[0].logits[0], np.float32), result.kept_indices[0]


class Theirs:
    """The checkpoint in transformers."""

    def __init__(self, checkpoint: Path, dtype: str, device: str, ours: Ours, text: str, image: Image.Image) -> None:
        import torch
        from transformers import LlavaForConditionalGeneration

        place = {"device_map": device} if device != "cpu" else {}
        self.model = LlavaForConditionalGeneration.from_pretrained(
            checkpoint, dtype=getattr(torch, dtype), attn_implementation="sdpa", **place
        ).eval()
        self._device, self._ours, self._image = device, ours, image
        ids = ours.vlm.encoder.encode([_turn(text)], raw=True).ids
        place_of = int(np.flatnonzero(ids == ours.vlm.config.model.image_token_id)[0])
        visual = np.full(ours.vlm.config.model.visual_tokens, ids[place_of])
        self._at = place_of
        self._ids = torch.tensor(np.concatenate([ids[:place_of], visual, ids[place_of + 1 :]]))[None]
        self._kv = ours.vlm.config.kv

    def answer(self, tokens: int) -> Answer:
        """One answer of so many tokens, with every visual token."""
        import torch

        start = time.perf_counter()
        # The same preparation for both, so that the difference is the models'.
        pixels = self._ours.vlm.pipeline.processor.prepare(self._image).pixel_values
        prepare = 1e3 * (time.perf_counter() - start)
        with torch.inference_mode():
            ids = self._ids.to(self._device)
            self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values=torch.from_numpy(pixels).to(self._device, self.model.dtype),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
            ).cpu()
        total = 1e3 * (time.perf_counter() - start)
        per_token = 2 * self._kv.num_layers * self._kv.num_kv_heads * self._kv.head_dim * self.model.dtype.itemsize
        return Answer(total, prepare, per_token * (ids.shape[1] + tokens - 1))

    def logits(self, kept: Sequence[int]) -> np.ndarray:
        """Logits float32 [V] behind the prompt, when only these visual tokens are there."""
        import torch

        with torch.inference_mode():
            pixels = torch.from_numpy(self._ours.vlm.pipeline.processor.prepare(self._image).pixel_values)
            features = self.model.model.get_image_features(pixel_values=pixels.to(self._device, self.model.dtype))
            features = getattr(features, "pooler_output", features)  # what it returns depends on the release
            rows = torch.as_tensor(features[0], device=self._device)[list(kept)]
            ids, count = self._ids[0].to(self._device), len(self._ids[0])
            end = self._at + self._ours.vlm.config.model.visual_tokens
            embed = self.model.get_input_embeddings()
            parts = [embed(ids[: self._at]), rows.to(self.model.dtype), embed(ids[end:count])]
            embeds = torch.cat(parts)[None]
            mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=self._device)
            out = self.model(inputs_embeds=embeds, attention_mask=mask, logits_to_keep=1, use_cache=True)
        return out.logits[0, -1].float().cpu().numpy()


def _turn(text: str) -> Any:
    from trtprune.text.template import Turn

    return Turn("user", text, 1)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Norm of the difference over the norm of what is expected; infinite if a number is not finite."""
    error = float(np.linalg.norm(found.astype(np.float64) - expected) / np.linalg.norm(expected.astype(np.float64)))
    return error if np.isfinite(error) else float("inf")


def check(ours: Ours, keeps: Sequence[int], reference: Theirs, other: Theirs | None) -> list[dict[str, Any]]:
    """Errors of the logits at each budget against ``reference``; those of ``other`` beside them."""
    rows = []
    for keep in keeps:
        found, kept = ours.logits(keep)
        expected = reference.logits(kept)
        row = {"keep": keep, "relative_error": relative_error(found, expected)}
        row["same_first_token"] = bool(found.argmax() == expected.argmax())
        if other is not None:
            row["relative_error_of_transformers"] = relative_error(other.logits(kept), expected)
        rows.append(row)
    return rows


def placement(folder: Path, provider: str) -> dict[str, dict[str, dict[str, int]]]:
    """Component → provider → operator → nodes, of the tiny shape (its operators are those of the others)."""
    import trtprune
    from trtprune.backends.onnxruntime import OrtBackend
    from trtprune.engine_dir import open_engine_dir

    class Watched(OrtBackend):
        found: dict[str, dict[str, dict[str, int]]]

        def _configure(self, options: Any) -> Any:
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
            return super()._configure(options)

        def inference_session(self, model: bytes, onnx_path: Path, **settings: Any) -> Any:
            session = super().inference_session(model, onnx_path, **settings)
            parts: dict[str, dict[str, int]] = {}
            for part in session.get_provider_graph_assignment_info():
                ops = parts.setdefault(part.ep_name, {})
                for node in part.get_nodes():
                    ops[node.op_type] = ops.get(node.op_type, 0) + 1
            self.found[onnx_path.stem] = parts
            return session

    checkpoint, out = folder / "placement", folder / "placement-out"
    checkpoint.mkdir(exist_ok=True)
    write_checkpoint(checkpoint, "tiny", seed=0)
    trtprune.build(checkpoint, out, keep=4, provider=provider, force=True)
    made, backend = open_engine_dir(out, verify="none"), Watched(provider)
    backend.found = {}
    for component in made.components:
        backend.session(component, made.root)
    return backend.found


def measure(contenders: dict[str, Contender], rounds: int, steps: int, baseline: str) -> dict[str, Any]:
    """All contenders in turn each round; medians, and ratios to ``baseline`` round by round."""
    first: dict[str, list[float]] = {name: [] for name in contenders}
    token: dict[str, list[float]] = {name: [] for name in contenders}
    prepare: dict[str, list[float]] = {name: [] for name in contenders}
    kv: dict[str, int] = {}
    for number in range(rounds + 1):
        for name, answer in contenders.items():
            one, many = answer(1), answer(1 + steps)
            if number:  # round 0 warms up
                first[name].append(one.rest)
                token[name].append((many.rest - one.rest) / steps)
                prepare[name].append(one.prepare)
            kv[name] = many.kv_bytes
    rows: dict[str, Any] = {}
    for name in contenders:
        ratios = {
            what: round(statistics.median(b / a for a, b in zip(own[name], own[baseline], strict=True)), 3)
            for what, own in (("ttft", first), ("ms_per_token", token))
        }
        rows[name] = {
            "ttft_times_faster": ratios["ttft"],
            "token_times_faster": ratios["ms_per_token"],
            "kv_bytes_ratio": round(kv[baseline] / kv[name], 3),
            "ttft_ms": summary(first[name]),
            "ms_per_token": summary(token[name]),
            "prepare_picture_ms": summary(prepare[name]),
            "kv_bytes": kv[name],
        }
    return rows


def build(checkpoint: Path, out: Path, given: argparse.Namespace, keeps: Sequence[int]) -> None:
    """The engine directory, for all these budgets."""
    import trtprune

    settings: dict[str, Any] = {"dtype": given.dtype, "keep": min(keeps), "keep_range": (min(keeps), max(keeps))}
    settings["lowering"] = dict(pair.split("=", 1) for pair in given.lowering)
    if given.backend == "onnxruntime":
        settings["provider"] = given.provider
    else:
        from trtprune.compiler.engine_options import EngineOptions

        targets = (given.compute_capability,) if given.backend == "tensorrt-rtx" else ()
        settings["backend"] = given.backend
        settings["engine"] = EngineOptions(
            max_input_len=given.words + 2, attention=given.attention, compute_capability=targets
        )
    if given.max_seq_len:
        settings["max_seq_len"] = given.max_seq_len
    trtprune.build(checkpoint, out, method=given.method, force=True, **settings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="7b")
    parser.add_argument("--backend", choices=["onnxruntime", "tensorrt", "tensorrt-rtx"], default="onnxruntime")
    parser.add_argument("--provider", choices=["cpu", "cuda"], default="cuda", help="of ONNX Runtime; else the device")
    parser.add_argument("--compute-capability", default="current", help="with --backend tensorrt-rtx")
    parser.add_argument("--dtype", default="float16", help="of the build")
    parser.add_argument("--baseline-dtype", default="bfloat16", help="of transformers")
    parser.add_argument("--attention", default="fused", help="of engines, as for trtprune build")
    parser.add_argument("--lowering", action="append", default=[], help="NAME=FORM, as for trtprune build; repeatable")
    parser.add_argument("--max-seq-len", type=int, help="KV capacity")
    parser.add_argument("--method", default="adafv")
    parser.add_argument("--keep", type=int, nargs="*")
    parser.add_argument("--words", type=int, default=60, help="text tokens of the prompt")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--folder", type=Path, help="for the checkpoint and the build; kept. Default: a temporary one")
    parser.add_argument("--json", type=Path)
    return parser


def run(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Writes, builds, checks, measures."""
    device = "cuda" if given.provider == "cuda" else "cpu"
    keeps = given.keep or KEEPS[given.shape]
    image, text = Image.open(SCENE).convert("RGB"), prompt(given.words)
    start = time.perf_counter()
    checkpoint, out = checkpoint_in(folder, given.shape), folder / f"out-{given.backend}-{given.shape}"
    print(
        f"checkpoint of {weight_bytes(given.shape) / 1e9:.1f} GB after {time.perf_counter() - start:.0f} s", flush=True
    )
    result: dict[str, Any] = {"machine": machine(), "settings": {k: str(v) for k, v in vars(given).items()}}
    if given.backend == "onnxruntime":
        result["placement_of_tiny_shape"] = found = placement(folder, given.provider)
        for name, parts in found.items():
            print(f"{name:<8}", {provider: sum(ops.values()) for provider, ops in parts.items()}, flush=True)
    start = time.perf_counter()
    build(checkpoint, out, given, keeps)
    result["build_s"] = round(time.perf_counter() - start, 2)
    ours = Ours(out, given.provider, given.threads, text, image)
    result["load_s"] = round(ours.load_s, 2)
    print(f"built in {result['build_s']} s, loaded in {result['load_s']} s", flush=True)
    theirs = Theirs(checkpoint, given.baseline_dtype, device, ours, text, image)
    reference = Theirs(checkpoint, "float32", device, ours, text, image)
    result["logits_against_transformers_float32"] = errors = check(ours, keeps, reference, theirs)
    del reference
    for row in errors:
        print({k: f"{v:.2e}" if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    wrong = [row["keep"] for row in errors if not row["relative_error"] <= MOST_ERROR[given.dtype]]
    result["logits_ok"] = not wrong
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()
    baseline = f"transformers {given.baseline_dtype}"
    contenders: dict[str, Contender] = {baseline: theirs.answer}
    for keep in keeps:
        contenders[f"trtprune {given.dtype} keep {keep}"] = lambda tokens, k=keep: ours.answer(k, tokens)[0]
    result["rows"] = measure(contenders, given.rounds, given.steps, baseline)
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    given = _parser().parse_args(arguments)
    if given.provider == "cuda":
        from _gpu_bench import need_gpu

        need_gpu("bench_cuda_chain.py")  # also loads the CUDA libraries that torch brings, for ONNX Runtime to find
    if given.folder is not None:
        given.folder.mkdir(parents=True, exist_ok=True)
        result = run(given, given.folder)
    else:
        with tempfile.TemporaryDirectory() as name:
            result = run(given, Path(name))
    width = max(map(len, result["rows"]))
    print(f"{'times transformers:':<{width}}  TTFT  token   KV    TTFT ms  ms/token  KV MB")
    for name, row in result["rows"].items():
        print(
            f"{name:<{width}} {row['ttft_times_faster']:5.2f} {row['token_times_faster']:6.2f} "
            f"{row['kv_bytes_ratio']:5.2f} {row['ttft_ms']['median']:9.2f} {row['ms_per_token']['median']:9.2f} "
            f"{row['kv_bytes'] / 1e6:7.1f}"
        )
    if given.json:
        write_json(given.json, {"command": "python benchmarks/bench_cuda_chain.py", **result})
    if not result["logits_ok"]:
        raise SystemExit("the logits are not those of transformers; the times above mean nothing")


if __name__ == "__main__":
    main()
