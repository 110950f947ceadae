"""Every graph of a build is plain ONNX: the tools of others open it by its path, from any folder, without our help."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

import trtprune
from tests.kit import tiny
from tests.kit.clip_kit import ClipKit
from tests.kit.runtime_kit import Kit
from trtprune import pruning
from trtprune.cli.inspect import describe
from trtprune.engine_dir import EngineDir, open_engine_dir
from trtprune.pruning.inputs import FROM_CLIP

import onnxruntime  # isort: skip  behind trtprune, which sets what keeps it from reporting usage

BUILDS = {
    "default": {},
    "adaptive": {"method": "sparsevlm", "options": {"schedule": "0:12,2:8,3:4"}},
    "int8": {"weight_dtype": "int8", "method": "divprune"},
    "int4": {"weight_dtype": "int4", "method": "none"},
    "hawk": {"method": "hawk", "keep": 5},
    "clip": {"method": "cdpruner", "keep": 5},
    "openvino": {"provider": "openvino"},
}


def needs_clip(method: str) -> bool:
    return any(name in FROM_CLIP for name in pruning.get(method).needs)


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit.make(tmp_path_factory.mktemp("tools") / "llava", tiny.Tiny(layers=6))


@pytest.fixture(scope="module")
def built(kit: Kit) -> Callable[[str], EngineDir]:
    done: dict[str, EngineDir] = {}

    def make(name: str) -> EngineDir:
        if name not in done:
            settings = dict(BUILDS[name])
            if name == "clip":
                tower = kit.model.model.vision_tower
                settings["clip"] = ClipKit.make(kit.path.parent / "clip-model", kit.tiny, tower).path
            done[name] = trtprune.build(kit.path, kit.path.parent / name, **settings)
        return done[name]

    return make


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def graphs(made: EngineDir) -> list[str]:
    return [str(made.path(component.onnx)) for component in made.components]


@pytest.mark.parametrize("name", BUILDS)
def test_onnx_and_onnxruntime(built: Callable[[str], EngineDir], name: str, tmp_path: Path) -> None:
    for path in graphs(built(name)):
        onnx.checker.check_model(path, full_check=True)
        tensors = onnx.load(path).graph.initializer
        assert all(tensor.raw_data or not tensor.external_data for tensor in tensors)
        onnx.shape_inference.infer_shapes_path(path, str(tmp_path / "inferred.onnx"), strict_mode=True)
        assert onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).get_outputs()


def test_openvino(built: Callable[[str], EngineDir]) -> None:
    from openvino import Core

    core = Core()
    for name in ("vision", "embed"):
        assert core.read_model(built("default").path(f"onnx/{name}.onnx")).outputs
    for path in graphs(built("openvino")):
        assert core.compile_model(core.read_model(path), "CPU").outputs


@pytest.mark.parametrize("method", [name for name in pruning.names() if not needs_clip(name)])
def test_openvino_reads_every_method(kit: Kit, tmp_path: Path, method: str) -> None:
    from openvino import Core

    options = {"sparsevlm": {"schedule": "0:12,2:8,3:4"}, "hiprune": {"object_layer": 2}}.get(method)
    made = trtprune.build(kit.path, tmp_path / "out", method=method, provider="openvino", options=options)
    for path in graphs(made):
        assert onnx.load(path, load_external_data=False).metadata_props
        assert Core().read_model(path).outputs


@pytest.mark.parametrize("name", ["default", "adaptive", "hawk", "clip"])
def test_tensorrt_rtx(built: Callable[[str], EngineDir], name: str) -> None:
    import tensorrt_rtx as trt

    log = trt.Logger(trt.Logger.ERROR)
    for path in map(Path, graphs(built(name))):
        if path.stem == "rank":
            continue  # float64, which TensorRT does not have
        if path.stem.startswith("decoder"):
            path = with_capacity(path, 64)
        network = trt.Builder(log).create_network(0)
        parser = trt.OnnxParser(network, log)
        assert parser.parse_from_file(str(path)), parser.get_error(0).desc()
        assert network.num_outputs


def with_capacity(path: Path, capacity: int) -> Path:
    """The decoder beside itself, its cache of a fixed size: as the documentation says."""
    model = onnx.load(path, load_external_data=False)
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == "capacity":
                dim.dim_value = capacity
    fixed = path.with_name(f"fixed-{path.name}")
    fixed.write_bytes(model.SerializeToString())
    return fixed


def test_polygraphy(built: Callable[[str], EngineDir]) -> None:
    vision, pruner = (str(built("default").path(f"onnx/{name}.onnx")) for name in ("vision", "pruner"))
    for arguments in (
        ("inspect", "model", vision),
        ("run", vision, "--onnxrt"),
        ("run", pruner, "--onnxrt", "--val-range", "keep:[1,1]"),
    ):
        command = [str(Path(sys.executable).with_name("polygraphy")), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_graph_says_what_it_is(built: Callable[[str], EngineDir]) -> None:
    made = built("int8")
    for component in made.components:
        model = onnx.load(made.path(component.onnx), load_external_data=False)
        assert (model.producer_name, model.producer_version) == ("trtprune", trtprune.__version__)
        facts = {entry.key: entry.value for entry in model.metadata_props}
        assert facts == {
            "trtprune.component": component.name,
            "trtprune.model": made.model.id,
            "trtprune.family": made.model.family,
            "trtprune.method": "divprune",
            "trtprune.dtype": "float32",
            "trtprune.weight_dtype": "int8",
        }
        assert all(word in model.doc_string for word in (component.name, made.model.id, "divprune", "int8"))


def test_build_and_inspect_count_the_same_nodes(kit: Kit, tmp_path: Path) -> None:
    said: dict[str, str] = {}
    trtprune.build(kit.path, tmp_path / "out", report=lambda name, text: said.update({name: text}))
    for facts in describe(open_engine_dir(tmp_path / "out"))["components"]:
        assert said[facts["name"]] == f"exported, {sum(facts['ops'].values())} nodes"


def test_shards_of_another_dtype(tmp_path: Path) -> None:
    kit = Kit.make(tmp_path / "sharded", tiny.Tiny(tower="siglip", decoder="qwen2", shards=True, dtype="bfloat16"))
    made = trtprune.build(kit.path, tmp_path / "out", method="divprune")
    assert len(made.weight_files()) > 1
    for path in graphs(made):
        onnx.checker.check_model(path, full_check=True)
        assert onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).get_inputs()
