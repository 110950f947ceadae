"""Positions of three axes from picture to answer: a LLaVA with the rotary embedding of Qwen2.5-VL or Qwen3-VL.

No such checkpoint exists; it has what the runtime must handle, a grid of rows and columns and three numbers a position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLTextConfig, Qwen3VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRotaryEmbedding
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding

import trtprune
from tests.kit import tiny, trt_kit
from tests.kit.in_llm_generate import Pruned, generate
from tests.kit.runtime_kit import Kit, Recorder, picture
from trtprune.compiler.engine_options import EngineOptions
from trtprune.components.rope import Rope, RotaryAxes
from trtprune.engine_dir import PositionsInfo
from trtprune.errors import InputError
from trtprune.eval.answering import Answerer
from trtprune.pruning import InLlmMethod, get
from trtprune.runtime import Request, Vlm
from trtprune.runtime.conversation import Conversation
from trtprune.text.template import Turn

ROWS = COLUMNS = 5
AXES = {"contiguous": RotaryAxes((2, 3, 3)), "interleaved": RotaryAxes((3, 3, 2), interleaved=True)}
MODEL = tiny.Tiny(seed=71, decoder="qwen2", layers=5, image_size=14 * ROWS)
TOKENS = 8


@pytest.fixture(scope="module", params=AXES)
def kit(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kit]:
    axes = AXES[request.param]
    made = Kit.make(tmp_path_factory.mktemp("axes") / request.param, MODEL)
    config, module = (
        (Qwen3VLTextConfig, Qwen3VLTextRotaryEmbedding)
        if axes.interleaved
        else (Qwen2_5_VLTextConfig, Qwen2_5_VLRotaryEmbedding)
    )
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(axes.sections)}
    text = {"hidden_size": MODEL.hidden, "num_attention_heads": MODEL.heads, "head_dim": MODEL.hidden // MODEL.heads}
    made.model.model.language_model.rotary_emb = module(config(**text, rope_parameters=rope))
    read = Rope.from_config
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rope, "from_config", lambda text, dim, longest, split=None: read(text, dim, longest, axes))
        yield made


def record(vlm: Vlm) -> Recorder:
    last = vlm.config.by_role("decoder")[-1].part
    recorder = Recorder(vlm.chain.session(last.role, last.segment))
    vlm.chain._sessions[last] = recorder
    return recorder


def rows_of(kit: Kit, ids: np.ndarray, images: Sequence[Any]) -> tuple[torch.Tensor, np.ndarray, list[tuple[int, int]]]:
    """Embeddings [L, D] of a prompt with its whole images, for each row its image and place in it [L, 4] (image -1 for
    text), and the images' first rows and those behind their last."""
    with torch.no_grad():
        found = kit.model.get_image_features(kit.inputs(images, "What?")["pixel_values"]).pooler_output
        table = kit.model.get_input_embeddings().weight
        features = list(found)
        rows, places, spans = [], [], []
        for token in ids:
            if token != tiny.IMAGE_TOKEN_ID:
                rows.append(table[int(token)][None])
                places.append([-1, 0, 0, 0])
                continue
            image = features[len(spans)].reshape(ROWS * COLUMNS, -1)
            spans.append((len(places), len(places) + len(image)))
            rows.append(image)
            places += [[len(spans) - 1, 0, i // COLUMNS, i % COLUMNS] for i in range(len(image))]
    return torch.cat(rows), np.array(places), spans


def numbered(places: np.ndarray, rows: Sequence[int], rule: str) -> tuple[np.ndarray, int]:
    """Positions [3, n] of ``rows`` (-1: a merged one), and the next one: a walk over the prompt, row by row."""
    found, p, inside, start, top = [], 0, -1, 0, -1
    walk = list(rows) if rule == "compact" else range(len(places))
    kept = set(rows)
    for row in walk:
        image, *place = places[row].tolist() if row >= 0 else [-1]
        if image != inside:
            p = top + 1 if inside >= 0 else p
            inside, start, top = image, p, p - 1
        if image < 0:
            found.append([p] * 3)
            p += 1
            continue
        mine = [start + number for number in place]
        top = max(top, *mine)
        if row in kept:
            found.append(mine)
    return np.array(found).T, top + 1 if inside >= 0 else p


def greedy(kit: Kit, embeds: torch.Tensor, positions: np.ndarray, following: int) -> tuple[list[int], np.ndarray]:
    """Ids of transformers and their logits, each from the whole row anew."""
    ids, logits = [], []
    place = torch.from_numpy(positions)
    with torch.no_grad():
        for step in range(TOKENS):
            states = kit.model.model.language_model(
                inputs_embeds=embeds[None],
                attention_mask=torch.ones(1, len(embeds), dtype=torch.long),
                position_ids=place[:, None],
                use_cache=False,
            ).last_hidden_state
            logits.append(kit.model.lm_head(states[0, -1]))
            ids.append(int(logits[-1].argmax()))
            row = kit.model.get_input_embeddings()(torch.tensor([ids[-1]]))
            embeds = torch.cat([embeds, row])
            place = torch.cat([place, torch.full((3, 1), following + step)], dim=1)
    return ids, torch.stack(logits).numpy()


def expected(
    kit: Kit, ids: np.ndarray, images: Sequence[Any], kept: Sequence[Sequence[int]], rule: str
) -> tuple[list[int], np.ndarray]:
    """The answer of transformers to a prompt of whose images these tokens are left."""
    embeds, places, spans = rows_of(kit, ids, images)
    stay = np.ones(len(embeds), bool)
    for (begin, stop), tokens in zip(spans, kept, strict=True):
        stay[begin:stop] = False
        stay[begin + np.array(tokens)] = True
    rows = np.flatnonzero(stay)
    positions, following = numbered(places, rows.tolist(), rule)
    return greedy(kit, embeds[rows], positions, following)


def ids_of(vlm: Vlm, question: str, images: int, turns: Sequence[Turn] = ()) -> np.ndarray:
    return vlm.encoder.encode([*turns, Turn("user", question, images)]).ids


def logits_of(recorder: Recorder, row: int = 0) -> np.ndarray:
    return np.stack([logits[row] for logits in recorder.logits])


@pytest.mark.parametrize("rule", ["compact", "original"])
def test_answers(kit: Kit, rule: str) -> None:
    """One image and two, pruned and whole, alone and in a batch of unequal rows."""
    axes = AXES[kit.path.name]
    vlm = kit.load(f"random-{rule}", method="random", keep=9, positions=rule)
    assert vlm.config.positions == PositionsInfo(rule, 3, axes.sections, axes.interleaved)
    recorder = record(vlm)
    requests = [
        Request([picture(1)], "What is on the table?", keep=5),
        Request([picture(2), picture(3)], "Alike?", keep=9),
        Request([picture(4)], "Is there a somewhat longer question?", keep=ROWS * COLUMNS),
    ]
    alone, wanted = [], []
    for request in requests:
        recorder.logits.clear()
        result = vlm.generate_batch([request], max_new_tokens=TOKENS, ignore_eos=True)[0]
        ids = ids_of(vlm, request.prompt, len(request.images))
        wanted.append(expected(kit, ids, request.images, result.kept_indices, rule))
        assert result.token_ids == wanted[-1][0]
        np.testing.assert_allclose(logits_of(recorder), wanted[-1][1], rtol=0, atol=2e-4)
        alone.append(result)
    recorder.logits.clear()
    together = vlm.generate_batch(requests, max_new_tokens=TOKENS, ignore_eos=True)
    for row, (one, result, (ids, logits)) in enumerate(zip(alone, together, wanted, strict=True)):
        assert (result.token_ids, result.kept_indices) == (ids, one.kept_indices)
        np.testing.assert_allclose(logits_of(recorder, row), logits, rtol=0, atol=2e-4)


def test_the_rules_differ(kit: Kit) -> None:
    """They number the text behind an image alike only if its last row or column is kept."""
    found: dict[str, dict[tuple[int, ...], np.ndarray]] = {"compact": {}, "original": {}}
    for rule, logits in found.items():
        vlm = kit.load(f"random-{rule}", method="random", keep=9, positions=rule)
        recorder = record(vlm)
        for seed in range(6):
            recorder.logits.clear()
            kept = vlm.generate([picture(5)], "What?", keep=2, seed=seed, max_new_tokens=1).kept_indices[0]
            logits[tuple(kept)] = logits_of(recorder)
    assert found["compact"].keys() == found["original"].keys()
    gaps = []
    for kept, one in found["compact"].items():
        gaps.append(max(max(divmod(token, COLUMNS)) for token in kept) < ROWS - 1)
        apart = np.abs(one - found["original"][kept]).max()
        assert apart > 1e-2 if gaps[-1] else apart == 0
    assert {*gaps} == {True, False}


@pytest.mark.parametrize("rule", ["compact", "original"])
def test_turns(kit: Kit, rule: str) -> None:
    """A later turn stands behind the earlier ones, with the cache of the first selection."""
    vlm = kit.load(f"random-{rule}", method="random", keep=9, positions=rule)
    images = [picture(6), picture(7)]
    chat = vlm.chat(images)
    first = chat.ask("What is this?", keep=4, max_new_tokens=5, ignore_eos=True)
    for question in ("And there?", "Why?"):
        recorder = record(vlm)
        turns = list(chat.turns)
        result = chat.ask(question, repick=False, max_new_tokens=TOKENS, ignore_eos=True)
        ids, logits = expected(kit, ids_of(vlm, question, 0, turns), images, first.kept_indices, rule)
        assert result.token_ids == ids
        np.testing.assert_allclose(logits_of(recorder), logits, rtol=0, atol=2e-4)


INSIDE: dict[str, dict[str, Any]] = {
    "fastv": {"method": "fastv", "keep": 14},
    "pyramiddrop": {"method": "pyramiddrop", "keep": 14, "options": {"first": 1}},
    "sparsevlm": {"method": "sparsevlm", "options": {"schedule": "0:18,2:9"}},
    "sparsevlm-2": {"method": "sparsevlm", "options": {"version": "2.0", "heads": 3, "schedule": "0:18,2:9"}},
}


def inside(
    kit: Kit, vlm: Vlm, ids: np.ndarray, images: Sequence[Any], forced: Sequence[int] = ()
) -> tuple[Pruned, Callable[[torch.Tensor], tuple[torch.Tensor, int]]]:
    """The published steps in transformers' layers."""
    embeds, places, spans = rows_of(kit, ids, images)
    method, info = get(vlm.config.pruning.method), vlm.config.pruning
    assert isinstance(method, InLlmMethod)
    options, depth = method.validate_options(info.options), vlm.config.kv.num_layers

    def number(rows: torch.Tensor) -> tuple[torch.Tensor, int]:
        positions, following = numbered(places, rows.tolist(), vlm.config.positions.rule)
        return torch.from_numpy(positions), following

    kit.model.set_attn_implementation("eager")
    found = generate(
        kit.model,
        embeds,
        spans,
        TOKENS,
        method.name,
        list(method.points(depth, options)),
        list(method.schedule(info.keep, ROWS * COLUMNS, depth, options).kept),
        version=options.get("version", "1.0"),
        heads=options.get("heads", 0),
        number=number,
        forced=forced,
    )
    return found, number


@pytest.mark.parametrize("name", INSIDE)
def test_inside_the_decoder(kit: Kit, name: str) -> None:
    """Positions behind every prune point, merged tokens too; rows of a batch; a second turn through the cut caches."""
    vlm = kit.load(f"inside-{name}", **INSIDE[name])
    assert vlm.config.positions.rule == get(vlm.config.pruning.method).own_positions(vlm.config.pruning.options)
    recorder = record(vlm)
    questions = {1: "What is on the table?", 2: "Are they the same?"}
    wanted = {}
    for count, question in questions.items():
        images = [picture(8 + i) for i in range(count)]
        recorder.logits.clear()
        result = vlm.generate(images, question, max_new_tokens=TOKENS, ignore_eos=True)
        wanted[count], _ = inside(kit, vlm, ids_of(vlm, question, count), images)
        assert result.token_ids == wanted[count].ids
        np.testing.assert_allclose(logits_of(recorder), torch.stack(wanted[count].logits).numpy(), rtol=0, atol=3e-4)
    batch = [Request([picture(8 + i) for i in range(count)], question) for count, question in questions.items()]
    for result, count in zip(vlm.generate_batch(batch, max_new_tokens=TOKENS, ignore_eos=True), questions, strict=True):
        assert result.token_ids == wanted[count].ids


@pytest.mark.parametrize("name", INSIDE)
def test_turns_inside_the_decoder(kit: Kit, name: str) -> None:
    """The second turn goes through the cut caches as if each of its tokens were fed by itself."""
    vlm = kit.load(f"inside-{name}", **INSIDE[name])
    chat: Conversation = vlm.chat(picture(5))
    chat.ask("What is this?", max_new_tokens=5, ignore_eos=True)
    first = ids_of(vlm, "What is this?", 1)
    whole = ids_of(vlm, "And there?", 0, chat.turns)
    assert whole[: len(first)].tolist() == first.tolist()
    recorder = record(vlm)
    result = chat.ask("And there?", repick=False, max_new_tokens=TOKENS, ignore_eos=True)
    wanted, _ = inside(kit, vlm, first, [picture(5)], whole[len(first) :].tolist())
    assert result.token_ids == wanted.ids
    np.testing.assert_allclose(logits_of(recorder), torch.stack(wanted.logits).numpy(), rtol=0, atol=3e-4)


def test_the_models_positions_end(kit: Kit) -> None:
    """Rows and columns count, not tokens: a dropped token may take a position, and 25 kept ones take 5."""
    vlm = kit.load("random-original", method="random", keep=9, positions="original")

    def positions_of(images: int) -> int:
        return len(ids_of(vlm, "Why?", images)) - images + ROWS * images

    most = next(n for n in range(1, 999) if positions_of(n) > MODEL.max_positions) - 1
    assert vlm.generate([picture(0)] * most, "Why?", keep=1, max_new_tokens=1).prompt_tokens < MODEL.max_positions - 99
    over = positions_of(most + 1)
    with pytest.raises(InputError, match=f"takes {over} positions and max_new_tokens is 1; .* positions end at 512"):
        vlm.generate([picture(0)] * (most + 1), "Why?", keep=1, max_new_tokens=1)
    with pytest.raises(InputError, match=r"tokens and max_new_tokens is 1; the KV cache was built for 512"):
        vlm.generate([picture(0)] * 21, "Why?", keep=25, max_new_tokens=1)


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_engines(kit: Kit, backend: str) -> None:
    """The decode step of engines: fields of its own for three numbers a row, in batches of unequal rows after each
    other."""
    out = trt_kit.make_dir(
        kit, "engines", backend=backend, method="random", keep=9, keep_range=(2, 25), max_batch_size=3, max_images=2
    )
    vlm, _ = trt_kit.load(out)
    requests = [
        Request([picture(1)], "What is on the table?", keep=5),
        Request([picture(2), picture(3)], "Alike?"),
        Request([picture(4)], "Is there a somewhat longer question?", keep=7),
    ]
    for rows in (3, 1, 2):
        for request, result in zip(
            requests, vlm.generate_batch(requests[:rows], max_new_tokens=TOKENS, ignore_eos=True), strict=False
        ):
            ids = ids_of(vlm, request.prompt, len(request.images))
            rule = vlm.config.positions.rule
            assert result.token_ids == expected(kit, ids, request.images, result.kept_indices, rule)[0]


def test_questions_about_one_image(kit: Kit) -> None:
    """The cached beginning of a prompt is taken for the next question if its positions on all axes are the same."""
    vlm = kit.load("random-compact", method="random", keep=9, positions="compact")
    features = vlm.features([picture(3)])[0]
    answerer = Answerer([vlm], max_new_tokens=TOKENS)
    for question in ("What is on the table?", "What is on the left?", "Why?"):
        answer = answerer.ask([features], question, 9)[0]
        ids = expected(kit, ids_of(vlm, question, 1), [picture(3)], answer.kept_indices, "compact")[0]
        ended = ids[: ids.index(tiny.EOS) + 1] if tiny.EOS in ids else ids
        assert answer.token_ids == ended
    assert answerer.reused > 2 * 9


def test_the_room_for_an_answer(kit: Kit) -> None:
    """What is said to fit does, to the token, and it is no less than what a decoder of one axis has room for."""
    for rule in ("compact", "original"):
        vlm = kit.load(f"random-{rule}", method="random", keep=9, positions=rule)
        prompt = vlm.encoder.encode([Turn("user", "What?", 2)])
        grids = [seen.plan.grid for seen in vlm.features([picture(0), picture(1)])]
        words = len(prompt.ids) - 2
        assert vlm.pipeline.positions.most(9, grids[0]) == ROWS
        assert vlm.pipeline.room(prompt, 9, grids) == 512 - (words + 2 * 9) + 1


def test_openvino(kit: Kit) -> None:
    """The other lowering, in its own library."""
    vlm = kit.load("openvino", method="random", keep=9, positions="original", provider="openvino")
    images = [picture(2), picture(3)]
    answer = vlm.generate(images, "Alike?", max_new_tokens=TOKENS, ignore_eos=True)
    ids = ids_of(vlm, "Alike?", 2)
    assert answer.token_ids == expected(kit, ids, images, answer.kept_indices, "original")[0]


def test_prune_points_build_in_tensorrt_rtx(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs behind a layer that read positions: rotary angles, and the attention of the next layer."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed", exc_type=ImportError)
    monkeypatch.setattr("trtprune.backends.tensorrt.gpus.find_gpus", list)
    name = {"contiguous": "pyramiddrop", "interleaved": "sparsevlm-2"}[kit.path.name]
    made = trtprune.build(
        str(kit.path),
        kit.path.parent / f"rtx-{name}",
        backend="tensorrt-rtx",
        engine=EngineOptions(compute_capability=("sm89",)),
        **INSIDE[name],
    )
    shapes = {spec.shape for c in made.components for spec in c.inputs if spec.name == "position_ids"}
    assert shapes == {("batch", 3, "sequence"), (1, 3, "sequence")}
    assert all(component.engine is not None for component in made.components)
