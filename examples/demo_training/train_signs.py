"""Train what the demo model lacks to read digits: its projector and its q, k and v deltas, on CPU; resumable.

    python examples/demo_training/train_signs.py --onnx vit_s_focus.onnx --gguf SmolLM2-135M-Instruct.Q4_1.gguf \\
        --work runs/signs

Starts from the shipped weights.  First the projector alone: a plate's patches are regressed on the sum of the decoder's
word embeddings of its number, colour and place, while all other patches keep what they were mapped to.  Then projector
and deltas on answers.  A picture goes through the tower whole, but the decoder sees a window of its patches with the
questions about the plates in it, as 576 tokens a picture would take four times as long; towards the end it sees whole
pictures.  ``runs/signs`` gets ``state.pt``, ``log.csv`` and ``signs.safetensors``, which holds what differs from the
shipped weights and is what ``export.py`` takes.
"""

from __future__ import annotations

import argparse
import csv
import random
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import check_packages  # noqa: F401  before torch
import numpy as np
import torch
import torch.nn.functional as F
from align import NAMES, PLACES, SIDES, word_vectors
from data import Batch, Prompts, Source, collate, pixels
from model import DemoVlm
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from train import rate, save

from trtprune.demo import _safetensors, _text, scenes, signs
from trtprune.demo.assemble import TRAINED

GRID = scenes.SIZE // 14
WINDOWS = ((0.6, (11, 15)), (0.85, (14, 20)), (1.01, (GRID, GRID)))
"""Share of the run → sides of the window, in patches."""
ROWS = 4
SCENES = 0.25
"""Of the pictures; scenes keep what was learnt."""
NUMBER = 2.0
"""Weight of a number's embedding in the first stage, beside NAMES for a colour's: it is the harder one to see."""
CROWD = (6, 14)
"""Plates of a picture of the first stage, and of part of the second's."""
CROWDED = 0.8
TRAINED_GROUP = ".qkv."
WORDS = (*signs.DIGITS, *scenes.COLORS, *SIDES)


def shipped() -> dict[str, Tensor]:
    """The state of :class:`DemoVlm` that the shipped weights are."""
    file = Path(str(resources.files("trtprune.demo"))) / "data" / TRAINED
    state = {k: torch.from_numpy(np.array(v, np.float32)) for k, v in _safetensors.read(file).items()}
    return {k.replace("multi_modal_projector.", "projector."): v for k, v in state.items()}


def crowd(seed: int) -> signs.Signs:
    """A picture with many plates."""
    rng = random.Random(f"crowd {seed}")
    placed: list[signs.Sign] = []
    for _ in range(rng.randint(*CROWD)):
        height = rng.uniform(42, 66) if rng.random() < 0.85 else rng.uniform(84, 108)
        for _ in range(30):
            x, y = (rng.uniform(height / 2 + 2, scenes.SIZE - height / 2 - 2) for _ in range(2))
            if all(max(abs(x - s.x), abs(y - s.y)) > (height + s.height) / 2 + 4 for s in placed):
                placed.append(signs.Sign(rng.randrange(10), rng.choice(list(scenes.COLORS)), x, y, height))
                break
    return signs.Signs(signs.draw(tuple(placed), rng), tuple(placed), ())


def shown(found: tuple[signs.Sign, ...]) -> np.ndarray:
    """For every patch the plate it shows, -1 for ground, -2 for a patch on a plate's border: ``[576]``."""
    centre = (np.arange(GRID) + 0.5) * 14
    x, y = np.meshgrid(centre, centre)
    place = np.full((GRID, GRID), -1, np.int64)
    for index, sign in enumerate(found):
        distance = np.maximum(np.abs(x - sign.x), np.abs(y - sign.y))
        place[(distance < sign.height / 2 + 7) & (place == -1)] = -2
        place[distance < sign.height / 2 - 4] = index
    return place.reshape(-1)


def standardise(model: DemoVlm, features: Tensor) -> None:
    """Unfolds the features' statistics from the projector's first layer, which trains badly without."""
    projector = model.projector
    mean, std = features.float().mean(0), features.float().std(0) + 1e-6
    with torch.no_grad():
        weight = projector.linear_1.weight
        projector.linear_1.bias.add_(weight @ ((mean - projector.mean) / projector.std))
        weight.mul_(std / projector.std)
        projector.mean.copy_(mean)
        projector.std.copy_(std)


