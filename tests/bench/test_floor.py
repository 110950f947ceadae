"""What a request takes and what bounds it: bytes and operations against counts of our own, probes against NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

import trtprune
from tests.kit import bench_kit as kit
from tests.kit.runtime_kit import picture
from trtprune.backends.onnxruntime import OrtBackend
from trtprune.backends.opening import open_provider
from trtprune.bench import count_chain
from trtprune.bench.bandwidth import BLOCK_BYTES, CopyProbe, SumProbe, WeightProbe
from trtprune.bench.cells import BuildCell, Workload
from trtprune.bench.cost import Call, Cost, Ledger, Reading, listen, stage_of, token_calls
from trtprune.bench.floor import LEAST_REPETITIONS, SAMPLE_SECONDS, Probe, floor_ms
from trtprune.bench.machine import cache_bytes
from trtprune.bench.products import ProductProbes
from trtprune.engine_dir import EngineDir
from trtprune.pruning import InLlmMethod, get
from trtprune.runtime import Vlm
from trtprune.runtime.pipeline import turns_of

PROMPT = "What is it?"
LAYERS = 6


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("floor")
    kit.checkpoint(place / "model", layers=LAYERS)
    kit.build(place / "model", place / "out", keep=5, method="adafv")
    return place


def run(vlm: Vlm, keep: int) -> tuple[list[Call], Any]:
    """Every run of a component for one prompt, and the result of it."""
    with listen(vlm) as calls:
        BuildCell(vlm, "", keep, Workload(picture(), PROMPT, 2)).prompt()
    return calls, vlm.generate(picture(), PROMPT, keep=keep, max_new_tokens=1, ignore_eos=True)


def text_tokens(vlm: Vlm) -> tuple[int, int]:
    """Of the prompt without the picture, and of the part of it that the method reads."""
    prompt = vlm.encoder.encode(turns_of(PROMPT, 1, None))
    span = vlm.config.pruning.text_span
    return len(prompt.ids) - 1, len(prompt.ids[prompt.span(span)])


def by_component(ledger: Ledger, made: EngineDir, calls: list[Call], *, token: bool = False) -> dict[str, Cost]:
    """Of all calls, component by component."""
    found: dict[str, Cost] = {}
    for call in calls:
        found[call.part.name] = found.get(call.part.name, Cost()) + ledger.cost(made, call, token=token)
    return found


@given(st.floats(0, 1e15), st.floats(0, 1e12), st.floats(1e6, 1e15), st.floats(1e6, 1e13))
def test_floor_is_the_slower_of_the_two(flops: float, nbytes: float, rate: float, bandwidth: float) -> None:
    found = floor_ms(flops, nbytes, rate, bandwidth)
    assert found == pytest.approx(max(1000 * flops / rate, 1000 * nbytes / bandwidth))
    assert floor_ms(flops, nbytes, None, bandwidth) == pytest.approx(1000 * nbytes / bandwidth)
    assert floor_ms(flops, nbytes, rate, None) == pytest.approx(1000 * flops / rate)


def test_operations_are_those_of_the_graphs(place: Path) -> None:
    vlm = trtprune.load(place / "out", threads=1)
    calls, result = run(vlm, 7)
    made, ledger = vlm.config, Ledger()
    text, read = text_tokens(vlm)
    length = text + 7
    assert result.prompt_tokens == length
    one = {"batch": 1}
    expected = count_chain(
        made,
        {
            "vision": one,
            "embed": {**one, "tokens": text + 1},
            "pruner": {**one, "visual_tokens": 16, "text_tokens": read, "keep": 7},
            "decoder": {**one, "sequence": length, "capacity": length, "logits_rows": 1},
        },
    )
    found = by_component(ledger, made, calls)
    assert {name: cost.flops for name, cost in found.items()} == expected
    step = by_component(ledger, made, token_calls(calls), token=True)
    dims = {**one, "sequence": 1, "capacity": length + 1, "logits_rows": 1}
    assert step["decoder"].flops == count_chain(made, {"decoder": dims})["decoder"]
    assert set(step) == {"embed", "decoder"}


def test_bytes(place: Path) -> None:
    """Weights by the checkpoint's own tensors, KV by the shape of the model, activations by hand."""
    vlm = trtprune.load(place / "out", threads=1)
    calls, result = run(vlm, 7)
    ledger = Ledger()
    found = by_component(ledger, vlm.config, calls)
    tensors = load_file(place / "model" / "model.safetensors")
    language = {n: t for n, t in tensors.items() if n.startswith("language_model") and "embed_tokens" not in n}
    # Beside the checkpoint's tensors a graph has a few constants: scalars, shapes, rotary frequencies.
    weights = sum(t.nbytes for t in language.values())
    assert weights <= found["decoder"].weights <= weights + 2000
    tower = sum(t.nbytes for n, t in tensors.items() if not n.startswith("language_model"))
    # The last of its layers and the norm behind it do not run, of 4.
    assert 0.6 * tower < found["vision"].weights < tower
    text, read = text_tokens(vlm)
    assert found["embed"].weights == (text + 1) * 64 * 4
    length = result.prompt_tokens
    per_token = 2 * LAYERS * 2 * 16 * 4  # K and V, layers, KV heads, head width, float32
    assert found["decoder"].kv == length * per_token
    step = by_component(ledger, vlm.config, token_calls(calls), token=True)
    assert step["decoder"].kv == (length + 1 + 1) * per_token
    assert step["embed"].weights == 64 * 4
    assert step["decoder"].weights == found["decoder"].weights
    # inputs_embeds, position_ids, write_index and logits_index in, logits of one row out
    assert found["decoder"].activations == length * 64 * 4 + 8 * (length + 1 + 1) + 160 * 4
    assert found["vision"].activations == 3 * 56 * 56 * 4 + 16 * 64 * 4 + 16 * 4  # cls_attention
    # features, its row, text, mask and keep in; indices and rows out
    assert found["pruner"].activations == 16 * 65 * 4 + read * (64 * 4 + 8) + 8 + 7 * 8 + 7 * 64 * 4
    assert found["pruner"].kv == found["vision"].kv == 0


