"""Conversations: turns that keep the first selection, and turns that select anew."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.kit import tiny
from tests.kit.runtime_kit import Kit, picture, record, same
from trtprune.errors import BudgetError, InputError
from trtprune.runtime import Vlm
from trtprune.runtime.layout import Selection
from trtprune.text.template import Turn

QUESTION = "What is on the table?"


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit.make(tmp_path_factory.mktemp("vlm") / "clip", tiny.Tiny(seed=21))


@pytest.fixture(scope="module")
def vlm(kit: Kit) -> Vlm:
    return kit.load("adafv", method="adafv", keep=6, keep_range=(2, 12))


@pytest.fixture(scope="module")
def drawn(kit: Kit) -> Vlm:
    return kit.load("random", method="random", keep=6, positions="original")


def from_scratch(vlm: Vlm, chat: Any, question: str, kept: list[list[int]], images: list[Any]) -> np.ndarray:
    """Logits after the whole conversation, computed without any cache, with these kept tokens."""
    turns = list(chat.turns)
    first = next(i for i, t in enumerate(turns) if t.role == "user") if turns else None
    assert first is None or turns[first].images == len(images)
    prompt = vlm.encoder.encode([*turns, Turn("user", question, 0 if turns else len(images))])
    features = vlm.features(images)
    embeds = vlm.chain.embed(prompt.ids[None])[0]
    rows = tuple(f.image[k] for f, k in zip(features, kept, strict=True))
    grids = tuple(f.plan.grid for f in features)
    selection = Selection(tuple(map(np.array, kept)), rows, grids, (0,) * len(features))
    layout = vlm.pipeline.lay_out(prompt, embeds, selection)
    cache = vlm.chain.session("decoder").new_cache(1, 512)
    return vlm.pipeline.decoder.prefill([layout], cache).logits[0]


@pytest.mark.parametrize("which", ["adafv", "random"])
@pytest.mark.parametrize("count", [1, 2])
def test_turns_with_the_first_selection(kit: Kit, which: str, count: int) -> None:
    """What the cache gives equals a prefill of the whole conversation with the same tokens."""
    build = {} if which == "adafv" else {"positions": "original"}
    model = kit.load(f"turns-{which}", method=which, keep=5, **build)
    recorder = record(model)
    images = [picture(i) for i in range(count)]
    chat = model.chat(images)
    kept, before = None, 0
    for number, question in enumerate(["What is it?", "Why is it so?", "And now?", "Really?"]):
        expected = from_scratch(model, chat, question, kept, images) if kept else None
        recorder.logits.clear()
        calls = []
        run = recorder.session.run
        recorder.session.run = lambda inputs, cache=None: calls.append(inputs) or run(inputs, cache)  # noqa: B023
        result = chat.ask(question, repick=False, max_new_tokens=9 + 4 * number, stop="~")
        del recorder.session.run
        if expected is not None:
            np.testing.assert_allclose(recorder.logits[0][0], expected, rtol=0, atol=1e-4)
            assert result.kept_indices == kept
            # The last prompt was not computed again; the answer may be, for its text can have other tokens.
            assert calls[0]["write_index"][0] >= before - 2
            assert calls[0]["inputs_embeds"].shape[1] == result.prompt_tokens - calls[0]["write_index"][0]
        kept, before = result.kept_indices, result.prompt_tokens
    assert [turn.role for turn in chat.turns] == ["user", "assistant"] * 4


def test_turns_that_select_anew_compute_the_history_anew(kit: Kit) -> None:
    model = kit.load("turns-random", method="random", keep=5, positions="original")
    recorder = record(model)
    chat = model.chat(picture(1))
    first = chat.ask("What?", seed=1, max_new_tokens=6, stop="~")
    turns = chat.turns
    recorder.logits.clear()
    second = chat.ask("Why?", seed=2, max_new_tokens=6)
    assert first.kept_indices != second.kept_indices
    twin = model.chat(picture(1))
    twin._turns = list(turns)
    expected = from_scratch(model, twin, "Why?", second.kept_indices, [picture(1)])
    np.testing.assert_allclose(recorder.logits[0][0], expected, rtol=0, atol=1e-4)


def test_turns_that_select_anew(vlm: Vlm) -> None:
    chat = vlm.chat(picture(1))
    first = chat.ask("What is it?", max_new_tokens=5)
    assert same(first, vlm.generate(picture(1), "What is it?", max_new_tokens=5))
    second = chat.ask("Where is the red one?", max_new_tokens=5, keep=9)
    prompt = vlm.encoder.encode(
        [Turn("user", "What is it?", 1), Turn("assistant", first.text), Turn("user", "Where is the red one?")]
    )
    view = vlm.look(picture(1), "Where is the red one?")
    assert second.kept_tokens == 9
    assert second.prompt_tokens == len(prompt.ids) - 1 + 9
    assert second.timings["vision"] == 0
    assert vlm.pipeline.pruner is not None
    text = vlm.chain.embed(prompt.ids[None])[0][prompt.span("question")]
    expected = vlm.pipeline.pruner.prune(view.features, text, 9, 0)[0]
    assert second.kept_indices == [expected.tolist()]
    # Going back to a kept selection continues with the last one.
    third = chat.ask("Sure?", repick=False, max_new_tokens=3)
    assert third.kept_indices == second.kept_indices
    with pytest.raises(InputError, match="keep=3: "):
        chat.ask("Sure?", repick=False, keep=3)


def test_a_failed_question_changes_nothing(vlm: Vlm) -> None:
    chat = vlm.chat(picture(1))
    chat.ask("What is it?", max_new_tokens=4)
    twin = vlm.chat(picture(1))
    twin.ask("What is it?", max_new_tokens=4)
    for bad in ({"keep": 99}, {"max_new_tokens": 5000}, {"max_new_tokens": 0}, {"stop": ""}, {"top_p": 7}):
        with pytest.raises((BudgetError, InputError)):
            chat.ask("Why?", **bad)
    with pytest.raises(InputError):
        chat.ask("Why <image>?")
    assert same(chat.ask("Why?", max_new_tokens=6), twin.ask("Why?", max_new_tokens=6))


def test_two_conversations_do_not_mix(vlm: Vlm) -> None:
    def talk(*order: int) -> list[Any]:
        chats = [vlm.chat(picture(i)) for i in range(2)]
        for i in order:
            last[i] = chats[i].ask(f"Question {i}?", repick=False, max_new_tokens=6)
        return [last[0], last[1]]

    last: dict[int, Any] = {}
    apart, mixed = talk(0, 0, 1, 1), talk(0, 1, 0, 1)
    assert all(same(a, b) for a, b in zip(apart, mixed, strict=True))


def test_a_later_turn_selects_by_the_text_of_all_turns(kit: Kit, vlm: Vlm, monkeypatch: pytest.MonkeyPatch) -> None:
    """``after_image``, as the authors' code: the prompt behind the image, with what was asked and answered before."""
    seen: list[np.ndarray] = []
    assert vlm.pipeline.pruner is not None
    prune = vlm.pipeline.pruner.prune

    def listen(features: Any, text: Any, *rest: Any) -> Any:
        seen.append(np.array(text))
        return prune(features, text, *rest)

    monkeypatch.setattr(vlm.pipeline.pruner, "prune", listen)
    chat = vlm.chat(picture(3))
    chat.ask("What is it?", max_new_tokens=3)
    chat.ask("And where?", max_new_tokens=3)
    whole = [
        {"role": turn.role, "content": [*([{"type": "image"}] * turn.images), {"type": "text", "text": turn.text}]}
        for turn in list(chat.turns)[:3]
    ]
    text = kit.processor.apply_chat_template(whole, add_generation_prompt=True)
    ids = kit.processor(images=[picture(3)], text=text, return_tensors="pt")["input_ids"][0].numpy()
    behind = ids[np.flatnonzero(ids == tiny.IMAGE_TOKEN_ID)[-1] + 1 :]
    assert len(seen) == 2
    assert len(seen[1]) > len(seen[0])
    table = kit.model.get_input_embeddings().weight.detach().numpy()
    np.testing.assert_array_equal(seen[1], table[behind])
