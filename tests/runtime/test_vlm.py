"""Batches, streams, budgets and everything a caller can get wrong."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trtprune
from tests.kit import tiny
from tests.kit.runtime_kit import Kit, kept_rows, picture, record, same
from trtprune.errors import BackendError, BudgetError, EngineDirError, InputError
from trtprune.runtime import Request, Vlm
from trtprune.runtime.kv_cache import check_length, round_capacity
from trtprune.show.references import select

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


def test_files_as_transformers_5_writes_them(kit: Kit, vlm: Vlm, tmp_path: Path) -> None:
    """One processor_config.json for all parts instead of a preprocessor_config.json."""
    path = tmp_path / "saved"
    kit.model.save_pretrained(path)
    kit.processor.save_pretrained(path)
    assert not (path / "preprocessor_config.json").exists()
    trtprune.build(str(path), tmp_path / "out", method="adafv", keep=6)
    found = trtprune.load(tmp_path / "out").generate(picture(1), QUESTION, max_new_tokens=9)
    assert same(found, vlm.generate(picture(1), QUESTION, max_new_tokens=9))


def test_float16(kit: Kit) -> None:
    """Half precision on the CPU: other last digits, the same sizes halved."""
    half = kit.load("half", method="none", dtype="float16")
    recorder = record(half)
    result = half.generate(picture(1), QUESTION, max_new_tokens=4)
    assert half.config.kv.dtype == "float16"
    assert result.kv_cache_bytes == 64 * half.config.kv.bytes_per_token
    _, logits = kit.generate(1, **kit.inputs([picture(1)], QUESTION))
    np.testing.assert_allclose(recorder.logits[0], logits, rtol=0, atol=0.1)


# -- batches


@pytest.mark.parametrize("which", ["adafv", "random"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_are_what_they_are_alone(vlm: Vlm, drawn: Vlm, which: str, temperature: float) -> None:
    """Prompts of different lengths, image counts, budgets, lengths and seeds, beside each other."""
    model = vlm if which == "adafv" else drawn
    requests = [
        Request([picture(1)], QUESTION, max_new_tokens=20),
        Request([picture(2), picture(3)], "Which?", keep=3, seed=5),
        Request(picture(1), "A rather longer question, so that the others are padded", keep=11, max_new_tokens=1),
        Request([picture(4)], QUESTION, system="Be brief.", seed=9, max_new_tokens=33),
        Request([picture(4)], "<image> raw", raw_prompt=True, keep=2),
    ]
    shared = {"max_new_tokens": 12, "temperature": temperature, "seed": 1}
    together = model.generate_batch(requests, **shared)
    for request, result in zip(requests, together, strict=True):
        assert same(result, model.generate_batch([request], **shared)[0])
    assert [len(r.token_ids) for r in together] == [
        20 if r.max_new_tokens == 20 else len(t.token_ids) for r, t in zip(requests, together, strict=True)
    ] or any(t.finish_reason == "stop" for t in together)
    shuffled = model.generate_batch(requests[::-1], **shared)[::-1]
    assert all(same(a, b) for a, b in zip(together, shuffled, strict=True))


def test_rows_that_finish_early(vlm: Vlm) -> None:
    """One row stops at a stop string while the other goes on, unchanged."""
    requests = [Request(picture(1), QUESTION), Request(picture(5), "Why?")]
    free = [vlm.generate_batch([r], max_new_tokens=24)[0] for r in requests]
    length = next(n for n in range(3, 60) if free[0].text[4 : 4 + n] not in free[1].text)
    stop = free[0].text[4 : 4 + length]
    first, second = vlm.generate_batch(requests, max_new_tokens=24, stop=stop)
    assert first.finish_reason == "stop"
    assert first.text == free[0].text[: free[0].text.find(stop)]
    assert same(second, free[1])


def test_equal_pictures_are_looked_at_once(vlm: Vlm, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    picture(3).save(path)
    seen: list[int] = []
    look = vlm.chain.look
    vlm.chain.look = lambda pixels: seen.append(len(pixels)) or look(pixels)  # type: ignore
    try:
        data, image = path.read_bytes(), picture(3)
        sources = [path, path, str(path), data, bytes(bytearray(data)), image, image]
        found = vlm.generate_batch([Request(s, QUESTION) for s in sources], max_new_tokens=3)
    finally:
        del vlm.chain.look
    assert seen == [3]
    assert all(same(f, found[0]) for f in found)


def test_more_pictures_than_one_vision_run(drawn: Vlm) -> None:
    many = [Request(picture(i), "Why?", keep=2) for i in range(11)]
    found = drawn.generate_batch(many, max_new_tokens=2, seed=0)
    assert same(found[10], drawn.generate_batch(many[10:], max_new_tokens=2, seed=0)[0])


def test_a_row_that_ends_where_the_cache_does(kit: Kit) -> None:
    """It stays in the batch after its last token and must not write behind its memory."""
    small = kit.load("small", method="adafv", keep=4, max_seq_len=64)
    length = small.generate(picture(1), "Why?", max_new_tokens=1).prompt_tokens
    long = "Why?" + "x" * (63 - length)
    requests = [Request(picture(1), long, max_new_tokens=2), Request(picture(2), "Why?", max_new_tokens=12)]
    full, short = (small.generate_batch([r])[0] for r in requests)
    assert full.prompt_tokens + 1 == 64 == full.kv_cache_bytes // small.config.kv.bytes_per_token
    assert len(short.token_ids) > 4
    assert all(same(a, b) for a, b in zip(small.generate_batch(requests), (full, short), strict=True))


def test_the_seed_of_a_request_comes_first(drawn: Vlm) -> None:
    request = Request(picture(1), QUESTION, seed=5)
    found = drawn.generate_batch([request], seed=1, temperature=1.5, max_new_tokens=12)[0]
    assert same(found, drawn.generate(picture(1), QUESTION, seed=5, temperature=1.5, max_new_tokens=12))
    assert not same(found, drawn.generate(picture(1), QUESTION, seed=1, temperature=1.5, max_new_tokens=12))


def test_an_empty_batch(vlm: Vlm) -> None:
    assert vlm.generate_batch([]) == []


def test_pictures_of_one_request_draw_differently(drawn: Vlm) -> None:
    first, second = drawn.generate([picture(1), picture(1)], QUESTION, seed=3, max_new_tokens=1).kept_indices
    assert first != second


# -- results and streams


def test_result(vlm: Vlm) -> None:
    result = vlm.generate([picture(1), picture(2)], QUESTION, keep=4, max_new_tokens=7)
    assert (result.method, result.visual_tokens, result.kept_tokens) == ("adafv", 32, 8)
    assert all(indices == sorted(set(indices)) and len(indices) == 4 for indices in result.kept_indices)
    data = json.loads(json.dumps(result.to_json()))
    assert list(data) == [
        "text",
        "token_ids",
        "finish_reason",
        "method",
        "visual_tokens",
        "kept_tokens",
        "kept_indices",
        "kept_indices_per_image",
        "timings_ms",
        "time_to_first_token_ms",
        "tokens_per_second",
        "kv_cache_bytes",
        "prompt_tokens",
    ]
    # Every key is an attribute of the same name; the one that differs is flat for a single image.
    assert all(data[name] == getattr(result, name) for name in data if name != "kept_indices_per_image")
    first = sum(result.timings[stage] for stage in ("preprocess", "vision", "prune", "prefill"))
    assert result.time_to_first_token_ms == pytest.approx(first, abs=1e-3)
    assert result.tokens_per_second == pytest.approx(6000 / result.timings["decode"], rel=1e-3)
    assert list(data["timings_ms"]) == ["preprocess", "vision", "prune", "prefill", "decode", "total"]
    assert all(ms > 0 for ms in data["timings_ms"].values())
    assert sum(data["timings_ms"].values()) - data["timings_ms"]["total"] <= data["timings_ms"]["total"]
    assert result.tokens_per_second > 0
    single = vlm.generate(picture(1), QUESTION, keep=4, max_new_tokens=1)
    assert single.to_json()["kept_indices"] == single.kept_indices[0]
    assert single.to_json()["kept_indices_per_image"] == single.kept_indices
    assert single.tokens_per_second == 0


@pytest.mark.parametrize("stop", [None, "by-text"])
def test_stream(vlm: Vlm, stop: str | None) -> None:
    plain = vlm.generate(picture(1), QUESTION, max_new_tokens=20)
    stop = None if stop is None else plain.text[5:8]
    expected = vlm.generate(picture(1), QUESTION, max_new_tokens=20, stop=stop)
    stream = vlm.stream(picture(1), QUESTION, max_new_tokens=20, stop=stop)
    with pytest.raises(RuntimeError):
        _ = stream.result
    pieces = list(stream)
    assert len(pieces) > 3
    assert "".join(pieces) == expected.text
    assert same(stream.result, expected)


def test_an_abandoned_stream_leaves_no_trace(vlm: Vlm) -> None:
    expected = vlm.generate(picture(1), QUESTION, max_new_tokens=9)
    stream = vlm.stream(picture(2), "Why?", max_new_tokens=20)
    next(stream)
    assert same(vlm.generate(picture(1), QUESTION, max_new_tokens=9), expected)
    # The stream goes on with a cache of its own.
    assert stream.__class__.__name__ == "Stream"
    rest = list(stream)
    assert rest


def test_end_of_sequence(kit: Kit, vlm: Vlm) -> None:
    """A token of the model's own answer as end of sequence: it is in the ids, not in the text."""
    plain = vlm.generate(picture(1), QUESTION, max_new_tokens=10)
    out = vlm.config.root
    data = json.loads((out / "config.json").read_text())
    data["model"]["eos_token_ids"] = [plain.token_ids[4]]
    copy = kit.path.parent / "eos"
    shutil.copytree(out, copy)
    (copy / "config.json").write_text(json.dumps(data))
    result = trtprune.load(copy).generate(picture(1), QUESTION, max_new_tokens=10)
    place = plain.token_ids.index(plain.token_ids[4])
    assert result.token_ids == plain.token_ids[: place + 1]
    assert result.finish_reason == "stop"


