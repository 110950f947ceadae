"""Train the demo model's projector and LoRA deltas on CPU; resumable, and paced by time instead of step counts.

    python examples/demo_training/train.py --onnx vit_s_focus.onnx --gguf SmolLM2-135M-Instruct.Q4_1.gguf \\
        --work runs/demo --minutes 80

The schedule (learning rate, resolutions) follows the share of ``--minutes`` that has been trained, summed over
restarts, so the same script makes good use of ten minutes or of ten hours. ``runs/demo`` gets ``state.pt`` (to
resume), ``trained.safetensors`` (what ``export.py`` takes) and ``log.csv``.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from data import Batch, Prompts, Source, collate, pixels
from model import DemoVlm, trainable
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from trtprune.demo import _text, scenes

# Share of the run → odds of (112, 168, 224, 336 pixels) = (64, 144, 256, 576 visual tokens).
SIZES = (112, 168, 224, 336)
SCHEDULE = ((0.45, (0.70, 0.20, 0.05, 0.05)), (0.55, (0.40, 0.20, 0.15, 0.25)), (1.01, (0.10, 0.25, 0.25, 0.40)))
ROWS = {112: 5, 168: 4, 224: 2, 336: 2}
QUESTIONS = {112: 6, 168: 12, 224: 14, 336: 16}
# At 112 pixels most objects of a scene are smaller than two patches.
SCENE_SHARE = {112: 0.3, 168: 1.0, 224: 1.0, 336: 1.0}
TWO_IMAGES = 0.06
MICRO_BATCHES = 1


def embed(model: DemoVlm, batch: Batch) -> Tensor:
    """Token embeddings with the projected patches in the image slots, ``[b, l, 576]``."""
    visual = model.projector(model.features(batch.pixels)).to(model.dtype)
    embeds = F.embedding(batch.ids, model.table).to(model.dtype)
    return embeds.masked_scatter(batch.image[..., None], visual.reshape(-1, visual.shape[-1]))


def logits(model: DemoVlm, batch: Batch) -> Tensor:
    """Logits of the answer positions only, float32 ``[n, 49152]`` (the head is a fifth of the cost otherwise)."""
    hidden = model.hidden(embed(model, batch), batch.positions, batch.mask)
    return F.linear(hidden[batch.rows, batch.columns], model.table.to(model.dtype)).float()


def draw(source: Source, prompts: Prompts, progress: float, scene_share: float) -> tuple[Batch, int]:
    """One micro-batch at a resolution drawn from the schedule, and that resolution."""
    odds = next(o for limit, o in SCHEDULE if progress < limit)
    size = source.rng.choices(SIZES, odds)[0]
    two = size <= 168 and source.rng.random() < TWO_IMAGES
    rows = []
    for _ in range(max(1, ROWS[size] // 2) if two else ROWS[size]):
        examples = [source.draw(scene_share * SCENE_SHARE[size], QUESTIONS[size]) for _ in range(1 + two)]
        questions = [(source.vary(q), a) for q, a in examples[0].questions]
        if two:
            questions = []
            for place, example in zip(("first", "second"), examples, strict=True):
                half = example.questions[: QUESTIONS[size] // 2]
                questions += [(f"In the {place} picture, {q}", a) for q, a in half]
        rows.append(([e.image for e in examples], questions))
    return collate(prompts, rows, size), size


@torch.no_grad()
def accuracy(model: DemoVlm, prompts: Prompts, source: Source, count: int, size: int) -> dict[str, float]:
    """Exact-match rates on held-back training images and held-out scenes (every answer token is the arg max)."""
    rng = random.Random(5)
    sets = {"easy": [], "scenes": []}
    for path, questions in source.held[:count]:
        sets["easy"].append(([Image.open(path)], questions))
    for seed in range(count):
        scene = scenes.generate(seed, split="test")
        pool = [(q.text, q.answer) for q in scene.questions]
        sets["scenes"].append(([scene.image], rng.sample(pool, min(10, len(pool)))))
    rates: dict[str, float] = {}
    for name, rows in sets.items():
        right: dict[str, list[bool]] = {"open": [], "closed": []}
        for row in rows:
            batch = collate(prompts, [row], size)
            hit = logits(model, batch).argmax(-1) == batch.targets
            for number, (_, answer) in enumerate(row[1]):
                kind = "closed" if answer in ("yes", "no") else "open"
                right[kind].append(bool(hit[batch.question == number].all()))
        for kind, values in right.items():
            rates[f"{name}_{kind}"] = round(sum(values) / max(1, len(values)), 4)
    return rates


def rate(progress: float, step: int) -> float:
    """Warm-up over 40 steps, flat up to 62 % of the run, then linear to 2 %."""
    decay = 1.0 if progress < 0.62 else max(0.02, 1.0 - (progress - 0.62) / 0.38)
    return min(1.0, (step + 1) / 40) * decay


def save(path: Path, state: object) -> None:
    """Write beside the target and rename: a killed run leaves the last complete checkpoint."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--onnx", type=Path, required=True)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=80.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scene-share", type=float, default=0.45)
    parser.add_argument("--projector-lr", type=float, default=1e-3)
    parser.add_argument("--lora-lr", type=float, default=6e-4)
    parser.add_argument("--eval-minutes", type=float, default=10.0)
    parser.add_argument("--max-steps", type=int, default=1_000_000)
    parser.add_argument("--eval-count", type=int, default=24, help="pictures a set in the log's running accuracy")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    model = DemoVlm(args.onnx, args.gguf)
    prompts = Prompts(Tokenizer.from_str(_text.build_tokenizer(args.gguf)))
    parameters = {k: v for k, v in model.named_parameters() if v.requires_grad}
    assert all(k.startswith("projector.") or k.endswith((".a", ".b")) for k in parameters), "something else trains"
    groups = [
        {"params": [v for k, v in parameters.items() if k.startswith("projector.")], "base": args.projector_lr},
        {"params": [v for k, v in parameters.items() if not k.startswith("projector.")], "base": args.lora_lr},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), weight_decay=0.01, foreach=True)
    state_path, step, trained = args.work / "state.pt", 0, 0.0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        model.load_state_dict(state["model"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
        step, trained = state["step"], state["trained"]
    source = Source(args.seed + step)  # a restart continues with new pictures, not with the first ones again
    if not state_path.exists():
        sample = [source.easy_example(1).image for _ in range(48)]
        if args.scene_share > 0:
            sample[24:] = [source.scene_example(1).image for _ in range(24)]
        stack = torch.cat([model.features(pixels(i, s)[None]).float()[0] for i in sample for s in (112, 336)])
        model.projector.mean.copy_(stack.mean(0))
        model.projector.std.copy_(stack.std(0) + 1e-6)
    log = args.work / "log.csv"
    fields = ["step", "minutes", "size", "loss", "hit", "lr", "seconds"]
    evals = ["easy_open", "easy_closed", "scenes_open", "scenes_closed"]
    if not log.exists():
        log.write_text(",".join(fields + evals) + "\n")
    recent: list[tuple[float, float, float]] = []
    last_save = last_eval = trained
    while trained < 60 * args.minutes and step < args.max_steps:
        started, progress = time.perf_counter(), trained / (60 * args.minutes)
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * rate(progress, step)
        size = 0
        for _ in range(MICRO_BATCHES):
            batch, size = draw(source, prompts, progress, args.scene_share)
            scores = logits(model, batch)
            loss = F.cross_entropy(scores, batch.targets)
            (loss / MICRO_BATCHES).backward()
            hit = (scores.argmax(-1) == batch.targets).float().mean()
            recent.append((float(loss.detach()), float(hit), 0.0))
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - started
        trained += seconds
        step += 1
        due = trained - last_eval > 60 * args.eval_minutes or trained >= 60 * args.minutes
        if step % 10 == 0 or due:
            count = len(recent)
            row = {
                "step": step,
                "minutes": round(trained / 60, 2),
                "size": size,
                "loss": round(sum(r[0] for r in recent) / count, 4),
                "hit": round(sum(r[1] for r in recent) / count, 4),
                "lr": round(rate(progress, step), 3),
                "seconds": round(seconds, 2),
            }
            recent.clear()
            if due:
                row |= accuracy(model, prompts, source, args.eval_count, 336)
                last_eval = trained
            with log.open("a", newline="") as file:
                csv.DictWriter(file, fields + evals, restval="").writerow(row)
            print(row, flush=True)
        if trained - last_save > 120 or due:
            last_save = trained
            weights = {k: v.contiguous() for k, v in trainable(model).items()}
            save(
                state_path,
                {"model": weights, "optimizer": optimizer.state_dict(), "step": step, "trained": trained},
            )
            save_file(weights, args.work / "trained.safetensors.part")
            os.replace(args.work / "trained.safetensors.part", args.work / "trained.safetensors")


if __name__ == "__main__":
    main()
