"""Realistic random inputs of a component: seeded, and of the size of the model's own numbers.

Random inputs follow Polygraphy's data loader (iteration i is drawn with seed + i, NumPy's RandomState), but depend on
the meaning of the tensors.  Embeddings are rows of the model's table, and a decoder's cache is the one that the
reference wrote: noise of another size would lead to activations and errors in the thousands, which say nothing about
the model.  A decoder gets a prompt and then single tokens, each run with the reference's cache at that point.  So no
run has another run's error in its input, and each can be repeated alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from trtprune.compare._require import as_error
from trtprune.compare.inputs import check_keep, narrow
from trtprune.compare.numerics import Feed
from trtprune.engine_dir import CONFIG_NAME
from trtprune.engine_dir.roles import EMBED, PRUNER
from trtprune.errors import EngineDirError, InputError
from trtprune.runtime.images import PackedShape, processor_from_settings
from trtprune.tensor_names import (
    GRID,
    INPUT_IDS,
    INPUTS_EMBEDS,
    LOGITS_INDEX,
    PACK_INDEX,
    PACK_WEIGHT,
    POSITION_IDS,
    RATER_ATTENTION,
    RATER_INDEX,
    RATER_WEIGHTS,
    SALIENCY,
    TEXT_EMBEDS,
    TEXT_MASK,
    VISUAL_INDEX,
    WRITE_INDEX,
    is_past,
    present_of,
)

if TYPE_CHECKING:
    from trtprune.engine_dir import ComponentInfo, EngineDir, TensorSpec
    from trtprune.runtime.images import Processor, TokenPlan

__all__ = ["DEFAULT_SEED", "Draw", "image_size", "open_processor", "random_feeds", "teach_caches"]

DEFAULT_SEED = 1  # polygraphy.constants.DEFAULT_SEED
# Inputs that are embeddings of text, or of text and images; the table has only words.
EMBEDDED = (INPUTS_EMBEDS, TEXT_EMBEDS)
# Inputs with positive numbers that add up to 1.
ATTENTION = (*SALIENCY, RATER_ATTENTION, RATER_WEIGHTS)
# Tokens of a question to CLIP's text tower, whose maximum is 77.
CLIP_TOKENS = 16


@dataclass(frozen=True)
class Draw:
    """Settings of random inputs.

    Attributes:
        seed: Seed of the first iteration.
        iterations: Number of runs of each component, or of prompts for the decoder.
        decode_steps: Number of single tokens behind each of the decoder's prompts.
        batch_size: Number of rows.
        text_tokens: Number of text tokens of a prompt.
        keep: Visual tokens to keep; None: as built.
    """

    seed: int = DEFAULT_SEED
    iterations: int = 1
    decode_steps: int = 2
    batch_size: int = 1
    text_tokens: int = 16
    keep: int | None = None


def open_processor(made: EngineDir) -> Processor:
    """The image processor of an engine directory."""
    return processor_from_settings(made.vision.processor, made.vision.settings, str(made.root / CONFIG_NAME))


def image_size(processor: Processor, seed: int) -> tuple[int, int]:
    """(height, width) of a random image, up to three crops on a side; one crop where every image is one.

    For a packed tower up to twelve visual tokens on a side.
    """
    shape = processor.shape
    if isinstance(shape, PackedShape):
        rng = np.random.RandomState(seed)
        return tuple(int(side) for side in rng.randint(shape.factor, 12 * shape.factor + 1, 2))  # type: ignore[return-value]
    if processor.crops_range == (1, 1):
        return shape.height, shape.width
    rng = np.random.RandomState(seed)
    return rng.randint(1, 3 * shape.height + 1), rng.randint(1, 3 * shape.width + 1)


def random_feeds(
    made: EngineDir, component: ComponentInfo, draw: Draw, dtypes: Sequence[str]
) -> tuple[list[Feed], list[str]]:
    """Inputs of one component, and a description of each.

    Args:
        made: The engine directory, for the shapes.
        component: A component of the directory.
        draw: Number and sizes of the inputs.
        dtypes: Data types of both sides: inputs are rounded to numbers that both can represent.
    """
    feeds, names = [], []
    embed = _embedding(made)
    decodes = any(is_past(spec.name) for spec in component.inputs)
    keep = check_keep(made, draw.keep)
    processor = open_processor(made)
    table = _table(made, component) if any(spec.name == INPUT_IDS for spec in component.inputs) else None
    vocab = made.model.vocab_size if table is None else min(table.dims[0], made.model.vocab_size)
    for i in range(draw.iterations):
        rng = np.random.RandomState(draw.seed + i)
        suffix = f" {i}" if draw.iterations > 1 else ""
        plan = processor.plan(*image_size(processor, draw.seed + i))
        image = _Image.of(made, component, plan, keep, processor.arrays(plan))
        if isinstance(processor.shape, PackedShape):
            image.dims["patches"] = plan.tokens * processor.shape.unit
        dims = _dims(made, component, draw, image)
        prompt = dims["sequence"]
        if decodes and prompt + draw.decode_steps > dims["capacity"]:
            raise InputError(
                f"--text-tokens {draw.text_tokens} with {image.keep} kept tokens does not fit the cache of "
                f"{made.kv.capacity}",
                hint="fewer --text-tokens, or a smaller --keep",
            )
        for step in range(1 + (draw.decode_steps if decodes else 0)):
            now = {**dims, "sequence": 1, "raters": 1} if step else dims
            begin = prompt + step - 1 if step else 0
            facts = {"begin": begin, "last": now["sequence"] - 1, "keep": image.keep, "seed": draw.seed + i}
            feed: Feed = {}
            for spec in component.inputs:
                shape = tuple(now[dim] if isinstance(dim, str) else dim for dim in spec.shape)
                if spec.name in image.arrays:
                    array = np.array(np.broadcast_to(image.arrays[spec.name], shape))
                elif spec.name in EMBEDDED and embed is not None:
                    array = _widened(embed(rng.randint(0, made.model.vocab_size, shape[:-1])), spec.name, shape, rng)
                else:
                    array = _value(rng, spec, shape, vocab, facts)
                feed[spec.name] = narrow(array, dtypes) if array.dtype == np.float32 else array
            feeds.append(feed)
            names.append(f"decode {step}{suffix}" if step else f"prefill{suffix}" if decodes else f"random{suffix}")
    return feeds, names


@dataclass(frozen=True)
class _Image:
    """The image that a run of a component is about.

    Attributes:
        crops: Its crops.
        tokens: The visual tokens that the component reads: in front of the pruner all of them, for the pruner those it
            may choose from.
        keep: The budget, at most ``tokens``.
        arrays: Inputs that follow from the image's size alone.
        dims: Run-time dimensions of a packed tower that do, too.
    """

    crops: int
    tokens: int
    keep: int
    arrays: Mapping[str, np.ndarray]
    dims: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls, made: EngineDir, component: ComponentInfo, plan: TokenPlan, keep: int, more: Mapping[str, np.ndarray]
    ) -> _Image:
        """The image of a plan as a component reads it; ``more`` are a packed tower's inputs beside the pixels."""
        chooses = component.role == PRUNER and component.segment is None
        places = plan.choices(made.vision.newlines) if chooses else np.arange(plan.tokens)
        arrays = {
            PACK_INDEX: plan.pack_index.astype(np.int64),
            PACK_WEIGHT: plan.pack_weight,
            GRID: plan.grid[places].astype(np.int64),
            **more,
        }
        dims = {
            dim: size
            for spec in component.inputs
            if spec.name in more
            for dim, size in zip(spec.shape, more[spec.name].shape, strict=True)
            if isinstance(dim, str)
        }
        return cls(plan.crops, len(places), min(keep, len(places)), arrays, dims)