@pytest.mark.parametrize(("method", "options"), [("sparsevlm", {}), ("fastv", {})])
def test_a_decoder_that_is_cut(place: Path, method: str, options: dict[str, Any]) -> None:
    """What each segment really ran with: as many tokens as the result says, every layer's weights once."""
    out = kit.build(place / "model", place / method, method=method, options=options, keep=12)
    vlm = trtprune.load(out, threads=1)
    calls, result = run(vlm, 12)
    made = vlm.config
    found = by_component(Ledger(), made, calls)
    text, _ = text_tokens(vlm)
    per_layer = made.kv.bytes_per_token // LAYERS
    counts = result.segment_tokens[0]
    assert len(counts) > 1
    assert counts[-1] < 16
    for k, (layers, count) in enumerate(zip(made.kv.segment_layers, counts, strict=True)):
        cost = found[f"decoder.{k}"]
        assert cost.kv == (text + count) * layers * per_layer
        assert dict(next(c for c in calls if c.part.name == f"decoder.{k}").dims)["sequence"] == text + count
    tensors = load_file(place / "model" / "model.safetensors")
    weights = sum(t.nbytes for n, t in tensors.items() if n.startswith("language_model") and "embed_tokens" not in n)
    assert weights <= sum(c.weights for n, c in found.items() if n.startswith("decoder")) <= weights + 8000
    assert {stage_of(call.part) for call in calls} == {"vision", "prefill"}
    chosen = get(method)
    assert isinstance(chosen, InLlmMethod)
    after = chosen.schedule(12, 16, LAYERS, chosen.validate_options(options)).after
    assert [*counts[1:]] == [*after]


def test_listening_leaves_nothing_behind(place: Path) -> None:
    vlm = trtprune.load(place / "out", threads=1)
    sessions = [vlm.chain.session(c.role, c.segment) for c in vlm.config.components]
    calls, _ = run(vlm, 5)
    assert all(vlm.chain.session(c.role, c.segment) is s for c, s in zip(vlm.config.components, sessions, strict=True))
    assert [call.part.name for call in calls] == ["vision", "embed", "pruner", "decoder"]
    with pytest.raises(RuntimeError, match="inside"), listen(vlm):
        raise RuntimeError("inside")
    assert all(vlm.chain.session(c.role, c.segment) is s for c, s in zip(vlm.config.components, sessions, strict=True))


