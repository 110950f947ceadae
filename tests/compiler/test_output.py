"""Where a build may be written: nothing of others is replaced, and links, mount points and kills leave it whole."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import trtprune
from tests.kit.tiny import Tiny, make
from tests.kit.tiny_files import add_text_files
from trtprune.compiler import staging as staging_module
from trtprune.compiler.output import old_files
from trtprune.compiler.staging import recover, replacing_directory
from trtprune.engine_dir import open_engine_dir
from trtprune.errors import BuildError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("output") / "model"
    make(path)
    add_text_files(path, Tiny())
    return path


@pytest.fixture
def out(checkpoint: Path, tmp_path: Path) -> Path:
    trtprune.build(checkpoint, tmp_path / "out", method="none")
    return tmp_path / "out"


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def hidden(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(".")]


# -- what is not ours


def foreign(folder: Path, config: object) -> None:
    """As an export of another tool: its own config.json, and graphs in onnx/."""
    (folder / "onnx").mkdir(parents=True)
    (folder / "onnx/model.onnx").write_text("graph")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "thesis.txt").write_text("years of work")


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llava"},
        {"schema_version": 2},
        {"build_digest": "0" * 64, "files": {}},
        {"schema_version": 2, "build_digest": 5, "files": {}},
        [],
    ],
)
@pytest.mark.parametrize("force", [False, True])
def test_exports_of_others(checkpoint: Path, tmp_path: Path, config: object, force: bool) -> None:
    foreign(tmp_path / "out", config)
    before = content(tmp_path)
    with pytest.raises(BuildError, match="exists and is not an engine directory"):
        trtprune.build(checkpoint, tmp_path / "out", method="none", force=force)
    assert content(tmp_path) == before


def test_the_checkpoint_itself(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "model")
    (tmp_path / "model/onnx").mkdir()
    before = content(tmp_path)
    for output in ("model", "."):
        with pytest.raises(BuildError, match="exists and is not an engine directory"):
            trtprune.build(tmp_path / "model", tmp_path / output, method="none", force=True)
    assert content(tmp_path) == before


@pytest.mark.parametrize("name", ["answers.jsonl", "onnx/weights/notes.txt", "mine/a.png"])
def test_files_of_the_user_in_a_build(checkpoint: Path, out: Path, name: str) -> None:
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("mine")
    before = content(out)
    with pytest.raises(BuildError, match=f"holds a file that is not of the build: {name}"):
        trtprune.build(checkpoint, out, method="divprune", force=True)
    assert content(out) == before
    trtprune.build(checkpoint, out, method="none")  # the same build is found again
    (out / name).unlink()
    assert trtprune.build(checkpoint, out, method="divprune", force=True).pruning.method == "divprune"


def test_a_file_that_comes_while_it_is_built(checkpoint: Path, out: Path) -> None:
    def report(name: str, text: str) -> None:
        (out / "answers.jsonl").write_text("mine")

    with pytest.raises(BuildError, match=r"answers\.jsonl"):
        trtprune.build(checkpoint, out, method="divprune", force=True, report=report)
    assert open_engine_dir(out).pruning.method == "none"
    assert hidden(out.parent) == []


def test_a_link_in_a_build(checkpoint: Path, out: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (out / "pictures").symlink_to(tmp_path / "pictures")
    with pytest.raises(BuildError, match="not of the build: pictures"):
        trtprune.build(checkpoint, out, method="divprune", force=True)


def test_a_build_from_a_build(out: Path) -> None:
    with pytest.raises(BuildError, match="lies inside the engine directory it is built from"):
        trtprune.build(out, out / "other", method="divprune")
    assert "other" not in os.listdir(out)
    assert trtprune.build(out, out, method="divprune", force=True).pruning.method == "divprune"
    assert open_engine_dir(out, verify="full").pruning.method == "divprune"


def test_an_older_build_is_named_and_replaced(checkpoint: Path, out: Path) -> None:
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"schema_version": 1, "of_old": True}))
    with pytest.raises(BuildError, match="written by an older trtprune") as error:
        trtprune.build(checkpoint, out, method="none")
    assert error.value.hint == "--force replaces this engine directory"
    trtprune.build(checkpoint, out, method="none", force=True)
    assert open_engine_dir(out).schema_version == 2


def test_copies_in_place_of_links(checkpoint: Path, tmp_path: Path) -> None:
    trtprune.build(checkpoint, tmp_path / "out", method="none", weights="link")
    weights = tmp_path / "out/onnx/weights/model.safetensors"
    assert weights.stat().st_nlink > 1
    trtprune.build(checkpoint, tmp_path / "out", method="none")
    assert weights.stat().st_nlink > 1
    trtprune.build(checkpoint, tmp_path / "out", method="none", weights="copy")
    assert weights.stat().st_nlink == 1


# -- refused before the work


def test_refused_at_once(tmp_path: Path) -> None:
    """Before the model is looked at: there is none."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    for output in (
        "/proc/x",
        tmp_path / "file",
        tmp_path / "file/out",
        tmp_path / "loop",
        "a\0b",
        tmp_path / ("x" * 300),
    ):
        with pytest.raises(BuildError) as error:
            trtprune.build("nobody/nothing", output)
        assert error.value.hint
    assert sorted(os.listdir(tmp_path)) == ["file", "loop"]


