"""Several spans an image, with text around and between them: ids, layout, positions, selection, answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from tests.kit import in_llm_torch, tiny
from tests.kit.in_llm_generate import Decoder
from tests.kit.runtime_kit import Kit, Recorder, picture, record
from tests.runtime.test_prompt import CHATML, byte_level, metaspace
from trtprune.errors import InputError
from trtprune.runtime import Request, Vlm
from trtprune.runtime.answer import unpruned_ids
from trtprune.runtime.layout import Selection, lay_out
from trtprune.runtime.positions import Compact, Original
from trtprune.runtime.prompt import Prompt, PromptEncoder
from trtprune.text.template import Turn

SPECIALS = ["<s>", "</s>", "<image>", "<fake>", "<global>", "<row_1_col_1>", "<row_1_col_2>", "<row_2_col_1>"]
QUESTION = "What is on the table?"


def markers_of(rows: int, columns: int) -> list[str]:
    """The text around and between spans, out of transformers' own."""
    return get_image_prompt_string(rows, columns, 1, "<fake>", "<image>", "<global>").split("<image>")


@pytest.fixture(scope="module", params=["byte-level", "metaspace"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    made = {"byte-level": byte_level, "metaspace": metaspace}[request.param]()
    made.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIALS])
    return made


@pytest.fixture(scope="module")
def encoder(tokenizer: Tokenizer) -> PromptEncoder:
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    files = {"tokenizer.json": tokenizer.to_str(), "tokenizer_config.json": json.dumps(names)}
    return PromptEncoder(files | {"chat_template.jinja": CHATML}, "<image>", tokenizer.token_to_id("<image>"))


GRID = st.just((0, 0)) | st.tuples(st.integers(1, 3), st.integers(1, 3))
GRIDS = st.lists(GRID, min_size=1, max_size=3)
WORDS = st.text(st.sampled_from("a b\n<>_rowimgé🙂1"), max_size=12)


@settings(max_examples=60, deadline=None)
@given(grids=GRIDS, tokens=st.integers(1, 3), words=WORDS, earlier=WORDS)
def test_ids_are_those_of_the_whole_string(
    tokenizer: Tokenizer, encoder: PromptEncoder, grids: list[tuple[int, int]], tokens: int, words: str, earlier: str
) -> None:
    """transformers' tokenizer on the whole expanded string, with each run of placeholders written once."""
    if "<image>" in words + earlier:
        return
    hugging = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    turns = [Turn("user", earlier, len(grids)), Turn("assistant", "A"), Turn("user", words)]
    for some in (turns[:1], turns):
        text = encoder._model.ask("encode", turns=[[t.role, t.text, t.images] for t in some], raw=False)
        assert text["markers"] == []
        content = [
            {"role": t.role, "content": [*({"type": "image"},) * t.images, {"type": "text", "text": t.text}]}
            for t in some
        ]
        rendered = hugging.apply_chat_template(
            content, chat_template=CHATML, tokenize=False, add_generation_prompt=True
        )
        whole, *rest = rendered.split("<image>")
        for grid, piece in zip(grids, rest, strict=True):
            whole += get_image_prompt_string(*grid, tokens, "<fake>", "<image>", "<global>") + piece
        ids, place = hugging(whole)["input_ids"], tokenizer.token_to_id("<image>")
        first = [i == 0 or number != place or ids[i - 1] != place for i, number in enumerate(ids)]
        prompt = encoder.encode(some, markers=[markers_of(*grid) for grid in grids])
        assert prompt.ids.tolist() == [number for number, kept in zip(ids, first, strict=True) if kept]
        assert len(prompt.image_positions) == sum(len(markers_of(*grid)) - 1 for grid in grids)
        # Neither placeholders nor markers are words of the user's; nothing else is left out.
        plain = encoder.encode(some)
        for name in ("question", "after_image", "all"):
            assert prompt.ids[prompt.span(name)].tolist() == plain.ids[plain.span(name)].tolist(), name
        assert set(prompt.markers).isdisjoint({*prompt.image_positions, *prompt.question})
        assert len(prompt.ids) - len(prompt.markers) - len(prompt.image_positions) == len(plain.ids) - len(grids)


