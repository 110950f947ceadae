"""What a config rules out is said before weights are fetched or missed, with the way out: on the hub and on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto

import trtprune
from tests.kit import tiny, tiny_files
from tests.kit.hub_server import Hub, serve
from trtprune.checkpoint.advice import for_architecture
from trtprune.errors import TrtpruneError

LLAVA: dict[str, Any] = {
    "architectures": ["LlavaForConditionalGeneration"],
    "model_type": "llava",
    "text_config": {"model_type": "llama"},
}
WEIGHTS = ("model.safetensors", "model-00001-of-00002.safetensors", "pytorch_model.bin", "model.gguf", "params.pth")
SAFETENSORS, BIN = {"model.safetensors": b"w" * 5000}, {"pytorch_model.bin": b"w" * 5000}


def own(*architectures: str, **more: Any) -> dict[str, bytes]:
    return {"config.json": json.dumps({"architectures": list(architectures), **more}).encode()}


def llava(**more: Any) -> dict[str, bytes]:
    return {"config.json": json.dumps({**LLAVA, **more}).encode()}


# Files, arguments of the build, what the message and the hint must say.
CASES: dict[str, tuple[dict[str, bytes], dict[str, Any], str, str]] = {
    "authors-layout": (
        own("LlavaLlamaForCausalLM", model_type="llava", mm_vision_tower="openai/clip") | BIN,
        {},
        "'LlavaLlamaForCausalLM'], which trtprune does not support",
        "llava-hf/llava-1.5-7b-hf",
    ),
    "not-yet": (
        own("Gemma3ForConditionalGeneration", vision_config={"a": 1}) | SAFETENSORS,
        {},
        "Gemma3",
        "not sup",
    ),
    "experts": (
        own("Qwen3VLMoeForConditionalGeneration", vision_config={"a": 1}) | SAFETENSORS,
        {},
        "Qwen3VLMoe",
        "qwen3-vl-8b",
    ),
    "text-only": (
        own("LlamaForCausalLM", model_type="llama") | SAFETENSORS,
        {},
        "LlamaForCausalLM",
        "takes no pictures",
    ),
    "clip": (own("CLIPModel", vision_config={"a": 1}) | SAFETENSORS, {}, "CLIPModel", "--clip"),
    "siglip": (own("SiglipModel", vision_config={"a": 1}) | SAFETENSORS, {}, "SiglipModel", "vision encoder"),
    "remote-code": (
        own("FooVLForCausalLM", auto_map={"AutoModel": "modeling_foo.Foo"}) | SAFETENSORS,
        {},
        "FooVLForCausalLM",
        "never runs",
    ),
    "nf4": (
        llava(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"})
        | SAFETENSORS,
        {},
        "of this kind are not supported (bitsandbytes NF4)",
        "--weight-dtype",
    ),
    "gptq-text": (
        llava(text_config={"quantization_config": {"quant_method": "gptq", "bits": 2}}) | SAFETENSORS,
        {},
        "text_config.quantization_config.bits is 2, which trtprune does not read (GPTQ)",
        "--weight-dtype",
    ),
    "adapter": ({"adapter_config.json": b"{}", "adapter_model.safetensors": b"w" * 5000}, {}, "PEFT", "merge"),
    "gguf": ({"model.gguf": b"w" * 5000, "README.md": b""}, {}, "GGUF", "transformers' layout"),
    "authors-files": ({"params.json": b"{}", "params.pth": b"w"}, {}, "config.json is missing: this is the", "layout"),
    "only-pickles": (llava() | BIN, {}, "only pickled weights (pytorch_model.bin)", "save_pretrained"),
    "no-weights": (llava(), {}, "neither model.safetensors nor", "with its weights"),
    "keep": (llava() | SAFETENSORS, {"keep": 577}, "--keep 577: out of range", "a number from 1 to 576"),
    "keep-range": (llava() | SAFETENSORS, {"keep_range": [16, 5000]}, "--keep-range 16:5000", "576 visual tokens"),
    "max-seq-len": (llava() | SAFETENSORS, {"max_seq_len": 10**6}, "--max-seq-len 1000000", "prompt and the answer"),
    "no-cls": (
        llava(vision_config={"model_type": "siglip_vision_model"}) | SAFETENSORS,
        {"method": "fastervlm", "options": {"received": "cls"}},
        "--method fastervlm needs the attention of a CLS token",
        "received=mean",
    ),
    "picture-size": (
        llava() | SAFETENSORS | {"preprocessor_config.json": b'{"crop_size": {"height": 224, "width": 224}}'},
        {},
        "preprocessor_config.json makes 224",
        "correct crop_size",
    ),
    "generation": (
        llava() | SAFETENSORS | {"generation_config.json": b'{"num_beams": 4}'},
        {},
        "num_beams",
        "ignore",
    ),
    "tokenizer": (llava() | SAFETENSORS, {}, "tokenizer.json is missing", "AutoTokenizer"),
    "decoder": (
        llava(text_config={"model_type": "gemma2"}) | SAFETENSORS,
        {},
        "text_config.model_type",
        "llama, mistral",
    ),
}

SCRIPT = """
import json, sys
import trtprune
from trtprune.errors import TrtpruneError
for name, arguments in json.loads(sys.argv[1]).items():
    try:
        trtprune.build("owner/" + name, sys.argv[2], **arguments)
        print(json.dumps([name, "built", ""]))
    except TrtpruneError as error:
        print(json.dumps([name, error.flag_message, error.flag_hint]))
