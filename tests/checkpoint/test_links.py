"""Links in a checkpoint: none brings a file from elsewhere into a build; the layouts of the hub's cache work."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import trtprune
from tests.kit import tiny, tiny_files
from trtprune.checkpoint import SIDE_FILES, Checkpoint, open_checkpoint
from trtprune.errors import CheckpointError, TrtpruneError

SECRET = '{"secret": "of the user"}'


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "checkpoint"
    root.mkdir()
    (root / "config.json").write_text('{"model_type": "llava"}')
    save_file({"w": np.arange(6, dtype=np.float32)}, root / "model.safetensors")
    (tmp_path / "secret.json").write_text(SECRET)
    return root


@pytest.mark.parametrize("name", ["config.json", *SIDE_FILES])
@pytest.mark.parametrize("how", ["relative", "absolute", "chain", "folder"])
def test_a_text_link_that_leaves_the_checkpoint_is_refused(root: Path, name: str, how: str) -> None:
    path = root / name
    path.unlink(missing_ok=True)
    if how == "relative":
        path.symlink_to("../secret.json")
    elif how == "absolute":
        path.symlink_to(root.parent / "secret.json")
    elif how == "chain":  # a link to a link, the first of which stays inside
        (root / "inner.json").symlink_to("../secret.json")
        path.symlink_to("inner.json")
    else:
        (root / "sub").symlink_to("..")
        path.symlink_to("sub/secret.json")
    with pytest.raises(CheckpointError, match="a symbolic link that leaves the checkpoint") as caught:
        open_checkpoint(root).text_bytes(name)
    assert name in caught.value.message
    assert "copy it" in str(caught.value.hint)
    with pytest.raises(CheckpointError, match="leaves the checkpoint"):
        open_checkpoint(root).digest()


def test_links_within_the_checkpoint(root: Path) -> None:
    (root / "sub").mkdir()
    (root / "sub" / "real.json").write_text("{}")
    (root / "tokenizer.json").symlink_to("sub/real.json")
    assert open_checkpoint(root).text_bytes("tokenizer.json") == b"{}"
    linked = root.parent / "linked"
    linked.symlink_to(root)
    assert open_checkpoint(linked).text_bytes("tokenizer.json") == b"{}"


@pytest.mark.parametrize("target", ["/proc/self/environ", "/dev/zero", "missing", "chat_template.jinja"])
def test_links_to_nothing_useful(root: Path, target: str) -> None:
    (root / "chat_template.jinja").symlink_to(target)
    with pytest.raises(
        CheckpointError, match=r"chat_template.jinja: (a symbolic link|cannot be read: a symbolic link)"
    ):
        open_checkpoint(root).text_bytes("chat_template.jinja")


def as_cache(root: Path, repo: Path) -> Path:
    """The directory as huggingface_hub keeps it: ``snapshots/COMMIT`` of links into ``blobs``."""
    snapshot = repo / "snapshots" / "0123abc"
    (repo / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(root.iterdir())):
        path.rename(repo / "blobs" / f"{number:064x}")
        (snapshot / path.name).symlink_to(os.path.relpath(repo / "blobs" / f"{number:064x}", snapshot))
    return snapshot


def test_the_hubs_cache(root: Path, tmp_path: Path) -> None:
    (root / "tokenizer.json").write_text("{}")
    snapshot = as_cache(root, tmp_path / "hub" / "models--owner--name")
    found = open_checkpoint(snapshot)
    assert found.real_path("model.safetensors").parent.name == "blobs"
    assert found.read("w").tolist() == list(range(6))
    assert found.text_bytes("tokenizer.json") == b"{}"
    # A cache on another disk, behind a link, as people set it up.
    (tmp_path / "cache").symlink_to(tmp_path / "hub")
    again = open_checkpoint(tmp_path / "cache" / "models--owner--name" / "snapshots" / "0123abc")
    assert again.digest() == found.digest()
    # The blobs of another repository are not this one's.
    other = tmp_path / "hub" / "models--owner--other" / "blobs"
    other.mkdir(parents=True)
    (other / "ab").write_text(SECRET)
    (snapshot / "chat_template.jinja").symlink_to(other / "ab")
    with pytest.raises(CheckpointError, match="leaves the checkpoint"):
        open_checkpoint(snapshot).text_bytes("chat_template.jinja")
    # A blob that is a link itself leads out as well as any other.
    (snapshot / "chat_template.jinja").unlink()
    (snapshot.parent.parent / "blobs" / "cd").symlink_to(tmp_path / "secret.json")
    (snapshot / "chat_template.jinja").symlink_to("../../blobs/cd")
    with pytest.raises(CheckpointError, match="leaves the checkpoint"):
        open_checkpoint(snapshot).text_bytes("chat_template.jinja")


def test_weights_on_another_disk(root: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    (root / "model.safetensors").rename(disk / "shard.safetensors")
    (root / "model.safetensors").symlink_to(disk / "shard.safetensors")
    found = open_checkpoint(root)
    assert found.read("w").tolist() == list(range(6))
    assert found.files == ("model.safetensors",)
    # What is no safetensors file is refused, and named by the link.
    (disk / "shard.safetensors").write_text(SECRET)
    with pytest.raises(CheckpointError, match=r"checkpoint/model.safetensors: not a safetensors file"):
        open_checkpoint(root)
    (disk / "shard.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors: a symbolic link to nothing"):
        open_checkpoint(root)
    (root / "model.safetensors").unlink()
    (root / "model.safetensors").symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match=r"model.safetensors: not a regular file"):
        open_checkpoint(root)


def test_a_build_of_weights_on_another_disk(tmp_path: Path) -> None:
    path = tiny_files.complete(tmp_path / "model", tiny.Tiny(layers=1, vision_layers=2))
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").rename(tmp_path / "shard.safetensors")
    (path / "model.safetensors").symlink_to(tmp_path / "shard.safetensors")
    for how in ("copy", "link"):
        out = tmp_path / how
        trtprune.build(path, out, keep=4, weights=how)
        (placed,) = out.rglob("model.safetensors")
        assert not placed.is_symlink()
        assert placed.read_bytes() == data


def test_a_build_copies_no_file_from_elsewhere(tmp_path: Path) -> None:
    path = tiny_files.complete(tmp_path / "model", tiny.Tiny(layers=1, vision_layers=2))
    (tmp_path / "secret.json").write_text(SECRET)
    out = tmp_path / "out"
    for name in SIDE_FILES:
        own = (path / name).read_bytes() if (path / name).exists() else None
        (path / name).unlink(missing_ok=True)
        (path / name).symlink_to("../secret.json")
        with pytest.raises(TrtpruneError, match="leaves the checkpoint") as caught:
            trtprune.build(path, out, keep=4)
        assert name in caught.value.message
        assert not out.exists()
        (path / name).unlink()
        if own is not None:
            (path / name).write_bytes(own)
    trtprune.build(path, out, keep=4)
    assert not [p for p in out.rglob("*.json*") if "of the user" in p.read_text(errors="replace")]


def test_the_build_reads_through_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text that passes every check is the one that is copied: there is no second way to the file."""
    path = tiny_files.complete(tmp_path / "model", tiny.Tiny(layers=1, vision_layers=2))
    asked: list[str] = []
    own = Checkpoint.text_bytes
    monkeypatch.setattr(Checkpoint, "text_bytes", lambda self, name: asked.append(name) or own(self, name))
    trtprune.build(path, tmp_path / "out", keep=4)
    assert set(SIDE_FILES) <= set(asked)
