"""What the runtime's tests share: a built tiny model beside the same model in transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import AutoTokenizer
from transformers.models.auto.image_processing_auto import AutoImageProcessor

import trtprune
from tests.kit import tiny
from tests.kit.tiny_files import add_text_files
from trtprune.engine_dir import Part
from trtprune.runtime import Vlm


def picture(seed: int = 0, size: tuple[int, int] = (90, 70)) -> Image.Image:
    """A smooth random picture of (width, height) pixels."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def transformers_processor(path: Path) -> Any:
    """The checkpoint's processor, with the picture half in Pillow."""
    settings = json.loads((path / "processor_config.json").read_text())
    kind = getattr(transformers, settings.pop("processor_class"))
    tokenizer = AutoTokenizer.from_pretrained(path)
    images = AutoImageProcessor.from_pretrained(path, backend="pil")
    if "video_processor" not in kind.get_attributes():
        return kind.from_pretrained(path, tokenizer=tokenizer, image_processor=images)
    # The half for videos, which no test needs, asks for torchvision.
    if kind is transformers.InternVLProcessor:
        return internvl_processor(images, tokenizer, settings["image_seq_length"], path)
    processor = object.__new__(kind)
    processor.tokenizer, processor.image_processor = tokenizer, images
    processor.chat_template = (path / "chat_template.jinja").read_text()
    processor.image_token_id = tiny.IMAGE_TOKEN_ID
    processor.video_token, processor.video_processor = "<video>", None
    processor.image_token = "<image>"
    processor.fake_image_token, processor.global_image_token = "<fake_token_around_image>", "<global-img>"
    if kind is transformers.SmolVLMProcessor:
        processor.video_processor = SimpleNamespace(num_frames=1, fps=1)
    vars(processor).update(settings)
    return processor


def internvl_processor(images: Any, tokenizer: Any, length: int, path: Path) -> Any:
    """InternVL's processor, without the half for videos."""

    class Processor(transformers.InternVLProcessor):
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return type(argument)

    template = (path / "chat_template.jinja").read_text()
    return Processor(images, tokenizer, None, image_seq_length=length, chat_template=template)


class Recorder:
    """A decoder session that remembers every logits array."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.logits: list[np.ndarray] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def run(self, inputs: Any, cache: Any = None) -> dict[str, np.ndarray]:
        out = self.session.run(inputs, cache)
        self.logits.append(out["logits"][:, 0])
        return out


@dataclass
class Kit:
    """One tiny checkpoint in both worlds."""

    path: Path
    tiny: tiny.Tiny
    model: Any
    processor: Any

    @classmethod
    def make(cls, path: Path, t: tiny.Tiny | None = None) -> Kit:
        t = t or tiny.Tiny()
        path.mkdir(parents=True, exist_ok=True)
        model = tiny.make(path, t)
        add_text_files(path, t)
        return cls(path, t, model, transformers_processor(path))

    def load(self, name: str, **build: Any) -> Vlm:
        """The engine directory ``name``, built with these settings, loaded."""
        out = self.path.parent / f"{self.path.name}-{name}"
        trtprune.build(str(self.path), out, **build)
        return trtprune.load(out, threads=1)

    def inputs(self, images: Sequence[Image.Image], prompt: str) -> Any:
        """The processor's tensors for one question."""
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": prompt}]
        text = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        # Nested, as the images of one prompt: in a flat list, some processors take each for a prompt's only image.
        return self.processor(images=[list(images)], text=text, return_tensors="pt")

    def embeds(self, inputs: Any) -> torch.Tensor:
        """[1, S, D]: text embeddings with all image features in place."""
        with torch.no_grad():
            rows = self.model.get_input_embeddings()(inputs["input_ids"])
            names = ("image_sizes", "batch_num_images")
            sizes = {name: inputs[name] for name in names if name in inputs}
            features = self.model.get_image_features(inputs["pixel_values"], **sizes).pooler_output
            mask = inputs["input_ids"] == tiny.IMAGE_TOKEN_ID
            rows[mask] = torch.cat(list(features)).to(rows.dtype)
        return rows

    def generate(self, tokens: int, **inputs: Any) -> tuple[list[int], np.ndarray]:
        """Greedy ids of transformers and the logits they were chosen from, [tokens, V]."""
        with torch.no_grad():
            out = self.model.generate(
                **inputs, max_new_tokens=tokens, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
        start = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
        return out.sequences[0, start:].tolist(), torch.cat(out.logits).float().numpy()


def record(vlm: Vlm) -> Recorder:
    """Puts a recorder between a model and its decoder."""
    recorder = Recorder(vlm.chain.session("decoder"))
    vlm.chain._sessions[Part("decoder")] = recorder
    return recorder


def kept_rows(ids: np.ndarray, kept: Sequence[Sequence[int]], visual_tokens: int) -> np.ndarray:
    """Which of the S rows of an unpruned prompt remain."""
    keep = np.ones(len(ids), bool)
    places = np.flatnonzero(ids == tiny.IMAGE_TOKEN_ID).reshape(-1, visual_tokens)
    for image, indices in zip(places, kept, strict=True):
        keep[image] = False
        keep[image[list(indices)]] = True
    return np.flatnonzero(keep)


def same(first: Any, second: Any) -> bool:
    """Whether two results say the same for the same reasons."""
    return (first.token_ids, first.text, first.kept_indices, first.finish_reason) == (
        second.token_ids,
        second.text,
        second.kept_indices,
        second.finish_reason,
    )
