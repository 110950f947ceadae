"""Whole answers: a folder of engine directories of random checkpoints, requests, and the answers of the Python runtime.

    python -m tests.conformance.answers FOLDER [--models 24]
    python -m tests.conformance.answers FOLDER --check ANSWERS.jsonl

``README.md`` beside it has the form of the files.  Answers without pruning are compared with transformers where they
are written; tests of the runtime hold the others to it.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image
from tokenizers import Tokenizer

import trtprune
from tests.conformance.write_turns import DIRECTORIES, tokenizer_json
from tests.kit import tiny
from tests.kit.chat_templates import STYLES
from tests.kit.clip_kit import ClipKit
from tests.kit.runtime_kit import Kit, picture
from tests.runtime.test_tiles_random import draw
from trtprune.errors import TrtpruneError
from trtprune.runtime import Request, Result, Vlm

SIZES = [(90, 70), (1, 1), (56, 56), (113, 57), (200, 31), (31, 300), (640, 480)]
"""Pictures, (width, height)."""
TOKENS = 32
WORDS = ["What", "is", "left", "of", "it", "table", "the", "cat", "東京", "\n", "  ", "word", "'s", "12"]
BEFORE = [
    "adafv",
    "visionzip",
    "divprune",
    "dart",
    "random",
    "uniform",
    "downsample",
    "fastervlm",
    "vispruner",
    "scope",
]
INSIDE: list[dict[str, Any]] = [
    {"method": "sparsevlm", "keep": 30, "options": {"schedule": "auto"}},
    {"method": "fastv", "keep": 30},
    {"method": "pyramiddrop", "keep": 30, "options": {"first": 1}},
    {"method": "sparsevlm", "keep": 30, "options": {"ratio": "rank", "scale": 1.7, "bias": 2}},
    {"method": "sparsevlm", "keep": 30, "options": {"version": "2.0", "heads": 3, "schedule": "0:40,2:21,3:9"}},
    {"method": "sparsevlm", "keep": 30, "options": {"ratio": "rank"}},
]
GENERATIONS: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
    {"do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.9},
    {"min_new_tokens": 12, "suppress_tokens": [7, 8], "bad_words_ids": [[9], [10, 11]]},
    {"do_sample": True, "top_k": 0, "typical_p": 0.8, "min_p": 0.01},
]
RESULT = ("text", "token_ids", "finish_reason", "kept_indices", "visual_tokens", "kept_tokens", "prompt_tokens")


def shapes(count: int) -> Iterator[tuple[str, tiny.Tiny, list[dict[str, Any]]]]:
    """Name, checkpoint, and settings of its builds: all families, towers, decoders, dtypes and methods in turn."""
    decoders, towers = ("llama", "mistral", "qwen2"), ("clip", "siglip", "dinov2")
    for number in range(count):
        family = ("llava", "llava-next", "llava-onevision", "llava")[number % 4]
        before: dict[str, Any] = {"method": BEFORE[number % len(BEFORE)], "keep": 6}
        if family != "llava":
            made = draw(family, number)
            builds: list[dict[str, Any]] = [{"method": "none"}, before]
        else:
            tower = towers[number // 2 % 3]
            inside = number % 8 == 3
            made = tiny.Tiny(
                tower=tower,
                decoder=decoders[number // 4 % 3],
                seed=number,
                layers=6 if inside else 2 + number % 3,
                image_size=112 if inside else (56, 70, (84, 56))[number % 3] if tower == "clip" else 56,
                tied=number % 5 == 2,
                dtype=("float32", "bfloat16", "float16")[number // 3 % 3],
                feature_layer=(-2, -1, [-2, 1])[number // 2 % 3],
                strategy="full" if tower == "siglip" or number % 7 == 5 else "default",
                shards=number % 6 == 1,
                old_names=number % 2 == 0,
            )
            builds = [{"method": "none"}, INSIDE[number // 8 % len(INSIDE)] if inside else before]
            if number % 8 == 0:
                builds.append({**before, "weight_dtype": ("int8", "int4")[number // 8 % 2]})
            if number % 12 == 0:
                builds.append({"method": ("trim", "cdpruner")[number // 12 % 2], "keep": 5, "clip": True})
        yield f"{number:02}-{family}", made, builds


def styled(kit: Kit, style: tuple[str, str, str | None, dict[str, Any]], generation: dict[str, Any]) -> None:
    """Gives a checkpoint another tokenizer, chat template and generation settings."""
    _, name, template, more = style
    data = json.loads(tokenizer_json(name))
    image = next(token["id"] for token in data["added_tokens"] if token["content"] == "<image>")
    (kit.path / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", **more}
    (kit.path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    source = (kit.path / "chat_template.jinja").unlink() if template is None else STYLES[template].source
    if source is not None:
        (kit.path / "chat_template.jinja").write_text(source, encoding="utf-8")
    tiny.edit_config(kit.path, image_token_index=image)
    path = kit.path / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **generation}))


def write(folder: Path, models: int = 24) -> int:
    """Fills a new folder; the number of requests."""
    folder.mkdir(parents=True)
    (folder / "images").mkdir()
    for number, size in enumerate(SIZES):
        picture(number, size).save(folder / "images" / f"{number}.png")
    requests, answers = [], []
    for number, (name, shape, builds) in enumerate(shapes(models)):
        style = None if number % 2 == 0 else [entry for entry in DIRECTORIES if entry[0] != "own"][number // 2 % 13]
        if style is not None:
            shape = replace(shape, vocab=Tokenizer.from_str(tokenizer_json(style[1])).get_vocab_size() + 3)
        kit = Kit.make(folder / "checkpoints" / name, shape)
        if style is not None:
            styled(kit, style, GENERATIONS[number // 2 % len(GENERATIONS)])
        for place, build in enumerate(builds):
            directory = f"{name}-{build['method']}" + ("" if place < 2 else f"-{place}")
            if build.get("clip"):
                tower = kit.model.model.vision_tower
                build = {
                    **build,
                    "clip": str(ClipKit.make(folder / "checkpoints" / f"{name}-clip", kit.tiny, tower).path),
                }
            trtprune.build(str(kit.path), folder / "directories" / directory, weights="copy", **build)
            with trtprune.load(folder / "directories" / directory, threads=1) as vlm:
                own = style is not None and style[2] == "joy"
                for case in cases(random.Random(directory), own=own, prunes=build["method"] != "none"):
                    case = {"id": len(requests), "directory": directory, **case}
                    requests.append(case)
                    try:
                        results = answered(folder, vlm, case)
                    except TrtpruneError as error:
                        said = [type(error).__name__, error.message, error.hint]
                        answers.append({"id": case["id"], "error": said})
                        continue
                    if style is None and build == {"method": "none"}:
                        _compare_with_transformers(folder, kit, case, results)
                    answers.append({"id": case["id"], "answers": [facts(result) for result in results]})
    shutil.rmtree(folder / "checkpoints")
    for file, rows in (("requests.jsonl", requests), ("answers.jsonl", answers)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / file).write_text(text, encoding="utf-8")
    return len(requests)


def cases(r: random.Random, *, own: bool, prunes: bool) -> Iterator[dict[str, Any]]:
    """A single question, a batch, a draw, stop strings, and two conversations.

    Args:
        r: Random numbers.
        own: Whether the template writes its one image by itself.
        prunes: Whether the build has budgets.
    """
    most = 1 if own else 2

    def pictures(count: int) -> list[str]:
        return [f"images/{r.randrange(len(SIZES))}.png" for _ in range(count)]

    def prompt() -> str:
        return " ".join(r.choice(WORDS) for _ in range(r.randint(1, 6))) + "?"

    call = {"max_new_tokens": TOKENS}
    yield {"call": {**call, "temperature": 0}, "batch": [{"images": pictures(1), "prompt": prompt()}]}
    batch = [{"images": pictures(1 + i % most), "prompt": prompt()} for i in range(3)]
    yield {"call": call | {"seed": 5}, "batch": batch}
    seeded = [{"images": pictures(1), "prompt": prompt(), "seed": seed} for seed in (0, 2**40 + 1)]
    yield {"call": {**call, "temperature": 0.9, "top_k": 30, "top_p": 0.95}, "batch": seeded}
    request = {"images": pictures(most), "prompt": prompt(), "seed": 3} | ({"keep_ratio": 0.5} if prunes else {})
    yield {"call": {**call, "stop": ["e", "a b"], "ignore_eos": True}, "batch": [request]}
    questions = [{"prompt": prompt(), "max_new_tokens": 8, "seed": 1} for _ in range(3)]
    if not own:
        yield {"chat": {"images": pictures(1)}, "questions": questions}
        again = [questions[0], *({**question, "repick": False} for question in questions[1:])]
        yield {"chat": {"images": pictures(2)}, "questions": again}


def answered(folder: Path, vlm: Vlm, case: dict[str, Any]) -> list[Result]:
    """The answers of the Python runtime."""
    if "batch" in case:
        batch = [
            Request(**{**request, "images": [str(folder / image) for image in request["images"]]})
            for request in case["batch"]
        ]
        return vlm.generate_batch(batch, **case["call"])
    chat = vlm.chat([str(folder / image) for image in case["chat"]["images"]])
    return [chat.ask(**question) for question in case["questions"]]


def facts(result: Result) -> dict[str, Any]:
    """What another runtime must answer."""
    return {name: getattr(result, name) for name in (*RESULT, "segment_tokens", "tokens_per_layer")}


def _compare_with_transformers(folder: Path, kit: Kit, case: dict[str, Any], results: Sequence[Result]) -> None:
    """Greedy answers to single questions, without pruning."""
    greedy = case.get("call", {}).get("temperature", 0) == 0 and not case.get("call", {}).get("stop")
    if "batch" not in case or not greedy:
        return
    for request, result in zip(case["batch"], results, strict=True):
        images = [Image.open(folder / image).convert("RGB") for image in request["images"]]
        ids = kit.generate(TOKENS, **kit.inputs(images, request["prompt"]))[0]
        assert result.token_ids == ids, (case["directory"], request)


def differences(folder: Path, answers: Path) -> list[str]:
    """What another runtime's answers have otherwise, a line each."""
    expected = [json.loads(line) for line in (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    found = {row["id"]: row for row in map(json.loads, answers.read_text(encoding="utf-8").splitlines())}
    requests = [json.loads(line) for line in (folder / "requests.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = []
    for request, row in zip(requests, expected, strict=True):
        other = found.get(row["id"], {})
        where = f"{row['id']} ({request['directory']})"
        mine, theirs = row.get("answers", []), other.get("answers", [])
        if len(theirs) != len(mine) or other.get("error") != row.get("error"):
            lines.append(
                f"{where}: {other.get('error') or len(theirs)!r:.300} in place of {row.get('error') or len(mine)}"
            )
            continue
        for number, (wanted, answer) in enumerate(zip(mine, theirs, strict=True)):
            wrong = [name for name in wanted if wanted[name] != answer.get(name)]
            lines += [
                f"{where}, answer {number}: {name} is {answer.get(name)!r:.200}, not {wanted[name]!r:.200}"
                for name in wrong
            ]
    return lines


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", type=int, default=24)
    parser.add_argument("--check", type=Path, metavar="ANSWERS.jsonl", help="another runtime's answers")
    arguments = parser.parse_args()
    if arguments.check is None:
        print(f"{write(arguments.folder, arguments.models)} requests")
        return
    lines = differences(arguments.folder, arguments.check)
    print("\n".join(lines) or "equal")
    raise SystemExit(bool(lines))


if __name__ == "__main__":
    main()