def test_a_raw_prompt_and_wrong_numbers(encoder: PromptEncoder) -> None:
    texts = [markers_of(1, 2), markers_of(0, 0)]
    raw = encoder.encode([Turn("user", "a<image>b<image>c", 2)], raw=True, markers=texts)
    assert raw.ids[raw.span("question")].tolist() == raw.ids[raw.span("all")].tolist()
    assert encoder.decode(raw.ids[raw.span("all")].tolist()) == "abc"
    for text, images in (("a<image>b", 2), ("a", 1), ("<image><image>", 1)):
        with pytest.raises(InputError, match=f"the prompt has {text.count('<image>')} <image> for {images} image"):
            encoder.encode([Turn("user", text, images)], raw=True, markers=texts[:images])


def grid_of(count: int) -> np.ndarray:
    return np.stack([np.zeros(count), np.zeros(count), np.arange(count)], axis=1).astype(np.int32)


@pytest.mark.parametrize("rule", [Compact, Original])
def test_the_layout_numbered_by_hand(rule: Any) -> None:
    """t [i i i] m [i i] m [i i] t t [i i]: an image of three spans, the middle one empty, and one of a single span."""
    ids = np.array([1, 9, 2, 9, 2, 9, 3, 4, 9], np.int64)
    prompt = Prompt(ids, (1, 3, 5, 8), (6, 7), markers=(2, 4))
    kept = (np.array([0, 2, 6]), np.array([1]))
    rows = tuple(np.full((len(k), 2), 7.0, np.float32) for k in kept)
    selection = Selection(kept, rows, (grid_of(7), grid_of(2)), (3, 1), ((3, 2, 2), (2,)))
    layout = lay_out(prompt, np.zeros((9, 2), np.float32), selection, rule(1))
    assert layout.ids.tolist() == [1, 9, 9, 2, 2, 9, 3, 4, 9]
    numbers = {Compact: [0, 1, 2, 3, 4, 5, 6, 7, 8], Original: [0, 1, 3, 4, 7, 9, 10, 11, 13]}[rule]
    assert layout.positions.tolist() == [numbers]
    assert layout.next_position == {Compact: 9, Original: 14}[rule]
    assert layout.places == (((1, 3), (4, 4), (5, 6)), ((8, 9),))
    assert layout.markers.tolist() == [3, 4]
    assert layout.visual_tokens == (7, 2)
    assert np.concatenate(layout.embeds)[:, 0].tolist() == [0, 7, 7, 0, 0, 7, 0, 0, 7]


# -- a model whose images are cut into spans


SPANS = (5, 0, 20, 11)
MARKERS = ("1 ", "2\n", "3 4", "\n", " 5")


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit.make(tmp_path_factory.mktemp("spans") / "clip", tiny.Tiny(seed=5, layers=6, image_size=84))


def cut(vlm: Vlm, images: Sequence[Any], several: bool = True) -> list[Any]:
    """Features of images in spans; a further image has one span without a marker in front."""
    found = []
    for number, seen in enumerate(vlm.features(list(images))):
        spans, markers = (SPANS, MARKERS) if several and number == 0 else ((36,), ("", "6"))
        found.append(replace(seen, plan=replace(seen.plan, spans=spans, markers=markers)))
    return found


def whole_prompt(kit: Kit, vlm: Vlm, features: Sequence[Any], question: str) -> tuple[torch.Tensor, np.ndarray]:
    """Embeddings [1, S, D] of the unpruned prompt, and which of its rows are visual, by image."""
    text = vlm.encoder.encode([Turn("user", question, len(features))])
    tokenizer = kit.processor.tokenizer
    images, start = [], 0
    rendered = kit.processor.apply_chat_template(
        [{"role": "user", "content": [*({"type": "image"},) * len(features), {"type": "text", "text": question}]}],
        add_generation_prompt=True,
    ).split("<image>")
    assert len(text.image_positions) == len(features)
    whole = rendered[0]
    for seen, piece in zip(features, rendered[1:], strict=True):
        runs = ["<image>" * length for length in seen.plan.spans]
        whole += seen.plan.markers[0] + "".join(a + b for a, b in zip(runs, seen.plan.markers[1:], strict=True)) + piece
    ids = tokenizer(whole, return_tensors="pt")["input_ids"]
    visual = np.flatnonzero(ids[0].numpy() == tiny.IMAGE_TOKEN_ID)
    with torch.no_grad():
        rows = kit.model.get_input_embeddings()(ids)
    rows[0, visual] = torch.from_numpy(np.concatenate([np.asarray(seen.image) for seen in features]))
    for seen in features:
        images.append(visual[start : start + seen.visual_tokens])
        start += seen.visual_tokens
    return rows, np.array(images)


