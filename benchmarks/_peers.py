"""A made-up checkpoint in transformers: from an image to the first token.

The processors of transformers want torchvision or further packages for videos; their image halves do not, and what the
other half does with the prompt is retold here.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _smolvlm_checkpoints import AROUND, WHOLE

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["PEERS", "Peer"]

WORDS = "w9 w11 w13 w12 w21 w34"


class Peer(ABC):
    """One checkpoint in float32, with attention by torch's own function.

    Args:
        path: The checkpoint.
        threads: CPU threads.

    Attributes:
        prompt: The prompt with the image's placeholder.
    """

    prompt: str

    def __init__(self, path: Path, threads: int) -> None:
        import torch
        import transformers

        torch.set_num_threads(threads)
        transformers.logging.set_verbosity_error()
        self._torch = torch
        self._words = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"))
        self._images = self.image_processor().from_pretrained(path)
        self._model = transformers.AutoModelForImageTextToText.from_pretrained(
            path, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()
        # A made-up model may want to end at once.
        self._model.generation_config.eos_token_id = None

    @staticmethod
    @abstractmethod
    def image_processor() -> Any:
        """The class of transformers' image processor in Pillow."""

    @abstractmethod
    def inputs(self, image: Image.Image) -> tuple[str, dict[str, Any]]:
        """The prompt with its placeholders, and the model's inputs of the image."""

    def first_token(self, image: Image.Image) -> tuple[float, int]:
        """Milliseconds to the first token, and the token."""
        start = time.perf_counter()
        text, inputs = self.inputs(image)
        inputs |= self._words(text, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        if "image_grid_thw" in inputs:
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == self._model.config.image_token_id).int()
        with self._torch.inference_mode():
            ids = self._model.generate(**inputs, max_new_tokens=1, do_sample=False)
        return 1e3 * (time.perf_counter() - start), int(ids[0, -1])


class _Qwen(Peer):
    prompt = f"w8 <|vision_start|> <|image_pad|> <|vision_end|> {WORDS}"

    @staticmethod
    def image_processor() -> Any:
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        return Qwen2VLImageProcessorPil

    def inputs(self, image: Image.Image) -> tuple[str, dict[str, Any]]:
        seen = dict(self._images(images=image, return_tensors="pt"))
        count = int(seen["image_grid_thw"].prod()) // 4
        return self.prompt.replace("<|image_pad|>", "<|image_pad|> " * count), seen


class _InternVL(Peer):
    prompt = f"w10 <IMG_CONTEXT> {WORDS}"

    @staticmethod
    def image_processor() -> Any:
        from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

        return GotOcr2ImageProcessorPil

    def inputs(self, image: Image.Image) -> tuple[str, dict[str, Any]]:
        pixels = self._images([image], return_tensors="pt", crop_to_patches=True)["pixel_values"]
        side = pixels.shape[-1] // self._model.config.vision_config.patch_size[0]
        count = len(pixels) * int((side * self._model.config.downsample_ratio) ** 2)
        return self.prompt.replace("<IMG_CONTEXT>", f"<img>{'<IMG_CONTEXT>' * count}</img>"), {"pixel_values": pixels}


class _SmolVLM(Peer):
    prompt = f"w7 <image> {WORDS}"

    @staticmethod
    def image_processor() -> Any:
        from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

        return SmolVLMImageProcessorPil

    def inputs(self, image: Image.Image) -> tuple[str, dict[str, Any]]:
        from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

        seen = self._images([[image]], return_tensors="pt", return_row_col_info=True)
        length = self._model.model.image_seq_len
        text = get_image_prompt_string(seen["rows"][0][0], seen["cols"][0][0], length, AROUND, "<image>", WHOLE)
        return self.prompt.replace("<image>", text), {"pixel_values": seen["pixel_values"]}


PEERS: dict[str, type[Peer]] = {"qwen": _Qwen, "internvl": _InternVL, "smolvlm": _SmolVLM, "idefics3": _SmolVLM}
"""Beginning of a shape's name → its peer."""
