"""Whole answers in C++ on random checkpoints: ids, kept indices, texts and reasons as in Python."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest

import trtprune
from tests.kit import cpp_build, tiled, tiny
from tests.kit.clip_kit import ClipKit
from tests.kit.cpp_answers import Images, compare, for_driver
from tests.kit.runtime_kit import picture
from tests.kit.tiny_files import add_text_files
from trtprune import pruning
from trtprune.backends.opening import open_backend
from trtprune.engine_dir import open_engine_dir
from trtprune.errors import BackendError, EngineDirError
from trtprune.pruning.inputs import FROM_CLIP
from trtprune.runtime import Vlm

TOKENS = 32
SIZES = [(90, 70), (56, 56), (31, 200), (300, 120), (1, 1), (113, 57)]
"""(width, height)."""
LONG = "Describe what is on the table, left of the lamp, and say which of the two is nearer to the window."


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    folder = tmp_path_factory.mktemp("images")
    return Images(folder, {str(i): picture(i, size) for i, size in enumerate(SIZES)})


@pytest.fixture(scope="module")
def ask(images: Images) -> Callable[..., list[Any]]:
    program = cpp_build.driver("vlm")

    def call(vlm: Vlm, *calls: Any, **load: Any) -> list[Any]:
        return compare(program, vlm, calls, images, **load)

    return call


def checkpoint(path: Path, t: tiny.Tiny) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    tiny.make(path, t)
    add_text_files(path, t)
    return path


def load(path: Path, name: str, **settings: Any) -> Vlm:
    out = path.parent / f"{path.name}-{name}"
    trtprune.build(str(path), out, **settings)
    return trtprune.load(out, threads=1, provider_options=settings.get("provider_options"))


def question(*names: str, prompt: str = "What is on the table?", **options: Any) -> dict[str, Any]:
    return {"kind": "generate", "images": names, "prompt": prompt, "options": {"max_new_tokens": TOKENS, **options}}


def batch(*rows: tuple[list[str], str, dict[str, Any]], **options: Any) -> dict[str, Any]:
    requests = [{"images": names, "prompt": prompt, **more} for names, prompt, more in rows]
    return {"kind": "batch", "requests": requests, "options": {"max_new_tokens": TOKENS, **options}}


def turns(*names: str, repick: bool = True, **options: Any) -> dict[str, Any]:
    asked = ["What is this?", "And behind it?", LONG]
    options = {"max_new_tokens": 12, **options}
    return {
        "kind": "chat",
        "images": names,
        "turns": [{"prompt": prompt, "repick": repick, "options": options} for prompt in asked],
    }


MIXED = batch(
    (["0"], "Which?", {}), (["1"], LONG, {"max_new_tokens": 5}), (["2"], "", {"seed": 5}), temperature=0.9, seed=9
)


# -- LLaVA-1.5, each of towers and decoders once in the fast run


FAST = {
    "clip": tiny.Tiny(seed=71),
    "dinov2": tiny.Tiny(seed=72, tower="dinov2", decoder="qwen2", image_size=70, tied=True),
    "siglip": tiny.Tiny(seed=73, tower="siglip", decoder="mistral", strategy="full", dtype="float16"),
}


@pytest.fixture(scope="module", params=FAST)
def fast(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("fast") / request.param, FAST[request.param])


def test_one_graph(fast: Path, ask: Callable[..., list[Any]]) -> None:
    """One image, several, a batch of mixed lengths, draws, turns with and without the cache."""
    vlm = load(fast, "divprune", method="divprune", keep=6)
    answers = ask(
        vlm,
        question("0"),
        question("0", "1", keep=3),
        question("0", prompt=LONG, keep_ratio=0.5, temperature=0.8, seed=11),
        question("2", top_p=0.7, temperature=1.3, repetition_penalty=1.2, seed=2**63 - 1),
        MIXED,
        turns("0"),
        turns("0", "1", repick=False, keep=5),
        question("0", keep=10**6),
        question("0", keep=0),
        question("0", keep=3, keep_ratio=0.5),
        question("0", keep_ratio=1.5),
        question("0", max_new_tokens=10**6),
        question("0", stop=["e", "a"]),
        question("0", stop=[""]),
        question(),
        question("0", prompt="a <image> b"),
        question("0", prompt="<image> b", raw_prompt=True),
        question("0", ignore_eos=True, system="Be brief."),
    )
    assert len(answers[0]["token_ids"]) > 1


def test_pieces(fast: Path, ask: Callable[..., list[Any]], images: Images) -> None:
    """The pieces of an answer add up to its text; a callback ends it, and its words stay in the conversation."""
    vlm = load(fast, "none", method="none")
    (whole,) = ask(vlm, question("0") | {"pieces": 1000})
    assert "".join(whole["pieces"]) == whole["text"]
    assert whole["finish_reason"] in ("stop", "length")
    line = {"directory": str(vlm.config.root), "calls": [for_driver(question("0") | {"pieces": 2}, images)]}
    ((cut,),) = cpp_build.driver("vlm")([line])
    assert cut["finish_reason"] == "callback"
    assert cut["pieces"] == whole["pieces"][:2]
    assert cut["token_ids"] == whole["token_ids"][: len(cut["token_ids"])]
    assert len(cut["token_ids"]) < len(whole["token_ids"])


@pytest.mark.parametrize("name", ["sparsevlm", "fastv"])
def test_cut_decoder(tmp_path: Path, ask: Callable[..., list[Any]], name: str) -> None:
    path = checkpoint(tmp_path / "model", tiny.Tiny(seed=74, layers=5, image_size=112))
    vlm = load(path, name, method=name, keep=30)
    ask(vlm, *cut_calls())


def cut_calls() -> list[dict[str, Any]]:
    return [
        question("0"),
        question("0", "3", prompt=LONG, keep=20),
        batch((["0"], "Which?", {}), (["1", "2"], LONG, {"keep": 25})),
        turns("0"),
        turns("0", "1", repick=False),
        question("0", keep=1),
        question("0", prompt="What? <image>", raw_prompt=True),
    ]


OF_CROPS: dict[str, dict[str, Any]] = {
    "divprune": {},
    "divprune-newlines": {"method": "divprune", "newlines": "candidates"},
    "visionzip": {"method": "visionzip", "options": {"crops": "each"}},
}
"""A selection over all crops, one among newline tokens too, and one that reads a CLS row of each crop."""


@pytest.mark.parametrize(
    ("family", "name"), [("llava-onevision", "divprune"), *(("llava-next", name) for name in OF_CROPS)]
)
def test_several_crops(tmp_path: Path, ask: Callable[..., list[Any]], family: str, name: str) -> None:
    path = tiled.checkpoint(tmp_path / "model", family)
    tiled.build(path, tmp_path / "out", **{"method": "divprune", **OF_CROPS[name]})
    vlm = trtprune.load(tmp_path / "out", threads=1)
    ask(vlm, question("0"), question("2", keep=4), question("3", "0"), question("4", keep=500), MIXED, turns("3"))


def marked(family: str, **values: Any) -> tiny.Tiny:
    """A checkpoint of tiles with text around an image's visual tokens, in SmolVLM and Idefics3 around each tile's."""
    tower, layer = ("internvl", -1) if family == "internvl" else ("smolvlm", 4)
    return tiny.Tiny(**{"family": family, "tower": tower, "feature_layer": layer, "max_positions": 2048, **values})


@pytest.mark.parametrize(
    ("family", "method"), [("smolvlm", "divprune"), ("smolvlm", "sparsevlm"), ("internvl", "cdpruner")]
)
def test_marked_images(tmp_path: Path, ask: Callable[..., list[Any]], family: str, method: str) -> None:
    """Budgets over all spans of an image, some of which are left empty; their text stays, and rates no image."""
    t = marked(family, seed=81, layers=5)
    options = {"relevance": "prompt"} if method == "cdpruner" else {}
    vlm = load(checkpoint(tmp_path / "model", t), method, method=method, keep=12, options=options)
    first, *_ = ask(vlm, *marked_calls(vlm.config.model.image_token))
    assert first["token_ids"]
    assert first["kept_tokens"] == 9 or method == "sparsevlm"


def marked_calls(placeholder: str = "<image>") -> list[dict[str, Any]]:
    return [
        question("0", keep=9),
        question("3", "4", prompt=LONG),
        batch((["2"], "Which?", {}), (["1", "3"], LONG, {"keep": 15})),
        turns("2", "3", repick=False),
        question("0", prompt=f"{placeholder} What?", raw_prompt=True),
        question("5", prompt="a <row_1_col_1> b", keep_ratio=0.5),
        question("0", prompt=f"{placeholder}{placeholder} What?", raw_prompt=True),
        question("0", prompt="A <video>?"),
    ]


# -- packed towers: an image of any size is one run of the vision graph


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("qwen2.5-vl", {"method": "divprune", "keep": 3}),
        ("qwen3-vl", {"method": "divprune", "keep": 3}),
        pytest.param("qwen2-vl", {"method": "fastervlm", "keep": 3, "positions": "original"}, marks=pytest.mark.slow),
    ],
)
def test_packed_tower(tmp_path: Path, ask: Callable[..., list[Any]], family: str, settings: dict[str, Any]) -> None:
    """Positions of three axes; several images, a batch of mixed sizes, turns, and an image that is too narrow."""
    t = tiny.Tiny(family=family, seed=79, layers=4 if family == "qwen3-vl" else 2)
    vlm = load(checkpoint(tmp_path / "model", t), "packed", **settings)
    ask(
        vlm,
        question("0"),
        question("3", "1", keep=5),
        question("2", keep_ratio=0.4, temperature=0.9, seed=3),
        question("0", keep=500),
        question("0", prompt="<|video_pad|>"),
        MIXED,
        turns("0"),
        turns("3", "5", repick=False),
    )


@pytest.mark.parametrize("name", ["fastv", pytest.param("sparsevlm", marks=pytest.mark.slow)])
def test_levels_in_segments(tmp_path: Path, ask: Callable[..., list[Any]], name: str) -> None:
    """The levels of later layers go through a prune point with the rows that stay."""
    t = tiny.Tiny(family="qwen3-vl", seed=83, layers=5)
    vlm = load(checkpoint(tmp_path / "model", t), name, **LEVELS_INSIDE[name])
    levels, first = vlm.config.model.deepstack_levels, vlm.config.kv.segment_layers[0]
    assert levels > first, "no level is left behind the first prune point"
    ask(
        vlm,
        question("0"),
        question("3", "1", prompt=LONG, keep_ratio=0.7),
        MIXED,
        turns("0"),
        turns("3", "5", repick=False),
    )


LEVELS_INSIDE: dict[str, dict[str, Any]] = {
    "fastv": {"method": "fastv", "keep": 90},
    "sparsevlm": {"method": "sparsevlm", "options": {"schedule": "0:30,2:15", "recycle": 0}},
}


# -- all the rest in the slow run

METHODS = {
    "sparsevlm-auto": {"method": "sparsevlm", "keep": 30, "options": {"schedule": "auto"}},
    "sparsevlm-2": {"method": "sparsevlm", "options": {"version": "2.0", "heads": 3, "schedule": "0:40,2:21,3:9"}},
    "sparsevlm-rank": {"method": "sparsevlm", "keep": 30, "options": {"ratio": "rank", "scale": 1.7, "bias": 2}},
    "sparsevlm-budget": {"method": "sparsevlm", "keep": 30, "options": {"ratio": "rank"}},
    "pyramiddrop": {"method": "pyramiddrop", "keep": 30, "options": {"first": 1}},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("model", ["llama", "qwen2"])
def test_pruning_inside(tmp_path: Path, ask: Callable[..., list[Any]], name: str, model: str) -> None:
    t = tiny.Tiny(seed=75, decoder=model, layers=6, image_size=112, tower="dinov2" if model == "qwen2" else "clip")
    ask(load(checkpoint(tmp_path / "model", t), name, **METHODS[name]), *cut_calls())


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", ["smolvlm", "internvl"])
def test_pruning_inside_of_marked_images(tmp_path: Path, ask: Callable[..., list[Any]], name: str, family: str) -> None:
    # Room for the counts of each of the methods: 16 visual tokens a tile of SmolVLM.
    t = marked(family, seed=82, layers=6, more={"scale_factor": 1} if family == "smolvlm" else {})
    vlm = load(checkpoint(tmp_path / "model", t), name, **METHODS[name])
    ask(vlm, *marked_calls(vlm.config.model.image_token))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in pruning.names(inside=False) if name != "none"])
def test_methods(tmp_path: Path, ask: Callable[..., list[Any]], name: str) -> None:
    method = pruning.get(name)
    options = {option.name: 2 for option in method.options if option.name.endswith("_layer")} | {**method.without_clip}
    if method.needs_of(method.validate_options(options)) & set(FROM_CLIP):
        pytest.skip("reads CLIP's text tower, see test_clip_text")
    path = checkpoint(tmp_path / "model", tiny.Tiny(seed=76, feature_layer=-2))
    ask(
        load(path, name, method=name, keep=6, options=options),
        question("0"),
        question("0", "1", seed=4),
        MIXED,
        turns("2"),
    )


PACKED_METHODS = {
    **{name: {"method": name, "keep": 3} for name in pruning.names(inside=False) if name != "none"},
    "none": {"method": "none"},
    "fastv": {"method": "fastv", "keep": 60},
    "pyramiddrop": {"method": "pyramiddrop", "keep": 40, "options": {"first": 1}},
    "sparsevlm": {"method": "sparsevlm", "keep": 6, "options": {"schedule": "auto"}},
    "sparsevlm-2": {"method": "sparsevlm", "keep": 4, "options": {"version": "2.0", "heads": 2}},
    "int8": {"method": "divprune", "keep": 3, "weight_dtype": "int8"},
    "original": {"method": "divprune", "keep": 3, "positions": "original"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKED_METHODS)
@pytest.mark.parametrize("family", tiny.PACKED)
def test_methods_of_packed_towers(tmp_path: Path, ask: Callable[..., list[Any]], family: str, name: str) -> None:
    settings = PACKED_METHODS[name]
    method = pruning.get(settings["method"])
    if method.needs & set(FROM_CLIP):
        pytest.skip("reads CLIP's text tower, see test_clip_text")
    layers = {option.name: 1 for option in method.options if option.name.endswith("_layer")}
    options = {**layers, **settings.get("options", {})}
    if family == "qwen3-vl":
        options |= method.without_merging
        if method.merges:
            pytest.skip("levels cannot be merged, see tests/components/test_deepstack.py")
    path = checkpoint(tmp_path / "model", tiny.Tiny(family=family, seed=80, layers=6))
    vlm = load(path, name, **{**settings, "options": options})
    ask(vlm, question("0"), question("3", "1", seed=4), question("2", keep_ratio=0.5), MIXED, turns("5", repick=False))


def drawn_packed(family: str, seed: int) -> tiny.Tiny:
    """A random checkpoint of a packed tower."""
    r = random.Random(f"{family} {seed}")
    vision: dict[str, Any] = {"mlp_ratio": r.choice([2, 3])}
    if family == "qwen2.5-vl":
        vision = {"window_size": r.choice([56, 84])}
    elif family == "qwen3-vl":
        vision = {
            "num_position_embeddings": r.choice([1, 16, 49]),
            "deepstack_visual_indexes": r.sample(range(4), r.choice([0, 1, 2])),
        }
    return tiny.Tiny(
        family=family,
        seed=seed,
        layers=r.choice([2, 3]),
        tied=r.random() < 0.3,
        dtype=r.choice(["float32", "float16", "bfloat16"]),
        shards=r.random() < 0.3,
        old_names=r.random() < 0.5,
        max_positions=1024,
        vision=vision,
    )


def drawn(family: str, seed: int) -> tiny.Tiny:
    """A random checkpoint of a family."""
    r = random.Random(f"{family} {seed}")
    tower = (
        "siglip" if family == "llava-onevision" else r.choice(tiny.TOWERS if family == "llava" else ["clip", "siglip"])
    )
    tower = {"smolvlm": "smolvlm", "idefics3": "smolvlm", "internvl": "internvl"}.get(family, tower)
    patch = r.choice([8, 14])
    side = patch * r.choice([3, 4])
    more: dict[str, Any] = {}
    if tower == "smolvlm":
        more["scale_factor"] = r.choice([1, side // patch, 2 if side == 4 * patch else 3])
    elif tower == "internvl":
        side = 4 * patch
        more["downsample_ratio"] = r.choice([1.0, 0.5, 0.25])
    elif family != "llava":
        shapes = [(h, w) for h in (1, 2, 3) for w in (1, 2, 3) if h * w > 1]
        more["image_grid_pinpoints"] = [[h * side, w * side] for h, w in r.sample(shapes, r.randint(2, len(shapes)))]
    if family == "llava-onevision":
        more["vision_aspect_ratio"] = f"anyres_max_{r.choice([2, 4, 9])}"
    return tiny.Tiny(
        family=family,
        tower=tower,
        decoder={"smolvlm": "llama", "internvl": r.choice(["llama", "qwen2"])}.get(tower) or r.choice(tiny.DECODERS),
        seed=seed,
        layers=r.choice([2, 3]),
        image_size=side,
        patch_size=patch,
        tied=r.random() < 0.3,
        dtype=r.choice(["float32", "float16", "bfloat16"]),
        shards=r.random() < 0.3,
        old_names=r.random() < 0.5,
        feature_layer={"smolvlm": 4, "internvl": r.choice([-1, -2])}.get(tower) or r.choice([-1, -2, [-2, 1]]),
        strategy="full" if tower == "siglip" else r.choice(["default", "full"]) if family == "llava" else "default",
        max_positions=2048,
        more=more,
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(9))
@pytest.mark.parametrize(
    "family", ["llava", "llava-next", "llava-onevision", "smolvlm", "idefics3", "internvl", *tiny.PACKED]
)
def test_random_checkpoints(tmp_path: Path, ask: Callable[..., list[Any]], family: str, seed: int) -> None:
    r = random.Random(seed)
    path = checkpoint(tmp_path / "model", drawn_packed(family, seed) if family in tiny.PACKED else drawn(family, seed))
    weights = [None, None, "int8", "int4"][seed % 4]
    method = ["none", "divprune", "random"][seed // 3 % 3]
    settings: dict[str, Any] = {} if method == "none" else {"keep": r.randint(1, 6)}
    vlm = load(path, method, method=method, weight_dtype=weights, dtype="float32", **settings)
    names = [str(r.randrange(len(SIZES))) for _ in range(2)]
    ask(vlm, question(names[0]), question(*names, temperature=1.0, seed=seed), MIXED, turns(*names, repick=False))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cdpruner", "trim", "adafv"])
def test_clip_text(tmp_path: Path, ask: Callable[..., list[Any]], name: str) -> None:
    """CLIP's text tower reads the question, in segments where it is long."""
    t = tiny.Tiny(seed=77, feature_layer=-2)
    path = checkpoint(tmp_path / "model", t)
    clip = ClipKit.make(tmp_path / "clip", t, tiny.load(path).model.vision_tower)
    vlm = load(path, name, method=name, keep=6, clip=str(clip.path))
    ask(vlm, question("0"), question("0", "1", prompt=LONG * 3, keep=3))