def test_an_engine_directory_that_was_moved(kit: Kit, vlm: Vlm, tmp_path: Path) -> None:
    expected = vlm.generate(picture(1), QUESTION, max_new_tokens=5)
    moved = tmp_path / "elsewhere" / "out"
    shutil.copytree(vlm.config.root, moved)
    assert same(trtprune.load(moved).generate(picture(1), QUESTION, max_new_tokens=5), expected)


# -- seeds


def test_seeds(drawn: Vlm) -> None:
    def ask(**settings: Any) -> list[int]:
        return drawn.generate(picture(1), QUESTION, max_new_tokens=16, **settings).token_ids

    assert ask(temperature=1.5, seed=1) == ask(temperature=1.5, seed=1)
    assert ask(temperature=1.5, seed=1) != ask(temperature=1.5, seed=2)
    greedy = drawn.generate(picture(1), QUESTION, max_new_tokens=16, seed=0)
    assert same(drawn.generate(picture(1), QUESTION, max_new_tokens=16), greedy)


def test_repetition_penalty_equals_transformers(kit: Kit) -> None:
    plain = kit.load("plain", method="none")
    inputs = kit.inputs([picture(1)], QUESTION)
    out = kit.model.generate(**inputs, max_new_tokens=24, do_sample=False, repetition_penalty=1.4)
    expected = out[0, inputs["input_ids"].shape[1] :].tolist()
    assert plain.generate(picture(1), QUESTION, max_new_tokens=24, repetition_penalty=1.4).token_ids == expected


