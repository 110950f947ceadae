"""Provider ``openvino``: the same numbers as ONNX Runtime from the same graphs, and caches that are kept apart."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import trtprune
from tests.kit import tiny
from tests.kit.runtime_kit import Kit, picture, record, same
from tests.runtime import test_in_llm as inside
from tests.runtime import test_zoo as zoo
from trtprune import pruning
from trtprune.backends.base import CachedRow
from trtprune.backends.binding import numpy_dtype
from trtprune.backends.onnxruntime import OrtBackend
from trtprune.backends.opening import open_provider
from trtprune.backends.openvino import OpenVinoBackend
from trtprune.backends.openvino_cache import LEAST_SPARE, NO_SLOT
from trtprune.backends.running import Running
from trtprune.cli import main
from trtprune.engine_dir import EngineDir, open_engine_dir
from trtprune.errors import BackendError, EngineDirError
from trtprune.runtime import Request, Vlm
from trtprune.variants import Variant, Variants

QUESTION = "What is on the table?"


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit.make(tmp_path_factory.mktemp("openvino") / "clip", tiny.Tiny(seed=4, heads=4, kv_heads=2))


def built(kit: Kit, **settings: Any) -> EngineDir:
    out = kit.path.parent / "-".join(map(str, settings.values()))
    if not out.exists():
        trtprune.build(str(kit.path), out, provider="openvino", **settings)
    return open_engine_dir(out)


def both(made: EngineDir) -> tuple[Vlm, Vlm]:
    """In ONNX Runtime, and as it is run unless something else is asked for."""
    found = trtprune.load(made.root, threads=1)
    assert found.provider == "openvino"
    return Vlm(made, OrtBackend("cpu", 1), max_pixels=10**6), found


@pytest.fixture(scope="module")
def pair(kit: Kit) -> tuple[Vlm, Vlm]:
    return both(built(kit, method="none"))


def test_batches_of_prompts_and_pictures(pair: tuple[Vlm, Vlm]) -> None:
    ours, theirs = pair
    requests = [
        Request([picture(1)], QUESTION, max_new_tokens=20),
        Request([picture(2), picture(3)], "Which?"),
        Request([picture(4)], "A rather longer question, so that the others are padded", max_new_tokens=1),
    ]
    found = theirs.generate_batch(requests, max_new_tokens=12)
    assert all(same(a, b) for a, b in zip(ours.generate_batch(requests, max_new_tokens=12), found, strict=True))
    # The same again, from the same requests' memory, and one by one.
    for request, result in zip(requests, found, strict=True):
        assert same(theirs.generate_batch([request], max_new_tokens=12)[0], result)


def test_a_conversation(pair: tuple[Vlm, Vlm]) -> None:
    """The second turn goes on in a cache that has grown, and another answer in between does not disturb it."""
    first, second = (vlm.chat(picture(1)) for vlm in pair)
    for prompt, length in ((QUESTION, 4), ("And a question that needs more room than there was before", 60)):
        assert same(first.ask(prompt, max_new_tokens=length), second.ask(prompt, max_new_tokens=length))
        pair[1].generate(picture(2), "Why?", max_new_tokens=3)


@pytest.mark.parametrize(
    ("settings", "atol"),
    [
        ({"method": "uniform", "keep": 5}, 2e-5),
        ({"method": "none", "dtype": "float16"}, 0.05),
        ({"method": "none", "weight_dtype": "int8"}, 2e-5),
        ({"method": "none", "weight_dtype": "int4"}, 2e-5),
    ],
)
def test_other_builds(kit: Kit, settings: dict[str, Any], atol: float) -> None:
    """Quantised weights: as the graph says, and with rounded activations, which is the default, close to that."""
    made = built(kit, **settings)
    options = {"activations": "float32"}
    backends = OrtBackend("cpu", 1, options), OpenVinoBackend(1, options), OpenVinoBackend(1)
    # OpenVINO rounds nothing that is narrower than a group, and this model is.
    backends[2]._properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = "32"
    vlms = [Vlm(made, backend, max_pixels=10**6) for backend in backends]
    recorders = [record(vlm) for vlm in vlms]
    for vlm in vlms:
        vlm.generate(picture(1), QUESTION, max_new_tokens=4)
    for exact, found, rounded in zip(*(recorder.logits for recorder in recorders), strict=True):
        np.testing.assert_allclose(found, exact, rtol=0, atol=atol)
        error = np.abs(rounded - exact).max()
        assert error < 0.3
        assert (error > 1e-3) == ("weight_dtype" in settings) or atol > 1e-3


@pytest.mark.parametrize(("tower", "name", "received"), zoo.CASES)
def test_every_method(kits: dict[str, Kit], tower: str, name: str, received: str | None) -> None:
    """The same tokens kept, and the same answer, of two pictures beside each other."""
    kit = kits[tower]
    out = kit.path.parent / f"{tower}-{name}-{received}"
    options = zoo.options_of(pruning.get(name), received)
    keep = {} if name == "none" else {"keep": zoo.KEEP}
    trtprune.build(str(kit.path), out, method=name, options=options, provider="openvino", **keep)
    ours, theirs = both(open_engine_dir(out))
    found = [vlm.generate_batch([Request(picture(i), QUESTION, seed=i) for i in (1, 2)], max_new_tokens=6)
             for vlm in (ours, theirs)]  # fmt: skip
    for a, b in zip(*found, strict=True):
        assert same(a, b)
        assert all(map(np.array_equal, a.kept_indices, b.kept_indices))


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kit]:
    folder = tmp_path_factory.mktemp("openvino-zoo")
    return {name: Kit.make(folder / name, t) for name, t in zoo.TOWERS.items()}


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit.make(tmp_path_factory.mktemp("openvino-deep") / "clip", inside.CASES["clip-llama"])


@pytest.mark.parametrize("name", inside.BUILDS)
def test_pruning_inside_the_decoder(deep: Kit, name: str) -> None:
    """Each segment's cache is a state of its own, of another length than its neighbour's."""
    out = deep.path.parent / name
    trtprune.build(str(deep.path), out, provider="openvino", **inside.BUILDS[name])
    ours, theirs = both(open_engine_dir(out))
    requests = [Request(picture(1), QUESTION), Request(picture(2), "Why is it there, and not here?", max_new_tokens=2)]
    found = [vlm.generate_batch(requests, max_new_tokens=10) for vlm in (ours, theirs)]
    assert all(same(a, b) for a, b in zip(*found, strict=True))
    assert [a.segment_tokens for a in found[0]] == [b.segment_tokens for b in found[1]]


def test_bfloat16_is_close(kit: Kit) -> None:
    ours = both(built(kit, method="none"))[0]
    theirs = Vlm(ours.config, OpenVinoBackend(1, {"precision": "bf16"}), max_pixels=10**6)
    recorders = record(ours), record(theirs)
    for vlm in (ours, theirs):
        vlm.generate(picture(1), QUESTION, max_new_tokens=1)
    np.testing.assert_allclose(recorders[1].logits[0], recorders[0].logits[0], rtol=0, atol=0.1)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_sessions(pair: tuple[Vlm, Vlm], data: st.DataObject) -> None:
    """Decoder steps at random shapes: prompts, continuations and a larger cache; logits and every cache byte."""
    ours, theirs = (vlm.chain.session("decoder") for vlm in pair)
    config = pair[0].config
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    batch, capacity = data.draw(st.integers(1, 3)), data.draw(st.integers(8, 24))
    width = next(spec.shape[2] for spec in ours.inputs if spec.name == "inputs_embeds")
    caches = [session.new_cache(batch, capacity) for session in (ours, theirs)]
    assert caches[0].nbytes == caches[1].nbytes
    begun = np.zeros(batch, np.int64)
    for _ in range(data.draw(st.integers(1, 4))):
        if data.draw(st.booleans()):
            capacity += data.draw(st.integers(1, 9))
            caches = [s.grow_cache(c, capacity) for s, c in zip((ours, theirs), caches, strict=True)]
        length = data.draw(st.integers(1, 6))
        if int(begun.max()) + length > capacity:
            break
        inputs = {
            "inputs_embeds": rng.standard_normal((batch, length, width)).astype(numpy_dtype(config.dtype)),
            "position_ids": (begun[:, None] + np.arange(length))[:, None],
            "write_index": begun.copy(),
            "logits_index": np.full((batch, 1), length - 1),
        }
        found = [s.run(inputs, c) for s, c in zip((ours, theirs), caches, strict=True)]
        np.testing.assert_allclose(found[1]["logits"], found[0]["logits"], rtol=0, atol=2e-5)
        # Rows may go on from different places.
        begun = begun + rng.integers(1, length + 1, batch)
    for cache_pair in ours.pairs:
        np.testing.assert_allclose(caches[1].read(cache_pair.past), caches[0].read(cache_pair.past), rtol=0, atol=2e-5)


def test_caches_are_apart(pair: tuple[Vlm, Vlm]) -> None:
    session = pair[1].chain.session("decoder")
    (name, *_) = [p.past for p in session.pairs]
    first, second = session.new_cache(1, 8), session.new_cache(2, 16)
    heads, width = first.read(name).shape[1::2]
    ones = np.ones((1, heads, 3, width), np.float32)
    first.write({p.past: ones for p in session.pairs}, np.array([[2, 0, NO_SLOT]]))
    assert not second.read(name).any()
    assert first.read(name).any(axis=(0, 1, 3)).tolist() == [True, False, True, *[False] * 5]
    first.zero()
    assert not first.read(name).any()
    again = session.new_cache(1, 12, reuse=second)
    assert again.request is second.request
    assert again.read(name).shape[2] == 12


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_caches_written_again_and_again(pair: tuple[Vlm, Vlm], seed: int) -> None:
    """Slots in any order, more of them than the cache holds, and rows taken over into other batches."""
    ours, theirs = (vlm.chain.session("decoder") for vlm in pair)
    rng = np.random.default_rng(seed)
    width = next(spec.shape[2] for spec in ours.inputs if spec.name == "inputs_embeds")
    batch, capacity = int(rng.integers(1, 4)), int(rng.integers(12, 20))
    caches = [session.new_cache(batch, capacity) for session in (ours, theirs)]
    filled = np.zeros(batch, np.int64)
    for _ in range(60):
        if rng.random() < 0.1:
            rows = rng.integers(0, batch, int(rng.integers(1, 4)))
            tokens = [int(rng.integers(0, filled[row] + 1)) for row in rows]
            caches = [
                s.gather_rows([CachedRow(c, int(row), n) for row, n in zip(rows, tokens, strict=True)], capacity)
                for s, c in zip((ours, theirs), caches, strict=True)
            ]
            batch, filled = len(rows), np.array(tokens)
        length = int(rng.integers(1, 7))
        begin = np.array([rng.integers(0, min(n, capacity - length) + 1) for n in filled])
        inputs = {
            "inputs_embeds": rng.standard_normal((batch, length, width)).astype(np.float32),
            "position_ids": (begin[:, None] + np.arange(length))[:, None],
            "write_index": begin,
            "logits_index": np.full((batch, 1), length - 1),
        }
        found = [s.run(inputs, c) for s, c in zip((ours, theirs), caches, strict=True)]
        np.testing.assert_allclose(found[1]["logits"], found[0]["logits"], rtol=0, atol=2e-5)
        filled = begin + length
    columns = caches[1].columns
    assert columns.shape[1] <= capacity + LEAST_SPARE
    with pytest.raises(BackendError, match=f"are beyond a KV cache of {capacity}"):
        theirs.run({**inputs, "write_index": np.full(batch, capacity - length + 1)}, caches[1])


def test_dead_columns_are_dropped(pair: tuple[Vlm, Vlm]) -> None:
    """The row that is done writes to its last place again, as long as another row goes on."""
    requests = [Request([picture(1)], "Why?", max_new_tokens=2), Request([picture(2)], QUESTION)]
    ours, theirs = (vlm.generate_batch(requests, max_new_tokens=2 * LEAST_SPARE) for vlm in pair)
    assert all(same(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("options", [{}, {"precision": "bf16"}, {"kv_cache": "u8"}])
def test_attention_is_one_kernel(pair: tuple[Vlm, Vlm], options: dict[str, str]) -> None:
    """With its cache inside, in each layer, in the asked type; and a memory that is counted so."""
    made = pair[1].config
    backend = OpenVinoBackend(1, options)
    backend._properties["PERF_COUNT"] = "YES"
    vlm = Vlm(made, backend, max_pixels=10**6)
    vlm.generate(picture(1), QUESTION, max_new_tokens=2)
    session = vlm.chain.session("decoder")
    nodes = [node.node_type for node in vlm.pipeline.decoder.take(1, 1).request.get_profiling_info()]
    assert nodes.count("ScaledDotProductAttentionWithKVCache") == len(session.pairs) // 2
    assert not {"ScatterElementsUpdate", "MemoryOutput", "Softmax", "MatMul", "Subgraph"} & set(nodes)
    heads, width = session.pairs[0].spec.shape[1::2]
    each = width + 8 if "kv_cache" in options else (2 if "precision" in options else 4) * width
    assert session.new_cache(2, 16).nbytes == 2 * 16 * len(session.pairs) * heads * each


def test_a_tower_in_8_bits(pair: tuple[Vlm, Vlm]) -> None:
    """Its matrices are integers to the plug-in, and its output is that of matrices rounded by NumPy."""
    made = pair[1].config
    backend = OpenVinoBackend(1, {"tower": "int8", "activations": "float32"})
    backend._properties["PERF_COUNT"] = "YES"
    vision = backend.session(made.component("vision"), made.root)
    stored = pair[1].chain.session("vision")
    pixels = {"pixel_values": np.random.default_rng(0).standard_normal((1, 3, 56, 56)).astype(np.float32)}
    found, exact = vision.run(pixels), stored.run(pixels)
    nodes = [node.node_type for node in vision._request.get_profiling_info()]
    assert nodes.count("FullyConnectedCompressed") > 10
    assert "FullyConnected" not in nodes
    model = onnx.load(made.root / made.component("vision").onnx)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {node.output[0]: node for node in model.graph.node}
    for product in model.graph.node:
        name = product.input[1] if product.op_type == "MatMul" else ""
        while name in makers and makers[name].op_type in ("Transpose", "Cast"):
            name = makers[name].input[0]
        if name in weights and len(weights[name].dims) == 2:
            matrix = onnx.numpy_helper.to_array(weights[name])  # [outputs, inputs]
            step = np.abs(matrix).max(axis=1, keepdims=True) / 127
            weights[name].CopyFrom(onnx.numpy_helper.from_array((np.rint(matrix / step) * step), name))
    expected = OpenVinoBackend(1).compile(model.SerializeToString(), made.root / "vision.onnx")(pixels)
    for port, array in expected.items():
        name = port.get_any_name()
        np.testing.assert_allclose(found[name], array, rtol=0, atol=2e-5)
        assert np.abs(array - exact[name]).max() > 1e-4
    assert pair[1].config.weight_dtype is None


def test_a_cache_in_8_bits_is_close(pair: tuple[Vlm, Vlm]) -> None:
    ours, made = pair[0], pair[0].config
    theirs = Vlm(made, OpenVinoBackend(1, {"kv_cache": "u8"}), max_pixels=10**6)
    recorders = record(ours), record(theirs)
    for vlm in (ours, theirs):
        vlm.generate(picture(1), QUESTION, max_new_tokens=6)
    errors = [np.abs(a - b).max() for a, b in zip(recorders[0].logits, recorders[1].logits, strict=True)]
    assert max(errors) < 0.05
    assert errors[1] > 2e-5


def test_a_cache_beyond_memory(pair: tuple[Vlm, Vlm]) -> None:
    with pytest.raises(BackendError, match="no memory"):
        pair[1].chain.session("decoder").new_cache(1 << 20, 1 << 30)


# -- the commands


def command(*arguments: Any) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_run(kit: Kit, tmp_path: Path) -> None:
    made = built(kit, method="adafv", keep=6)
    picture(1).save(tmp_path / "a.png")
    asked = ("run", made.root, "--image", tmp_path / "a.png", "--prompt", QUESTION, "--max-new-tokens", 6, "--json")
    answers = []
    for provider in ((), ("--provider", "cpu"), ("--provider-option", "precision=bf16")):
        code, out, err = command(*asked, *provider, "-q")
        assert code == 0, err
        answers.append(json.loads(out))
    assert answers[0]["token_ids"] == answers[1]["token_ids"]
    assert answers[0]["kept_indices"] == answers[1]["kept_indices"]
    assert len(answers[2]["token_ids"]) > 0


def test_compare_layer_by_layer(kit: Kit, tmp_path: Path) -> None:
    """Against transformers, and against the same graphs in ONNX Runtime; every component and the inside of one."""
    made = built(kit, method="adafv", keep=6)
    code, out, err = command(
        "compare", made.root, "--against", "transformers", "--checkpoint", kit.path, "--layerwise", "--json", "-q"
    )
    assert code == 0, out + err
    found = json.loads(out)["components"]
    assert [(row["name"], row["candidate"]) for row in found] == [
        (name, f"openvino:{made.root.name}") for name in ("vision", "embed", "pruner", "decoder")
    ]
    assert all(row["layers"]["residual"] for row in found if row["name"] in ("vision", "decoder"))


def test_bench_and_eval(kit: Kit, tmp_path: Path) -> None:
    made = built(kit, method="adafv", keep=6)
    code, out, err = command(
        "bench", made.root, "--methods", "adafv,divprune", "--keep", 6, "--rounds", 1, "--warmup", 1, "--threads", 1,
        "--max-new-tokens", 3, "--json", "-", "-q",
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(out)
    assert found["provider"] == "openvino"
    assert all(row["floor_ms"] > 0 and row["peak_memory_bytes"] > 50e6 for row in found["rows"]), found["notes"]
    picture(1).save(tmp_path / "a.png")
    rows = [{"id": str(i), "image": "a.png", "question": f"What is {i}?", "answer": "a"} for i in range(3)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = ("--methods", "adafv,divprune,sparsevlm:schedule=0:6", "--keep", "7", "--no-plot", "-q")
    code, out, err = command("eval", made.root, "--data", tmp_path / "q.jsonl", *asked, "-o", tmp_path / "e")
    assert code == 0, err


def test_a_directory_built_for_onnxruntime(kit: Kit, tmp_path: Path) -> None:
    """Methods built on the way are written for the provider that was asked for; the directory itself is as it is."""
    trtprune.build(str(kit.path), tmp_path / "out", method="adafv", keep=6)
    with Variants(tmp_path / "out", Running(provider="openvino", threads=1)) as variants:
        vlm = variants.open(Variant.make("divprune"))
        assert vlm.config.lowering["cache"] == "primitives"
        assert vlm.generate(picture(1), QUESTION, keep=6, max_new_tokens=2).kept_tokens == 6
    code, _, err = command("inspect", tmp_path / "out")
    assert code == 0
    picture(1).save(tmp_path / "a.png")
    code, _, err = command("run", tmp_path / "out", "--image", tmp_path / "a.png", "--prompt", "Why?", "--provider",
                           "openvino")  # fmt: skip
    assert code == 1
    assert "OpenVINO cannot open it" in err
    assert "trtprune build --provider openvino" in err


INTERRUPTED = """
import gc, signal
from pathlib import Path
from trtprune.backends.base import CachedRow
from trtprune.backends.openvino import OpenVinoBackend
from trtprune.graph import Graph