@pytest.mark.slow
def test_memory(tmp_path: Path, images: Images) -> None:
    """Two hundred rounds of loading and asking take no more memory than fifty, and leave no descriptor open."""
    path = checkpoint(tmp_path / "model", tiny.Tiny(seed=78))
    vlm = load(path, "divprune", method="divprune", keep=6)
    calls = [for_driver(call, images) for call in (question("0"), MIXED, turns("1", repick=False))]
    line = {"directory": str(vlm.config.root), "load": {"threads": 2}, "calls": calls, "rounds": 200}
    (rounds,) = cpp_build.driver("vlm", timeout=1200)([line])
    memory, descriptors = zip(*rounds, strict=True)
    # The heap's own ups and downs are two megabytes; a leak moves the middle.
    assert median(memory[150:]) <= median(memory[30:80]) + 1024, memory[::10]
    assert set(descriptors[1:]) == {descriptors[1]}


def test_rounded_activations(fast: Path, images: Images) -> None:
    """Answers of products of 8-bit integers are Python's, and so are the refusals where there are no such products."""
    vlm = load(fast, "int8", method="divprune", keep=6, weight_dtype="int8", activation_dtype="int8")
    compare(cpp_build.driver("vlm"), vlm, [question("0"), MIXED], images)
    wrong: list[dict[str, Any]] = [{"provider": "cuda"}, {"provider_options": {"activations": "float32"}}]
    found = cpp_build.driver("vlm")([{"directory": str(vlm.config.root), "calls": [], "load": load} for load in wrong])
    for answer, load_settings in zip(found, wrong, strict=True):
        with pytest.raises(BackendError) as error:
            open_backend(
                vlm.config, provider=load_settings.get("provider"), options=load_settings.get("provider_options")
            )
        assert (answer["error"], answer["hint"]) == (error.value.message, error.value.hint)


