"""Engine directories whose ``config.json`` was changed anywhere: opened, described, loaded and asked."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

from tests.fuzz.fuzz_config import CONFIG, hostile
from tests.fuzz.fuzz_config import _weights as weights

SHORT = 24
PRELOAD = (
    "numpy",
    "trtprune.compiler.plan",
    "trtprune.compiler.building",
    "trtprune.models.llava",
    "trtprune.cli.inspect",
)

TEMPLATE = (
    "{% for m in messages %}{% for c in m['content'] %}"
    "{{ c['text'] if c['type'] == 'text' else '<image>' }}{% endfor %}{% endfor %}"
)
METHODS: tuple[dict[str, Any], ...] = (
    {"method": "divprune"},
    {"method": "none"},
    {"method": "fastv", "options": {"k": 1}},
)


def make_case(rng: random.Random) -> dict[str, Any]:
    """How the directory is built, and what is done to its config afterwards, as functions cannot be told apart."""
    return {"build": rng.choice(METHODS), "seed": rng.randrange(1 << 30), "changes": rng.choice((1, 1, 1, 2, 4))}


def attempt(case: dict[str, Any], folder: Path) -> None:
    """Built, spoilt, and used."""
    import trtprune
    from trtprune.cli.inspect import describe, render
    from trtprune.engine_dir import open_engine_dir

    write_checkpoint(folder / "model")
    trtprune.build(folder / "model", folder / "out", **case["build"])
    path, rng = folder / "out/config.json", random.Random(case["seed"])
    data = json.loads(path.read_text())
    for _ in range(case["changes"]):
        spoil(rng, data)
    path.write_bytes(json.dumps(data).encode("utf-8", "surrogatepass"))
    render(describe(open_engine_dir(folder / "out")))
    vlm = trtprune.load(folder / "out", threads=1)
    vlm.generate(picture(), "what is it?", max_new_tokens=3)


def spoil(rng: random.Random, data: dict[str, Any]) -> None:
    """Changes, removes or copies one value somewhere."""
    at: Any = data
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        key = rng.choice(keys)
        if isinstance(at[key], dict | list) and at[key] and rng.random() < 0.85:
            at = at[key]
            continue
        break
    action = rng.random()
    if action < 0.15:
        del at[key]
    elif action < 0.3 and isinstance(at, list):
        at.append(copy.deepcopy(at[key]))
    elif action < 0.45 and isinstance(at[key], int):
        at[key] = at[key] + rng.choice((-1, 1, 7)) if rng.random() < 0.5 else at[key] * rng.choice((0, -1, 2, 1000))
    elif action < 0.55 and isinstance(at[key], str):
        at[key] = rng.choice(("decoder", "decoder.0", "vision", "int64", "float16", "past_key_values.0.key", "../x"))
    else:
        at[key] = hostile(rng)


def picture() -> Any:
    from PIL import Image

    return Image.new("RGB", (40, 30), (200, 30, 30))


def write_checkpoint(path: Path) -> None:
    """The smallest whole one, of zeros."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "model.safetensors").write_bytes(weights("llava"))
    vocabulary = {text: number for number, text in enumerate(["<pad>", "<s>", "</s>", "<unk>", "Ċ", "<image>", "Ġ"])}
    for number in range(33, 127):
        vocabulary.setdefault(chr(number), len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<s>", "</s>", "<unk>", "<image>"])
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"image_token": "<image>"}))
    (path / "chat_template.jinja").write_text(TEMPLATE)
    sides = {"height": 28, "width": 28}
    processor = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 28}, "crop_size": sides}
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
