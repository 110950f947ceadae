"""``tokenizer.json`` and the tokens in other files, combined as in transformers.

Tokens and their flags (lstrip, rstrip, single_word, normalized, special) may stand in ``tokenizer.json``, in
``tokenizer_config.json`` (``added_tokens_decoder``, named tokens, ``extra_special_tokens``) and, in files written
before transformers 5, in ``special_tokens_map.json`` and ``added_tokens.json``, which count only where
``added_tokens_decoder`` is missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from trtprune.errors import EngineDirError
from trtprune.files.reading import parse_object

__all__ = [
    "MAX_TOKENIZER_BYTES",
    "Tokens",
    "check_size",
    "is_panic",
    "load_tokenizer",
    "open_tokens",
    "without_decoder",
]

MAX_TOKENIZER_BYTES = 64_000_000
"""Size limit of a tokenizer.json in bytes; with a vocabulary of 256,000 it has about 35 MB."""
# The parser's memory for a byte depends on its kind; a vocabulary of 256,000 with its merges has half of these numbers.
MAX_OBJECTS, MAX_LISTS, MAX_VALUES = 100_000, 4_000_000, 10_000_000
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
# Decoders of one pass whose output is not much longer than the tokens.
PLAIN_DECODERS = ("ByteFallback", "ByteLevel", "BPEDecoder", "CTC", "Fuse", "Metaspace", "WordPiece")
MAX_DECODERS, MAX_GROWTH = 16, 16


@dataclass(frozen=True)
class Tokens:
    """A ready tokenizer.

    Attributes:
        tokenizer: A ``tokenizers.Tokenizer`` without truncation and padding.
        named: Texts of the named tokens: ``bos_token`` …, and those named by the checkpoint.
        byte_ids: Ids of single bytes (``<0x0A>``), if the decoder joins them to characters.
        skipped_ids: Ids that decoding omits.
        plain_decoder: Whether time and memory of decoding are proportional to the number of tokens.
        special: Texts of special tokens: for the library, once special is always special.
    """

    tokenizer: Any
    named: Mapping[str, str]
    byte_ids: frozenset[int]
    skipped_ids: frozenset[int]
    plain_decoder: bool
    special: frozenset[str]


def open_tokens(files: Mapping[str, str]) -> Tokens:
    """The tokenizer of a checkpoint, from all its files.

    Args:
        files: Content by name of ``tokenizer.json`` and the existing ones of ``tokenizer_config.json``,
            ``special_tokens_map.json`` and ``added_tokens.json``.

    Raises:
        EngineDirError: if a file is missing or broken.
    """
    if "tokenizer.json" not in files:
        raise EngineDirError("tokenizer.json is missing", hint="add the checkpoint's tokenizer.json and build again")
    tokenizer = load_tokenizer(files["tokenizer.json"], "tokenizer.json")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    config = _object(files, "tokenizer_config.json")
    special = _special(tokenizer.get_added_tokens_decoder().values())
    named, added = _add_tokens(tokenizer, config, files)
    tokenizer.encode_special_tokens = config.get("split_special_tokens") is True
    decoder = _decoder(tokenizer)
    bytes_joined = '"ByteFallback"' in json.dumps(decoder)
    names = (f"<0x{byte:02X}>" for byte in range(256)) if bytes_joined else ()
    ids = (tokenizer.token_to_id(name) for name in names)
    return Tokens(
        tokenizer,
        named,
        frozenset(number for number in ids if number is not None),
        _skipped(tokenizer),
        _growth(decoder) <= MAX_GROWTH,
        special | _special(added),
    )


@contextmanager
def without_decoder(tokenizer: Any) -> Iterator[None]:
    """Within it, decoding gives the texts of tokens as a decoder gets them, with spaces between."""
    decoder, tokenizer.decoder = tokenizer.decoder, None
    try:
        yield
    finally:
        tokenizer.decoder = decoder


def _skipped(tokenizer: Any) -> frozenset[int]:
    """The ids that the library omits in decoding; the flags say only nearly which: it compares texts."""
    with without_decoder(tokenizer):
        return frozenset(
            number
            for number in tokenizer.get_added_tokens_decoder()
            if not tokenizer.decode([number], skip_special_tokens=True)
        )


def check_size(text: str, name: str) -> None:
    """Refuses a file that would take a parser too much memory.

    Raises:
        EngineDirError: naming the file.
    """
    counts = {"objects": (text.count("{"), MAX_OBJECTS), "lists": (text.count("["), MAX_LISTS)}
    counts |= {"values": (text.count(","), MAX_VALUES), "characters": (len(text), MAX_TOKENIZER_BYTES)}
    for what, (count, limit) in counts.items():
        if count > limit:
            raise EngineDirError(
                f"{name}: {count:,} {what}, more than a tokenizer has ({limit:,})", hint=_correct(name)
            )


def load_tokenizer(text: str, name: str) -> Any:
    """The ``tokenizers.Tokenizer`` in a file's text.

    Raises:
        EngineDirError: naming the file.
    """
    import tokenizers

    check_size(text, name)
    try:
        return tokenizers.Tokenizer.from_str(text)
    except BaseException as error:  # the Rust library raises bare Exception, and panics
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise EngineDirError(f"{name} cannot be read: {str(error)[:200]}", hint=_correct(name)) from None


def is_panic(error: BaseException) -> bool:
    """Whether an exception is a panic of a Rust library, which is not an ``Exception``."""
    return type(error).__name__ == "PanicException"


def _correct(name: str) -> str:
    return f"correct the checkpoint's {name}, or save the tokenizer again with save_pretrained, and build again"


def _object(files: Mapping[str, str], name: str) -> dict[str, Any]:
    if name not in files:
        return {}
    try:
        return parse_object(files[name].encode("utf-8"))
    except ValueError as error:
        raise EngineDirError(f"{name}: {error}", hint=_correct(name)) from None


def _special(tokens: Iterable[Any]) -> frozenset[str]:
    return frozenset(token.content for token in tokens if token.special)


def _add_tokens(
    tokenizer: Any, config: dict[str, Any], files: Mapping[str, str]
) -> tuple[dict[str, str], Sequence[Any]]:
    """Adds the tokens that ``tokenizer.json`` lacks, in transformers' order; the named tokens, and all added ones."""
    where = "tokenizer_config.json"
    settings = dict(config)
    extra = settings.pop("extra_special_tokens", None)
    older = settings.pop("additional_special_tokens", None)
    # An empty list counts, too: special_tokens_map.json is not asked then.
    extra, older = extra or (extra if older is None else older), None
    own = {key: settings.pop(key) for key in list(settings) if _own_name(key) and isinstance(settings[key], str)}
    if isinstance(extra, dict):
        own, extra = own | extra, None
    added: dict[int, Any] = {}
    if "added_tokens_decoder" in settings:
        entries = settings["added_tokens_decoder"]
        if not isinstance(entries, dict):
            raise _wrong(where, "added_tokens_decoder", entries)
        for key, value in entries.items():
            if not isinstance(value, dict):
                raise _wrong(where, f"added_tokens_decoder[{key[:20]!r}]", value)
            added[_number(key, where)] = _token(value, where, key)
    else:
        settings, own, extra, older = _of_map(_object(files, "special_tokens_map.json"), settings, own, extra)
        values = [settings.get(name) for name in NAMES]
        values += _list(extra, where, "extra_special_tokens")
        # transformers ignores entries of tokenizer_config.json here.
        special = {_text(value) for value in values if not isinstance(value, dict) or "__type" not in value}
        added = _of_list(_object(files, "added_tokens.json"), special)
        added |= tokenizer.get_added_tokens_decoder()
    extra = older if extra is None else extra
    known = {token.content: token for token in added.values()}
    named = {name: settings[name] for name in NAMES if settings.get(name) is not None}
    named |= {key: value for key, value in settings.items() if _own_name(key) and _is_token(value)} | own
    chosen: dict[str, Any] = {}
    for name, value in named.items():
        found = _any_token(value, where, name)
        chosen[name] = known.get(_text(found), found) if name in NAMES else found
    extras = [_any_token(value, where, "extra_special_tokens") for value in _list(extra, where, "extra_special_tokens")]
    new = _add(tokenizer, added, chosen.values(), extras)
    return {name: _text(value) for name, value in chosen.items()}, new


