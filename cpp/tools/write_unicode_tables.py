"""Writes ``cpp/src/text/unicode_tables.cpp``: what Hugging Face ``tokenizers`` knows of each code point.

The library is asked, since its parts stand on tables of several Unicode versions: its regular expressions (Oniguruma),
Rust's ``char`` and ``regex``, and its normal forms (Unicode 9).  Run it when the library moves to newer tables; the
tests compare every code point with the installed library.

    python cpp/tools/write_unicode_tables.py > cpp/src/text/unicode_tables.cpp
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

POINTS = [point for point in range(0x110000) if not 0xD800 <= point <= 0xDFFF]
NAMES = "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Co Cn Cs"
CATEGORIES = NAMES.split()
HANGUL = range(0xAC00, 0xD7A4)
Runs = list[tuple[int, int]]


def runs(points: Iterable[int]) -> Runs:
    """Ascending code points as first and last ones of runs."""
    found: Runs = []
    for point in points:
        if found and found[-1][1] == point - 1:
            found[-1] = (found[-1][0], point)
        else:
            found.append((point, point))
    return found


def removed(splitter: pre_tokenizers.PreTokenizer) -> set[int]:
    """Code points that a pre-tokenizer takes out of the text of all code points."""
    left = splitter.pre_tokenize_str("".join(map(chr, POINTS)))
    places = set(range(len(POINTS)))
    for _, (start, end) in left:
        places.difference_update(range(start, end))
    return {POINTS[place] for place in places}


def matched(pattern: str) -> set[int]:
    """Code points that a regular expression of one character matches."""
    return removed(pre_tokenizers.Split(Regex(pattern), "removed"))


def alone(splitter: pre_tokenizers.PreTokenizer) -> set[int]:
    """Code points that a pre-tokenizer cuts off from an ``a`` before and behind them."""
    return {p for p in POINTS if p != 0x61 and len(splitter.pre_tokenize_str(f"a{chr(p)}a")) == 3}


def added(token: AddedToken, text: str) -> set[int]:
    """Code points in ``text`` that change the place of its first token."""
    tokenizer = Tokenizer(models.BPE({"a": 0}, []))
    tokenizer.add_tokens([token])
    usual = tokenizer.encode(text.replace("{}", "-")).offsets[:1]
    return {p for p in POINTS if tokenizer.encode(text.replace("{}", chr(p))).offsets[:1] != usual}


def classes() -> dict[int, int]:
    """Canonical combining classes, of the code points that the library reorders."""
    nfd = normalizers.NFD()
    known = {p: unicodedata.combining(chr(p)) for p in POINTS if unicodedata.combining(chr(p))}
    found = {}
    for point, value in known.items():
        # A mark of a larger class before a smaller one changes places with it; one of class 0 stays.
        before, behind = ("\u0345", chr(point)) if value != 240 else (chr(point), "\u0334")
        if nfd.normalize_str("a" + before + behind) != "a" + before + behind:
            found[point] = value
    return found


def decompositions(form: normalizers.Normalizer) -> dict[int, str]:
    """Code points that a normal form replaces, without Hangul syllables."""
    return {
        p: text for p in POINTS if p not in HANGUL and (text := form.normalize_str(chr(p))) != chr(p) and text != ""
    }


def compositions() -> list[tuple[int, int, int]]:
    """Pairs that the library composes, without Hangul."""
    nfc = normalizers.NFC()
    found = []
    for point in POINTS:
        parts = unicodedata.decomposition(chr(point))
        if not parts or parts.startswith("<") or " " not in parts or point in HANGUL:
            continue
        first, second = (int(part, 16) for part in parts.split())
        if nfc.normalize_str(chr(first) + chr(second)) == chr(point):
            found.append((first, second, point))
    return sorted(found)


def array(name: str, values: Sequence[int], kind: str = "std::uint32_t") -> None:
    """Prints an array of numbers and its length."""
    print(f"const {kind} {name}[] = {{")
    line = "   "
    for value in values:
        text = f" {value:#x}," if value > 9 else f" {value},"
        if len(line) + len(text) > 120:
            print(line)
            line = "   "
        line += text
    print(line)
    print(f"}};\nconst std::size_t {name}_count = {len(values)};\n")


def flat(pairs: Runs) -> list[int]:
    """First and last code points one after the other."""
    return [value for pair in pairs for value in pair]


def main() -> None:
    """Prints the file."""
    print("// Written by cpp/tools/write_unicode_tables.py.\n// clang-format off")
    print('#include "text/unicode_tables.hpp"\n\nnamespace trtprune::text::tables {\n')
    category = {}
    for number, name in enumerate(CATEGORIES[:-1]):
        category |= dict.fromkeys(matched(rf"\p{{{name}}}"), number)
    category |= dict.fromkeys(range(0xD800, 0xE000), len(CATEGORIES) - 1)
    changes = [p for p in range(0x110000) if p == 0 or category[p] != category[p - 1]]
    array("categories", [p << 5 | category[p] for p in changes])
    for name, points in (
        ("space", matched(r"\s")),
        ("word", matched(r"\w")),
        ("rust_space", {p for p in POINTS if normalizers.Strip().normalize_str(chr(p)) == ""}),
        ("numeric", alone(pre_tokenizers.Digits(individual_digits=True))),
        ("punctuation", alone(pre_tokenizers.Punctuation())),
        ("regex_word", added(AddedToken("b", single_word=True, normalized=False), "{}b")),
        ("regex_space", added(AddedToken("b", rstrip=True, normalized=False), "b{}a")),
    ):
        array(name, flat(runs(sorted(points))))
    lower = decompositions(normalizers.Lowercase())
    array("lowercase", [value for p, text in lower.items() if len(text) == 1 for value in (p, ord(text))])
    assert {p: text for p, text in lower.items() if len(text) != 1} == {0x130: "i\u0307"}
    array("combining", [point << 8 | value for point, value in sorted(classes().items())])
    for name, form in (("canonical", normalizers.NFD()), ("compatible", normalizers.NFKD())):
        found = decompositions(form)
        if name == "compatible":  # where it differs from the canonical one
            canonical = decompositions(normalizers.NFD())
            found = {p: text for p, text in found.items() if canonical.get(p) != text}
        texts = "".join(found.values())
        starts, position = [], 0
        for text in found.values():
            starts.append(position)
            position += len(text)
        array(f"{name}_points", list(found))
        array(f"{name}_starts", [*starts, position])
        array(f"{name}_texts", [ord(c) for c in texts])
    array("compositions", [value for triple in compositions() for value in triple])
    print("}  // namespace trtprune::text::tables")


if __name__ == "__main__":
    sys.exit(main())
