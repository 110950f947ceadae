"""``generation_config.json``: read as transformers reads it, and followed in every way of asking."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import trtprune
from tests.kit import tiny
from tests.kit.runtime_kit import Kit, picture
from trtprune.checkpoint import open_checkpoint
from trtprune.engine_dir import GenerationInfo, open_engine_dir
from trtprune.errors import BuildError, CheckpointError, EngineDirError, InputError
from trtprune.models.generation_config import eos_token_ids, read_generation
from trtprune.runtime import Request, Vlm
from trtprune.runtime.sampling import Sampler

QUESTION = "What is this?"
VOCAB = tiny.Tiny().vocab
IDS = st.integers(0, VOCAB - 1)
VALUES: dict[str, Any] = {
    "do_sample": st.booleans(),
    "temperature": st.sampled_from([0.2, 1, 1.0, 1.7]),
    "top_h": st.sampled_from([0.5]),
    "top_k": st.sampled_from([0, 1, 20]),
    "top_p": st.sampled_from([0.5, 1, 1.0]),
    "min_p": st.sampled_from([0.1]),
    "typical_p": st.sampled_from([0.5, 1.0]),
    "epsilon_cutoff": st.sampled_from([0.0, 0.1]),
    "eta_cutoff": st.sampled_from([0.0, 0.1]),
    "sequence_bias": st.just([[[3, 4], 2.5], [[5], -1.0]]),
    "encoder_repetition_penalty": st.sampled_from([1.0, 1.2]),
    "repetition_penalty": st.sampled_from([1.0, 1.3, 0.8]),
    "no_repeat_ngram_size": st.sampled_from([0, 1, 3]),
    "encoder_no_repeat_ngram_size": st.sampled_from([0, 2]),
    "bad_words_ids": st.lists(st.lists(IDS, min_size=1, max_size=2), min_size=1, max_size=30),
    "min_length": st.sampled_from([0, 70]),
    "min_new_tokens": st.sampled_from([0, 3]),
    "max_length": st.sampled_from([90, 200]),
    "max_new_tokens": st.sampled_from([4, 9]),
    "forced_bos_token_id": IDS,
    "forced_eos_token_id": st.one_of(IDS, st.lists(IDS, min_size=1, max_size=2)),
    "remove_invalid_values": st.booleans(),
    "exponential_decay_length_penalty": st.just([2, 1.3]),
    "suppress_tokens": st.lists(IDS, max_size=60).filter(lambda ids: len(set(ids)) < VOCAB),
    "begin_suppress_tokens": st.lists(IDS, max_size=60),
    # What changes no answer, or only its shape.
    "use_cache": st.booleans(),
    "renormalize_logits": st.booleans(),
    "early_stopping": st.booleans(),
    "length_penalty": st.sampled_from([0.5]),
    "num_beams": st.just(1),
    "something_else": st.just("of a later version"),
}
RULES = [
    "sequence_bias",
    "encoder_repetition_penalty",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "min_length",
    "min_new_tokens",
    "max_length",
    "max_new_tokens",
    "forced_eos_token_id",
    "remove_invalid_values",
    "exponential_decay_length_penalty",
    "suppress_tokens",
    "begin_suppress_tokens",
]


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit.make(tmp_path_factory.mktemp("generation") / "model", tiny.Tiny(seed=3))


@pytest.fixture(scope="module")
def vlm(kit: Kit) -> Vlm:
    return kit.load("none", method="none")


@pytest.fixture(scope="module")
def inside(kit: Kit) -> Vlm:
    """A method inside the decoder."""
    return kit.load("fastv", method="fastv", keep=12)


def write(path: Path, values: dict[str, Any] | None, **config: Any) -> Path:
    """A checkpoint of text files only, which is all that is read here."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    if values is not None:
        (path / "generation_config.json").write_text(json.dumps(values))
    return path


def read(path: Path, **arguments: Any) -> GenerationInfo:
    from trtprune.checkpoint import Checkpoint

    config = json.loads((path / "config.json").read_text())
    return read_generation(Checkpoint(path=path, config=config, tensors={}, files=(), id="x"), VOCAB, **arguments)


