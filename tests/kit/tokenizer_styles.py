"""Tokenizers in the styles of published models, trained on a few sentences, and texts that are hard for them."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "What is on the table? Is the cat left of the dog, or right? I'LL see, we've seen 1234 of 56789 dogs.",
    "USER: describe the image ASSISTANT: A red circle and two blue squares.  They're   apart!!\n\n\tNo?",
    "Größe, naïve café, 東京タワーは高い, Привет мир, مرحبا بالعالم, שלום, 🙂🙃👨‍👩‍👧 emoji, हिन्दी, 한국어",
    "system prompt: you are a helpful assistant. user question answer\r\n\r\n def f(x):\n    return x**2 + 1\n",
] * 3
SPECIAL = ["<s>", "</s>", "<image>", "<|im_start|>", "<|im_end|>"]
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CLIP = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def _byte_level(splitters: list[Any], normalizer: Any = None, size: int = 420, **model: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(**model))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitters[0] if len(splitters) == 1 else pre_tokenizers.Sequence(splitters)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _bytes(use_regex: bool = False, add_prefix_space: bool = False) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=use_regex)


def gpt2() -> Tokenizer:
    """As GPT-2, with places without white space."""
    tokenizer = _byte_level([_bytes(True, True)])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def smollm2() -> Tokenizer:
    """As SmolLM2: single digits."""
    return _byte_level([pre_tokenizers.Digits(individual_digits=True), _bytes(True)])


def qwen2() -> Tokenizer:
    """As Qwen2: NFC, and a pattern of its own."""
    split = pre_tokenizers.Split(Regex(CL100K.replace("{1,3}", "")), "isolated")
    return _byte_level([split, _bytes()], normalizers.NFC())


def llama3() -> Tokenizer:
    """As Llama 3: whole words before merges, a first token."""
    trained = _byte_level([pre_tokenizers.Split(Regex(CL100K), "isolated"), _bytes()])
    data = json.loads(trained.to_str())
    data["model"]["ignore_merges"] = True
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.add_special_tokens([AddedToken("<s>", normalized=False)])
    first = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), first])
    return tokenizer


def tekken() -> Tokenizer:
    """As Mistral's newer models."""
    return _byte_level([pre_tokenizers.Split(Regex(TEKKEN), "isolated"), _bytes()])


def clip() -> Tokenizer:
    """As CLIP: lower case, a mark at the end of words, tokens around the text."""
    tokenizer = _byte_level(
        [pre_tokenizers.Split(Regex(CLIP), "removed", invert=True), _bytes()],
        normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]),
    )
    data = json.loads(tokenizer.to_str())
    vocab = data["model"]["vocab"]
    for text in list(vocab):
        vocab.setdefault(text + "</w>", len(vocab))
    merges = [list(merge) for merge in data["model"]["merges"]]
    data["model"]["merges"] = merges + [[a, b + "</w>"] for a, b in merges]
    data["model"] |= {"end_of_word_suffix": "</w>", "unk_token": "<|endoftext|>"}
    for text in ("<|startoftext|>", "<|endoftext|>"):
        vocab[text] = len(vocab)
    first, last = ((text, vocab[text]) for text in ("<|startoftext|>", "<|endoftext|>"))
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.post_processor = processors.RobertaProcessing(last, first, trim_offsets=False, add_prefix_space=False)
    return tokenizer


