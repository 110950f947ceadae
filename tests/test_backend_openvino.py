"""OpenVINO's own runtime: the same numbers as ONNX Runtime from the same graphs, and caches that are kept apart."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trtprune
from tests import tiny
from tests.runtime_kit import Kit, picture, record, same
from trtprune.backends.binding import numpy_dtype
from trtprune.backends.onnxruntime import OrtBackend
from trtprune.backends.openvino import OpenVinoBackend
from trtprune.engine_dir import EngineDir, open_engine_dir
from trtprune.errors import BackendError, EngineDirError
from trtprune.runtime import Request, Vlm

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
    return Vlm(made, OrtBackend("cpu", 1), max_pixels=10**6), Vlm(made, OpenVinoBackend(threads=1), max_pixels=10**6)


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


@pytest.mark.parametrize("settings", [{"method": "uniform", "keep": 5}, {"method": "none", "dtype": "float16"}])
def test_other_builds(kit: Kit, settings: dict[str, Any]) -> None:
    ours, theirs = both(built(kit, **settings))
    recorders = record(ours), record(theirs)
    for vlm in (ours, theirs):
        vlm.generate(picture(1), QUESTION, max_new_tokens=4)
    for a, b in zip(recorders[0].logits, recorders[1].logits, strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=0.05 if "dtype" in settings else 2e-5)


def test_bfloat16_is_close(kit: Kit) -> None:
    ours = both(built(kit, method="none"))[0]
    theirs = Vlm(ours.config, OpenVinoBackend("bf16", 1), max_pixels=10**6)
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
            "position_ids": begun[:, None] + np.arange(length),
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
    first.write(name, np.ones_like(first.read(name)))
    assert not second.read(name).any()
    assert first.read(name).all()
    first.zero()
    assert not first.read(name).any()
    again = session.new_cache(1, 12, reuse=second)
    assert again.request is second.request
    assert again.read(name).shape[2] == 12


# -- what is refused


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendError, match=r"openvino.*pip install 'trtprune\[openvino\]'"):
        OpenVinoBackend()


def test_unknown_precision() -> None:
    with pytest.raises(BackendError, match="float32 or bf16"):
        OpenVinoBackend("fp8")


def test_inputs_that_do_not_fit(pair: tuple[Vlm, Vlm]) -> None:
    embed, decoder = (pair[1].chain.session(name) for name in ("embed", "decoder"))
    with pytest.raises(BackendError, match="input_ids"):
        embed.run({"input_ids": np.zeros((1, 3), np.float32)})
    with pytest.raises(BackendError, match="without one"):
        width = next(spec.shape[2] for spec in decoder.inputs if spec.name == "inputs_embeds")
        decoder.run(
            {
                "inputs_embeds": np.zeros((1, 1, width), np.float32), "position_ids": np.zeros((1, 1), np.int64),
                "write_index": np.zeros(1, np.int64), "logits_index": np.zeros((1, 1), np.int64),
            }
        )  # fmt: skip


def broken(made: EngineDir, out: Path, change: Any) -> EngineDir:
    """A copy whose embed graph is another one."""
    trtprune.build(str(made.root), out, method="none", provider="openvino")
    found = open_engine_dir(out)
    change(out / "onnx" / "embed.onnx")
    return found


def test_a_graph_that_is_none(kit: Kit, tmp_path: Path) -> None:
    made = broken(built(kit, method="none"), tmp_path / "out", lambda path: path.write_bytes(b"\x00none"))
    with pytest.raises(BackendError, match=r"embed\.onnx: OpenVINO cannot open it"):
        OpenVinoBackend(threads=1).session(made.component("embed"), made.root)


def test_a_graph_that_is_not_there(kit: Kit, tmp_path: Path) -> None:
    made = broken(built(kit, method="none"), tmp_path / "out", lambda path: path.unlink())
    with pytest.raises(EngineDirError, match=r"embed\.onnx: cannot be read"):
        OpenVinoBackend(threads=1).session(made.component("embed"), made.root)


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
    with pytest.raises(BackendError, match=r"embed\.onnx: OpenVINO cannot open it"):
        OpenVinoBackend(threads=1).session(made.component("embed"), made.root)
    assert Path.cwd() == before


def test_a_graph_with_other_inputs(kit: Kit, tmp_path: Path) -> None:
    def renamed(path: Path) -> None:
        model = onnx.load(path, load_external_data=False)
        for node in model.graph.node:
            node.input[:] = ["ids" if name == "input_ids" else name for name in node.input]
        model.graph.input[0].name = "ids"
        path.write_bytes(model.SerializeToString())

    made = broken(built(kit, method="none"), tmp_path / "out", renamed)
    with pytest.raises(EngineDirError, match=r"not those of config\.json"):
        OpenVinoBackend(threads=1).session(made.component("embed"), made.root)
