"""The common part of all pruning methods: a name, options, what it needs, and the budgets it serves.

:class:`trtprune.pruning.Method` prunes before the decoder and :class:`trtprune.pruning.InLlmMethod` between its layers;
whoever builds or reports asks the base and need not know which of the two it has.

This module is light on purpose: ``trtprune --help`` reads the registry.  NumPy is imported by the calls that compute,
and nothing of ONNX is imported at all; graph builders receive the graph they write to.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

from trtprune.arguments import arg
from trtprune.errors import BudgetError
from trtprune.pruning.grids import MOST_CROPS
from trtprune.pruning.options import PROMPT_TOKENS, Option, OptionValue

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from trtprune.graph import Graph
    from trtprune.pruning.trace import Trace
    from trtprune.schedules import ScheduleInfo

__all__ = ["WITH_CLS", "BaseMethod", "BuildContext", "LayerAccess", "TowerTraits"]


class Tower(Protocol):
    """A model's facts about its vision tower."""

    @property
    def has_cls(self) -> bool:
        """Whether it has a CLS token."""

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Pixels of a crop; None: it reads images of any size."""


@dataclass(frozen=True)
class TowerTraits:
    """What decides the defaults of options.

    Attributes:
        has_cls: Whether the vision tower has a CLS token.
        packed: Whether it is a packed one, which reads images of any size.
    """

    has_cls: bool = True
    packed: bool = False

    @classmethod
    def of(cls, model: Tower) -> Self:
        """The traits of a model's tower."""
        return cls(model.has_cls, model.image_size is None)


WITH_CLS = TowerTraits()
"""The traits of CLIP's tower."""


class LayerAccess(Protocol):
    """The decoder around a prune point, as far as the point's graph may use it."""

    @property
    def hidden_size(self) -> int:
        """D, the width of the hidden states."""

    @property
    def row_width(self) -> int:
        """The width of a row at the point: D, and what the row carries for later layers."""

    @property
    def head_dim(self) -> int:
        """The width of an attention head."""

    @property
    def num_heads(self) -> int:
        """The number of query heads."""

    @property
    def position_axes(self) -> int:
        """The number of axes of a position, 1 or 3."""

    def angles(self, g: Graph, position_ids: ir.Value) -> tuple[ir.Value, ir.Value]:
        """cos and sin [B, S, head_dim / 2] of int64 [B, axes, S] positions."""

    def next_queries(self, g: Graph, hidden_states: ir.Value) -> ir.Value:
        """Queries [B, heads, S, head_dim] of rows [B, S, row_width] in the layer behind the point, without rotary
        positions."""

    def next_keys(self, g: Graph, hidden_states: ir.Value) -> ir.Value:
        """Keys [B, key heads, S, head_dim], as :meth:`next_queries`."""

    def next_attention(self, g: Graph, hidden_states: ir.Value, position_ids: ir.Value, index: ir.Value) -> ir.Value:
        """Attention float32 [B, heads, R, S] of rows ``index`` [B, R] in the layer *behind* the point."""


@dataclass(frozen=True)
class BuildContext:
    """The build around the graphs of a method, as far as they may use it.

    Attributes:
        make: Component name → an empty graph in the build's dtype and lowering, with the model's weights at hand.
        hidden_size: D, the width of the decoder.
        levels: L, the DeepStack levels that a row of the decoder's input carries behind its D numbers.
        depth: Layers of the decoder, for a method that cuts it.
        layer_access: Number of a layer → the place behind it, likewise; -1: the place before the first.
        num_tokens: N, where the model fixes it.
        most_crops: Crops that an image can have.
        widths: C, K and P of :data:`trtprune.pruning.inputs.INPUTS`, where the model fixes them.
        float64: Whether the backend computes in float64.
    """

    make: Callable[[str], Graph]
    hidden_size: int
    levels: int = 0
    depth: int = 0
    layer_access: Callable[[int], LayerAccess] | None = None
    num_tokens: int | None = None
    most_crops: int = MOST_CROPS
    widths: Mapping[str, int] = field(default_factory=dict)
    float64: bool = True

    @property
    def row_width(self) -> int:
        """The width of a row of the decoder's input, D · (1 + L)."""
        return self.hidden_size * (1 + self.levels)