@torch.no_grad()
def collect(model: DemoVlm, prompts: Prompts, pictures: int) -> tuple[Tensor, Tensor]:
    """Patches of pictures, and what the projector is to make of them: float16 [N, 384] and [N, 576]."""
    vectors, mean = word_vectors(model, prompts, WORDS)
    parts: list[tuple[Tensor, Tensor]] = []
    rng = np.random.default_rng(0)
    for seed in range(pictures):
        found = crowd(seed) if seed % 4 else scenes.generate(10**8 + seed)
        features = model.features(pixels(found.image, scenes.SIZE)[None])[0]
        targets = model.projector(features)
        if isinstance(found, signs.Signs):
            place = shown(found.signs)
            for index, sign in enumerate(found.signs):
                side = "left" if sign.x < scenes.SIZE / 2 else "right"
                height = "top" if sign.y < scenes.SIZE / 2 else "bottom"
                named = NUMBER * vectors[signs.DIGITS[sign.digit]] + NAMES * vectors[sign.color]
                targets[torch.from_numpy(place == index)] = mean + named + PLACES * (vectors[side] + vectors[height])
            chosen = torch.from_numpy((place >= 0) | ((place == -1) & (rng.random(len(place)) < 0.1)))
        else:
            chosen = torch.rand(len(features)) < 0.3
        parts.append((features[chosen].half(), targets[chosen].half()))
    features, targets = (torch.cat(part) for part in zip(*parts, strict=True))
    return features, targets


def align(model: DemoVlm, prompts: Prompts, work: Path, *, pictures: int, steps: int) -> None:
    """Trains the projector alone, in place."""
    path = work / "patches.pt"
    if not path.exists():
        patches = collect(model, prompts, pictures)
        save(path, lambda part: torch.save(patches, part))
    features, targets = torch.load(path, weights_only=True)
    started = time.perf_counter()
    standardise(model, features)
    optimizer = torch.optim.AdamW(model.projector.parameters(), lr=2e-3, weight_decay=0.02)
    scale, missed = targets.float().var(0).sum(), 1.0
    words = torch.stack([word_vectors(model, prompts, WORDS)[0][word] for word in signs.DIGITS])
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - step / steps) + 1e-5
        picked = torch.randint(len(features), (1024,))
        error = (model.projector(features[picked]) - targets[picked].float()).square().sum(1).mean() / scale
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        missed = 0.98 * missed + 0.02 * float(error.detach())
        if (step + 1) % 2000 == 0:
            print(
                f"{step + 1} steps on {len(features)} patches in {time.perf_counter() - started:.0f} s: "
                f"{missed:.4f} of the variance missed, {100 * read_off(model, words):.1f} % of the numbers of new "
                "plates can be read off", flush=True,
            )  # fmt: skip


@torch.no_grad()
def read_off(model: DemoVlm, words: Tensor, pictures: int = 30) -> float:
    """How many numbers of plates that were not trained on have the nearest word embedding, over a plate's patches."""
    right = []
    for seed in range(-pictures, 0):
        found = crowd(seed)
        outputs, place = model.projector(model.features(pixels(found.image, scenes.SIZE)[None])[0]), shown(found.signs)
        for index, sign in enumerate(found.signs):
            scores = (outputs[torch.from_numpy(place == index)] @ F.normalize(words, dim=1).T).sum(0)
            right.append(int(scores.argmax()) == sign.digit)
    return sum(right) / len(right)


Row = tuple[Image.Image, list[tuple[str, str]], tuple[int, int]]
"""A picture, questions, and the upper left corner of the window, in patches."""


def window(found: signs.Signs, side: int, rng: random.Random) -> Row | None:
    """A window on a picture with the questions about the plates that are wholly in it."""
    top, left = (rng.randint(0, GRID - side) for _ in range(2))

    def reaches(sign: signs.Sign, margin: float) -> bool:
        low, high = margin, 14 * side - margin
        return low <= sign.x - 14 * left <= high and low <= sign.y - 14 * top <= high

    visible = tuple(sign for sign in found.signs if reaches(sign, -sign.height / 2))
    whole = [i for i, sign in enumerate(visible) if reaches(sign, sign.height / 2)]
    asked = [(q.text, q.answer) for q in signs.questions(visible) if q.about in whole]
    return (found.image, asked, (top, left)) if asked else None


def rows_of(source: Source, side: int) -> Iterator[Row]:
    """Rows without end."""
    rng = source.rng
    while True:
        if rng.random() < SCENES:
            example = source.scene_example(8)
            if side == GRID:
                yield example.image, [(source.vary(q), a) for q, a in example.questions], (0, 0)
            continue
        # Of few plates a window shows one, which asks for no choice between them.
        seed = source.scene_seed()
        row = window(crowd(seed) if rng.random() < CROWDED and side < GRID else signs.generate(seed), side, rng)
        if row is not None:
            yield row[0], [(source.vary(q), a) for q, a in row[1]], row[2]


