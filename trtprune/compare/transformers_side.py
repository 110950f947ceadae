"""The checkpoint in transformers as the reference: float32, eager attention, one row at a time through the decoder.

The pruner has no counterpart there; its reference is the method's NumPy code.  Inner tensors are read by hooks on
modules, which have the same names as the points of the graph.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trtprune import pruning
from trtprune.checkpoint import open_checkpoint
from trtprune.compare.packing import SizedPlan, pack
from trtprune.compare.points import TensorPoint, module_label
from trtprune.engine_dir.roles import DECODER, EMBED, PACK, PRUNER, VISION
from trtprune.errors import BackendError, CheckpointError
from trtprune.pruning.inputs import FROM_LAYER, INPUTS
from trtprune.reports.installer import to_install
from trtprune.tensor_names import (
    HIDDEN_STATES,
    IMAGE_FEATURES,
    INPUT_IDS,
    INPUTS_EMBEDS,
    KEPT_INDICES,
    KINDS,
    LAST_HIDDEN_STATE,
    LOGITS,
    LOGITS_INDEX,
    PIXEL_VALUES,
    POSITION_IDS,
    PRUNED_FEATURES,
    RATER_ATTENTION,
    RATER_INDEX,
    TEXT_EMBEDS,
    TEXT_MASK,
    WRITE_INDEX,
    is_present,
    past_name,
    present_name,
)

if TYPE_CHECKING:
    from trtprune.engine_dir import ComponentInfo, EngineDir

__all__ = ["TransformersSide"]

PARTS = {
    "vision_tower": ("vision_tower", "visual", "vision_model"),
    "multi_modal_projector": ("multi_modal_projector", "connector.modality_projection"),
    "language_model": ("language_model", "text_model"),
}
"""The names that a part of a model has in transformers."""
VISION_FEATURES = "vision_features"
"""The vision graph's output of what enters the projector."""


def _load(path: Path) -> Any:
    """The checkpoint in float32; a quantised one with its weights dequantised, without its method's own library."""
    import torch
    import transformers

    settings: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}
    checkpoint = open_checkpoint(path)
    if checkpoint.scheme is None:
        return transformers.AutoModelForImageTextToText.from_pretrained(str(path), **settings)
    config = transformers.AutoConfig.from_pretrained(str(path))
    for part in (config, config.get_text_config()):
        vars(part).pop("quantization_config", None)
    weights = {name: torch.from_numpy(np.array(checkpoint.read(name), np.float32)) for name in checkpoint.tensors}
    kind: Any = transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    return kind.from_pretrained(None, config=config, state_dict=weights, **settings)


