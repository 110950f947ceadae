"""The conformance vectors of the choice of tokens, and the generator of its random numbers as is documented."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.conformance import write_sampling
from trtprune.engine_dir import GenerationInfo
from trtprune.engine_dir.json_dataclasses import decode
from trtprune.runtime.sampling import Sampler, Sampling

FILE = json.loads(write_sampling.PATH.read_text(encoding="utf-8"))
WORD, LONG = (1 << 32) - 1, (1 << 64) - 1


def key_of(seed: int) -> list[int]:
    """NumPy's SeedSequence, as docs/engine-directory.md has it."""
    entropy = [seed & WORD, seed >> 32] if seed > WORD else [seed]
    constant = 0x43B0D7E5

    def hashed(value: int) -> int:
        nonlocal constant
        value ^= constant
        constant = constant * 0x931E8875 & WORD
        value = value * constant & WORD
        return value ^ value >> 16

    def mixed(x: int, y: int) -> int:
        value = (0xCA01F9DD * x - 0x4973F715 * y) & WORD
        return value ^ value >> 16

    pool = [hashed(entropy[i] if i < len(entropy) else 0) for i in range(4)]
    for source in range(4):
        for target in range(4):
            if source != target:
                pool[target] = mixed(pool[target], hashed(pool[source]))
    words, constant = [], 0x8B51F9DD
    for value in pool:
        value ^= constant
        constant = constant * 0x58F38DED & WORD
        value = value * constant & WORD
        words.append(value ^ value >> 16)
    return [words[0] | words[1] << 32, words[2] | words[3] << 32]


def raw_numbers(key: list[int], count: int) -> list[int]:
    """Philox4x64-10, as docs/engine-directory.md has it."""
    found: list[int] = []
    block = 0
    while len(found) < count:
        block += 1
        c, (k0, k1) = [block, 0, 0, 0], key
        for _ in range(10):
            first, second = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
            c = [second >> 64 ^ c[1] ^ k0, second & LONG, first >> 64 ^ c[3] ^ k1, first & LONG]
            k0, k1 = (k0 + 0x9E3779B97F4A7C15) & LONG, (k1 + 0xBB67AE8584CAA73B) & LONG
        found += c
    return found[:count]


@pytest.mark.parametrize("numbers", FILE["random"], ids=lambda numbers: numbers["seed"])
def test_random_numbers(numbers: dict[str, Any]) -> None:
    key = key_of(int(numbers["seed"]))
    assert list(map(str, key)) == numbers["key"]
    raw = raw_numbers(key, len(numbers["raw"]))
    assert list(map(str, raw)) == numbers["raw"]
    assert [(number >> 11) * 2.0**-53 for number in raw] == numbers["doubles"]


@pytest.mark.parametrize("number", range(len(FILE["cases"])))
def test_this_runtime(number: int) -> None:
    case = FILE["cases"][number]
    info = decode(GenerationInfo, case["generation"])
    assert info.wrong(case["vocab"]) is None
    prompt = np.array(case["prompt"], np.int64)
    sampling = Sampling.of(info, **case["arguments"])
    sampler = Sampler(sampling, prompt, case["eos"], case["max_new_tokens"])
    ids, left = list(case["prompt"]), []
    for step in range(case["steps"]):
        logits = write_sampling.logits(case["logits"], case["vocab"], step)
        if step in case["broken"]:
            logits[[0, 1, 2]] = [np.nan, np.inf, -np.inf]
        scores = logits
        for process in sampling.processors(prompt, case["eos"], case["max_new_tokens"]):
            scores = process(np.array(ids), scores)
        left.append(int(np.isfinite(scores).sum()))
        ids.append(sampler.choose(logits))
    assert ids[len(prompt) :] == case["ids"]
    assert left == case["left"]


def test_the_vectors_cover_all_settings() -> None:
    used = {name for case in FILE["cases"] for name in case["generation"]}
    # Lengths and stop strings do not choose.
    others = {"source", "max_new_tokens", "max_length", "stop_strings"}
    assert used == set(vars(GenerationInfo())) - others
    assert {name for case in FILE["cases"] for name in case["arguments"]} == {
        "temperature",
        "top_k",
        "top_p",
        "repetition_penalty",
        "seed",
    }


def test_the_file_is_what_the_script_writes() -> None:
    assert json.loads(write_sampling.text()) == FILE