def logits(model: DemoVlm, prompts: Prompts, rows: list[Row], side: int) -> tuple[Tensor, Batch]:
    """Logits of the answer positions, and the batch."""
    batch = collate(prompts, [([image], asked) for image, asked, _ in rows], 14 * side)
    whole = model.features(torch.stack([pixels(image, scenes.SIZE) for image, _, _ in rows]))
    grid = whole.view(len(rows), GRID, GRID, -1)
    cut = torch.stack([g[t : t + side, left : left + side] for g, (_, _, (t, left)) in zip(grid, rows, strict=True)])
    visual = model.projector(cut.reshape(len(rows), side * side, -1)).to(model.dtype)
    embeds = F.embedding(batch.ids, model.table).to(model.dtype)
    embeds = embeds.masked_scatter(batch.image[..., None], visual.reshape(-1, visual.shape[-1]))
    hidden = model.hidden(embeds, batch.positions, batch.mask)
    return F.linear(hidden[batch.rows, batch.columns], model.table.to(model.dtype)).float(), batch


@torch.no_grad()
def accuracy(model: DemoVlm, prompts: Prompts, count: int) -> dict[str, float]:
    """Exact-match rates on pictures of the training split that are never trained on, all 576 tokens."""
    right: dict[str, list[bool]] = {}
    for seed in range(count):
        found = signs.generate(-1 - seed)
        scores, batch = logits(
            model, prompts, [(found.image, [(q.text, q.answer) for q in found.questions], (0, 0))], GRID
        )
        hit = scores.argmax(-1) == batch.targets
        for number, q in enumerate(found.questions):
            name = f"{'large' if q.salient else 'small'}_{q.kind}"
            right.setdefault(name, []).append(bool(hit[batch.question == number].all()))
    return {name: round(sum(values) / len(values), 4) for name, values in sorted(right.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--onnx", type=Path, required=True)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--projector-lr", type=float, default=3e-4)
    parser.add_argument("--lora-lr", type=float, default=1e-3)
    parser.add_argument("--align-pictures", type=int, default=4000)
    parser.add_argument("--align-steps", type=int, default=16000)
    parser.add_argument("--eval-steps", type=int, default=50)
    parser.add_argument("--eval-count", type=int, default=24)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    model = DemoVlm(args.onnx, args.gguf)
    prompts = Prompts(Tokenizer.from_str(_text.build_tokenizer(args.gguf)))
    model.load_state_dict(shipped(), strict=False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("projector.") or (TRAINED_GROUP in name and name[-2:] in (".a", ".b")))
    parameters = {k: v for k, v in model.named_parameters() if v.requires_grad}
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
    else:
        align(model, prompts, args.work, pictures=args.align_pictures, steps=args.align_steps)
    source = Source(args.seed + 1000 + step)
    log = args.work / "log.csv"
    names = ["large_color", "large_number", "small_color", "small_number"]
    fields = ["step", "minutes", "side", "loss", "hit", "lr", "seconds", *names]
    if not log.exists():
        log.write_text(",".join(fields) + "\n")

    def checkpoint() -> None:
        kept = [*parameters, "projector.mean", "projector.std"]
        weights = {k: v.contiguous() for k, v in model.state_dict().items() if k in kept}
        state = {"model": weights, "optimizer": optimizer.state_dict(), "step": step, "trained": trained}
        save(state_path, lambda part: torch.save(state, part))
        save(args.work / "signs.safetensors", lambda part: save_file(weights, part))

    checkpoint()
    recent: list[tuple[float, float]] = []
    if not step:
        print(accuracy(model, prompts, args.eval_count), flush=True)
    while step < args.steps:
        started, progress = time.perf_counter(), step / args.steps
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * rate(progress, step)
        low, high = next(sides for limit, sides in WINDOWS if progress < limit)
        side = source.rng.randint(low, high)
        stream = rows_of(source, side)
        rows = [next(stream) for _ in range(max(1, round(ROWS * 150 / side**2)))]
        scores, batch = logits(model, prompts, rows, side)
        loss = F.cross_entropy(scores, batch.targets)
        loss.backward()
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
                "step": step, "minutes": round(trained / 60, 2), "side": side,
                "loss": round(sum(r[0] for r in recent) / len(recent), 4),
                "hit": round(sum(r[1] for r in recent) / len(recent), 4),
                "lr": round(rate(progress, step), 3), "seconds": round(seconds, 2),
            }  # fmt: skip
            recent.clear()
            if due:
                row |= accuracy(model, prompts, args.eval_count)
                checkpoint()
            with log.open("a", newline="") as file:
                csv.DictWriter(file, fields, restval="").writerow(row)
            print(row, flush=True)


if __name__ == "__main__":
    main()