def of_transformers(path: Path) -> Any:
    """What ``generate`` of a loaded model would go by."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = transformers.GenerationConfig.from_pretrained(str(path))
        except OSError:
            found = transformers.GenerationConfig.from_pretrained(
                str(path), config_file_name="config.json", _from_model_config=True
            )
        found.update(**found._get_default_generation_params(), defaults_only=True)
    return found


def plain(value: Any) -> Any:
    """Lists for tuples, nothing for an empty one."""
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value] or None
    return value


def check_equal(info: GenerationInfo, theirs: Any, *, length: bool) -> None:
    off: dict[str, Any] = {"min_p": 0.0, "remove_invalid_values": False}
    for field in dataclasses.fields(GenerationInfo):
        if field.name == "source" or (field.name == "max_length" and not length):
            continue
        want = getattr(theirs, field.name)
        if field.name == "forced_eos_token_id" and isinstance(want, int):
            want = [want]
        if field.name == "sequence_bias" and want is not None:
            want = [[list(sequence), bias] for sequence, bias in want]
        want = off.get(field.name) if want is None else want
        assert plain(getattr(info, field.name)) == plain(want), field.name


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.fixed_dictionaries({}, optional=VALUES), st.booleans())
def test_every_setting_is_read_as_transformers_reads_it(tmp_path: Path, values: dict[str, Any], of_model: bool) -> None:
    suppressed, forced = set(values.get("suppress_tokens", ())), values.get("forced_eos_token_id")
    if suppressed >= set(forced if isinstance(forced, list) else [forced]) or values.get("forced_bos_token_id") in (
        suppressed
    ):
        del values["suppress_tokens"]  # transformers refuses that, and so do we
    path = write(tmp_path / "c", values | {"_from_model_config": of_model}, top_k=3, text_config={"min_length": 7})
    check_equal(read(path), of_transformers(path), length="max_length" in values)


def test_settings_of_an_old_config(tmp_path: Path) -> None:
    """Without the file, transformers looks into config.json: its outer level first, then the language model's."""
    old = {"repetition_penalty": 1.4, "top_k": 3, "eos_token_id": None, "text_config": {"top_k": 9, "eos_token_id": 4}}
    old["text_config"] |= {"no_repeat_ngram_size": 2, "repetition_penalty": 9.0}  # type: ignore[operator]
    path = write(tmp_path / "old", None, **old)
    info, theirs = read(path), of_transformers(path)
    check_equal(info, theirs, length=False)
    assert (info.repetition_penalty, info.top_k, info.no_repeat_ngram_size) == (1.4, 3, 2)
    assert info.source == "config.json"


@pytest.mark.parametrize("value", [{"eos_token_id": 7}, {"eos_token_id": [7, 9]}, {}, {"eos_token_id": None}, None])
def test_what_ends_an_answer(tmp_path: Path, value: dict[str, Any] | None) -> None:
    """With the file, only what it names: config.json is not asked, as in transformers."""
    from trtprune.checkpoint import Checkpoint

    path = write(tmp_path / "c", value, eos_token_id=3)
    config = json.loads((path / "config.json").read_text())
    want = of_transformers(path).eos_token_id
    found = eos_token_ids(Checkpoint(path=path, config=config, tensors={}, files=(), id="x"))
    assert found == (tuple(want) if isinstance(want, list) else () if want is None else (want,))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"num_beams": 4}, "num_beams 4: not supported"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha 0.6"),
        ({"guidance_scale": 1.5}, "guidance_scale"),
        ({"watermarking_config": {"bias": 2.0}}, "watermarking_config"),
        ({"num_return_sequences": 2, "do_sample": True}, "num_return_sequences"),
        ({"max_time": 1.5}, "max_time"),
        ({"dola_layers": "low"}, "dola_layers"),
        ({"token_healing": True}, "token_healing"),
        ({"constraints": [1]}, "constraints"),
        ({"force_words_ids": [[1]]}, "force_words_ids"),
        ({"repetition_penalty": 0}, "repetition_penalty must"),
        ({"repetition_penalty": "1.3"}, "repetition_penalty is '1.3'"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty must"),
        ({"repetition_penalty": 10**400}, "repetition_penalty is 1000"),
        ({"do_sample": True, "temperature": 0}, "temperature must"),
        ({"do_sample": 1}, "do_sample is 1"),
        ({"bad_words_ids": [[VOCAB]]}, "bad_words_ids must"),
        ({"bad_words_ids": [[]]}, "bad_words_ids"),
        ({"bad_words_ids": [3]}, "bad_words_ids is"),
        ({"suppress_tokens": [3], "forced_eos_token_id": 3}, "suppress_tokens must"),
        ({"suppress_tokens": {"a": 1}}, "suppress_tokens is"),
        ({"sequence_bias": [[[3], float("inf")]]}, "sequence_bias must"),
        ({"sequence_bias": [[[3]]]}, "sequence_bias is"),
        ({"forced_bos_token_id": -1}, "forced_bos_token_id must"),
        ({"exponential_decay_length_penalty": [2]}, "exponential_decay_length_penalty is"),
        ({"stop_strings": [""]}, "stop_strings must"),
        ({"stop_strings": 5}, "stop_strings is"),
        ({"max_new_tokens": 0}, "max_new_tokens must"),
        ({"do_sample": True, "top_k": -1}, "top_k must"),
    ],
)
def test_refused_by_name(tmp_path: Path, values: dict[str, Any], named: str) -> None:
    path = write(tmp_path / "c", values)
    with pytest.raises(CheckpointError) as caught:
        read(path)
    assert caught.value.message.startswith(f"generation_config.json: {named}")
    assert "generation_config='ignore'" in str(caught.value.hint)
    assert "--generation-config ignore" in str(caught.value.flag_hint)
    assert read(path, choice="ignore") == GenerationInfo(source="ignored")


