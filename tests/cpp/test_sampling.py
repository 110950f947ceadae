"""The choice of tokens in C++: every processor of logits, and draws, as in Python."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.conformance import write_sampling
from trtprune.engine_dir.generation import GenerationInfo
from trtprune.errors import TrtpruneError
from trtprune.runtime.sampling import Sampler, Sampling

OPTIONS = ("temperature", "top_k", "top_p", "repetition_penalty", "seed")


def checkpoint(random: np.random.Generator, vocab: int) -> dict[str, Any]:
    """Some members of a random :class:`GenerationInfo`."""

    def ids(count: int) -> list[int]:
        return random.integers(0, vocab, count).tolist()

    every: dict[str, Any] = {
        "do_sample": bool(random.integers(2)),
        "temperature": float(random.choice([0.5, 1.0, 1.7])),
        "top_h": float(random.uniform(0.05, 1)),
        "top_k": int(random.integers(0, 60)),
        "top_p": float(random.choice([0.0, 0.3, 0.9, 1.0])),
        "min_p": float(random.uniform(0, 0.3)),
        "typical_p": float(random.uniform(0.1, 1)),
        "epsilon_cutoff": float(random.uniform(0, 0.05)),
        "eta_cutoff": float(random.uniform(0, 0.05)),
        "sequence_bias": [
            [key, float(random.normal(0, 5))] for key in {tuple(ids(int(random.integers(1, 4)))) for _ in range(6)}
        ],
        "encoder_repetition_penalty": float(random.uniform(0.5, 2)),
        "repetition_penalty": float(random.uniform(0.5, 2)),
        "no_repeat_ngram_size": int(random.integers(1, 4)),
        "encoder_no_repeat_ngram_size": int(random.integers(1, 4)),
        "bad_words_ids": [ids(int(random.integers(1, 4))) for _ in range(6)],
        "min_length": int(random.integers(0, 20)),
        "min_new_tokens": int(random.integers(0, 5)),
        "forced_bos_token_id": ids(1)[0],
        "forced_eos_token_id": ids(int(random.integers(1, 3))),
        "remove_invalid_values": True,
        "exponential_decay_length_penalty": [int(random.integers(0, 3)), float(random.uniform(1, 3))],
        "suppress_tokens": ids(4),
        "begin_suppress_tokens": ids(4),
    }
    names = random.permutation(list(every))[: int(random.integers(0, 7))]
    return {name: every[name] for name in names}


def case(number: int) -> dict[str, Any]:
    """A row's settings, its prompt, and logits for six tokens."""
    random = np.random.default_rng(number)
    vocab = int(random.choice([1, 5, 40, 300, 2000]))
    options = {
        "temperature": float(random.choice([0.0, 0.7, 1.0, 3.0])),
        "top_k": int(random.choice([0, 1, 5, 50])),
        "top_p": float(random.choice([1e-6, 0.5, 0.95, 1.0])),
        "repetition_penalty": float(random.choice([0.8, 1.0, 1.4])),
    }
    kept = random.permutation(list(options))[: int(random.integers(0, 5))]
    logits = random.normal(0, 4, (6, vocab)).astype(np.float32)
    if number % 3 == 0:
        logits = np.round(logits)  # many ties
    if number % 11 == 0:
        logits[2, 0] = np.nan
    if number % 13 == 0:
        logits[3, -1] = -np.inf
    return {
        "checkpoint": checkpoint(random, vocab),
        "options": {name: options[name] for name in kept} | {"seed": int(random.integers(0, 2**63))},
        "prompt": random.integers(0, vocab + 1, int(random.integers(1, 30))).tolist(),
        "eos": random.integers(0, vocab, int(random.integers(0, 3))).tolist(),
        "max_new_tokens": int(random.integers(1, 8)),
        "logits": [listed(row) for row in logits],
    }


def listed(logits: np.ndarray) -> list[Any]:
    """Logits for JSON, which has no numbers for what is not finite."""
    return [float(x) if np.isfinite(x) else str(x) for x in logits]


def tuples(value: Any) -> Any:
    return tuple(map(tuples, value)) if isinstance(value, list | tuple) else value


def chosen(asked: dict[str, Any]) -> Any:
    """The tokens of a case in Python, or its error."""
    info = GenerationInfo(**{name: tuples(value) for name, value in asked["checkpoint"].items()})
    try:
        with np.errstate(all="ignore"):
            sampling = Sampling.of(info, **{name: asked["options"].get(name) for name in OPTIONS})
            sampler = Sampler(sampling, asked["prompt"], tuple(asked["eos"]), asked["max_new_tokens"])
            return [sampler.choose(np.array([float(x) for x in row], np.float32)) for row in asked["logits"]]
    except TrtpruneError as error:
        return {"error": error.message, "hint": error.hint or ""}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_tokens(driver: Any) -> None:
    """Two thousand rows with random settings; the same tokens, or the same error."""
    cases = [case(number) for number in range(2000)]
    expected = [chosen(asked) for asked in cases]
    assert sum(isinstance(found, list) for found in expected) > 1000
    for number, (want, found) in enumerate(zip(expected, driver("sampling")(cases), strict=True)):
        assert found == want, (number, {name: cases[number][name] for name in ("checkpoint", "options", "eos")})


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"temperature": -0.5, "top_k": -3},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": -1e-7},
        {"seed": 2**63},
        {"top_p": 1e22},
    ],
)
def test_out_of_range(driver: Any, options: dict[str, Any]) -> None:
    asked = {
        "checkpoint": {},
        "options": options,
        "prompt": [1],
        "eos": [],
        "max_new_tokens": 3,
        "logits": [[0.0, 1.0]],
    }
    assert driver("sampling")([asked]) == [chosen(asked)]
    assert "error" in chosen(asked)


def test_conformance_vectors(driver: Any) -> None:
    """The vectors for any runtime, whose expected ids are transformers' and NumPy's."""
    file = json.loads(write_sampling.PATH.read_text(encoding="utf-8"))
    asked = []
    for vector in file["cases"]:
        rows = []
        for step in range(vector["steps"]):
            logits = write_sampling.logits(vector["logits"], vector["vocab"], step)
            if step in vector["broken"]:
                logits[[0, 1, 2]] = [np.nan, np.inf, -np.inf]
            rows.append(listed(logits))
        own = {name: vector[name] for name in ("prompt", "eos", "max_new_tokens")}
        asked.append(own | {"checkpoint": vector["generation"], "options": vector["arguments"], "logits": rows})
    for vector, ids in zip(file["cases"], driver("sampling")(asked), strict=True):
        assert ids == vector["ids"], vector
