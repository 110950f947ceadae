"""The README's first commands on the demo model, and its parity with transformers: the whole chain on real weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import trtprune
from tests.kit.runtime_kit import record
from trtprune.cli import main
from trtprune.demo import signs

PROMPT = "What color is the star?"
EXAMPLES = Path(__file__).parents[2] / "examples"
PICTURE = EXAMPLES / "scene.png"
# What a newcomer would ask; the objects of the scene but the green circle are small.
KNOWN = (
    ("shape.png", "What shape is in the image?", "triangle"),
    ("shape.png", "What color is the shape?", "blue"),
    ("scene.png", "What color is the star?", "red"),
    ("scene.png", "What shape is the blue object?", "circle"),
    ("scene.png", "Is the star on the left or on the right?", "right"),
    ("scene.png", "Is the black object at the top or at the bottom?", "top"),
    ("scene.png", "What color is the largest object?", "green"),
)


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    from trtprune.demo.assemble import assemble

    return assemble()


@pytest.fixture(scope="module")
def out(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "out"
    assert command("build", "--model", "demo", "--keep", 64, "-o", folder)[0] == 0
    return folder


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Any:
    import torch
    from transformers import LlavaForConditionalGeneration

    torch.set_num_threads(2)
    # float64, because float32 transformers is itself up to 1e-4 from it on logits of 43: this way the bound is on us.
    model = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float64).eval()
    # 32 tokens are wanted whatever they are; min_new_tokens would change which token wins.
    model.generation_config.eos_token_id = None
    return model


def command(*arguments: Any) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def run(out: Path, *more: Any) -> dict[str, Any]:
    code, stdout, stderr = command("run", out, "--image", PICTURE, "--prompt", PROMPT, "--json", *more)
    assert code == 0, stderr
    answer = json.loads(stdout)
    assert f"576 → {answer['kept_tokens']} visual tokens" in stderr
    return answer


def test_readme_commands(out: Path, tmp_path: Path) -> None:
    answers = {keep: run(out, "--keep", keep) for keep in (64, 16, 576)}
    for keep, answer in answers.items():
        assert answer["visual_tokens"] == 576
        assert answer["kept_tokens"] == keep
        assert answer["kept_indices"] == sorted(set(answer["kept_indices"]))
        assert len(answer["kept_indices"]) == keep
        assert 0 <= answer["kept_indices"][0] <= answer["kept_indices"][-1] < 576
        assert answer["finish_reason"] == "stop"
        assert set(answer["timings_ms"]) == {"preprocess", "vision", "prune", "prefill", "decode", "total"}
    assert answers[16]["kv_cache_bytes"] < answers[64]["kv_cache_bytes"] < answers[576]["kv_cache_bytes"]
    again = run(out)
    assert {name: again[name] for name in ("text", "token_ids", "kept_indices")} == {
        name: answers[64][name] for name in ("text", "token_ids", "kept_indices")
    }
    picture = tmp_path / "kept.png"
    arguments = ("show", out, "--image", PICTURE, "--prompt", PROMPT, "--keep", 64, "--keep", 16)
    assert command(*arguments, "--method", "adafv", "--method", "fastervlm", "-o", picture)[0] == 0
    assert Image.open(picture).width > 336


def test_it_knows_what_it_was_trained_for(out: Path) -> None:
    vlm = trtprune.load(out)
    found = [(name, q, vlm.generate(EXAMPLES / name, q, keep=576).text) for name, q, _ in KNOWN]
    assert found == list(KNOWN)


def test_the_other_model_reads_signs(tmp_path: Path) -> None:
    """Most numbers, of pictures it never saw; with another picture hardly any."""
    assert command("build", "--model", "demo-signs", "--keep", 64, "-o", tmp_path / "out")[0] == 0
    vlm = trtprune.load(tmp_path / "out")
    assert vlm.config.model.id == "demo-signs"
    pictures = [signs.generate(number, split="test") for number in range(5000, 5003)]
    right = blind = total = 0
    for found, other in zip(pictures, [*pictures[1:], pictures[0]], strict=True):
        for q in found.questions:
            if q.kind == "number":
                total += 1
                right += vlm.generate(found.image, q.text, keep=576).text == q.answer
                blind += vlm.generate(other.image, q.text, keep=64).text == q.answer
    assert total > 9
    assert right > 0.75 * total
    assert blind < 0.4 * total


def test_a_moved_directory_still_runs(out: Path, tmp_path: Path) -> None:
    before = run(out)
    moved = shutil.copytree(out, tmp_path / "elsewhere" / "moved")
    hidden = out.rename(out.parent / "hidden")
    try:
        after = run(moved)
    finally:
        hidden.rename(out)
    assert (after["text"], after["kept_indices"]) == (before["text"], before["kept_indices"])


def inputs(checkpoint: Path, picture: Image.Image, prompt: str) -> dict[str, Any]:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(checkpoint)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    found = dict(processor(images=picture, text=text, return_tensors="pt"))
    return found | {"pixel_values": found["pixel_values"].double()}


@pytest.mark.parametrize("prompt", [PROMPT, "Describe this picture in detail, please."])
def test_unpruned_equals_transformers(out: Path, checkpoint: Path, reference: Any, prompt: str) -> None:
    import torch

    picture = Image.open(PICTURE).convert("RGB")
    with torch.inference_mode():
        theirs = reference.generate(
            **inputs(checkpoint, picture, prompt),
            max_new_tokens=32,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    vlm = trtprune.load(out)
    recorder = record(vlm)
    ours = vlm.generate(picture, prompt, keep=576, max_new_tokens=32, ignore_eos=True)
    assert ours.token_ids == theirs.sequences[0, -32:].tolist()
    error = np.abs(np.concatenate(recorder.logits) - torch.cat(theirs.logits).numpy()).max()
    assert error <= 1e-4


@pytest.mark.parametrize("keep", [16, 64, 192])
def test_pruned_equals_transformers_given_the_pruned_embeddings(
    out: Path, checkpoint: Path, reference: Any, keep: int
) -> None:
    import torch

    picture = Image.open(PICTURE).convert("RGB")
    given = inputs(checkpoint, picture, PROMPT)
    vlm = trtprune.load(out)
    ours = vlm.generate(picture, PROMPT, keep=keep, max_new_tokens=32, ignore_eos=True)
    kept = np.asarray(ours.kept_indices).reshape(-1)
    assert len(kept) == keep
    with torch.inference_mode():
        ids = given["input_ids"]
        features = reference.model.get_image_features(pixel_values=given["pixel_values"])
        features = getattr(features, "pooler_output", features)
        embeds = reference.get_input_embeddings()(ids)[0]
        places = (ids[0] == reference.config.image_token_id).nonzero()[:, 0]
        embeds[places] = features[0].to(embeds.dtype)
        stays = torch.ones(len(embeds), dtype=torch.bool)
        stays[places] = False
        stays[places[torch.as_tensor(kept)]] = True
        embeds = embeds[stays][None]
        # generate() on embeddings alone numbers them 0, 1, 2 …: the method's compact positions.
        mask = torch.ones(embeds.shape[:2], dtype=torch.long)
        expected = reference.generate(inputs_embeds=embeds, attention_mask=mask, max_new_tokens=32, do_sample=False)
    assert ours.token_ids == expected[0].tolist()
