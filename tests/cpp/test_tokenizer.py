"""The C++ tokenizer beside Hugging Face ``tokenizers``: ids, places and decoded text."""

from __future__ import annotations

import functools
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from tests.cpp.real_tokenizers import NAMES, real_tokenizers
from tests.kit import cpp_build
from tests.kit.tokenizer_styles import PARTS, STYLES, content, hard_text
from trtprune.text.tokens import is_panic

Driver = Callable[[list[Any]], list[Any]]
COUNT = 400
POINTS = [point for point in range(0x110000) if not 0xD800 <= point <= 0xDFFF]


@pytest.fixture(scope="module")
def run(driver: Callable[[str], Driver]) -> Driver:
    return driver("tokenizer")


def save(path: Path, text: str) -> dict[str, str]:
    """Writes a tokenizer.json; returns the command that opens it."""
    path.mkdir(exist_ok=True)
    (path / "tokenizer.json").write_text(text)
    return {"open": str(path / "tokenizer.json")}


def expected(tokenizer: Tokenizer, text: str) -> dict[str, Any]:
    encoding = tokenizer.encode(text)
    return {"ids": encoding.ids, "offsets": [list(offsets) for offsets in encoding.offsets]}


def compare(run: Driver, opening: Any, tokenizer: Tokenizer, texts: list[str], random: Random) -> None:
    """Ids and places of texts, texts of their ids, and texts of random ids."""
    size = tokenizer.get_vocab_size()
    rows = [tokenizer.encode(text).ids for text in texts]
    rows += [[random.randrange(size + 3) for _ in range(random.randrange(12))] for _ in texts]
    commands = [{"encode": text} for text in texts] + [{"decode": ids, "skip": i % 2} for i, ids in enumerate(rows)]
    for command in commands:
        command["skip"] = bool(command.get("skip"))
    answers = run([opening, *commands])[1:]
    for text, answer in zip(texts, answers, strict=False):
        assert answer == expected(tokenizer, text), repr(text)
    for command, answer in zip(commands[len(texts) :], answers[len(texts) :], strict=True):
        text = tokenizer.decode(command["decode"], skip_special_tokens=command["skip"])
        assert answer == {"text": text}, command


@pytest.mark.parametrize("style", STYLES)
def test_styles(run: Driver, tmp_path: Path, style: str) -> None:
    random = Random(style)
    texts = ["", *PARTS, *(hard_text(random) for _ in range(COUNT))]
    compare(run, save(tmp_path, content(style)), Tokenizer.from_str(content(style)), texts, random)


@pytest.mark.slow
@pytest.mark.parametrize("style", STYLES)
def test_styles_at_length(run: Driver, tmp_path: Path, style: str) -> None:
    tokenizer = Tokenizer.from_str(content(style))
    opening = save(tmp_path, content(style))
    for seed in range(10):
        random = Random(f"{style} {seed}")
        compare(run, opening, tokenizer, [hard_text(random) for _ in range(2000)], random)


def bare(**parts: Any) -> Tokenizer:
    """A tokenizer of single characters, which shows what its parts do to a text."""
    vocab = {chr(point): number for number, point in enumerate([*range(0x20, 0x7F), *range(0xA1, 0x144), 0x2581])}
    tokenizer = Tokenizer(models.BPE({"<unk>": len(vocab), **vocab}, [], unk_token="<unk>"))
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return tokenizer


GROUPS = ("L", "Lu", "Ll", "Lt", "Lm", "Lo", "M", "N", "Nd", "P", "S", "Sc", "Z", "C")
EACH_POINT: dict[str, dict[str, Any]] = {
    "NFC": {"normalizer": normalizers.NFC()},
    "NFD": {"normalizer": normalizers.NFD()},
    "NFKC": {"normalizer": normalizers.NFKC()},
    "NFKD": {"normalizer": normalizers.NFKD()},
    "Lowercase": {"normalizer": normalizers.Lowercase()},
    "Strip": {"normalizer": normalizers.Strip()},
    "Digits": {"pre_tokenizer": pre_tokenizers.Digits(individual_digits=True)},
    "Punctuation": {"pre_tokenizer": pre_tokenizers.Punctuation()},
    "ByteLevel": {"pre_tokenizer": pre_tokenizers.ByteLevel()},
    **{
        name: {"pre_tokenizer": pre_tokenizers.Split(Regex(rf"\{name}"), "removed")}
        for name in ("s", "S", "w", "d", *(f"p{{{group}}}" for group in GROUPS))
    },
}


def compare_points(run: Driver, opening: Any, tokenizer: Tokenizer, texts: list[str]) -> None:
    answers = run([opening, *({"encode": text} for text in texts)])[1:]
    for text, answer in zip(texts, answers, strict=True):
        assert answer == expected(tokenizer, text), [hex(ord(c)) for c in text]


def rows(points: list[int], size: int) -> list[list[int]]:
    return [points[i : i + size] for i in range(0, len(points), size)]


