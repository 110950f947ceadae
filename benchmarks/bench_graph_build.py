"""Time and peak memory of building the graphs of a 7B checkpoint.

    python benchmarks/bench_graph_build.py [--repeats 5] [--json benchmarks/results/graph-build.json]

The checkpoint has the shape of llava-1.5-7b in float16 with made-up weights: its two safetensors files are sparse, so
14 GB cost no disk. Each repeat is a fresh process; "total" includes importing everything, as a user waits for it.
Target: under 2 s and 0.5 GB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from _machine import machine, summary

VISION = {
    "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768, "hidden_act": "quick_gelu",
}  # fmt: skip
TEXT = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32064, "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
CONFIG = {
    "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "image_token_index": 32000,
    "projector_hidden_act": "gelu", "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
    "vision_config": VISION, "text_config": TEXT, "torch_dtype": "float16", "tie_word_embeddings": False,
}  # fmt: skip


def tensors() -> dict[str, list[int]]:
    """Names and shapes as llava-hf/llava-1.5-7b-hf stores them."""
    vision, text = VISION, TEXT
    width, inner = vision["hidden_size"], vision["intermediate_size"]
    tower = "vision_tower.vision_model."
    shapes: dict[str, list[int]] = {
        tower + "embeddings.class_embedding": [width],
        tower + "embeddings.patch_embedding.weight": [width, 3, 14, 14],
        tower + "embeddings.position_embedding.weight": [577, width],
    }
    for norm in ("pre_layrnorm", "post_layernorm"):
        shapes |= {f"{tower}{norm}.{part}": [width] for part in ("weight", "bias")}
    for i in range(vision["num_hidden_layers"]):
        layer = f"{tower}encoder.layers.{i}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= {f"{layer}self_attn.{name}.weight": [width, width], f"{layer}self_attn.{name}.bias": [width]}
        shapes |= {f"{layer}mlp.fc1.weight": [inner, width], f"{layer}mlp.fc1.bias": [inner]}
        shapes |= {f"{layer}mlp.fc2.weight": [width, inner], f"{layer}mlp.fc2.bias": [width]}
        for norm in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{layer}{norm}.{part}": [width] for part in ("weight", "bias")}
    hidden, ffn = text["hidden_size"], text["intermediate_size"]
    for name, size in (("linear_1", width), ("linear_2", hidden)):
        shapes |= {f"multi_modal_projector.{name}.weight": [hidden, size]}
        shapes |= {f"multi_modal_projector.{name}.bias": [hidden]}
    for i in range(text["num_hidden_layers"]):
        layer = f"language_model.model.layers.{i}."
        shapes |= {f"{layer}self_attn.{name}_proj.weight": [hidden, hidden] for name in "qkvo"}
        shapes |= {f"{layer}mlp.{name}_proj.weight": [ffn, hidden] for name in ("gate", "up")}
        shapes |= {f"{layer}mlp.down_proj.weight": [hidden, ffn]}
        shapes |= {f"{layer}{norm}.weight": [hidden] for norm in ("input_layernorm", "post_attention_layernorm")}
    shapes |= {
        "language_model.model.embed_tokens.weight": [text["vocab_size"], hidden],
        "language_model.model.norm.weight": [hidden],
        "language_model.lm_head.weight": [text["vocab_size"], hidden],
    }
    return shapes


def write_checkpoint(folder: Path, shards: int = 3) -> int:
    """A sharded float16 checkpoint of sparse files; returns the bytes its weights claim."""
    from tokenizers import Tokenizer, models

    names, total, weight_map = list(tensors().items()), 0, {}
    for shard in range(shards):
        part = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        header, offset = {}, 0
        for name, shape in part:
            size = 2
            for dim in shape:
                size *= dim
            header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [offset, offset + size]}
            offset += size
            weight_map[name] = file
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / file).open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            stream.truncate(8 + len(text) + offset)
        total += offset
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map})
    )
    (folder / "config.json").write_text(json.dumps(CONFIG))
    tokenizer = Tokenizer(models.BPE(vocab={"<unk>": 0}, merges=[], unk_token="<unk>"))
    tokenizer.add_special_tokens(["<s>", "</s>", "<image>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    processor = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 336}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return total


CHILD = """
import resource, sys, time
start = time.perf_counter()
from trtprune._build import build
imported = time.perf_counter()
build(sys.argv[1], sys.argv[2], keep=64, force=True)
end = time.perf_counter()
print(end - imported, end - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, out = Path(folder) / "checkpoint", Path(folder) / "out"
        checkpoint.mkdir()
        size = write_checkpoint(checkpoint)
        rows = []
        for _ in range(arguments.repeats + 1):
            command = [sys.executable, "-c", CHILD, str(checkpoint), str(out)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append([float(number) for number in done.stdout.split()])
        rows = rows[1:]  # the first run compiles byte code
        onnx_bytes = sum(path.stat().st_size for path in (out / "onnx").iterdir())
    build, total, memory = (summary(list(column)) for column in zip(*rows, strict=True))
    result = {
        "command": "python benchmarks/bench_graph_build.py",
        "machine": machine(),
        "checkpoint_bytes": size,
        "onnx_bytes": onnx_bytes,
        "build_s": build,
        "with_imports_s": total,
        "peak_rss_gb": memory,
    }
    print(json.dumps(result, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