# -- budgets and limits


@pytest.mark.parametrize("keep", [0, -1, 1, 13, 17, 2.5, True])
def test_keep_out_of_range(vlm: Vlm, keep: Any) -> None:
    with pytest.raises(BudgetError, match="keep="):
        vlm.generate(picture(), QUESTION, keep=keep)


def test_every_budget_in_range(vlm: Vlm) -> None:
    for keep in range(2, 13):
        assert vlm.generate(picture(), QUESTION, keep=keep, max_new_tokens=1).kept_tokens == keep


def test_method_none(kit: Kit) -> None:
    plain = kit.load("plain", method="none")
    assert plain.generate(picture(), QUESTION, keep=16, max_new_tokens=1).kept_indices == [list(range(16))]
    with pytest.raises(BudgetError, match=r"keep=8: method none keeps all 16"):
        plain.generate(picture(), QUESTION, keep=8)


def test_keeping_all_equals_not_pruning(kit: Kit) -> None:
    plain, pruned = kit.load("plain", method="none"), kit.load("all", method="fastervlm", keep=16)
    assert same(plain.generate(picture(), QUESTION), pruned.generate(picture(), QUESTION))


def test_capacity(kit: Kit) -> None:
    small = kit.load("small", method="adafv", keep=4, max_seq_len=64)
    full = small.generate(picture(), "Why?", max_new_tokens=4)
    room = 64 - full.prompt_tokens + 1
    result = small.generate(picture(), "Why?", max_new_tokens=room)
    assert result.finish_reason == "stop" or len(result.token_ids) == room
    assert result.kv_cache_bytes == 64 * small.config.kv.bytes_per_token
    assert full.kv_cache_bytes < result.kv_cache_bytes
    assert full.kv_cache_bytes == round_capacity(full.prompt_tokens + 3, 64) * small.config.kv.bytes_per_token
    with pytest.raises(InputError, match=rf"max_new_tokens up to {room}"):
        small.generate(picture(), "Why?", max_new_tokens=room + 1)
    with pytest.raises(InputError, match="max_seq_len"):
        small.generate(picture(), "Why?" * 20, max_new_tokens=1)
    ragged = [Request(picture(), "Why?", max_new_tokens=2), Request(picture(), "Why?", max_new_tokens=room)]
    assert same(small.generate_batch(ragged)[1], result)


