"""The lmms-eval adapter: against a stand-in of the few names it uses, and in lmms-eval itself where that is installed.

The stand-in copies what lmms-eval 0.7.3 does with a model: builds it from ``--model_args``, hands it ``task_dict`` and
requests of (context, settings, doc_to_visual, doc_id, task, split), and resolves its class by path.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.kit import tiny
from tests.kit.clip_kit import ClipKit
from tests.kit.runtime_kit import Kit, picture
from trtprune.errors import BudgetError, InputError
from trtprune.runtime import Vlm

ROOT = Path(__file__).parents[2]
TASK = ROOT / "examples" / "lmms_task"
MODULE = "trtprune.eval.lmms"


class Base(ABC):
    """``lmms_eval.api.model.lmms``, cut to what the harness needs of a model."""

    is_simple = True

    def __init__(self) -> None:
        self.rank, self.task_dict, self.cached = 0, {}, []
        self.cache_hook = SimpleNamespace(add_partial=lambda *given: self.cached.append(given))

    @abstractmethod
    def loglikelihood(self, requests: Any) -> Any: ...

    @abstractmethod
    def generate_until(self, requests: Any) -> Any: ...

    @abstractmethod
    def generate_until_multi_round(self, requests: Any) -> Any: ...


@dataclass(frozen=True)
class Manifest:
    model_id: str
    simple_class_path: str | None = None


class Harness:
    """The stand-in package and what it was told."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.models: dict[str, type] = {}
        self.manifests: list[Manifest] = []
        self.commands: list[list[str]] = []

        def register_model(name: str) -> Any:
            def decorate(cls: type) -> type:
                assert issubclass(cls, Base)
                self.models[name] = cls
                return cls

            return decorate

        registry = SimpleNamespace(register_manifest=lambda manifest, overwrite: self.manifests.append(manifest))
        contents: dict[str, dict[str, Any]] = {
            "lmms_eval": {},
            "lmms_eval.api": {},
            "lmms_eval.api.model": {"lmms": Base},
            "lmms_eval.api.registry": {"register_model": register_model},
            "lmms_eval.models": {"MODEL_REGISTRY_V2": registry},
            "lmms_eval.models.registry_v2": {"ModelManifest": Manifest},
            "lmms_eval.__main__": {"cli_evaluate": lambda: self.commands.append(sys.argv)},
        }
        for name, attributes in contents.items():
            module = ModuleType(name)
            vars(module).update(attributes)
            patch.setitem(sys.modules, name, module)
        patch.delitem(sys.modules, MODULE, raising=False)
        self.adapter = importlib.import_module(MODULE)

    def model(self, **arguments: Any) -> Any:
        return self.models["trtprune"](**arguments)


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Iterator[Harness]:
    yield Harness(monkeypatch)
    sys.modules.pop(MODULE, None)


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit.make(tmp_path_factory.mktemp("lmms") / "clip", tiny.Tiny(seed=5))


@pytest.fixture(scope="module")
def vlm(kit: Kit) -> Vlm:
    return kit.load("adafv", method="adafv", keep=6, keep_range=(2, 12))


QUESTIONS = ["What is it?", "<image>\nWhere is it?", "How many?"]
SETTINGS = {"max_new_tokens": 4, "until": ["\n\n"], "temperature": 0, "do_sample": False, "num_beams": 1}


def requests(model: Any, settings: dict[str, Any] = SETTINGS) -> list[Any]:
    model.task_dict["tiny"] = {"test": [{"image": picture(i)} for i in range(len(QUESTIONS))]}
    return [
        SimpleNamespace(args=(text, settings, lambda doc: [doc["image"]], i, "tiny", "test"))
        for i, text in enumerate(QUESTIONS)
    ]


def expected(vlm: Vlm, **settings: Any) -> list[str]:
    texts = [text.replace("<image>\n", "") for text in QUESTIONS]
    return [vlm.generate(picture(i), text, seed=0, **settings).text.strip() for i, text in enumerate(texts)]


def test_answers_are_those_of_the_runtime(harness: Harness, vlm: Vlm) -> None:
    model = harness.model(out=str(vlm.config.root), keep=4, batch_size=1, device=None, max_batch_size=None)
    answers = model.generate_until(requests(model))
    assert answers == expected(vlm, keep=4, max_new_tokens=4)
    assert [text for _, _, text in model.cached] == answers
    assert (model.kept_tokens, model.visual_tokens) == (12, 3 * vlm.config.model.visual_tokens)
    model.clean()


def test_another_method_and_the_builds_own_budget(harness: Harness, vlm: Vlm, kit: Kit) -> None:
    model = harness.model(pretrained=str(vlm.config.root), method="random", threads=1)
    assert model.keep == 6
    drawn = kit.load("random", method="random", keep=6)
    assert model.generate_until(requests(model)) == expected(drawn, max_new_tokens=4)
    whole = harness.model(out=str(vlm.config.root), method="none")
    assert whole.generate_until(requests(whole)) == expected(kit.load("none", method="none"), max_new_tokens=4)
    assert whole.kept_tokens == whole.visual_tokens
    unpruned = kit.load("none", method="none").config.root
    with pytest.raises(BudgetError, match="method=random without keep"):
        harness.model(out=str(unpruned), method="random")
    assert harness.model(out=str(unpruned), method="random", keep=3).keep == 3