g = Graph("small", dtype="float32")
x = g.input("x", "float32", ["batch", 4])
g.output(g.op.Mul(x, x), "y", "float32", ["batch", 4])

opened = []
for _ in range(2):
    backend = OpenVinoBackend(1)
    opened.append((backend, backend.compile(g.to_bytes(), Path("small.onnx"))))
del backend
while opened:
    opened.pop(0)
    gc.collect()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_interrupt_after_backends_were_closed() -> None:
    """A core of OpenVINO for each would leave signal handlers without a stack, and Ctrl-C a segmentation fault."""
    arguments = [sys.executable, "-X", "faulthandler", "-c", INTERRUPTED]
    done = subprocess.run(arguments, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr[-3000:]


# -- what is refused


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendError, match=r"openvino.*pip install 'trtprune\[openvino\]'"):
        OpenVinoBackend()


def test_unknown_options() -> None:
    with pytest.raises(BackendError, match=r"'precision': 'fp8'}: unknown .*float32 or bf16"):
        open_provider("openvino", options={"precision": "fp8"})
    with pytest.raises(BackendError, match=r"provider_options device_id.*it has: precision, .*, kv_cache, tower"):
        open_provider("openvino", options={"device_id": "0"})
    with pytest.raises(BackendError, match=r"'activations': 'int4'}: unknown .*int8 or float32"):
        open_provider("openvino", options={"activations": "int4"})
    with pytest.raises(BackendError, match=r"'kv_cache': 'u4'}: unknown .*full or u8"):
        open_provider("openvino", options={"kv_cache": "u4"})
    with pytest.raises(BackendError, match=r"provider='tpu': unknown .*cpu, cuda, openvino"):
        open_provider("tpu")


