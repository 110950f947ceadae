"""The greedy methods: graph, NumPy reference and a float64 oracle choose the same tokens, but for ties by rounding."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings

from tests.kit import pruning_cases as pc
from tests.kit.greedy_oracles import ORACLES
from trtprune import pruning
from trtprune.graph import Lowering
from trtprune.pruning.graph import build_pruner

QUICK = {"deadline": None, "database": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("divprune", {}),
    ("divprune", {"center": "true"}),
    ("cdpruner", {}),
    ("cdpruner", {"center": "true", "relevance": "positive"}),
    ("cdpruner", {"theta": "0.5"}),
    ("cdpruner", {"relevance": "prompt"}),
    ("cdpruner", {"relevance": "prompt", "weight": "1", "theta": "0.5", "center": "true"}),
    ("mmtok", {}),
    ("mmtok", {"center": "true"}),
    ("scope", {}),
    ("scope", {"alpha": 2.0, "center": "true"}),
    ("scope", {"combine": "add"}),
    ("dart", {}),
    ("dart", {"image_pivots": 2, "text_pivots": 0}),
    ("mmr", {}),
    ("mmr", {"importance": 0.2, "center": "true"}),
    ("score", {}),
    ("score", {"alpha": 0.6, "center": "true"}),
    ("score", {"alpha": 0.0}),
]
COVERING = {"scope", "mmtok"}
FORMS = {"every": Lowering(), "lazy": Lowering(coverage="lazy"), "sm75": Lowering(products="primitives")}


def _id(value: Any) -> str:
    return value if isinstance(value, str) else ",".join(f"{k}={v}" for k, v in value.items()) or "default"


@pytest.mark.parametrize(("method", "options"), CASES, ids=_id)
def test_graph_reference_and_oracle(method: str, options: dict[str, Any]) -> None:
    forms = ["every", "lazy"] if method in COVERING else ["every", "sm75"] if method == "cdpruner" else ["every"]
    sessions = [pc.open_graph(build_pruner(method, pc.WIDTH, lowering=FORMS[form], options=options)) for form in forms]
    count: Counter[str] = Counter()

    def check(case: dict[str, Any]) -> None:
        found = {"reference": pruning.get(method).reference(**pc.arguments(case), **options)}
        for form, session in zip(forms, sessions, strict=True):
            found[form], features = pc.run(session, case)
            taken = np.take_along_axis(case["image_features"], found[form][..., None], axis=1)
            np.testing.assert_array_equal(features, taken)
        for number, row in enumerate(pc.rows(case)):
            oracle = ORACLES[method](row, options)
            exact = oracle.choose()
            count["rows"] += 1
            for name, indices in found.items():
                got = indices[number].tolist()
                assert sorted(set(got)) == got, (name, got)
                assert len(got) == case["keep"]
                if got != exact:
                    count[name] += 1
                    count[case["kind"]] += 1
                    assert oracle.explains(got), (name, case["kind"], got, exact)

    @settings(max_examples=70, **QUICK)
    @given(pc.cases(max_tokens=20))
    @example(pc.make(0, 1, 1, 1, 1, "integer"))
    @example(pc.make(1, 2, 1, 3, 1, "holes"))
    def small(case: dict[str, Any]) -> None:
        check(case)

    small()
    check(pc.make(0, 1, 577, 5, 16, "aligned"))
    print(f"\n{method} {options}: {dict(count)}")
    assert count["rows"] > 100
    for name in ("reference", *forms):
        assert count[name] <= count["rows"] // 12, count


@pytest.mark.parametrize("method", list(ORACLES))
def test_half_precision_features(method: str) -> None:
    """float16 inputs are only rounded on their way in: the selection is that of their float32 values."""
    session = pc.session(method, dtype="float16")
    for number in range(15):
        case = pc.make(number, 2, 30, 4, 11, "integer")
        for name in ("image_features", "vision_features", "text_embeds"):
            case[name] = (case[name] / 3).astype(np.float16)
        indices, features = pc.run(session, case)
        assert features.dtype == np.float16
        reference = pruning.get(method).reference(**pc.arguments(case))
        for row, got, want in zip(pc.rows(case), indices.tolist(), reference.tolist(), strict=True):
            assert got == want or ORACLES[method](row, {}).explains(got)


@pytest.mark.parametrize("method", ["mmtok", "dart"])
def test_padding_does_not_matter(method: str) -> None:
    """Text padded with anything and masked gives the selection of the text alone."""
    rng = np.random.default_rng(0)
    for number in range(20):
        case = pc.make(number, 2, 24, 2 + number % 5, 9, "integer")
        case["text_mask"][:] = 1
        count = case["text_mask"].shape[1]
        at = np.sort(rng.choice(10, count, replace=False))
        text = rng.choice([np.nan, np.inf, 0, 7.0], (2, 10, pc.WIDTH)).astype(np.float32)
        mask = np.zeros((2, 10), np.int64)
        text[:, at], mask[:, at] = case["text_embeds"], 1
        padded = case | {"text_embeds": text, "text_mask": mask}
        plain = pc.run(pc.session(method), case)[0]
        np.testing.assert_array_equal(pc.run(pc.session(method), padded)[0], plain)
        np.testing.assert_array_equal(pruning.get(method).reference(**pc.arguments(padded)), plain)


def circle(*degrees: float) -> np.ndarray:
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_divprune_by_hand() -> None:
    """The first is farthest from its nearest neighbour: 181 is 46 degrees from 135, which is 45 from 90."""
    divprune, image = pruning.get("divprune"), circle(0, 10, 50, 90, 135, 181)
    assert divprune.reference(image, keep=1).tolist() == [5]
    assert divprune.reference(image, keep=2).tolist() == [0, 5]
    assert divprune.reference(image, keep=3).tolist() == [0, 3, 5]  # 90 degrees from one and 91 from the other
    twins = np.repeat(circle(0, 90), 3, axis=0)
    assert divprune.reference(twins, keep=4).tolist() == [0, 1, 2, 3]  # only duplicates are left: index order


def test_mmr_by_hand() -> None:
    mmr, image = pruning.get("mmr"), circle(0, 1, 90)
    cls = np.array([1.0, 0.9, 0.0])
    assert mmr.reference(image, cls_attention=cls, keep=2).tolist() == [0, 2]  # 0.45 - 0.5 against 0 - 0
    assert mmr.reference(image, cls_attention=cls, keep=2, importance=0.9).tolist() == [0, 1]
    assert mmr.reference(image, cls_attention=cls, keep=2, importance=1).tolist() == [0, 1]
    cls = np.array([np.nan, 0.9, 0.0])
    assert mmr.reference(image, cls_attention=cls, keep=2, importance=1).tolist() == [1, 2]


def test_score_by_hand() -> None:
    """The product decides: the second of two alike tokens has no worth, however salient it is."""
    score, image = pruning.get("score"), np.ones((4, 3))
    given = {"vision_features": circle(0, 0, 60, 90), "cls_attention": np.array([0.5, 1.0, 0.5, 0.2])}
    assert score.reference(image, **given, keep=1).tolist() == [1]
    assert score.reference(image, **given, keep=2).tolist() == [1, 2]  # 0.5 x 0.5 against 1 x 0.2
    assert score.reference(image, **given, keep=2, alpha=0).tolist() == [1, 3]  # 0.5 against 1
    assert score.reference(image, **given, keep=2, alpha=0.6).tolist() == [1, 3]  # 0.33 against 0.38
    assert score.reference(image, **given, keep=3).tolist() == [1, 2, 3]
    given["cls_attention"] = np.array([0.5, np.nan, 0.5, 0.0])
    assert score.reference(image, **given, keep=1).tolist() == [0]
    assert score.reference(image, **given, keep=3).tolist() == [0, 2, 3]  # NaN comes after no attention at all


def test_scope_by_hand() -> None:
    """Three tokens in one direction and one in another: the group is covered by one of it."""
    tower, image = circle(0, 0, 0, 90), np.ones((4, 3))
    scope = pruning.get("scope")
    even = {"vision_features": tower, "cls_attention": np.ones(4)}
    assert scope.reference(image, **even, keep=1).tolist() == [0]
    assert scope.reference(image, **even, keep=2).tolist() == [0, 3]
    lone = {"vision_features": tower, "cls_attention": np.array([1.0, 1, 2, 4])}
    assert scope.reference(image, **lone, keep=1).tolist() == [2]  # 3 x 2 against 1 x 4
    assert scope.reference(image, **lone, keep=1, alpha=2).tolist() == [3]  # 3 x 4 against 1 x 16
    assert scope.reference(image, **lone, keep=1, alpha=0).tolist() == [0]
    assert scope.reference(image, **lone, keep=1, combine="add").tolist() == [2]  # 3 + 2 and 1 + 4: the first


def test_cdpruner_prefers_what_clip_finds_unlike() -> None:
    """The sign of the authors' code, and the option that turns it round."""
    image, patches = np.eye(4), circle(0, 30, 60, 90)
    given = {"clip_image_embeds": patches, "clip_text_embeds": circle(0)}
    cdpruner = pruning.get("cdpruner")
    assert cdpruner.reference(image, **given, keep=1).tolist() == [3]
    assert cdpruner.reference(image, **given, keep=1, relevance="positive").tolist() == [0]
    two = {"clip_image_embeds": patches, "clip_text_embeds": circle(0, 90)}
    # The mean over two segments is least in the middle of neither: 0 and 90 degrees tie at 1/2.
    assert cdpruner.reference(image, **two, keep=1).tolist() == [0]
    assert cdpruner.reference(image, **two, keep=2).tolist() == [0, 3]


