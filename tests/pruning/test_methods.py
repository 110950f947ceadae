"""The registry, options, errors and properties that all methods share."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from tests.kit import pruning_cases as pc
from trtprune import pruning
from trtprune.errors import BudgetError, InputError
from trtprune.pruning.graph import build_pruner
from trtprune.pruning.inputs import INPUTS
from trtprune.pruning.options import PROMPT_TOKENS, TEXT_SPANS, Option

BEFORE = ["none", "random", "uniform", "downsample", "fastervlm", "adafv", "zspaprune"]
BEFORE += ["visionzip", "hiprune", "vispruner", "trim", "divprune", "cdpruner", "mmtok", "scope", "dart", "mmr"]
BEFORE += ["score", "hawk"]
INSIDE = ["sparsevlm", "fastv", "pyramiddrop"]
NAMES = BEFORE + INSIDE


def test_registry() -> None:
    assert pruning.names() == NAMES
    assert [m.name for m in pruning.all_methods()] == NAMES
    assert pruning.names(inside=False) == BEFORE
    assert pruning.names(inside=True) == INSIDE
    for method in pruning.all_methods():
        assert pruning.get(method.name) is method
        assert method.summary
        assert method.needs <= {*INPUTS, "seed"}
        assert method.positions_of(1) == ("original" if method.name == "fastv" else "compact")
        assert method.positions_of(3) == (method.positions if method.inside else "original")
        assert method.text_span() in TEXT_SPANS
        names = [option.name for option in method.options]
        assert len({*names}) == len(names)
        assert all(option.help for option in method.options)
        assert method.inside == (method.name in INSIDE)
        assert method.validate_options() == {o.name: o.default for o in method.options}
        # Defaults survive their own parsing, and parsing what was parsed.
        texts = {o.name: str(o.default) for o in method.options}
        assert method.validate_options(texts) == method.validate_options(method.validate_options(texts))


def test_papers_are_linked() -> None:
    for name in ("fastervlm", "adafv", "zspaprune", *INSIDE):
        method = pruning.get(name)
        assert method.paper.startswith("https://arxiv.org/abs/")
        module = sys.modules[type(method).__module__]
        assert method.paper in (module.__doc__ or "")


def test_unknown_method() -> None:
    with pytest.raises(BudgetError, match="method='adavf'") as caught:
        pruning.get("adavf")
    assert caught.value.hint is not None
    assert "did you mean adafv" in caught.value.hint
    assert all(name in caught.value.hint for name in NAMES)


def test_import_is_light() -> None:
    code = (
        "import sys, trtprune.pruning as p; p.get('adafv').validate_options({'quota': '0.1'}); "
        "heavy = {'numpy', 'onnx', 'onnx_ir', 'onnxscript', 'onnxruntime', 'torch'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_reference_needs_no_onnx() -> None:
    code = (
        "import sys, numpy as np, trtprune.pruning as p; r = np.random.default_rng(0); "
        "p.get('adafv').reference(r.normal(size=(9, 4)), cls_attention=r.random(9), "
        "text_embeds=r.normal(size=(3, 4)), keep=4); "
        "heavy = {'onnx', 'onnx_ir', 'onnxscript', 'onnxruntime', 'torch'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("method", "options", "result"),
    [
        ("adafv", {"mode": "official", "temperature": "50", "quota": "0.1"}, ("official", 50.0, 0.1)),
        ("adafv", {"temperature": 50, "quota": 0}, ("distinct", 50.0, 0.0)),
        ("adafv", {"quota": "5e-1"}, ("distinct", 100.0, 0.5)),
    ],
)
def test_options_are_parsed(method: str, options: dict[str, Any], result: tuple[Any, ...]) -> None:
    values = pruning.get(method).validate_options(options)
    got = (values["mode"], values["temperature"], values["quota"])
    assert got == result
    assert [type(v) for v in got] == [type(v) for v in result]


@pytest.mark.parametrize(
    ("method", "option", "value", "valid"),
    [
        ("adafv", "mode", "fast", "one of distinct, official, mended"),
        ("adafv", "mode", 3, "one of distinct, official, mended"),
        ("adafv", "quota", "0.51", "a number from 0 to 0.5"),
        ("adafv", "quota", "-0.01", "a number from 0 to 0.5"),
        ("adafv", "quota", "nan", "a number from 0 to 0.5"),
        ("adafv", "quota", "", "a number from 0 to 0.5"),
        ("adafv", "temperature", "inf", "a number from 0.01 to 10000"),
        ("adafv", "temperature", True, "a number from 0.01 to 10000"),
        ("adafv", "temperature", None, "a number from 0.01 to 10000"),
        ("adafv", "prompt_tokens", "system", "one of question, after_image, all_text"),
        ("zspaprune", "diversity", "max", "one of maxmin, meansim"),
        ("zspaprune", "core_ratio", "2", "a number from 0 to 1"),
    ],
)
def test_bad_options_name_themselves(method: str, option: str, value: object, valid: str) -> None:
    with pytest.raises(BudgetError) as caught:
        pruning.get(method).validate_options({option: value})
    assert f"--option {option}={value}" in caught.value.flag_message
    assert f"options={{{option!r}: {value!r}}}" in caught.value.message
    assert method in caught.value.message
    assert caught.value.hint == valid
    with pytest.raises(BudgetError):
        build_pruner(method, pc.WIDTH, options={option: value})


def test_whole_number_options() -> None:
    option = Option("steps", 3, "", minimum=1, maximum=9)
    assert option.parse("4", "m") == option.parse(4, "m") == option.parse(4.0, "m") == 4
    for value in ("4.5", 4.5, "0", 10, float("inf"), float("nan"), "x"):
        with pytest.raises(BudgetError, match="steps"):
            option.parse(value, "m")
    assert option.valid == "a whole number from 1 to 9"


def test_unknown_options() -> None:
    with pytest.raises(BudgetError, match=r"options={'quotas': 1}") as caught:
        pruning.get("adafv").validate_options({"quotas": 1})
    assert caught.value.hint is not None
    assert "did you mean quota?" in caught.value.hint
    with pytest.raises(BudgetError, match="no option 'quota'"):
        pruning.get("fastervlm").validate_options({"quota": 1})
    with pytest.raises(BudgetError, match="no option"):
        pruning.get("random").reference(np.ones((4, 2)), keep=2, quota=0.1)


def test_text_spans() -> None:
    assert set(PROMPT_TOKENS.values()) == set(TEXT_SPANS)
    adafv = pruning.get("adafv")
    assert adafv.text_span() == "after_image"
    assert [adafv.text_span({"prompt_tokens": p}) for p in PROMPT_TOKENS] == ["question", "after_image", "all"]


@pytest.mark.parametrize("method", BEFORE)
@pytest.mark.parametrize("keep", [0, -1, 7, 8])
def test_budget_out_of_range(method: str, keep: int) -> None:
    case = pc.make(0, 1, 6, 2, keep, "normal")
    with pytest.raises(BudgetError, match=f"keep={keep}"):
        pruning.get(method).reference(**pc.arguments(case))


def test_none_refuses_to_prune() -> None:
    with pytest.raises(BudgetError, match="keep=5"):
        pruning.get("none").reference(np.ones((6, 3)), keep=5)


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        ("fastervlm", {"cls_attention": None}, "needs cls_attention"),
        ("adafv", {"text_embeds": None}, "needs text_embeds"),
        ("adafv", {"cls_attention": np.ones(5)}, "cls_attention has shape"),
        ("adafv", {"cls_attention": np.ones((1, 6))}, "cls_attention has shape"),
        ("adafv", {"text_embeds": np.ones((2, 4))}, "text_embeds has shape"),
        ("adafv", {"text_embeds": np.ones((0, 3))}, "text_embeds has shape"),
        ("adafv", {"text_mask": np.ones(3)}, "text_mask has shape"),
        ("zspaprune", {"image_features": np.ones(6)}, "image_features has shape"),
        ("zspaprune", {"image_features": np.ones((0, 3))}, "image_features has shape"),
        ("random", {"seed": -1}, "seed=-1"),
        ("random", {"seed": 2**63}, "seed=9223372036854775808"),
    ],
)
def test_wrong_inputs(method: str, change: dict[str, Any], message: str) -> None:
    inputs: dict[str, Any] = {
        "image_features": np.ones((6, 3)),
        "cls_attention": np.ones(6),
        "text_embeds": np.ones((2, 3)),
        "text_mask": np.ones(2),
        "seed": 1,
    }
    pruning.get(method).reference(**inputs, keep=2)
    with pytest.raises(InputError, match=message):
        pruning.get(method).reference(**inputs | change, keep=2)


def test_fastervlm_by_hand() -> None:
    faster = pruning.get("fastervlm")
    features = np.zeros((7, 2))
    attention = np.array([0.1, np.nan, 0.3, 0.1, -np.inf, 0.3, np.inf])
    wanted = [[6], [2, 6], [2, 5, 6], [0, 2, 5, 6], [0, 2, 3, 5, 6], [0, 2, 3, 4, 5, 6], list(range(7))]
    for keep, indices in enumerate(wanted, 1):
        assert faster.reference(features, cls_attention=attention, keep=keep).tolist() == indices


def test_random_is_seeded() -> None:
    method = pruning.get("random")
    features = np.zeros((576, 2))
    first = method.reference(features, keep=64, seed=5)
    np.testing.assert_array_equal(first, method.reference(np.ones((576, 9)), keep=64, seed=5))
    seeds = [0, 1, 2, 5, 2**31 - 1, 2**31, 2**32, 2**62 - 1, 2**63 - 1]
    results = {tuple(method.reference(features, keep=64, seed=s).tolist()) for s in seeds}
    assert len(results) == len(seeds)
    assert method.reference(features, keep=64).tolist() == method.reference(features, keep=64, seed=0).tolist()
    for small, large in itertools.pairwise([1, 16, 64, 300, 576]):
        few, many = (method.reference(features, keep=k, seed=5).tolist() for k in (small, large))
        assert set(few) < set(many)


def test_random_is_the_documented_formula() -> None:
    """Selections are what a seed promises, so the formula is pinned: here with Python's unbounded integers."""
    p = 2**31 - 1

    def mix(x: int, a: int, b: int) -> int:
        return b * pow(x + a, 5, p) % p

    def key(seed: int, i: int) -> int:
        state = mix(mix(seed % p, 314159265, 1358979323) + seed // p, 846264338, 327950289)
        for a, b in ((271828183, 1684590453), (523536029, 749669677), (572470937, 699959575)):
            state = mix(state + i, a, b)
            i = 0
        return state >> 7

    for seed, tokens in itertools.product([0, 42, 2**31, 2**63 - 1], [1, 64, 2880]):
        keep = max(1, tokens // 9)
        best = sorted(range(tokens), key=lambda i: (-key(seed, i), i))[:keep]
        got = pruning.get("random").reference(np.zeros((tokens, 1)), keep=keep, seed=seed)
        assert got.tolist() == sorted(best)
    pinned = pruning.get("random").reference(np.zeros((576, 1)), keep=8, seed=42)
    assert pinned.tolist() == [25, 61, 202, 224, 240, 325, 430, 493]


def test_random_is_fair() -> None:
    """Every token is kept equally often over seeds 0, 1, 2, …, and neighbours are not kept together more often."""
    method, tokens, keep, seeds = pruning.get("random"), 64, 16, 2000
    kept = np.zeros((seeds, tokens), bool)
    for seed in range(seeds):
        kept[seed, method.reference(np.zeros((tokens, 1)), keep=keep, seed=seed)] = True
    share = keep / tokens
    spread = 5 * np.sqrt(share * (1 - share) / seeds)
    np.testing.assert_allclose(kept.mean(axis=0), share, atol=spread)
    together = share * (keep - 1) / (tokens - 1)
    for distance in (1, 2, 8):
        pairs = (kept[:, distance:] & kept[:, :-distance]).mean()
        assert abs(pairs - together) < 5 * np.sqrt(together / seeds / (tokens - distance))
    again = (kept[1:] & kept[:-1]).mean()
    assert abs(again - share**2) < 0.005
