#!/usr/bin/env python3
"""Export the vision tower and projector of a LLaVA checkpoint, straight from transformers.

    python export_scripts/export_vision.py --model DIR --output vision.onnx --dtype float32

Input ``pixel_values`` [batch, 3, H, W]; outputs ``image_features`` [batch, N, D] after the projector, and, where the
tower has a CLS token, ``cls_attention`` float32 [batch, N]: the CLS row of the last layer that is used, mean over
heads, columns of the kept tokens only, not renormalised.  Layers above the selected one do not get into the graph.

Any tower that transformers can put into LlavaForConditionalGeneration and that returns its hidden states works, also
those trtprune has no graph builder for.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from export_common import (
    check,
    common_options,
    load_model,
    open_session,
    output_path,
    report,
    run,
    run_session,
    tolerance,
    torch_dtype,
    write,
)


def vision_module(model: Any) -> tuple[Any, bool]:
    """The module to export, and whether it gives a CLS attention row.

    Args:
        model: ``LlavaForConditionalGeneration`` with eager attention; other implementations return no attention maps.
    """
    import torch

    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    selected = model.config.vision_feature_layer
    layers = list(selected) if isinstance(selected, (list, tuple)) else [selected]
    first = 1 if model.config.vision_feature_select_strategy == "default" else 0
    # hidden_states[k] is what layer k - 1 puts out; 0 is the embeddings, before any attention.
    deepest = max(layer % (tower.config.num_hidden_layers + 1) for layer in layers)
    embeddings = getattr(tower, "embeddings", None)
    has_cls = any(hasattr(embeddings, name) for name in ("class_embedding", "cls_token"))
    wants_row = has_cls and deepest > 0

    class Vision(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower, self.projector = tower, projector

        def forward(self, pixel_values: Any) -> tuple[Any, ...]:
            out = self.tower(pixel_values, output_hidden_states=True, output_attentions=wants_row, return_dict=True)
            features = torch.cat([out.hidden_states[layer][:, first:] for layer in layers], dim=-1)
            features = self.projector(features)
            if not wants_row:
                return (features,)
            return features, out.attentions[deepest - 1].float().mean(dim=1)[:, 0, first:]

    return Vision().eval(), wants_row


def pixel_shape(model: Any, name: str, image_size: int | None) -> tuple[int, int, int]:
    """Channels, height, width: ``--image-size``, else what the preprocessor makes, else the tower's own."""
    config = model.model.vision_tower.config
    size = image_size or _preprocessed(name) or config.image_size
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return config.num_channels, int(height), int(width)


def _preprocessed(name: str) -> tuple[int, int] | None:
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        values, _ = ImageProcessingMixin.get_image_processor_dict(name)
    except OSError:  # the checkpoint has none
        return None
    size = values.get("crop_size") if values.get("do_center_crop", "crop_size" in values) else values.get("size")
    if isinstance(size, int):
        return size, size
    if isinstance(size, dict) and {"height", "width"} <= size.keys():
        return size["height"], size["width"]
    return None


def export(arguments: argparse.Namespace) -> None:
    """Write the graph and check it."""
    import torch

    path = output_path(arguments.output)
    model = load_model(arguments.model, arguments.dtype, part="vision", attention="eager")
    module, has_row = vision_module(model)
    shape = pixel_shape(model, arguments.model, arguments.image_size)
    outputs = ["image_features", "cls_attention"][: 1 + has_row]
    write(
        module,
        (torch.randn(2, *shape, dtype=torch_dtype(arguments.dtype)),),
        path,
        inputs=["pixel_values"],
        outputs=outputs,
        dynamic_shapes=({0: "batch"},),
        opset=arguments.opset,
    )
    report(path)
    if not arguments.check:
        return
    if arguments.dtype == "bfloat16":
        print("not checked: ONNX Runtime has no bfloat16 kernels on the CPU")
        return
    session = open_session(path)
    for batch in (1, 3):
        pixels = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(batch)).to(model.dtype)
        with torch.no_grad():
            # The features are held against transformers' own selection, not against the module that was exported.
            features = torch.stack(list(model.get_image_features(pixels).pooler_output))
            wrapped = module(pixels)
        found = run_session(session, {"pixel_values": pixels})
        check(f"image_features, batch {batch}", found["image_features"], features, tolerance(arguments))
        if has_row:
            check(f"cls_attention, batch {batch}", found["cls_attention"], wrapped[1], tolerance(arguments))


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "-m", "--model", required=True, help="LLaVA checkpoint: a directory in transformers' layout, or a hub id"
    )
    p.add_argument("--image-size", type=int, help="pixels of a side, for towers that take several [the tower's own]")
    common_options(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    return run(export, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
