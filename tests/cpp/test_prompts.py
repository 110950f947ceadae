"""The C++ prompts beside the conformance vectors and beside Python: ids, places, words of errors, streamed pieces."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from tests.conformance import write_spans, write_turns
from tests.kit.chat_templates import STYLES
from tests.kit.tokenizer_styles import PARTS, content, hard_text
from trtprune.errors import TrtpruneError
from trtprune.runtime.prompt import PromptEncoder
from trtprune.text.template import Turn

Driver = Callable[[list[Any]], list[Any]]
GENERATION = write_turns.PATH.with_name("generation.json")
SPANS = json.loads(write_spans.PATH.read_text(encoding="utf-8"))
TURNS = json.loads(write_turns.PATH.read_text(encoding="utf-8"))
CODES = {"InputError": 1, "EngineDirError": 3}


@pytest.fixture(scope="module")
def run(driver: Callable[[str], Driver]) -> Driver:
    return driver("prompts")


def opening(directory: dict[str, Any], tokenizers: dict[str, Any]) -> dict[str, Any]:
    """The command that opens a directory of a file of vectors."""
    found = {name: directory[name] for name in ("text", "image_token", "image_token_id") if name in directory}
    return {"image_token": "<image>", "tokenizer": tokenizers[directory["tokenizer"]], **found}


@pytest.mark.parametrize("directory", TURNS["directories"], ids=lambda directory: directory["name"])
def test_turns(run: Driver, directory: dict[str, Any]) -> None:
    commands = [{"turns": case["turns"], "raw": case["raw"]} for case in directory["cases"]]
    opened, *answers = run([opening(directory, TURNS["tokenizers"]), *commands])
    assert opened == {}
    for case, answer in zip(directory["cases"], answers, strict=True):
        if "error" in case:
            kind, message, hint = case["error"]
            assert answer == {"error": message, "hint": hint, "code": CODES[kind]}
        else:
            names = ("rendered", "ids", "image_positions", "question", "decoded")
            assert {name: answer[name] for name in names} == {name: case[name] for name in names}


@pytest.mark.parametrize("directory", SPANS["directories"], ids=lambda directory: directory["name"])
def test_markers(run: Driver, directory: dict[str, Any]) -> None:
    """Prompts with the text around and between the spans of their images."""
    commands = [{name: case[name] for name in ("turns", "raw", "markers")} for case in directory["cases"]]
    opened, *answers = run([opening(directory, SPANS["tokenizers"]), *commands])
    assert opened == {}
    for case, answer in zip(directory["cases"], answers, strict=True):
        names = ("ids", "image_positions", "marker_positions", "question")
        assert {name: answer[name] for name in names} == {name: case[name] for name in names}


@pytest.mark.parametrize("number", range(len(json.loads(GENERATION.read_text(encoding="utf-8"))["directories"])))
def test_growing_answers(run: Driver, number: int) -> None:
    file = json.loads(GENERATION.read_text(encoding="utf-8"))
    directory = file["directories"][number]
    tokens = directory["text"]["tokenizer"]["added_tokens"]
    image = next(token["id"] for token in tokens if token["content"] == "<image>")
    # The ids that the run sees, up to the one that ends it.
    cases = [(case, case["ids"][: len(case["pieces"])]) for case in directory["cases"]]
    commands = [{"stream": ids, "stop": case["stop"]} for case, ids in cases]
    answers = run([{"image_token_id": image, **opening(directory, file["tokenizers"])}, *commands])[1:]
    for (case, _), answer in zip(cases, answers, strict=True):
        assert {**answer, "stopped": None} == {
            "pieces": case["pieces"], "final": case["rest"], "text": case["text"], "stopped": None,
        }  # fmt: skip


@functools.cache
def encoder(style: str, template: str) -> tuple[PromptEncoder, dict[str, Any]]:
    """Python's encoder, and the command that opens the same directory."""
    from tokenizers import Tokenizer

    files = {
        "tokenizer.json": content(style),
        "tokenizer_config.json": json.dumps({"bos_token": "<s>", "eos_token": "</s>"}),
        "chat_template.jinja": STYLES[template].source,
    }
    image = Tokenizer.from_str(content(style)).token_to_id("<image>")
    info = PromptEncoder(files, "<image>", image).describe()
    python = PromptEncoder(files, "<image>", image, info.template)
    command = {"tokenizer": json.loads(content(style)), "image_token": "<image>", "image_token_id": image}
    return python, {**command, "text": dataclasses.asdict(info)}


