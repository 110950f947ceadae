"""The build for full TensorRT, which cannot be installed where these tests run.

Its API is that of TensorRT-RTX, which stands in for it: what is tested is what trtprune asks of it, not what it makes
of that.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

import trtprune
from tests.kit.engine_kit import FAMILIES
from tests.kit.tiny_files import complete
from trtprune import EngineOptions
from trtprune.backends.tensorrt.gpus import Gpu
from trtprune.errors import BackendError, BuildError

rtx = pytest.importorskip("tests.kit.rtx", reason="tensorrt-rtx is not installed", exc_type=ImportError)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return complete(tmp_path_factory.mktemp("checkpoint") / "clip-llama", FAMILIES["clip-llama"])


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``import tensorrt``, with a GPU; its builder makes engines for SM89."""
    import types

    class Builder(rtx.trt.Builder):
        configs: ClassVar[list[Any]] = []

        def create_builder_config(self) -> Any:
            config = super().create_builder_config()
            config.num_compute_capabilities = 1
            config.set_compute_capability(rtx.trt.ComputeCapability.SM89, 0)
            self.configs.append(config)
            return config

    left_out = ("ComputeCapability", "Builder", "__name__", "__version__")
    module = types.ModuleType("tensorrt")
    vars(module).update({name: value for name, value in vars(rtx.trt).items() if name not in left_out})
    module.Builder, module.__version__ = Builder, "11.4.0.106"  # type: ignore[attr-defined]
    Builder.configs.clear()
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr("trtprune.backends.tensorrt.gpus.find_gpus", lambda: [Gpu("NVIDIA L4", 89, 1 << 34, "580")])
    return module


def test_full_tensorrt_gets_two_profiles(checkpoint: Path, full: Any, tmp_path: Path) -> None:
    options = EngineOptions(max_batch_size=2)
    made = trtprune.build(checkpoint, tmp_path / "out", backend="tensorrt", keep=4, engine=options)
    assert made.engines is not None
    assert (made.engines.version, made.engines.targets) == ("11.4.0.106", ("sm89",))
    assert [len(component.profiles) for component in made.components] == [1, 1, 1, 2]
    prompt, step = made.component("decoder").profiles
    assert prompt["inputs_embeds"] == ((1, 1, 64), (2, 68, 64), (2, 512, 64))
    assert step["inputs_embeds"] == ((1, 1, 64), (2, 1, 64), (2, 1, 64))
    assert [config.num_optimization_profiles for config in full.Builder.configs] == [1, 1, 1, 2]
    assert not any(config.get_flag(full.BuilderFlag.TF32) for config in full.Builder.configs)


def test_plugins_that_were_taken_are_recorded(
    checkpoint: Path, full: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registered plugin is asked for by the operator's name; only what became a plugin layer is needed to run."""
    from trtprune.backends.tensorrt.network import Network

    monkeypatch.setattr(
        "trtprune.backends.tensorrt.plugins.register_plugins", lambda trt: {"TopKGather": "1", "MaxMinSelect": "1"}
    )
    inlined = trtprune.build(checkpoint, tmp_path / "inlined", backend="tensorrt", keep=4)
    assert inlined.engines is not None
    assert inlined.engines.plugins == {}
    types = Network.layer_types
    monkeypatch.setattr(Network, "layer_types", lambda self: [*types(self), full.LayerType.PLUGIN_V3])
    taken = trtprune.build(checkpoint, tmp_path / "taken", backend="tensorrt", keep=4)
    assert taken.engines is not None
    assert taken.engines.plugins == {"TopKGather": "1"}
    monkeypatch.setattr("trtprune.backends.tensorrt.plugins.register_plugins", lambda trt: {})
    with pytest.raises(BuildError, match="holds another build"):
        trtprune.build(checkpoint, tmp_path / "taken", backend="tensorrt", keep=4)


def test_timings_are_carried_from_component_to_component(tmp_path: Path) -> None:
    """And from build to build, by the files that were named."""
    from types import SimpleNamespace

    from trtprune.backends.tensorrt.building import TimingCache
    from trtprune.backends.tensorrt.flavour import MessageRecord

    class Config:
        def create_timing_cache(self, data: bytes) -> Any:
            return None if data.startswith(b"foreign") else SimpleNamespace(serialize=lambda: data + b"+kernel")

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            self.cache = cache
            return not ignore_mismatch

        def get_timing_cache(self) -> Any:
            return self.cache

    (tmp_path / "old").write_bytes(b"old")
    timings = TimingCache(tmp_path / "old", tmp_path / "new")
    for _ in range(2):
        config = Config()
        timings.attach(config, MessageRecord())
        timings.collect(config)
    timings.save()
    assert (tmp_path / "new").read_bytes() == b"old+kernel+kernel"
    (tmp_path / "old").write_bytes(b"foreign")
    with pytest.raises(BuildError, match="--load-timing-cache: TensorRT does not take it: made by another version"):
        TimingCache(tmp_path / "old", None).attach(Config(), MessageRecord())
    with pytest.raises(BuildError, match=f"--save-timing-cache {tmp_path}: Is a directory"):
        TimingCache(None, tmp_path).save()
    assert not TimingCache(None, None).wanted


def test_full_tensorrt_is_told_nothing_of_float32_attention(checkpoint: Path, full: Any, tmp_path: Path) -> None:
    """It has kernels for it, and must not write it out; TensorRT-RTX has none and must."""
    from trtprune.backends.tensorrt.check import attentions as found_attentions
    from trtprune.backends.tensorrt.flavour import get_log
    from trtprune.backends.tensorrt.network import Network, read_onnx

    out = trtprune.build(checkpoint, tmp_path / "out", backend="tensorrt", keep=4, dtype="float32", export_only=True)
    for trt, expected in ((full, False), (rtx.trt, True)):
        proto = read_onnx(out.path("onnx/decoder.onnx"), {"capacity": 64})
        network = Network(trt, get_log(trt), proto, out.root / "onnx", "decoder")
        network.check(attention=3, cache_updates=6)
        assert {op.decomposable for _, op in found_attentions(trt, network.network)} == {expected}


def test_full_tensorrt_without_a_gpu(
    checkpoint: Path, full: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trtprune.backends.tensorrt.gpus.find_gpus", list)
    with pytest.raises(BackendError, match="--backend tensorrt: no NVIDIA GPU found") as caught:
        trtprune.build(checkpoint, tmp_path / "out", backend="tensorrt", keep=4)
    assert "--backend tensorrt-rtx --compute-capability" in str(caught.value.hint)


def test_full_tensorrt_builds_for_its_own_gpu_only(checkpoint: Path, full: Any, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"--compute-capability sm90: TensorRT 11\.4.* the GPU that is here only"):
        trtprune.build(
            checkpoint,
            tmp_path / "out",
            backend="tensorrt",
            engine=EngineOptions(compute_capability=("sm90",)),
        )


@pytest.mark.parametrize(("version", "named"), [("10.14.2", "10.14.2 is too old"), ("8.6", "8.6 is too old")])
def test_an_old_tensorrt(
    checkpoint: Path, full: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, named: str
) -> None:
    monkeypatch.setattr(full, "__version__", version)
    with pytest.raises(BackendError, match=named):
        trtprune.build(checkpoint, tmp_path / "out", backend="tensorrt", keep=4)


def test_a_tensorrt_whose_libraries_do_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.11: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(BackendError, match=r"--backend tensorrt: does not load: libnvinfer\.so\.11"):
        trtprune.build("demo", tmp_path / "out", backend="tensorrt")
