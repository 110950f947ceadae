"""Optimisation profiles: the shapes an engine serves, from the limits of a build.  Pure; does not use TensorRT.

The user gives no product of sizes: the longest prompt follows from its limits of text and images, and each image
counts as the largest budget of the build.  How many crops and visual tokens an image has is known from the model's
image processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from trtprune.backends.batches import TEXT_BATCH, VISION_BATCH
from trtprune.engine_dir import Part, TensorSpec
from trtprune.engine_dir.roles import CLIP_TEXT, DECODER, PRUNER, RATERS, VISION
from trtprune.engine_dir.schema import Profile
from trtprune.errors import BuildError

__all__ = [
    "MAX_TOPK",
    "ImageBounds",
    "Limits",
    "Stage",
    "check_limits",
    "component_profiles",
    "default_capacity",
    "entering",
]

MAX_TOPK = 3840
"""The largest number of entries of TensorRT's TopK; an engine with more builds, but fails at run time.  Graphs put a
longer list in order in pieces (:mod:`trtprune.graph.topk`)."""

# A lower bound of text tokens in one segment of CLIP's text tower: it has 77, and one token of the language model can
# be several of CLIP's.
SEGMENT_TOKENS = 16
# Text tokens of the typical prompt, for which the prefill is tuned.
TYPICAL_TEXT = 64
# Room for an answer without --max-seq-len, and the step of capacities (the tiles of kernels).
ANSWER_TOKENS = 256
CAPACITY_STEP = 128


@dataclass(frozen=True)
class ImageBounds:
    """The bounds of an image over all sizes a user may give, known from the image processor.

    Attributes:
        tokens: The fewest and the most visual tokens before pruning.
        crops: The fewest and the most crops.
        newlines: An upper bound of the newline tokens that are beside the budget.
        newlines_stay: Whether those of lines with a kept token stay beside the budget.
        fixed: Whether the pruner chooses from the same number of visual tokens for every image, so that it is a
            static dimension of its graph.
        dims: The same of further run-time dimensions of a packed tower's inputs, by name; such a tower reads one image
            a run.
    """

    tokens: tuple[int, int]
    crops: tuple[int, int] = (1, 1)
    newlines: int = 0
    newlines_stay: bool = False
    fixed: bool = True
    dims: dict[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """The range of an image's tokens in one segment of a pruning decoder, over all budgets and images of a build.

    Attributes:
        tokens: Smallest, typical and largest number of tokens in the segment.
        counts: The same of the inputs of the prune point behind it: ``keep``, and where removed tokens are merged,
            ``recycled`` and ``merged``.  Empty for the last segment.
        lost: The smallest number of tokens that an image has lost when it enters the segment.
    """

    tokens: tuple[int, int, int]
    counts: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    lost: int = 0


@dataclass(frozen=True)
class Limits:
    """The limits that the engines of a build must serve.

    Attributes:
        visual_tokens: The most visual tokens of an image, before pruning.
        keep: The default budget, ``keep_range`` its inclusive limits.
        capacity: Tokens in the cache of a row, prompt and answer.
        max_batch_size: The largest number of rows of a batch.
        max_input_len: The largest number of text tokens of a prompt.
        max_images: The largest number of images of a prompt.
        stages: The segments of a pruning decoder; empty for one that does not prune.
        bounds: The bounds of an image; None: every image is one crop of ``visual_tokens`` visual tokens.
    """

    visual_tokens: int
    keep: int
    keep_range: tuple[int, int]
    capacity: int
    max_batch_size: int = 1
    max_input_len: int = 512
    max_images: int = 1
    stages: tuple[Stage, ...] = ()
    bounds: ImageBounds | None = None

    @property
    def image(self) -> ImageBounds:
        """The bounds of an image."""
        return self.bounds or ImageBounds((self.visual_tokens, self.visual_tokens))

    @property
    def max_sequence(self) -> int:
        """The largest number of tokens of a prompt, visual ones included: the length of one prefill."""
        most = self.stages[0].tokens[2] if self.stages else entering(self.image, self.keep_range[1])
        return min(self.capacity, self.max_input_len + self.max_images * most)

    def capacity_of(self, segment: int | None) -> int:
        """Tokens in a row's cache of a decoder's segment: in a later one, minus the tokens one image has lost by then.

        None is a decoder that is whole.
        """
        return self.capacity if segment is None else self.capacity - self.stages[segment].lost

    @property
    def max_text(self) -> int:
        """The largest number of ids of a prompt before images replace their placeholders, one per image."""
        return min(self.capacity, self.max_input_len + self.max_images)


def entering(image: ImageBounds, high: int) -> int:
    """The most tokens of an image behind a pruner with budgets up to ``high``.

    An image of which nothing is removed keeps its newline tokens beside the budget.
    """
    fewest, most = image.tokens
    beside = image.newlines_stay or fewest <= high + image.newlines
    return min(most, high + image.newlines) if beside else high


def default_capacity(max_positions: int, max_input_len: int, max_images: int, keep_high: int) -> int:
    """The longest prompt and an answer, in whole steps, up to the model's number of positions.

    The time of a decoder step is proportional to the capacity, not to the tokens in it, so this is not simply the
    model's number of positions.
    """
    need = max_input_len + max_images * keep_high + ANSWER_TOKENS
    return min(max_positions, -(-need // CAPACITY_STEP) * CAPACITY_STEP)


def check_limits(limits: Limits) -> None:
    """Refuses limits no engine can serve.

    Raises:
        BuildError: naming the flag.
    """
    sizes = {"batch-size": limits.max_batch_size, "input-len": limits.max_input_len, "images": limits.max_images}
    for name, value in sizes.items():
        if value < 1:
            raise BuildError(f"--max-{name} {value}: must be at least 1")
    if limits.max_input_len > limits.capacity:
        raise BuildError(
            f"--max-input-len {limits.max_input_len}: above the KV capacity of {limits.capacity} tokens",
            hint="lower it, or raise --max-seq-len as far as the model's positions go",
        )


def component_profiles(part: Part, inputs: Sequence[TensorSpec], limits: Limits, backend: str) -> tuple[Profile, ...]:
    """The profiles of one component: every input whose shape is not fixed, and the values of ``keep``.

    ``tensorrt`` gets two for the decoder, 0 for prompts and 1 for single tokens: kernels are chosen for each.
    ``tensorrt-rtx`` chooses kernels at run time and would only store the weights twice.

    Args:
        part: The component's place in the chain.
        inputs: Inputs of its graph.
        limits: The limits of the build.
        backend: ``tensorrt`` or ``tensorrt-rtx``.

    Raises:
        BuildError: for a dimension without a range: the graph is not from this project.
    """
    ranges = _ranges(part, limits)
    stage = None if part.segment is None else limits.stages[part.segment]
    counts = {"keep": (limits.keep_range[0], limits.keep, limits.keep_range[1])}
    typical, longest = limits.keep, limits.max_sequence
    if stage is not None:
        counts, typical = stage.counts, stage.tokens[1]
        longest = min(limits.capacity_of(part.segment), limits.max_input_len + limits.max_images * stage.tokens[2])
        ranges["visual_tokens"] = stage.tokens
    prompt = (1, min(longest, typical + TYPICAL_TEXT), longest)
    if part.role != DECODER:
        return (_profile(inputs, {**ranges, "sequence": prompt}, counts),)
    whole = _profile(inputs, {**ranges, "sequence": prompt}, counts)
    if backend == "tensorrt-rtx":
        return (whole,)
    return (whole, _profile(inputs, {**ranges, "sequence": (1, 1, 1), "raters": (1, 1, 1)}, counts))


def _ranges(part: Part, limits: Limits) -> dict[str, tuple[int, int, int]]:
    """Smallest, typical and largest value of each symbolic dimension of a component."""
    rows, text, image = limits.max_batch_size, limits.max_text, limits.image
    crops = min(VISION_BATCH, rows * limits.max_images * image.crops[1])
    segments = -(-text // SEGMENT_TOKENS)
    texts = min(TEXT_BATCH, segments)
    batch = {VISION: crops, CLIP_TEXT: texts, PRUNER: 1, RATERS: 1}.get(part.role, rows)
    fewest, most = image.tokens
    if part.role == PRUNER and not image.fixed:
        # Newline tokens and padding are not chosen from; and a pruner never runs on fewer than the budget.
        fewest = min(fewest, limits.keep_range[0])
    return {
        **{name: (low, high, high) for name, (low, high) in image.dims.items()},
        "batch": (1, batch, batch),
        "crops": (image.crops[0], image.crops[1], image.crops[1]),
        "tokens": (1, min(text, TYPICAL_TEXT), text),
        "text_tokens": (1, min(text, TYPICAL_TEXT), text),
        "text_segments": (1, 1, segments),
        "visual_tokens": (fewest, most, most),
        "logits_rows": (1, 1, 1),
        # The engine's capacity is static: the graph is given this number before it is parsed.
        "capacity": (limits.capacity_of(part.segment),) * 3,
        "raters": (1, min(text, TYPICAL_TEXT // 2), text),
    }


def _profile(
    inputs: Sequence[TensorSpec],
    ranges: dict[str, tuple[int, int, int]],
    counts: dict[str, tuple[int, int, int]],
) -> Profile:
    profile: Profile = {}
    for spec in inputs:
        if spec.name in counts:
            low, typical, high = counts[spec.name]
            profile[spec.name] = ((low,), (typical,), (high,))
            continue
        unknown = [dim for dim in spec.shape if isinstance(dim, str) and dim not in ranges]
        if unknown:
            raise BuildError(f"input {spec.name}: no range is known for its dimension '{unknown[0]}'")
        if any(isinstance(dim, str) for dim in spec.shape):
            low_opt_high = [tuple(d if isinstance(d, int) else ranges[d][k] for d in spec.shape) for k in range(3)]
            profile[spec.name] = (low_opt_high[0], low_opt_high[1], low_opt_high[2])
    return profile