def _dims(made: EngineDir, component: ComponentInfo, draw: Draw, image: _Image) -> dict[str, int]:
    """The size of each symbolic dimension."""
    # A prune point inside the decoder still has all visual tokens before it.
    visual = image.tokens if any(spec.name == VISUAL_INDEX for spec in component.inputs) else image.keep
    prompt = draw.text_tokens + visual
    return {
        **image.dims,
        "batch": draw.batch_size,
        "crops": image.crops,
        "tokens": draw.text_tokens,
        "text_tokens": draw.text_tokens,
        "text_segments": 1,
        "clip_tokens": min(draw.text_tokens, CLIP_TOKENS),
        "visual_tokens": image.tokens,
        "sequence": prompt,
        "logits_rows": 1,
        "raters": min(4, prompt),
        "capacity": min(made.kv.capacity, -(-(prompt + draw.decode_steps) // 16) * 16),
    }


def _value(
    rng: np.random.RandomState, spec: TensorSpec, shape: tuple[int, ...], vocab: int, facts: Mapping[str, int]
) -> np.ndarray:
    """One input.  ``facts``: tokens in the cache (``begin``), the last of the new ones (``last``), keep, seed."""
    if is_past(spec.name):
        return np.zeros(shape, np.float32)  # see teach_caches
    if spec.name in ATTENTION:
        scores = np.exp(2 * rng.standard_normal(shape))
        return (scores / scores.sum(-1, keepdims=True)).astype(np.float32)
    if spec.dtype in ("float32", "float16", "bfloat16"):
        return rng.standard_normal(shape).astype(np.float32)
    if spec.name == INPUT_IDS:
        return rng.randint(0, vocab, shape).astype(np.int64)
    steps = np.broadcast_to(np.arange(shape[-1]), shape)
    # The axes of a position have different numbers, so that one taken for another is seen.
    axes = np.arange(1, shape[1] + 1)[:, None] if spec.name == POSITION_IDS else 1
    values: dict[str, Any] = {
        TEXT_MASK: 1,
        "keep": facts["keep"],
        "seed": facts["seed"],
        WRITE_INDEX: facts["begin"],
        POSITION_IDS: facts["begin"] + steps // axes,
        LOGITS_INDEX: facts["last"],
        # The last of the new tokens are the raters; the image is behind the first text token.
        RATER_INDEX: facts["last"] - shape[-1] + 1 + steps,
        VISUAL_INDEX: 1 + steps,
    }
    if spec.name not in values:
        raise InputError(f"no random values are known for input {spec.name}", hint="--load-inputs FILE")
    return np.array(np.broadcast_to(values[spec.name], shape), np.int64)


def teach_caches(runner: Any, feeds: Sequence[Feed], dtypes: Sequence[str]) -> None:
    """Sets the cache of every run behind a prompt to that of ``runner`` at that point, in place.

    Args:
        runner: The reference's runner.
        feeds: Inputs in the order of :func:`random_feeds`; a run that begins at slot 0 is a prompt.
        dtypes: As in :func:`random_feeds`.
    """
    from polygraphy.comparator.data_loader import coerce_feed_dict

    if not any(is_past(name) for name in feeds[0]):
        return
    with as_error(f"a cache of {runner.name}"), runner:
        meta = runner.get_input_metadata(use_numpy_dtypes=False)
        for before, feed in itertools.pairwise(feeds):
            if not feed[WRITE_INDEX].any():
                continue
            outputs = runner.infer(coerce_feed_dict(before, meta))
            for name in feed:
                if is_past(name):
                    cache = np.array(outputs[present_of(name)], np.float32)
                    feed[name] = narrow(cache, dtypes)


def _widened(words: np.ndarray, name: str, shape: Sequence[int], rng: np.random.RandomState) -> np.ndarray:
    """Embeddings as wide as an input wants them: with DeepStack levels behind, which a text alone does not have."""
    levels = rng.standard_normal((*shape[:-1], shape[-1] - words.shape[-1])).astype(np.float32)
    return np.concatenate((words, words.std() * levels if name == INPUTS_EMBEDS else 0 * levels), axis=-1)


def _table(made: EngineDir, component: ComponentInfo) -> Any:
    """The embedding table of a component, an ``onnx.TensorProto`` of at least one dimension; None without one."""
    import onnx

    graph = onnx.load(made.path(component.onnx), load_external_data=False).graph
    gather = next((node for node in graph.node if node.op_type == "Gather"), None)
    return next((t for t in graph.initializer if gather is not None and t.name == gather.input[0] and t.dims), None)


def _embedding(made: EngineDir) -> Callable[[np.ndarray], np.ndarray] | None:
    """The model's embedding table as a function of ids, float32; None without an ``embed`` component."""
    import onnx

    component = made.find(EMBED)
    if component is None:
        return None
    table = _table(made, component)
    if table is None or table.data_location != onnx.TensorProto.EXTERNAL:
        return None
    where = {entry.key: entry.value for entry in table.external_data}
    dtype = onnx.helper.tensor_dtype_to_np_dtype(table.data_type)
    path = made.path(f"{PurePosixPath(component.onnx).parent}/{where['location']}")
    try:
        rows = np.memmap(path, dtype, "r", int(where.get("offset", 0)), tuple(table.dims))
    except (OSError, ValueError) as error:
        raise EngineDirError(f"{path}: cannot be read: {error}", hint="build it again") from None
    return lambda ids: np.asarray(rows[ids], np.float32)
