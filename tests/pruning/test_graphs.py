"""The NumPy reference and the ONNX graph of each method select the same tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, example, given, settings

from tests.kit import pruning_cases as pc
from trtprune import pruning
from trtprune.graph import Lowering
from trtprune.pruning.graph import build_pruner
from trtprune.pruning.inputs import INPUTS

QUICK = {"deadline": None, "database": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}
# Methods without rounding: random and fastervlm compare integers and given numbers.
EXACT = [("random", {}), ("fastervlm", {}), ("zspaprune", {"core_ratio": 1.0})]
ROUNDED = [
    ("adafv", {}),
    ("adafv", {"mode": "official"}),
    ("adafv", {"quota": 0.0}),
    ("adafv", {"quota": 0.5, "temperature": 10.0}),
    ("zspaprune", {}),
    ("zspaprune", {"diversity": "meansim"}),
    ("zspaprune", {"core_ratio": 0.0}),
]
LARGE = (2, 577, 2880)


def _id(value: Any) -> str:
    return value if isinstance(value, str) else ",".join(f"{k}={v}" for k, v in value.items()) or "default"


def check_shape(method: str, options: dict[str, Any], case: dict[str, Any], indices: np.ndarray) -> None:
    """Count exact, in range, ascending, and distinct but for the one mode that allows duplicates."""
    batch, tokens = case["cls_attention"].shape
    assert indices.shape == (batch, case["keep"])
    assert indices.dtype == np.int64
    assert (indices >= 0).all()
    assert (indices < tokens).all()
    step = np.diff(indices, axis=1)
    assert (step >= (0 if options.get("mode") == "official" else 1)).all(), (method, options)


def compare(
    method: str,
    options: dict[str, Any],
    count: Counter[str],
    explain: Callable[[dict[str, Any], list[int]], bool] | None = None,
) -> Callable[[dict[str, Any]], None]:
    """A check of one case: graph = reference, or an explained tie within rounding, which is counted."""
    session = pc.session(method, tuple(options.items()))

    def check(case: dict[str, Any]) -> None:
        reference = pruning.get(method).reference(**pc.arguments(case), **options)
        indices, features = pc.run(session, case)
        check_shape(method, options, case, indices)
        check_shape(method, options, case, reference)
        taken = np.take_along_axis(case["image_features"], indices[..., None], axis=1)
        np.testing.assert_array_equal(features, taken)
        for row, got, want in zip(pc.rows(case), indices.tolist(), reference.tolist(), strict=True):
            count["rows"] += 1
            if got != want:
                count["ties"] += 1
                assert explain is not None, f"{method}: graph {got}, reference {want}"
                assert explain(row, got), f"{method} {options}: graph {got}, reference {want}"

    return check


def explain(method: str, options: dict[str, Any]) -> Callable[[dict[str, Any], list[int]], bool] | None:
    if method == "zspaprune":
        ratio, rule = options.get("core_ratio", 0.5), options.get("diversity", "maxmin")
        return lambda row, got: pc.ZspaOracle(row, ratio, rule).explains(got)
    if method == "adafv":
        return lambda row, got: got in pc.AdaFvOracle(row, **options).selections()
    return None


@pytest.mark.parametrize(("method", "options"), EXACT + ROUNDED, ids=_id)
def test_graph_is_reference(method: str, options: dict[str, Any]) -> None:
    count: Counter[str] = Counter()
    check = compare(method, options, count, explain(method, options))

    @settings(max_examples=700 if method == "zspaprune" else 1500, **QUICK)
    @given(pc.cases())
    @example(pc.make(0, 1, 1, 1, 1, "integer"))
    @example(pc.make(1, 2, 1, 3, 1, "holes"))
    def small(case: dict[str, Any]) -> None:
        check(case)

    @settings(max_examples=30, **QUICK)
    @given(pc.cases(sizes=LARGE))
    def large(case: dict[str, Any]) -> None:
        if case["keep"] > 64 and method == "zspaprune":
            case = case | {"keep": 64}  # the oracle aside, the reference is quadratic
        check(case)

    small()
    large()
    print(f"\n{method} {options}: {dict(count)}")
    assert count["rows"] > 1000
    assert count["ties"] <= count["rows"] // 200, count


@pytest.mark.parametrize("tokens", [1, 2, 3, 7, 64, 577])
def test_none_keeps_everything(tokens: int) -> None:
    case = pc.make(3, 2, tokens, 1, tokens, "normal")
    reference = pruning.get("none").reference(case["image_features"], keep=tokens)
    indices, features = pc.run(pc.session("none"), case)
    np.testing.assert_array_equal(indices, reference)
    np.testing.assert_array_equal(features, case["image_features"])


@pytest.mark.parametrize("method", ["fastervlm", "adafv", "zspaprune"])
def test_half_precision_features(method: str) -> None:
    """float16 features and text are only rounded on their way in: selection as from their float32 values."""
    session = pc.session(method, dtype="float16")
    for number in range(40):
        case = pc.make(number, 2, 30, 4, 11, "integer")
        case["image_features"] = (case["image_features"] / 3).astype(np.float16)
        case["text_embeds"] = case["text_embeds"].astype(np.float16)
        indices, features = pc.run(session, case)
        assert features.dtype == np.float16
        reference = pruning.get(method).reference(**pc.arguments(case))
        for row, got, want in zip(pc.rows(case), indices.tolist(), reference.tolist(), strict=True):
            why = explain(method, {})
            assert got == want or (why is not None and why(row, got))


@pytest.mark.parametrize("method", pruning.names(inside=False))
def test_batch_is_rows(method: str) -> None:
    """A permuted batch gives the permuted result, and a row alone the row of the batch."""
    order = np.array([2, 0, 3, 1])
    for number in range(60):
        keep = 17 if method == "none" else 1 + number % 17
        case = pc.make(number, 4, 17, 5, keep, "integer")
        session = pc.session(method)
        indices, _ = pc.run(session, case)
        reference = pruning.get(method).reference(**pc.arguments(case))
        permuted = {k: v[order] if isinstance(v, np.ndarray) else v for k, v in case.items()}
        np.testing.assert_array_equal(pc.run(session, permuted)[0], indices[order])
        np.testing.assert_array_equal(pruning.get(method).reference(**pc.arguments(permuted)), reference[order])
        alone = {k: v[3:] if isinstance(v, np.ndarray) else v for k, v in case.items()}
        np.testing.assert_array_equal(pc.run(session, alone)[0], indices[3:])
        single = {k: v[3] if isinstance(v, np.ndarray) else v for k, v in pc.arguments(case).items()}
        np.testing.assert_array_equal(pruning.get(method).reference(**single), reference[3])


@pytest.mark.parametrize("method", ["adafv", "zspaprune"])
def test_padding_does_not_matter(method: str) -> None:
    """Text padded with anything and masked gives the selection of the text alone."""
    rng = np.random.default_rng(0)
    session = pc.session(method)
    for number in range(60):
        case = pc.make(number, 2, 24, 6, 9, "integer")
        case["text_mask"][:] = 1
        plain = pc.run(session, case)[0]
        reference = pruning.get(method).reference(**pc.arguments(case))
        at = np.sort(rng.choice(10, 6, replace=False))
        text = rng.choice([np.nan, np.inf, 0, 7.0], (2, 10, pc.WIDTH)).astype(np.float32)
        mask = np.zeros((2, 10), np.int64)
        text[:, at], mask[:, at] = case["text_embeds"], 1
        padded = case | {"text_embeds": text, "text_mask": mask}
        np.testing.assert_array_equal(pc.run(session, padded)[0], plain)
        np.testing.assert_array_equal(pruning.get(method).reference(**pc.arguments(padded)), reference)


@pytest.mark.parametrize("backend", ["openvino", "tensorrt-rtx"])
def test_every_lowering(backend: str) -> None:
    """The opset differs; the answer does not."""
    for method in pruning.names(inside=False):
        other = pc.open_graph(build_pruner(method, pc.WIDTH, lowering=Lowering.for_backend(backend)))
        for number in range(10):
            case = pc.make(number, 2, 20, 4, 20 if method == "none" else 1 + number, "integer", (4, 5))
            np.testing.assert_array_equal(pc.run(other, case)[0], pc.run(pc.session(method), case)[0])


def test_fixed_token_count_changes_nothing() -> None:
    for method in pruning.names(inside=False):
        case = pc.make(5, 3, 20, 4, 20 if method == "none" else 7, "integer")
        fixed = pc.open_graph(build_pruner(method, pc.WIDTH, num_tokens=20, most_crops=1, widths=pc.WIDTHS))
        np.testing.assert_array_equal(pc.run(fixed, case)[0], pc.run(pc.session(method), case)[0])


@pytest.mark.parametrize("method", pruning.names(inside=False))
def test_inputs_and_outputs(method: str) -> None:
    session = pc.session(method)
    needs = pruning.get(method).needs
    wanted = ["image_features", *(name for name in INPUTS if name in needs)]
    wanted += ["text_mask"] if "text_embeds" in needs else []
    wanted += ["seed"] if "seed" in needs else []
    assert [i.name for i in session.get_inputs()] == [*wanted, "keep"]
    assert [(o.name, o.type) for o in session.get_outputs()] == [
        ("kept_indices", "tensor(int64)"),
        ("pruned_features", "tensor(float)"),
    ]


@pytest.mark.parametrize("options", [{}, {"crops": "each"}], ids=str)
@pytest.mark.parametrize("name", pruning.names(inside=False))
def test_the_longest_list_that_is_ordered(name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """As the TopK nodes of the graph are run, those in loops among them."""
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.ops import op_cum_sum, op_gather_elements, op_topk

    method = pruning.get(name)
    if options.keys() - {option.name for option in method.options}:
        pytest.skip(f"{name} has no such option")
    lengths: list[int] = []
    run = op_topk.TopK_11._run

    def recorded(self: Any, x: np.ndarray, k: np.ndarray, **attributes: Any) -> Any:
        lengths.append(int(np.asarray(k).ravel()[0]))
        return run(self, x, k, **attributes)

    def any_axis(self: Any, x: np.ndarray, axis: np.ndarray, **attributes: Any) -> Any:
        return add(self, x, axis.reshape(()), **attributes)  # as runtimes read it

    def gather(self: Any, x: np.ndarray, index: np.ndarray, axis: int = 0) -> Any:
        return (np.take_along_axis(x, index, axis),)  # onnx's own takes 64 columns at most

    add = op_cum_sum.CumSum._run
    monkeypatch.setattr(op_gather_elements.GatherElements, "_run", gather)
    monkeypatch.setattr(op_topk.TopK_11, "_run", recorded)
    monkeypatch.setattr(op_cum_sum.CumSum, "_run", any_axis)
    values = method.validate_options(options)
    lowering = Lowering.for_backend("tensorrt-rtx")
    graph = build_pruner(name, pc.WIDTH, lowering=lowering, options=options)
    model = onnx.load_model_from_string(graph.to_bytes())
    case = pc.make(0, 1, 48, 6, 12, "normal", (6, 8))
    for of_crops in method.of_each_crop(values):
        case[of_crops] = case[of_crops][:, None]

    class Session:
        def get_inputs(self) -> list[Any]:
            return list(model.graph.input)

        def run(self, names: list[str], feed: dict[str, Any]) -> list[Any]:
            return ReferenceEvaluator(model).run(names, feed)

    found = pc.run(Session(), case)[0]  # type: ignore[arg-type]
    assert method.longest_order(48, 12, values) == max(lengths, default=0)
    np.testing.assert_array_equal(found, pc.run(pc.open_graph(graph), case)[0])