@pytest.mark.parametrize("positions", ["compact", "original"])
def test_answers_are_those_of_transformers(kit: Kit, positions: str) -> None:
    vlm = kit.load(positions, method="random", keep=7, positions=positions)
    recorder = record(vlm)
    for count, keep in ((1, 7), (2, 7), (1, 1), (1, 36)):
        features = cut(vlm, [picture(i) for i in range(count)])
        rows, images = whole_prompt(kit, vlm, features, QUESTION)
        recorder.logits.clear()
        result = vlm.generate(features, QUESTION, keep=keep, max_new_tokens=64, seed=3)
        keeping = np.ones(rows.shape[1], bool)
        for places, kept in zip(images, result.kept_indices, strict=True):
            assert len(kept) == min(keep, 36)
            keeping[np.delete(places, kept)] = False
        left = np.flatnonzero(keeping)
        extra = {"position_ids": torch.from_numpy(left)[None]} if positions == "original" else {}
        mask = torch.ones((1, len(left)), dtype=torch.long)
        expected, logits = kit.generate(64, inputs_embeds=rows[:, left], attention_mask=mask, **extra)
        assert (result.prompt_tokens, result.token_ids) == (len(left), expected)
        np.testing.assert_allclose(np.concatenate(recorder.logits), logits, rtol=0, atol=1e-4)


def test_batches_streams_and_turns(kit: Kit) -> None:
    vlm = kit.load("compact", method="random", keep=7, positions="compact")
    one, two = cut(vlm, [picture(1)]), cut(vlm, [picture(2), picture(3)])
    requests = [Request(one, QUESTION), Request(two, "Why?"), Request(cut(vlm, [picture(4)], several=False), "And?")]
    batch = vlm.generate_batch(requests, max_new_tokens=8)
    for request, result in zip(requests, batch, strict=True):
        assert result.token_ids == vlm.generate(request.images, request.prompt, max_new_tokens=8).token_ids
    assert "".join(vlm.stream(one, QUESTION, max_new_tokens=8)) == batch[0].text
    chat = vlm.chat(two)
    first = chat.ask("Why?", max_new_tokens=8)
    assert first.token_ids == batch[1].token_ids
    for repick in (False, True):
        twin, asked = vlm.chat(two), chat.turns
        twin._turns = list(asked)
        again = chat.ask("And now?", repick=repick, max_new_tokens=8)
        fresh = twin.ask("And now?", max_new_tokens=8)
        assert (again.token_ids, again.kept_indices) == (fresh.token_ids, fresh.kept_indices)


def test_markers_are_no_question(kit: Kit) -> None:
    """A method that reads the prompt selects as if they were not there."""
    vlm = kit.load("zspa", method="zspaprune", keep=9)
    with_markers = vlm.generate(cut(vlm, [picture(1)]), QUESTION, max_new_tokens=1)
    assert with_markers.kept_indices == vlm.generate(picture(1), QUESTION, max_new_tokens=1).kept_indices