def test_a_method_that_reads_clips_text(harness: Harness, vlm: Vlm, kit: Kit) -> None:
    clip = ClipKit.make(kit.path.parent / "text", kit.tiny, kit.model.model.vision_tower)
    model = harness.model(out=str(vlm.config.root), method="cdpruner", keep=4, clip=str(clip.path))
    built = kit.load("cdpruner", method="cdpruner", keep=4, clip=clip.path)
    assert model.generate_until(requests(model)) == expected(built, max_new_tokens=4)
    with pytest.raises(BudgetError, match="CLIP's text tower"):
        harness.model(out=str(vlm.config.root), method="cdpruner", keep=4)


def test_an_answer_is_as_long_as_fits(harness: Harness, vlm: Vlm) -> None:
    model = harness.model(out=str(vlm.config.root), keep=4)
    room = model._room(QUESTIONS[0], vlm.features([picture(0)]))
    assert vlm.generate(picture(0), QUESTIONS[0], keep=4, max_new_tokens=room).text is not None
    with pytest.raises(InputError, match="max_new_tokens"):
        vlm.generate(picture(0), QUESTIONS[0], keep=4, max_new_tokens=room + 1)
    # A task that says nothing, or wants more than there is room for, is served.
    assert len(model.generate_until(requests(model, {"until": "zzz"}))) == 3
    capped = harness.model(out=str(vlm.config.root), keep=4, max_new_tokens=2)
    assert capped.generate_until(requests(capped)) == expected(vlm, keep=4, max_new_tokens=2)


def test_what_is_refused(harness: Harness, vlm: Vlm) -> None:
    out = str(vlm.config.root)
    for arguments, error, message in [
        ({}, InputError, "--model_args: out is missing"),
        ({"out": out, "kep": 3}, InputError, "--model_args: kep: no such argument"),
        ({"out": out, "batch_size": 8}, InputError, "--batch_size 8"),
        ({"out": out, "keep": 99}, BudgetError, "keep=99"),
        ({"out": out, "method": "best"}, BudgetError, "best"),
    ]:
        with pytest.raises(error, match=message):
            harness.model(**arguments)
    model = harness.model(out=out)
    with pytest.raises(NotImplementedError, match="generation form"):
        model.loglikelihood([])
    with pytest.raises(NotImplementedError, match="one round"):
        model.generate_until_multi_round([])
    with pytest.raises(InputError, match="num_beams"):
        model.generate_until(requests(model, SETTINGS | {"num_beams": 3}))
    blind = requests(model)[0].args
    for nothing in ([], [None], None):
        request = SimpleNamespace(args=(*blind[:2], lambda doc, nothing=nothing: nothing, *blind[3:]))
        with pytest.raises(InputError, match="without a picture"):
            model.generate_until([request])


def test_nothing_pruned_is_not_reported(harness: Harness, vlm: Vlm, monkeypatch: pytest.MonkeyPatch) -> None:
    model = harness.model(out=str(vlm.config.root), keep=4)
    whole = harness.model(out=str(vlm.config.root), method="none")
    monkeypatch.setattr(model.vlm, "generate", lambda *a, keep, **b: whole.vlm.generate(*a, keep=None, **b))
    with pytest.raises(BudgetError, match="nothing was pruned"):
        model.generate_until(requests(model))


def test_registration(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = harness.adapter.manifest()
    assert manifest == Manifest("trtprune", f"{MODULE}.TrtPrune")
    monkeypatch.setattr(sys, "argv", ["x"])
    harness.adapter.main(["--tasks", "gqa"])
    harness.adapter.main(["--model", "dummy"])
    assert harness.manifests == [manifest, manifest]
    given = [command[1:] for command in harness.commands]
    assert given == [["--model", "trtprune", "--tasks", "gqa"], ["--model", "dummy"]]


@pytest.mark.skipif(importlib.util.find_spec("lmms_eval") is not None, reason="lmms-eval is installed")
def test_without_lmms_eval_it_says_so() -> None:
    with pytest.raises(InputError, match=r"lmms-eval cannot be imported: .* \(pip install"):
        importlib.import_module(MODULE)


def test_the_example_task_holds_together() -> None:
    from trtprune.eval.loaders import load_data

    data = load_data(str(TASK / "scenes.jsonl"), strict=True)
    assert (len(data.rows), data.metric) == (10, "exact")
    text = (TASK / "trtprune_scenes.yaml").read_text()
    assert "examples/lmms_task/scenes.jsonl" in text
    spec = importlib.util.spec_from_file_location("lmms_task_utils", TASK / "utils.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.doc_to_visual({"image": "scene-0.jpg"})[0].size == (336, 336)


def test_in_lmms_eval_itself(vlm: Vlm, tmp_path: Path) -> None:
    """The whole command on the committed task; what it writes is what the runtime answers."""
    pytest.importorskip("lmms_eval")
    arguments = {
        "--model_args": f"out={vlm.config.root},keep=4",
        "--tasks": "trtprune_scenes",
        "--include_path": "examples/lmms_task",
        "--batch_size": "1",
        "--output_path": str(tmp_path),
    }
    words = [word for pair in arguments.items() for word in pair]
    command = [sys.executable, "-m", MODULE, "--log_samples", *words]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **offline}, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    (samples,) = tmp_path.rglob("*samples_trtprune_scenes.jsonl")
    answers = {line["doc_id"]: line["filtered_resps"] for line in map(json.loads, samples.read_text().splitlines())}
    for number, line in enumerate(map(json.loads, (TASK / "scenes.jsonl").read_text().splitlines())):
        text = vlm.generate(str(TASK / line["image"]), line["question"], keep=4, max_new_tokens=8).text.strip()
        assert answers[number] in (text, [text])