"""


def build_from_hub(hub: Hub, home: Path, models: dict[str, dict[str, Any]]) -> dict[str, tuple[str, str]]:
    """Message and hint by model, of builds in one process of their own."""
    drop = ("proxy", "hf_", "transformers_offline", "hugging")
    clean = {key: value for key, value in os.environ.items() if not any(part in key.lower() for part in drop)}
    clean |= {"HF_HOME": str(home), "HF_ENDPOINT": hub.url, "NO_PROXY": "*"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(models), str(home / "out")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=clean,
    )
    assert done.returncode == 0, done.stderr
    return {name: (message, hint) for name, message, hint in map(json.loads, done.stdout.splitlines())}


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """What is said of each model on the hub, and all paths the hub was asked for content."""
    hub = Hub("owner/none", {}, others={f"owner/{name}": files for name, (files, *_) in CASES.items()})
    with serve(hub):
        said = build_from_hub(hub, tmp_path_factory.mktemp("home"), {name: CASES[name][1] for name in CASES})
    return said, [path for method, path, *_ in hub.requests if "/resolve/" in path]


@pytest.mark.parametrize("name", CASES)
def test_on_the_hub_nothing_but_small_files_is_fetched(
    refused: tuple[dict[str, tuple[str, str]], list[str]], name: str
) -> None:
    said, paths = refused
    _, _, message, hint = CASES[name]
    assert message in said[name][0]
    assert hint in said[name][1]
    asked = [path.rpartition("/")[2] for path in paths if f"owner/{name}/" in path]
    assert not [file for file in asked if not file.endswith((".json", ".jinja"))], "weights were asked for"


# The texts are tried after weights that are here already, which the files of these cases are not.
@pytest.mark.parametrize("name", [name for name in CASES if name not in ("generation", "tokenizer")])
def test_on_disk_the_same_is_said(tmp_path: Path, name: str) -> None:
    files, arguments, message, hint = CASES[name]
    root = tmp_path / "model"
    root.mkdir()
    for file, data in files.items():
        (root / file).write_bytes(data)
    with pytest.raises(TrtpruneError) as caught:
        trtprune.build(root, tmp_path / "out", **arguments)
    assert message in caught.value.flag_message
    assert hint in str(caught.value.flag_hint)
    assert not (tmp_path / "out").exists()


def test_a_good_model_is_fetched_config_first(tmp_path: Path) -> None:
    path = tiny_files.complete(tmp_path / "model", tiny.Tiny(layers=1, vision_layers=2, shards=True))
    files = {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}
    shards = {name for name in files if name.endswith(".safetensors")}
    assert len(shards) > 1
    hub = Hub("owner/good", files)
    with serve(hub):
        said = build_from_hub(hub, tmp_path, {"good": {"keep": 4}})
        assert said["good"][0] == "built"
        asked = [
            path.rpartition("/")[2] for method, path, *_ in hub.requests if "/resolve/" in path and method == "GET"
        ]
        weights = [index for index, file in enumerate(asked) if file in shards]
        texts = [index for index, file in enumerate(asked) if file not in shards]
        assert {asked[index] for index in weights} == shards
        assert max(texts) < min(weights)


def test_advice_against_the_classes_of_transformers() -> None:
    """Every class of transformers that takes pictures is called one that does, every other decoder is not."""
    wrong = []
    mappings = (
        (modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, "this vision-language family is not supported yet"),
        (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "this is a language model that takes no pictures"),
    )
    pictures = set(mappings[0][0])
    seen = 0
    for names, words in mappings:
        for kind, classes in names.items():
            if words.endswith("pictures") and kind in pictures:
                continue
            try:
                config = CONFIG_MAPPING[kind]().to_dict()
            except Exception:  # some cannot be made without arguments
                continue
            name = classes if isinstance(classes, str) else classes[0]
            advice = for_architecture({**config, "architectures": [name]})
            seen += 1
            if advice is None or not advice.startswith(words):
                wrong.append((kind, advice))
    assert seen > 200
    # None is no advice, which is not wrong. Of the two left, one takes pictures and is listed as a decoder, the other's
    # config has no sign of pictures.
    assert {kind for kind, advice in wrong if advice is not None} <= {"mistral4", "phi4_multimodal"}
    assert len(wrong) < 20, wrong
