"""What a pruning method is: its needs, its options, a NumPy reference and a graph builder.

A method says which visual tokens of an image to keep.  Both of its forms compute in float32 whatever the dtype of
the features, give ascending indices, break ties by the lower index and put NaN scores last, so that they can be
compared index for index.

This module is light on purpose: the registry is read by ``trtprune --help`` and by the runtime.  NumPy is imported
by the calls that compute, and nothing of ONNX is imported at all; graph builders receive the graph they write to.
"""

from __future__ import annotations

import difflib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from trtprune.arguments import arg
from trtprune.errors import BudgetError, InputError
from trtprune.pruning.inputs import INPUTS

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from trtprune.graph import Graph

__all__ = ["PROMPT_TOKENS", "TEXT_SPANS", "Method", "Option", "OptionValue"]

OptionValue = str | int | float

TEXT_SPANS = {
    "question": "the tokens of the user's question only",
    "after_image": "every token after the image: question and template (e.g. ' ASSISTANT:')",
    "all": "every text token of the prompt, system prompt and template included",
}
"""Which of the prompt's tokens the runtime passes as ``text_embeds``."""

PROMPT_TOKENS = {"question": "question", "after_image": "after_image", "all_text": "all"}
"""Choices of the option ``prompt_tokens`` → key of :data:`TEXT_SPANS`."""


@dataclass(frozen=True)
class Option:
    """A setting of a method that is fixed when the graph is built.

    Either ``choices`` (a string out of a few), text that matches ``pattern``, or a number within
    ``minimum``..``maximum``; the type of ``default`` decides whether that is a whole one.
    """

    name: str
    default: OptionValue
    help: str
    choices: tuple[str, ...] = ()
    minimum: float = -math.inf
    maximum: float = math.inf
    pattern: str = ""

    @property
    def valid(self) -> str:
        """What may be given, for help texts and errors."""
        if self.pattern:
            return f"text of the form {self.pattern}"
        if self.choices:
            return "one of " + ", ".join(self.choices)
        kind = "a whole number" if isinstance(self.default, int) else "a number"
        return f"{kind} from {self.minimum:g} to {self.maximum:g}"

    def parse(self, value: object, method: str) -> OptionValue:
        """``value`` (text of a command line, or a Python value) as the option's type.

        Raises:
            BudgetError: naming the option, what was given and what is valid.
        """
        if self.pattern:
            value = str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value
            if isinstance(value, str) and re.fullmatch(self.pattern, value):
                return value
        elif self.choices:
            if isinstance(value, bool) and set(self.choices) == {"false", "true"}:
                return str(value).lower()
            if isinstance(value, str) and value in self.choices:
                return value
        elif not isinstance(value, bool) and isinstance(value, (str, int, float)):
            try:
                number = int(value) if isinstance(self.default, int) else float(value)
                if self.minimum <= number <= self.maximum and (isinstance(value, str) or number == value):
                    return number
            except (ValueError, OverflowError):
                pass
        raise BudgetError(f"{arg('options', {self.name: value})}: not valid for method {method}", hint=self.valid)


