"""What an engine build refuses, and that it leaves nothing behind: bad flags, wrong graphs, interrupts, full disks."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import onnx
import pytest

from tests.kit.engine_kit import ALL, FAMILIES, build, command
from tests.kit.tiny_files import complete
from trtprune.errors import BackendError, BuildError
from trtprune.graph import Graph

rtx = pytest.importorskip("tests.kit.rtx", reason="tensorrt-rtx is not installed", exc_type=ImportError)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return complete(tmp_path_factory.mktemp("checkpoint") / "clip-llama", FAMILIES["clip-llama"])


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same on a machine that has one."""
    monkeypatch.setattr("trtprune.backends.tensorrt.gpus.find_gpus", list)


@pytest.mark.parametrize(
    ("arguments", "named", "hint"),
    [
        ((), "--compute-capability is needed: no NVIDIA GPU", "sm75,sm80,sm86,sm89,sm120,sm121"),
        (("--compute-capability", "sm90"), "--compute-capability sm90: TensorRT-RTX", "--provider cuda"),
        (("--compute-capability", "current"), "--compute-capability current: no NVIDIA GPU", "sm89"),
        (("--compute-capability", "hopper"), "--compute-capability hopper: not a", "sm89"),
        (("--compute-capability", "sm75", "--dtype", "bfloat16"), "--dtype bfloat16: ", "sm75"),
        (("--compute-capability", "sm75", "--dtype", "float32"), "--dtype float32: ", "--dtype float16"),
        (("--compute-capability", "sm75", "--weight-dtype", "int4"), "--weight-dtype int4: ", "--weight-dtype int8"),
        (("--compute-capability", "sm75", "--attention", "fp32-boundary"), "--attention fp32-boundary: ", "decomposed"),
        (("--compute-capability", "sm89", "--version-compatible"), "--version-compatible: the tensorrt-rtx", "tensor"),
        (("--compute-capability", "sm89", "--save-timing-cache", "x"), "--save-timing-cache: the tens", "tensorrt"),
        (("--compute-capability", "sm89", "--hardware-compatibility-level", "ampere_plus"),
         "--hardware-compatibility-level: the tensorrt-rtx", "tensorrt"),
        (("--compute-capability", "sm89", "--pool-limit", "worksapce:4G"), "--pool-limit worksapce: ", "workspace"),
        (("--compute-capability", "sm89", "--pool-limit", "workspace:1M"),
         "vision: tensorrt_rtx .* cannot build it for sm89: .*no tactics .* within workspace limit", "--pool-limit"),
        (("--compute-capability", "sm89", "--max-batch-size", "0"), "--max-batch-size 0", None),
        (("--compute-capability", "sm89", "--max-images", "-1"), "--max-images -1", None),
        (("--compute-capability", "sm89", "--max-input-len", "600"), "--max-input-len 600: above", "--max-seq-len"),
        (("--compute-capability", "sm89", "--builder-optimization-level", "9"), "--builder-optimization-level 9", "5"),
        (("--compute-capability", "sm89", "--lowering", "attention=primitives"), "--lowering attention=prim", "fused"),
        (("--compute-capability", "sm89", "--lowering", "cache=primitives"), "--lowering cache=primitives: ", "leave"),
        (("--compute-capability", "sm89", "--lowering", "vision_attention=op-float32"), "vision_attention", "prim"),
        (("--backend", "tensorrt"), "--backend tensorrt: tensorrt is not installed", "trtprune[tensorrt]"),
        (("--backend", "onnxruntime", "--max-batch-size", "2"), "--max-batch-size: the onnxruntime backend", "tensor"),
    ],
)  # fmt: skip
def test_bad_input(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    named: str,
    hint: str | None,
) -> None:
    """One line that names the flag, one that says what to do, exit code 1, and nothing left behind."""
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # not installed, wherever this runs
    backend = () if "--backend" in arguments else ("--backend", "tensorrt-rtx")
    where = ("-m", checkpoint, "-o", tmp_path / "out", "--keep", 4)
    code, out, err = command("build", *where, *backend, *arguments)
    assert code == 1
    assert out == ""
    errors = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert re.search(named, errors[0]), errors[0]
    if hint is not None:
        assert hint in next(line for line in err.splitlines() if line.startswith("hint:"))
    assert list(tmp_path.iterdir()) == []