def _of_map(
    found: Mapping[str, Any], settings: dict[str, Any], own: dict[str, Any], extra: Any
) -> tuple[dict[str, Any], dict[str, Any], Any, Any]:
    """``special_tokens_map.json``, whose entries come before those of ``tokenizer_config.json``."""
    where = "special_tokens_map.json"
    settings, own, older = dict(settings), dict(own), None
    for key, value in found.items():
        if key == "extra_special_tokens" and isinstance(value, list):
            have = _list(extra, where, key)
            extra = [*have, *(item for item in value if item not in have)]
        elif key == "extra_special_tokens":
            extra = value
        elif key == "additional_special_tokens":
            older = value
        else:
            settings[key] = {**value, "special": True} if isinstance(value, dict) else value
    if isinstance(extra, dict):
        own, extra = own | extra, None
    return settings, own, extra, older


def _of_list(found: Mapping[str, Any], special: set[str]) -> dict[int, Any]:
    """``added_tokens.json``: ids by text."""
    from tokenizers import AddedToken

    where = "added_tokens.json"
    added = {}
    for text, number in found.items():
        if isinstance(number, bool) or not isinstance(number, int):
            raise _wrong(where, repr(text[:50]), number)
        is_special = text in special
        added[number] = AddedToken(text, normalized=not is_special, special=is_special)
    return added


