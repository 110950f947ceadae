"""A build as it is asked for: one list of settings for Python, the command line and whoever asks for help."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest

import trtprune
from tests.kit.runtime_kit import Kit
from tests.kit.tiny import Tiny
from trtprune.compiler.request import BACKENDS, DTYPES, BuildRequest
from trtprune.errors import BudgetError, BuildError

SETTINGS = {field.name: field for field in dataclasses.fields(BuildRequest) if field.kw_only}


def test_help_lists_every_argument() -> None:
    shown = inspect.signature(trtprune.build).parameters
    assert [*shown] == [*inspect.signature(BuildRequest).parameters, "report"]
    assert all(shown[name].default == field.default for name, field in SETTINGS.items())


def test_a_request_builds_what_its_keywords_build(tmp_path: Path) -> None:
    kit = Kit.make(tmp_path / "model", Tiny())
    settings: dict[str, Any] = {"keep": 5, "keep_range": (2, 9), "method": "divprune", "options": {"center": True}}
    request = BuildRequest(kit.path, tmp_path / "one", **settings)
    one, two = trtprune.build(request), trtprune.build(kit.path, output=tmp_path / "two", **settings)
    assert dataclasses.replace(one, root=two.root) == two
    assert (one.pruning.keep, one.pruning.keep_range, one.pruning.method) == (5, (2, 9), "divprune")
    assert one.build_digest != trtprune.build(dataclasses.replace(request, keep=6, force=True)).build_digest


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"method": "adafv2"}, BudgetError, "adafv2"),
        ({"options": {"nothing": 1}}, BudgetError, "nothing"),
        ({"backend": "tvm"}, BuildError, "backend='tvm': unknown"),
        ({"provider": "rocm"}, BuildError, "provider='rocm': unknown"),
        ({"dtype": "float8"}, BuildError, "dtype='float8': unknown"),
        ({"dtype": "bf16"}, BuildError, "no bfloat16 kernels"),
        ({"dtype": "bfloat16", "provider": "cuda", "weight_dtype": "int8"}, BuildError, "dequantises"),
        ({"weight_dtype": "int2"}, BuildError, "weight_dtype='int2': unknown"),
        ({"weights": "soft"}, BuildError, "soft: unknown"),
        ({"generation_config": "greedy"}, BuildError, "generation_config='greedy': unknown"),
        ({"engine": trtprune.EngineOptions(max_images=2)}, BuildError, "no such option"),
    ],
)
def test_what_no_model_could_serve_is_refused_at_once(
    settings: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        BuildRequest("nobody/nothing", tmp_path / "out", **settings)
    with pytest.raises(error, match=message):
        trtprune.build("nobody/nothing", tmp_path / "out", **settings)


def test_what_is_no_call(tmp_path: Path) -> None:
    build: Any = trtprune.build
    request = BuildRequest("demo", tmp_path)
    for call in (
        lambda: build("demo"),
        lambda: build("demo", tmp_path, kept=5),
        lambda: build(request, tmp_path),
        lambda: build(request, keep=5),
    ):
        with pytest.raises(TypeError):
            call()
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.keep = 5  # type: ignore[misc]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("provider", ["cpu", "cuda", "openvino"])
def test_the_default_dtype_follows_where_it_runs(backend: str, provider: str) -> None:
    request = BuildRequest("demo", "out", backend=backend, provider=provider)
    assert request.compute_dtype == ("float32" if backend == "onnxruntime" and provider != "cuda" else "float16")
    for alias, name in zip(("fp32", "fp16", "bf16"), DTYPES, strict=True):
        if name != "bfloat16" or request.compute_dtype == "float16":
            assert dataclasses.replace(request, dtype=alias).compute_dtype == name
