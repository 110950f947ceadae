"""The graphs torch exports from transformers and from the papers' formulas, against those trtprune builds.

Both run in ONNX Runtime on the same inputs.  Nothing in ``export_scripts/`` imports trtprune, so an agreement is one
of two independent ways.
"""

from __future__ import annotations

import functools
import logging
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from tests.kit import pruning_cases as pc
from tests.kit import tiny
from tests.kit.runner import Chain
from trtprune import pruning

SCRIPTS = Path(__file__).parents[2] / "export_scripts"
sys.path.insert(0, str(SCRIPTS))

import export_common  # noqa: E402
import export_decoder  # noqa: E402
import export_pruner  # noqa: E402
import export_vision  # noqa: E402
from torch_pruners import METHODS  # noqa: E402

# Under pytest the root logger takes everything, and torch.export then writes a trace of itself.
logging.getLogger("torch.__trace").disabled = True

TOLERANCE = 1e-4
FAMILIES = {
    # as wide as the random cases of the pruners, so that one exported pruner serves both
    "clip-llama": tiny.Tiny(seed=20, hidden=pc.WIDTH, heads=2, kv_heads=1, layers=2, vision_layers=3),
    "dinov2-qwen2": tiny.Tiny(
        seed=21, tower="dinov2", decoder="qwen2", layers=1, vision_layers=3, feature_layer=[-1, 1], tied=True
    ),
    "siglip-mistral": tiny.Tiny(
        seed=22,
        tower="siglip",
        decoder="mistral",
        layers=1,
        vision_layers=2,
        strategy="full",
        text={"sliding_window": 7},
    ),
}
PRUNERS: list[tuple[str, dict[str, str]]] = [
    ("fastervlm", {}),
    ("adafv", {}),
    ("adafv", {"mode": "official", "quota": "0.1", "temperature": "20"}),
    ("zspaprune", {}),
    ("zspaprune", {"diversity": "meansim", "core_ratio": "0.25"}),
]


def open_(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def call(session: onnxruntime.InferenceSession, feed: dict[str, Any]) -> dict[str, np.ndarray]:
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feed), strict=True))


def close(actual: np.ndarray, expected: np.ndarray, tolerance: float = TOLERANCE) -> None:
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


class Exported:
    """A checkpoint's two exported graphs and the chain trtprune builds."""

    def __init__(self, t: tiny.Tiny, path: Path) -> None:
        self.t, self.path = t, path
        tiny.make(path, t)
        self.chain = Chain(path)
        for module, name in ((export_vision, "vision"), (export_decoder, "decoder")):
            assert module.main(["--model", str(path), "--output", str(path / f"{name}.onnx")]) == 0
        self.vision, self.decoder = open_(path / "vision.onnx"), open_(path / "decoder.onnx")

    def empty_cache(self, batch: int) -> dict[str, np.ndarray]:
        spec = self.chain.spec
        shape = (batch, spec.num_kv_heads, 0, spec.head_dim)
        return {
            f"past_key_values.{i}.{n}": np.zeros(shape, np.float32)
            for i in range(spec.num_layers)
            for n in ("key", "value")
        }

    def step(self, embeds: np.ndarray, start: int, cache: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, Any]]:
        """Logits of all new tokens, and the longer cache."""
        batch, length, _ = embeds.shape
        out = call(
            self.decoder,
            {
                "inputs_embeds": embeds,
                "position_ids": np.tile(np.arange(start, start + length), (batch, 1)),
                "attention_mask": np.ones((batch, start + length), np.int64),
                **cache,
            },
        )
        return out["logits"], {name: out[name.replace("past_key_values", "present")] for name in cache}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@functools.cache
def export(family: str, folder: Path) -> Exported:
    return Exported(FAMILIES[family], folder / family)


@pytest.fixture(params=FAMILIES)
def exported(request: pytest.FixtureRequest, folder: Path) -> Exported:
    return export(request.param, folder)