def test_costs_add_up() -> None:
    assert Cost(1, 2, 3, 4) + Cost(10, 20, 30, 40) == Cost(11, 22, 33, 44)
    assert Cost(1, 2, 3, 4).nbytes == 9


@pytest.mark.parametrize(("weight_dtype", "provider"), [(None, "cpu"), ("int8", "cpu"), (None, "openvino")])
def test_a_product_is_the_components_own(place: Path, weight_dtype: str | None, provider: str) -> None:
    """The probe computes what the graph does: its input times a matrix of the checkpoint."""
    out = place / f"product-{weight_dtype}-{provider}"
    built = kit.build(place / "model", out, keep=5, weight_dtype=weight_dtype, provider=provider)
    vlm = trtprune.load(built, threads=1)
    calls, result = run(vlm, 7)
    ledger, probes = Ledger(), ProductProbes(open_provider(provider, 1))
    call = calls[-1]
    counted = ledger.counted(vlm.config, call)
    probe, *others = probes.of(counted, vlm.config.root / "onnx", "decoder")
    # Three matrices of 64 x 128 a layer, two of them this way round, are more than any other shape.
    length = result.prompt_tokens
    tensors = load_file(place / "model" / "model.safetensors")
    inner = next(t for n, t in tensors.items() if n.endswith("layers.0.mlp.gate_proj.weight")).shape[0]
    assert probe.rate.work == 2 * length * 64 * inner
    probe.once()
    given, out_rows = probe.arrays.values()
    candidates = [t for n, t in tensors.items() if n.startswith("language_model") and t.shape == (inner, 64)]
    closest = min(float(np.abs(given.astype(np.float64) @ t.T.astype(np.float64) - out_rows).max()) for t in candidates)
    size = float(np.abs(out_rows).max())
    assert closest < (1e-5 if weight_dtype is None else 0.05) * size
    # The same weights at another shape are not loaded again; the same shape is the same probe.
    opened = len(probes._opened)
    assert opened == len(others) + 1 == 3
    step = probes.of(ledger.counted(vlm.config, token_calls(calls)[-1]), vlm.config.root / "onnx", "decoder")
    assert not {*map(id, step)} & {*map(id, (probe, *others))}
    assert len(probes._opened) <= opened + 1  # its largest may be the output projection
    assert probes.of(counted, vlm.config.root / "onnx", "decoder") == [probe, *others]
    for other in (*others, *step):
        other.once()


def test_a_graph_without_products_has_no_probe(place: Path) -> None:
    vlm = trtprune.load(place / "out", threads=1)
    calls, _ = run(vlm, 5)
    embed = next(call for call in calls if call.part.name == "embed")
    assert ProductProbes(OrtBackend("cpu", 1)).of(Ledger().counted(vlm.config, embed), vlm.config.root, "embed") == []


def test_products_between_layers_are_not_converted(place: Path) -> None:
    """With bfloat16 products, values come and go in bfloat16."""
    vlm = trtprune.load(kit.build(place / "model", place / "bf16", keep=5, provider="openvino"), threads=1)
    calls, _ = run(vlm, 7)
    backend = open_provider("openvino", 1, {"precision": "bf16"})
    counted = Ledger().counted(vlm.config, calls[-1])
    probes = ProductProbes(backend)
    probe = probes.of(counted, vlm.config.root / "onnx", "decoder")[0]
    compiled = probes._opened[next(iter(probes._opened))]
    assert {port.get_element_type().get_type_name() for port in (*compiled.inputs, *compiled.outputs)} == {"bf16"}
    probe.once()


def test_weights_count_as_the_provider_reads_them(place: Path) -> None:
    out = kit.build(place / "model", place / "reading", keep=5, weight_dtype="int8")
    vlm = trtprune.load(out, threads=1)
    calls, _ = run(vlm, 7)
    tensors = load_file(place / "model" / "model.safetensors")
    matrices = sum(t.size for n, t in tensors.items() if n.startswith("language_model") and t.ndim == 2
                   and "embed_tokens" not in n)  # fmt: skip
    tower = calls[0]

    def weights(call: Call, provider: str, **options: str) -> int:
        reading = Reading.of(provider, call.part.role, options)
        return Ledger().cost(vlm.config, call, reading=reading).weights

    decoder = calls[-1]
    integers = weights(decoder, "cpu")
    unpacked = weights(decoder, "cpu", activations="float32")
    assert unpacked - integers == 3 * matrices
    assert weights(decoder, "openvino", activations="float32") == integers
    stored = weights(tower, "cpu")
    assert weights(tower, "openvino") == stored
    half = weights(tower, "openvino", precision="bf16")
    assert stored / 2 <= half < stored / 2 + 2000  # constants that are integers stay


