"""Reads ``generation_config.json`` of a checkpoint as transformers does: every setting, or a refusal by its name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from trtprune.arguments import arg
from trtprune.engine_dir.generation import DRAWS, SOURCES, GenerationInfo
from trtprune.errors import CheckpointError, shown

if TYPE_CHECKING:
    from trtprune.checkpoint import Checkpoint

__all__ = ["eos_token_ids", "read_generation"]

WAY_OUT = f"{arg('generation_config', 'ignore')} builds without these settings; or take the key out of the file"

# Sections of config.json with settings of old checkpoints, as in transformers.
TEXT_SECTIONS = ("decoder", "generator", "text_config")


def _given(value: Any) -> bool:
    return bool(value)


def _above(limit: float) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (int, float)) and value > limit


# Settings that change the answer but are not supported → whether a value enables it.
REFUSED: dict[str, Callable[[Any], bool]] = {
    "num_beams": _above(1),
    "num_return_sequences": _above(1),
    "guidance_scale": lambda value: value != 1,
    "watermarking_config": _given,
    "constraints": _given,
    "force_words_ids": _given,
    "dola_layers": _given,
    "token_healing": _given,
    "max_time": _above(-1),
}


def read_generation(checkpoint: Checkpoint, vocab_size: int, choice: str = "checkpoint") -> GenerationInfo:
    """The settings of a checkpoint.

    Args:
        checkpoint: With ``generation_config.json``, or, as transformers does for old ones, with settings in its
            ``config.json``.
        vocab_size: Size of the language model's vocabulary.
        choice: ``checkpoint``, or ``ignore`` for greedy decoding without these settings.

    Raises:
        CheckpointError: naming the file and the key, for a value of the wrong form, and for an unsupported setting that
            would change the answers.
    """
    if choice == "ignore":
        return GenerationInfo(source=SOURCES[2])
    values, file = _values(checkpoint)
    sample = values.get("do_sample") is True
    _refuse(values, file, sample)
    found: dict[str, Any] = {"source": file}
    for name, read in READERS.items():
        value = values.get(name)
        if value is None:
            continue
        try:
            found[name] = read(value)
        except (TypeError, ValueError, OverflowError):
            raise CheckpointError(f"{file}: {name} is {shown(value)}, not a value of it", hint=WAY_OUT) from None
    for name in ("suppress_tokens", "begin_suppress_tokens"):  # transformers ignores ids without a token
        found[name] = tuple(i for i in found.get(name, ()) if 0 <= i < vocab_size)
    info = GenerationInfo(**found)
    if not sample:
        # An impossible setting of draws does not matter to a checkpoint that decodes greedily.
        for name in DRAWS:
            if name in found and GenerationInfo(**{name: found[name]}).wrong(vocab_size) is not None:
                info = dataclasses.replace(info, **{name: getattr(GenerationInfo(), name)})
    wrong = info.wrong(vocab_size)
    if wrong is not None:
        raise CheckpointError(f"{file}: {wrong}", hint=WAY_OUT)
    return info


def eos_token_ids(checkpoint: Checkpoint) -> tuple[int, ...]:
    """The tokens that end an answer, from the same place as in transformers; empty if there are none.

    Raises:
        CheckpointError: if they are not ids.
    """
    values, file = _values(checkpoint)
    value = values.get("eos_token_id")
    if value is None:
        return ()
    try:
        return _ids(value)
    except (TypeError, ValueError):
        raise CheckpointError(
            f"{file}: eos_token_id is {shown(value)}, expected a token id or a list of ids",
            hint="download the file again, or correct it",
        ) from None


def _values(checkpoint: Checkpoint) -> tuple[Mapping[str, Any], str]:
    """The settings and their file; ``generation_config.json``, if it exists, is the only one."""
    found = checkpoint.json_file(SOURCES[0])
    if found is not None:
        return found, SOURCES[0]
    config = checkpoint.config
    text = next((config[name] for name in TEXT_SECTIONS if config.get(name)), None)
    inner = text if isinstance(text, Mapping) else {}
    outer = {name: value for name, value in config.items() if value is not None}
    return {**inner, **outer}, SOURCES[1]


def _refuse(values: Mapping[str, Any], file: str, sample: bool) -> None:
    asked = [name for name, asks in REFUSED.items() if values.get(name) is not None and asks(values[name])]
    alpha, top_k = values.get("penalty_alpha"), values.get("top_k")
    if not sample and _above(0)(alpha) and _above(1)(50 if top_k is None else top_k):
        asked.append("penalty_alpha")
    if asked:
        what = ", ".join(f"{name} {shown(values[name])}" for name in asked)
        raise CheckpointError(f"{file}: {what}: not supported, and it would change the answers", hint=WAY_OUT)


# -- values; each reader raises TypeError or ValueError for a wrong form


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError
    return float(value)


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _ids(value: Any) -> tuple[int, ...]:
    return tuple(_whole(i) for i in (value if isinstance(value, list) else [value]))


def _words(value: Any) -> tuple[tuple[int, ...], ...]:
    if not isinstance(value, list) or not all(isinstance(word, list) for word in value):
        raise TypeError
    return tuple(map(_ids, value))


def _biases(value: Any) -> tuple[tuple[tuple[int, ...], float], ...]:
    if not isinstance(value, list):
        raise TypeError
    # As a dictionary in transformers: the last entry of a sequence counts.
    found = {_ids(sequence): _number(bias) for sequence, bias in value}
    return tuple(found.items())


def _decay(value: Any) -> tuple[int, float]:
    start, factor = value
    return _whole(start), _number(factor)


def _texts(value: Any) -> tuple[str, ...]:
    found = (value,) if isinstance(value, str) else tuple(value)
    if not all(isinstance(text, str) for text in found):
        raise TypeError
    return found


def _share(value: Any) -> float:
    """A probability; 1 and above means off."""
    return min(_number(value), 1.0)


def _cutoff(value: Any) -> float:
    """A cutoff; a value outside of 0 to 1 means off."""
    found = _number(value)
    return found if 0 < found < 1 else 0.0


READERS: dict[str, Callable[[Any], Any]] = {
    "do_sample": _truth,
    "temperature": _number,
    "top_h": _number,
    "top_k": _whole,
    "top_p": _share,
    "min_p": _number,
    "typical_p": _share,
    "epsilon_cutoff": _cutoff,
    "eta_cutoff": _cutoff,
    "sequence_bias": _biases,
    "encoder_repetition_penalty": _number,
    "repetition_penalty": _number,
    "no_repeat_ngram_size": lambda value: max(_whole(value), 0),
    "encoder_no_repeat_ngram_size": lambda value: max(_whole(value), 0),
    "bad_words_ids": _words,
    "min_length": lambda value: max(_whole(value), 0),
    "min_new_tokens": lambda value: max(_whole(value), 0),
    "max_length": _whole,
    "max_new_tokens": _whole,
    "forced_bos_token_id": _whole,
    "forced_eos_token_id": _ids,
    "remove_invalid_values": _truth,
    "exponential_decay_length_penalty": _decay,
    "suppress_tokens": _ids,
    "begin_suppress_tokens": _ids,
    "stop_strings": _texts,
}