def test_the_penalty_counts_the_prompt_as_transformers_has_it(kit: Kit) -> None:
    vlm = kit.load("compact", method="random", keep=7, positions="compact")
    features = cut(vlm, [picture(1), picture(2)])
    prompt = vlm.pipeline.encode([Turn("user", QUESTION, 2)], features)
    embeds = vlm.chain.embed(prompt.ids[None])[0]
    everything = Selection(
        (np.arange(3), np.arange(3)),
        tuple(seen.image[:3] for seen in features),
        tuple(seen.plan.grid for seen in features),
        (3, 3),
        tuple(seen.plan.spans for seen in features),
    )
    ids = unpruned_ids(prompt, vlm.pipeline.lay_out(prompt, embeds, everything))
    rows, images = whole_prompt(kit, vlm, features, QUESTION)
    assert len(ids) == rows.shape[1]
    assert np.flatnonzero(ids == tiny.IMAGE_TOKEN_ID).tolist() == images.ravel().tolist()


@pytest.mark.parametrize("count", [1, 2])
def test_pruning_between_layers(kit: Kit, count: int) -> None:
    """FastV: behind its layer the last token's attention to all rows of the image decides, wherever they stand."""
    vlm = kit.load("fastv", method="fastv", keep=15)
    features = cut(vlm, [picture(i) for i in range(count)])
    rows, images = whole_prompt(kit, vlm, features, QUESTION)
    schedule = vlm.config.pruning.schedule
    assert schedule is not None
    point = schedule.points[0]
    decoder, length = Decoder(kit.model), rows.shape[1]
    x, positions = rows[0], torch.arange(length)
    for i in range(point + 1):
        x = decoder.layer(i, x, positions)
    keeping = torch.ones(length, dtype=torch.bool)
    wanted = []
    for places in images:
        score = decoder.attention[point].mean(0)[-1, places]
        best = score.topk(schedule.kept(15, 36)[0]).indices.sort().values
        wanted.append(best.tolist())
        gone = np.delete(places, best.numpy())
        keeping[gone] = False
    x, positions = x[keeping], positions[keeping]
    for i in range(point + 1, len(decoder.text.layers)):
        x = decoder.layer(i, x, positions)
    last = vlm.config.segments[-1].part
    session = vlm.chain.session(last.role, last.segment)
    vlm.chain._sessions[last] = recorder = Recorder(session)
    result = vlm.generate(features, QUESTION, max_new_tokens=1)
    assert result.kept_indices == wanted
    np.testing.assert_allclose(recorder.logits[0][0], decoder.logits(x).numpy(), rtol=0, atol=2e-4)
    vlm.chain._sessions[last] = session


def sparse(
    vlm: Vlm, model: Any, x: torch.Tensor, images: np.ndarray, text: np.ndarray
) -> tuple[torch.Tensor, Any, int]:
    """SparseVLM 1.0 as published, with an image's rows wherever they stand; what is merged comes behind its last row.

    Args:
        vlm: The build.
        model: The checkpoint in transformers.
        x: [S, D], the whole prompt.
        images: Rows of each image.
        text: Rows of the prompt's own text, without markers.

    Returns:
        States [S', D] behind the last layer, each image's kept tokens, and the tokens that are merged ones.
    """
    schedule, decoder = vlm.config.pruning.schedule, Decoder(model)
    assert schedule is not None
    raters = [text[text > rows[-1]][in_llm_torch.raters(x[rows], x[text[text > rows[-1]]])] for rows in images]
    source, owner = torch.arange(len(x)), torch.full((len(x),), -1)
    for number, rows in enumerate(images):
        owner[rows] = number
    keeps = schedule.kept(vlm.config.pruning.keep, images.shape[1])
    for i in range(len(decoder.text.layers)):
        x = decoder.layer(i, x, torch.arange(len(x)))
        if i not in schedule.points:
            continue
        keep, attention = keeps[schedule.points.index(i)], decoder.attention[i].mean(0)
        staying = torch.ones(len(x), dtype=torch.bool)
        behind: dict[int, torch.Tensor] = {}
        for number in range(len(images)):
            rows = torch.where(owner == number)[0]
            rater = torch.where(torch.isin(source, torch.from_numpy(raters[number])) & (owner < 0))[0]
            score = attention[rater][:, rows].mean(0)
            gone = torch.ones(len(rows), dtype=torch.bool)
            gone[score.topk(keep).indices] = False
            staying[rows[gone]] = False
            merged, vectors = schedule.merged_counts(int(gone.sum()))
            left = torch.where(gone)[0]
            best = left[score[left].topk(merged).indices]
            behind[int(rows[-1])] = in_llm_torch.merge(x[rows[best]], vectors)
        parts, sources, owners = [], [], []
        for row in range(len(x)):
            if staying[row]:
                parts.append(x[row : row + 1])
                sources.append(source[row : row + 1])
                owners.append(owner[row : row + 1])
            if row in behind:
                parts.append(behind[row])
                sources.append(torch.full((len(behind[row]),), -2))
                owners.append(owner[row].repeat(len(behind[row])))
        x, source, owner = torch.cat(parts), torch.cat(sources), torch.cat(owners)
    kept = [
        [int(np.flatnonzero(rows == row)[0]) for row in source[owner == n] if row >= 0] for n, rows in enumerate(images)
    ]
    return x, kept, int((source == -2).sum())