def test_inputs_that_do_not_fit(pair: tuple[Vlm, Vlm]) -> None:
    vision, decoder = (pair[1].chain.session(name) for name in ("vision", "decoder"))
    with pytest.raises(BackendError, match="pixel_values"):
        vision.run({"pixel_values": np.zeros((1, 3, 5, 5), np.float32)})
    with pytest.raises(BackendError, match="without one"):
        width = next(spec.shape[2] for spec in decoder.inputs if spec.name == "inputs_embeds")
        decoder.run(
            {
                "inputs_embeds": np.zeros((1, 1, width), np.float32), "position_ids": np.zeros((1, 1, 1), np.int64),
                "write_index": np.zeros(1, np.int64), "logits_index": np.zeros((1, 1), np.int64),
            }
        )  # fmt: skip


def broken(made: EngineDir, out: Path, change: Any) -> EngineDir:
    """A copy whose vision graph is another one."""
    trtprune.build(str(made.root), out, method="none", provider="openvino")
    found = open_engine_dir(out)
    change(out / "onnx" / "vision.onnx")
    return found


def test_a_graph_that_is_none(kit: Kit, tmp_path: Path) -> None:
    made = broken(built(kit, method="none"), tmp_path / "out", lambda path: path.write_bytes(b"\x00none"))
    with pytest.raises(BackendError, match=r"vision\.onnx: OpenVINO cannot open it"):
        OpenVinoBackend(threads=1).session(made.component("vision"), made.root)


