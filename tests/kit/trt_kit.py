"""An engine directory of fake engines, and ``trtprune.load`` on a machine that seems to have a GPU."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import trtprune
from tests.kit.fake_cuda import FakeDriver
from tests.kit.fake_tensorrt import FakeTensorrt, write_engine
from tests.kit.runtime_kit import Kit, picture
from trtprune.backends.tensorrt import backend, flavour
from trtprune.backends.tensorrt.profiles import component_profiles
from trtprune.backends.tensorrt.shapes import cache_capacity
from trtprune.compiler.engine_options import EngineOptions
from trtprune.compiler.engine_plan import find_limits, image_bounds
from trtprune.engine_dir import EngineDir, EngineInfo, digest_file
from trtprune.runtime import Request, Vlm
from trtprune.runtime.images import processor_from_settings

QUESTION = "What is on the table left of it?"
VERSIONS = {"tensorrt": "10.15.1.29", "tensorrt-rtx": "1.7.1.116"}
CAPABILITY = {"tensorrt": (9, 0), "tensorrt-rtx": (8, 9)}


def make_dir(
    kit: Kit,
    name: str,
    *,
    backend: str = "tensorrt",
    max_batch_size: int = 1,
    max_input_len: int = 200,
    max_images: int = 1,
    max_seq_len: int | None = None,
    info: dict[str, Any] | None = None,
    **build: Any,
) -> Path:
    """Exports the graphs as TensorRT is given them, in float32, and puts fake engines beside them."""
    out = kit.path.parent / f"{kit.path.name}-{backend}-{name}"
    made = trtprune.build(str(kit.path), out, backend=backend, dtype="float32", export_only=True, **build)
    options = EngineOptions(max_batch_size=max_batch_size, max_input_len=max_input_len, max_images=max_images)
    processor = processor_from_settings(made.vision.processor, made.vision.settings, "config.json")
    image = image_bounds(processor, made.vision.newlines)
    limits = find_limits(options, made.pruning, image, made.model.max_positions, max_seq_len)
    limits = dataclasses.replace(limits, max_input_len=min(max_input_len, limits.capacity))
    components = tuple(
        dataclasses.replace(
            component,
            engine=f"engines/{component.name}.engine",
            profiles=component_profiles(component.part, component.inputs, limits, backend),
        )
        for component in made.components
    )
    settings = {
        "version": VERSIONS[backend],
        "targets": ("sm90",) if backend == "tensorrt" else ("sm89", "sm120"),
        "max_batch_size": max_batch_size,
        "max_input_len": limits.max_input_len,
        "max_images": max_images,
        "attention": "fused",
    }
    engines = EngineInfo(**{**settings, **(info or {})})
    kv = dataclasses.replace(made.kv, capacity=limits.capacity)
    fake_engines(dataclasses.replace(made, components=components, engines=engines, kv=kv))
    return out


def fake_engines(made: EngineDir) -> None:
    """Writes fake engines of a config's shapes, and the config."""
    (made.root / "engines").mkdir(exist_ok=True)
    files = dict(made.files)
    for component in made.components:
        assert component.engine is not None
        path = made.root / component.engine
        capacity = cache_capacity(component)
        write_engine(
            path, made.root / component.onnx, (made.root / component.onnx).parent, component.profiles, capacity
        )
        files[component.engine] = digest_file(path)
    (made.root / "config.json").write_text(dataclasses.replace(made, files=files).to_json())


@contextmanager
def machine(name: str = "tensorrt", driver: FakeDriver | None = None, **trt: Any) -> Iterator[FakeTensorrt]:
    """A machine with this TensorRT and a GPU."""
    driver = driver or FakeDriver(capability=CAPABILITY[name])
    module = flavour.MODULES[name]
    fake = FakeTensorrt(driver, module, **{"version": VERSIONS[name], **trt})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module, fake)
        patch.setattr(flavour, "_logs", {})
        patch.setattr(backend, "CudaDriver", lambda device_id: driver)
        yield fake


def load(path: Path, driver: FakeDriver | None = None, **settings: Any) -> tuple[Vlm, FakeTensorrt]:
    """``trtprune.load`` there."""
    name = trtprune.engine_dir.open_engine_dir(path, verify="none").backend
    with machine(name, driver) as fake:
        return trtprune.load(path, **settings), fake


REQUESTS = [
    Request([picture(1)], QUESTION, max_new_tokens=20),
    Request([picture(2), picture(3)], "Which?", keep=3, seed=5),
    Request(picture(1), "A rather longer question, so that the others are padded", keep=11, max_new_tokens=1),
    Request([picture(4)], QUESTION, system="Be brief.", seed=9, max_new_tokens=33),
    Request([picture(4)], "<image> raw", raw_prompt=True, keep=2),
]
