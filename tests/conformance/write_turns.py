"""Writes ``turns.json``: turns → rendered text, token ids, places of images and question, as transformers has them.

    python -m tests.conformance.write_turns

``README.md`` beside it says what the members mean.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from tests.kit.chat_templates import STYLES
from tests.kit.tokenizer_styles import content
from trtprune.errors import TrtpruneError
from trtprune.runtime.prompt import PromptEncoder
from trtprune.text.template import Turn

PATH = Path(__file__).with_name("turns.json")
MARK = "\ue123\ue456"
NAMED = {"bos_token": "<s>", "eos_token": "</s>"}
LLAVA = "llava"
DIRECTORIES: list[tuple[str, str, str | None, dict[str, Any]]] = [
    ("llava-llama2", "llama2", LLAVA, {}),
    ("no-template-metaspace", "metaspace", None, {}),
    ("vicuna-llama2", "llama2", "vicuna", {}),
    ("llama-2", "llama2", "llama-2", {}),
    ("qwen", "qwen2", "qwen", {}),
    ("chatml", "qwen2", "chatml", {}),
    ("llama-3", "llama3", "llama-3", {}),
    ("joy", "llama3", "joy", {}),
    ("smolvlm", "smollm2", "smolvlm", {}),
    ("mistral", "tekken", "mistral-mixed", {}),
    ("gemma", "metaspace", "gemma", {}),
    ("own", "gpt2", "own", {}),
    ("phi", "smollm2", "phi", {"extra_special_tokens": ["<|user|>", "<|end|>", "<|assistant|>"]}),
    (
        "tokens-of-other-files",
        "llama2",
        LLAVA,
        {
            "pad_token": {"__type": "AddedToken", "content": "cat", "lstrip": True, "normalized": False},
            "added_tokens_decoder": {
                "9001": {"content": "<new>", "rstrip": True, "normalized": True, "special": False},
                "9002": {"content": "<Norm>", "normalized": False, "special": True},
            },
        },
    ),
    (
        "special-tokens-taken-apart",
        "plain qwen2",
        "chatml",
        {"split_special_tokens": True, "additional_special_tokens": ["dog"]},
    ),
]
"""Name, tokenizer, chat template and more of ``tokenizer_config.json``."""
CONVERSATIONS: list[list[Turn]] = [
    [Turn("user", "What is on the table?", 1)],
    [Turn("user", "  Which of  the two\nis larger? ", 2)],
    [Turn("system", "Be brief."), Turn("user", "Why?", 1)],
    [
        *(Turn("system", " \n Be  brief. "), Turn("user", "Größe 東京 🙂 e\u0301", 3)),
        *(Turn("assistant", " So. \n"), Turn("user", "\tAnd?")),
    ],
    [
        *(Turn("user", "the cat", 1), Turn("assistant", "the cat"), Turn("user", "the cat")),
        *(Turn("assistant", ""), Turn("user", "the cat", 2)),
    ],
    [Turn("user", "", 1)],
    [Turn("user", " \u3000\n", 2), Turn("assistant", "x"), Turn("user", "\x1f")],
    [Turn("system", ""), Turn("user", "<s>a</s> <|im_end|> [INST] <new>  <Norm> <left> word <both> cat dog {{x}}", 1)],
    [Turn("user", "#\n# a #\n", 1), Turn("assistant", "\n\n#"), Turn("user", "'s I'LL 1234 don't")],
    [Turn("system", "a"), *[Turn(("user", "assistant")[i % 2], f"{i} ok", int(i == 0)) for i in range(9)]],
    [Turn("user", "no picture")],
]  # fmt: skip
RAW = [
    [Turn("user", "USER: <image>\nWhat is it? ASSISTANT:", 1)],
    [Turn("user", "<s><image><image> and?\n", 2)],
    [Turn("user", "Look: <image>", 2)],
]
REFUSED = [[Turn("user", "what is <image>?", 1)], [Turn("system", "<image>"), Turn("user", "a", 1)]]


def messages(turns: list[Turn], style: str) -> list[dict[str, Any]]:
    """The form of content that users of the template give."""
    forms = STYLES[style]
    found = []
    for turn in turns:
        form = {"user": forms.user, "assistant": forms.assistant, "system": forms.system}[turn.role]
        body: Any = ("" if form == "own" else "<image>\n" * turn.images) + turn.text
        if form == "list":
            body = [*({"type": "image"} for _ in range(turn.images)), {"type": "text", "text": turn.text}]
        found.append({"role": turn.role, "content": body})
    return found


def rendered(turns: list[Turn], style: str | None) -> str:
    """The prompt's text by transformers; without a template, LLaVA-1.5's."""
    if style is None:
        names = {"system": "", "user": "USER: ", "assistant": "ASSISTANT: "}
        parts = [names[turn.role] + "<image>\n" * turn.images + turn.text + " " for turn in turns]
        return "".join(parts) + "ASSISTANT:"
    texts, _ = render_jinja_template(
        [messages(turns, style)], chat_template=STYLES[style].source, add_generation_prompt=True, **NAMED
    )
    return str(texts[0])


def tokenizer_json(style: str) -> str:
    """The tokenizer of a style; with "plain " in front, its placeholder is no special token."""
    name = style.removeprefix("plain ")
    data = json.loads(content(name))
    for token in data["added_tokens"]:
        token["special"] &= style == name or token["content"] != "<image>"
    return json.dumps(data)


class Directory:
    """One of :data:`DIRECTORIES`, with transformers' tokenizer and this package's prompts."""

    def __init__(self, name: str, style: str, template: str | None, more: dict[str, Any]) -> None:
        self.name, self.style, self.template = name, style, template
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **NAMED, **more}
        files = {"tokenizer.json": tokenizer_json(style), "tokenizer_config.json": json.dumps(config)}
        with tempfile.TemporaryDirectory() as folder:
            for file, text in files.items():
                (Path(folder) / file).write_text(text, encoding="utf-8")
            (Path(folder) / "config.json").write_text(json.dumps({"model_type": "llava"}))
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.image = self.tokenizer.convert_tokens_to_ids("<image>")
        if template is not None:
            files["chat_template.jinja"] = STYLES[template].source
        self.ours = PromptEncoder(files, "<image>", self.image)

    def case(self, turns: list[Turn], raw: bool) -> dict[str, Any]:
        """A prompt by transformers, or this package's own error."""
        found: dict[str, Any] = {"turns": [[turn.role, turn.text, turn.images] for turn in turns], "raw": raw}
        try:
            self.ours.encode(turns, raw=raw)
        except TrtpruneError as error:
            return found | {"error": [type(error).__name__, error.message, error.hint]}
        text = turns[-1].text if raw else rendered(turns, self.template)
        add = raw or not text.startswith(NAMED["bos_token"])
        encoding = self.tokenizer(text, add_special_tokens=add, return_offsets_mapping=True)
        ids = encoding["input_ids"]
        start, end = (0, len(text)) if raw else self.question(turns, text)
        inside = [s < end and e > start and e > s for s, e in encoding["offset_mapping"]]
        return found | {
            "rendered": text,
            "ids": ids,
            "image_positions": [i for i, number in enumerate(ids) if number == self.image],
            "question": [
                i for i, (number, is_in) in enumerate(zip(ids, inside, strict=True)) if is_in and number != self.image
            ],
            "decoded": self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False),
        }

    def question(self, turns: list[Turn], text: str) -> tuple[int, int]:
        """The range of the last turn's text, from the same turns with a mark in its place."""
        last = turns[-1]
        marked = rendered([*turns[:-1], Turn(last.role, MARK, last.images)], self.template)
        before, mark, after = marked.partition(MARK)
        start, end = len(before), len(text) - len(after)
        whole = mark and MARK not in after and text.startswith(before) and text.endswith(after)
        return (start, end) if whole and last.text.strip() and start < end else (0, 0)

    def data(self) -> dict[str, Any]:
        """The directory's member of the file."""
        return {
            "name": self.name,
            "tokenizer": self.style,
            "image_token": "<image>",
            "image_token_id": self.image,
            "text": dataclasses.asdict(self.ours.describe()),
            "cases": [
                *(self.case(turns, False) for turns in [*CONVERSATIONS, *REFUSED]),
                *(self.case(turns, True) for turns in RAW),
            ],
        }


@functools.cache
def text() -> str:
    """The file's content, a case a line."""
    directories = [Directory(*values).data() for values in DIRECTORIES]
    lines = ['{"version": 1, "tokenizers": {']
    styles = dict.fromkeys(directory["tokenizer"] for directory in directories)
    lines += [",\n".join(f"{json.dumps(style)}: {tokenizer_json(style)}" for style in styles)]
    lines += ['}, "directories": [']
    members = []
    for directory in directories:
        cases = ",\n  ".join(json.dumps(case) for case in directory.pop("cases"))
        members.append(f'{json.dumps(directory)[:-1]}, "cases": [\n  {cases}\n]}}')
    return "\n".join([*lines, ",\n".join(members), "]}"]) + "\n"


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
