"""Checks of the values of ``config.json`` that become sizes, names or look-ups."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from trtprune.engine_dir.roles import DECODER, PRUNER, ROLES, SEGMENTED
from trtprune.engine_dir.schema import POSITIONS, EngineDir, TensorSpec
from trtprune.schedules import wrong_schedule
from trtprune.tensor_names import INPUTS_EMBEDS, POSITION_IDS, SALIENCY, is_past
from trtprune.text.info import wrong_texts

__all__ = ["wrong_values"]

LARGEST = {
    "model.visual_tokens": 1 << 20,
    "model.hidden_size": 1 << 20,
    "model.vocab_size": 1 << 26,
    "model.max_positions": 1 << 32,
    "kv.capacity": 1 << 32,
    "kv.bytes_per_token": 1 << 40,
    "kv.num_layers": 1 << 14,
    "kv.num_kv_heads": 1 << 16,
    "kv.head_dim": 1 << 16,
    "engines.max_batch_size": 1 << 20,
    "engines.max_input_len": 1 << 32,
    "engines.max_images": 1 << 20,
}
"""Field → its largest value, far above any model's; each is at least 1."""
MOST_CROPS = 1 << 12
POSITION_AXES = (1, 3)
NEWLINES = ("keep", "drop", "candidates")
LONGEST_SIDE = 1 << 15
"""The largest side of an image in pixels, and of a grid in patches."""
LARGEST_TENSOR = 1 << 40
"""The largest number of elements of a tensor."""
MOST_FILES = 10_000
DTYPES = frozenset(
    ("bool", "int4", "int8", "uint8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64")
)
TARGET = re.compile(r"sm[0-9]{2,3}[a-z]?")
DIGEST = re.compile(r"sha256(-header-size|-head-size)?:[0-9a-f]{64}")
COMPONENT = re.compile(r"[A-Za-z][\w-]{0,63}(\.\d{1,4})?", re.ASCII)


def wrong_values(made: EngineDir) -> Iterator[str]:
    """The faults, one line each, which begins with the field."""
    for field, largest in LARGEST.items():
        part, _, name = field.partition(".")
        owner = getattr(made, part)
        if owner is not None and not 0 < getattr(owner, name) <= largest:
            yield f"config.{field} must be between 1 and {largest}"
    for name in ("image_size", "patch_grid"):
        size = getattr(made.model, name)
        if (size is None) != (made.model.image_size is None):
            yield "config.model.image_size and patch_grid belong together"
        if size is not None and not all(0 < side <= LONGEST_SIDE for side in size):
            yield f"config.model.{name} must be two numbers between 1 and {LONGEST_SIDE}"
    yield from _wrong_ids(made)
    yield from _wrong_vision(made)
    yield from (f"config.text.{what}" for what in wrong_texts(made.text))
    yield from _wrong_rows(made)
    yield from _wrong_positions(made)
    generation = made.generation.wrong(max(made.model.vocab_size, 1))
    if generation is not None:
        yield f"config.generation.{generation}"
    yield from _wrong_budget(made)
    yield from _wrong_components(made)
    yield from _wrong_parts(made)
    yield from _wrong_segments(made)
    if made.engines is not None:
        if not made.engines.targets or not all(TARGET.fullmatch(target) for target in made.engines.targets):
            yield "config.engines.targets must name compute capabilities, like sm89"
        yield from (f"config.components: '{c.name}' has no engine" for c in made.components if c.engine is None)
    if len(made.files) > MOST_FILES:
        yield f"config.files: more than {MOST_FILES} files"
    for name, digests in made.files.items():
        # An empty entry would pass every check.
        if not digests.split() or not all(DIGEST.fullmatch(digest) for digest in digests.split()):
            yield f"config.files: no valid digest for {name!r:.200}"


def _wrong_ids(made: EngineDir) -> Iterator[str]:
    model = made.model
    for name, ids in (("image_token_id", (model.image_token_id,)), ("eos_token_ids", model.eos_token_ids)):
        if not all(0 <= token < LARGEST["model.vocab_size"] for token in ids):
            yield f"config.model.{name}: a token id is at least 0"
    if not -1 <= model.first_patch <= model.visual_tokens:
        yield f"config.model.first_patch must be between -1 and {model.visual_tokens}"
    if not 0 <= model.deepstack_levels <= made.kv.num_layers:
        yield f"config.model.deepstack_levels must be between 0 and {made.kv.num_layers}, the decoder's layers"


def _wrong_vision(made: EngineDir) -> Iterator[str]:
    vision, most = made.vision, made.model.visual_tokens
    if not 1 <= vision.tokens[0] <= vision.tokens[1] or vision.tokens[1] != most:
        yield f"config.vision.tokens must be two numbers from 1 to model.visual_tokens, {most}"
    if not 1 <= vision.crops[0] <= vision.crops[1] <= MOST_CROPS:
        yield f"config.vision.crops must be two numbers between 1 and {MOST_CROPS}"
    if vision.newlines not in NEWLINES:
        yield f"config.vision.newlines must be one of {', '.join(NEWLINES)}"
    read = [name for name in SALIENCY if name in made.pruning.needs]
    if [*vision.saliency] != read:
        yield f"config.vision.saliency must be {', '.join(read) or 'empty'}, as config.pruning.needs says"


