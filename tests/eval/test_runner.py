"""Answers of ``trtprune eval``: the same as those of ``generate``, each given once, none lost."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trtprune
from tests.kit import eval_kit as kit
from tests.kit.runtime_kit import Kit, picture, record, same
from trtprune.backends.running import Running
from trtprune.errors import BudgetError, InputError
from trtprune.eval.answering import Answerer, batches
from trtprune.eval.planning import GREY, WRONG, MethodBudget, fitting, plan_points, subjects
from trtprune.eval.rows import Row
from trtprune.eval.runner import Builds, run, sessions_of
from trtprune.eval.store import Record, Store
from trtprune.runtime import Vlm
from trtprune.runtime.pipeline import Pipeline
from trtprune.variants import Variant, Variants

ROOT = Path(__file__).parents[2]
QUESTIONS = ["What is red ?", "What is on the table ?", "What is on the table today ?", "Who ?", "Who ?"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit.make(tmp_path_factory.mktemp("eval") / "model")


@pytest.fixture(scope="module")
def base(model: Kit) -> Path:
    out = model.path.parent / "base"
    trtprune.build(str(model.path), out, method="adafv", keep=5)
    return out


# -- answers


@pytest.mark.parametrize(
    ("method", "positions", "keep", "blind"),
    [
        ("none", "compact", 16, True),
        ("fastervlm", "compact", 4, True),
        ("fastervlm", "original", 7, True),
        ("random", "compact", 5, True),
        ("adafv", "compact", 6, False),
        ("fastv", None, 8, False),
    ],
)
def test_answers_are_those_of_generate(model: Kit, method: str, positions: Any, keep: int, blind: bool) -> None:
    options = {"k": 1} if method == "fastv" else {}
    vlm = model.load(f"{method}-{positions}", method=method, keep=keep, options=options, positions=positions)
    answerer = Answerer([vlm], max_new_tokens=9, stop=["k"])
    reused = []
    for number in range(3):
        features = vlm.features([picture(number)])[0]
        for question in QUESTIONS:
            before = answerer.reused
            found = answerer.ask([features], question, keep, seed=number)[0]
            wanted = vlm.generate(picture(number), question, keep=keep, max_new_tokens=9, seed=number, stop=["k"])
            assert same(found, wanted), (number, question)
            reused.append(answerer.reused - before)
    if blind:
        # All but the first question about a picture find it in the cache, with the words they share.
        assert [count > keep for count in reused] == [False, True, True, True, True] * 3
        assert reused[2] > reused[1]
    if vlm.config.segments:
        assert not any(reused)
    answerer.close()


def test_builds_with_one_decoder_answer_side_by_side(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers of a batch are those of its builds alone; a picture is cut once where the question is not read."""
    names = ["adafv", "fastervlm", "random", "divprune", "visionzip", "zspaprune", "fastv:k=1"]
    with Variants(base, Running(threads=1)) as variants:
        vlms = [variants.open(Variant.parse(name)) for name in names]
        groups = batches(vlms, 40)
        assert [[names[i] for i in group] for group in groups] == [
            ["adafv", "zspaprune"],
            ["fastervlm", "random", "divprune", "visionzip"],
            ["fastv:k=1"],
        ]
        monkeypatch.setattr("trtprune.eval.answering.CACHE_BYTES", 3 * 40 * vlms[0].config.kv.bytes_per_token)
        assert [len(group) for group in batches(vlms, 40)] == [2, 3, 1, 1]
        monkeypatch.undo()
        cuts: list[str] = []
        select = Pipeline.select
        monkeypatch.setattr(
            Pipeline, "select", lambda self, *given: cuts.append(self.config.pruning.method) or select(self, *given)
        )
        for group in groups:
            together = [vlms[i] for i in group]
            answerer = Answerer(together, max_new_tokens=9, stop=["k"])
            for number, keep in ((0, 8), (1, 8), (1, 6)):
                looks = [vlm.features([picture(number)])[0] for vlm in together]
                cuts.clear()
                found = [answerer.ask(looks, question, keep, seed=number) for question in QUESTIONS]
                counts = {names[i]: cuts.count(vlms[i].config.pruning.method) for i in group}
                read = ("adafv", "zspaprune", "fastv:k=1")
                assert counts == {names[i]: len(QUESTIONS) if names[i] in read else 1 for i in group}
                for question, results in zip(QUESTIONS, found, strict=True):
                    for vlm, result in zip(together, results, strict=True):
                        wanted = vlm.generate(
                            picture(number), question, keep=keep, max_new_tokens=9, seed=number, stop=["k"]
                        )
                        assert same(result, wanted), (vlm.config.pruning.method, number, question)
            assert (answerer.reused > 0) == (names[group[0]] == "fastervlm")
            answerer.close()


