"""How weight files come into a build: each way, what is said of it, and what does not fit."""

from __future__ import annotations

import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path

import onnx
import pytest

from trtprune.compiler import weights
from trtprune.compiler.weights import place_weights
from trtprune.errors import BuildError

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for weights on a file system without reflinks, and ``source`` with a link to it beside."""
    (tmp_path / "source").write_bytes(b"weights" * 100)
    (tmp_path / "link").symlink_to("source")
    (tmp_path / "to").mkdir()
    monkeypatch.setattr(weights, "_FICLONE", 0)
    return tmp_path


def put(place: Path, how: str) -> str:
    said = place_weights({"a": place / "link"}, place / "to", how)
    assert (place / "to/a").read_bytes() == (place / "source").read_bytes()
    assert not (place / "to/a").is_symlink()
    return said


def linked(place: Path) -> bool:
    return (place / "to/a").samefile(place / "source")


def test_each_way(place: Path) -> None:
    assert put(place, "auto") == "copied; above 4 GB they are linked, with --weights link always"
    assert not linked(place)
    shutil.rmtree(place / "to")
    (place / "to").mkdir()
    assert put(place, "copy") == "copied"
    assert not linked(place)
    (place / "to/a").unlink()
    assert put(place, "link") == "linked: a write into one reaches the checkpoint"
    assert linked(place)
    with pytest.raises(BuildError, match="--weights soft: unknown"):
        put(place, "soft")


def test_large_weights_are_linked_with_a_word(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "AUTO_COPY_BYTES", 100)
    assert "--weights copy copies them" in put(place, "auto")
    assert linked(place)


def test_no_room(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 1000))
    with pytest.raises(BuildError, match="no room for") as error:
        put(place, "copy")
    assert "--weights link" in (error.value.hint or "")
    assert list((place / "to").iterdir()) == []
    assert "there is no room for copies" in put(place, "auto")
    assert linked(place)


def test_no_links_here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    assert put(place, "link") == "copied, as hard links cannot be made here"


def test_reflinks(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stood in for by a copy: what the call does is the file system's."""

    def clone(target: int, request: int, source: int) -> int:
        assert request == 0x40049409  # FICLONE of linux/fs.h
        os.write(target, os.pread(source, 1 << 20, 0))
        return 0

    monkeypatch.undo()
    monkeypatch.setattr(weights.fcntl, "ioctl", clone)
    for how in ("auto", "copy"):
        assert "reflinks" in put(place, how)
        assert not linked(place)
        (place / "to/a").unlink()


def test_why_not_links(place: Path) -> None:
    """The reason for copies, held to: ``onnx`` refuses weights with several hard links."""
    value = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2])
    tensor = onnx.numpy_helper.from_array(__import__("numpy").zeros(2, "float32"), "w")
    node = onnx.helper.make_node("Identity", ["w"], ["y"])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [value], [tensor]))
    onnx.save(model, place / "g.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    onnx.load(place / "g.onnx")
    os.link(place / "w.bin", place / "second")
    with pytest.raises(onnx.checker.ValidationError, match="hard links"):
        onnx.load(place / "g.onnx")
