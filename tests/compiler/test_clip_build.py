"""``build --clip``: what is kept of a CLIP checkpoint, engines with it, and checkpoints that do not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

import trtprune
from tests.components.test_clip_text import QUESTION, Nearest
from tests.kit import tiny
from tests.kit.clip_kit import ClipKit, write_tokenizer
from tests.kit.runtime_kit import Kit, picture
from trtprune.backends.running import Running
from trtprune.cli import main
from trtprune.engine_dir import Part, digest_file, open_engine_dir
from trtprune.errors import BudgetError, BuildError, CheckpointError, EngineDirError, InputError, TrtpruneError
from trtprune.pruning import registry
from trtprune.variants import Variant, Variants

Change = Callable[[Path], None]


@pytest.fixture(autouse=True)
def nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._methods, Nearest.name, Nearest())


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit.make(tmp_path_factory.mktemp("clip-build") / "llava", tiny.Tiny(seed=43, layers=2))


@pytest.fixture(scope="module")
def clip(llava: Kit) -> ClipKit:
    return ClipKit.make(llava.path.parent / "clip", llava.tiny, llava.model.model.vision_tower)


def build(llava: Kit, clip: Path | None, out: Path, **arguments: Any) -> list[str]:
    """Builds, and returns what was said."""
    said: list[str] = []
    settings = {"method": Nearest.name, "keep": 5, **arguments}
    trtprune.build(llava.path, out, clip=clip, report=lambda name, text: said.append(f"{name}: {text}"), **settings)
    return said


# -- what is kept


def test_another_method_keeps_it_for_later(llava: Kit, clip: ClipKit, tmp_path: Path) -> None:
    """A build with --clip holds what methods that read CLIP's text need, whatever its own method."""
    build(llava, clip.path, tmp_path / "base", method="fastervlm")
    base = open_engine_dir(tmp_path / "base", verify="full")
    assert base.chain == ("vision", "embed", "pruner", "decoder")
    build(llava, clip.path, tmp_path / "direct")
    direct = trtprune.load(tmp_path / "direct", threads=1).generate(picture(1), QUESTION, max_new_tokens=3)
    shutil.copytree(tmp_path / "base", tmp_path / "moved")
    shutil.rmtree(tmp_path / "base")
    with Variants(tmp_path / "moved", Running(threads=1)) as variants:
        vlm = variants.open(Variant.make(Nearest.name))
        got = vlm.generate(picture(1), QUESTION, keep=5, max_new_tokens=3)
        assert (got.kept_indices, got.token_ids) == (direct.kept_indices, direct.token_ids)
        assert vlm.config.built_with["clip"] == "clip"


def test_the_same_build_is_found_again(llava: Kit, clip: ClipKit, tmp_path: Path) -> None:
    build(llava, clip.path, tmp_path / "out")
    assert "already holds this build" in build(llava, clip.path, tmp_path / "out")[-1]
    # From the build itself, which holds the CLIP too, it is the same again.
    trtprune.build(tmp_path / "out", tmp_path / "again", method=Nearest.name, keep=5)
    digests = {open_engine_dir(tmp_path / name).build_digest for name in ("out", "again")}
    assert len(digests) == 1
    other = ClipKit.make(tmp_path / "other", llava.tiny, llava.model.model.vision_tower, seed=8)
    with pytest.raises(BuildError, match="holds another build"):
        build(llava, other.path, tmp_path / "out")


def test_shards_and_copies(llava: Kit, clip: ClipKit, tmp_path: Path) -> None:
    """The model's and the CLIP's files of one name lie side by side."""
    clip.model.save_pretrained(tmp_path / "clip", max_shard_size="60KB")
    shutil.copy(clip.path / "tokenizer.json", tmp_path / "clip")
    build(llava, tmp_path / "clip", tmp_path / "out", weights="copy")
    build(llava, clip.path, tmp_path / "whole")
    names = sorted(path.name for path in (tmp_path / "out" / "onnx/weights").iterdir())
    assert "model.safetensors" in names
    assert len([name for name in names if name.startswith("clip-model-0")]) > 1
    shutil.rmtree(tmp_path / "clip")
    found = [
        trtprune.load(tmp_path / name, threads=1).generate(picture(1), QUESTION, max_new_tokens=3)
        for name in ("out", "whole")
    ]
    assert found[0].kept_indices == found[1].kept_indices