def test_what_the_cache_holds_is_not_computed_again(model: Kit) -> None:
    """The decoder's logits are those of the full prompt to rounding, from fewer tokens."""
    vlm = model.load("counted", method="fastervlm", keep=6)
    recorder, widths = record(vlm), []
    plain = recorder.run

    def count(inputs: Any, cache: Any = None) -> Any:
        widths.append(inputs["inputs_embeds"].shape[1])
        return plain(inputs, cache)

    recorder.run = count  # type: ignore[method-assign]
    features = vlm.features([picture(5)])[0]
    logits = []
    for reuse in (True, False):
        answerer = Answerer([vlm], max_new_tokens=1, reuse=reuse)
        for question in QUESTIONS[:2]:
            answerer.ask([features], question, 6)
            logits.append(recorder.logits[-1])
        answerer.close()
    first, second, _, whole = widths
    assert second == whole - (first - len("red ?\nASSISTANT:"))
    np.testing.assert_allclose(logits[1], logits[3], atol=1e-4)
    assert np.abs(logits[0] - logits[1]).max() > 0.1


def test_the_cache_of_another_picture_is_not_taken(model: Kit) -> None:
    """Same question, same kept indices, other features: only the rows tell."""
    vlm = model.load("other", method="random", keep=4)
    answerer = Answerer([vlm], max_new_tokens=6)
    first = vlm.features([picture(1)])[0]
    second = replace(first, image=first.image.copy())
    second.image[:] = vlm.features([picture(2)])[0].image
    for features in (first, second, first):
        found = answerer.ask([features], "Who ?", 4, seed=3)[0]
        assert same(found, vlm.generate(features, "Who ?", keep=4, max_new_tokens=6, seed=3))
    assert answerer.reused == 0


