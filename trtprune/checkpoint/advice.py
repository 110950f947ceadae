"""Checkpoints that cannot be built, and what to take in their place: a table, and the look-ups in it.

The keys are the architecture in ``config.json``, the quantisation of the weights, and the existing files.  Checkpoints
that can be built are not here: each family of :mod:`trtprune.models` names its own.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from trtprune.arguments import arg

__all__ = ["for_architecture", "for_files", "for_quantization"]

_DENSE_QWEN = f"dense models of Qwen3-VL are: {arg('model', 'qwen3-vl-2b')}, qwen3-vl-4b or qwen3-vl-8b"
# By the name of the class; the first match counts.
_ARCHITECTURES: tuple[tuple[str, str], ...] = (
    (
        r"LlavaLlamaForCausalLM",
        "this is the layout of the authors' own code; the same weights in transformers' layout are "
        f"llava-hf/llava-1.5-7b-hf and llava-hf/llava-1.5-13b-hf: {arg('model', 'llava-1.5-7b')} or llava-1.5-13b",
    ),
    (
        r"LlavaQwen\w*ForCausalLM",
        "this is the layout of the authors' own code; llava-hf/llava-onevision-qwen2-0.5b-ov-hf and -7b-ov-hf are in "
        f"transformers' layout: {arg('model', 'llava-onevision-qwen2-0.5b')}",
    ),
    (
        r"LlavaMistralForCausalLM",
        "this is the layout of the authors' own code; the same weights in transformers' layout are "
        f"llava-hf/llava-v1.6-mistral-7b-hf: {arg('model', 'llava-v1.6-mistral-7b')}",
    ),
    (
        r"InternVLChatModel",
        "this is the layout of the authors' own code; the same weights in transformers' layout are in the repository "
        f"whose name ends with -hf, such as OpenGVLab/InternVL3-8B-hf: {arg('model', 'internvl3-8b')}, internvl3-2b or "
        "internvl3-1b",
    ),
    (
        r"Qwen3VLMoe\w+",
        f"this vision-language family is not supported yet: its language model is a mixture of experts; {_DENSE_QWEN}",
    ),
    (
        r"Qwen3_5(Moe)?ForConditionalGeneration",
        "this vision-language family is not supported yet: some layers of its language model have linear attention, "
        f"which no cache of keys and values serves; {_DENSE_QWEN}",
    ),
    (
        r"Qwen\d(_5)?Omni\w+",
        f"this vision-language family is not supported yet: it takes and makes sound as well; {_DENSE_QWEN}",
    ),
    (r"Llava\w*ForCausalLM", "this is the layout of the authors' own code; look for the model under llava-hf/"),
    (
        r"\w*(CLIP|Clip|Siglip|Dinov\d|ViT)\w*(Model\w*|ForImageClassification|WithProjection)",
        f"this is a vision encoder without a language model; CLIP checkpoints are given to {arg('clip')}, beside the "
        f"{arg('model')} whose vision tower was taken from them",
    ),
)
# Config sections of models that take images, in transformers and in widely used code of repositories.
_PICTURES = (
    "vision_config",
    "vision_tower",
    "mm_vision_tower",
    "visual",
    "vision_model",
    "img_processor",
    "vlm_config",
    "vq_config",
    "image_token_id",
    "image_token_index",
)
_SMALLEST = arg("model", "llava-1.5-7b")
_NOT_YET = f"this vision-language family is not supported yet; LLaVA-1.5, for one, is: {_SMALLEST}"
_TEXT_ONLY = (
    r"\w*(ForCausalLM|LMHeadModel)",
    "this is a language model that takes no pictures; trtprune builds vision-language models: trtprune models",
)

_QUANTIZED: dict[str, str] = {
    "awq": "AWQ",
    "gptq": "GPTQ",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "fp8": "FP8",
    "fbgemm_fp8": "FP8",
    "modelopt": "ModelOpt",
    "hqq": "HQQ",
    "quanto": "Quanto",
    "torchao": "torchao",
    "mxfp4": "MXFP4",
    "nvfp4": "NVFP4",
    "auto-round": "AutoRound",
    "intel/auto-round": "AutoRound",
    "aqlm": "AQLM",
    "vptq": "VPTQ",
    "higgs": "HIGGS",
    "eetq": "EETQ",
    "spqr": "SpQR",
    "bitnet": "BitNet",
    "quark": "Quark",
    "sinq": "SINQ",
}
_EXPORTS = {
    "AutoRound": "or export it again as auto_gptq, auto_awq or llm_compressor, which trtprune reads",
}
"""Name → what its tool can write in place of its own format."""

_FILES: tuple[tuple[str, str, str], ...] = (
    (
        r"adapter_config\.json",
        "this is an adapter (PEFT), not a whole model",
        "merge it into its base model: PeftModel.from_pretrained(base, ADAPTER).merge_and_unload()"
        f".save_pretrained(DIR), then {arg('model', 'DIR')}",
    ),
    (
        r".*\.gguf",
        "these are GGUF files, a format of other runtimes",
        "give the checkpoint they were made from, in transformers' layout with safetensors",
    ),
    (
        r"model_index\.json",
        "this is a pipeline of Diffusers, not a language model",
        "give a vision-language model: trtprune models lists what is supported",
    ),
    (
        r"(params\.json|consolidated[\w.]*\.(pth|safetensors))",
        "this is the layout of the authors' own code",
        "give the same model in transformers' layout, with config.json and model.safetensors",
    ),
    (
        r".*\.onnx",
        "these are ONNX graphs, and no checkpoint they could be built from",
        "give the checkpoint they were exported from, in transformers' layout with safetensors",
    ),
)


def for_architecture(config: Mapping[str, Any]) -> str | None:
    """A hint for a checkpoint whose architecture no family serves; None without a better one."""
    names = config.get("architectures")
    known = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    advice = next((text for pattern, text in _ARCHITECTURES if _any(pattern, known)), None)
    own_code = bool(config.get("auto_map"))
    if advice is None and any(config.get(section) for section in _PICTURES):
        advice = _NOT_YET
    if advice is None and not own_code and _any(_TEXT_ONLY[0], known):
        advice = _TEXT_ONLY[1]
    if not own_code:
        return advice
    own = "the model is Python code of its repository (auto_map), which trtprune never runs"
    return own if advice is None else f"{own}; {advice}"


def _any(pattern: str, names: Collection[str]) -> bool:
    return any(len(name) < 200 and re.fullmatch(pattern, name) for name in names)


def for_quantization(settings: Any) -> tuple[str, str]:
    """The name of the quantisation in ``quantization_config``, and a hint."""
    values = settings if isinstance(settings, Mapping) else {}
    method = values.get("quant_method")
    name = _QUANTIZED.get(method, method[:40]) if isinstance(method, str) else "of an unnamed kind"
    if name == "bitsandbytes":
        kind = values.get("bnb_4bit_quant_type")
        four = kind if isinstance(kind, str) and len(kind) < 10 else "4 bits"
        name += f" {four.upper() if values.get('load_in_4bit') else 'int8'}"
    advice = (
        f"give the float16, bfloat16 or float32 checkpoint it was made from; {arg('weight_dtype', 'int4')} then stores "
        "the decoder quantised"
    )
    return name, "; ".join([advice, *([_EXPORTS[name]] if name in _EXPORTS else [])])


def for_files(names: Collection[str]) -> tuple[str, str] | None:
    """The kind of a directory or repository without a usable config or weights, and a hint; None: unknown."""
    for pattern, what, advice in _FILES:
        if _any(pattern, names):
            return what, advice
    return None