class TransformersSide:
    """The checkpoint in transformers as a side of a comparison.

    Args:
        made: The engine directory with the components to reproduce.
        path: Directory of the checkpoint.
        threads: CPU threads; None: torch's choice.
        plans: The images that are packed, see :func:`trtprune.compare.packing.image_plans`.

    Raises:
        BackendError: if torch or transformers is missing.
        CheckpointError: if transformers cannot load the checkpoint.
    """

    dtype = "float32"

    def __init__(
        self, made: EngineDir, path: Path, threads: int | None = None, plans: Sequence[SizedPlan] = ()
    ) -> None:
        try:
            import torch
            import transformers
        except ImportError as error:
            raise BackendError(
                f"--against transformers: {str(error).splitlines()[0]}", hint=to_install(extra="torch")
            ) from None
        self.made, self._width = made, made.model.row_width
        self.name = f"transformers:{path.name}"
        self._plans = plans
        if threads is not None:
            torch.set_num_threads(threads)
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        try:
            model = _load(path)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            raise CheckpointError(
                f"{path}: transformers cannot load it: {str(error).strip().splitlines()[0][:300]}"
            ) from None
        self.model = model.eval()

    def components(self) -> Sequence[str]:
        """The model's own components and the pruner before the decoder.

        Not what a method computes inside the decoder, and not CLIP's text tower, which has another checkpoint.
        """
        roles = (VISION, PACK, EMBED, DECODER)
        return [c.name for c in self.made.components if c.role in roles or (c.role == PRUNER and c.segment is None)]

    def runner(self, component: ComponentInfo) -> Any:
        """The component's outputs, by the graph's names."""
        name = self.name if component.role != PRUNER else f"numpy:{self.made.pruning.method}"
        return _runner(lambda feed: self._run(component, feed), component, name)

    def points(self, component: ComponentInfo) -> list[TensorPoint]:
        """Modules in transformers' order (only the graph's order matters)."""
        return [
            TensorPoint(label, label, i, "", "." not in label or label.count(".") == 1)
            for i, label in enumerate(_hooks(self.model, component.role))
        ]

    def probe(self, component: ComponentInfo, tensors: Sequence[str]) -> tuple[Any, dict[str, str]]:
        """The outputs of these modules."""
        runner = _runner(lambda feed: self._look(component, feed, tensors), component, self.name)
        return runner, {label: label for label in tensors}

    def graph(self, component: ComponentInfo) -> None:
        """None: there is no graph."""
        return

    def _run(
        self, component: ComponentInfo, feed: dict[str, np.ndarray], *, inside: bool = False
    ) -> dict[str, np.ndarray]:
        """All outputs; with ``inside`` the tower runs once only, for the hooks."""
        import torch

        with torch.no_grad():
            if component.role == VISION:
                return self._vision(feed, () if inside else [o.name for o in component.outputs])
            if component.role == EMBED:
                rows = self.model.get_input_embeddings()(torch.from_numpy(feed[INPUT_IDS]))
                return {TEXT_EMBEDS: torch.nn.functional.pad(rows, (0, self._width - rows.shape[-1])).numpy()}
            if component.role == PACK:
                return pack(self.model, feed, self._plans)
            if component.role == PRUNER:
                return self._prune(feed)
            return self._decode(component, feed)

    def _look(self, component: ComponentInfo, feed: dict[str, np.ndarray], labels: Sequence[str]) -> Any:
        """The tensors that hooks on modules record during a run, with the rows of the batch joined."""
        hooks = _hooks(self.model, component.role)
        seen: dict[str, list[Any]] = {label: [] for label in labels}
        with _hooked({label: hooks[label] for label in labels}, seen):
            self._run(component, feed, inside=True)
        found = {}
        for label, parts in seen.items():
            array = np.concatenate(parts)
            if label == "norm":  # the graph normalises only the rows of requested logits
                array = np.take_along_axis(array, feed[LOGITS_INDEX][..., None], axis=1)
            found[label] = array
        return found

    def _vision(self, feed: dict[str, np.ndarray], wanted: Sequence[str]) -> dict[str, np.ndarray]:
        """transformers' ``image_features``, and the requested outputs from its states and attention maps."""
        import torch

        from trtprune.compare.packed_outputs import packed_outputs
        from trtprune.compare.vision_outputs import vision_outputs

        info = self.made.pruning
        shallow = pruning.get(info.method).tower_layer(info.options)
        if self.made.model.image_size is None:
            return packed_outputs(_vision_tower(self.model), feed, wanted or [IMAGE_FEATURES], shallow)
        pixels = torch.from_numpy(feed[PIXEL_VALUES])
        parts = _vision_tower(self.model), _part(self.model, "multi_modal_projector")
        found: dict[str, np.ndarray] = {}
        if hasattr(getattr(self.model, "model", self.model), "pack_image_features"):
            # get_image_features would pack them: what the projector returns are the features of the crops.
            found = vision_outputs(self.model.config, *parts, pixels, [IMAGE_FEATURES], None)
        else:
            seen: dict[str, list[Any]] = {VISION_FEATURES: []}
            with _hooked({VISION_FEATURES: (parts[1], True)}, seen):
                features = self.model.get_image_features(pixels if _takes_crops(self.model) else pixels[:, None])
            features = getattr(features, "pooler_output", features)
            found = {IMAGE_FEATURES: torch.stack(list(features)).numpy(), VISION_FEATURES: seen[VISION_FEATURES][0]}
        rest = [name for name in wanted if name not in found]
        if rest:
            found |= vision_outputs(self.model.config, *parts, pixels, rest, shallow)
        return {name: found[name] for name in (IMAGE_FEATURES, *wanted) if name in found}

    def _prune(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        info = self.made.pruning
        wide, hidden_size = feed[IMAGE_FEATURES], self.made.model.hidden_size
        feed = {n: a[..., :hidden_size] if n in (IMAGE_FEATURES, TEXT_EMBEDS) else a for n, a in feed.items()}
        given: dict[str, Any] = {name: feed[name] for name in (*INPUTS, TEXT_MASK) if name in feed}
        if "seed" in feed:
            given["seed"] = int(feed["seed"][0])
        method = pruning.get(info.method)
        if method.needs_of(info.options) & {*FROM_LAYER}:
            given |= _first_layer(_language_model(self.model), feed)
        keep = int(feed["keep"][0])
        kept, rows = method.pruned(feed[IMAGE_FEATURES], keep=keep, **given, **info.options)
        if self._width > hidden_size:  # such rows are never merged
            rows = np.take_along_axis(wide, kept[..., None], axis=-2)
        return {KEPT_INDICES: kept, PRUNED_FEATURES: rows}

    def _decode(self, component: ComponentInfo, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The decoder's outputs row by row, each with the written part of its cache."""
        import torch

        names = sorted(int(name.split(".")[1]) for name in feed if name.endswith(".key"))
        first, stop = names[0], names[-1] + 1
        outputs = {spec.name: spec for spec in component.outputs}
        present = {present_name(i, kind): feed[past_name(i, kind)].copy() for i in range(first, stop) for kind in KINDS}
        found: dict[str, list[np.ndarray]] = {name: [] for name in outputs if not is_present(name)}
        states = feed[HIDDEN_STATES if HIDDEN_STATES in feed else INPUTS_EMBEDS]
        with _layers_only(_language_model(self.model), first, stop, last=LOGITS in outputs) as language:
            for b, begin in enumerate(feed[WRITE_INDEX].tolist()):
                embeds, *levels = torch.from_numpy(states[b : b + 1]).split(self.made.model.hidden_size, dim=-1)
                length = embeds.shape[1]
                out = language(
                    inputs_embeds=embeds,
                    attention_mask=torch.ones((1, begin + length), dtype=torch.long),
                    position_ids=_position_ids(torch.from_numpy(feed[POSITION_IDS][b : b + 1])),
                    past_key_values=_cache(feed, b, begin, first, stop),
                    use_cache=True,
                    output_attentions=RATER_ATTENTION in found,
                    **_deepstack(levels),
                )
                for i in range(first, stop):
                    layer = out.past_key_values.layers[i]
                    for kind, tensor in (("key", layer.keys), ("value", layer.values)):
                        present[present_name(i, kind)][b, :, begin : begin + length] = tensor[0, :, -length:].numpy()
                hidden = out.last_hidden_state
                if LOGITS in found:
                    rows = hidden[:, torch.from_numpy(feed[LOGITS_INDEX][b])]
                    found[LOGITS].append(self.model.get_output_embeddings()(rows).numpy())
                else:
                    found[LAST_HIDDEN_STATE].append(torch.cat((hidden, *levels[stop - first :]), -1).numpy())
                if RATER_ATTENTION in found:
                    rows = out.attentions[-1][:, :, torch.from_numpy(feed[RATER_INDEX][b]), begin:]
                    rows = rows / rows.sum(-1, keepdim=True)  # among the new tokens alone
                    mean = len(outputs[RATER_ATTENTION].shape) == 3
                    found[RATER_ATTENTION].append((rows.mean(1) if mean else rows).numpy())
        return {**{name: np.concatenate(parts) for name, parts in found.items()}, **present}


def _deepstack(levels: Sequence[Any]) -> dict[str, Any]:
    """transformers' arguments for the levels [1, S, D] of a row, which it adds behind the first layers that run."""
    if not levels:
        return {}
    import torch

    return {
        "visual_pos_masks": torch.ones(levels[0].shape[:2], dtype=torch.bool),
        "deepstack_visual_embeds": [level[0] for level in levels],
    }


def _position_ids(rows: Any) -> Any:
    """int64 [1, axes, S] as transformers takes them: [1, S], or [axes, 1, S] for several axes."""
    return rows[:, 0] if rows.shape[1] == 1 else rows.transpose(0, 1)


def _cache(feed: dict[str, np.ndarray], row: int, begin: int, first: int, stop: int) -> Any:
    """The cache of one row, ``begin`` tokens long; layers below ``first``, which do not run, have a length only."""
    import torch
    from transformers import DynamicCache

    cache = DynamicCache()
    for i in range(stop) if begin else ():
        pair = [feed[past_name(max(i, first), kind)][row : row + 1, :, :begin] for kind in KINDS]
        cache.update(torch.from_numpy(pair[0]), torch.from_numpy(pair[1]), i)
    return cache


@contextmanager
def _layers_only(language: Any, first: int, stop: int, *, last: bool) -> Iterator[Any]:
    """The language model with some of its layers only, and without its norm if it is not the last segment."""
    import torch

    layers, norm = language.layers, language.norm
    try:
        language.layers = layers[first:stop]
        if not last:
            language.norm = torch.nn.Identity()
        yield language
    finally:
        language.layers, language.norm = layers, norm


def _runner(run: Any, component: ComponentInfo, name: str) -> Any:
    from polygraphy.backend.base import BaseRunner
    from polygraphy.common import TensorMetadata

    class TorchRunner(BaseRunner):
        """Calls a function on float32 inputs."""

        def get_input_metadata_impl(self) -> Any:
            meta = TensorMetadata()
            for spec in component.inputs:
                dtype = np.dtype("float32" if spec.dtype in ("float16", "bfloat16") else spec.dtype)
                meta.add(spec.name, dtype=dtype, shape=[d if isinstance(d, int) else None for d in spec.shape])
            return meta

        def infer_impl(self, feed_dict: Any) -> Any:
            start = time.perf_counter()
            outputs = run(dict(feed_dict))
            self.inference_time = time.perf_counter() - start
            return outputs

    return TorchRunner(name=name)


def _part(model: Any, name: str) -> Any:
    """A part of a model, key of :data:`PARTS`, wherever transformers has it."""
    for path in PARTS[name]:
        for found in (getattr(model, "model", model), model):
            for step in path.split("."):
                found = getattr(found, step, None)
            if found is not None:
                return found
    raise AttributeError(f"{type(model).__name__} has no {name}")


def _takes_crops(model: Any) -> bool:
    """Whether transformers takes the crops of images in a row; else it wants [images, crops, 3, H, W]."""
    return not hasattr(getattr(model, "model", model), "connector")


def _vision_tower(model: Any) -> Any:
    return _part(model, "vision_tower")


def _first_layer(language: Any, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``text_query`` and ``image_keys`` of :data:`trtprune.pruning.inputs.INPUTS`, by the first layer's modules."""
    import torch

    layer = language.layers[0]

    def heads(kind: str, rows: np.ndarray) -> torch.Tensor:
        attention = layer.self_attn
        found = getattr(attention, f"{kind}_proj")(layer.input_layernorm(torch.from_numpy(rows)))
        found = found.unflatten(-1, (-1, attention.head_dim))
        norm = getattr(attention, f"{kind}_norm", None)
        return found if norm is None else norm(found)

    real = torch.from_numpy(feed[TEXT_MASK]).float()[:, :, None, None]
    total = (heads("q", feed[TEXT_EMBEDS]) * real).sum(1)
    keys = heads("k", feed[IMAGE_FEATURES]).transpose(1, 2)
    return {"text_query": (total / real.sum(1).clamp(min=1)).numpy(), "image_keys": keys.numpy()}


def _language_model(model: Any) -> Any:
    return _part(model, "language_model")


def _hooks(model: Any, role: str) -> dict[str, tuple[Any, bool]]:
    """Label → module of a component, and whether the module's input is the point instead of its output."""
    if role == VISION and hasattr(getattr(model, "model", model), "visual"):
        return {}  # a packed tower: its layers have another order of patches than the graph's
    if role == VISION:
        roots = [_vision_tower(model), _part(model, "multi_modal_projector")]
    elif role == EMBED:
        return {"embed_tokens": (model.get_input_embeddings(), False)}
    elif role == DECODER:
        roots = [_language_model(model)]
    else:
        return {}
    found: dict[str, tuple[Any, bool]] = {}
    for root in roots:
        for path, module in root.named_modules():
            if path and not path.endswith("embed_tokens"):
                found.setdefault(module_label(path), (module, False))
    if role == DECODER:
        found["lm_head"] = (model.get_output_embeddings(), False)
    else:
        # hidden_states[0]: CLIP has a norm behind the embeddings, which belongs to them in the graph.
        found.pop("embeddings", None)
        if "layers.0" in found:
            found["embeddings"] = (found["layers.0"][0], True)
        found["projector"] = (roots[1], False)
    return found


@contextmanager
def _hooked(hooks: dict[str, tuple[Any, bool]], seen: dict[str, list[Any]]) -> Iterator[None]:
    def note(label: str, value: Any) -> None:
        value = value[0] if isinstance(value, tuple) else value
        seen[label].append(value.detach().float().numpy())

    handles = []
    try:
        for label, (module, is_input) in hooks.items():
            if is_input:
                handles.append(
                    module.register_forward_pre_hook(
                        lambda _, args, kwargs, label=label: note(label, args[0] if args else kwargs["hidden_states"]),
                        with_kwargs=True,
                    )
                )
            else:
                handles.append(module.register_forward_hook(lambda _, args, out, label=label: note(label, out)))
        yield
    finally:
        for handle in handles:
            handle.remove()