def test_missing_library(fast: Path, images: Images, tmp_path: Path) -> None:
    """A library that is missing or something else is an error that says what to install."""
    vlm = load(fast, "none", method="none")
    (tmp_path / "other.so").write_bytes(b"no library")
    lines = [
        {"directory": str(vlm.config.root), "calls": [], "load": {"library": library, "provider": provider}}
        for library, provider in [
            ("/nowhere/libonnxruntime.so.1", ""),
            (str(tmp_path / "other.so"), ""),
            ("libm.so.6", ""),
            ("", "cuda"),
            ("", "tensorrt"),
            ("", "openvino"),
            ("", "abacus"),
        ]
    ]
    found = cpp_build.driver("vlm")(lines)
    assert [answer["code"] for answer in found] == [4] * len(found), found
    for answer in found[:3]:
        assert "ONNX Runtime" in answer["error"]
        assert "TRTPRUNE_ONNXRUNTIME" in answer["hint"]
    assert [answer["error"].split(":")[0] for answer in found[3:]] == [
        "provider='cuda'",
        "provider='tensorrt'",
        "provider='openvino'",
        "provider='abacus'",
    ]


@pytest.mark.parametrize("change", ["a byte", "the end"])
def test_damaged_weights(fast: Path, tmp_path: Path, change: str) -> None:
    """Weights are compared with their digest while they are loaded; what differs is told in Python's words, whatever
    ONNX Runtime says of them."""
    root = Path(shutil.copytree(load(fast, "none", method="none").config.root, tmp_path / "copy", symlinks=False))
    (weights,) = (root / "onnx/weights").iterdir()
    data = bytearray(weights.read_bytes())
    weights.unlink()
    data[-1] ^= 1
    weights.write_bytes(data if change == "a byte" else data[: len(data) // 2])
    with pytest.raises(EngineDirError) as expected:
        open_engine_dir(root)
    (found,) = cpp_build.driver("vlm")([{"directory": str(root), "calls": [], "load": {}}])
    assert (found["error"], found["hint"]) == (expected.value.message, expected.value.hint)
    (found,) = cpp_build.driver("vlm")([{"directory": str(root), "calls": [], "load": {"verify": "none"}}])
    assert ("error" in found) == (change == "the end"), found
