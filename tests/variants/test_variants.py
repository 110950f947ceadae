"""Other methods on the weights of an engine directory, and the directory as the checkpoint it came from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import trtprune
from tests.kit import tiny
from tests.kit.runtime_kit import Kit, picture
from trtprune import pruning
from trtprune.backends.running import Running
from trtprune.engine_dir import digest_file, open_engine_dir
from trtprune.errors import BackendError, BudgetError, CheckpointError
from trtprune.show.references import select
from trtprune.variants import Variant, Variants, parse_variants
from trtprune.variants.planning import choose_variants

QUESTION = "what is red on the table ?"


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit.make(tmp_path_factory.mktemp("variants") / "model")


@pytest.fixture(scope="module")
def base(kit: Kit) -> Path:
    out = kit.path.parent / "base"
    trtprune.build(str(kit.path), out, method="adafv", keep=5)
    return out


def test_lists_are_parsed() -> None:
    found = parse_variants("adafv, zspaprune:core_ratio=0.3:diversity=meansim,adafv,sparsevlm:schedule=2:66,6:30")
    assert [v.label for v in found] == [
        "adafv",
        "zspaprune core_ratio=0.3 diversity=meansim",
        "sparsevlm schedule=2:66,6:30",
    ]
    assert Variant.parse("zspaprune:core_ratio=0.50") == Variant.make("zspaprune")


def test_methods_of_a_tower_without_a_cls_token(tmp_path: Path) -> None:
    """Their own defaults hold for further methods, too, and every report names them by what they go by."""
    kit = Kit.make(tmp_path / "model", tiny.Tiny(tower="siglip", strategy="full"))
    base = kit.path.parent / "base"
    trtprune.build(str(kit.path), base, method="adafv", keep=5)
    with Variants(base, Running(threads=1)) as variants:
        assert variants.own.label == "adafv received=mean"
        chosen, _ = choose_variants("all", variants.own, tower=variants.tower)
        assert chosen.count(variants.own) == sum(variant.method == "adafv" for variant in chosen) == 1
        assert {v.label for v in chosen} >= {"fastervlm received=mean", "visionzip cls_token=drop received=mean"}
        (all_queries,) = parse_variants("fastervlm:received=all", tower=variants.tower)
        assert all_queries.label == "fastervlm received=all"
        assert variants.open(all_queries).config.vision.saliency == ("deep_attention",)
        (mean,) = parse_variants("fastervlm", tower=variants.tower)
        vlm = variants.open(mean)
        view = variants.open(variants.own).look(picture(4), QUESTION)
        assert (
            select(variants.open(variants.own), view, keep=6, method="fastervlm").tolist()
            == vlm.select(vlm.look(picture(4), QUESTION), keep=6).tolist()
        )
        with pytest.raises(BudgetError, match="needs the attention of a CLS token"):
            variants.open(Variant.parse("fastervlm:received=cls", tower=variants.tower))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("adafw", "method='adafw'"),
        ("random,adafv:quota=7", "'quota': '7'"),
        ("adafv:quote=0.1", "quote"),
        ("adafv:", "colon"),
        (" ", "names no method"),
        ("", "names no method"),
    ],
)
def test_lists_that_are_wrong(text: str, said: str) -> None:
    with pytest.raises(BudgetError, match=said) as caught:
        parse_variants(text)
    assert caught.value.hint


def test_variants_answer_as_their_own_builds(kit: Kit, base: Path) -> None:
    """Same kept tokens and ids as a build from the checkpoint, with one decoder for all that can share it."""
    opened = []
    with Variants(base, Running(threads=1)) as variants:
        assert variants.own == Variant.make("adafv")
        for variant in parse_variants("adafv,zspaprune:core_ratio=0.3,random,none,fastv:k=1"):
            vlm = variants.open(variant)
            opened.append(vlm)
            assert vlm is variants.open(variant)
            keep = None if variant.method == "none" else 9
            got = vlm.generate(picture(4), QUESTION, keep=keep, max_new_tokens=6, seed=3)
            direct = kit.load(f"direct-{variant.method}", method=variant.method, options=dict(variant.options))
            want = direct.generate(picture(4), QUESTION, keep=keep, max_new_tokens=6, seed=3)
            assert (got.token_ids, got.kept_indices) == (want.token_ids, want.kept_indices), variant
        decoders = {id(vlm.chain.session("decoder")) for vlm in opened[:4]}
        assert len(decoders) == 1
        assert len({id(vlm.chain.session("embed")) for vlm in opened}) == 1
        assert len({id(vlm.pipeline.decoder._pool) for vlm in opened[:4]}) == 1
        variants.release(Variant.make("random"))
        assert opened[0].generate(picture(4), QUESTION, max_new_tokens=2).token_ids
        folders = [path for path in base.parent.iterdir() if path.name.startswith(".variants-")]
        assert len(folders) == 1
        weights = {p.stat().st_ino for p in folders[0].glob("*/onnx/weights/*")}
        assert weights == {p.stat().st_ino for p in (base / "onnx/weights").iterdir()}
    assert not [path for path in base.parent.iterdir() if path.name.startswith(".variants-")]


def test_released_sessions_are_closed(base: Path) -> None:
    with Variants(base, Running(threads=1)) as variants:
        first, second = Variant.make("random"), Variant.make("fastv", {"k": 1})
        variants.open(first)
        count = len(variants._sessions)
        variants.open(second)
        assert len(variants._sessions) > count
        variants.release(second)
        assert len(variants._sessions) == count
        variants.release(first)
        assert not variants._sessions


def test_other_directories_are_taken_as_they_are(kit: Kit, base: Path, tmp_path: Path) -> None:
    other = trtprune.build(str(kit.path), tmp_path / "other", method="zspaprune", keep_range=(3, 11))
    with Variants(base, others=[other.root]) as variants:
        assert variants.config(Variant.make("zspaprune")).root == other.root
    half = trtprune.build(str(kit.path), tmp_path / "half", method="zspaprune", dtype="float16")
    with pytest.raises(BudgetError, match="half: not built from the model"):
        Variants(base, others=[half.root])


def test_build_from_a_build(kit: Kit, base: Path, tmp_path: Path) -> None:
    again = trtprune.build(base, tmp_path / "again", method="zspaprune")
    direct = trtprune.build(str(kit.path), tmp_path / "direct", method="zspaprune")
    assert again.build_digest == direct.build_digest
    assert again.files == direct.files
    assert again.model == direct.model
    assert json.loads((base / "model_config.json").read_text()) == json.loads((kit.path / "config.json").read_text())


def test_quantised_weights_cannot_stand_for_the_checkpoint(kit: Kit, tmp_path: Path) -> None:
    made = trtprune.build(str(kit.path), tmp_path / "int8", weight_dtype="int8")
    with pytest.raises(CheckpointError, match="quantised to int8") as caught:
        trtprune.build(made.root, tmp_path / "x", method="random")
    assert "model=" in str(caught.value.hint)
    with Variants(made.root, Running(threads=1), model=kit.path) as variants:
        vlm = variants.open(Variant.make("random"))
        assert vlm.config.weight_dtype == "int8"
        assert vlm.generate(picture(), QUESTION, keep=4, max_new_tokens=2).kept_tokens == 4


def test_damage_is_found_before_it_is_built_from(kit: Kit, tmp_path: Path) -> None:
    made = trtprune.build(str(kit.path), tmp_path / "made")
    (made.root / "model_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"model_config\.json"):
        trtprune.build(made.root, tmp_path / "x")
    config = json.loads((made.root / "config.json").read_text())
    del config["files"]["model_config.json"]
    (made.root / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"did not keep model_config\.json"):
        trtprune.build(made.root, tmp_path / "x")


def test_engines_are_not_built_on_the_way(base: Path, tmp_path: Path) -> None:
    """A directory of engines is only asked for what it holds, unless ONNX Runtime runs its graphs."""
    import shutil

    root = shutil.copytree(base, tmp_path / "engines")
    config = json.loads((root / "config.json").read_text())
    config["backend"] = "tensorrt-rtx"
    (root / "config.json").write_text(json.dumps(config))
    with (
        Variants(root) as variants,
        pytest.raises(BackendError, match="tensorrt-rtx engines of method adafv") as caught,
    ):
        variants.config(Variant.make("random"))
    assert "--with" in str(caught.value.hint)
    with Variants(root, Running(provider="cpu", threads=1)) as variants:
        assert variants.config(Variant.make("random")).pruning.method == "random"


def test_model_config_is_listed_with_its_digest(base: Path) -> None:
    made = open_engine_dir(base, verify="full")
    assert made.files["model_config.json"] == digest_file(base / "model_config.json")
    assert pruning.get(made.pruning.method).name == "adafv"
