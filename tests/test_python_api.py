"""What ``import trtprune`` offers, and how it speaks to whoever calls it from Python."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import trtprune
from tests.kit import tiny
from tests.kit.runtime_kit import Kit, picture, same
from trtprune.arguments import arg
from trtprune.errors import BudgetError, EngineDirError, InputError, TrtpruneError
from trtprune.runtime import Request, Vlm

QUESTION = "What is this?"


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit.make(tmp_path_factory.mktemp("api") / "model", tiny.Tiny())


@pytest.fixture(scope="module")
def vlm(kit: Kit) -> Vlm:
    return kit.load("adafv", keep=6)


def test_every_name_is_listed_and_there() -> None:
    assert set(trtprune.__all__) <= set(dir(trtprune))
    for name in trtprune.__all__:
        assert getattr(trtprune, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = trtprune.nothing  # type: ignore[attr-defined]


def test_nothing_heavy_is_imported() -> None:
    """Neither by the package nor by a look at its names; time is said by what it is made of."""
    code = (
        "import sys, trtprune; dir(trtprune);"
        "heavy = {'numpy', 'onnx', 'onnxruntime', 'PIL', 'torch', 'click', 'tokenizers', 'openvino', 'jinja2'};"
        "print(sorted(heavy & set(sys.modules)), sorted(m for m in sys.modules if m.startswith('trtprune.')))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[] ['trtprune._version', 'trtprune.errors']"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"keep": "5"}, "keep='5'"),
        ({"keep": 2.5}, "keep=2.5"),
        ({"keep": True}, "keep=True"),
        ({"keep": 99}, "keep=99"),
        ({"max_new_tokens": 2.5}, "max_new_tokens=2.5: must be a whole number"),
        ({"max_new_tokens": None, "temperature": "hot"}, "temperature='hot'"),
        ({"seed": "a"}, "seed='a'"),
        ({"stop": 5}, "stop=5"),
        ({"stop": [5]}, "stop=[5]"),
        ({"system": 5}, "system=5"),
        ({"prompt": None}, "prompt=None"),
        ({"images": None}, "no image given"),
    ],
)
@pytest.mark.parametrize("way", ["generate", "stream", "batch", "chat"])
def test_wrong_types_name_the_argument(vlm: Vlm, way: str, arguments: dict[str, Any], named: str) -> None:
    """As Python spells it, flags in no message and in no hint."""
    given: dict[str, Any] = {"images": picture(), "prompt": QUESTION, "max_new_tokens": 2, "system": None, **arguments}

    def ask() -> Any:
        images, prompt, system = (given.pop(name) for name in ("images", "prompt", "system"))
        if way == "batch":
            return vlm.generate_batch([Request(images, prompt, system=system)], **given)
        if way == "chat":
            return vlm.chat(images, system=system).ask(prompt, **given)
        answer = vlm.stream if way == "stream" else vlm.generate
        found = answer(images, prompt, system=system, **given)
        return list(found) if way == "stream" else found

    with pytest.raises((InputError, BudgetError)) as caught:
        ask()
    assert caught.value.message.startswith(named)
    assert "--" not in str(caught.value)


def test_numbers_of_numpy_are_numbers(vlm: Vlm) -> None:
    wanted = vlm.generate(picture(), QUESTION, keep=5, max_new_tokens=3, temperature=0.5, top_k=4, seed=1)
    numbers = {"keep": np.int64(5), "max_new_tokens": np.int32(3), "temperature": np.float32(0.5)}
    found = vlm.generate(picture(), QUESTION, **numbers, top_k=np.int8(4), seed=np.uint16(1))
    assert same(found, wanted)
    row = Request(picture(), QUESTION, keep=np.int64(5), max_new_tokens=np.int64(3), seed=np.int64(1))  # type: ignore[arg-type]
    assert same(vlm.generate_batch([row], temperature=0.5, top_k=4)[0], wanted)
    chat = vlm.chat(picture())
    assert same(chat.ask(QUESTION, **numbers, top_k=np.int8(4), seed=np.int64(1)), wanted)


def test_a_command_names_flags(vlm: Vlm, tmp_path: Path) -> None:
    """The same error, typed."""
    from trtprune.cli import main

    picture().save(tmp_path / "a.png")
    asked = ["run", str(vlm.config.root), "--image", str(tmp_path / "a.png"), "--prompt", QUESTION]
    for flags, said in ((["--keep", "99"], "--keep 99"), (["--temperature", "-1"], "--temperature -1")):
        out = CliRunner().invoke(main, [*asked, *flags])
        assert out.exit_code == 1
        assert said in out.output
        assert "=" not in out.output.split(said)[1].splitlines()[0]


def test_both_spellings() -> None:
    error = InputError(
        f"{arg('keep_range', (4, 9))}: no; {arg('options', {'a': 1})}; {arg('raw_prompt', True)}",
        hint=f"see {arg('output')}",
    )
    assert error.message == "keep_range=(4, 9): no; options={'a': 1}; raw_prompt=True"
    assert error.flag_message == "--keep-range 4:9: no; --option a=1; --raw-prompt"
    assert (error.hint, error.flag_hint) == ("see output", "see -o")
    quoting = EngineDirError(f"here: {error.marked_message}", hint=error.marked_hint)
    assert quoting.flag_message == f"here: {error.flag_message}"
    # What a value or a file says is never taken for an argument of ours.
    hostile = InputError(f"{arg('keep', chr(0xE000) + 'x' + chr(0xE003))}: no")
    assert hostile.flag_message == "--keep x: no"
    assert TrtpruneError(chr(0xE000) * 5).message.isprintable()
    assert len(InputError(f"{arg('seed', 10**4000)}: no").message) < 200
    assert InputError(f"{arg('seed', 10**5000)}: no").flag_message == "--seed a number of thousands of digits: no"


def test_tokens_that_the_model_has_no_embedding_of(kit: Kit, tmp_path: Path) -> None:
    """Added to the tokenizer, but not to the model: transformers fails with an IndexError, and no other id is meant."""
    shutil.copytree(kit.path, tmp_path / "model")
    file = tmp_path / "model" / "tokenizer.json"
    data = json.loads(file.read_text())
    number = kit.tiny.vocab + 1
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    data["added_tokens"] += [
        {"id": number - 1, "content": "<one>", **flags},
        {"id": number, "content": "<two>", **flags},
    ]
    file.write_text(json.dumps(data))
    trtprune.build(tmp_path / "model", tmp_path / "out", keep=6)
    with trtprune.load(tmp_path / "out", threads=1) as vlm:
        chat = vlm.chat(picture())
        chat.ask(QUESTION, max_new_tokens=1)
        for late in (
            lambda: vlm.generate(picture(), "a <two> b"),
            lambda: vlm.generate(picture(), "<image> a <two> b", raw_prompt=True),
            lambda: vlm.generate(picture(), "a", system="b <two>"),
            lambda: vlm.generate_batch([Request(picture(), "a"), Request(picture(), "a <two>")]),
            lambda: list(vlm.stream(picture(), "a <two> b")),
            lambda: chat.ask("and <two>?"),
            lambda: vlm.look(picture(), "a <two>"),
        ):
            with pytest.raises(InputError, match=f"holds '<two>', token {number}, and the model has embeddings of "):
                late()
        assert chat.ask("And now?", max_new_tokens=1).token_ids


def test_a_decoder_in_segments_says_its_layers(kit: Kit, tmp_path: Path) -> None:
    """Without them, or with others, no answer could be counted."""
    trtprune.build(kit.path, tmp_path / "out", keep=12, method="fastv")
    file = tmp_path / "out" / "config.json"
    data = json.loads(file.read_text())
    assert len(data["kv"]["segment_layers"]) == 2
    for layers in (None, [], [3], [1, 1], [0, 3], [1, 2, 3]):
        edited = {**data, "kv": {name: value for name, value in data["kv"].items() if name != "segment_layers"}}
        if layers is not None:
            edited["kv"]["segment_layers"] = layers
        file.write_text(json.dumps(edited))
        with pytest.raises(EngineDirError, match="segment_layers must share 3 layers among 2 segments"):
            trtprune.load(tmp_path / "out")