def test_a_deleted_folder(tmp_path: Path) -> None:
    code = "import os, sys; os.rmdir(os.getcwd()); from trtprune.cli import main; main(sys.argv[1:])"
    (tmp_path / "gone").mkdir()
    command = [sys.executable, "-c", code, "build", "-m", "nobody/nothing", "-o", "rel"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, cwd=tmp_path / "gone", env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the current folder does not exist any more" in done.stderr
    assert "Traceback" not in done.stderr


# -- links and mount points


def test_a_link_stays(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk/real")  # to what is not there yet
    for method in ("none", "divprune"):
        trtprune.build(checkpoint, tmp_path / "link", method=method, force=True)
        assert (tmp_path / "link").is_symlink()
        assert open_engine_dir(tmp_path / "disk/real").pruning.method == method
    assert hidden(tmp_path) == hidden(tmp_path / "disk") == []


@pytest.fixture(params=["tmpfs", "bind", "pretended"])
def volume(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "volume"
    path.mkdir()
    if request.param == "pretended":
        monkeypatch.setattr(staging_module, "_is_mount", lambda target: target == path)
        yield path
        return
    (tmp_path / "source").mkdir()
    of = ["-t", "tmpfs", "none"] if request.param == "tmpfs" else ["--bind", str(tmp_path / "source")]
    if subprocess.run(["mount", *of, str(path)], capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def test_a_mount_point(checkpoint: Path, volume: Path) -> None:
    (volume / "lost+found").mkdir()
    trtprune.build(checkpoint, volume, method="sparsevlm", options={"schedule": "0:12,1:8"})
    assert open_engine_dir(volume, verify="full").pruning.method == "sparsevlm"
    with pytest.raises(BuildError, match="holds another build"):
        trtprune.build(checkpoint, volume, method="divprune")
    made = trtprune.build(checkpoint, volume, method="divprune", force=True)
    assert open_engine_dir(volume, verify="full").pruning.method == "divprune"
    assert {*content(volume)} == {"config.json", *made.files}  # nothing of the old one
    (volume / "mine.txt").write_text("mine")
    with pytest.raises(BuildError, match=r"mine\.txt"):
        trtprune.build(checkpoint, volume, method="none", force=True)
    assert hidden(volume) == []
    assert not [name for name in hidden(volume.parent) if "volume" in name]


# -- kills


def write(target: Path, *names: str) -> None:
    with replacing_directory(target, lambda: ["config.json", "a", "only/old"]) as staging:
        for name in names:
            (staging / name).parent.mkdir(exist_ok=True)
            (staging / name).write_text(f"{names[-1]} {name}")
        (staging / "config.json").write_text(names[-1])


OLD, NEW = ("a", "only/old"), ("a", "b", "only/new")
EVENTS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "ctypes.dlsym", "open")


def _refused(*_: object) -> None:
    raise OSError(18, "Invalid cross-device link")


KINDS: dict[str, tuple[str, Callable[..., object]] | None] = {
    "exchanged": None,
    "two renames": ("_exchange", lambda *_: False),
    "in place": ("_is_mount", lambda target: target.name == "out"),
    "over a lower layer": ("_swap", _refused),
}


@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_any_step(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed at its first, second, … change of the file system, until one gets through."""
    if (other := KINDS[kind]) is not None:
        monkeypatch.setattr(staging_module, *other)
    target, ended = tmp_path / "out", False
    old = {"a": b"only/old a", "only/old": b"only/old only/old", "config.json": b"only/old"}
    new = {name: f"only/new {name}".encode() for name in NEW} | {"config.json": b"only/new"}
    for step in range(60):
        shutil.rmtree(target, ignore_errors=True)
        write(target, *OLD)
        assert content(target) == old
        child = os.fork()
        if child == 0:
            _killed_at(step, target)
        ended = os.waitpid(child, 0)[1] == 0
        if kind in ("exchanged", "two renames") and target.exists():
            assert content(target) in (old, new), step
        elif (target / "config.json").exists() and (target / "config.json").read_bytes() == new["config.json"]:
            assert new.items() <= content(target).items(), step  # it comes last
        recover(target)
        found = {name: data for name, data in content(target).items() if not name.startswith(".")}
        assert found in (old, new), step
        if ended:
            assert found == new
            break
    assert ended
    assert step > 5
    write(target, *OLD)
    assert hidden(tmp_path) == []
    assert hidden(target) == []


def _killed_at(step: int, target: Path) -> None:
    count = iter(range(1000))

    def watch(event: str, _: object) -> None:
        if event in EVENTS and next(count) == step:
            os.kill(os.getpid(), 9)

    sys.addaudithook(watch)
    write(target, *NEW)
    os._exit(0)


def test_old_files_of_nothing(tmp_path: Path) -> None:
    assert old_files(tmp_path / "none") == []