def test_an_interrupted_answer_leaves_nothing_to_go_on_from(model: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = model.load("interrupted", method="fastervlm", keep=4)
    answerer = Answerer([vlm], max_new_tokens=6)
    features = vlm.features([picture(1)])[0]
    answerer.ask([features], QUESTIONS[0], 4)
    run = vlm.pipeline.run

    def interrupted(*given: Any) -> Any:
        next(run(*given))
        raise KeyboardInterrupt

    monkeypatch.setattr(vlm.pipeline, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        answerer.ask([features], QUESTIONS[1], 4)
    monkeypatch.undo()
    found = answerer.ask([features], QUESTIONS[2], 4)[0]
    assert same(found, vlm.generate(features, QUESTIONS[2], keep=4, max_new_tokens=6))
    assert answerer.reused == 0


# -- the order of work


def test_a_picture_is_looked_at_once_for_each_vision_graph(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what the builds say is what each says alone."""
    looked = []
    look = Vlm.features
    monkeypatch.setattr(Vlm, "features", lambda self, images, clock=None: looked.append(self) or look(self, images))
    questions = [Row(f"{i}", _file(base, i % 2), QUESTIONS[i % 4], ("x",)) for i in range(6)]
    with Variants(base, Running(threads=1)) as variants:
        points = plan_points(variants, "adafv,fastervlm,random,fastv:k=1", [8, 6], lambda what, message: None)
        assert (points[0].label, points[0].keep) == ("none", 16)
        configs = [variants.config(p.variant) for p in points]
        graphs = {variants.graph_digest_of(config, config.component("vision")) for config in configs}
        assert len(graphs) < len({config.files[config.component("vision").onnx] for config in configs})
        store = Store(base.parent / "looks.jsonl", {})
        asked = subjects(questions, controls=True, seed=1)
        builds = Builds(variants, max_new_tokens=5)
        with store:
            run(points, asked, store, builds.open, ask=lambda row: row.question, metric=lambda row: "exact")
            answers = store.records()
        # Two pictures and the grey one; fastv comes alone, behind the others.
        assert len(looked) == 3 * (len(graphs) + 1)
        assert len(answers) == len(points) * 6 * 3
        monkeypatch.undo()
        for found in random.Random(0).sample(answers, 12):
            point = next(p for p in points if (p.label, p.keep) == (found.method, found.keep))
            row = questions[int(found.id)]
            shown = next(s for s in asked if any(a.row is row and a.control == found.control for a in s.asked))
            vlm = variants.open(point.variant)
            if found.control == GREY:
                from PIL import Image

                picture_shown: Any = Image.new("RGB", (56, 56), (127, 127, 127))
            else:
                assert shown.source is not None
                picture_shown = shown.source.picture()
                assert (picture_shown == row.image) == (found.control != WRONG)
            wanted = vlm.generate(picture_shown, row.question, keep=point.keep, max_new_tokens=5, seed=shown.seed)
            assert (found.answer, found.finish) == (wanted.text, wanted.finish_reason), found
            assert found.kept == (wanted.tokens_per_layer or wanted.kept_tokens)


def _file(base: Path, number: int) -> Path:
    path = base.parent / f"{number}.png"
    picture(number).save(path)
    return path


def test_in_llm_methods_come_alone_and_last() -> None:
    points = [
        kit.POINTS[0],
        *(MethodBudget(Variant.make(m), k, m) for m in ("fastv", "adafv", "sparsevlm") for k in (8, 4)),
    ]
    groups = [[f"{p.label} {p.keep}" for p in group] for group in sessions_of(points)]
    assert groups == [["none 16", "adafv 8", "adafv 4"], ["fastv 8", "fastv 4"], ["sparsevlm 8", "sparsevlm 4"]]


def test_controls_show_a_picture_of_the_same_group_but_never_the_own() -> None:
    questions = kit.rows(40, 10, ("a", "b"))
    found = subjects(questions, controls=True, seed=3)
    assert found[-1].source is None
    assert [a.control for a in found[-1].asked] == [GREY] * 40
    shown = {a.row.id: s.source for s in found for a in s.asked if a.control == WRONG}
    assert len(shown) == 40
    for row in questions:
        other = shown[row.id]
        assert other is not None
        assert other.image != row.image
        assert other.group == row.group
    assert [s.seed for s in found] == [s.seed for s in subjects(questions, controls=True, seed=3)]
    with pytest.raises(InputError, match="wrong one"):
        subjects(kit.rows(5, 1), controls=True, seed=0)


def test_unread_pictures_are_left_out_of_all_runs(base: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"\x89PNG no picture")
    questions = [Row("good", _file(base, 0), "Who ?", ("x",)), Row("bad", bad, "Who ?", ("x",))]
    seen: list[int] = []
    with Variants(base, Running(threads=1)) as variants:
        points = plan_points(variants, None, [4], lambda what, message: None)
        builds = Builds(variants, max_new_tokens=2)
        asked = subjects(questions, controls=False, seed=0)
        settings: dict[str, Any] = {"ask": lambda row: row.question, "metric": lambda row: "exact"}
        with Store(tmp_path / "a.jsonl", {}) as store:
            unread = run(points, asked, store, builds.open, advance=seen.append, **settings)
            assert [record.id for record in store.records()] == ["good", "good"]
        assert list(unread) == ["bad"]
        assert "bad.png" in unread["bad"]
        assert sum(seen) == 4
        with Store(tmp_path / "b.jsonl", {}) as store, pytest.raises(InputError, match=r"bad\.png"):
            run(points, asked, store, builds.open, strict=True, **settings)


def test_what_does_not_fit_unpruned_is_left_out(model: Kit, base: Path) -> None:
    vlm = trtprune.load(base, threads=1)
    questions = [Row("short", Path("p"), "Who ?", ("x",)), Row("long", Path("p"), "o" * 40, ("x",))]
    limits: Any = {"visual_tokens": lambda row: 16, "max_new_tokens": 4, "positions": 512}
    # "<s>"? no: "USER: " + image + newline + question + newline + "ASSISTANT:", a token a letter.
    length = len("USER: ") + 16 + 1 + len("Who ?") + 1 + len("ASSISTANT:")
    for capacity, good in ((length + 3, ["short"]), (length + 2, [])):
        found, bad = fitting(questions, lambda r: r.question, vlm.encoder, capacity=capacity, **limits)
        assert [row.id for row in found] == good
        assert "long" in bad
        assert "KV cache" in bad["long"].message
    odd = [Row("odd", Path("p"), "what is <image> ?", ("x",))]
    assert "odd" in fitting(odd, lambda r: r.question, vlm.encoder, capacity=500, **limits)[1]


@pytest.mark.parametrize(
    ("methods", "keeps", "said"),
    [
        ("adafw", None, "adafw"),
        ("adafv:quote=1", None, "quote"),
        ("adafv", [17], "17"),
        ("adafv", [0], "0"),
        ("adafv", [16], "--keep 16"),
        ("none", [4], "--methods none"),
        ("adafv,fastv", [1], "fastv"),
    ],
)
def test_points_that_cannot_be_are_refused(base: Path, methods: str, keeps: Any, said: str) -> None:
    with Variants(base) as variants, pytest.raises(BudgetError, match=said) as caught:
        plan_points(variants, methods, keeps, lambda what, message: None)
    assert caught.value.hint


# -- the file


def test_ten_thousand_rows_survive_kills(tmp_path: Path) -> None:
    """Killed at random moments and started again, the file ends as one that nothing happened to."""
    count = 10_000
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    kit.answer_into(whole, count)
    rng = random.Random(20)
    size, kills = whole.stat().st_size, 0
    targets = sorted(rng.randrange(size) for _ in range(4))
    for target in [0, *targets, None]:
        process = subprocess.Popen([sys.executable, "-m", "tests.kit.eval_kit", str(killed), str(count)], cwd=ROOT)
        while target is not None and process.poll() is None:
            if killed.exists() and killed.stat().st_size > target:
                time.sleep(rng.random() * 0.01)
                process.kill()
            time.sleep(0.002)
        if process.wait(60) != 0:
            kills += 1
            if rng.random() < 0.5:  # a power cut may take part of what was not yet synced
                with killed.open("r+b") as stream:
                    stream.truncate(max(0, killed.stat().st_size - rng.randrange(300)))
    assert kills >= 2
    expected, found = whole.read_bytes().splitlines(), killed.read_bytes().splitlines()
    assert found[0] == expected[0]
    assert len(found) == 2 * count + 1
    assert sorted(found) == sorted(expected)


def _answer(number: int) -> Record:
    return Record(f"q{number}", "adafv", 4, "äöü \u2028 \ud800 \n", 0.3, 4.0, 16)


def test_a_torn_line_is_dropped_wherever_it_is_torn(tmp_path: Path) -> None:
    path = tmp_path / "a" / "answers.jsonl"
    with Store(path, {"x": 1}) as store:
        for number in range(3):
            store.add(_answer(number))
        with pytest.raises(ValueError, match="before"):
            store.add(_answer(1))
    data = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == 10]
    assert len(ends) == 4
    for length in sorted({*range(0, len(data), 9), *(end + i for end in ends for i in (-2, -1, 0))}):
        path.write_bytes(data[:length])
        with Store(path, {"x": 1}) as store:
            assert len(store) == max(0, sum(end <= length for end in ends) - 1)
            assert store.records() == [_answer(i) for i in range(len(store))]
            for number in range(len(store), 3):
                store.add(_answer(number))
        assert path.read_bytes() == data


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with Store(path, {"data": "a", "seed": 0}) as store:
        store.add(_answer(0))
    whole = path.read_bytes()
    with pytest.raises(InputError, match="another data, metric") as caught:
        Store(path, {"data": "b", "seed": 0, "metric": "vqa"})
    assert "--force" in (caught.value.hint or "")
    for damaged, said in (
        (whole.replace(b'"keep"', b'"kept"'), "line 2 is damaged"),
        (whole.replace(b'"score": 0.3', b'"score": "x"'), "line 2 is damaged"),
        (whole + whole.splitlines(keepends=True)[1], "line 3 repeats"),
        (whole.replace(b'"schema": 1', b'"schema": 9'), "schema 9"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=said):
            Store(path, {"data": "a", "seed": 0})
        assert path.read_bytes() == damaged
    with Store(path, {"data": "b"}, force=True) as store:
        assert len(store) == 0
    assert json.loads(path.read_text())["fingerprint"] == {"data": "b"}
    path.write_text("my diary\n")
    for force in (False, True):
        with pytest.raises(InputError, match="not a file of answers"):
            Store(path, {"data": "b"}, force=force)
    assert path.read_text() == "my diary\n"


@pytest.mark.parametrize("torn", [b"", b'{"id": "1", "meth'])
def test_a_file_without_answers_belongs_to_nobody(tmp_path: Path, torn: bytes) -> None:
    """A run that failed before its first answer does not stand in the way of the next one."""
    path = tmp_path / "answers.jsonl"
    Store(path, {"provider": "cuda"}).close()
    path.write_bytes(path.read_bytes() + torn)
    with Store(path, {"provider": "cpu"}) as store:
        assert store.dropped == 0
        store.add(_answer(0))
    with Store(path, {"provider": "cpu"}) as store:
        assert len(store) == 1
    with pytest.raises(InputError, match="another provider"):
        Store(path, {"provider": "cuda"})


def test_two_writers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with Store(path, {}) as store:
        store.add(_answer(0))
        for force in (False, True):
            with pytest.raises(InputError, match="another process"):
                Store(path, {}, force=force)
        store.add(_answer(1))
    with Store(path, {}) as store:
        assert len(store) == 2