def conversation(random: Random) -> list[Turn]:
    """Turns of hard texts, with images in any of the questions."""
    turns = [Turn("system", hard_text(random))] if random.random() < 0.3 else []
    for number in range(random.choice((1, 1, 2, 3))):
        turns += [Turn("assistant", hard_text(random))] if number else []
        turns.append(Turn("user", random.choice((hard_text(random), "", " ")), random.choice((0, 1, 1, 2))))
    return [dataclasses.replace(turn, text=turn.text.replace("<image>", "")) for turn in turns]


@pytest.mark.parametrize("style", ["qwen2", "llama2", "llama3", "metaspace", "unknown"])
@pytest.mark.parametrize("template", sorted(STYLES))
def test_conversations(run: Driver, style: str, template: str) -> None:
    python, command = encoder(style, template)
    if command["text"]["template"] is None:
        pytest.skip(str(command["text"]["reason"]))
    random = Random(f"{style} {template}")
    cases = [conversation(random) for _ in range(30)]
    commands = [{"turns": [[t.role, t.text, t.images] for t in turns], "raw": False} for turns in cases]
    raw = [f"{random.choice(PARTS)}<image>{hard_text(random)}" for _ in range(10)]
    cases += [[Turn("user", text, 1)] for text in raw]
    commands += [{"turns": [["user", text, 1]], "raw": True} for text in raw]
    for turns, asked in zip(cases, commands, strict=True):
        if random.random() < 0.5:  # some for another number of images than there are
            count = sum(turn.images for turn in turns) + random.choice((0, 0, 0, 0, 1))
            asked["markers"] = [
                [random.choice(("", "<img>", "\n", "a", hard_text(random))) for _ in range(random.choice((2, 2, 3, 6)))]
                for _ in range(count)
            ]
    answers = run([command, *commands])[1:]
    for turns, asked, answer in zip(cases, commands, answers, strict=True):
        failure = None
        try:
            prompt = python.encode(turns, raw=bool(asked["raw"]), markers=asked.get("markers"))
        except TrtpruneError as error:
            failure = {"error": error.message, "hint": error.hint, "code": CODES[type(error).__name__]}
        if failure is not None:
            assert answer == failure
            continue
        assert answer["ids"] == prompt.ids.tolist(), turns
        assert (answer["question"], answer["text"]) == (list(prompt.question), prompt.text)
        assert answer["marker_positions"] == list(prompt.markers)
        for name, span in answer["spans"].items():
            assert span == prompt.span(name).tolist()


@pytest.mark.parametrize("style", ["qwen2", "llama2", "metaspace_words", "gpt2"])
def test_pieces_of_random_ids(run: Driver, style: str) -> None:
    python, command = encoder(style, "llava")
    random = Random(style)
    size = len(command["tokenizer"]["model"]["vocab"])
    asked = []
    for _ in range(60):
        ids = [random.randrange(size + 8) for _ in range(random.randrange(1, 20))]
        if random.random() < 0.5:
            ids = python.encode(
                [Turn("user", "<image>." + hard_text(random).replace("<image>", ""), 1)], raw=True
            ).ids.tolist()
        asked.append({"stream": ids, "stop": random.choice(([], ["a"], [" "], ["é", "th"], ["\ufffd"], ["👩"]))})
    for case, answer in zip(asked, run([command, *asked])[1:], strict=True):
        made = python.detokenizer(case["stop"])
        pieces = [made.add(token) for token in case["stream"]]
        assert answer == {"pieces": pieces, "final": made.finish(), "text": made.text, "stopped": made.stopped}, case


def test_an_empty_stop_string(run: Driver) -> None:
    _, command = encoder("llama2", "llava")
    answer = run([command, {"stream": [1], "stop": [""]}])[1]
    assert answer["error"] == "stop: an empty stop string would end every answer at once"
