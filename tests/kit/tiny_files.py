"""The text files a tiny checkpoint of ``tiny.make`` lacks: tokenizer, chat template, image processor.

The tokenizer is byte-level BPE without merges: any text is covered, a token a byte, 160 ids in all would not do, so
printable ASCII has ids of its own and every other byte shares the unknown token.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.kit.tiny import (
    BOS,
    END_TOKEN_ID,
    EOS,
    IMAGE_TOKEN_ID,
    PACKED,
    PAD,
    START_TOKEN_ID,
    VIDEO_TOKEN_ID,
    Tiny,
    make,
)

TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for item in message['content'] if item['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for item in message['content'] if item['type'] == 'text' %}{{ item['text'] }}{% endfor %}"
    "{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
PROCESSORS = {
    "clip": {
        "image_processor_type": "CLIPImageProcessor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "do_center_crop": True,
    },
    "dinov2": {
        "image_processor_type": "BitImageProcessor",
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "do_center_crop": True,
    },
    "siglip": {
        "image_processor_type": "SiglipImageProcessor",
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    },
    "smolvlm": {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]},
    "internvl": {
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "crop_to_patches": False,  # InternVL's processor cuts all the same
    },
}


PACKED_TEMPLATE = TEMPLATE.replace("<image>\n", "<|vision_start|><|image_pad|><|vision_end|>")
FAMILIES = {
    "llava": (None, "LlavaProcessor"),
    "llava-next": ("LlavaNextImageProcessor", "LlavaNextProcessor"),
    "llava-onevision": ("LlavaOnevisionImageProcessor", "LlavaOnevisionProcessor"),
    "qwen2-vl": ("Qwen2VLImageProcessor", "Qwen2VLProcessor"),
    "qwen2.5-vl": ("Qwen2VLImageProcessor", "Qwen2_5_VLProcessor"),
    "qwen3-vl": ("Qwen2VLImageProcessorFast", "Qwen3VLProcessor"),
    "smolvlm": ("SmolVLMImageProcessor", "SmolVLMProcessor"),
    "idefics3": ("Idefics3ImageProcessor", "Idefics3Processor"),
    "internvl": ("GotOcr2ImageProcessorFast", "InternVLProcessor"),
}
"""Family → image processor, where the tower does not decide, and processor."""
IMAGE_TOKENS = {"internvl": "<IMG_CONTEXT>", **dict.fromkeys(PACKED, "<|image_pad|>")}
"""Family → placeholder, where it is not ``<image>``."""
EXTRA_TOKENS = {
    "internvl": {"start_image_token": "<img>", "end_image_token": "</img>", "video_token": "<video>"},
}
"""Family → further special tokens, by their names in ``tokenizer_config.json``."""


MARKERS = ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
MARKERS += [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2, 3)]
"""Tokens around the images of SmolVLM; a third row has none, as a seventh in the published tokenizers."""


def add_text_files(path: Path, t: Tiny, *, template: bool = True) -> None:
    """Writes tokenizer.json, tokenizer_config.json, preprocessor_config.json and the chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    packed = t.family in PACKED
    image_token, extra = IMAGE_TOKENS.get(t.family, "<image>"), EXTRA_TOKENS.get(t.family, {})
    special = {PAD: "<pad>", BOS: "<s>", EOS: "</s>", 3: "<unk>", IMAGE_TOKEN_ID: image_token}
    if packed:
        special |= {VIDEO_TOKEN_ID: "<|video_pad|>", START_TOKEN_ID: "<|vision_start|>"}
        special |= {END_TOKEN_ID: "<|vision_end|>"}
    vocab = {text: number for number, text in special.items()}
    vocab["Ċ"] = 4  # byte-level spelling of a newline
    number = 6
    for character in ["Ġ", *map(chr, range(33, 127))]:
        vocab[character] = number
        number += 1
    markers = [*extra.values(), *(MARKERS if t.family in ("smolvlm", "idefics3") else [])]
    special |= dict(enumerate(markers, number))
    for rest in range(number, t.vocab):
        vocab.setdefault(special.get(rest, f"<extra{rest}>"), rest)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special.values()))
    tokenizer.save(str(path / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
    }
    if t.family == "internvl":
        config |= {"extra_special_tokens": {**extra, "context_image_token": image_token}}
    else:
        config |= {"image_token": image_token}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    size = t.image_size if isinstance(t.image_size, int) else t.image_size[0]
    processor = {
        **PROCESSORS[t.tower],
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "rescale_factor": 1 / 255,
        "resample": 3,
    }
    image_processor, processor_class = FAMILIES[t.family]
    if packed:
        _add_packed_files(path, t, processor_class, template=template)
        return
    if t.family in ("smolvlm", "idefics3"):
        processor |= {"image_processor_type": image_processor, "resample": 1, "do_image_splitting": True}
        longest = {"size": {"longest_edge": 3 * size}, "max_image_size": {"longest_edge": size}}
    elif image_processor is not None:
        processor |= {"image_processor_type": image_processor}
    if "image_grid_pinpoints" in t.more:
        processor |= {"do_pad": True, "image_grid_pinpoints": t.more["image_grid_pinpoints"]}
        processor["do_center_crop"] = t.family == "llava-next"
    if processor.get("do_center_crop"):
        processor |= {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    else:
        processor |= {"size": {"height": size, "width": size}}
    if t.family in ("smolvlm", "idefics3"):
        processor |= longest
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    processor_config = {
        "processor_class": processor_class,
        "image_token": "<image>",
        "patch_size": t.patch_size,
        "vision_feature_select_strategy": t.strategy,
        "num_additional_image_tokens": 0 if t.tower == "siglip" else 1,
    }
    if t.family in ("smolvlm", "idefics3"):
        length = (size // t.patch_size // t.more.get("scale_factor", 2)) ** 2
        processor_config = {"processor_class": processor_class, "image_seq_len": length}
    if t.family == "llava-onevision":
        processor_config["num_image_tokens"] = (size // t.patch_size) ** 2
        processor_config["vision_aspect_ratio"] = t.more["vision_aspect_ratio"]
        del processor_config["patch_size"]
    if t.family == "internvl":
        side = int(1 / t.more.get("downsample_ratio", 0.5))
        processor_config = {"processor_class": processor_class, "image_seq_length": (size // t.patch_size // side) ** 2}
    (path / "processor_config.json").write_text(json.dumps(processor_config))
    if template:
        (path / "chat_template.jinja").write_text(TEMPLATE.replace("<image>", image_token))


def _add_packed_files(path: Path, t: Tiny, processor_class: str, *, template: bool) -> None:
    """The processor's files of a family with a packed tower: images of 4 to 120 visual tokens."""
    area = (2 * t.patch_size) ** 2
    bounds: dict[str, object] = {"min_pixels": 4 * area, "max_pixels": 120 * area}
    tower = "clip"
    if t.family == "qwen3-vl":
        tower, bounds = "siglip", {"size": {"shortest_edge": 4 * area, "longest_edge": 120 * area}}
    processor = {
        **{name: PROCESSORS[tower][name] for name in ("image_mean", "image_std")},
        "image_processor_type": FAMILIES[t.family][0],
        **bounds,
        "patch_size": t.patch_size,
        "temporal_patch_size": 2,
        "merge_size": 2,
    }
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    config = {"processor_class": processor_class, "image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    (path / "processor_config.json").write_text(json.dumps(config))
    if template:
        (path / "chat_template.jinja").write_text(PACKED_TEMPLATE)


def complete(path: Path, t: Tiny | None = None, *, template: bool = True) -> Path:
    """A whole tiny checkpoint: weights and text files."""
    t = t or Tiny()
    path.mkdir(parents=True, exist_ok=True)
    make(path, t)
    add_text_files(path, t, template=template)
    return path