class BaseMethod(ABC):
    """A way to choose visual tokens, before the decoder or inside it.

    Attributes:
        name: The method's name, on the command line and in ``config.json``.
        summary: What it selects, in a few words.
        paper, source: Addresses of the paper and of the authors' code.
        needs: What it reads beside the image features: keys of :data:`trtprune.pruning.inputs.INPUTS` (``text_embeds``
            brings ``text_mask`` with it), and ``seed``.
        cost: What the selection takes, in a few words.
        merges: Whether the rows it returns are not all rows of the image features.
        inside: Whether it prunes between decoder layers.
        positions: The position rule of the kept tokens in a decoder whose positions are single numbers, ``compact``
            (0..n-1) or ``original``.
        grid_positions: The same where a position has a row and a column (M-RoPE).  The authors' codes for such models
            keep the original positions, unless the method says otherwise.  Not of methods inside the decoder.
        options: Its options.
        without_cls: Options that have another default where the vision tower has no CLS token: how the method does
            without one.
        with_packed: Options that have another default with a packed vision tower.
        without_clip: Options with which it reads nothing of CLIP's text tower, for a method that otherwise does.
        without_merging: Options with which it merges nothing, for a method that otherwise does.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str] = ""
    source: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset()
    cost: ClassVar[str] = ""
    merges: ClassVar[bool] = False
    inside: ClassVar[bool]
    positions: ClassVar[str] = "compact"
    grid_positions: ClassVar[str] = "original"
    options: ClassVar[tuple[Option, ...]] = ()
    without_cls: ClassVar[Mapping[str, OptionValue]] = {}
    with_packed: ClassVar[Mapping[str, OptionValue]] = {}
    without_clip: ClassVar[Mapping[str, OptionValue]] = {}
    without_merging: ClassVar[Mapping[str, OptionValue]] = {}

    def text_span(self, options: Mapping[str, Any] | None = None) -> str:
        """The span of text tokens that the method reads: a key of :data:`trtprune.pruning.options.TEXT_SPANS`."""
        return PROMPT_TOKENS[str(self.validate_options(options).get("prompt_tokens", "question"))]

    def complete_options(self, options: Mapping[str, object] | None, tower: TowerTraits) -> dict[str, OptionValue]:
        """:meth:`validate_options` for a model, with the defaults that go with its vision tower."""
        own = {**({} if tower.has_cls else self.without_cls), **(self.with_packed if tower.packed else {})}
        return self.validate_options({**own, **(options or {})})

    def validate_options(self, options: Mapping[str, object] | None = None) -> dict[str, OptionValue]:
        """All options of the method, defaults filled in and text parsed.

        Raises:
            BudgetError: for an unknown option or an invalid value.
        """
        known = {option.name: option for option in self.options}
        values = {option.name: option.default for option in self.options}
        for name, value in (options or {}).items():
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]}? " if close else ""
                raise BudgetError(
                    f"{arg('options', {name: value})}: method {self.name} has no option {name!r}",
                    hint=f"{hint}options of {self.name}: {', '.join(known) or 'none'}",
                )
            values[name] = known[name].parse(value, self.name)
        return values

    def tower_layer(self, options: Mapping[str, Any] | None = None) -> int | None:
        """The layer of the vision tower, counted from 1, that ``shallow_attention`` is taken from, if it is needed."""
        return None

    def needs_of(self, options: Mapping[str, Any]) -> frozenset[str]:
        """:attr:`needs`, and what else the method reads with these options, all of them validated."""
        return self.needs

    def of_each_crop(self, options: Mapping[str, Any]) -> frozenset[str]:
        """Needed inputs without a row a token that have a row for each crop; others are those of the whole image."""
        return frozenset()

    @abstractmethod
    def describe_needs(self) -> list[str]:
        """The inputs of the method beside the image features, each in a few words."""

    def check_heads(self, heads: int, options: Mapping[str, Any]) -> None:
        """Refuses options that do not fit a decoder of ``heads`` query heads.

        Raises:
            BudgetError: naming the option.
        """
        return

    # -- budget -------------------------------------------------------------------------------------------------

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

    def plan(self, depth: int, options: Mapping[str, Any]) -> ScheduleInfo | None:
        """The cuts of a decoder of ``depth`` layers and the number of tokens behind each; None: it is not cut.

        Raises:
            BudgetError: if the decoder is too shallow, or the options do not fit to each other.
        """
        return None

    @abstractmethod
    def check_budget(self, keep: int, tokens: int, depth: int, options: Mapping[str, Any]) -> None:
        """Refuses a budget that cannot be met with ``tokens`` visual tokens and a decoder of ``depth`` layers.

        Raises:
            BudgetError: naming ``--keep``, or the option that is in its way.
        """

    @abstractmethod
    def budgets(self, tokens: int, depth: int, options: Mapping[str, Any]) -> tuple[int, int]:
        """The smallest and the largest budget that can be met; arguments and errors as of :meth:`check_budget`."""

    def longest_order(self, tokens: int, keep: int, options: Mapping[str, Any]) -> int:
        """The longest list that a graph of the method puts in order with one TopK.

        Args:
            tokens: The most visual tokens of an image.
            keep: The largest budget.
            options: All options, validated.
        """
        return keep

    def own_positions(self, options: Mapping[str, Any]) -> str | None:
        """The position rule, where the method itself decides it; None: :meth:`positions_of` or the user does."""
        return None

    def positions_of(self, axes: int) -> str:
        """The method's own position rule in a decoder whose positions have ``axes`` numbers."""
        return self.positions if axes == 1 else self.grid_positions

    def merges_with(self, options: Mapping[str, Any]) -> bool:
        """Whether it merges tokens with these options, all of them validated."""
        return self.merges

    def passes_all(self, options: Mapping[str, Any]) -> bool:
        """Whether all tokens pass as they are where the budget is all of them."""
        return not self.merges

    # -- what it computes ---------------------------------------------------------------------------------------

    @abstractmethod
    def reference(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> np.ndarray:
        """The selection of one image, in NumPy: int64 [keep], ascending."""

    @abstractmethod
    def pruned(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`reference`, with what the decoder reads on: (indices, float32 rows)."""

    @abstractmethod
    def merged_into(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> np.ndarray:
        """The row of each token: int64 [N], a token of the row it is a part of, -1 for none; as :meth:`reference`."""

    def trace(self, tokens: int, options: Mapping[str, Any]) -> Trace | None:
        """Follows an image of ``tokens`` tokens through the decoder; None where it does not merge any there."""
        return None

    def attention(self, options: Mapping[str, Any]) -> Literal["mean", "heads"] | None:
        """The form of the raters' attention that the decoder returns: its mean over heads, all heads, or nothing."""
        return None

    @abstractmethod
    def build_graphs(self, context: BuildContext, options: Mapping[str, Any]) -> dict[tuple[str, int | None], Graph]:
        """The method's own components, by role and segment: ``pruner``, and what goes before a decoder that is cut.

        Args:
            context: The build.
            options: All options, validated.

        Raises:
            BudgetError: for something that the build cannot give it.
        """
