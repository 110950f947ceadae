"""What both sides are fed: seeded random numbers, or what ``--save-inputs`` wrote.

Random inputs follow Polygraphy's data loader (iteration i is drawn with seed + i, NumPy's RandomState), but know what
the tensors are: ids lie in the vocabulary, attention rows add up to 1, caches hold numbers where earlier tokens
were and zeros behind.  A decoder is fed a prompt and then single tokens, each run with a cache of its own: one run's
error is not in the next one's input, and any run can be repeated alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trtprune.compare._require import as_error, polygraphy
from trtprune.compare.numerics import Feed
from trtprune.errors import BudgetError, InputError

if TYPE_CHECKING:
    from trtprune.engine_dir import ComponentInfo, EngineDir, TensorSpec

__all__ = ["DEFAULT_SEED", "Draw", "check_feeds", "fit_profile", "load_feeds", "narrow", "random_feeds", "wire_dtype"]

DEFAULT_SEED = 1  # polygraphy.constants.DEFAULT_SEED


@dataclass(frozen=True)
class Draw:
    """What random inputs are like.

    Attributes:
        seed: Of the first iteration.
        iterations: Runs of each component; of the decoder, prompts.
        decode_steps: Single tokens behind each of the decoder's prompts.
        batch_size: Rows.
        text_tokens: Of a prompt.
        keep: Visual tokens to keep; None: as built.
    """

    seed: int = DEFAULT_SEED
    iterations: int = 1
    decode_steps: int = 2
    batch_size: int = 1
    text_tokens: int = 16
    keep: int | None = None


def wire_dtype(dtype: str) -> np.dtype:
    """What a tensor is fed as: bfloat16 as float32, since neither NumPy's files nor Polygraphy know it."""
    return np.dtype("float32" if dtype == "bfloat16" else dtype)


def narrow(array: np.ndarray, dtypes: Sequence[str]) -> np.ndarray:
    """Rounds to what every one of ``dtypes`` can hold, so that no side begins with a rounding of its own."""
    for dtype in dtypes:
        if dtype == "bfloat16":
            import ml_dtypes

            array = array.astype(ml_dtypes.bfloat16).astype(np.float32)
        elif dtype == "float16":
            array = array.astype(np.float16)
    return array


def check_keep(made: EngineDir, keep: int | None) -> int:
    """The budget, as the build serves it."""
    low, high = made.pruning.keep_range
    if keep is None:
        return made.pruning.keep
    if not low <= keep <= high:
        raise BudgetError(
            f"--keep {keep}: outside {low} to {high}, the --keep-range of {made.root}",
            hint="choose another --keep, or build with a wider --keep-range",
        )
    return keep