def test_vision(exported: Exported) -> None:
    for batch in (1, 3):
        pixels = tiny.pixels(exported.t, batch=batch, seed=batch)
        ours, theirs = exported.chain.vision(pixels), call(exported.vision, {"pixel_values": pixels})
        assert theirs.keys() == ours.keys()
        assert ("cls_attention" in ours) == (exported.t.tower != "siglip")
        assert ours["image_features"].std() > 0.05
        for name, array in ours.items():
            assert theirs[name].dtype == array.dtype
            close(theirs[name], array)


def test_decoder_prefill_and_steps(exported: Exported) -> None:
    """Logits of every token and the cache's contents, two rows, past a sliding window."""
    rng = np.random.default_rng(0)
    embeds = exported.chain.embed(rng.integers(6, exported.t.vocab, (2, 20)))
    ours, cache, start = exported.chain.decoder(2, 24), exported.empty_cache(2), 0
    for stop in (13, 17, 18, 19, 20):
        part = embeds[:, start:stop]
        logits, cache = exported.step(part, start, cache)
        assert logits.std() > 0.3
        close(logits, ours(part, [start, start]))
        start = stop
    for name, array in cache.items():
        close(array, ours.cache[name][:, :, :20])


def test_names_and_axes(exported: Exported) -> None:
    """Names are trtprune's; sizes that vary are symbolic; no path of the exporting machine is inside."""
    for name in ("vision", "decoder"):
        model = onnx.load(exported.path / f"{name}.onnx")
        onnx.checker.check_model(model)
        ours = exported.chain.sessions[name]
        theirs = {i.name for i in model.graph.input}, {o.name for o in model.graph.output}
        only_ours = {"write_index", "logits_index"} if name == "decoder" else set()
        only_theirs = {"attention_mask"} if name == "decoder" else set()
        assert theirs[0] - only_theirs == {i.name for i in ours.get_inputs()} - only_ours
        assert theirs[1] == {o.name for o in ours.get_outputs()}
        for value in (*model.graph.input, *model.graph.output):
            assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
        assert str(SCRIPTS).encode() not in model.SerializeToString()
        assert b"site-packages" not in model.SerializeToString()


@functools.cache
def pruner(method: str, options: tuple[tuple[str, str], ...], path: Path) -> onnxruntime.InferenceSession:
    file = path / f"{method}-{len(options)}.onnx"
    given = [text for name, value in options for text in ("--option", f"{name}={value}")]
    arguments = ["--method", method, "--hidden-size", str(pc.WIDTH), "--output", str(file), "--no-check", *given]
    assert export_pruner.main(arguments) == 0
    return open_(file)