def test_what_greedy_decoding_does_not_look_at(tmp_path: Path) -> None:
    """Values that would be errors where a token is drawn, in a checkpoint that draws none."""
    path = write(tmp_path / "c", {"temperature": 0.0, "top_k": -1, "min_p": 7, "suppress_tokens": [-1, 9999, 3]})
    assert read(path) == GenerationInfo(suppress_tokens=(3,))


# -- answers


def follow(kit: Kit, vlm: Vlm, values: dict[str, Any], folder: Path) -> None:
    """Makes both go by these settings."""
    eos = {"eos_token_id": tiny.EOS, "pad_token_id": tiny.PAD}
    path = write(folder, eos | values)
    kit.model.generation_config = of_transformers(path)
    if "max_length" not in values:
        kit.model.generation_config.max_length = None
    vlm.config = vlm.pipeline.config = dataclasses.replace(vlm.config, generation=read(path))


def expected(kit: Kit, pictures: list[Any], question: str, **arguments: Any) -> list[int]:
    inputs = kit.inputs(pictures, question)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = kit.model.generate(**inputs, **arguments)
    found: list[int] = out[0, inputs["input_ids"].shape[1] :].tolist()
    return found


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.fixed_dictionaries({}, optional={name: VALUES[name] for name in RULES}), st.integers(0, 99), st.booleans())
def test_greedy_answers_are_those_of_transformers(
    kit: Kit, vlm: Vlm, tmp_path: Path, values: dict[str, Any], seed: int, unsaid: bool
) -> None:
    """generate, stream, chat and a batch."""
    forced = values.get("forced_eos_token_id")
    forced = set(forced if isinstance(forced, list) else [forced])
    if set(values.get("suppress_tokens", ())) >= forced:
        del values["suppress_tokens"]
    follow(kit, vlm, values, tmp_path / "c")
    limit = {} if unsaid and {"max_length", "max_new_tokens"} & values.keys() else {"max_new_tokens": 8}
    image, other = picture(seed), picture(seed + 1)
    want = expected(kit, [image], QUESTION, do_sample=False, **limit)
    assert vlm.generate(image, QUESTION, temperature=0, **limit).token_ids == want
    stream = vlm.stream(image, QUESTION, temperature=0, **limit)
    "".join(stream)
    assert stream.result.token_ids == want
    assert vlm.chat(image).ask(QUESTION, temperature=0, **limit).token_ids == want
    rows = [Request(image, QUESTION), Request([other, image], "And here?"), Request(other, "A longer question, no?")]
    found = vlm.generate_batch(rows, temperature=0, **limit)
    assert found[0].token_ids == want
    assert found[1].token_ids == expected(kit, [other, image], "And here?", do_sample=False, **limit)
    assert found[2].token_ids == expected(kit, [other], "A longer question, no?", do_sample=False, **limit)


