"""Queries and keys of a decoder's first layer before rotary positions, from the modules of transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def first_layer(model: Any, image: np.ndarray, text: np.ndarray) -> dict[str, np.ndarray]:
    """``text_query`` and ``image_keys`` of a pruner, for float32 rows of image [N, D] and text [T, D].

    With per-head norms (Qwen3) they are what those return.
    """
    decoder = getattr(model.model, "language_model", None) or model.model.text_model
    attention, seen = decoder.layers[0].self_attn, []
    hooks = [
        module.register_forward_hook(lambda _module, _given, out: seen.append(out[0].numpy()))
        for module in (getattr(attention, f"{n}_norm", getattr(attention, f"{n}_proj")) for n in "qk")
    ]
    with torch.no_grad():
        decoder(inputs_embeds=torch.from_numpy(np.concatenate([image, text]))[None], use_cache=False)
    for hook in hooks:
        hook.remove()
    queries, keys = (rows.reshape(len(rows), -1, attention.head_dim) for rows in seen)
    return {"text_query": queries[len(image) :].mean(axis=0), "image_keys": keys[: len(image)].transpose(1, 0, 2)}