def test_tensorrt_rtx_not_installed(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(BackendError, match="--backend tensorrt-rtx: tensorrt_rtx is not installed") as caught:
        build(checkpoint, tmp_path / "out", keep=4)
    assert caught.value.hint == "pip install 'trtprune[tensorrt-rtx]'"


def plant(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Has the family build a decoder that ``change`` was done to."""
    from trtprune.models.projected_tower import ProjectedTowerModel

    build_components = ProjectedTowerModel.build_components

    class Planted:
        def __init__(self, graph: Graph) -> None:
            self.graph = graph

        def save(self, path: Path, *, inline: bool) -> None:
            assert not inline
            proto = onnx.load_model_from_string(self.graph.to_bytes())
            change(proto)
            path.write_bytes(proto.SerializeToString())

    def build_wrong(self: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        graphs = dict(build_components(self, *arguments, **options))
        return graphs | {"decoder": Planted(graphs["decoder"])}

    monkeypatch.setattr(ProjectedTowerModel, "build_components", build_wrong)


def attentions(proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in proto.graph.node if node.op_type == "Attention"]


def lengths_for_mask(proto: onnx.ModelProto) -> None:
    """What facts of the parser make dangerous: it builds, and attends to the whole cache."""
    proto.graph.input.append(onnx.helper.make_tensor_value_info("lengths", onnx.TensorProto.INT64, ["batch"]))
    node = attentions(proto)[1]
    node.input[3] = ""
    node.input.extend(["", "", "lengths"])
    node.attribute.append(onnx.helper.make_attribute("is_causal", 1))


def causal_for_mask(proto: onnx.ModelProto) -> None:
    node = attentions(proto)[2]
    del node.input[3:]
    node.attribute.append(onnx.helper.make_attribute("is_causal", 1))


def no_mask(proto: onnx.ModelProto) -> None:
    del attentions(proto)[0].input[3:]


@pytest.mark.parametrize("linted", [True, False])
@pytest.mark.parametrize(
    ("change", "before", "after"),
    [
        (lengths_for_mask, "layers.1/.*nonpad_kv_seqlen, which TensorRT ignores", "layers.1/.* is causal"),
        (causal_for_mask, "layers.2/.*is_causal", "layers.2/.* is causal"),
        (no_mask, "layers.0/.*has no mask", "layers.0/.* has no mask"),
    ],
)
def test_a_wrong_decoder_is_not_built(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Any,
    before: str,
    after: str,
    linted: bool,
) -> None:
    """All three parse and build in TensorRT-RTX; the build refuses them, by the graph and by the network."""
    plant(monkeypatch, change)
    if not linted:
        monkeypatch.setattr("trtprune.backends.tensorrt.network.lint", lambda proto, component: None)
    with pytest.raises(BuildError, match=rf"decoder: .*{before if linted else after}"):
        build(checkpoint, tmp_path / "out", keep=4)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_write_lost_is_noticed(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that is concatenated instead would be a copy of itself at every step."""

    def change(proto: onnx.ModelProto) -> None:
        node = next(node for node in proto.graph.node if node.op_type == "TensorScatter")
        node.CopyFrom(onnx.helper.make_node("Identity", node.input[:1], node.output, name=node.name))

    plant(monkeypatch, change)
    with pytest.raises(BuildError, match="decoder: 5 cache update layers after parsing, expected 6"):
        build(checkpoint, tmp_path / "out", keep=4)


def test_an_interrupt_stops_the_builder(checkpoint: Path, tmp_path: Path) -> None:
    """Ctrl-C while TensorRT works: the builder is told to stop, and nothing stays."""

    class Report:
        def __init__(self) -> None:
            self.seen: list[str] = []

        def __call__(self, component: str, text: str) -> None:
            pass

        def live(self, text: str) -> None:
            self.seen.append(text)
            if text.startswith("decoder: ") and len([t for t in self.seen if t.startswith("decoder")]) == 20:
                os.kill(os.getpid(), signal.SIGINT)

    report = Report()
    with pytest.raises(KeyboardInterrupt):
        build(checkpoint, tmp_path / "out", keep=4, report=report)
    assert list(tmp_path.iterdir()) == []
    assert not [t for t in threading.enumerate() if t.name == "tensorrt-build" and t.is_alive()]
    assert any(text.startswith("vision: ") for text in report.seen)
    build(checkpoint, tmp_path / "out", keep=4)  # and the library is none the worse for it


def test_an_interrupt_waits_for_the_builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It calls back into Python until it ends: were it left behind, the process would end with an abort."""
    from types import SimpleNamespace

    from trtprune.backends.tensorrt import building

    events: list[str] = []
    monitor = SimpleNamespace(cancelled=threading.Event())

    def write(network: Any, config: Any, path: Path) -> bool:
        for _ in range(2):  # whoever is impatient presses it again
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
            time.sleep(0.3)
        events.append("cancelled" if monitor.cancelled.wait(10) else "not cancelled")
        time.sleep(0.3)
        events.append("ended")
        return True

    monkeypatch.setattr(building, "_write", write)
    with pytest.raises(KeyboardInterrupt):
        building._run(SimpleNamespace(), None, tmp_path / "engine", monitor)
    assert events == ["cancelled", "ended"]


def test_an_interrupt_while_the_builder_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from trtprune.backends.tensorrt import building

    class Interrupted(threading.Thread):
        def start(self) -> None:
            super().start()
            signal.raise_signal(signal.SIGINT)

    events: list[str] = []
    monitor = SimpleNamespace(cancelled=threading.Event())

    def write(network: Any, config: Any, path: Path) -> bool:
        events.append("cancelled" if monitor.cancelled.wait(10) else "not cancelled")
        return True

    monkeypatch.setattr(building, "_write", write)
    monkeypatch.setattr(building.threading, "Thread", Interrupted)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        building._run(SimpleNamespace(), None, tmp_path / "engine", monitor)
    assert events == ["cancelled"]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_killed_build_leaves_nothing(checkpoint: Path, tmp_path: Path, number: int) -> None:
    arguments = ("build", "-m", checkpoint, "-o", tmp_path / "out", "--keep", 4, "--backend",
                 "tensorrt-rtx", "--compute-capability", ",".join(ALL))  # fmt: skip
    command = [sys.executable, "-m", "trtprune", *map(str, arguments)]
    for attempt in range(5):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("vision    engine"):
                break
        time.sleep((0.3, 0.2, 0.1, 0, 0)[attempt])  # in the midst of the decoder's engine, where it is not done by then
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
        if process.returncode:
            break
        shutil.rmtree(tmp_path / "out")  # it was done before the signal arrived
    if number == signal.SIGINT:
        assert said.splitlines()[-1] == "trtprune: interrupted; nothing was left half-written"
    assert process.returncode in (130, 128 + number)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_failure() -> None:
    """TensorRT itself reports success whatever its writer says."""
    network = rtx.Network(small_graph().to_bytes(), None)
    from trtprune.backends.tensorrt.building import BuilderSettings, build_engine
    from trtprune.backends.tensorrt.flavour import get_log

    profile = {"x": ((1, 4), (2, 4), (3, 4))}
    with pytest.raises(OSError, match="No space left"):
        build_engine(network, get_log(rtx.trt), [profile], BuilderSettings(("sm89",)), Path("/dev/full"))


def small_graph() -> Graph:
    g = Graph("small", dtype="float16")
    x = g.input("x", "float16", ["batch", 4])
    g.output(g.op.Mul(x, x), "y", "float16", ["batch", 4])
    return g