@pytest.mark.parametrize("name", ["none", "inside"])
@pytest.mark.parametrize(
    "values",
    [
        {"repetition_penalty": 1.5, "no_repeat_ngram_size": 1},
        {"min_length": 55, "begin_suppress_tokens": list(range(6, 60)), "encoder_no_repeat_ngram_size": 1},
        {"forced_eos_token_id": 9, "exponential_decay_length_penalty": [1, 1.5], "encoder_repetition_penalty": 1.5},
    ],
    ids=str,
)
def test_pruned_answers(
    kit: Kit,
    vlm: Vlm,
    inside: Vlm,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    values: dict[str, Any],
    name: str,
) -> None:
    """What is chosen from a pruned model's logits is what transformers chooses from them, after the whole prompt."""
    asked = inside if name == "inside" else vlm
    follow(kit, asked, values, tmp_path / "c")
    seen: list[np.ndarray] = []
    choose = Sampler.choose
    monkeypatch.setattr(Sampler, "choose", lambda self, logits: (seen.append(logits.copy()), choose(self, logits))[1])
    result = asked.generate(picture(3), QUESTION, max_new_tokens=8)
    ids = kit.inputs([picture(3)], QUESTION)["input_ids"]
    config, _ = kit.model._prepare_generation_config(None, do_sample=False, max_new_tokens=8)
    kit.model._prepare_special_tokens(config)
    config.max_length, begin = ids.shape[1] + 8, ids.shape[1]
    steps = kit.model._get_logits_processor(config, begin, ids)
    for logits in seen:
        scores = steps(ids, torch.from_numpy(logits)[None])
        ids = torch.cat([ids, scores.argmax(-1)[None]], dim=1)
    assert result.token_ids == ids[0, begin:].tolist()


def test_a_second_turn(kit: Kit, vlm: Vlm, tmp_path: Path) -> None:
    """What was said counts: the whole conversation is the prompt."""
    follow(kit, vlm, {"no_repeat_ngram_size": 2, "repetition_penalty": 1.2}, tmp_path / "c")
    for repick in (True, False):
        chat = vlm.chat(picture(5))
        first = chat.ask(QUESTION, max_new_tokens=6)
        second = chat.ask("And now?", max_new_tokens=6, repick=repick)
        turns = [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]},
            {"role": "assistant", "content": [{"type": "text", "text": first.text}]},
            {"role": "user", "content": [{"type": "text", "text": "And now?"}]},
        ]
        text = kit.processor.apply_chat_template(turns, add_generation_prompt=True)
        inputs = kit.processor(images=[picture(5)], text=text, return_tensors="pt")
        out = kit.model.generate(**inputs, max_new_tokens=6, do_sample=False)
        assert second.token_ids == out[0, inputs["input_ids"].shape[1] :].tolist()


def test_draws_follow_the_checkpoint(kit: Kit, vlm: Vlm, tmp_path: Path) -> None:
    """Where one token is left to draw from, a draw is known; and where none is said, transformers' own 50 are."""
    follow(kit, vlm, {"do_sample": True, "temperature": 3.0, "top_k": 1}, tmp_path / "c")
    want = expected(kit, [picture(2)], QUESTION, max_new_tokens=6)
    assert vlm.generate(picture(2), QUESTION, max_new_tokens=6).token_ids == want
    assert vlm.generate(picture(2), QUESTION, max_new_tokens=6, temperature=0).token_ids == want
    different = {tuple(vlm.generate(picture(2), QUESTION, max_new_tokens=6, top_k=0, seed=s).token_ids) for s in (1, 2)}
    assert len(different) == 2
    follow(kit, vlm, {"do_sample": False, "temperature": 3.0, "top_k": 1}, tmp_path / "c")
    assert vlm.generate(picture(2), QUESTION, max_new_tokens=6).token_ids == want
    assert vlm.generate(picture(2), QUESTION, max_new_tokens=6, temperature=5.0, seed=1).token_ids == want


def test_stop_strings(kit: Kit, vlm: Vlm, tmp_path: Path) -> None:
    follow(kit, vlm, {}, tmp_path / "c")
    whole = vlm.generate(picture(2), QUESTION, max_new_tokens=12, ignore_eos=True)
    stop = whole.text[4:6]
    follow(kit, vlm, {"stop_strings": [stop]}, tmp_path / "c")
    inputs = kit.inputs([picture(2)], QUESTION)
    out = kit.model.generate(**inputs, max_new_tokens=12, do_sample=False, tokenizer=kit.processor.tokenizer)
    found = vlm.generate(picture(2), QUESTION, max_new_tokens=12)
    assert found.token_ids == out[0, inputs["input_ids"].shape[1] :].tolist()
    assert (found.finish_reason, stop in found.text) == ("stop", False)
    assert vlm.generate(picture(2), QUESTION, max_new_tokens=12, stop=[], ignore_eos=True).token_ids == whole.token_ids
    assert vlm.generate(picture(2), QUESTION, max_new_tokens=12, ignore_eos=True).token_ids == whole.token_ids