def openvino_choice(visual: np.ndarray, text: np.ndarray, keep: int, weight: float = 0.5) -> list[int]:
    """OpenVINO GenAI's formulas in float64, with its additions of 1e-6 and without its split into halves.

    openvinotoolkit/openvino.genai@da1db864, ``src/cpp/src/visual_language/cdpruner``: ``conditional_kernel.cpp`` (the
    model that it compiles) and ``fast_dpp.cpp``; the text's mean is in ``vision_token_pruning_processor.cpp``.
    """
    small = 1e-6
    unit = visual / np.sqrt((visual**2).sum(axis=1, keepdims=True) + small)
    prompt = text.mean(axis=0)
    mean = unit @ (prompt / np.sqrt((prompt**2).sum() + small))
    r = (mean - mean.min()) / (mean.max() - mean.min() + small)
    similarity = unit @ unit.T
    kernel = (1 - weight) * similarity + weight * (r[:, None] * similarity * r)
    left, rows, picks = np.diag(kernel).copy(), np.zeros((0, len(visual))), []
    for _ in range(keep):
        best = int(left.argmax())
        row = (kernel[best] - rows.T @ rows[:, best]) / np.sqrt(left[best] + small)
        rows, left = np.vstack([rows, row]), left - row**2
        left[best] = -np.inf
        picks.append(best)
    return sorted(picks)


