"""tokenizer.json and the files beside it: parts that grow, panic or burn time, and values of other kinds."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from random import Random
from typing import Any

SHORT = 12
PRELOAD = ("trtprune.runtime.prompt", "tests.fuzz.fuzz_tokenizers")

SPECIAL = ("<s>", "</s>", "<unk>", "<image>")


def small_tokenizer() -> dict[str, Any]:
    """A byte-level tokenizer without merges, as the content of its file."""
    from tokenizers.pre_tokenizers import ByteLevel

    texts = [*SPECIAL, *sorted(ByteLevel.alphabet())]
    added = [
        {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for i, text in enumerate(SPECIAL)
    ]  # fmt: skip
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {
        "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
        "vocab": {text: i for i, text in enumerate(texts)}, "merges": [],
    }  # fmt: skip
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": level, "post_processor": None, "decoder": dict(level), "model": model,
    }  # fmt: skip


def _replace(old: str, new: str, *, regex: bool = False) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex" if regex else "String": old}, "content": new}


NORMALIZERS = (
    _replace("a", "aa"), _replace("", "x"), _replace("e", "e" * 1000), _replace("(a+)+$", "b", regex=True),
    _replace(".*.*.*.*x", "", regex=True), _replace("", "y", regex=True), {"type": "Prepend", "prepend": "a" * 10**5},
    {"type": "Precompiled", "precompiled_charsmap": "AAAA"}, {"type": "NFKC"}, {"type": "Lowercase"},
    {"type": "Precompiled", "precompiled_charsmap": "//////8AAAA="}, {"type": "Strip", "strip_left": True,
    "strip_right": True}, {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
    "strip_accents": None, "lowercase": True},
)  # fmt: skip
DECODERS = (
    _replace("a", "aa"), _replace("", "x"), _replace("(a+)+$", "b", regex=True), {"type": "Fuse"},
    {"type": "ByteFallback"}, {"type": "Strip", "content": " ", "start": 10**9, "stop": 10**9},
    {"type": "Strip", "content": "a", "start": 1, "stop": 2}, {"type": "BPEDecoder", "suffix": ""},
    {"type": "WordPiece", "prefix": "a" * 1000, "cleanup": True},
    {"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": True},
    {"type": "Metaspace", "replacement": "a", "prepend_scheme": "always", "split": True},
)  # fmt: skip
PRE_TOKENIZERS = (
    {"type": "Split", "pattern": {"Regex": "(a|aa)+$"}, "behavior": "Isolated", "invert": False},
    {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": False},
    {"type": "Split", "pattern": {"Regex": "(?=(.*))"}, "behavior": "Contiguous", "invert": True},
    {"type": "FixedLength", "length": 0}, {"type": "Whitespace"}, {"type": "Digits", "individual_digits": True},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    {"type": "UnicodeScripts"}, {"type": "CharDelimiterSplit", "delimiter": "a"},
)  # fmt: skip


def _template(random: Random) -> dict[str, Any]:
    count = random.choice((1, 1000, 10**6))
    piece = {"SpecialToken": {"id": random.choice(("<s>", "nothing")), "type_id": random.choice((0, 2**31))}}
    return {
        "type": "TemplateProcessing",
        "single": [piece, {"Sequence": {"id": random.choice("AB"), "type_id": 0}}] * random.choice((1, 3, 2000)),
        "pair": [],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0] * count, "tokens": ["<s>"] * random.choice((1, count))}},
    }


def _chain(random: Random, kind: str, key: str, parts: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    count = random.choice((1, 2, 20, 40, 3000))
    if random.random() < 0.5:
        return {"type": kind, key: [random.choice(parts)] * count}
    return {"type": kind, key: [random.choice(parts) for _ in range(min(count, 20))]}


def _strange(random: Random) -> Any:
    return random.choice(
        (
            None,
            True,
            5,
            -1,
            10**400,
            1e308,
            "",
            "x" * 10**5,
            [],
            {},
            [[]] * 1000,
            {"a": {}},
            "\ud800",
            2**32,
            [5],
            "<s>",
        )
    )


def _bend(random: Random, data: Any) -> None:
    """Another value somewhere."""
    while isinstance(data, dict | list) and data:
        key = random.choice(list(data)) if isinstance(data, dict) else random.randrange(len(data))
        if not isinstance(data[key], dict | list) or not data[key] or random.random() < 0.2:
            data[key] = _strange(random)
            return
        data = data[key]


def make_case(random: Random) -> dict[str, Any]:
    """Contents of files by name."""
    made = small_tokenizer()
    config: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "additional_special_tokens": ["<image>"]}
    files: dict[str, Any] = {"tokenizer.json": made, "tokenizer_config.json": config}
    for _ in range(random.randint(1, 2)):
        kind = random.randrange(8)
        if kind == 0:
            made["normalizer"] = _chain(random, "Sequence", "normalizers", NORMALIZERS)
        elif kind == 1:
            made["decoder"] = _chain(random, "Sequence", "decoders", DECODERS)
        elif kind == 2:
            made["pre_tokenizer"] = _chain(random, "Sequence", "pretokenizers", PRE_TOKENIZERS)
        elif kind == 3:
            made["post_processor"] = _template(random)
        elif kind == 4:
            made["model"][random.choice(("continuing_subword_prefix", "end_of_word_suffix", "unk_token"))] = "a" * 10**5
            made["model"]["merges"] = random.choice(([["a", "b"]], ["a b"], [["a", "a"]] * 10**5))
        elif kind == 5:
            _bend(random, made)
        elif kind == 6:
            _bend(random, config)
        else:
            files["added_tokens.json"] = {
                f"<{i}>" * random.choice((1, 50)): i for i in range(random.choice((3, 20000)))
            }
            files["special_tokens_map.json"] = {"pad_token": _strange(random), "bos_token": {"content": "<s>"}}
    return copy.deepcopy(files)


def attempt(case: dict[str, Any], folder: Path) -> Any:
    """What a build and a user ask, and an answer of all ids."""
    from trtprune.runtime.prompt import PromptEncoder
    from trtprune.text.process import stop
    from trtprune.text.template import Turn

    # The readers of files hand out no text that is not Unicode.
    texts = {name: json.dumps(content, ensure_ascii=True).replace("\\ud800", "?") for name, content in case.items()}
    try:
        encoder = PromptEncoder(texts, "<image>", 3)
        encoder.rehearse()
        encoder.encode([Turn("user", "What is on the table? " + "a" * 1000, 2)])
        return encoder.decode(range(300))
    finally:
        stop()
