"""``config.json`` is untrusted input: damage, foreign paths and foreign types are one clear error each."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kit.engine_dirs import WEIGHTS, edit, make
from trtprune.engine_dir import digest_file, digest_weights, open_engine_dir
from trtprune.errors import EngineDirError

ESCAPES = [
    "../secret",
    "onnx/../../secret",
    "onnx/..",
    "..",
    "/etc/passwd",
    "//etc/passwd",
    "..\\secret",
    "onnx\\vision.onnx",
    "C:secret",
    "C:\\secret",
    "c:/secret",
    "",
    ".",
    "onnx/vision.onnx\0",
    "a" * 300,
    "a/" * 5000 + "a",
    "\ud800",
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make(tmp_path / "out")
    (tmp_path / "secret").write_text("secret")
    return tmp_path / "out"


def refused(root: Path, *words: str, **arguments: Any) -> EngineDirError:
    with pytest.raises(EngineDirError) as caught:
        open_engine_dir(root, **arguments)
    for word in words:
        assert word in caught.value.message
    return caught.value


@pytest.mark.parametrize("verify", ["auto", "none", "fast", "full"])
def test_round_trip(root: Path, verify: str) -> None:
    made = open_engine_dir(root, verify=verify)
    assert made.to_json() == (root / "config.json").read_text()
    assert made.root == root
    assert made.component("vision").inputs[0].shape == ("batch", 3, 56, 56)
    with pytest.raises(EngineDirError, match="no component 'decoder'"):
        made.component("decoder")


def test_it_may_be_moved(root: Path, tmp_path: Path) -> None:
    shutil.move(root, tmp_path / "elsewhere")
    open_engine_dir(tmp_path / "elsewhere", verify="full")
    (tmp_path / "link").symlink_to("elsewhere")
    open_engine_dir(tmp_path / "link", verify="full")


@pytest.mark.parametrize("path", ESCAPES)
@pytest.mark.parametrize("verify", ["none", "full"])
def test_no_path_leaves_the_directory(root: Path, path: str, verify: str) -> None:
    fields: list[tuple[str | int, ...]] = [("components", 0, "onnx"), ("components", 0, "engine")]
    original = (root / "config.json").read_text()
    for field in fields:
        edit(root, *field, value=path)
        refused(root, "config.json" if len(path) < 1000 else "", verify=verify)
        # The same path listed in files does not make it a path of the directory.
        edit(root, "files", path, value="sha256:" + "0" * 64)
        refused(root, verify=verify)
        (root / "config.json").write_text(original)


@pytest.mark.parametrize("name", ["onnx/vision.onnx", "tokenizer.json", WEIGHTS])
def test_no_symbolic_link_leaves_the_directory(root: Path, tmp_path: Path, name: str) -> None:
    # The same bytes outside: only the place is wrong.
    (root / name).rename(tmp_path / "outside")
    (root / name).symlink_to(tmp_path / "outside")
    refused(root, "leaves the engine directory", verify="none")


def test_no_linked_folder_leaves_the_directory(root: Path, tmp_path: Path) -> None:
    (root / "onnx").rename(tmp_path / "onnx")
    (root / "onnx").symlink_to(tmp_path / "onnx")
    refused(root, "leaves the engine directory", verify="none")


@pytest.mark.parametrize("name", ["onnx/vision.onnx", "engines/vision.engine", "tokenizer.json", WEIGHTS])
def test_a_changed_byte_in_each_kind_of_file(root: Path, name: str) -> None:
    path = root / name
    whole = path.read_bytes()
    for place in (0, len(whole) // 2, len(whole) - 1):
        data = bytearray(whole)
        data[place] ^= 1
        path.write_bytes(data)
        for verify in ("auto", "full") if name == WEIGHTS or "engines" in name else ("auto", "fast", "full"):
            refused(root, name, "digest differs", verify=verify)
    path.write_bytes(whole)
    open_engine_dir(root, verify="full")


def test_the_fast_check_of_weights(root: Path) -> None:
    path = root / WEIGHTS
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    open_engine_dir(root, verify="fast")  # as documented: header and size only
    path.write_bytes(whole[:-1])
    refused(root, WEIGHTS, verify="fast")
    path.write_bytes(whole[:20] + bytes([whole[20] ^ 1]) + whole[21:])
    refused(root, WEIGHTS, verify="fast")
    path.write_bytes(b"")
    refused(root, WEIGHTS, verify="fast")
    path.write_bytes(b"\xff" * 9)
    assert digest_weights(path).startswith("sha256-header-size:")


@pytest.mark.parametrize("name", ["onnx/vision.onnx", "engines/vision.engine", "tokenizer.json", WEIGHTS])
def test_a_missing_file(root: Path, name: str) -> None:
    (root / name).unlink()
    refused(root, name, "missing", verify="none")
    (root / name).mkdir()
    refused(root, name, verify="none")


def test_not_an_engine_directory(root: Path, tmp_path: Path) -> None:
    assert "trtprune build" in str(refused(tmp_path / "absent", "no such engine directory").hint)
    refused(root / "tokenizer.json", "no such engine directory")
    (root / "config.json").unlink()
    refused(root, "config.json is missing")
    (root / "config.json").mkdir()
    refused(root, "cannot be read")


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b"1", b"\xff", b"[" * 100_000, b"9" * 5000, b'{"schema_version": NaN}']
)
def test_no_json_at_all(root: Path, text: bytes) -> None:
    (root / "config.json").write_bytes(text)
    refused(root, "config.json")


def test_a_config_that_is_no_regular_file(root: Path) -> None:
    (root / "config.json").unlink()
    os.mkfifo(root / "config.json")
    refused(root, "config.json")


def test_a_config_of_absurd_size(root: Path) -> None:
    with (root / "config.json").open("r+b") as stream:
        stream.truncate(1 << 30)
    refused(root, "config.json", "larger than")


@pytest.mark.parametrize("version", [3, 99, 10**30])
def test_a_newer_schema(root: Path, version: int) -> None:
    edit(root, "schema_version", value=version)
    error = refused(root, f"schema_version {version} is newer")
    assert "upgrade" in str(error.hint)


@pytest.mark.parametrize("version", [0, -1, True, "1", 1.0, None, [1]])
def test_a_schema_that_is_none(root: Path, version: Any) -> None:
    edit(root, "schema_version", value=version)
    refused(root, "schema_version")


def test_another_backend(root: Path) -> None:
    error = refused(root, "onnxruntime", "tensorrt", backend="tensorrt")
    assert "backend='tensorrt'" in str(error.hint)
    open_engine_dir(root, backend="onnxruntime")


def test_an_unknown_check(root: Path) -> None:
    refused(root, "verify='quick'", verify="quick")


@pytest.mark.parametrize(
    ("keys", "value", "word"),
    [
        (("model", "hidden_size"), "64", "config.model.hidden_size must be of type int"),
        (("model", "hidden_size"), True, "config.model.hidden_size"),
        (("model", "hidden_size"), 64.0, "config.model.hidden_size"),
        (("model", "has_cls"), 1, "config.model.has_cls"),
        (("model", "revision"), 3, "config.model.revision"),
        (("model", "image_size"), [336], "config.model.image_size must have 2 entries"),
        (("model", "image_size"), 336, "config.model.image_size must be a list"),
        (("model", "eos_token_ids"), [2, None], "config.model.eos_token_ids[1]"),
        (("model",), [], "config.model must be an object"),
        (("pruning", "options"), [], "config.pruning.options must be an object"),
        (("pruning", "options", "x"), {}, "config.pruning.options.x"),
        (("components",), {}, "config.components must be a list"),
        (("components", 0, "inputs", 0, "shape"), [1.5], "config.components[0].inputs[0].shape[0]"),
        (("components", 0, "engine"), 5, "config.components[0].engine"),
        (("files", "tokenizer.json"), None, "config.files.tokenizer.json"),
        (("kv",), None, "config.kv must be an object"),
        (("extra",), 1, "config.extra is not a known field"),
        (("model", "extra"), 1, "config.model.extra is not a known field"),
        (("root",), "/", "config.root"),
    ],
)
def test_wrong_types_and_extra_fields(root: Path, keys: tuple[str | int, ...], value: Any, word: str) -> None:
    edit(root, *keys, value=value)
    refused(root, word)


@pytest.mark.parametrize(
    ("keys", "value", "word"),
    [
        (("model", "hidden_size"), 0, "hidden_size"),
        (("model", "visual_tokens"), -5, "visual_tokens"),
        (("model", "patch_grid"), [0, 24], "patch_grid"),
        (("model", "image_size"), [336, -1], "image_size"),
        (("positions", "rule"), "random", "positions.rule must be one of compact, original"),
        (("positions", "axes"), 2, "positions.axes must be one of 1, 3"),
        (("positions", "axes"), 0, "positions.axes"),
        (("positions", "sections"), [], "positions.sections must share 16 frequencies"),
        (("positions", "sections"), [17], "positions.sections"),
        (("positions", "sections"), [8, 8], "positions.sections"),
        (("positions",), {"rule": "compact", "axes": 3, "sections": [16, 0, 0]}, "positions.sections"),
        (("positions", "interleaved"), True, "positions.interleaved belongs to several axes"),
        (("components", 0, "inputs", 0, "name"), "position_ids", "'position_ids' must be [batch, 1, sequence]"),
        (("pruning", "keep"), 0, "keep"),
        (("pruning", "keep"), 10**9, "keep"),
        (("pruning", "keep_range"), [576, 16], "keep_range"),
        (("pruning", "keep_range"), [0, 16], "keep_range"),
        (("kv", "capacity"), 0, "capacity"),
        (("kv", "capacity"), -4096, "capacity"),
        (("kv", "bytes_per_token"), -1, "bytes_per_token"),
        (("kv", "segment_layers"), [1, 2], "segment_layers must share 3 layers among 0 segments"),
        (("components", 0, "inputs", 0, "shape"), [10**39], "inputs[0].shape[0] is a number out of range"),
        (("components", 0, "inputs", 0, "shape"), [10**15, 10**3], "'pixel_values' has a shape out of range"),
        (("components", 0, "outputs", 0, "shape"), [-1], "'image_features' has a shape out of range"),
        (("generation", "repetition_penalty"), 0.0, "config.generation.repetition_penalty"),
        (("chain",), ["vision", "ghost"], "ghost"),
        (("files", "tokenizer.json"), "", "tokenizer.json"),
        (("files", "tokenizer.json"), "md5:00", "tokenizer.json"),
        (("model", "vocab_size"), 10**39, "config.model.vocab_size is a number out of range"),
        (("model", "vocab_size"), 2**40, "vocab_size"),
        (("model", "eos_token_ids"), [-1], "eos_token_ids"),
        (("model", "first_patch"), 10**6, "first_patch"),
        (("model", "deepstack_levels"), 10**4, "deepstack_levels"),
        (("model", "deepstack_levels"), -1, "deepstack_levels"),
        (("pruning", "options"), {"ratio": float("nan")}, "finite"),
        (("kv", "head_dim"), 2**30, "head_dim"),
        (("kv", "segment_layers"), [3], "segment_layers"),
        (("components", 0, "name"), "a\nerror: b", "no name of a component"),
        (("components", 0, "role"), "oracle", "'vision' has the unknown role 'oracle'"),
        (("components", 0, "segment"), 0, "a component of role vision has no segment"),
        (("components", 0, "inputs", 0, "shape"), ["batch", 3, 10**39, 1], "out of range"),
        (("components", 0, "inputs", 0, "shape"), ["batch", 2**30, 2**30], "out of range"),
        (("components", 0, "inputs", 0, "shape"), ["batch", -1], "out of range"),
        (("components", 0, "inputs", 0, "dtype"), "S1000000000", "unknown dtype"),
        (("components", 0, "inputs", 0, "name"), "past_key_values.0.key", "as config.kv says"),
        (("files",), {str(i): "sha256:" + "0" * 64 for i in range(10_001)}, "more than"),
    ],
)
def test_values_that_cannot_be(root: Path, keys: tuple[str | int, ...], value: Any, word: str) -> None:
    edit(root, *keys, value=value)
    refused(root, word)


def test_a_duplicate_component(root: Path) -> None:
    data = json.loads((root / "config.json").read_text())
    edit(root, "components", value=data["components"] * 2)
    refused(root, "vision", "twice")


@pytest.mark.parametrize(
    ("parts", "word"),
    [
        ((("a", "vision", None), ("b", "vision", None)), "'a': another component has its role and segment"),
        ((("d", "decoder", 1),), "segments must be numbered"),
        ((("d", "decoder", 0), ("e", "decoder", 2)), "segments must be numbered"),
        ((("d", "decoder", None), ("e", "decoder", 0)), "segments must be numbered"),
        ((("d", "decoder", None), ("p", "pruner", 0)), "a pruner must stand before the decoder"),
        ((("d", "decoder", 0), ("e", "decoder", 1), ("p", "pruner", 1)), "a pruner must stand before the decoder"),
        ((("d", "decoder", 0), ("e", "decoder", 1), ("p", "pruner", None)), "a pruner must stand before the decoder"),
    ],
)
def test_parts_that_do_not_go_together(root: Path, parts: tuple[tuple[str, str, int | None], ...], word: str) -> None:
    data = json.loads((root / "config.json").read_text())
    plain = data["components"][0]
    components = [plain | {"name": name, "role": role, "segment": segment} for name, role, segment in parts]
    edit(root, "components", value=components)
    edit(root, "chain", value=[name for name, _, _ in parts])
    edit(root, "kv", "segment_layers", value=[1, 2] if len(parts) > 1 and parts[1][1] == "decoder" else [])
    refused(root, word)


def test_components_are_found_by_their_roles_whatever_their_names(root: Path) -> None:
    data = json.loads((root / "config.json").read_text())
    parts = [("z", "vision", None), ("later", "decoder", 1), ("a", "pruner", 0), ("first", "decoder", 0)]
    plain = data["components"][0]
    edit(root, "components", value=[plain | {"name": n, "role": r, "segment": s} for n, r, s in parts])
    edit(root, "chain", value=[name for name, _, _ in parts])
    edit(root, "kv", "segment_layers", value=[1, 2])
    schedule = {"depth": 3, "points": [0], "rule": "equal"}
    edit(root, "pruning", "schedule", value=schedule)
    for field, value in (("depth", 4), ("points", [1]), ("points", [0, 1]), ("rule", "guess")):
        edit(root, "pruning", "schedule", value=schedule | {field: value})
        refused(root, f"pruning.schedule.{field}")
    edit(root, "pruning", "schedule", value=None)
    refused(root, "pruning.schedule belongs to a decoder in segments")
    edit(root, "pruning", "schedule", value=schedule)
    made = open_engine_dir(root)
    assert [component.name for component in made.segments] == ["first", "later"]
    assert made.part("vision").name == "z"
    assert made.part("pruner", 0).name == "a"
    assert made.find("pruner") is None
    with pytest.raises(EngineDirError, match=r"no decoder in the chain"):
        made.part("decoder")


def test_every_missing_field_is_named(root: Path) -> None:
    data = json.loads((root / "config.json").read_text())
    optional = {
        "interleaved",
        "keeps_cls_feature",
        "first_patch",
        "video_token",
        "deepstack_levels",
        "weight_dtype",
        "engines",
        "segment_layers",
        "schedule",
    }
    for holder in ([], ["model"], ["positions"], ["pruning"], ["kv"], ["components", 0]):
        at: Any = data
        for key in holder:
            at = at[key]
        for name in list(at):
            kept = at.pop(name)
            (root / "config.json").write_text(json.dumps(data))
            if name not in optional:
                refused(root, name)
            at[name] = kept
    (root / "config.json").write_text(json.dumps(data))
    open_engine_dir(root)


def test_engines_are_checked_like_weights(root: Path) -> None:
    """The fast check reads the beginning of an engine and its size; the full one finds a change anywhere."""
    path = root / "engines/vision.engine"
    data = bytearray(path.read_bytes())
    data[2_000_000] ^= 1
    path.write_bytes(data)
    open_engine_dir(root, verify="fast")
    refused(root, "vision.engine", "digest differs", verify="full")
    refused(root, "vision.engine", "digest differs", verify="auto")
    path.write_bytes(data[:-1])
    refused(root, "vision.engine", "digest differs", verify="fast")
    data[2_000_000] ^= 1
    data[0] ^= 1
    path.write_bytes(data)
    refused(root, "vision.engine", "digest differs", verify="fast")


ENGINES = {
    "version": "1.7.1.116",
    "targets": ["sm89", "sm120"],
    "max_batch_size": 1,
    "max_input_len": 512,
    "max_images": 1,
    "attention": "fused",
}


def test_engines(root: Path) -> None:
    edit(root, "engines", value=ENGINES)
    found = open_engine_dir(root).engines
    assert found is not None
    assert found.targets == ("sm89", "sm120")
    assert not found.plugins


@pytest.mark.parametrize(
    ("name", "value"),
    [("targets", []), ("targets", ["89"]), ("targets", ["sm89; rm"]), ("max_batch_size", 0), ("max_input_len", -1)],
)
def test_engines_that_make_no_sense(root: Path, name: str, value: Any) -> None:
    edit(root, "engines", value={**ENGINES, name: value})
    refused(root, f"config.engines.{name}")


def test_engines_without_an_engine_of_each_component(root: Path) -> None:
    edit(root, "engines", value=ENGINES)
    edit(root, "components", 0, "engine", value=None)
    refused(root, "vision", "engine")


def test_a_file_in_use_must_be_listed(root: Path) -> None:
    data = json.loads((root / "config.json").read_text())
    del data["files"]["onnx/vision.onnx"]
    (root / "config.json").write_text(json.dumps(data))
    refused(root, "onnx/vision.onnx", "not listed", verify="none")


@pytest.mark.parametrize("where", ["graph", "loop", "function", "sparse"])
@pytest.mark.parametrize("location", ["weights/other.safetensors", "../../outside", "/etc/passwd"])
def test_weights_must_be_listed(root: Path, where: str, location: str) -> None:
    """Wherever in a graph they are taken from: a digest of every file says nothing of a file that has none."""
    path = root / "onnx/vision.onnx"
    model = onnx.load(path)
    tensor = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [1], bytes(4), raw=True)
    onnx.external_data_helper.set_external_data(tensor, location)
    tensor.ClearField("raw_data")
    constant = onnx.helper.make_node("Constant", [], ["k"], value=tensor)
    if where == "graph":
        model.graph.initializer.append(tensor)
    elif where == "loop":
        body = next(node for node in model.graph.node if node.op_type == "If").attribute[0].g
        body.initializer.append(tensor)
    elif where == "function":
        model.functions[0].node.append(constant)
    else:
        sparse = onnx.helper.make_sparse_tensor(tensor, onnx.helper.make_tensor("i", 7, [1], [0]), [4])
        model.graph.sparse_initializer.append(sparse)
    onnx.save(model, path)
    edit(root, "files", "onnx/vision.onnx", value=digest_file(path))
    for verify in ("auto", "fast", "full"):
        refused(root, "takes weights from", location, "does not list", verify=verify)


ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["../x", "/etc/passwd", "onnx/vision.onnx", "onnx/weights/..", "sha256:00", "\ud800", 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value inside a JSON value."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += places(item, (*path, key))
    return found


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_mutation_is_accepted_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    root = tmp_path / "out"
    if not root.exists():
        make(root)
        (tmp_path / "original").write_text((root / "config.json").read_text())
    config = json.loads((tmp_path / "original").read_text())
    config = copy.deepcopy(config)
    for _ in range(data.draw(st.integers(1, 3))):
        where = data.draw(st.sampled_from(places(config)))
        at = config
        for key in where[:-1]:
            at = at[key]
        action = data.draw(st.sampled_from(["set", "delete", "add"]))
        if action == "delete":
            del at[where[-1]]
        elif action == "add" and isinstance(at, dict):
            at[data.draw(st.text(max_size=6))] = data.draw(ANY)
        else:
            at[where[-1]] = data.draw(ANY)
        if not places(config):
            break
    (root / "config.json").write_text(json.dumps(config))
    try:
        made = open_engine_dir(root)
    except EngineDirError as error:
        str(error).encode("utf-8")  # can be printed
        return
    for name in made.files:
        assert made.path(name).resolve().is_relative_to(root.resolve())


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10**6), mask=st.integers(1, 255), cut=st.booleans())
def test_any_flipped_byte_of_the_config(tmp_path: Path, place: int, mask: int, cut: bool) -> None:
    root = tmp_path / "out"
    if not root.exists():
        make(root)
        shutil.copy(root / "config.json", tmp_path / "original")
    text = bytearray((tmp_path / "original").read_bytes())
    place %= len(text)
    text[place] ^= mask
    (root / "config.json").write_bytes(text[:place] if cut else text)
    with contextlib.suppress(EngineDirError):
        open_engine_dir(root, verify="fast")