@pytest.mark.parametrize(
    ("method", "texts"), PRUNERS, ids=lambda v: v if isinstance(v, str) else "-".join(v.values()) or "default"
)
def test_pruner_selects_alike(method: str, texts: dict[str, str], folder: Path) -> None:
    """Same indices on random batches; where they differ (equal scores, mostly), rounding must explain both."""
    options = pruning.get(method).validate_options(texts)
    options.pop("prompt_tokens", None)
    crops = options.pop("crops", "joint")
    options.pop("received", None)
    assert crops == "joint"
    ours = pc.session(method, tuple(options.items()))
    theirs = pruner(method, tuple(texts.items()), folder)
    count: Counter[str] = Counter()

    def explained(row: dict[str, Any], got: list[int]) -> bool:
        if method == "zspaprune":
            return pc.ZspaOracle(row, options["core_ratio"], options["diversity"]).explains(got)
        return method == "adafv" and got in pc.AdaFvOracle(row, **options).selections()

    @settings(max_examples=300, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(pc.cases())
    def check(case: dict[str, Any]) -> None:
        if case["kind"] == "holes" and method != "fastervlm":
            return  # features that are not finite: the formulas say nothing
        indices, features = pc.run(theirs, case)
        expected, _ = pc.run(ours, case)
        assert indices.shape == expected.shape
        np.testing.assert_array_equal(features, np.take_along_axis(case["image_features"], indices[..., None], axis=1))
        for row, got, want in zip(pc.rows(case), indices.tolist(), expected.tolist(), strict=True):
            count["rows"] += 1
            if got != want:
                count["ties"] += 1
                assert explained(row, got), f"{method} {options}: torch {got}, trtprune {want}"
                assert explained(row, want)

    check()
    print(f"\n{method} {options}: {dict(count)}")
    assert count["rows"] > 240
    assert count["ties"] <= count["rows"] // 50, count


def test_whole_chain(folder: Path) -> None:
    """Picture to logits: vision, adafv and decoder as exported, against vision, adafv and decoder as built."""
    e = export("clip-llama", folder)
    chain, keep = e.chain, 5
    ours, theirs = pc.session("adafv"), pruner("adafv", (), folder)
    pixels = tiny.pixels(e.t, batch=1, seed=3)
    text = chain.embed([[9, 33, 21, 8]])
    kept = []
    for vision, prune in ((chain.sessions["vision"], ours), (e.vision, theirs)):
        seen = call(vision, {"pixel_values": pixels})
        feed = {**seen, "text_embeds": text, "text_mask": np.ones((1, 4), np.int64), "keep": np.array([keep])}
        kept.append(call(prune, feed))
    assert kept[0]["kept_indices"].tolist() == kept[1]["kept_indices"].tolist()
    assert len(set(kept[0]["kept_indices"][0].tolist())) == keep
    sequences = [np.concatenate([chain.embed([[1]]), k["pruned_features"], text], axis=1) for k in kept]
    built = chain.decoder(1, 32)(sequences[0], [0])
    found, _ = e.step(sequences[1], 0, e.empty_cache(1))
    close(found, built)


# -- the command line -------------------------------------------------------------------------------------------


def test_runs_as_a_script(tmp_path: Path) -> None:
    """In a process of its own, from another directory, check on: says what it wrote and that it agrees."""
    done = subprocess.run(
        [sys.executable, SCRIPTS / "export_pruner.py", "--method", "fastervlm", "--hidden-size", "8", "-o", "p.onnx"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0].startswith("wrote p.onnx (")
    assert "  out kept_indices int64 [batch, keep]" in lines
    assert lines[-1].endswith(": ok")
    assert (tmp_path / "p.onnx").is_file()


def fails(capsys: pytest.CaptureFixture[str], main: Any, *arguments: Any) -> str:
    """stderr of a run that must end with exit code 1, one line and perhaps a hint."""
    assert main([str(a) for a in arguments]) == 1
    text = capsys.readouterr().err
    lines = text.splitlines()
    assert lines[0].startswith("error: ")
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("hint:  "))
    return text


@pytest.mark.parametrize("module", [export_vision, export_decoder, export_pruner])
def test_missing_model(module: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "x.onnx"
    assert "no such directory" in fails(capsys, module.main, "-m", tmp_path / "nowhere", "-o", out)
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in fails(capsys, module.main, "-m", tmp_path / "empty", "-o", out)
    (tmp_path / "empty" / "config.json").write_text("{")
    assert "cannot be read" in fails(capsys, module.main, "-m", tmp_path / "empty", "-o", out)
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "qwen2_vl"}')
    assert "model_type 'qwen2_vl' is not supported" in fails(capsys, module.main, "-m", tmp_path / "empty", "-o", out)
    assert not out.exists()


@pytest.mark.parametrize(
    "arguments", [("--hidden-size", "0"), ("--opset", "26"), ("--method", "other"), ("--dtype", "int8")]
)
def test_wrong_usage(arguments: tuple[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    size = () if arguments[0] == "--hidden-size" else ("--hidden-size", "8")
    with pytest.raises(SystemExit) as stopped:
        export_pruner.main([*size, *arguments, "-o", str(tmp_path / "x.onnx")])
    assert stopped.value.code == 2
    assert f"argument {arguments[0]}: " in capsys.readouterr().err


def test_bad_output(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    size = ("--hidden-size", 8)
    assert "is a directory" in fails(capsys, export_pruner.main, *size, "-o", tmp_path)
    assert "no such directory" in fails(capsys, export_pruner.main, *size, "-o", tmp_path / "a" / "b.onnx")


@pytest.mark.parametrize(
    ("method", "option"),
    [
        ("adafv", "mode=other"),
        ("adafv", "quota=0.6"),
        ("adafv", "quota=nan"),
        ("zspaprune", "mode=official"),
        ("fastervlm", "x=1"),
    ],
)
def test_bad_option(method: str, option: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ("--method", method, "--hidden-size", 8, "--option", option, "-o", tmp_path / "x.onnx")
    assert f"--option {option}" in fails(capsys, export_pruner.main, *arguments)


def test_method_that_the_tower_cannot_serve(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tiny.make(tmp_path / "m", tiny.Tiny(tower="siglip", layers=1, vision_layers=1))
    text = fails(capsys, export_pruner.main, "-m", tmp_path / "m", "--method", "adafv", "-o", tmp_path / "x.onnx")
    assert "has no CLS token" in text


def test_rope_that_torch_cannot_export(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 3.0}
    tiny.make(tmp_path / "m", tiny.Tiny(layers=1, vision_layers=1, rope=rope))
    text = fails(capsys, export_decoder.main, "-m", tmp_path / "m", "-o", tmp_path / "x.onnx")
    assert "rope_type 'dynamic'" in text


def test_missing_weights(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tiny.make(tmp_path / "m", tiny.Tiny(layers=1, vision_layers=1))
    (tmp_path / "m" / "model.safetensors").unlink()
    text = fails(capsys, export_vision.main, "-m", tmp_path / "m", "-o", tmp_path / "x.onnx")
    assert "model.safetensors" in text


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_without_torch(
    package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    for module in (export_vision, export_decoder, export_pruner):
        text = fails(capsys, module.main, "-m", tmp_path, "-o", tmp_path / "x.onnx")
        assert f"{package} is not installed" in text
        assert "pip install 'trtprune[torch]'" in text


def test_check_fails_beyond_tolerance(capsys: pytest.CaptureFixture[str]) -> None:
    tensor = torch.ones(2, 3)
    export_common.check("x", tensor.numpy(), tensor, 0.0)
    for wrong in (np.full((2, 3), 1.001), np.full((2, 3), np.nan), np.ones((3, 2))):
        with pytest.raises(export_common.Failure, match="check failed: x"):
            export_common.check("x", wrong, tensor, 1e-4)
    assert "ok" in capsys.readouterr().out


def test_planted_error_is_found(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrapper that takes the wrong hidden state does not pass its own check."""
    tiny.make(tmp_path / "m", tiny.Tiny(layers=1, vision_layers=3))
    right = export_vision.vision_module

    def wrong(model: Any) -> Any:
        model.config.vision_feature_layer = -1
        made = right(model)
        model.config.vision_feature_layer = -2
        return made

    monkeypatch.setattr(export_vision, "vision_module", wrong)
    text = fails(capsys, export_vision.main, "-m", tmp_path / "m", "-o", tmp_path / "x.onnx")
    assert "check failed: image_features, batch 1 differs" in text


def test_every_method_has_the_options_of_trtprune() -> None:
    """The torch pruners' defaults are ours; prompt_tokens is the runtime's affair, and center is not exported."""
    for name, kind in METHODS.items():
        defaults = pruning.get(name).validate_options()
        defaults.pop("prompt_tokens", None)
        defaults.pop("crops", None)  # what is exported has one crop an image
        defaults.pop("received", None)  # and goes by the CLS token
        assert defaults.pop("center", "false") == "false"
        assert kind.options == defaults
        needed = pruning.get(name).needs | ({"text_mask"} if "text_embeds" in pruning.get(name).needs else set())
        assert set(kind.inputs) == needed | {"image_features", "keep"}