def test_quantised_decoder(llava: Kit, clip: ClipKit, tmp_path: Path) -> None:
    build(llava, clip.path, tmp_path / "out", weight_dtype="int8")
    build(llava, clip.path, tmp_path / "plain")
    found = [
        trtprune.load(tmp_path / name, threads=1).generate(picture(1), QUESTION, max_new_tokens=1)
        for name in ("out", "plain")
    ]
    assert found[0].kept_indices == found[1].kept_indices


def test_a_tower_that_was_trained_on(llava: Kit, clip: ClipKit, tmp_path: Path) -> None:
    """Fine-tuned a little: said, and built."""
    shutil.copytree(clip.path, tmp_path / "clip")
    edit_weights(tmp_path / "clip", lambda name, x: 1.05 * x if name.startswith("vision_model") else x)
    said = build(llava, tmp_path / "clip", tmp_path / "out")
    assert any("warning: CLIP clip: the model's vision tower was trained on" in line for line in said)
    assert not any("warning" in line for line in build(llava, clip.path, tmp_path / "same"))


def test_command(llava: Kit, clip: ClipKit, tmp_path: Path) -> None:
    arguments = ["build", "-m", llava.path, "-o", tmp_path / "out", "--method", Nearest.name, "--keep", 5]
    result = CliRunner().invoke(main, [*map(str, arguments), "--clip", str(clip.path)])
    assert result.exit_code == 0, result.output
    picture(1).save(tmp_path / "cat.png")
    run = ["run", tmp_path / "out", "--image", tmp_path / "cat.png", "--prompt", QUESTION, "--json"]
    result = CliRunner().invoke(main, [*map(str, run), "--max-new-tokens", "2"])
    assert json.loads(result.stdout)["kept_tokens"] == 5
    compare = ["compare", tmp_path / "out", "--against", tmp_path / "out", "--component", "clip_text", "--json"]
    result = CliRunner().invoke(main, [*map(str, compare)])
    assert result.exit_code == 0, result.output
    assert "clip_text_embeds" in result.stdout
    result = CliRunner().invoke(main, [*map(str, arguments[:-4]), "--method", Nearest.name, "--force"])
    assert result.exit_code == 1
    assert "--clip" in result.output
    assert "Traceback" not in result.output


# -- what does not fit


def edit_weights(path: Path, change: Callable[[str, np.ndarray], np.ndarray | None]) -> None:
    tensors = load_file(path / "model.safetensors")
    changed = {name: change(name, tensor) for name, tensor in tensors.items()}
    save_file({name: tensor for name, tensor in changed.items() if tensor is not None}, path / "model.safetensors")


def lose(name: str) -> Change:
    return lambda path: edit_weights(path, lambda other, x: None if other == name else x)


