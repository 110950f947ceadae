"""A short run of each C++ fuzzer, always of the same inputs; ``docs/cpp.md`` says what the long ones were.

``test_sanitized.py`` runs this file with the sanitizers.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.kit import cpp_build, cpp_fuzz

RUNS = {"c_api": 1500, "config": 10_000, "image": 5000, "template": 20_000, "tokenizer": 4000}
"""Inputs of a run, each of about a second."""


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeds")
    cpp_fuzz.write_seeds(folder)
    return folder


@pytest.mark.parametrize("name", cpp_fuzz.FUZZERS)
def test_a_short_run(name: str, seeds: Path, tmp_path: Path) -> None:
    program = cpp_build.target(f"{name}_fuzz").parent / f"fuzz/{name}_fuzz"
    environment = {**cpp_build.environment(), "TRTPRUNE_FUZZ_MODEL": str(seeds / cpp_fuzz.ENGINES)}
    command = [program, f"-runs={RUNS[name]}", "-seed=1", f"-artifact_prefix={tmp_path}/", seeds / name]
    result = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-4000:]
    assert f"Done {RUNS[name]} runs" in result.stderr
