"""Prepacked graphs: the same answers to the bit, and never of another machine, version or checkpoint."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import trtprune
from tests.kit import tiny
from tests.kit.runtime_kit import Kit, picture, record, same
from trtprune.backends.onnxruntime import backend, prepacked
from trtprune.cli.program import main
from trtprune.errors import BackendError, InputError
from trtprune.runtime import prepacking

BUILDS: dict[str, dict[str, Any]] = {
    "float32": {"method": "adafv"},
    "int8": {"method": "divprune", "weight_dtype": "int8"},
    "int4": {"method": "uniform", "weight_dtype": "int4"},
    "segments": {"method": "fastv", "keep": 9},
}
PROMPT = "What is on the table?"


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A directory of each kind, of a float16 checkpoint, whose weights ONNX Runtime expands."""
    kit = Kit.make(tmp_path_factory.mktemp("prepacked") / "model", tiny.Tiny(seed=3, dtype="float16", layers=4))
    made = {}
    for name, settings in BUILDS.items():
        made[name] = kit.path.parent / name
        trtprune.build(str(kit.path), made[name], **{"keep": 4, **settings})
    return made


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRTPRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sessions"


@pytest.fixture
def out(builds: dict[str, Path], tmp_path: Path) -> Path:
    """A directory that a test may spoil."""
    return Path(shutil.copytree(builds["float32"], tmp_path / "out"))