def truncate(path: Path) -> None:
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[: len(data) // 2])


def edit_tokenizer(**values: Any) -> Change:
    def change(path: Path) -> None:
        data = json.loads((path / "tokenizer.json").read_text())
        (path / "tokenizer.json").write_text(json.dumps({**data, **values}))

    return change


WRONG: dict[str, tuple[Change, str]] = {
    "no tokenizer": (lambda path: (path / "tokenizer.json").unlink(), "tokenizer.json is missing"),
    "broken tokenizer": (lambda path: (path / "tokenizer.json").write_text("{"), "tokenizer.json cannot be read"),
    "tokenizer of another model": (lambda path: write_tokenizer(path, 700), "has ids up to 699, the text tower 530"),
    "smaller tokenizer": (lambda path: write_tokenizer(path, 525), r"puts tokens \[523, 524\] around a text"),
    "bare tokenizer": (edit_tokenizer(post_processor=None), r"puts tokens \[\] around"),
    "cut off": (truncate, "model.safetensors"),
    "no weights": (lambda path: (path / "model.safetensors").unlink(), "neither model.safetensors"),
    "no config": (lambda path: (path / "config.json").unlink(), "config.json is missing"),
    "not a CLIP": (lambda path: tiny.edit_config(path, model_type="siglip"), "model_type is 'siglip', not 'clip'"),
    "no text tower": (lose("text_model.final_layer_norm.weight"), "lacks tensor 'text_model.final_layer_norm.weight'"),
    "no projection": (lose("visual_projection.weight"), "lacks tensor 'visual_projection.weight'"),
    "no vision tower": (lose("vision_model.embeddings.class_embedding"), "lacks tensor 'vision_model.embeddings.class"),
    "other shapes": (lambda path: tiny.edit_config(path, projection_dim=25), "has shape"),
    "impossible text tower": (
        lambda path: tiny.edit_config(path, text_config__num_attention_heads=5),
        "text_config.hidden_size = 32 is not a multiple of 5",
    ),
    "other size of picture": (
        lambda path: tiny.edit_config(path, vision_config__image_size=70),
        "its vision_config has image_size",
    ),
    "deeper": (
        lambda path: tiny.edit_config(path, vision_config__num_hidden_layers=5),
        "num_layers 5, the model's 4",
    ),
    "other weights": (
        lambda path: edit_weights(path, lambda name, x: x[::-1].copy() if name.startswith("vision_model") else x),
        "not the CLIP of this model: the weights of vision_model",
    ),
    "not numbers": (
        lambda path: edit_weights(path, lambda name, x: x * np.float32("nan") if "class_emb" in name else x),
        "not the CLIP of this model",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_clip_that_does_not_fit(llava: Kit, clip: ClipKit, tmp_path: Path, name: str) -> None:
    change, message = WRONG[name]
    shutil.copytree(clip.path, tmp_path / "clip", ignore=shutil.ignore_patterns("engine"))
    change(tmp_path / "clip")
    with pytest.raises(CheckpointError, match=message) as caught:
        build(llava, tmp_path / "clip", tmp_path / "out")
    assert caught.value.flag_message.startswith("--clip")
    assert "\n" not in caught.value.message
    assert "clip.text" not in caught.value.message
    assert name != "no weights" or "CLIPModel.from_pretrained" in (caught.value.hint or "")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("no-such-thing", "clip='no-such-thing': no such alias or directory"),
        ("./nowhere", "clip='./nowhere': nowhere: no such checkpoint directory"),
        ("", "clip is empty"),
    ],
)
def test_names_that_lead_nowhere(llava: Kit, tmp_path: Path, given: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        build(llava, given, tmp_path / "out")  # type: ignore[arg-type]
    assert "--model" not in str(caught.value)


def test_without_a_clip(llava: Kit, tmp_path: Path) -> None:
    with pytest.raises(
        BudgetError, match=r"method='clip-nearest' needs CLIP's text tower.*clip was not given"
    ) as caught:
        build(llava, None, tmp_path / "out")
    assert (caught.value.hint or "").startswith("clip CHECKPOINT")
    assert Nearest.name not in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["dinov2", "siglip"])
def test_other_towers(clip: ClipKit, tmp_path: Path, name: str) -> None:
    """There is no CLIP to give, and the hint does not ask for one."""
    kit = Kit.make(tmp_path / "llava", tiny.Tiny(tower=name, layers=1))
    with pytest.raises(BudgetError, match=f"the vision tower of this model is {name}") as budget:
        build(kit, None, tmp_path / "out")
    assert "--clip" not in (budget.value.hint or "")
    for method in (Nearest.name, "random"):
        with pytest.raises(
            TrtpruneError, match=r"clip=.*the model's vision tower is a |the vision tower of this model"
        ):
            build(kit, clip.path, tmp_path / "out", method=method)


def test_several_layers(clip: ClipKit, tmp_path: Path) -> None:
    kit = Kit.make(tmp_path / "llava", tiny.Tiny(seed=43, layers=1, feature_layer=[-2, -1]))
    with pytest.raises(CheckpointError, match="projector reads 2 layers"):
        build(kit, clip.path, tmp_path / "out")


@pytest.mark.parametrize("damage", ["missing", "not JSON", "uncut"])
def test_a_damaged_directory(llava: Kit, clip: ClipKit, tmp_path: Path, damage: str) -> None:
    build(llava, clip.path, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    file = tmp_path / "out" / "clip_tokenizer.json"
    if damage == "missing":
        del config["files"][file.name]
    else:
        text = "{" if damage == "not JSON" else json.dumps({**json.loads(file.read_text()), "truncation": None})
        file.write_text(text)
        with pytest.raises(EngineDirError, match="digest differs"):
            trtprune.load(tmp_path / "out")
        config["files"][file.name] = digest_file(file)
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(EngineDirError, match=r"clip_tokenizer\.json"):
        trtprune.load(tmp_path / "out")


def test_a_text_longer_than_any_prompt(llava: Kit, clip: ClipKit, tmp_path: Path) -> None:
    """Refused by its length, before a text tower spends minutes on it."""
    build(llava, clip.path, tmp_path / "out")
    vlm = trtprune.load(tmp_path / "out", threads=1)
    calls: list[Any] = []
    vlm.chain._sessions[Part("clip_text")] = type("Never", (), {"max_batch": 8, "run": lambda *a: calls.append(a)})()  # type: ignore[assignment]
    with pytest.raises(InputError, match="KV cache"):
        vlm.generate(picture(1), "word " * 3000)
    assert not calls


# -- engines


@pytest.mark.parametrize("target", ["sm89", "sm75"])
def test_engines(llava: Kit, clip: ClipKit, tmp_path: Path, target: str) -> None:
    """What is new in the chain compiles; for Turing, which has no products in float32, with what it has."""
    rtx = pytest.importorskip("tests.kit.rtx", reason="tensorrt-rtx is not installed", exc_type=ImportError)
    lowering = {"products": "primitives"} if target == "sm75" else None
    out = tmp_path / "out"
    build(llava, clip.path, out, backend="tensorrt-rtx", dtype="float16", lowering=lowering, export_only=True)
    for name, layers in (("vision", 3), ("clip_text", 0)):
        network = rtx.Network((out / "onnx" / f"{name}.onnx").read_bytes(), out / "onnx")
        network.check(attention=layers, cache_updates=0)
        assert network.build(targets=(target,)) > 0


def test_profiles(llava: Kit, clip: ClipKit, tmp_path: Path) -> None:
    from trtprune.backends.tensorrt.profiles import Limits, component_profiles

    build(llava, clip.path, tmp_path / "out", backend="tensorrt", dtype="float32", export_only=True)
    made = open_engine_dir(tmp_path / "out")
    limits = Limits(16, 5, (1, 16), 256, max_batch_size=3, max_input_len=100)
    (text,) = component_profiles(Part("clip_text"), made.component("clip_text").inputs, limits, "tensorrt")
    assert text["input_ids"] == ((1, 77), (7, 77), (7, 77))
    (pruner,) = component_profiles(Part("pruner"), made.component("pruner").inputs, limits, "tensorrt")
    assert pruner["clip_text_embeds"] == ((1, 1, 24), (1, 1, 24), (1, 7, 24))


def test_engines_answer_as_their_graphs(llava: Kit, clip: ClipKit) -> None:
    """On a machine that seems to have a GPU: padded segments, several runs joined there, and too many of them."""
    from tests.kit import trt_kit

    out = trt_kit.make_dir(llava, "clip", method=Nearest.name, keep=5, clip=clip.path, max_input_len=200)
    engines, _ = trt_kit.load(out)
    graphs = trtprune.load(out, provider="cpu", threads=1)
    for text in (QUESTION, "a cup on it " * 14, ""):
        got, want = (vlm.generate(picture(1), text, max_new_tokens=4) for vlm in (engines, graphs))
        assert (got.kept_indices, got.token_ids) == (want.kept_indices, want.token_ids)
    assert engines.chain.session("clip_text").max_batch == 8
    prompt = type("P", (), {"ids": np.zeros(4), "text": "cup " * 600})()
    joined, alone = (
        vlm.chain.memory.to_host(vlm.pipeline.clip_text.read(prompt)["clip_text_embeds"]) for vlm in (engines, graphs)
    )
    assert len(joined) > 16
    np.testing.assert_allclose(joined, alone, atol=1e-5)
    with pytest.raises(InputError, match="segments of CLIP's text tower; the engines were built for"):
        prune(engines, len(joined))


def prune(vlm: Any, segments: int) -> None:
    features = vlm.features([picture(1)])[0]
    assert vlm.pipeline.pruner is not None
    vlm.pipeline.pruner.prune(features, None, 5, 0, {"clip_text_embeds": np.zeros((segments, 24), np.float32)})