def _add(tokenizer: Any, added: Mapping[int, Any], named: Iterable[Any], extras: Iterable[Any]) -> list[Any]:
    """Adds listed tokens in the order of their ids, then named and extra ones that the tokenizer does not know."""
    from tokenizers import AddedToken

    have = tokenizer.get_added_tokens_decoder()
    # Also known ones: a name makes them special, and their flags count.
    new: list[Any] = [token for _, token in sorted(added.items())]
    known = {token.content for token in have.values()} | {token.content for token in new}
    named = list(named)
    new += [value for value in dict.fromkeys([*named, *extras]) if _text(value) not in known]
    names = {_text(value) for value in named}
    found = [AddedToken(value, special=True) if isinstance(value, str) else value for value in new]
    for token in found:
        if token.content in names:
            token.special = True
    if found:
        tokenizer.add_tokens(found)
    return found


def _own_name(key: str) -> bool:
    """Whether a key of the config names a token and is not one of the keys of all tokenizers."""
    return key.endswith("_token") and key not in NAMES


def _is_token(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and isinstance(value.get("content"), str))


def _text(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else str(getattr(value, "content", ""))


def _any_token(value: Any, where: str, name: str) -> Any:
    """A text unchanged, an entry as an ``AddedToken``."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        # An entry with the type of a token has all its flags; older files list special tokens' flags without the type.
        return _token(value if "__type" in value else {"special": True, **value}, where, name)
    raise _wrong(where, name, value)


def _token(value: Mapping[str, Any], where: str, name: str) -> Any:
    from tokenizers import AddedToken

    content = value.get("content")
    flags = {flag: value[flag] for flag in FLAGS if value.get(flag) is not None}
    if not isinstance(content, str) or not all(isinstance(flag, bool) for flag in flags.values()):
        raise _wrong(where, str(name)[:50], value)
    return AddedToken(content, **flags)


def _list(value: Any, where: str, name: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str | dict) for item in value):
        raise _wrong(where, name, value)
    return value


def _number(key: str, where: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) < 12):
        raise _wrong(where, "added_tokens_decoder", key)
    return int(key)


def _wrong(where: str, name: str, value: Any) -> EngineDirError:
    return EngineDirError(f"{where}: {name} is no token: {repr(value)[:100]}", hint=_correct(where))


def _decoder(tokenizer: Any) -> Any:
    decoder = tokenizer.decoder
    return None if decoder is None else json.loads(decoder.__getstate__())


def _growth(decoder: Any, depth: int = 0) -> float:
    """A bound on the length of a decoder's output relative to its tokens; infinite if unknown."""
    if decoder is None:
        return 1.0
    kind = decoder.get("type")
    if kind == "Sequence":
        parts = decoder["decoders"]
        growth = 1.0
        for part in parts:
            growth *= _growth(part, depth + 1)
        return growth if len(parts) <= MAX_DECODERS and depth < MAX_DECODERS else float("inf")
    if kind == "Replace":
        old, new = decoder["pattern"].get("String"), decoder["content"]
        # A regular expression may take any time to match, and an empty text matches everywhere.
        return max(1.0, len(new.encode()) / len(old.encode())) if old else float("inf")
    if kind == "Strip":  # the library panics at tokens that are shorter than the text removed at both ends
        return 1.0 if decoder["start"] + decoder["stop"] <= 1 else float("inf")
    return 1.0 if kind in PLAIN_DECODERS else float("inf")