def test_a_graph_that_is_not_there(kit: Kit, tmp_path: Path) -> None:
    made = broken(built(kit, method="none"), tmp_path / "out", lambda path: path.unlink())
    with pytest.raises(EngineDirError, match=r"vision\.onnx: cannot be read"):
        OpenVinoBackend(threads=1).session(made.component("vision"), made.root)


@pytest.mark.parametrize("place", ["../secret", "/etc/hostname"])
def test_weights_outside_of_the_directory(kit: Kit, tmp_path: Path, place: str) -> None:
    """Nothing is read that lies elsewhere, and the process is where it was."""

    def elsewhere(path: Path) -> None:
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = place
        path.write_bytes(model.SerializeToString())

    (tmp_path / "secret").write_bytes(bytes(1 << 20))
    made, before = broken(built(kit, method="none"), tmp_path / "out", elsewhere), Path.cwd()
    with pytest.raises(BackendError, match=r"vision\.onnx: OpenVINO cannot open it"):
        OpenVinoBackend(threads=1).session(made.component("vision"), made.root)
    assert Path.cwd() == before


def test_a_graph_with_other_inputs(kit: Kit, tmp_path: Path) -> None:
    def renamed(path: Path) -> None:
        model = onnx.load(path, load_external_data=False)
        for node in model.graph.node:
            node.input[:] = ["pixels" if name == "pixel_values" else name for name in node.input]
        model.graph.input[0].name = "pixels"
        path.write_bytes(model.SerializeToString())

    made = broken(built(kit, method="none"), tmp_path / "out", renamed)
    with pytest.raises(EngineDirError, match=r"not those of config\.json"):
        OpenVinoBackend(threads=1).session(made.component("vision"), made.root)
