"""Engine directories in C++: every directory that Python takes or refuses, with the same content, message and hint."""

from __future__ import annotations

import copy
import itertools
import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import trtprune
from tests.engine_dir import test_engine_dir as python_tests
from tests.fuzz.fuzz_config import raw
from tests.fuzz.fuzz_engine_dir import METHODS, spoil, write_checkpoint
from tests.kit import cpp_build, engine_dirs
from tests.kit.cpp_engine_dirs import check, opened, read
from trtprune.engine_dir import EngineDir, digest_file, open_engine_dir

EXAMPLES = settings(
    max_examples=int(os.environ.get("TRTPRUNE_EXAMPLES", "25")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)

# Every test of the Python reader runs once more here, and C++ opens each of its directories, too.
globals().update({name: test for name, test in vars(python_tests).items() if name.startswith("test_")})
root = python_tests.root


@pytest.fixture(autouse=True)
def _opened_by_both(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_both(path: Path, *, verify: str = "auto", backend: str | None = None) -> EngineDir:
        if backend is None:  # a runtime of one backend has no such argument
            check([opened(path, verify)])
        return open_engine_dir(path, verify=verify, backend=backend)

    monkeypatch.setattr(python_tests, "open_engine_dir", open_both)


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A directory made by hand, with engines, and builds of a whole and of a cut decoder."""
    folder = tmp_path_factory.mktemp("builds")
    engine_dirs.make(folder / "hand")
    engine_dirs.edit(folder / "hand", "engines", value=python_tests.ENGINES)
    write_checkpoint(folder / "model")
    for number, method in enumerate(METHODS):
        trtprune.build(folder / "model", folder / str(number), **method)
    return [folder / "hand", *(folder / str(number) for number in range(len(METHODS)))]


@pytest.fixture(scope="module")
def configs(builds: list[Path]) -> list[dict[str, Any]]:
    """Their configs, and further ones with members that no build above has."""
    data = [json.loads((path / "config.json").read_text()) for path in builds]
    cut = next(config for config in data if config["pruning"]["schedule"] is not None)
    ratios = {"rule": "ratios", "ratios": [[2, 3], [4, 4]], "ratio_tokens": 4, "exact": True, "recycled": [3, 10]}
    scales = {"rule": "equal", "ranked": True, "scales": [[0, 1.5, -1]], "option": "k"}
    for fields in (ratios, scales, {"rule": "fixed", "counts": [2]}, {"rule": "powers"}):
        other = copy.deepcopy(cut)
        other["pruning"]["schedule"] |= fields
        data.append(other)
    full = copy.deepcopy(data[0])
    full["generation"] |= {
        "top_h": 0.4,
        "sequence_bias": [[[1, 2], -1.5], [[3], 2]],
        "bad_words_ids": [[4], [5, 6]],
        "min_new_tokens": 1,
        "max_length": 9,
        "forced_bos_token_id": 1,
        "forced_eos_token_id": [2],
        "exponential_decay_length_penalty": [3, 1.5],
        "suppress_tokens": [7],
        "stop_strings": ["é"],
    }
    pieces = [{"kind": "open"}, {"kind": "text"}, {"kind": "close", "left": " ", "right": "é"}]
    rules = [{"system": s, "first": None, "last": None, "images": None, "pieces": pieces} for s in (True, None)]
    refusal = {"system": None, "several": True, "error": "input", "message": "no", "hint": "é"}
    literal = [{"kind": "literal", "value": "<s>"}]
    token = {"id": 3, "content": "<a>", "decoded": "<a>"}
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special", "skipped")
    full["text"] = {
        "tokenizer": {
            "added_tokens": [token | {flag: index % 2 == 0 for index, flag in enumerate(flags)}],
            "encode_special_tokens": True,
            "before": [1],
            "after": [],
            "bos": "<s>",
        },
        "template": {
            **{"begin": literal, "system": [*literal, {"kind": "system"}], "user": rules, "assistant": rules},
            **{"end": rules, "refusals": [refusal], "own_images": False},
        },
    }
    full["weight_dtype"] = "int8"
    full["vision"]["settings"] = {"a": [1, 2.5, {"b": None}], "é": 10**30}
    return [*data, full]


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Path]:
    """Folders for the configs of one test, each in one of its own."""
    yield tmp_path / "places"
    shutil.rmtree(tmp_path / "places", ignore_errors=True)


def write(places: Path, texts: list[bytes]) -> list[dict[str, Any]]:
    """Writes each text as a ``config.json``; the requests that read them."""
    requests = []
    for number, text in enumerate(texts):
        folder = places / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_bytes(text)
        requests.append(read(folder))
    return requests


def dumped(data: Any) -> bytes:
    return json.dumps(data).encode()


def test_builds(builds: list[Path]) -> None:
    levels = ("auto", "none", "fast", "full")
    answers = check([opened(path, verify) for path in builds for verify in levels])
    assert all("ok" in answer for answer in answers)


def test_configs_with_all_members(configs: list[dict[str, Any]], places: Path) -> None:
    answers = check(write(places, [dumped(config) for config in configs]))
    assert all("ok" in answer for answer in answers), answers


def test_every_member_missing_or_of_any_type(configs: list[dict[str, Any]], places: Path) -> None:
    """Each member of each object, and the first item of each list, taken away, repeated or replaced."""
    texts = []
    values = itertools.cycle(
        (None, True, 0, -1, 1, 2.0, 2**40, 10**20, 1e-3, float("nan"), "", "x", [], [[]], [0, 1], {}, {"a": 1})
    )

    def visit(whole: Any, at: Any) -> None:
        for key in list(at) if isinstance(at, dict) else [0] if at else []:
            old = at[key]
            for new in itertools.islice(values, 6):
                at[key] = new
                texts.append(dumped(whole))
            at[key] = old
            if isinstance(at, dict):
                del at[key]
                texts.append(dumped(whole))
                at[key] = old
                at["more"] = old
                texts.append(dumped(whole))
                del at["more"]
            if isinstance(old, dict | list):
                visit(whole, old)

    for config in (configs[0], configs[-1]):
        whole = copy.deepcopy(config)
        visit(whole, whole)
    assert len(texts) > 2000
    check(write(places, texts))


# Not: characters that Unicode has not assigned, which Python escapes and C++ prints, and the marks inside of messages.
TEXT = st.text(
    st.characters(exclude_categories=("Cn",), exclude_characters="\ue000\ue001\ue002\ue003"), max_size=30
) | st.sampled_from(["decoder", "decoder.0", "vision", "int64", "past_key_values.0.key", "../x", "x" * 3000, "\n" * 9])
NUMBERS = st.integers() | st.integers(-3, 3) | st.floats() | st.sampled_from([2**63, -(2**63), 2**63 - 1, 10**400])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)
CHANGES = st.lists(st.tuples(st.integers(0, 2**32), VALUES), min_size=1, max_size=3)


def change(rng: random.Random, data: Any, value: Any) -> None:
    """Deletes, replaces, inserts or repeats one member or item somewhere."""
    at = data
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            return
        key = rng.choice(keys)
        if not (isinstance(at[key], dict | list) and at[key] and rng.random() < 0.85):
            break
        at = at[key]
    action = rng.randrange(5)
    if action == 0:
        del at[key]
    elif action == 1 and isinstance(at, list):
        at.insert(key, value)
    elif action == 1:
        at[value if isinstance(value, str) else "new"] = value
    elif action == 2:
        at[key] = copy.deepcopy(rng.choice(list(at.values()) if isinstance(at, dict) else at))
    elif action == 3 and isinstance(at[key], int):
        at[key] = at[key] + rng.choice((-1, 1, 7, 2**20, 2**62))
    else:
        at[key] = value


@EXAMPLES
@given(cases=st.lists(CHANGES, min_size=1, max_size=40))
def test_changed_configs(configs: list[dict[str, Any]], places: Path, cases: list[list[tuple[int, Any]]]) -> None:
    texts = []
    for changes in cases:
        data = copy.deepcopy(configs[changes[0][0] % len(configs)])
        for seed, value in changes:
            change(random.Random(seed), data, value)
        texts.append(dumped(data))
    check(write(places, texts))


def test_the_fuzzers_configs(builds: list[Path], places: Path) -> None:
    """What ``tests/fuzz`` does to the config of a build, and its texts that are hardly JSON."""
    texts = []
    for seed in range(100):
        rng = random.Random(f"engine_dir {seed}")
        data = json.loads((builds[1 + seed % len(METHODS)] / "config.json").read_text())
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            spoil(rng, data)
        texts.append(json.dumps(data).encode("utf-8", "surrogatepass"))
    texts += [raw(random.Random(seed)) for seed in range(12)]
    check(write(places, texts))


PIECES = (
    *'{}[],:"\\-.0123456789eE+ntfNIu/ \n\t\r\0\x7f',
    *(
        '""',
        '"a"',
        "\\u",
        "\\ud83d",
        "\\udc00",
        "\\u00e9",
        "é",
        "😀",
        "\ufeff",
        "\u2028",
        "null",
        "true",
        "false",
        "NaN",
    ),
    *(
        "Infinity",
        "-Infinity",
        "1e400",
        "-1e-400",
        "1.5",
        "0.1e1",
        "-0",
        "-0.0",
        "00",
        "9" * 30,
        "9" * 4301,
        "0e99999999999",
    ),
    *(
        "[" * 150,
        "[" * 199 + "]" * 199,
        "[" * 400,
        "]" * 199,
        '{"a":' * 70,
        '"a":1,',
        '"b":2,',
        "0." + "0" * 400 + "1e390",
    ),
    *(
        "179769313486231580793e289",
        "2.2250738585072011e-308",
        "4.9e-324",
        "2e-324",
        "123456789012345678901234567890.5e-10",
    ),
)
BYTES = (b"\xff", b"\xc3", b"\xe2\x82", b"\xed\xa0\x80", b"\xf0\x9f", b"\xf4\x90\x80\x80", b"\xc0\x80", b"\x80")


@st.composite
def json_texts(draw: st.DrawFn) -> bytes:
    """Pieces of JSON in any order, or a valid text with a few of them put in or taken out."""
    pieces = draw(st.lists(st.sampled_from(PIECES), max_size=8))
    if draw(st.booleans()):
        value: Any = draw(VALUES)
        pieces = [*json.dumps(value, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1])))]
        for _ in range(draw(st.integers(0, 2))):
            place = draw(st.integers(0, len(pieces)))
            pieces[place : place + draw(st.integers(0, 2))] = draw(st.lists(st.sampled_from(PIECES), max_size=1))
    text = "".join(pieces).encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 9)) == 0:
        place = draw(st.integers(0, len(text)))
        text = text[:place] + draw(st.sampled_from(BYTES)) + text[place:]
    return text


@EXAMPLES
@given(cases=st.lists(json_texts(), min_size=1, max_size=60))
def test_json_texts(configs: list[dict[str, Any]], places: Path, cases: list[bytes]) -> None:
    """As the whole file, and as a value inside of one, whose content is compared where it is taken."""
    config = copy.deepcopy(configs[0])
    config["vision"]["settings"] = {"any": "HERE"}
    before, after = dumped(config).split(b'"HERE"')
    check(write(places, [text for case in cases for text in (case, before + case + after)]))


def test_a_config_that_cannot_be_opened(tmp_path: Path) -> None:
    requests = []
    for name, target in (("loop", "config.json"), ("nothing", "missing"), ("folder", "."), ("device", "/dev/zero")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").symlink_to(target)
        requests.append(opened(tmp_path / name))
    requests += [opened(f"{tmp_path}//./loop/../nothing/"), opened(tmp_path / "no\0thing"), opened("")]
    assert all("error" in answer for answer in check(requests))


def test_a_repository_is_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python downloads it; C++ says how."""
    monkeypatch.chdir(tmp_path)
    names = ("owner/name", "owner/name@main", "./owner/name", "owner/name/x", "-owner/name", "owner")
    answers = cpp_build.driver("engine_dir")([opened(name) for name in names])
    assert [answer["error"][1] for answer in answers[:2]] == [f"{name}: no such engine directory" for name in names[:2]]
    hints = ["hf download" in answer["error"][2] for answer in answers]
    assert hints == [True, True, False, False, False, False]


def test_paths_of_directories(builds: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(builds[0])
    given = (".", "./", "../hand", "../hand/.//", f"/{builds[0]}", "engines/..", "onnx")
    answers = check([opened(path) for path in given])
    assert [answer["root"] for answer in answers if "ok" in answer] == [
        ".",
        ".",
        "../hand",
        "../hand",
        *([str(Path(f"/{builds[0]}")), "engines/.."]),
    ]


@pytest.mark.parametrize("folder", ["snapshots", "others"])
@pytest.mark.parametrize("repository", ["models--owner--name", "datasets--owner--name"])
@pytest.mark.parametrize("blobs", ["blobs", "linked blobs", "elsewhere", "blobs of another"])
def test_links_into_a_hub_cache(root: Path, tmp_path: Path, folder: str, repository: str, blobs: str) -> None:
    place = tmp_path / repository
    snapshot = place / folder / "0123"
    snapshot.parent.mkdir(parents=True)
    shutil.move(root, snapshot)
    target = {"blobs": place, "linked blobs": place, "elsewhere": tmp_path, "blobs of another": tmp_path / "models--x"}
    store = target[blobs] / ("elsewhere" if blobs == "elsewhere" else "blobs")
    store.parent.mkdir(exist_ok=True)
    if blobs == "linked blobs":
        (tmp_path / "real").mkdir()
        store.symlink_to(tmp_path / "real")
    else:
        store.mkdir()
    for number, name in enumerate(("onnx/vision.onnx", engine_dirs.WEIGHTS, "tokenizer.json")):
        (snapshot / name).rename(store / str(number))
        (snapshot / name).symlink_to(os.path.relpath(store / str(number), (snapshot / name).parent))
    answers = check([opened(snapshot), opened(snapshot, "none")])
    taken = blobs == "blobs" and folder == "snapshots" and repository.startswith("models")
    assert ["ok" in answer for answer in answers] == [taken, taken]


def test_links_inside(root: Path, tmp_path: Path) -> None:
    """Links that lead nowhere, in a circle, through the outside and back, or up and down again."""
    links = {
        "nowhere": "missing",
        "outside": str(tmp_path / "missing"),
        "circle": "circle",
        "pair": "riap",
        "riap": "pair",
        "back": str(root / "tokenizer.json"),
        "through": f"../{root.name}/tokenizer.json",
        "deep": "onnx/../tokenizer.json",
        "up": "..",
    }
    data = json.loads((root / "config.json").read_text())
    digest = data["files"]["tokenizer.json"]
    for name, target in links.items():
        (root / name).symlink_to(target)
    requests = []
    for name in (*links, "up/secret", f"up/{root.name}/tokenizer.json", "tokenizer.json/x", "onnx", "é", "a" * 255):
        folder = tmp_path / f"case {len(requests)}"
        shutil.copytree(root, folder, symlinks=True)
        changed = copy.deepcopy(data)
        changed["files"][name] = digest
        (folder / "config.json").write_text(json.dumps(changed))
        requests += [opened(folder), opened(folder, "none")]
    answers = check(requests)
    assert "ok" in answers[2 * list(links).index("deep")]


@EXAMPLES
@given(seeds=st.lists(st.integers(0, 2**32), min_size=1, max_size=20), data=st.data())
def test_changed_graphs(root: Path, places: Path, seeds: list[int], data: st.DataObject) -> None:
    """Graphs of changed bytes, and with weights anywhere; the digest fits, as a malicious author writes it."""
    plain = weighty_graph()
    requests = []
    for number, seed in enumerate(seeds):
        rng = random.Random(seed)
        text = bytearray(plain)
        for _ in range(rng.choice((0, 1, 1, 2, 5))):
            place = rng.randrange(len(text))
            size = rng.choice((0, 1, 1, 3))
            text[place : place + size] = rng.choice(
                (b"", rng.randbytes(1), rng.randbytes(rng.randrange(6)), b"\x0b", b"\x0c")
            )
        folder = places / str(number)
        if not folder.exists():
            shutil.copytree(root, folder)
        (folder / "onnx/vision.onnx").write_bytes(text)
        engine_dirs.edit(folder, "files", "onnx/vision.onnx", value=digest_file(folder / "onnx/vision.onnx"))
        requests.append(opened(folder))
    check(requests)


def weighty_graph() -> bytes:
    """A graph with tensors in all places, their data in a file that the directory lists."""
    from onnx import TensorProto, helper

    def tensor(name: str) -> TensorProto:
        made = helper.make_tensor(name, TensorProto.FLOAT, [1], bytes(4), raw=True)
        onnx.external_data_helper.set_external_data(made, "./weights//model.safetensors", offset=3, length=4)
        made.ClearField("raw_data")
        return made

    floats = helper.make_tensor("f", TensorProto.FLOAT, [2, 2], [1.0, 2.0, 3.0, 4.0])
    sparse = helper.make_sparse_tensor(tensor("v"), helper.make_tensor("i", TensorProto.INT64, [1], [0]), [4])
    inner = helper.make_graph([helper.make_node("Constant", [], ["z"], value=tensor("c"))], "g", [], [], [tensor("w")])
    nodes = [
        helper.make_node("If", ["c"], ["i"], then_branch=inner, ints=[1, 2, 300], floats=[0.5, 1.5]),
        helper.make_node("Many", ["c"], ["j"], graphs=[inner, inner], tensors=[tensor("t")], sparse=sparse),
    ]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])
    graph = helper.make_graph(nodes, "g", [value], [value], [floats, tensor("u")], sparse_initializer=[sparse])
    function = helper.make_function(
        "d",
        "F",
        ["a"],
        ["b"],
        [helper.make_node("Constant", [], ["b"], value=tensor("k"))],
        [helper.make_opsetid("", 20)],
    )
    function.attribute_proto.add(name="t", type=onnx.AttributeProto.TENSOR).t.CopyFrom(tensor("d"))
    model = helper.make_model(graph, functions=[function])
    model.training_info.add().algorithm.CopyFrom(inner)
    helper.set_model_props(model, {"a": "b"})
    return model.SerializeToString()


@pytest.mark.parametrize("location", ["other", "weights/mod\u00e9l", "../x", "/x", "weights/../weights/m", ""])
def test_weights_in_all_places(root: Path, location: str) -> None:
    """One tensor after the other takes its data from another file; bytes that are no text, too."""
    name = b"./weights//model.safetensors"
    plain = weighty_graph()
    assert plain.count(name) == 14
    other = location.encode()
    requests = []
    for number in range(plain.count(name)):
        place = [i for i in range(len(plain)) if plain.startswith(name, i)][number]
        # Of equal length, so that the lengths around it stay right.
        for padded in (other.ljust(len(name), b"/"), other[:-1].ljust(len(name), b"\xff")):
            folder = root.parent / f"{number} {padded[-1]}"
            shutil.copytree(root, folder)
            (folder / "onnx/vision.onnx").write_bytes(plain[:place] + padded[: len(name)] + plain[place + len(name) :])
            engine_dirs.edit(folder, "files", "onnx/vision.onnx", value=digest_file(folder / "onnx/vision.onnx"))
            requests.append(opened(folder))
    assert all("error" in answer for answer in check(requests))


def nested(levels: int) -> bytes:
    """A graph in a graph in a graph."""
    body = b""
    for _ in range(levels):
        for tag in (b"\x32", b"\x2a", b"\x0a"):  # AttributeProto.g, NodeProto.attribute, GraphProto.node
            size = len(body)
            length = b""
            while size > 127:
                length, size = length + bytes([size & 127 | 128]), size >> 7
            body = tag + length + bytes([size]) + body
    return body


@pytest.mark.parametrize("levels", [1, 30, 33, 34, 60, 1000])
def test_graphs_inside_graphs(root: Path, levels: int) -> None:
    body = nested(levels)
    size, length = len(body), b""
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    (root / "onnx/vision.onnx").write_bytes(b"\x3a" + length + bytes([size]) + body)
    engine_dirs.edit(root, "files", "onnx/vision.onnx", value=digest_file(root / "onnx/vision.onnx"))
    (answer,) = check([opened(root)])
    assert ("ok" in answer) == (levels <= 33)
