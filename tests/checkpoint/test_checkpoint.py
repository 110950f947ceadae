"""Checkpoints on disk: what is read, and that damage of any kind is one clear error."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from trtprune.checkpoint import checkpoint as module
from trtprune.checkpoint import open_checkpoint, resolve
from trtprune.checkpoint.safetensors import ITEM_SIZES, read_header
from trtprune.errors import CheckpointError

ALIASES = {"llava-1.5-7b": "llava-hf/llava-1.5-7b-hf", "llava-1.5-13b": "llava-hf/llava-1.5-13b-hf"}
TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b.weight": np.arange(5).astype(ml_dtypes.bfloat16),
    "c": np.array([[1.5]], np.float16),
    "empty": np.zeros((0, 4), np.float32),
    "scalar": np.array(7, np.int64),
}


def write(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.fixture
def single(tmp_path: Path) -> Path:
    root = tmp_path / "ckpt"
    root.mkdir()
    (root / "config.json").write_text('{"model_type": "llava"}')
    save_file(TENSORS, root / "model.safetensors", metadata={"format": "pt"})
    return root


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    root = tmp_path / "sharded"
    root.mkdir()
    (root / "config.json").write_text("{}")
    names = {}
    for number, part in enumerate((["a", "c"], ["b.weight", "scalar", "empty"]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: TENSORS[name] for name in part}, root / file)
        names |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": names}
    (root / "model.safetensors.index.json").write_text(json.dumps(index))
    return root


def remap(root: Path, change: Callable[[dict[str, str]], None]) -> None:
    path = root / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def refused(root: Path, *words: str) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(root)
    for word in words:
        assert word in caught.value.message
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("layout", ["single", "sharded"])
def test_reads_what_was_written(layout: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(layout)
    found = resolve(str(root))
    assert found.tensors.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        read = found.read(name)
        info = found.tensors[name]
        assert (read.dtype, read.shape) == (value.dtype, value.shape)
        assert read.tobytes() == value.tobytes()
        raw = (root / info.file).read_bytes()
        assert raw[info.offset : info.offset + info.nbytes] == value.tobytes()
        assert not read.flags.writeable or not read.size
    assert found.id == root.name
    assert found.revision is None
    assert set(found.files) == {info.file for info in found.tensors.values()}


def test_every_dtype_has_its_size() -> None:
    for dtype, size in ITEM_SIZES.items():
        assert module._numpy_dtype(dtype).itemsize == size, dtype


def test_a_json_file_is_counted_before_it_is_parsed(single: Path) -> None:
    (single / "tokenizer.json").write_bytes(b'{"a": [' + b"{}," * 2_000_001 + b"0]}")
    with pytest.raises(CheckpointError, match="more than 2000000 lists and objects"):
        open_checkpoint(single).json_file("tokenizer.json")
    (single / "tokenizer_config.json").write_bytes(b'{"a": "' + b" " * 4_000_000 + b'"}')
    with pytest.raises(CheckpointError, match="larger than 4000000 bytes"):
        open_checkpoint(single).json_file("tokenizer_config.json")


def test_text_and_json_files(single: Path) -> None:
    (single / "chat_template.jinja").write_text("{{ ä }}", encoding="utf-8")
    (single / "list.json").write_text("[1]")
    (single / "latin.txt").write_bytes(b"\xe4")
    found = open_checkpoint(single)
    assert found.text_file("chat_template.jinja") == "{{ ä }}"
    assert found.text_file("absent.txt") is None
    assert found.json_file("absent.json") is None
    assert found.json_file("config.json") == {"model_type": "llava"}
    for bad in (lambda: found.json_file("list.json"), lambda: found.text_file("latin.txt")):
        with pytest.raises(CheckpointError):
            bad()
    for name in ("../config.json", "/etc/passwd", "", "..", "a\\b", "C:x", "a\0"):
        with pytest.raises(CheckpointError, match="leaves the checkpoint"):
            found.text_file(name)
        with pytest.raises(CheckpointError, match="leaves the checkpoint"):
            found.real_path(name)
    with pytest.raises(CheckpointError, match="no tensor") as caught:
        found.read("b.wieght")
    assert "b.weight" in str(caught.value.hint)


def test_digest_follows_content_not_place(single: Path, tmp_path: Path) -> None:
    digest = open_checkpoint(single).digest()
    moved = single.rename(tmp_path / "moved")
    assert open_checkpoint(moved).digest() == digest
    seen = {digest}
    weights = moved / "model.safetensors"
    info = open_checkpoint(moved).tensors["a"]
    data = bytearray(weights.read_bytes())
    data[info.offset + 3] ^= 1  # same config, header and size: another fine-tune of the same model
    weights.write_bytes(data)
    seen.add(open_checkpoint(moved).digest())
    (moved / "tokenizer.json").write_text("{}")
    seen.add(open_checkpoint(moved).digest())
    (moved / "config.json").write_text('{"model_type": "other"}')
    seen.add(open_checkpoint(moved).digest())
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (None, "missing"),
        (b"", "damaged config"),
        (b"{", "damaged config"),
        (b"[1]", "not a JSON object"),
        (b"\xff\xfe", "damaged config"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b"[" * 200_000, "damaged config"),
        (b'{"a": ' + b"9" * 5000 + b"}", "damaged config"),
        (b'{"a": "\\ud800"}', "damaged config"),
        (b" " * 4_000_001, "larger than"),
    ],
)
def test_bad_config(single: Path, content: bytes | None, word: str) -> None:
    (single / "config.json").unlink()
    if content is not None:
        (single / "config.json").write_bytes(content)
    refused(single, "config.json", word)


def test_not_a_directory(single: Path, tmp_path: Path) -> None:
    refused(tmp_path / "absent", "no such checkpoint directory")
    refused(single / "config.json", "is a file")


def test_special_files_do_not_block(single: Path) -> None:
    (single / "model.safetensors").unlink()
    os.mkfifo(single / "model.safetensors")
    refused(single, "not a regular file")
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_header(single / "model.safetensors")
    (single / "config.json").unlink()
    os.mkfifo(single / "config.json")
    refused(single, "config.json", "not a regular file")


def test_pickles_are_never_read(single: Path) -> None:
    (single / "model.safetensors").rename(single / "pytorch_model.bin")
    error = refused(single, "pickled", "pytorch_model.bin")
    assert "save_pretrained" in str(error.hint)
    (single / "pytorch_model.bin").unlink()
    refused(single, "neither model.safetensors nor")
    (single / "consolidated.safetensors").write_bytes(b"")
    refused(single, "found consolidated.safetensors")


def test_truncated_and_padded(single: Path) -> None:
    path = single / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    refused(single, "model.safetensors", f"expected {len(whole)} bytes, found {len(whole) - 3}")
    path.write_bytes(whole + b"xx")
    refused(single, "2 bytes after the last tensor")
    for size in (0, 5, 8, 60):
        path.write_bytes(whole[:size])
        refused(single, "model.safetensors", "truncated")


@pytest.mark.parametrize(
    ("header", "data", "word"),
    [
        ([], b"", "not a JSON object"),
        ({"t": 1}, b"", "not an object"),
        ({"t": entry("F31")}, b"1234", "unknown dtype 'F31'"),
        ({"t": entry("F4", (8,))}, b"1234", "unknown dtype"),
        ({"t": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, b"1234", "unknown dtype"),
        ({"t": entry(shape=(-1,))}, b"1234", "invalid shape"),
        ({"t": entry(shape=(1.0,))}, b"1234", "invalid shape"),
        ({"t": entry(shape=(True,))}, b"1234", "invalid shape"),
        ({"t": entry(shape=(1 << 64,))}, b"1234", "invalid shape"),
        ({"t": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}}, b"1234", "invalid shape"),
        ({"t": entry(offsets=(0,))}, b"1234", "invalid data_offsets"),
        ({"t": entry(offsets=(4, 0))}, b"1234", "needs 4 bytes"),
        ({"t": entry(offsets=(-4, 0))}, b"1234", "invalid data_offsets"),
        ({"t": entry(shape=(2,))}, b"1234", "needs 8 bytes"),
        ({"t": entry(shape=(1 << 40, 1 << 40))}, b"1234", "needs"),
        ({"t": entry(shape=(1,) * 33)}, b"1234", "33 dimensions, the limit is 32"),
        ({"t": entry(shape=((1 << 63) - 1,) * 32)}, b"1234", "...9504687372369920004 bytes"),
        (b'{"t": [' + b"{}," * 250_001 + b"0]}", b"", "more than 250000 entries"),
        (b'{"t": [' + b"[]," * 500_001 + b"0]}", b"", "more than 250000 entries"),
        ({"t" * 1_000_000: 1}, b"", "not an object"),
        ({"t": entry(offsets=(4, 8))}, b"12345678", "leaves a gap"),
        ({"t": entry(), "u": entry(offsets=(2, 6))}, b"123456", "overlaps"),
        ({"t": entry(), "u": entry()}, b"1234", "overlaps"),
        (b'{"t": {}, "t": {}}', b"", "twice"),
        (b'{"t\\ud800": {}}', b"", "damaged safetensors header"),
        (b"{" * 50_000, b"", "damaged safetensors header"),
        (b"\xff" * 10, b"", "damaged safetensors header"),
        ({}, b"", "no tensors"),
        ({"__metadata__": {"format": "pt"}}, b"", "no tensors"),
    ],
)
def test_bad_headers(single: Path, header: Any, data: bytes, word: str) -> None:
    write(single / "model.safetensors", header, data)
    refused(single, word)


def test_a_header_that_claims_to_be_huge(single: Path) -> None:
    (single / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    refused(single, "the limit is 25000000")


def test_a_missing_shard(sharded: Path) -> None:
    (sharded / "model-00002-of-00002.safetensors").unlink()
    refused(sharded, "model-00002-of-00002.safetensors", "missing shard", "'b.weight'")


@pytest.mark.parametrize("path", ["../x.safetensors", "/x.safetensors", "sub/x.safetensors", "..", "a\\b", "C:x", ""])
def test_an_index_path_that_leaves_the_directory(sharded: Path, path: str) -> None:
    remap(sharded, lambda names: names.update(a=path))
    refused(sharded, "index.json", "'a'", "leaves the checkpoint directory")


def test_index_and_shards_that_disagree(sharded: Path) -> None:
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    remap(sharded, lambda names: names.update(a=second))
    refused(sharded, second, "'a' is missing")
    remap(sharded, lambda names: names.update(a=first, ghost=first))
    refused(sharded, first, "'ghost' is missing")
    remap(sharded, lambda names: (names.pop("ghost"), names.pop("c")))
    refused(sharded, first, "'c' is not listed")
    remap(sharded, lambda names: names.update(c=first))
    save_file({"scalar": TENSORS["scalar"], "a": TENSORS["a"], "b.weight": TENSORS["b.weight"]}, sharded / second)
    refused(sharded, second, "'a' is also in", first)


def test_a_shard_name_no_file_can_have(sharded: Path) -> None:
    remap(sharded, lambda names: names.update(a="m" * 5000))
    refused(sharded, "index.json", "'a'", "leaves the checkpoint directory")


@pytest.mark.parametrize("text", ["{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "[]", "x"])
def test_a_damaged_index(sharded: Path, text: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(text)
    refused(sharded, "index.json")


def test_a_file_that_shrinks_after_it_was_checked(single: Path) -> None:
    found = open_checkpoint(single)
    (single / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="cannot be mapped"):
        found.read("a")


@pytest.mark.parametrize(
    ("model", "message", "hint"),
    [
        ("llava-1.5-7", "no such alias", "did you mean llava-1.5-7b? known: demo, demo-signs, llava-1.5-7b"),
        ("zzz", "no such alias", "known: demo, demo-signs, llava-1.5-7b"),
        ("", "empty", "alias"),
        ("  ", "empty", "alias"),
        ("a\nb", "not a name", ""),
        ("a/b/c", "no such checkpoint directory", ""),
        ("./llava-1.5-7b", "no such checkpoint directory", ""),
        ("~/absent-directory", "no such checkpoint directory", ""),
        ("owner/na me", "not a hub id", ""),
        ("owner/name@", "revision is unclear", ""),
        ("demo@main", "no revisions", ""),
    ],
)
def test_names_that_do_not_resolve(model: str, message: str, hint: str) -> None:
    with pytest.raises(CheckpointError, match=r"model|no such") as caught:
        resolve(model, aliases=ALIASES)
    assert message in caught.value.message
    assert hint in str(caught.value.hint)


def test_precedence(single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def download(hub_id: str, *, revision: str | None, **_: Any) -> tuple[Path, str]:
        asked.append((hub_id, revision))
        return single, "c0ffee"

    monkeypatch.setattr("trtprune.checkpoint.hub.download", download)
    for model in ("llava-1.5-7b", "llava-1.5-7b@v1", "some/model@v2"):
        found = resolve(model, aliases=ALIASES)
        assert found.revision == "c0ffee"
    assert found.id == "some/model"
    assert asked == [(ALIASES["llava-1.5-7b"], None), (ALIASES["llava-1.5-7b"], "v1"), ("some/model", "v2")]
    with pytest.raises(CheckpointError, match="unclear"):
        resolve("some/model@v2", revision="v3", aliases=ALIASES)
    # A directory of that name is what the user sees, so it wins over alias and hub id.
    monkeypatch.chdir(single.parent)
    single.rename("llava-1.5-7b")
    assert resolve("llava-1.5-7b", aliases=ALIASES).revision is None
    assert len(asked) == 3
    with pytest.raises(CheckpointError, match="revision='v1'"):
        resolve("llava-1.5-7b", revision="v1", aliases=ALIASES)


WHOLE = save(TENSORS, metadata={"format": "pt"})
HEADER = 8 + int.from_bytes(WHOLE[:8], "little")


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flips=st.lists(st.tuples(st.integers(0, HEADER - 1), st.integers(1, 255)), min_size=1, max_size=4),
    cut=st.none() | st.integers(0, len(WHOLE)),
)
def test_any_damage_of_a_header_is_a_checkpoint_error(
    tmp_path: Path, flips: list[tuple[int, int]], cut: int | None
) -> None:
    data = bytearray(WHOLE)
    for place, mask in flips:
        data[place] ^= mask
    path = tmp_path / "model.safetensors"
    path.write_bytes(data[:cut])
    (tmp_path / "config.json").write_text("{}")
    try:
        found = open_checkpoint(tmp_path)
    except CheckpointError as error:
        str(error).encode("utf-8")
        return
    # What is accepted can be read in full: no offset leads outside the file.
    assert all(found.read(name).nbytes == info.nbytes for name, info in found.tensors.items())
    found.digest()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(list(ITEM_SIZES)) | JSON,
        "shape": st.lists(st.integers(-1, 5), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-1, 40), min_size=2, max_size=2) | JSON,
    },
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=st.dictionaries(st.text(max_size=5), ENTRY | JSON, max_size=3) | JSON, size=st.integers(0, 40))
def test_any_header_is_accepted_or_refused(tmp_path: Path, header: Any, size: int) -> None:
    path = write(tmp_path / "x.safetensors", header, bytes(size))
    try:
        found = read_header(path)
    except CheckpointError:
        return
    assert all(t.offset >= 0 and t.offset + t.nbytes <= found.size for t in found.tensors.values())