def test_cdpruner_by_the_prompt_is_openvino() -> None:
    """Wide features, of which no choice is decided by rounding; graph and reference."""
    rng = np.random.default_rng(5)
    width, differing = 64, 0
    for weight in (0.5, 0.9):
        options = {"relevance": "prompt"} if weight == 0.5 else {"relevance": "prompt", "weight": str(weight)}
        session = pc.open_graph(build_pruner("cdpruner", width, options=options))
        for tokens in (12, 45, 100):
            visual = rng.standard_normal((tokens, width)) + rng.standard_normal(width)
            text = rng.standard_normal((7, width)) + 0.3 * visual[:1]
            case = {"image_features": visual[None].astype(np.float32), "text_embeds": text[None].astype(np.float32)}
            case |= {"text_mask": np.ones((1, 7), np.int64), "keep": np.array(tokens // 3)}
            wanted = openvino_choice(visual, text, tokens // 3, weight)
            given = {"text_embeds": text, "keep": tokens // 3, **options}
            assert pruning.get("cdpruner").reference(visual, **given).tolist() == wanted
            assert pc.run(session, case)[0][0].tolist() == wanted
            differing += pruning.get("divprune").reference(visual, keep=tokens // 3).tolist() != wanted
    assert differing == 6


def test_cdpruner_by_the_prompt_reads_no_clip() -> None:
    method = pruning.get("cdpruner")
    prompt = method.validate_options({"relevance": "prompt"})
    assert method.needs_of(prompt) == {"text_embeds"}
    assert [i.name for i in pc.session("cdpruner", (("relevance", "prompt"),)).get_inputs()] == [
        "image_features", "text_embeds", "text_mask", "keep",
    ]  # fmt: skip
    assert method.text_span() == "question"
    assert method.text_span(prompt) == "all"
    assert method.text_span({"relevance": "prompt", "prompt_tokens": "after_image"}) == "after_image"


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_cdpruner_beyond_the_rank(rank: int) -> None:
    """Picks up to the rank of the kernel are independent; those after it come in index order, in both forms."""
    rng = np.random.default_rng(rank)
    base = rng.standard_normal((rank, pc.WIDTH)).astype(np.float32)
    for number in range(10):
        case = pc.make(number, 1, 30, 2, 20, "normal")
        case["image_features"] = base[rng.permutation(np.arange(30) % rank)][None]
        got = pc.run(pc.session("cdpruner"), case)[0][0]
        np.testing.assert_array_equal(got, pruning.get("cdpruner").reference(**pc.arguments(case))[0])
        first = pruning.get("cdpruner").reference(**pc.arguments(case | {"keep": rank}))[0]
        assert np.linalg.matrix_rank(case["image_features"][0, first].astype(np.float64)) == rank
        assert set(first) <= set(got)
        rest = [j for j in range(30) if j not in first]
        assert sorted({*first, *rest[: 20 - rank]}) == got.tolist()


def test_dart_by_hand() -> None:
    """Two pivots: the longest visual token (index 1) and the text; each takes the one least like it."""
    image = circle(0, 20, 90, 180, 250) * np.array([[1], [3], [1], [1], [1]], np.float32)
    given = {"text_embeds": circle(90), "image_pivots": 1, "text_pivots": 1}
    dart = pruning.get("dart")
    assert dart.reference(image, **given, keep=1).tolist() == [1]
    assert dart.reference(image, **given, keep=2).tolist() == [1, 3]  # 160 degrees from the first pivot, 130 for 250
    assert dart.reference(image, **given, keep=3).tolist() == [1, 3, 4]  # 160 degrees from the text


def test_centring_undoes_a_common_direction() -> None:
    """Four directions around a long mean: their cosines are all near 1, and centred they are apart."""
    around = np.array([[1, 0, 0], [1, 0.01, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]])
    image = around + np.array([0, 0, 1000.0])
    kept = pruning.get("divprune").reference(image, keep=4, center="true")
    assert {2, 3, 4} <= set(kept.tolist())
    assert len({0, 1} & set(kept.tolist())) == 1


@pytest.mark.parametrize(("method", "options"), [("scope", {}), ("scope", {"combine": "add"}), ("mmtok", {})], ids=_id)
def test_lazy_is_every(method: str, options: dict[str, Any]) -> None:
    """On features with structure the two forms pick the same, for any budget and for a batch of unlike images."""
    rng = np.random.default_rng(7)
    lazy, every = (
        pc.open_graph(build_pruner(method, pc.WIDTH, lowering=FORMS[form], options=options))
        for form in ("lazy", "every")
    )
    for keep in (1, 40, 150):
        case = pc.make(keep, 2, 150, 4, keep, "normal")
        centres = rng.standard_normal((6, pc.WIDTHS["C"])) * 3
        case["vision_features"][1] += centres[rng.integers(0, 6, 150)].astype(np.float32)
        np.testing.assert_array_equal(pc.run(lazy, case)[0], pc.run(every, case)[0])
