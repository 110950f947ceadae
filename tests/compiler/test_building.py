"""``build`` and its command: what is written, found again, refused, and left behind."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import trtprune
from tests.kit.tiny import Tiny
from tests.kit.tiny_files import complete
from trtprune import pruning
from trtprune.cli import main
from trtprune.engine_dir import open_engine_dir
from trtprune.errors import TrtpruneError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return complete(tmp_path_factory.mktemp("clip") / "clip-llama", Tiny())


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return complete(tmp_path_factory.mktemp("siglip") / "siglip-qwen2", Tiny(tower="siglip", decoder="qwen2"))


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_layout(checkpoint: Path, tmp_path: Path) -> None:
    made = trtprune.build(checkpoint, tmp_path / "out", keep=4, keep_range=(2, 16))
    assert {"config.json", "onnx", "tokenizer.json", "chat_template.jinja"} <= set(entries(tmp_path / "out"))
    assert entries(tmp_path / "out" / "onnx") == ["decoder.onnx", "embed.onnx", "pruner.onnx", "vision.onnx", "weights"]
    assert made == open_engine_dir(tmp_path / "out", verify="full")
    assert (made.pruning.method, made.pruning.keep, made.pruning.keep_range) == ("adafv", 4, (2, 16))
    assert made.model.visual_tokens == 16
    assert made.kv.bytes_per_token == 2 * 3 * 2 * 16 * 4
    assert {i.name for i in made.component("pruner").inputs} >= {
        "image_features",
        "cls_attention",
        "text_embeds",
        "keep",
    }
    text = (tmp_path / "out" / "config.json").read_text()
    assert str(checkpoint) not in text
    assert str(tmp_path) not in text


def test_weights_are_links_or_copies_as_asked(checkpoint: Path, tmp_path: Path) -> None:
    trtprune.build(checkpoint, tmp_path / "linked", keep=4, weights="link")
    trtprune.build(checkpoint, tmp_path / "copied", keep=4, weights="copy")
    inode = (checkpoint / "model.safetensors").stat().st_ino
    assert (tmp_path / "linked" / "onnx/weights" / "model.safetensors").stat().st_ino == inode
    assert (tmp_path / "copied" / "onnx/weights" / "model.safetensors").stat().st_ino != inode


def test_the_same_build_is_found_again(checkpoint: Path, tmp_path: Path) -> None:
    said: list[tuple[str, str]] = []
    out = tmp_path / "out"
    trtprune.build(checkpoint, out, keep=4)
    before = (out / "config.json").stat().st_ino
    trtprune.build(checkpoint, out, keep=4, report=lambda name, text: said.append((name, text)))
    assert (out / "config.json").stat().st_ino == before
    assert "already holds this build" in said[-1][1]
    trtprune.build(checkpoint, out, keep=4, force=True)
    assert (out / "config.json").stat().st_ino != before


def test_another_build_is_not_overwritten(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    trtprune.build(checkpoint, out, keep=4)
    with pytest.raises(TrtpruneError, match="holds another build"):
        trtprune.build(checkpoint, out, keep=5)
    assert open_engine_dir(out).pruning.keep == 4
    assert trtprune.build(checkpoint, out, keep=5, force=True).pruning.keep == 5


def test_a_foreign_directory_is_never_touched(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("do not delete")
    for force in (False, True):
        with pytest.raises(TrtpruneError, match="not an engine directory"):
            trtprune.build(checkpoint, tmp_path / "out", keep=4, force=force)
    assert entries(tmp_path / "out") == ["thesis.txt"]


def command(*arguments: Any) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--keep", 0], "--keep 0"),
        (["--keep", 17], "--keep 17"),
        (["--keep", -3], "--keep -3"),
        (["--keep", 4, "--keep-range", "8:16"], "--keep 4"),
        (["--keep-range", "0:16"], "--keep-range 0:16"),
        (["--keep-range", "9:5"], "--keep-range 9:5"),
        (["--method", "adavf"], "--method adavf"),
        (["--method", "none", "--keep", 4], "--method none"),
        (["--option", "quotta=0.5"], "--option quotta"),
        (["--option", "quota=7"], "--option quota"),
        (["--dtype", "int8"], "--dtype int8"),
        (["--dtype", "bfloat16"], "--dtype bfloat16"),
        (["--max-seq-len", 3], "--max-seq-len 3"),
        (["--max-seq-len", 100000], "--max-seq-len 100000"),
        (["--backend", "tensorrt"], "--backend tensorrt"),
        (["--lowering", "attention=magic"], "--lowering attention=magic"),
    ],
)
def test_bad_flags(checkpoint: Path, tmp_path: Path, arguments: list[Any], named: str) -> None:
    code, out, err = command("build", "-m", checkpoint, "-o", tmp_path / "out", *arguments)
    assert code == 1
    assert out == ""
    error = next(line for line in err.splitlines() if line.startswith("error:"))
    assert named in error
    assert "hint:" in err
    assert entries(tmp_path) == []


@pytest.mark.parametrize(
    ("method", "without"), [("adafv", {}), ("fastervlm", {}), ("visionzip", {"cls_token": "drop"}), ("scope", {})]
)
def test_a_tower_without_cls(siglip: Path, tmp_path: Path, method: str, without: dict[str, str]) -> None:
    """The method goes by the attention of the mean query, and says so; a CLS token that is asked for is refused."""
    code, _, err = command("build", "-m", siglip, "-o", tmp_path / "out", "--method", method)
    assert code == 0
    assert f"the vision tower has no CLS token: {method} goes by mean_query_attention" in err
    made = open_engine_dir(tmp_path / "out")
    assert made.vision.saliency == ("mean_query_attention",)
    options = made.pruning.options
    assert {name: value for name, value in options.items() if value != defaults(method)[name]} == {
        "received": "mean",
        **without,
    }
    assert "cls_feature" not in made.pruning.needs
    code, _, err = command(
        "build", "-m", siglip, "-o", tmp_path / "all", "--method", method, "--option", "received=all"
    )
    assert code == 0
    assert open_engine_dir(tmp_path / "all").vision.saliency == ("deep_attention",)


def defaults(method: str) -> dict[str, Any]:
    return pruning.get(method).validate_options()


@pytest.mark.parametrize(
    ("method", "option", "lacks"),
    [
        ("fastervlm", "received=cls", "the attention of a CLS token"),
        ("visionzip", "cls_token=keep", "the projected CLS token"),
    ],
)
def test_a_cls_token_that_is_missing(siglip: Path, tmp_path: Path, method: str, option: str, lacks: str) -> None:
    arguments = ("build", "-m", siglip, "-o", tmp_path / "out", "--method", method, "--option", option)
    code, _, err = command(*arguments)
    assert code == 1
    assert f"--method {method} needs {lacks}; the vision tower of this model has none" in err
    instead = {"received=cls": "received=mean", "cls_token=keep": "cls_token=drop"}[option]
    assert f"--option {instead}; or --method with one of: none, random" in err
    assert entries(tmp_path) == []


def test_unknown_names(tmp_path: Path) -> None:
    code, _, err = command("build", "-m", "llava-1.5-7c", "-o", tmp_path / "out")
    assert code == 1
    assert "llava-1.5-7b" in err
    code, _, err = command("build", "-m", tmp_path / "nowhere", "-o", tmp_path / "out")
    assert code == 1
    assert "nowhere" in err


def broken(checkpoint: Path, folder: Path) -> Path:
    copy = folder / "copy"
    shutil.copytree(checkpoint, copy)
    return copy


def test_a_truncated_weight_file(checkpoint: Path, tmp_path: Path) -> None:
    copy = broken(checkpoint, tmp_path)
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[:-100])
    code, _, err = command("build", "-m", copy, "-o", tmp_path / "out")
    assert code == 1
    assert "model.safetensors" in err
    assert entries(tmp_path) == ["copy"]


def test_an_unsupported_architecture(checkpoint: Path, tmp_path: Path) -> None:
    copy = broken(checkpoint, tmp_path)
    config = json.loads((copy / "config.json").read_text())
    config["architectures"] = ["FuyuForCausalLM"]
    (copy / "config.json").write_text(json.dumps(config))
    code, _, err = command("build", "-m", copy, "-o", tmp_path / "out")
    assert code == 1
    assert "FuyuForCausalLM" in err
    assert "llava, llava-next" in err


def test_no_tokenizer(checkpoint: Path, tmp_path: Path) -> None:
    copy = broken(checkpoint, tmp_path)
    (copy / "tokenizer.json").unlink()
    code, _, err = command("build", "-m", copy, "-o", tmp_path / "out")
    assert code == 1
    assert "tokenizer.json" in err
    assert entries(tmp_path) == ["copy"]


def test_json_and_streams(checkpoint: Path, tmp_path: Path) -> None:
    code, out, err = command("build", "-m", checkpoint, "-o", tmp_path / "out", "--keep", 4, "--json")
    assert code == 0
    assert json.loads(out)["pruning"]["keep"] == 4
    assert "16 → 4 visual tokens (25.0 % kept)" in err
    code, out, err = command("build", "-m", checkpoint, "-o", tmp_path / "out", "--keep", 4, "-q")
    assert code == 0
    assert out.strip() == str(tmp_path / "out")
    assert err == ""


def test_export_for_tensorrt_spells_ops_for_it(checkpoint: Path, tmp_path: Path) -> None:
    import onnx

    arguments = ("-m", checkpoint, "-o", tmp_path / "out", "--backend", "tensorrt-rtx", "--keep", 4)
    assert command("export", *arguments)[0] == 0
    assert open_engine_dir(tmp_path / "out").dtype == "float16"
    decoder = onnx.load(tmp_path / "out" / "onnx" / "decoder.onnx", load_external_data=False)
    ops = {node.op_type for node in decoder.graph.node}
    assert {"Attention", "TensorScatter"} <= ops
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    code, _, err = command("run", tmp_path / "out", "--image", tmp_path / "x.png", "--prompt", "x")
    assert code == 1
    assert "tensorrt-rtx" in err


def test_help_is_instant_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from trtprune.cli import main;"
        "r = CliRunner().invoke(main, ['build', '--help']); assert r.exit_code == 0;"
        "heavy = {'onnx', 'onnxruntime', 'onnxscript', 'onnx_ir', 'numpy', 'torch', 'PIL', 'tokenizers', 'rich'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_torch_at_build_time(checkpoint: Path, tmp_path: Path) -> None:
    code = (
        "import sys; import trtprune; trtprune.build(sys.argv[1], sys.argv[2], keep=4);"
        "print(sorted({'torch', 'transformers', 'safetensors'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(checkpoint), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_digest_tells_checkpoints_apart(checkpoint: Path, tmp_path: Path) -> None:
    copy = broken(checkpoint, tmp_path)
    data = np.memmap(copy / "model.safetensors", np.uint8, "r+")
    data[-4:] ^= 0x55
    data.flush()
    one = trtprune.build(checkpoint, tmp_path / "one", keep=4)
    two = trtprune.build(copy, tmp_path / "two", keep=4)
    assert one.files["onnx/weights/model.safetensors"] != two.files["onnx/weights/model.safetensors"]


@pytest.mark.parametrize("delay", [0.3, 0.7, 0.9, 1.1])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_all_or_nothing(checkpoint: Path, tmp_path: Path, number: int, delay: float) -> None:
    arguments = ("build", "-m", checkpoint, "-o", tmp_path / "out", "--keep", "4", "--weights", "copy")
    process = subprocess.Popen([sys.executable, "-m", "trtprune", *map(str, arguments)], stderr=subprocess.PIPE)
    time.sleep(delay)
    process.send_signal(number)
    process.communicate(timeout=60)
    left = entries(tmp_path)
    assert left in ([], ["out"])
    if left:
        open_engine_dir(tmp_path / "out", verify="full")