def opened_saved(path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many of a directory's graphs open in their saved form."""
    found = []
    plain = prepacked.find
    monkeypatch.setattr(prepacked, "find", lambda *given: found.append(plain(*given)) or found[-1])
    with trtprune.load(path, threads=1) as vlm:
        vlm.generate(picture(1), PROMPT, max_new_tokens=1)
    monkeypatch.setattr(prepacked, "find", plain)
    return sum(file is not None for file in found)


@pytest.mark.parametrize("name", BUILDS)
def test_the_same_answers(builds: dict[str, Path], name: str, cache: Path) -> None:
    def answers() -> tuple[list[Any], list[np.ndarray]]:
        with trtprune.load(builds[name], threads=1) as vlm:
            recorder = record(vlm) if name != "segments" else None
            found = [
                vlm.generate(picture(seed), PROMPT, keep=keep, max_new_tokens=12, ignore_eos=True)
                for seed, keep in ((1, 10), (2, 9), (3, 16))
            ]
            return found, recorder.logits if recorder else []

    plain, logits = answers()
    made = trtprune.prepack(builds[name])
    assert [*made.sizes] == [c.name for c in trtprune.open_engine_dir(builds[name]).components]
    assert made.folder == cache
    assert sum(made.sizes.values()) == sum(entry.size for entry in prepacked.entries())
    saved, saved_logits = answers()
    assert all(map(same, plain, saved))
    for one, other in zip(logits, saved_logits, strict=True):
        np.testing.assert_array_equal(one, other)


def test_all_graphs_are_opened_saved(out: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert opened_saved(out, monkeypatch) == 0
    trtprune.prepack(out)
    count = len(trtprune.open_engine_dir(out).components)
    assert opened_saved(out, monkeypatch) == count
    used = {entry.path: entry.used for entry in prepacked.entries()}
    for path in used:
        os.utime(path / "entry.json", (1, 1))
    assert opened_saved(out, monkeypatch) == count
    assert all(entry.used > 1 for entry in prepacked.entries())  # what is used stays longest


def _touch_weights(out: Path) -> None:
    for path in (out / "onnx" / "weights").iterdir():
        os.utime(path, (5, 5))


def _cut_data(cache: Path) -> None:
    for path in cache.glob("*/graph.onnx.data"):
        path.write_bytes(path.read_bytes()[:-1])


def _spoil_graph(cache: Path) -> None:
    for path in cache.glob("*/graph.onnx"):
        path.write_bytes(b"\xff" * path.stat().st_size)


CHANGES: dict[str, Any] = {
    "weights": lambda out, cache, patch: _touch_weights(out),
    "version": lambda out, cache, patch: patch.setattr(prepacked, "__version__", "0.0"),
    "processor": lambda out, cache, patch: patch.setattr(prepacked, "_processor", lambda: "another"),
    "cut": lambda out, cache, patch: _cut_data(cache),
    "spoilt": lambda out, cache, patch: _spoil_graph(cache),
    "facts": lambda out, cache, patch: [path.write_text("[") for path in cache.glob("*/entry.json")],
    "open to others": lambda out, cache, patch: cache.chmod(0o777),
}


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_else_is_ever_used(
    out: Path, cache: Path, change: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with trtprune.load(out, threads=1) as vlm:
        plain = vlm.generate(picture(1), PROMPT, max_new_tokens=6, ignore_eos=True)
    trtprune.prepack(out)
    CHANGES[change](out, cache, monkeypatch)
    with caplog.at_level(logging.WARNING, logger="trtprune"), trtprune.load(out, threads=1, verify="none") as vlm:
        assert same(plain, vlm.generate(picture(1), PROMPT, max_new_tokens=6, ignore_eos=True))
    said = {record.getMessage() for record in caplog.records}
    assert said
    assert all("prepacked" in line for line in said)


def test_renewed(out: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run replaces what an older version saved, and leaves nothing of it."""
    with monkeypatch.context() as patch:
        patch.setattr(prepacked, "__version__", "0.0")
        trtprune.prepack(out)
    old = {entry.path.name for entry in prepacked.entries()}
    trtprune.prepack(out)
    assert len(prepacked.entries()) == len(old)
    assert not old & {entry.path.name for entry in prepacked.entries()}
    assert sorted(path.name for path in cache.iterdir()) == sorted(entry.path.name for entry in prepacked.entries())


def test_options_have_entries_of_their_own(builds: dict[str, Path], cache: Path, caplog: Any) -> None:
    trtprune.prepack(builds["int8"], provider_options={"activations": "float32"})
    with caplog.at_level(logging.WARNING, logger="trtprune"):
        trtprune.load(builds["int8"], threads=1).generate(picture(1), PROMPT, max_new_tokens=1)
        assert caplog.records
        caplog.clear()
        other = trtprune.load(builds["int8"], threads=1, provider_options={"activations": "float32"})
        other.generate(picture(1), PROMPT, max_new_tokens=1)
        assert not caplog.records


def test_limit(builds: dict[str, Path], cache: Path) -> None:
    """The least recently used directories make room, and one that is too large is refused before the work."""
    sizes = {name: sum(trtprune.prepack(builds[name]).sizes.values()) for name in ("float32", "int8")}
    for entry in prepacked.entries():
        when = 1 if str(builds["float32"]) in entry.onnx else 2
        os.utime(entry.path / "entry.json", (when, when))
    most = sum(prepacking._most_bytes(path) for path in (builds["int4"] / "onnx").glob("*.onnx"))
    room = max(most, sum(sizes.values()))  # for two of the three
    made = trtprune.prepack(builds["int4"], limit=room)
    assert made.removed
    assert all(str(builds["float32"]) in path for path in made.removed)
    assert sum(entry.size for entry in prepacked.entries()) <= room
    with pytest.raises(InputError, match="limit"):
        trtprune.prepack(builds["float32"], limit=1000)
    assert not list(cache.glob(f"{prepacked.STAGING}*"))


def test_unpack(builds: dict[str, Path], cache: Path) -> None:
    size = sum(trtprune.prepack(builds["float32"]).sizes.values())
    trtprune.prepack(builds["int4"])
    assert trtprune.unpack(builds["float32"]) >= size
    assert {Path(entry.onnx).parents[1] for entry in prepacked.entries()} == {builds["int4"]}
    assert trtprune.unpack(builds["float32"]) == 0


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="as root, nothing is unwritable but to others")
def test_a_cache_that_others_can_write(builds: dict[str, Path], cache: Path) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    with pytest.raises(BackendError, match="others can write") as caught:
        trtprune.prepack(builds["float32"])
    assert "TRTPRUNE_CACHE" in str(caught.value.hint)
    assert not list(cache.iterdir())


def test_nothing_is_left_of_a_failure(builds: dict[str, Path], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any, **more: Any) -> None:
        raise BackendError("no")

    monkeypatch.setattr(backend, "_can_pack", fail)
    with pytest.raises(BackendError):
        trtprune.prepack(builds["float32"])
    assert not list(cache.iterdir())


def test_other_logits_are_never_kept(builds: dict[str, Path], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(([np.zeros(3)], [np.array([0, 0, 1e-7])]))
    monkeypatch.setattr(prepacking, "_ask", lambda *given: next(answers))
    with pytest.raises(BackendError, match="other logits"):
        trtprune.prepack(builds["float32"])
    assert not list(cache.iterdir())


def test_leftovers_of_a_killed_process(builds: dict[str, Path], cache: Path) -> None:
    for name, age in (("old", 2 * prepacked.DAY), ("new", 0)):
        (cache / f"{prepacked.STAGING}{name}").mkdir(parents=True)
        os.utime(cache / f"{prepacked.STAGING}{name}", (os.stat(cache).st_mtime - age,) * 2)
    cache.chmod(0o700)
    trtprune.prepack(builds["int4"])
    assert [path.name for path in cache.glob(f"{prepacked.STAGING}*")] == [f"{prepacked.STAGING}new"]


def test_command(builds: dict[str, Path], cache: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    made = run(main, ["prepack", str(builds["float32"])])
    assert made.exit_code == 0
    assert str(cache) in made.output
    assert run(main, ["prepack", str(builds["float32"]), "--remove"]).exit_code == 0
    assert not prepacked.entries()
    for arguments in (
        [str(tmp_path)],
        [str(builds["int8"]), "--limit", "0"],
        ["--provider-option", "x=y", str(builds["int8"])],
    ):
        refused = run(main, ["prepack", *arguments])
        assert refused.exit_code == 1, arguments
    config = json.loads((builds["int8"] / "config.json").read_text())
    other = Path(shutil.copytree(builds["int8"], tmp_path / "other"))
    config["built_with"]["provider"] = "openvino"
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="CPU provider"):
        trtprune.prepack(other)
