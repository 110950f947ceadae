"""Writes ``sampling.json``: logits and settings → chosen ids; random numbers by NumPy, filters by transformers.

    python -m tests.conformance.write_sampling

``README.md`` beside it says what the members mean.  A draw too close to a boundary for libraries that round in other
ways is never written: the number of ids drawn from must be the same in float32 and float64, and the random number must
lie away from the edge of its token's share.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from transformers.generation.utils import GenerationMixin

PATH = Path(__file__).with_name("sampling.json")
EDGE = 1e-5
SEEDS = (0, 1, 7, 12345, 2**31 - 1, 2**32 - 1, 2**32, 2**32 + 5, 2**53 + 1, 2**63 - 1)
EOS = (2, 5)
SORTING = ("TopPLogitsWarper", "TypicalLogitsWarper", "TopHLogitsWarper")
GREEDY: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.5},
    {"encoder_repetition_penalty": 1.4},
    {"encoder_repetition_penalty": 0.7, "repetition_penalty": 2.0},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 1},
    {"encoder_no_repeat_ngram_size": 2},
    {"bad_words_ids": [[3], [1, 7], [2], [4, 4, 0]]},
    {"sequence_bias": [[[7], 4.0], [[1, 3], -3.5], [[0, 1, 4], 9.5], [[8, 8], 0.25]]},
    {"min_length": 9},
    {"min_new_tokens": 4},
    {"min_new_tokens": 0, "min_length": 30},
    {"forced_bos_token_id": 7},
    {"forced_eos_token_id": [5, 2]},
    {"remove_invalid_values": True},
    {"exponential_decay_length_penalty": [1, 1.5]},
    {"suppress_tokens": [8, 9, 10]},
    {"begin_suppress_tokens": [0, 1, 8, 9]},
    {"forced_bos_token_id": 1, "begin_suppress_tokens": [4, 6], "suppress_tokens": [3]},
    {
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 3,
        "bad_words_ids": [[6, 6]],
        "min_new_tokens": 2,
        "exponential_decay_length_penalty": [3, 1.1],
        "sequence_bias": [[[2], 1.5]],
    },
]
"""Settings of a checkpoint that act on greedy decoding."""
DRAWS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.4},
    {"temperature": 2.5},
    {"top_k": 0},
    {"top_k": 1},
    {"top_k": 3},
    {"top_p": 0.9, "top_k": 0},
    {"top_p": 0.2},
    {"top_p": 0.0},
    {"min_p": 0.4, "top_k": 0},
    {"typical_p": 0.3, "top_k": 0},
    {"typical_p": 0.9},
    {"epsilon_cutoff": 0.05, "top_k": 0},
    {"eta_cutoff": 0.3, "top_k": 0},
    {"top_h": 0.5, "top_k": 0},
    {"top_h": 0.95},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.1},
    {"temperature": 1.5, "top_k": 6, "min_p": 0.02, "typical_p": 0.95, "no_repeat_ngram_size": 2},
    {"epsilon_cutoff": 0.01, "eta_cutoff": 0.02, "top_p": 0.95, "bad_words_ids": [[4]], "min_new_tokens": 3},
]
"""Settings of a checkpoint that draws."""
ARGUMENTS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 1.0, "top_k": 0, "top_p": 0.7},
    {"temperature": 0.5},
    {"top_k": 2, "repetition_penalty": 1.5},
]
"""A caller's settings, which have priority over the checkpoint's."""
VALUES = {"plain": (7919, 104729, 4001, 1, 256), "ties": (7919, 104729, 4001, 400, 2), "flat": (31, 17, 64, 1, 128)}
"""Names of logits, and the numbers of their formula."""


def logits(kind: str, vocab: int, step: int) -> np.ndarray:
    """Logit i of step t: ⌊((a·i + b·t) mod m − ⌊m / 2⌋) / d⌋ / s, float32; exact."""
    a, b, m, d, s = VALUES[kind]
    found = ((a * np.arange(vocab) + b * step) % m - m // 2) // d / s
    return np.asarray(found, np.float32)


def doubles(seed: int) -> np.random.Generator:
    """The random numbers of a seed."""
    key = np.random.SeedSequence(seed).generate_state(2, np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def theirs(
    generation: dict[str, Any], arguments: dict[str, Any], prompt: list[int], eos: tuple[int, ...], longest: int
):
    """transformers' processors, and whether tokens are drawn."""
    chosen = {"top_k": 50, **generation}
    chosen |= {name: value for name, value in arguments.items() if name != "seed"}
    draw = bool(chosen.get("do_sample")) or arguments.get("temperature", 0) > 0
    if "temperature" in arguments:
        draw = arguments["temperature"] > 0
    if not draw:
        chosen = {name: value for name, value in chosen.items() if name not in ("temperature", "top_k", "top_p")}
    config = transformers.GenerationConfig(**{**chosen, "do_sample": draw, "max_new_tokens": longest})
    config.update(**config._get_default_generation_params(), defaults_only=True)
    config._eos_token_tensor = torch.tensor(eos) if eos else None
    config.max_length = longest + len(prompt)
    if config.min_new_tokens is not None:
        config.min_length = config.min_new_tokens + len(prompt)
    owner: Any = SimpleNamespace(
        config=SimpleNamespace(is_encoder_decoder=False), _merge_criteria_processor_list=lambda mine, given: mine
    )
    ids = torch.tensor([prompt])
    return GenerationMixin._get_logits_processor(owner, config, len(prompt), ids, device="cpu"), draw