def _wrong_rows(made: EngineDir) -> Iterator[str]:
    width = made.model.row_width
    for component in made.components:
        for spec in component.inputs:
            if spec.name == INPUTS_EMBEDS and (len(spec.shape) != 3 or spec.shape[2] != width):
                shape = f"[batch, sequence, {width}]"
                yield f"config.components: '{component.name}': '{spec.name}' must be {shape}, as config.model says"


def _wrong_positions(made: EngineDir) -> Iterator[str]:
    positions, half = made.positions, made.kv.head_dim // 2
    if positions.rule not in POSITIONS:
        yield f"config.positions.rule must be one of {', '.join(POSITIONS)}"
    if positions.axes not in POSITION_AXES:
        yield f"config.positions.axes must be one of {', '.join(map(str, POSITION_AXES))}"
    sections = positions.sections
    if len(sections) != positions.axes or min(sections, default=0) < 1 or sum(sections) != half:
        yield f"config.positions.sections must share {half} frequencies, half of kv.head_dim, among the axes"
    if positions.interleaved and positions.axes == 1:
        yield "config.positions.interleaved belongs to several axes"
    for component in made.components:
        for spec in component.inputs:
            if spec.name == POSITION_IDS and (len(spec.shape) != 3 or spec.shape[1] != positions.axes):
                shape = f"[batch, {positions.axes}, sequence]"
                yield f"config.components: '{component.name}': '{spec.name}' must be {shape}, as config.positions says"


def _wrong_budget(made: EngineDir) -> Iterator[str]:
    pruning, tokens = made.pruning, made.model.visual_tokens
    low, high = pruning.keep_range
    if not 1 <= low <= high <= tokens:
        yield f"config.pruning.keep_range must lie between 1 and {tokens}"
    if not low <= pruning.keep <= high:
        yield "config.pruning.keep must lie in keep_range"
    if pruning.schedule is not None:
        yield from (f"config.pruning.schedule.{what}" for what in wrong_schedule(pruning.schedule))
        if pruning.schedule.depth != made.kv.num_layers:
            yield f"config.pruning.schedule.depth must be {made.kv.num_layers}, as config.kv says"


def _wrong_components(made: EngineDir) -> Iterator[str]:
    names = [component.name for component in made.components]
    yield from (f"config.components: '{n}' occurs twice" for n in sorted({n for n in names if names.count(n) > 1}))
    yield from (f"config.components: {n!r:.100} is no name of a component" for n in names if not COMPONENT.fullmatch(n))
    yield from (f"config.chain: there is no component '{name}'" for name in made.chain if name not in names)
    for component in made.components:
        for specs in (component.inputs, component.outputs):
            tensors = [spec.name for spec in specs]
            if len({*tensors}) < len(tensors):
                yield f"config.components: '{component.name}': two tensors of one name"
            for spec in specs:
                what = _wrong_tensor(spec)
                if what is not None:
                    yield f"config.components: '{component.name}': '{spec.name}' {what}"


def _wrong_tensor(spec: TensorSpec) -> str | None:
    sizes: list[Any] = [size for size in spec.shape if isinstance(size, int)]
    if any(size < 0 for size in sizes) or len(spec.shape) > 16 or math.prod(sizes) > LARGEST_TENSOR:
        return "has a shape out of range"
    return None if spec.dtype in DTYPES else f"has the unknown dtype {spec.dtype!r:.100}"


def _wrong_parts(made: EngineDir) -> Iterator[str]:
    """Roles and segments: each part once, and the pieces of a decoder without a gap."""
    for component in made.components:
        if component.role not in ROLES:
            yield f"config.components: '{component.name}' has the unknown role {component.role!r:.100}"
        elif component.segment is not None and component.role not in SEGMENTED:
            yield f"config.components: '{component.name}': a component of role {component.role} has no segment"
    parts = [component.part for component in made.components]
    for component in made.components:
        if parts.count(component.part) > 1:
            yield f"config.components: '{component.name}': another component has its role and segment"
    pieces = [component.segment for component in made.by_role(DECODER)]
    whole = pieces in ([], [None])
    if not whole and pieces != [*range(len(pieces))]:
        yield "config.components: the decoder's segments must be numbered 0, 1, 2, … or there must be none"
    points = [component.segment for component in made.by_role(PRUNER)]
    if not (points in ([], [None]) if whole else all(point in pieces[:-1] for point in points)):
        yield "config.components: a pruner must stand before the decoder, or behind one of its segments but the last"


def _wrong_segments(made: EngineDir) -> Iterator[str]:
    segments, layers = made.segments, made.kv.segment_layers
    if len(layers) != len(segments) or (segments and (min(layers) < 1 or sum(layers) != made.kv.num_layers)):
        yield f"config.kv.segment_layers must share {made.kv.num_layers} layers among {len(segments)} segments"
    schedule = made.pruning.schedule
    if (schedule is not None) != bool(segments):
        yield "config.pruning.schedule belongs to a decoder in segments, and to no other"
    elif schedule is not None and tuple(accumulate(layers[:-1])) != tuple(point + 1 for point in schedule.points):
        yield "config.pruning.schedule.points must be the last layers of the segments, as config.kv says"
    cache = (made.kv.num_kv_heads, made.kv.head_dim)
    for component in made.components:
        for spec in component.inputs:
            if is_past(spec.name) and spec.shape[1::2] != cache:
                yield (
                    f"config.components: '{component.name}': '{spec.name}' must be "
                    f"[batch, {cache[0]}, capacity, {cache[1]}], as config.kv says"
                )