@pytest.mark.parametrize("name", EACH_POINT)
@pytest.mark.parametrize("share", [pytest.param(20, id="some"), pytest.param(1, id="all", marks=pytest.mark.slow)])
def test_each_code_point(run: Driver, tmp_path: Path, name: str, share: int) -> None:
    tokenizer = bare(**EACH_POINT[name])
    texts = ["a".join(map(chr, row)) for row in rows(POINTS, 61)]
    if name == "Strip":
        points = {0x1C, 0x85, 0xA0, 0x1680, 0x180E, 0x200B, 0x2028, 0x3000, 0xFEFF, *range(0x2000, 0x2010)}
        texts = [chr(point) + "é" + chr(point) for point in sorted(points)]
    # The first ones hold most of what differs.
    texts = [*texts[:100], *texts[100::share]]
    compare_points(run, save(tmp_path, tokenizer.to_str()), tokenizer, texts)


@pytest.mark.parametrize("share", [pytest.param(40, id="some"), pytest.param(1, id="all", marks=pytest.mark.slow)])
def test_added_tokens_and_each_code_point(run: Driver, tmp_path: Path, share: int) -> None:
    tokenizer = bare()
    tokenizer.add_tokens(
        [
            AddedToken("<w>", single_word=True, normalized=False),
            AddedToken("<l>", lstrip=True, normalized=False),
            AddedToken("<r>", rstrip=True, normalized=False),
        ]
    )
    texts = ["".join(f"{chr(p)}<w>.<w>{chr(p)}<l><r>{chr(p)}" for p in row) for row in rows(POINTS, 40)]
    compare_points(run, save(tmp_path, tokenizer.to_str()), tokenizer, [*texts[:300], *texts[300::share]])


REGEXES = [
    r"\s+",
    r"\p{L}+|\p{N}{2,3}",
    r"(?i:'s|'ll|x|k)|.",
    r"[^\r\n\p{L}\p{N}]?\p{L}+",
    r"(?:a|b)+?",
    r"\n|\r\n?",
    r" ?[^\sa-z]+",
    r"(?=[A-Z])",
    r"$",
    r"^",
    r"[a-zé]{1,4}",
    r"(?:(?:a|e) ?)+",
    r"\u00e9|\x41",
    r"x*",
    r"\s+(?!\S)|\s+",
]
BEHAVIORS = ["removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"]