class Method(ABC):
    """A way to choose visual tokens.

    ``needs`` lists what it reads beside the image features: keys of :data:`trtprune.pruning.inputs.INPUTS`
    (``text_embeds`` brings ``text_mask`` with it), ``seed`` and ``grid``.  ``cost`` says in a few words what the
    selection takes.  ``positions`` is how the kept tokens are numbered in the decoder, ``compact`` (0..n-1) or
    ``original``.  A method that ``merges`` returns rows that are not all rows of the image features: it has
    :meth:`merge` and :meth:`build_merged`, and its ``kept_indices`` name for each row a token it stands for.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str] = ""
    source: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset()
    cost: ClassVar[str] = ""
    merges: ClassVar[bool] = False
    positions: ClassVar[str] = "compact"
    options: ClassVar[dict[str, Option]] = {}

    def text_span(self, options: Mapping[str, Any] | None = None) -> str:
        """Which text tokens the method wants: a key of :data:`TEXT_SPANS`."""
        return PROMPT_TOKENS[str(self.validate_options(options).get("prompt_tokens", "question"))]

    def validate_options(self, options: Mapping[str, object] | None = None) -> dict[str, OptionValue]:
        """All options of the method, defaults filled in and text parsed.

        Raises:
            BudgetError: for an unknown option or an invalid value.
        """
        result = {name: option.default for name, option in self.options.items()}
        for name, value in (options or {}).items():
            if name not in self.options:
                known = ", ".join(self.options) or "none"
                close = difflib.get_close_matches(name, self.options, n=1)
                hint = f"did you mean {close[0]}? " if close else ""
                raise BudgetError(
                    f"{arg('options', {name: value})}: method {self.name} has no option {name!r}",
                    hint=f"{hint}options of {self.name}: {known}",
                )
            result[name] = self.options[name].parse(value, self.name)
        return result

    def tower_layer(self, options: Mapping[str, Any] | None = None) -> int | None:
        """The layer of the vision tower, counted from 1, that ``shallow_attention`` is taken from, if it is needed."""
        return None

    def reference(
        self,
        image_features: np.ndarray,
        *,
        keep: int,
        cls_attention: np.ndarray | None = None,
        text_embeds: np.ndarray | None = None,
        text_mask: np.ndarray | None = None,
        seed: int | None = None,
        grid: tuple[int, int] | None = None,
        vision_features: np.ndarray | None = None,
        vision_keys: np.ndarray | None = None,
        cls_feature: np.ndarray | None = None,
        shallow_attention: np.ndarray | None = None,
        deep_attention: np.ndarray | None = None,
        clip_image_embeds: np.ndarray | None = None,
        clip_text_embeds: np.ndarray | None = None,
        **options: object,
    ) -> np.ndarray:
        """The selection, in NumPy.

        Args:
            image_features: [N, D], or [B, N, D] for a batch of images; any float dtype.
            keep: Tokens to keep of each image, 1 ≤ keep ≤ N.
            cls_attention: [N] or [B, N].
            text_embeds: [T, D] or [B, T, D].
            text_mask: [T] or [B, T]; 0 marks padding.  Left out: no padding.
            seed: For ``random``; left out: 0.
            grid: Rows and columns of patches, N together.
            vision_features, vision_keys, cls_feature, shallow_attention, deep_attention, clip_image_embeds,
                clip_text_embeds: As :data:`trtprune.pruning.inputs.INPUTS` says.
            options: As in :attr:`options`; strings are parsed.

        What a method does not need is ignored.

        Returns:
            int64 [keep], or [B, keep] for a batch; ascending in each row.

        Raises:
            BudgetError: for a budget or option that cannot be served.
            InputError: for a missing input or one of the wrong shape.
        """
        given = {key: value for key, value in locals().items() if key in INPUTS or key in ("text_mask", "seed", "grid")}
        picks = [indices for indices, _ in self._rows(image_features, keep, given, options, self._selected)]
        return self._stack(image_features, picks)

    def pruned(self, image_features: np.ndarray, *, keep: int, **given: Any) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`reference`, with what the decoder gets: (indices, float32 [keep, D] or [B, keep, D])."""
        inputs = {key: given.pop(key) for key in [*given] if key in INPUTS or key in ("text_mask", "seed", "grid")}
        found = self._rows(image_features, keep, inputs, given, self.merge)
        return tuple(self._stack(image_features, part) for part in zip(*found, strict=True))  # type: ignore[return-value]

    def merged_into(self, image_features: np.ndarray, *, keep: int, **given: Any) -> np.ndarray:
        """Where each token went: int64 [N] or [B, N], the kept token whose row it is a part of, -1 for none.

        Arguments and errors as for :meth:`reference`. A kept token is a part of its own row; of a method that does not
        merge, no other token is a part of any.
        """
        inputs = {key: given.pop(key) for key in [*given] if key in INPUTS or key in ("text_mask", "seed", "grid")}
        return self._stack(image_features, self._rows(image_features, keep, inputs, given, self.assign))

    def assign(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> np.ndarray:
        """:meth:`merged_into` for one image, inputs and options checked."""
        import numpy as np

        kept = self.select(image_features, keep=keep, **inputs)
        found = np.full(len(image_features), -1, np.int64)
        found[kept[kept >= 0]] = kept[kept >= 0]
        return found

    def _selected(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> tuple[np.ndarray, None]:
        return self.select(image_features, keep=keep, **inputs), None

    @staticmethod
    def _stack(image_features: np.ndarray, rows: Sequence[np.ndarray]) -> np.ndarray:
        import numpy as np

        return np.stack(rows) if np.ndim(image_features) == 3 else rows[0]

    def _rows(
        self,
        image_features: np.ndarray,
        keep: int,
        given: Mapping[str, Any],
        options: Mapping[str, object],
        choose: Callable[..., Any],
    ) -> list[Any]:
        """``choose`` of each image, with its inputs checked and in float32."""
        import numpy as np

        values: dict[str, Any] = dict(self.validate_options(options))
        features = np.asarray(image_features)
        if features.ndim not in (2, 3) or 0 in features.shape:
            raise InputError(f"image_features has shape {features.shape}; it must be [N, D] or [B, N, D] and not empty")
        batched = features.ndim == 3
        tokens, width = features.shape[-2:]
        keep = self.check_keep(keep, tokens)
        lead = features.shape[:-2]
        rows: list[dict[str, Any]] = [{} for _ in range(features.shape[0] if batched else 1)]

        def give(name: str, array: Any, tail: tuple[int | str, ...], dtype: Any) -> None:
            if array is None:
                raise InputError(f"method {self.name} needs {name}")
            array = np.asarray(array)
            wanted = (*lead, *tail)
            fits = array.ndim == len(wanted) and all(
                isinstance(w, str) or w == a for w, a in zip(wanted, array.shape, strict=True)
            )
            if not fits or 0 in array.shape:
                raise InputError(
                    f"{name} has shape {array.shape}; with image_features {features.shape} it must be "
                    f"[{', '.join(map(str, wanted))}]"
                )
            for row, part in zip(rows, array if batched else array[None], strict=True):
                row[name] = part.astype(dtype)

        give("image_features", features, (tokens, width), np.float32)
        sizes: dict[str, int] = {"N": tokens, "D": width}
        for name, entry in INPUTS.items():
            if name in self.needs:
                give(name, given.get(name), tuple(sizes.get(dim, dim) for dim in entry.dims), np.float32)
        if "text_embeds" in self.needs and given.get("text_mask") is not None:
            give("text_mask", given["text_mask"], np.asarray(given["text_embeds"]).shape[len(lead) : -1], np.bool_)
            for row in rows:
                row["text_embeds"] = row["text_embeds"][row.pop("text_mask")]
        if "seed" in self.needs:
            seed = given.get("seed")
            number = 0 if seed is None else int(np.asarray(seed).reshape(()))
            if not 0 <= number < 2**63:
                raise InputError(f"{arg('seed', number)}: out of range", hint="0 to 2**63 - 1")
            for row in rows:
                row["seed"] = number
        if "grid" in self.needs:
            grid = given.get("grid")
            if grid is None or int(grid[0]) * int(grid[1]) != tokens or min(grid) < 1:
                raise InputError(f"method {self.name} needs grid, (rows, columns) of patches with {tokens} in all")
            for row in rows:
                row["grid"] = (int(grid[0]), int(grid[1]))
        with np.errstate(over="ignore", invalid="ignore"):  # inf and NaN are part of the definition: they lose
            return [choose(keep=keep, **row, **values) for row in rows]

    def check_keep(self, keep: int, tokens: int) -> int:
        """``keep`` as an int, if an image of ``tokens`` tokens can be cut to it.

        Raises:
            BudgetError: naming ``--keep``.
        """
        if not 1 <= int(keep) <= tokens:
            raise BudgetError(
                f"{arg('keep', keep)}: out of range, there are {tokens} visual tokens", hint=f"1 to {tokens}"
            )
        return int(keep)

    @abstractmethod
    def select(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> np.ndarray:
        """The reference for one image; inputs are checked and float32, masked text rows are already gone."""

    def merge(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> tuple[np.ndarray, np.ndarray]:
        """:meth:`select` and the rows that the decoder gets, float32 [keep, D]; for one image."""
        indices = self.select(image_features, keep=keep, **inputs)
        return indices, image_features[indices]

    def scores(
        self,
        g: Graph,
        inputs: Mapping[str, ir.Value],
        *,
        keep: ir.Value,
        num_tokens: int | None = None,
        **options: Any,
    ) -> ir.Value | None:
        """Write float32 scores [batch, N] whose ``keep`` largest are the selection, or return None.

        A method that can say its choice this way shares the one top-k-and-gather of :mod:`trtprune.pruning.graph`.
        """
        return None

    def build(
        self,
        g: Graph,
        inputs: Mapping[str, ir.Value],
        *,
        keep: ir.Value,
        num_tokens: int | None = None,
        **options: Any,
    ) -> ir.Value:
        """Write the selection into ``g``.

        Args:
            g: The graph; only ``op``, ``constant``, ``scalar``, ``ints`` and ``builder.subgraph`` are used.
            inputs: ``image_features`` [batch, N, D] and what the method needs, by name.
            keep: int64 [1], a run-time value.
            num_tokens: N where it is fixed.
            options: All of the method's options, validated; and ``grid``, where the method needs it.

        Returns:
            int64 [batch, keep], ascending in each row.
        """
        from trtprune.pruning import ops

        scores = self.scores(g, inputs, keep=keep, num_tokens=num_tokens, **options)
        assert scores is not None, f"{self.name} must write scores() or build()"
        return ops.ascending(g, ops.top(g, scores, keep)[1], keep)

    def build_merged(
        self,
        g: Graph,
        inputs: Mapping[str, ir.Value],
        *,
        keep: ir.Value,
        num_tokens: int | None = None,
        **options: Any,
    ) -> tuple[ir.Value, ir.Value]:
        """As :meth:`build`, of a method that ``merges``: indices and float32 rows [batch, keep, D]."""
        raise NotImplementedError(f"{self.name} does not merge")