def _fallback(unk: str | None = "<unk>", **settings: Any) -> Tokenizer:
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    data = json.loads(trained.to_str())["model"]
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": byte + 3 for byte in range(256)}
    for text in data["vocab"]:
        vocab.setdefault(text, len(vocab))
    merges = [tuple(merge) for merge in data["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token=unk, **settings))
    tokenizer.normalizer = trained.normalizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def llama2() -> Tokenizer:
    """As Llama 2 and Vicuna: spaces as ▁, bytes as fallback."""
    return _fallback(byte_fallback=True, fuse_unk=True)


def metaspace() -> Tokenizer:
    """As newer conversions of SentencePiece models."""
    tokenizer = llama2()
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return tokenizer


def metaspace_words() -> Tokenizer:
    """Words with ▁ before each, and the decoder of that name."""
    tokenizer = llama2()
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def unknown() -> Tokenizer:
    """No bytes: unknown characters, each by itself."""
    return _fallback()


def unknown_fused() -> Tokenizer:
    """No bytes: unknown characters together."""
    return _fallback(fuse_unk=True)


def dropped() -> Tokenizer:
    """Neither bytes nor a token for unknown characters: they vanish."""
    return _fallback(unk=None)


STYLES: dict[str, Callable[[], Tokenizer]] = {
    function.__name__: function
    for function in (
        gpt2, smollm2, qwen2, llama3, tekken, clip, llama2, metaspace, metaspace_words, unknown, unknown_fused, dropped,
    )
}  # fmt: skip


@functools.cache
def content(style: str) -> str:
    """The tokenizer.json of a style, with special and other added tokens of all flags."""
    tokenizer = STYLES[style]()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    tokenizer.add_tokens(
        [
            AddedToken("<left>", lstrip=True, normalized=False),
            AddedToken("<right>", rstrip=True, special=True, normalized=False),
            AddedToken("<both>", lstrip=True, rstrip=True, normalized=False),
            AddedToken("word", single_word=True, normalized=False),
            AddedToken("<Norm>", normalized=True),
            AddedToken("<image>s", normalized=False),
        ]
    )
    return tokenizer.to_str()


PARTS = [
    *SPECIAL,
    "<left>",
    "<right>",
    "<both>",
    "word",
    "words",
    "<Norm>",
    "<norm>",
    "<image>s",
    "<ima",
    "<0x41>",
    "<unk>",
    " ",
    "  ",
    "   \n",
    "\t",
    "\n",
    "\r\n",
    "\r",
    "\u00a0",
    "\u2003",
    "\u3000",
    "\u200b",
    "\u2581",
    "▁▁",
    "\x00",
    "\x7f",
    "'s",
    "'S",
    "'\u017f",
    "'LL",
    "'ll",
    "n't",
    "'",
    "\u2019",
    "I",
    "the",
    "The cat",
    "table",
    "USER:",
    "123",
    "4567890",
    "١٢٣",
    "½",
    "Ⅷ",
    "x²",
    "e\u0301",
    "é",
    "\u0301",
    "a\u0323\u0307",
    "a\u0307\u0323",
    "\u212b",
    "\ufb01",
    "ſ",
    "ẞ",
    "İ",
    "\u0345",
    "\u1100\u1161\u11a8",
    "각",
    "\u0f71\u0f72",
    "\u0958",
    "\U0001d15e",
    "\ufffd",
    "\ufeff",
    "東京",
    "タワー",
    "ﾀﾜｰ",
    "Привет",
    "مرحبا",
    "שָׁלוֹם",
    "हिन्दी",
    "ไทย",
    "한국어",
    "🙂",
    "👨\u200d👩\u200d👧",
    "🇩🇪",
    "👍🏽",
    "❤\ufe0f",
    "\U0010ffff",
    "\ue000",
    "def f(x):\n    return",
    "!!!",
    "...",
    "—",
    "«»",
    "/",
    "//\n",
    "?!\r\n\r\n",
    "_",
    "\\",
    "{}",
    "$%",
    "a" * 40,
]
BLOCKS = [
    (0x20, 0x7E), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x5FF), (0x600, 0xDFF), (0xE00, 0x1FFF), (0x2000, 0x2BFF),
    (0x3000, 0x9FFF), (0xA000, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x1FFFF), (0x20000, 0x2FFFF), (0x30000, 0x10FFFF),
]  # fmt: skip


def hard_text(random: Random) -> str:
    """A text of parts that tokenizers treat differently, and of characters of all planes."""
    text = []
    for _ in range(random.choice((1, 2, 3, 5, 8, 13, 21))):
        kind = random.random()
        if kind < 0.6:
            text.append(random.choice(PARTS))
        elif kind < 0.7:
            text.append(random.choice((" ", "\n", "a", "1", "!", "\u0301", "é")) * random.randrange(1, 9))
        else:
            low, high = random.choice(BLOCKS)
            text.extend(chr(random.randint(low, high)) for _ in range(random.randrange(1, 6)))
    return "".join(text)


def main(folder: str) -> None:
    """Writes a small tokenizer of each style with a text behind it, as the C++ fuzzer reads them."""
    for style in STYLES:
        data = json.loads(content(style))
        merges = data["model"]["merges"][:8]
        texts = {text for a, b in merges for text in (a, b, a + b)} | {"<unk>", "<s>", "<0x41>", "a", "Ġ", "▁"}
        kept = {text: number for number, text in enumerate(sorted(texts))}
        data["model"] |= {"merges": merges, "vocab": kept}
        for token in data["added_tokens"]:
            token["id"] = 900
        written = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\0"
        (Path(folder) / style).write_bytes(written + "USER: <image>\nWhat is  é \U0001f642? word".encode())


if __name__ == "__main__":
    main(sys.argv[1])