some_text = st.one_of(
    st.lists(st.sampled_from(PARTS), max_size=8).map("".join),
    st.text(max_size=30),
    st.text("ab e\u0301é▁ A'\n", max_size=12),
)
normalizer = st.one_of(
    st.sampled_from(["NFC", "NFD", "NFKC", "NFKD", "Lowercase"]).map(lambda name: {"type": name}),
    st.fixed_dictionaries({"type": st.just("Strip"), "strip_left": st.booleans(), "strip_right": st.booleans()}),
    st.fixed_dictionaries({"type": st.just("Prepend"), "prepend": st.sampled_from(["▁", "", "ab", "é "])}),
    st.fixed_dictionaries(
        {
            "type": st.just("Replace"),
            "pattern": st.one_of(
                st.sampled_from([" ", "a", "é", "ab", "'", "\n"]).map(lambda text: {"String": text}),
                st.sampled_from(REGEXES).map(lambda text: {"Regex": text}),
            ),
            "content": st.sampled_from(["▁", "", "xy", "é", " "]),
        }
    ),
)
pre_tokenizer = st.one_of(
    st.fixed_dictionaries(
        {
            "type": st.just("ByteLevel"),
            "add_prefix_space": st.booleans(),
            "trim_offsets": st.booleans(),
            "use_regex": st.booleans(),
        }
    ),
    st.fixed_dictionaries(
        {
            "type": st.just("Split"),
            "pattern": st.sampled_from(REGEXES).map(lambda text: {"Regex": text}),
            "behavior": st.sampled_from(BEHAVIORS).map(lambda name: name.title().replace("_", "")),
            "invert": st.booleans(),
        }
    ),
    st.fixed_dictionaries({"type": st.just("Digits"), "individual_digits": st.booleans()}),
    st.just({"type": "Punctuation", "behavior": "Contiguous"}),
    st.fixed_dictionaries(
        {
            "type": st.just("Metaspace"),
            "replacement": st.sampled_from("▁a"),
            "split": st.booleans(),
            "prepend_scheme": st.sampled_from(["first", "always", "never"]),
        }
    ),
)
decoder = st.one_of(
    st.sampled_from(["ByteLevel", "ByteFallback", "Fuse"]).map(
        lambda name: {"type": name, "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    ),
    st.fixed_dictionaries(
        {"type": st.just("Strip"), "content": st.sampled_from(" ▁a"), "start": st.integers(0, 2), "stop": st.just(0)}
    ),
    st.fixed_dictionaries(
        {
            "type": st.just("Metaspace"),
            "replacement": st.just("▁"),
            "split": st.booleans(),
            "prepend_scheme": st.sampled_from(["first", "always", "never"]),
        }
    ),
    st.fixed_dictionaries(
        {
            "type": st.just("Replace"),
            "pattern": st.sampled_from(REGEXES).map(lambda r: {"Regex": r}),
            "content": st.sampled_from([" ", "", "xy"]),
        }
    ),
)
flags = st.fixed_dictionaries(
    {flag: st.booleans() for flag in ("single_word", "lstrip", "rstrip", "normalized", "special")}
)
contents = st.sampled_from(["<s>", "<image>", "word", "é", "e\u0301", " x", "▁", "ab", "A", "<Norm>", "'"])
tokens = st.lists(st.builds(lambda text, flag: {"content": text, **flag}, contents, flags), max_size=4)


def chain(kind: str, key: str, part: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    parts = st.lists(part, min_size=1, max_size=3).map(lambda values: {"type": "Sequence", key: values})
    return st.one_of(st.none(), part, parts)


@st.composite
def tokenizer_files(draw: st.DrawFn) -> dict[str, Any]:
    """A tokenizer.json of parts in any order, for the model of a style."""
    data: dict[str, Any] = json.loads(content(draw(st.sampled_from(["gpt2", "llama2", "clip", "unknown", "dropped"]))))
    data["normalizer"] = draw(chain("normalizer", "normalizers", normalizer))
    data["pre_tokenizer"] = draw(chain("pre_tokenizer", "pretokenizers", pre_tokenizer))
    data["decoder"] = draw(chain("decoder", "decoders", decoder))
    if draw(st.booleans()):
        level = {"type": "ByteLevel", "add_prefix_space": draw(st.booleans()), "trim_offsets": True, "use_regex": True}
        data["post_processor"] = {"type": "Sequence", "processors": [level, data["post_processor"] or level]}
    data["model"]["fuse_unk"] = draw(st.booleans())
    data["model"]["ignore_merges"] = draw(st.booleans())
    data["added_tokens"] = [{"id": i, **token} for i, token in enumerate(draw(tokens))]
    return data


class Session:
    """One driver for many examples: a process for each would take most of the time."""

    def __init__(self, program: Path) -> None:
        self._process = subprocess.Popen(
            [str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=cpp_build.environment(), text=True
        )

    def ask(self, command: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    opened = Session(cpp_build.target("tokenizer"))
    yield opened
    opened.close()


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    data=tokenizer_files(),
    more=tokens,
    texts=st.lists(some_text, min_size=1, max_size=5),
    ids=st.lists(st.integers(0, 600), max_size=10),
    split=st.booleans(),
)
def test_parts_in_any_order(
    session: Session, tmp_path_factory: pytest.TempPathFactory, data: Any, more: Any, texts: Any, ids: Any, split: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "parts"
    tokenizer = attempt(lambda: Tokenizer.from_str(json.dumps(data)))
    answer = session.ask(save(path, json.dumps(data)))
    # The library takes any of two added tokens that its normalizer makes equal.
    if tokenizer is None or " to its normalizer" in answer.get("error", ""):
        assert "error" in answer
        return
    assert answer["size"] == tokenizer.get_vocab_size()
    known = attempt(lambda: tokenizer.add_tokens([AddedToken(**token) for token in more]))
    answer = session.ask({"add": more})
    if known is None or " to its normalizer" in answer.get("error", ""):
        assert "error" in answer
        return
    tokenizer.encode_special_tokens = split
    session.ask({"split_special": split})
    for text in texts:
        wanted = attempt(functools.partial(expected, tokenizer, text))
        answer = session.ask({"encode": text})
        if wanted is None:
            assert "error" in answer
            continue
        assert answer == wanted
        plain = tokenizer.encode(text, add_special_tokens=False)
        assert session.ask({"encode": text, "special": False})["ids"] == plain.ids
        assert session.ask({"decode": plain.ids}) == {"text": tokenizer.decode(plain.ids)}
    for skip in (True, False):
        assert session.ask({"decode": ids, "skip": skip}) == {"text": tokenizer.decode(ids, skip_special_tokens=skip)}


def attempt(ask: Callable[[], Any]) -> Any:
    """What the library answers; None where it panics, which has to be an error in C++."""
    try:
        return ask()
    except BaseException as error:
        if not is_panic(error):
            raise
        return None


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_real_tokenizers(run: Driver, pytestconfig: pytest.Config, name: str) -> None:
    """200,000 and more texts, with the tokenizers of published models."""
    assert pytestconfig.cache is not None
    files = real_tokenizers(pytestconfig.cache.mkdir("real-tokenizers"))
    if name not in files:
        pytest.skip(f"{name} cannot be downloaded here")
    tokenizer = Tokenizer.from_file(str(files[name]))
    for seed in range(10):
        random = Random(f"{name} {seed}")
        compare(run, {"open": str(files[name])}, tokenizer, [hard_text(random) for _ in range(3000)], random)