def test_the_cache_counts_as_the_provider_keeps_it(place: Path) -> None:
    out = kit.build(place / "model", place / "kv", keep=5, provider="openvino")
    per_token = 2 * LAYERS * 2
    for options, width in (({}, 4 * 16), ({"precision": "bf16"}, 2 * 16), ({"kv_cache": "u8"}, 16 + 8)):
        calls, result = run(trtprune.load(out, threads=1, provider_options=options), 7)
        cost = Ledger().cost(trtprune.load(out, threads=1).config, calls[-1])
        assert cost.kv == result.prompt_tokens * per_token * width


def test_the_last_level_of_caches() -> None:
    """Between nothing and what no processor has."""
    assert 0 <= cache_bytes() < 1 << 32


@pytest.mark.parametrize("threads", [1, 3])
def test_a_copy_copies_all_of_it(threads: int) -> None:
    probe = CopyProbe(threads, 1001, kit.Ticks(0.5))
    probe.once()
    assert sum(len(target) for target, _ in probe.parts) == 1001
    assert all((target == 1).all() for target, _ in probe.parts)
    probe.warm_up()
    probe.sample()
    assert probe.rate.samples == [2 * 1001 / 0.5]  # read and written


def test_other_ways_to_move_bytes() -> None:
    summed = SumProbe(3, 4003, kit.Ticks(0.5))
    assert sum(len(part) for part in summed.parts) == 1000
    summed.sample()
    assert summed.rate.samples == [4000 / 0.5]
    assert cache_bytes() < BLOCK_BYTES or cache_bytes() > 1 << 27
    for provider, options in (("cpu", {}), ("openvino", {}), ("openvino", {"precision": "bf16"})):
        read = WeightProbe(open_provider(provider, 1, options), 4096 * 64 * 4)
        read.once()
        assert read.rate.work == 4096 * 64 * 4
        if not options:
            assert (read._arrays["y"] == 2048).all()  # 4096 halves


def test_a_short_probe_is_repeated() -> None:
    class Counting(Probe):
        done = 0

        def once(self) -> None:
            self.done += 1

    probe = Counting("x", 100.0, kit.Ticks(0.0002, 0.0002, 0.002, 0.001, 1.0))
    probe.warm_up()
    probe.done = 0
    probe.sample()
    # Once to wake up; then three times five of 0.2 ms each, for a whole one. The fastest counts.
    assert probe.done == 1 + LEAST_REPETITIONS * 5
    assert probe.rate.samples == [pytest.approx(100 * 5 / 0.001)]
    assert probe.rate.median == probe.rate.best == probe.rate.samples[0]
    assert Counting("x", 1.0, kit.Ticks(1.0)).rate.best is None
    steady = Counting("x", 1.0, kit.Ticks(0.002))
    steady.warm_up()
    steady.done = 0
    steady.sample()
    assert steady.done == 1 + round(SAMPLE_SECONDS / 0.002)


def test_the_product_of_a_tower_in_8_bits_is_one_of_integers(place: Path) -> None:
    """Else its time would be below the floor."""
    vlm = trtprune.load(kit.build(place / "model", place / "tower", keep=5, provider="openvino"), threads=1)
    calls, _ = run(vlm, 7)
    counted = Ledger().counted(vlm.config, calls[0])
    exact, rounded = (
        ProductProbes(open_provider("openvino", 1, options)).of(counted, vlm.config.root / "onnx", "vision")
        for options in ({"activations": "float32"}, {"activations": "float32", "tower": "int8"})
    )
    for a, b in zip(exact, rounded, strict=True):
        a.once()
        b.once()
    errors = [
        float(np.abs(x - y).max()) for a, b in zip(exact, rounded, strict=True)
        for x, y in [([*a.arrays.values()][-1], [*b.arrays.values()][-1])]
    ]  # fmt: skip
    assert max(errors) > 1e-4