class _TooClose(Exception):
    pass


def _open_order(before: torch.Tensor, after: torch.Tensor) -> bool:
    """Whether a filter dropped one of several equal scores and kept another, by the order in which torch sorts them."""
    kept = torch.isfinite(after)
    return bool(torch.isin(before[~kept & torch.isfinite(before)], before[kept]).any())


def choices(case: dict[str, Any]) -> tuple[list[int], list[int]]:
    """The chosen ids, and at each step the number of ids that were left to choose from."""
    generation, arguments, prompt = case["generation"], case["arguments"], case["prompt"]
    processors, draw = theirs(generation, arguments, prompt, tuple(case["eos"]), case["max_new_tokens"])
    random, ids, left = doubles(arguments.get("seed", 0)), list(prompt), []
    for step in range(case["steps"]):
        values = logits(case["logits"], case["vocab"], step)
        if step in case["broken"]:
            values[[0, 1, 2]] = [np.nan, np.inf, -np.inf]
        scores = [torch.from_numpy(values.astype(kind))[None] for kind in (np.float32, np.float64)]
        for process in processors:
            before, scores = scores[0], [process(torch.tensor([ids]), one) for one in scores]
            if type(process).__name__ in SORTING and _open_order(before[0], scores[0][0]):
                raise _TooClose
        narrow, wide = (one[0].double().numpy() for one in scores)
        left.append(int(np.isfinite(narrow).sum()))
        if left[-1] != np.isfinite(wide).sum():
            raise _TooClose
        if draw:
            shares = np.exp(narrow - narrow.max())
            total = np.cumsum(shares / shares.sum())
            place = random.random() * total[-1]
            if np.abs(total - place).min() < EDGE:
                raise _TooClose
            ids.append(int(np.flatnonzero(total > place)[0]))
        else:
            best = np.sort(wide)[::-1]
            if 0 < best[0] - best[1] < EDGE:
                raise _TooClose
            ids.append(int(np.argmax(narrow)))
    return ids[len(prompt) :], left


def cases() -> list[dict[str, Any]]:
    """All cases, in the file's order."""
    found: list[dict[str, Any]] = []
    kinds = list(VALUES)

    def add(generation: dict[str, Any], arguments: dict[str, Any], number: int) -> None:
        for more in range(50):  # another seed for a draw on an edge, and at last logits without equal ones
            seed = SEEDS[(number + more) % len(SEEDS)] + more // len(SEEDS)
            case: dict[str, Any] = {
                "generation": generation,
                "arguments": arguments | {"seed": seed},
                "vocab": (11, 40, 300)[number % 3],
                "logits": kinds[0] if more > 3 else kinds[number % 3],
                "prompt": [[4], [1, 3, 1, 3, 9], [0, 1, 4, 4, 8, 8, 1, 2]][(number + more) % 3],
                "eos": EOS if number % 4 else (),
                "max_new_tokens": 6,
                "steps": 6,
                "broken": [1, 3] if generation.get("remove_invalid_values") else [],
            }
            if generation.get("exponential_decay_length_penalty") and not case["eos"]:
                case["eos"] = EOS
            try:
                case["ids"], case["left"] = choices(case)
            except _TooClose:
                continue
            found.append(case)
            return
        raise RuntimeError(f"no draw away from an edge: {generation}")

    for number, generation in enumerate(GREEDY):
        add(generation, {}, number)
        add(generation, {}, number + 1)
        add(generation | {"do_sample": True}, {}, number + 2)
    for number, generation in enumerate(DRAWS):
        for more in range(3):
            add(generation | {"do_sample": True}, {}, number + more)
        add(generation, {}, number)  # without do_sample it is greedy
    for number, arguments in enumerate(ARGUMENTS):
        for generation in ({}, DRAWS[16] | {"do_sample": True}, DRAWS[5]):
            add(generation, arguments, number + 1)
    return found


def random_numbers() -> list[dict[str, Any]]:
    """Seeds, the generator's key, and its first numbers; whole numbers as text, for JSON readers with doubles."""
    found = []
    for seed in SEEDS:
        key = np.random.SeedSequence(seed).generate_state(2, np.uint64)
        raw = np.random.Philox(key=key).random_raw(9)
        drawn = doubles(seed).random(9)
        found.append(
            {
                "seed": str(seed),
                "key": [str(number) for number in key],
                "raw": [str(number) for number in raw],
                "doubles": [float(number) for number in drawn],
            }
        )
    return found


def text() -> str:
    """The file's content, a case a line."""
    formulas = {kind: dict(zip("abmds", numbers, strict=True)) for kind, numbers in VALUES.items()}
    numbers = ",\n".join(map(json.dumps, random_numbers()))
    lines = ",\n".join(map(json.dumps, cases()))
    head = f'"version": 1, "logits": {json.dumps(formulas)}'
    return f'{{{head},\n"random": [\n{numbers}\n], "cases": [\n{lines}\n]}}\n'


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