@pytest.mark.parametrize("count", [1, 2])
def test_sparsevlm_over_spans(kit: Kit, count: int) -> None:
    """Raters are words of the prompt and no markers; merged tokens stand behind the image's last row."""
    vlm = kit.load("sparse-spans", method="sparsevlm", options={"schedule": "0:20,2:9,4:4"})
    features = cut(vlm, [picture(5 + i) for i in range(count)])
    rows, images = whole_prompt(kit, vlm, features, QUESTION)
    prompt = vlm.pipeline.encode([Turn("user", QUESTION, count)], features)
    lengths = np.ones(len(prompt.ids), int)
    lengths[list(prompt.image_positions)] = [length for seen in features for length in seen.plan.spans]
    starts = np.cumsum([0, *lengths])
    text = np.array([starts[i] for i in prompt.span("all")])
    states, kept, merged = sparse(vlm, kit.model, rows[0], images, text)
    last = vlm.config.segments[-1].part
    session = vlm.chain.session(last.role, last.segment)
    vlm.chain._sessions[last] = recorder = Recorder(session)
    result = vlm.generate(features, QUESTION, max_new_tokens=1)
    vlm.chain._sessions[last] = session
    assert result.kept_indices == kept
    assert sum(counts[-1] for counts in result.segment_tokens) == sum(map(len, kept)) + merged
    np.testing.assert_allclose(recorder.logits[0][0], Decoder(kit.model).logits(states).numpy(), rtol=0, atol=2e-4)


@pytest.mark.parametrize("options", [{"schedule": "0:20,2:9"}, {"ratio": "rank", "scale": 1.7, "bias": 2}])
def test_merging_between_layers_runs_over_spans(kit: Kit, options: dict[str, Any]) -> None:
    """SparseVLM without markers in the image: several spans that touch are one image."""
    vlm = kit.load(f"sparse-{len(options)}", method="sparsevlm", options=options)
    plain = vlm.features([picture(1)])
    parts = [replace(seen, plan=replace(seen.plan, spans=SPANS, markers=("",) * 5)) for seen in plain]
    one = vlm.generate(plain, QUESTION, max_new_tokens=12, ignore_eos=True)
    several = vlm.generate(parts, QUESTION, max_new_tokens=12, ignore_eos=True)
    assert (one.token_ids, one.kept_indices, one.segment_tokens) == (
        several.token_ids,
        several.kept_indices,
        several.segment_tokens,
    )
    with_markers = vlm.generate(cut(vlm, [picture(1), picture(2)]), QUESTION, max_new_tokens=12, ignore_eos=True)
    assert all(len(kept) for kept in with_markers.kept_indices)


def test_an_evaluation_counts_the_markers(kit: Kit) -> None:
    """Markers take room in the cache; their tokens are those of the whole prompt."""
    vlm = kit.load("compact", method="random", keep=7, positions="compact")
    features = cut(vlm, [picture(1)])
    prompt = vlm.pipeline.encode([Turn("user", QUESTION, 1)], features)
    assert len(prompt.markers) == vlm.encoder.marker_tokens(features[0].plan.markers) > 5
    assert vlm.encoder.marker_tokens(("", "")) == 0