def random_feeds(
    made: EngineDir, component: ComponentInfo, draw: Draw, dtypes: Sequence[str]
) -> tuple[list[Feed], list[str]]:
    """Inputs of one component, and what each of them is.

    Args:
        made: Whose shapes they are.
        component: Of it.
        draw: How many, how large.
        dtypes: Of both sides: inputs are rounded to what both can hold.
    """
    feeds, names = [], []
    decodes = any(spec.name.startswith("past_key_values.") for spec in component.inputs)
    keep = check_keep(made, draw.keep)
    # A prune point inside the decoder still has all visual tokens before it.
    visual = made.model.visual_tokens if any(spec.name == "visual_index" for spec in component.inputs) else keep
    prompt = draw.text_tokens + visual
    dims = {
        "batch": draw.batch_size,
        "tokens": draw.text_tokens,
        "text_tokens": draw.text_tokens,
        "visual_tokens": made.model.visual_tokens,
        "sequence": prompt,
        "logits_rows": 1,
        "raters": min(4, prompt),
        "capacity": min(made.kv.capacity, -(-(prompt + draw.decode_steps) // 16) * 16),
    }
    if decodes and prompt + draw.decode_steps > dims["capacity"]:
        raise InputError(
            f"--text-tokens {draw.text_tokens} with {keep} kept tokens does not fit the cache of {made.kv.capacity}",
            hint="fewer --text-tokens, or a smaller --keep",
        )
    for i in range(draw.iterations):
        rng = np.random.RandomState(draw.seed + i)
        suffix = f" {i}" if draw.iterations > 1 else ""
        for step in range(1 + (draw.decode_steps if decodes else 0)):
            now = {**dims, "sequence": 1, "raters": 1} if step else dims
            begin = prompt + step - 1 if step else 0
            facts = {"begin": begin, "last": now["sequence"] - 1, "keep": keep, "seed": draw.seed + i}
            feed = {}
            for spec in component.inputs:
                shape = tuple(now[dim] if isinstance(dim, str) else dim for dim in spec.shape)
                array = _value(rng, spec, shape, made.model.vocab_size, facts)
                feed[spec.name] = narrow(array, dtypes) if array.dtype == np.float32 else array
            feeds.append(feed)
            names.append(f"decode {step}{suffix}" if step else f"prefill{suffix}" if decodes else f"random{suffix}")
    return feeds, names


def _value(
    rng: np.random.RandomState, spec: TensorSpec, shape: tuple[int, ...], vocab: int, facts: Mapping[str, int]
) -> np.ndarray:
    """One input.  ``facts``: tokens in the cache (``begin``), the last of the new ones (``last``), keep, seed."""
    if spec.name.startswith("past_key_values."):
        cache = np.zeros(shape, np.float32)
        cache[:, :, : facts["begin"]] = rng.standard_normal((*shape[:2], facts["begin"], shape[3]))
        return cache
    if spec.name in ("cls_attention", "rater_attention", "rater_weights"):
        scores = np.exp(2 * rng.standard_normal(shape))
        return (scores / scores.sum(-1, keepdims=True)).astype(np.float32)
    if spec.dtype in ("float32", "float16", "bfloat16"):
        return rng.standard_normal(shape).astype(np.float32)
    if spec.name == "input_ids":
        return rng.randint(0, vocab, shape).astype(np.int64)
    steps = np.broadcast_to(np.arange(shape[-1]), shape)
    values: dict[str, Any] = {
        "text_mask": 1,
        "keep": facts["keep"],
        "seed": facts["seed"],
        "write_index": facts["begin"],
        "position_ids": facts["begin"] + steps,
        "logits_index": facts["last"],
        # The last of the new tokens are the raters, the picture lies behind the first text token.
        "rater_index": facts["last"] - shape[-1] + 1 + steps,
        "visual_index": 1 + steps,
    }
    if spec.name not in values:
        raise InputError(f"no random values are known for input {spec.name}", hint="--load-inputs FILE")
    return np.array(np.broadcast_to(values[spec.name], shape), np.int64)


def fit_profile(component: ComponentInfo, feed: Mapping[str, np.ndarray]) -> None:
    """Refuses inputs that no profile of the component's engine serves.

    Raises:
        InputError: naming the input, its shape and what the engine takes.
    """
    if not component.profiles or component.engine is None:
        return
    misfits = []
    for profile in component.profiles:
        wrong = None
        for name, (low, _, high) in profile.items():
            if name not in feed or name.startswith("past_key_values."):
                continue  # the engine's runner brings caches to the capacity it was built with
            have = tuple(feed[name].tolist()) if name == "keep" else feed[name].shape
            if len(have) != len(low) or not all(a <= b <= c for a, b, c in zip(low, have, high, strict=True)):
                wrong = f"{name} {list(have)}, and the engine takes {list(low)} to {list(high)}"
        if wrong is None:
            return
        misfits.append(wrong)
    raise InputError(
        f"{component.name}: input {misfits[0]}",
        hint="smaller --batch-size, --text-tokens or --keep, or build with larger limits",
    )


def load_feeds(path: Path) -> list[Feed]:
    """Inputs from a file or directory that ``--save-inputs`` or Polygraphy wrote.

    Raises:
        InputError: if it cannot be read or holds something else.
    """
    polygraphy()
    from polygraphy.comparator.data_loader import StreamingDataLoader

    if not path.exists():
        raise InputError(f"--load-inputs {path}: no such file", hint="a file that --save-inputs wrote")
    bad = "a JSON file that --save-inputs, or Polygraphy, wrote"
    try:
        with as_error(f"--load-inputs {path}"):
            loaded: list[Any] = list(StreamingDataLoader(str(path)))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"--load-inputs {path}: cannot be read: {str(error)[:200]}", hint=bad) from None
    for feed in loaded:
        if not isinstance(feed, dict) or not all(isinstance(array, np.ndarray) for array in feed.values()):
            raise InputError(f"--load-inputs {path}: holds no inputs (name: array)", hint=bad)
    if not loaded:
        raise InputError(f"--load-inputs {path}: is empty", hint=bad)
    return [dict(feed) for feed in loaded]


def check_feeds(component: ComponentInfo, feeds: Sequence[Feed], path: Path) -> None:
    """Refuses loaded inputs that are not this component's: Polygraphy would take others by their position.

    Raises:
        InputError: naming the input.
    """
    from trtprune.backends.binding import bind_dims
    from trtprune.errors import BackendError

    where = f"--load-inputs {path}: does not fit {component.name}"
    for feed in feeds:
        try:
            bind_dims(component.inputs, {name: array.shape for name, array in feed.items()})
        except BackendError as error:
            raise InputError(f"{where}: {error.message}", hint="--component says which graph it is for") from None
        for spec in component.inputs:
            have, want = feed[spec.name].dtype, wire_dtype(spec.dtype)
            if have.kind != want.kind:
                raise InputError(f"{where}: input {spec.name} is {have}, the graph takes {spec.dtype}")
