"""Engines built through the public commands with TensorRT-RTX, on a machine with no GPU; and what is refused.

No engine can be run here: what the graphs compute is tested in ONNX Runtime, what the parser made of them by the
checks of ``backends.tensorrt.check``, and that all of it compiles, for every GPU that is served, by these builds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest

from tests.kit.engine_kit import ALL, FAMILIES, build, command
from tests.kit.tiny import Tiny
from tests.kit.tiny_files import complete
from trtprune.backends.tensorrt import building
from trtprune.engine_dir import EngineDir, open_engine_dir
from trtprune.errors import BuildError
from trtprune.graph import Graph

rtx = pytest.importorskip("tests.kit.rtx", reason="tensorrt-rtx is not installed", exc_type=ImportError)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: complete(folder / name, tiny) for name, tiny in FAMILIES.items()}


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same on a machine that has one."""
    monkeypatch.setattr("trtprune.backends.tensorrt.gpus.find_gpus", list)


@pytest.fixture(scope="module")
def plain(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> EngineDir:
    """Engines of the first family for one GPU, by default."""
    return build(checkpoints["clip-llama"], tmp_path_factory.mktemp("plain") / "out", keep=4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_for_every_gpu(checkpoints: dict[str, Path], tmp_path: Path, family: str) -> None:
    """One directory of engines for SM75 to SM121, with a range of budgets, batches and pictures."""
    method = ("--method", "random") if family == "siglip-mistral" else ()
    code, out, err = command(
        "build", "-m", checkpoints[family], "-o", tmp_path / "out", "--backend", "tensorrt-rtx", "--keep", 6,
        "--keep-range", "2:12", "--compute-capability", ",".join(ALL), "--max-batch-size", 2, "--max-images", 3,
        "--max-input-len", 40, "--json", *method,
    )  # fmt: skip
    assert code == 0, err
    made = open_engine_dir(tmp_path / "out", verify="full", backend="tensorrt-rtx")
    assert json.loads(out)["engines"]["targets"] == list(ALL)
    assert made.dtype == made.kv.dtype == "float16"
    assert made.engines is not None
    assert (made.engines.max_batch_size, made.engines.max_input_len, made.engines.max_images) == (2, 40, 3)
    assert made.built_with["tensorrt-rtx"] == made.engines.version == rtx.trt.__version__
    assert made.kv.capacity == 384  # 40 + 3 * 12 + 256 = 332, in steps of 128
    for component in made.components:
        assert component.engine == f"engines/{component.name}.engine"
        assert f"{component.name:<9} engine for sm75, sm80, sm86, sm89, sm120, sm121: " in err
        assert made.path(component.engine).stat().st_size > 10_000
        assert len(component.profiles) == 1
        dynamic = {s.name for s in component.inputs if any(isinstance(d, str) for d in s.shape)}
        assert set(component.profiles[0]) == dynamic | ({"keep"} if component.name == "pruner" else set())
    assert "kv cache  2 rows of 384 tokens: " in err
    pruner, decoder = made.component("pruner").profiles[0], made.component("decoder").profiles[0]
    assert pruner["keep"] == ((2,), (6,), (12,))
    assert decoder["inputs_embeds"] == ((1, 1, 64), (2, 70, 64), (2, 76, 64))
    assert decoder["past_key_values.0.key"] == ((1, 2, 384, 16), (2, 2, 384, 16), (2, 2, 384, 16))


@pytest.mark.parametrize("target", ALL)
@pytest.mark.parametrize("component", ["vision", "decoder"])
def test_each_gpu_alone(plain: EngineDir, component: str, target: str) -> None:
    """An engine for one GPU is compiled otherwise than one for several."""
    network = rtx.Network(plain.path(f"onnx/{component}.onnx").read_bytes(), plain.root / "onnx", {"capacity": 128})
    assert network.build(targets=(target,)) > 0


def test_the_demo_model(tmp_path: Path) -> None:
    """157 million parameters for all six kinds of GPU."""
    from trtprune.demo.assemble import assemble

    made = build(assemble(), tmp_path / "out", *ALL, keep=64, keep_range=(16, 192))
    assert made.component("pruner").profiles[0]["keep"] == ((16,), (64,), (192,))
    assert made.kv.capacity == 1024  # 512 + 192 + 256 = 960
    sizes = {c.name: made.path(c.engine).stat().st_size for c in made.components if c.engine}
    weights = sum(path.stat().st_size for path in (made.root / "onnx/weights").iterdir())
    assert 0.9 * weights < sizes["decoder"] + sizes["embed"] + sizes["vision"] < 1.5 * weights


@pytest.mark.parametrize(
    ("dtype", "attention"),
    [("float16", "fp32-boundary"), ("float16", "decomposed"), ("bfloat16", "fused"), ("float32", "fused")],
)
def test_dtypes_and_attention(checkpoints: dict[str, Path], tmp_path: Path, dtype: str, attention: str) -> None:
    made = build(checkpoints["clip-llama"], tmp_path / "out", "sm89", "sm120", dtype=dtype,
                 engine={"attention": attention}, keep=4)  # fmt: skip
    assert made.engines is not None
    assert made.engines.attention == attention
    assert made.component("decoder").dtype == made.kv.dtype == dtype


def test_the_graphs_stay_what_onnx_runtime_runs(plain: EngineDir) -> None:
    """The capacity is fixed in the parsed copy only, so that the engines can be compared with the graphs."""
    import onnxruntime as ort

    made = plain
    for component in made.components:
        options = ort.SessionOptions()
        session = ort.InferenceSession(made.path(component.onnx), options, ["CPUExecutionProvider"])
        assert {value.name for value in session.get_inputs()} == {spec.name for spec in component.inputs}
    decoder = onnx.load(made.path("onnx/decoder.onnx"), load_external_data=False)
    cache = next(value for value in decoder.graph.input if value.name == "past_key_values.0.key")
    assert cache.type.tensor_type.shape.dim[2].dim_param == "capacity"


def test_inspect_shows_the_engines(plain: EngineDir) -> None:
    code, out, err = command("inspect", plain.root, "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert facts["engines"]["targets"] == ["sm89"]
    for component in facts["components"]:
        assert component["engine_bytes"] == plain.path(component["engine"]).stat().st_size
    assert facts["components"][2]["profiles"][0]["keep"] == [[1], [4], [16]]
    text = command("inspect", plain.root)[1]
    total = sum(component["engine_bytes"] for component in facts["components"]) / 1e6
    assert f"tensorrt-rtx {rtx.trt.__version__} for sm89, {total:.1f} MB; attention fused" in text
    assert "1 row of 1 picture and 512 text tokens; the cache takes 196.6 kB" in text  # 512 * 2 * 3 * 2 * 16 * 2 B
    assert "inputs_embeds 1x1x64 1x68x64 1x512x64" in text
    assert text.count("past_key_values.*.key 1x2x512x16\n") == 1


def test_flags_reach_the_builder(
    checkpoints: dict[str, Path], plain: EngineDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As TensorRT says itself: sizes and bytes of engines do not tell one setting from another."""
    configured = []

    def configure(trt: Any, config: Any, settings: Any, component: str) -> None:
        ours(trt, config, settings, component)
        configured.append(
            (
                config.get_flag(trt.BuilderFlag.WEIGHT_STREAMING),
                config.builder_optimization_level,
                config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE),
                config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED,
            )
        )

    ours = building._configure
    monkeypatch.setattr(building, "_configure", configure)
    engine = {"weight_streaming": True, "builder_optimization_level": 0, "pool_limit": {"workspace": 1 << 30},
              "profiling_verbosity": "detailed"}  # fmt: skip
    told = build(checkpoints["clip-llama"], tmp_path / "told", keep=4, engine=engine)
    assert configured == [(True, 0, 1 << 30, True)] * len(told.components)
    assert told.engines is not None
    assert told.engines.weight_streaming
    assert told.build_digest != plain.build_digest


def test_the_same_engines_are_found_again(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    said: list[str] = []
    first = build(checkpoints["clip-llama"], tmp_path / "out", keep=4)
    again = build(checkpoints["clip-llama"], tmp_path / "out", keep=4, report=lambda name, text: said.append(text))
    assert again == first
    assert "already holds this build" in said[-1]
    # What is the default anyway may be said.
    said_so = build(checkpoints["clip-llama"], tmp_path / "out", "8.9", keep=4, engine={"max_input_len": 512})
    assert said_so == first
    with pytest.raises(BuildError, match="holds another build"):
        build(checkpoints["clip-llama"], tmp_path / "out", "sm120", keep=4)
    with pytest.raises(BuildError, match="holds another build"):
        build(checkpoints["clip-llama"], tmp_path / "out", keep=4, engine={"max_batch_size": 2})


def test_a_method_that_keeps_everything(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    made = build(checkpoints["clip-llama"], tmp_path / "out", method="none")
    assert made.component("pruner").profiles[0]["keep"] == ((16,), (16,), (16,))


def bfloat16_graph(root: Path) -> tuple[bytes, dict[str, Any]]:
    """Weights that are cast to float16, gathered before they are cast, and cast to float32."""
    import torch

    from trtprune.checkpoint import TensorInfo

    generator = torch.Generator().manual_seed(0)
    tensors = {name: 300 * torch.randn(6, 4, generator=generator) for name in ("matrix", "table", "wide")}
    tensors["matrix"][0, 0] = 1e6  # beyond float16
    data = {name: t.to(torch.bfloat16) for name, t in tensors.items()}
    (root / "weights").mkdir()
    blob = b"".join(t.view(torch.int16).numpy().tobytes() for t in data.values())
    (root / "weights" / "x.safetensors").write_bytes(b"\0" * 8 + blob)
    places = {
        name: TensorInfo(name=name, file="x.safetensors", dtype="BF16", shape=(6, 4), offset=8 + 48 * i, nbytes=48)
        for i, name in enumerate(data)
    }
    g = Graph("weights", dtype="float16", tensors=places)
    rows = g.op.Gather(g.weight("table", raw=True), g.input("ids", "int64", ["n"]))
    x = g.op.Add(g.op.Unsqueeze(g.cast(rows, g.dtype), g.ints(1)), g.weight("matrix"))
    wide = g.op.Mul(g.weight("wide", dtype=onnx_ir.DataType.FLOAT), g.scalar(2.0, onnx_ir.DataType.FLOAT))
    g.output(x, "y", "float16", ["n", 6, 4])
    g.output(wide, "z", "float32", [6, 4])
    return g.to_bytes(), {
        "matrix": data["matrix"].to(torch.float16),
        "table": data["table"].to(torch.float16),
        "wide": data["wide"].float(),
    }


def test_bfloat16_weights_on_turing(tmp_path: Path) -> None:
    """They are cast on the host there, to what the graph would have cast them to."""
    from trtprune.backends.tensorrt.flavour import get_log
    from trtprune.backends.tensorrt.network import Network

    model, expected = bfloat16_graph(tmp_path)
    proto = onnx.load_model_from_string(model)
    network = Network(rtx.trt, get_log(rtx.trt), proto, tmp_path, "graph", without_bfloat16=True)
    names = [tensor.name for tensor in proto.graph.initializer if tensor.name in expected]
    assert sorted(names) == sorted(expected)
    for name, copy in zip(names, network._copies, strict=True):
        np.testing.assert_array_equal(copy.reshape(6, 4), expected[name].numpy())
        assert copy.dtype == expected[name].numpy().dtype


def test_a_weight_file_that_is_too_short(tmp_path: Path) -> None:
    model, _ = bfloat16_graph(tmp_path)
    path = tmp_path / "weights" / "x.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BuildError, match=r"weights/x\.safetensors: too short for weight 'wide'"):
        rtx.Network(model, tmp_path)
    path.write_bytes(b"")
    with pytest.raises(BuildError, match=r"weights/x\.safetensors: cannot be read"):
        rtx.Network(model, tmp_path)


@pytest.mark.parametrize("method", ["adafv", "fastervlm", "random", "zspaprune"])
def test_pruners_for_every_gpu(method: str) -> None:
    """Also for Turing, for which TensorRT-RTX has no float32 matrix products."""
    from trtprune.graph import Lowering
    from trtprune.pruning.graph import build_pruner

    graph = build_pruner(method, 64, "float16", Lowering(products="primitives"), num_tokens=576)
    assert rtx.Network(graph.to_bytes(), None).build(values={"keep": (1, 64, 576)}, targets=ALL) > 0
    assert not any(node.op_type == "MatMul" for node in onnx.load_model_from_string(graph.to_bytes()).graph.node)


def test_products_written_out_are_the_same() -> None:
    from tests.kit.runner import session
    from trtprune.graph import Lowering
    from trtprune.pruning.ops import write_products

    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 5, 33)).astype(np.float32), rng.standard_normal((2, 7, 33)).astype(np.float32)
    for form in ("op", "primitives"):
        g = Graph("products", dtype="float32", lowering=Lowering(products=form))
        x, y = g.input("a", "float32", ["n", "p", "d"]), g.input("b", "float32", ["n", "q", "d"])
        g.output(write_products(g, x, y), "y", "float32", ["n", "p", "q"])
        np.testing.assert_allclose(session(g).run(None, {"a": a, "b": b})[0], a @ b.transpose(0, 2, 1), atol=1e-5)


@pytest.mark.parametrize(("kind", "targets"), [("int8", ("sm75", "sm89")), ("int4", ("sm89",))])  # Turing has no int4
def test_quantised_weights(tmp_path: Path, kind: str, targets: tuple[str, ...]) -> None:
    checkpoint = complete(tmp_path / "wide", Tiny(hidden=128, heads=4, kv_heads=2, text={"intermediate_size": 256}))
    made = build(checkpoint, tmp_path / "out", *targets, keep=4, weight_dtype=kind)
    assert made.weight_dtype == kind
    assert made.component("decoder").engine is not None


def test_what_is_being_done_is_shown_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT reports thousands of steps a second; a terminal is told ten times."""
    from trtprune.cli.console import TerminalReporter

    class Status:
        def __init__(self) -> None:
            self.texts: list[str] = []

        def update(self, text: str) -> None:
            self.texts.append(text)

    now = 100.0
    monkeypatch.setattr("trtprune.cli.console.time.perf_counter", lambda: now)
    status = Status()
    report = TerminalReporter("build", status)
    for step in range(1000):
        now += 0.001
        report.live(f"decoder: Optimizing graph {step}/1000")
    assert 9 <= len(status.texts) <= 11
    assert status.texts[0] == "build: decoder: Optimizing graph 0/1000"
    TerminalReporter("build").live("no terminal, nothing to show")