def test_lengths(kit: Kit, vlm: Vlm, tmp_path: Path) -> None:
    """A caller's length goes first; what the checkpoint says is cut to what there is room for."""
    follow(kit, vlm, {"max_new_tokens": 10**6, "suppress_tokens": [tiny.EOS]}, tmp_path / "c")
    result = vlm.generate(picture(2), QUESTION)
    assert len(result.token_ids) + result.prompt_tokens - 1 == vlm.config.kv.capacity
    assert len(vlm.generate(picture(2), QUESTION, max_new_tokens=3).token_ids) == 3
    follow(kit, vlm, {"suppress_tokens": [tiny.EOS]}, tmp_path / "c")
    assert len(vlm.generate(picture(2), QUESTION).token_ids) == 64
    follow(kit, vlm, {"max_length": 20}, tmp_path / "c")
    with pytest.raises(InputError, match="allows 20 with the answer"):
        vlm.generate(picture(2), QUESTION)
    assert vlm.generate(picture(2), QUESTION, max_new_tokens=1).token_ids


def test_a_build_keeps_them(kit: Kit, tmp_path: Path) -> None:
    """From the file through the build to the answer; a build of the build; and the way round them."""
    file = kit.path / "generation_config.json"
    before = file.read_text()
    try:
        values = {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "bad_words_ids": [[40], [41, 42]]}
        file.write_text(json.dumps(json.loads(before) | values))
        model = tiny.load(kit.path)
        inputs = kit.inputs([picture(4)], QUESTION)
        out = model.generate(**inputs, max_new_tokens=10, do_sample=False)
        want = out[0, inputs["input_ids"].shape[1] :].tolist()
        lines: list[str] = []
        made = trtprune.build(
            kit.path, tmp_path / "a", method="none", report=lambda *line: lines.append(" ".join(line))
        )
        assert any("repetition_penalty 1.5" in line for line in lines)
        assert made.generation.bad_words_ids == ((40,), (41, 42))
        assert trtprune.load(tmp_path / "a").generate(picture(4), QUESTION, max_new_tokens=10).token_ids == want
        again = trtprune.build(tmp_path / "a", tmp_path / "b", method="fastv")
        assert again.generation == made.generation == open_engine_dir(tmp_path / "b").generation
        other = trtprune.build(kit.path, tmp_path / "c", method="none", generation_config="ignore")
        assert other.generation == GenerationInfo(source="ignored")
        assert other.build_digest != made.build_digest
        assert trtprune.load(tmp_path / "c").generate(picture(4), QUESTION, max_new_tokens=10).token_ids != want
        file.write_text(json.dumps(json.loads(before) | {"num_beams": 3}))
        with pytest.raises(CheckpointError, match="num_beams 3"):
            trtprune.build(kit.path, tmp_path / "d", method="none")
        assert not (tmp_path / "d").exists()
        trtprune.build(kit.path, tmp_path / "d", method="none", generation_config="ignore")
    finally:
        file.write_text(before)
    with pytest.raises(BuildError, match="generation_config='greedy'"):
        trtprune.build("nothing/at-all", tmp_path / "e", generation_config="greedy")


def test_an_edited_directory(kit: Kit, vlm: Vlm, tmp_path: Path) -> None:
    """What the build would have refused is refused at load, too."""
    root = tmp_path / "out"
    trtprune.build(kit.path, root, method="none")
    config = json.loads((root / "config.json").read_text())
    for name, value in {
        "repetition_penalty": -1.0,
        "suppress_tokens": [VOCAB],
        "source": "elsewhere",
        "temperature": 0.0,
        "no_repeat_ngram_size": -3,
        "max_new_tokens": 0,
    }.items():
        edited = {**config, "generation": {**config["generation"], name: value}}
        (root / "config.json").write_text(json.dumps(edited))
        with pytest.raises(EngineDirError, match=f"config.generation.{name}"):
            open_engine_dir(root)
    assert np.isfinite(vlm.config.generation.temperature)


def test_the_checkpoint_is_read_once_more_by_transformers(kit: Kit) -> None:
    """The kit's own checkpoint: what save_pretrained writes asks for nothing but its end."""
    checkpoint = open_checkpoint(kit.path)
    assert read_generation(checkpoint, VOCAB) == GenerationInfo()
    assert eos_token_ids(checkpoint) == (tiny.EOS,)
