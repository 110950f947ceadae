"""Engines in a comparison: what surrounds Polygraphy's TrtRunner is tested with ONNX Runtime in its place.

No engine can be run without a GPU.  The probe, a component built once more with other outputs, is built for real.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit import trt_kit
from tests.kit.fake_cuda import FakeDriver
from tests.kit.runtime_kit import Kit
from trtprune.backends.tensorrt import cuda
from trtprune.compare import Draw, Tolerance, compare
from trtprune.compare._require import polygraphy, set_flavour
from trtprune.compare.engines import build_probe, pad_caches, profile_for, trim_caches
from trtprune.engine_dir import EngineDir, open_engine_dir
from trtprune.errors import BackendError, BudgetError, EngineDirError, InputError


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit.make(tmp_path_factory.mktemp("engines") / "model")


@pytest.fixture(scope="module")
def out(kit: Kit) -> Path:
    return trt_kit.make_dir(kit, "out", keep=8, max_input_len=40, keep_range=(2, 12))


@given(st.integers(1, 3), st.integers(1, 9), st.integers(0, 9))
def test_padding_a_cache_and_trimming_it_are_inverse(batch: int, fed: int, more: int) -> None:
    cache = np.random.default_rng(fed).normal(size=(batch, 2, fed, 4)).astype(np.float32)
    feed = {"past_key_values.0.key": cache, "write_index": np.zeros(batch, np.int64)}
    padded = pad_caches(feed, fed + more)
    assert padded["past_key_values.0.key"].shape == (batch, 2, fed + more, 4)
    assert padded["write_index"] is feed["write_index"]
    assert not padded["past_key_values.0.key"][:, :, fed:].any()
    outputs = trim_caches({"present.0.key": padded["past_key_values.0.key"], "logits": cache}, feed)
    assert (outputs["present.0.key"] == cache).all()
    assert outputs["logits"] is cache


def test_the_profile_of_single_tokens(out: Path) -> None:
    made = open_engine_dir(out)
    decoder, vision = made.component("decoder"), made.component("vision")
    assert [profile_for(decoder, n) for n in (1, 2, 40)] == [1, 0, 0]
    assert profile_for(vision, 1) == 0
    one = dataclasses.replace(decoder, profiles=decoder.profiles[:1])
    assert profile_for(one, 1) == 0


class Stand:
    """What stands in for TrtRunner: the component's graph in ONNX Runtime, at the engine's static capacity."""

    def __init__(self, made: EngineDir) -> None:
        self.made = made
        self.profiles: list[int] = []
        self.wrong_by = 0.0
        self.sessions: dict[str, ort.InferenceSession] = {}

    def session(self, inputs: set[str]) -> ort.InferenceSession:
        (component,) = [c for c in self.made.components if {spec.name for spec in c.inputs} == inputs]
        if component.name not in self.sessions:
            options = ort.SessionOptions()
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(self.made.root / "onnx")
            )
            model = self.made.path(component.onnx).read_bytes()
            self.sessions[component.name] = ort.InferenceSession(model, options, ["CPUExecutionProvider"])
        return self.sessions[component.name]

    def infer(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        for name, array in feed.items():
            if name.startswith("past_key_values."):
                assert array.shape[2] == self.made.kv.capacity
        session = self.session(set(feed))
        names = [value.name for value in session.get_outputs()]
        outputs = dict(zip(names, session.run(None, feed), strict=True))
        if "logits" in outputs:
            outputs["logits"] = outputs["logits"] + np.float32(self.wrong_by)
        return outputs


@pytest.fixture
def stand(out: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
    polygraphy()
    set_flavour("tensorrt")
    from polygraphy.backend.trt import TrtRunner

    stand = Stand(open_engine_dir(out))

    def infer(self: Any, feed: Any, check_inputs: bool = True) -> Any:
        self.inference_time = 1e-3
        return stand.infer(feed)

    monkeypatch.setattr(TrtRunner, "activate_impl", lambda self: None)
    monkeypatch.setattr(TrtRunner, "deactivate_impl", lambda self: None)
    monkeypatch.setattr(TrtRunner, "infer", infer)
    monkeypatch.setattr(TrtRunner, "set_profile", lambda self, index: stand.profiles.append(index))
    monkeypatch.setattr(cuda, "CudaDriver", lambda: FakeDriver(capability=(9, 0)))
    with trt_kit.machine("tensorrt"):
        yield stand


def test_engines_are_compared_with_their_own_graphs(out: Path, stand: Stand) -> None:
    found = compare(out, draw=Draw(iterations=2, decode_steps=2))
    assert found.against == "onnxruntime"
    assert found.passed
    assert found.components[0].candidate == f"tensorrt:{out.name}"
    assert found.components[0].reference == f"onnxruntime:{out.name}"
    assert [c.name for c in found.components] == ["vision", "embed", "pruner", "decoder"]
    assert stand.profiles == [0, 1, 1, 0, 1, 1]
    decoder = found.components[3]
    assert decoder.outputs[-1].max_abs == 0, "caches of another capacity come back in the fed one"


def test_a_wrong_engine_fails(out: Path, stand: Stand) -> None:
    stand.wrong_by = 1e-2
    found = compare(out, components=["decoder"])
    assert not found.passed
    assert [o.name for o in found.components[0].outputs if not o.passed] == ["logits"]
    assert found.components[0].outputs[0].max_abs == pytest.approx(1e-2, rel=1e-3)
    assert compare(out, components=["decoder"], tolerance=Tolerance.parse(["2e-2"])).passed


def test_inputs_stay_within_the_profiles(out: Path, stand: Stand) -> None:
    with pytest.raises(InputError, match=r"vision: input pixel_values \[2, 3, 56, 56\], and the engine takes \[1,"):
        compare(out, components=["vision"], draw=Draw(batch_size=2))
    with pytest.raises(InputError, match=r"embed: input input_ids \[1, 50\], and the engine takes"):
        compare(out, components=["embed"], draw=Draw(text_tokens=50))
    with pytest.raises(BudgetError, match="keep=13: outside 2 to 12"):
        compare(out, components=["pruner"], draw=Draw(keep=13))


def test_engines_against_a_build_in_onnx_runtime(kit: Kit, out: Path, stand: Stand) -> None:
    import trtprune

    plain = kit.path.parent / "plain"
    trtprune.build(str(kit.path), plain, keep=8)
    found = compare(out, str(plain))
    assert found.passed
    assert {(c.candidate, c.reference) for c in found.components} == {(f"tensorrt:{out.name}", "onnxruntime:plain")}


def test_graphs_of_engines_are_compared_without_a_gpu(kit: Kit, out: Path) -> None:
    """As ``trtprune run --provider cpu`` runs them."""
    import trtprune
    from trtprune.compare import Running

    plain = kit.path.parent / "graphs"
    trtprune.build(str(kit.path), plain, keep=8)
    found = compare(out, str(plain), running=Running(provider="cpu"))
    assert found.passed
    assert found.components[0].candidate == f"onnxruntime:{out.name}"


def test_what_engines_need_is_said(kit: Kit, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import trtprune

    plain = kit.path.parent / "bare"
    trtprune.build(str(kit.path), plain, keep=8)
    with pytest.raises(EngineDirError, match="has no engines, it was built for onnxruntime"):
        compare(plain, "onnxruntime")
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    with pytest.raises(BackendError, match="tensorrt") as caught:
        compare(out)
    assert caught.value.hint is not None
    assert "pip install 'trtprune[tensorrt]'" in caught.value.hint

    def none() -> Any:
        raise BackendError("there is no GPU that CUDA can use", hint=cuda.CPU_HINT)

    monkeypatch.setattr(cuda, "CudaDriver", none)
    with trt_kit.machine("tensorrt"), pytest.raises(BackendError, match="there is no GPU") as caught:
        compare(out)
    assert "--against transformers" in str(caught.value.hint)
    monkeypatch.setattr(cuda, "CudaDriver", lambda: FakeDriver(capability=(7, 5)))
    with trt_kit.machine("tensorrt"), pytest.raises(BackendError, match="the engines are for sm90; this GPU"):
        compare(out)


def test_one_process_runs_one_library() -> None:
    polygraphy()
    set_flavour("tensorrt")
    from polygraphy.backend.trt import runner  # noqa: F401

    with pytest.raises(BackendError, match="cannot be run in one process"):
        set_flavour("tensorrt-rtx")


def test_a_probe_is_built_with_more_outputs(kit: Kit, tmp_path: Path) -> None:
    """For a GPU that is not here, by TensorRT-RTX."""
    pytest.importorskip("tests.kit.rtx", reason="tensorrt-rtx is not installed", exc_type=ImportError)
    from tests.kit.engine_kit import build
    from trtprune.compare.points import find_points
    from trtprune.compare.sides import read_model

    made = build(kit.path, tmp_path / "rtx", "sm89", keep=8)
    component = made.component("decoder")
    import onnx

    points = find_points(onnx.load_from_string(read_model(made, component)).graph)
    tensors = [p.tensor for p in points if p.coarse][:2]
    shown = build_probe(made, component, tensors, tmp_path / "probe.engine", ("sm89",))
    assert list(shown) == tensors
    data = (tmp_path / "probe.engine").read_bytes()
    assert all(name.encode() in data for name in shown.values()), "the outputs are in the engine"
    assert not any(name.encode() in made.path(str(component.engine)).read_bytes() for name in shown.values())