def test_positions_of_the_model(drawn: Vlm) -> None:
    """Original positions count dropped tokens, too: the cache is not the only limit."""
    count = 512 // 16
    with pytest.raises(InputError, match="positions end at 512"):
        drawn.generate([picture()] * count, "Why?", keep=1, max_new_tokens=1)


def test_pruning_saves_cache(vlm: Vlm) -> None:
    many, few = (vlm.generate(picture(), "x" * 150, keep=k, max_new_tokens=60).kv_cache_bytes for k in (12, 2))
    assert few <= many


def test_round_capacity() -> None:
    assert [round_capacity(n, 1000) for n in (1, 16, 17, 256, 257, 321, 999, 1000)] == [
        16, 16, 32, 256, 320, 384, 1000, 1000
    ]  # fmt: skip
    check_length(10, 5, 14)
    with pytest.raises(InputError):
        check_length(10, 6, 14)


# -- bad requests


def test_no_image(vlm: Vlm) -> None:
    for images in ([], None, ()):
        with pytest.raises(InputError, match="no image"):
            vlm.generate(images, QUESTION)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"max_new_tokens": 1.5}, "max_new_tokens=1.5"),
        ({"temperature": -1}, "temperature=-1"),
        ({"stop": [""]}, "stop="),
        ({"prompt": "a <image> b"}, "stands for an image"),
        ({"prompt": 5}, "prompt=5"),
        ({"images": "missing.png"}, "missing.png"),
        ({"images": b"nonsense"}, "not a picture"),
        ({"raw_prompt": True}, "raw prompt"),
    ],
)
def test_bad_requests(vlm: Vlm, arguments: dict[str, Any], named: str) -> None:
    values: dict[str, Any] = {"images": picture(), "prompt": QUESTION, **arguments}
    with pytest.raises(InputError, match=named):
        vlm.generate(**values)
    assert vlm.generate(picture(), QUESTION, max_new_tokens=1).token_ids


def test_pixel_limit(vlm: Vlm) -> None:
    strict = trtprune.load(vlm.config.root, max_pixels=100)
    with pytest.raises(InputError, match="above the limit of 100"):
        strict.generate(picture(), QUESTION)


def test_grey_and_rotated_pictures_answer(vlm: Vlm) -> None:
    stream = io.BytesIO()
    picture().convert("L").save(stream, "JPEG")
    assert vlm.generate(stream.getvalue(), QUESTION, max_new_tokens=1).token_ids


def test_directories_that_are_refused(kit: Kit, vlm: Vlm, tmp_path: Path) -> None:
    with pytest.raises(EngineDirError, match="no such engine directory"):
        trtprune.load(tmp_path / "nothing")
    other = tmp_path / "rtx"
    trtprune.build(str(kit.path), other, keep=4, backend="tensorrt-rtx", export_only=True)
    with pytest.raises(BackendError, match="tensorrt-rtx"):
        trtprune.load(other)
    copy = tmp_path / "changed"
    shutil.copytree(vlm.config.root, copy)
    text = (copy / "tokenizer.json").read_text()
    (copy / "tokenizer.json").write_text(text.replace("Ġ", "ġ"))
    with pytest.raises(EngineDirError, match=r"tokenizer\.json"):
        trtprune.load(copy)


def test_the_runtime_imports_no_model_code() -> None:
    import subprocess
    import sys

    code = (
        "import sys, trtprune.runtime; "
        "bad = {'torch', 'transformers', 'onnx', 'onnx_ir', 'onnxscript', 'trtprune.graph', 'trtprune.models'}; "
        "sys.exit(str(bad & set(sys.modules)) if bad & set(sys.modules) else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_look_and_select(vlm: Vlm) -> None:
    view = vlm.look(picture(1), QUESTION)
    expected = vlm.generate(picture(1), QUESTION, keep=7, max_new_tokens=1).kept_indices[0]
    assert vlm.select(view, keep=7).tolist() == expected
    assert select(vlm, view, keep=7, method="adafv").tolist() == expected
    assert len(select(vlm, view, keep=3, method="fastervlm")) == 3
    assert view.geometry.width == view.geometry.height == 56
    rows = kept_rows(np.array([1, *[tiny.IMAGE_TOKEN_ID] * 16, 2]), [expected], 16)
    assert rows.tolist() == [0, *(i + 1 for i in expected), 17]
