"""Writes ``generation.json``: ids of an answer → the pieces of text as they are sent, its text and its end.

    python -m tests.conformance.write_generation

``README.md`` beside it says what the members mean.  Texts of ids are transformers'; what is held back is retold.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from random import Random
from typing import Any

from tests.conformance.write_turns import Directory, tokenizer_json
from tests.kit.tokenizer_styles import hard_text

PATH = Path(__file__).with_name("generation.json")
DIRECTORIES: list[tuple[str, str, str | None, dict[str, Any]]] = [
    ("byte-fallback", "llama2", "llava", {}),
    ("byte-fallback-metaspace", "metaspace", "gemma", {}),
    ("byte-level", "qwen2", "chatml", {}),
    ("byte-level-first-token", "llama3", "llama-3", {}),
    ("byte-level-digits", "smollm2", "smolvlm", {"additional_special_tokens": ["dog"]}),
]
TEXTS = [
    "A red circle and two blue squares.",
    "東京タワーは高い 🙂👨‍👩‍👧 e\u0301 ß",
    "  two  spaces\n\nand lines\r\n\t",
    "The end</s> of it <|im_end|> dog <right>  <Norm> word",
    "\ufffd a \ufffd\ufffd",
    "aaaaaab aab USER: USERS",
    "",
]
STOPS = [
    [],
    ["\n"],
    ["aab"],
    ["USER:", "</s>"],
    ["circle and", "and two"],
    ["ワー", " "],
    ["🙂"],
    ["never in it", "squares.!"],
    ["ab", "aab U"],
]


def expected(directory: Directory, ids: list[int], stop: list[str], eos: list[int], longest: int) -> dict[str, Any]:
    """The pieces behind each id, the rest, the whole text, and why and where it ended."""
    tokenizer = directory.tokenizer
    names = {f"<0x{byte:02X}>" for byte in range(256)}
    in_bytes = "ByteFallback" in tokenizer.backend_tokenizer.to_str().partition('"decoder"')[2].partition('"model"')[0]
    lone = {i for name, i in tokenizer.get_vocab().items() if in_bytes and name in names}

    def decoded(some: list[int]) -> str:
        return str(tokenizer.decode(some, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    said: list[int] = []
    pieces, sent, text, reason = [], 0, "", "length"
    for used, number in enumerate(ids, 1):
        said.append(number)
        kept = [i for i in said if not (i in tokenizer.all_special_ids or decoded([i]) == "" == decoded([i, i]))]
        text = decoded(said)
        places = [text.find(one) for one in stop if one in text]
        if places:
            text = text[: min(places)]
            certain = len(text)
        else:
            certain = len(text.rstrip("\ufffd"))
            loose = next((i for i, one in enumerate(reversed(kept)) if one not in lone), len(kept))
            if loose:
                certain = min(certain, len(decoded(kept[:-loose])))
            ends = [n for one in stop for n in range(1, len(one)) if text[:certain].endswith(one[:n])]
            certain -= max(ends, default=0)
        pieces.append(text[sent:certain])
        sent = max(sent, certain)
        if number in eos or places:
            reason = "stop"
        if reason == "stop" or used == longest:
            break
    return {"pieces": pieces, "rest": text[sent:], "text": text, "finish_reason": reason}


def cases(directory: Directory) -> list[dict[str, Any]]:
    """Answers of encoded texts, of texts cut off, and of random ids."""
    random = Random(directory.name)
    tokenizer, size = directory.tokenizer, len(directory.tokenizer)
    end = tokenizer.convert_tokens_to_ids("</s>")
    answers = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    answers += [tokenizer(hard_text(random), add_special_tokens=False)["input_ids"] for _ in range(8)]
    answers += [[random.randrange(size) for _ in range(random.randint(1, 14))] for _ in range(12)]
    found = []
    for number, ids in enumerate(answers):
        # As in a run, the image's placeholder is no token of an answer.
        ids = [i for i in ids if i != directory.image] + [end] * (number % 3 != 0)
        if not ids:
            continue
        for stop in (STOPS[0], STOPS[1 + number % (len(STOPS) - 1)], STOPS[1 + (number + 3) % (len(STOPS) - 1)]):
            longest = len(ids) if number % 4 else max(1, len(ids) - 2)
            case = {"ids": ids, "stop": stop, "eos": [end], "max_new_tokens": longest}
            found.append(case | expected(directory, ids, stop, [end], longest))
    return found


def text() -> str:
    """The file's content, a case a line."""
    directories = [Directory(*values) for values in DIRECTORIES]
    styles = dict.fromkeys(directory.style for directory in directories)
    tokenizers = ",\n".join(f"{json.dumps(style)}: {tokenizer_json(style)}" for style in styles)
    members = []
    for directory in directories:
        texts = dataclasses.asdict(directory.ours.describe())
        head = {"name": directory.name, "tokenizer": directory.style, "text": texts}
        lines = ",\n  ".join(map(json.dumps, cases(directory)))
        members.append(f'{json.dumps(head)[:-1]}, "cases": [\n  {lines}\n]}}')
    return f'{{"version": 1, "tokenizers": {{\n{tokenizers}\n}}, "directories": [\n' + ",\n".join(members) + "\n]}\n"


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
