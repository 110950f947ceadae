"""Train the demo model's projector and LoRA deltas on CPU; resumable.

    python examples/demo_training/train.py --onnx vit_s_focus.onnx --gguf SmolLM2-135M-Instruct.Q4_1.gguf \\
        --work runs/demo --steps 1600

First the projector alone (``align.py``, four minutes), then projector and deltas on answers. The schedule (learning
rate, resolutions) follows the share of ``--steps`` that is done, so a killed run continues where it was if started
with the same arguments. ``runs/demo`` gets ``state.pt`` (to resume), ``trained.safetensors`` (what ``export.py``
takes) and ``log.csv``.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import check_packages  # noqa: F401  before torch
import torch
import torch.nn.functional as F
from align import align
from data import Batch, Prompts, Source, collate
from model import DemoVlm, trainable
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from trtprune.demo import _text, scenes

# Share of the run → odds of (112, 168, 224, 336 pixels) = (64, 144, 256, 576 visual tokens), and the share of
# descriptions among a scene's questions.
SIZES = (112, 168, 224, 336)
SCHEDULE = (
    (0.35, (0.05, 0.90, 0.05, 0.00), 0.5),
    (0.60, (0.05, 0.50, 0.35, 0.10), 0.3),
    (1.01, (0.05, 0.20, 0.30, 0.45), 0.2),
)
ROWS = {112: 4, 168: 3, 224: 2, 336: 2}
QUESTIONS = {112: 8, 168: 16, 224: 18, 336: 20}
TWO_IMAGES = 0.06
EVALS = (
    "easy_open", "easy_closed", "small_color", "small_shape", "small_position",
    "large_color", "large_shape", "large_position", "count", "presence",
)  # fmt: skip


def embed(model: DemoVlm, batch: Batch) -> Tensor:
    """Token embeddings with the projected patches in the image slots, ``[b, l, 576]``."""
    visual = model.projector(model.features(batch.pixels)).to(model.dtype)
    embeds = F.embedding(batch.ids, model.table).to(model.dtype)
    return embeds.masked_scatter(batch.image[..., None], visual.reshape(-1, visual.shape[-1]))


def logits(model: DemoVlm, batch: Batch) -> Tensor:
    """Logits of the answer positions only, float32 ``[n, 49152]`` (the head is a fifth of the cost otherwise)."""
    hidden = model.hidden(embed(model, batch), batch.positions, batch.mask)
    return F.linear(hidden[batch.rows, batch.columns], model.table.to(model.dtype)).float()


def draw(source: Source, prompts: Prompts, progress: float, scene_share: float) -> tuple[list[Batch], int]:
    """A step's batches at a resolution drawn from the schedule, and that resolution.

    At 336 pixels every picture is a batch of its own: two at once keep 9 GB of attention weights for the backward pass.
    """
    odds, described = next((o, d) for limit, o, d in SCHEDULE if progress < limit)
    size = source.rng.choices(SIZES, odds)[0]
    # At 112 pixels half of a scene's objects own not even one patch.
    scene_share = scene_share if size > 112 else 0.0
    two = size <= 168 and source.rng.random() < TWO_IMAGES
    rows = []
    for _ in range(max(1, ROWS[size] // 2) if two else ROWS[size]):
        examples = [source.draw(scene_share, QUESTIONS[size], described) for _ in range(1 + two)]
        questions = [(source.vary(q), a) for q, a in examples[0].questions]
        if two:
            questions = []
            for place, example in zip(("first", "second"), examples, strict=True):
                half = example.questions[: QUESTIONS[size] // 2]
                questions += [(f"In the {place} picture, {q}", a) for q, a in half]
        rows.append(([e.image for e in examples], questions))
    parts = [[row] for row in rows] if size == 336 else [rows]
    return [collate(prompts, part, size) for part in parts], size


@torch.no_grad()
def accuracy(model: DemoVlm, prompts: Prompts, source: Source, count: int, size: int) -> dict[str, float]:
    """Exact-match rates on pictures never trained on (every answer token is the arg max), by what is asked.

    Both sets are kept back from the training splits, so that nothing is chosen by the test splits.
    """
    rng = random.Random(5)
    rows: list[tuple[Image.Image, list[tuple[str, str]], list[str]]] = []
    for path, questions in source.held[:count]:
        kinds = ["easy_closed" if a in ("yes", "no") else "easy_open" for _, a in questions]
        rows.append((Image.open(path), questions, kinds))
    for number in range(count):
        scene = scenes.generate(-1 - number, split="train")  # the seeds trained on are positive
        asked = rng.sample(scene.questions, min(16, len(scene.questions)))
        rows.append((scene.image, [(q.text, q.answer) for q in asked], [label(q) for q in asked]))
    right: dict[str, list[bool]] = {kind: [] for kind in EVALS}
    for image, pairs, kinds in rows:
        batch = collate(prompts, [([image], pairs)], size)
        hit = logits(model, batch).argmax(-1) == batch.targets
        for number, kind in enumerate(kinds):
            right[kind].append(bool(hit[batch.question == number].all()))
    return {kind: round(sum(values) / max(1, len(values)), 4) for kind, values in right.items()}


def label(question: scenes.SceneQuestion) -> str:
    """The column of the log: "small_color" if the asked object is not the largest, "large_color", "count", …"""
    if question.kind in ("count", "presence"):
        return question.kind
    return f"{'large' if question.salient else 'small'}_{question.kind}"


def rate(progress: float, step: int) -> float:
    """Warm-up over 30 steps, flat up to 65 % of the run, then linear to 2 %."""
    decay = 1.0 if progress < 0.65 else max(0.02, 1.0 - (progress - 0.65) / 0.35)
    return min(1.0, (step + 1) / 30) * decay


def save(path: Path, write: Callable[[Path], None]) -> None:
    """Write beside the target and rename: a killed run leaves the last complete checkpoint."""
    part = path.with_suffix(".part")
    write(part)
    os.replace(part, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--onnx", type=Path, required=True)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1600, help="of the whole run, which the schedule follows")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scene-share", type=float, default=0.85)
    parser.add_argument("--projector-lr", type=float, default=3e-4)
    parser.add_argument("--lora-lr", type=float, default=1e-3)
    parser.add_argument("--eval-steps", type=int, default=100)
    parser.add_argument("--align-pictures", type=int, default=400, help="scenes for the projector's first stage")
    parser.add_argument("--pause", type=Path, help="while this file exists: save, then wait")
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
        align(model, prompts, source, pictures=args.align_pictures)
    log = args.work / "log.csv"
    fields = ["step", "minutes", "size", "loss", "hit", "lr", "seconds"]
    if not log.exists():
        log.write_text(",".join([*fields, *EVALS]) + "\n")

    def checkpoint() -> None:
        weights = {k: v.contiguous() for k, v in trainable(model).items()}
        state = {"model": weights, "optimizer": optimizer.state_dict(), "step": step, "trained": trained}
        save(state_path, lambda part: torch.save(state, part))
        save(args.work / "trained.safetensors", lambda part: save_file(weights, part))

    recent: list[tuple[float, float]] = []
    checkpoint()
    while step < args.steps:
        if args.pause and args.pause.exists():
            checkpoint()
            while args.pause.exists():
                time.sleep(2)
        started, progress = time.perf_counter(), step / args.steps
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * rate(progress, step)
        batches, size = draw(source, prompts, progress, args.scene_share)
        for batch in batches:
            scores = logits(model, batch)
            loss = F.cross_entropy(scores, batch.targets)
            (loss / len(batches)).backward()
            recent.append((float(loss.detach()), float((scores.argmax(-1) == batch.targets).float().mean())))
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - started
        trained += seconds
        step += 1
        due = step % args.eval_steps == 0 or step == args.steps
        if step % 10 == 0 or due:
            row: dict[str, float] = {
                "step": step,
                "minutes": round(trained / 60, 2),
                "size": size,
                "loss": round(sum(r[0] for r in recent) / len(recent), 4),
                "hit": round(sum(r[1] for r in recent) / len(recent), 4),
                "lr": round(rate(progress, step), 3),
                "seconds": round(seconds, 2),
            }
            recent.clear()
            if due:
                row |= accuracy(model, prompts, source, args.eval_count, 336)
            with log.open("a", newline="") as file:
                csv.DictWriter(file, [*fields, *EVALS], restval="").writerow(row)
            print(row, flush=True)
        if step % 25 == 0 or due:
            checkpoint()


if __name__ == "__main__":
    main()
