"""What a method is that prunes between decoder layers.

The decoder is cut into segments behind the method's points.  At each point the visual tokens of one image go through a
*point graph*: their hidden states, what the raters' queries gave them in the layer before (``rater_attention``, only
those rows of the attention), and ``keep``, the number of tokens to keep there, come in; the kept ones, and what the
others were merged into, come out.  How many that is at each point follows from the budget and the depth and is decided
on the host, before the prefill or, with a rank-adaptive method, between two segments.

A point graph is one row of a batch and one image; several images of a prompt are pruned one by one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from trtprune.errors import BudgetError, InputError
from trtprune.pruning.base import Method

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from trtprune.graph import Graph
    from trtprune.pruning.schedule import Schedule

__all__ = ["InLlmMethod", "LayerAccess", "write_choice"]


class LayerAccess(Protocol):
    """What a point graph may use of the decoder around it."""

    @property
    def hidden_size(self) -> int:
        """D."""

    @property
    def head_dim(self) -> int:
        """Width of a head."""

    @property
    def num_heads(self) -> int:
        """Query heads."""

    def angles(self, g: Graph, position_ids: ir.Value) -> tuple[ir.Value, ir.Value]:
        """cos and sin [B, S, head_dim / 2] of int64 [B, S] positions."""

    def next_attention(self, g: Graph, hidden_states: ir.Value, position_ids: ir.Value, index: ir.Value) -> ir.Value:
        """Attention float32 [B, heads, R, S] of rows ``index`` [B, R] in the layer *behind* the point."""


class InLlmMethod(Method):
    """A way to choose visual tokens inside the decoder; see the module's docstring.

    ``point_needs`` lists what the point graph reads beside ``hidden_states`` [1, S, D], ``visual_index`` int64 [1, N]
    and ``keep`` int64 [1], out of ``rater_attention`` float32 [1, R, S] ([1, heads, R, S] for ``"heads"``) with
    ``rater_weights`` float32 [1, R], ``rater_index`` int64 [1, R] and ``position_ids`` int64 [1, S].
    """

    inside: ClassVar[bool] = True
    point_needs: ClassVar[frozenset[str]] = frozenset({"rater_attention"})

    def text_span(self, options: Mapping[str, Any] | None = None) -> str:
        """Raters are tokens behind the image: only those have seen it."""
        return "after_image"

    def attention(self, options: Mapping[str, Any]) -> Literal["mean", "heads"] | None:
        """How much of the raters' attention the segments return: its mean over heads, all heads, or nothing."""
        return "mean"

    def positions_of(self, options: Mapping[str, Any]) -> str:
        """``compact`` or ``original``, where it depends on an option."""
        return self.positions

    @abstractmethod
    def points(self, depth: int, options: Mapping[str, Any]) -> tuple[int, ...]:
        """The layers behind which the decoder of ``depth`` layers is cut.

        Raises:
            BudgetError: if the decoder is too shallow for them.
        """

    @abstractmethod
    def schedule(self, keep: int, visual_tokens: int, depth: int, options: Mapping[str, Any]) -> Schedule:
        """How many tokens are kept at each point for an average of ``keep``.

        Raises:
            BudgetError: if the average cannot be reached.
        """

    def ranked(self, options: Mapping[str, Any]) -> bool:
        """Whether the rank of the raters' attention, known at run time only, decides how many tokens stay."""
        return False

    def meets_keep(self, options: Mapping[str, Any]) -> bool:
        """Whether the average over the layers is ``keep``; False: the prompt alone decides how many tokens stay."""
        return True

    def rank_counts(
        self, ranks: Sequence[int], keep: int, visual_tokens: int, depth: int, options: Mapping[str, Any]
    ) -> tuple[int, ...]:
        """How many tokens of an image are kept at each point reached so far, where :meth:`ranked`.

        Args:
            ranks: Of the attention blocks of these points, raters x visual tokens; at least one.
            keep, visual_tokens, depth, options: As for :meth:`schedule`.

        Returns:
            One count a rank.  What an earlier point keeps may change with the ranks of later ones.
        """
        return self.schedule(keep, visual_tokens, depth, options).kept[: len(ranks)]

    def served(self, visual_tokens: int, depth: int, options: Mapping[str, Any]) -> list[int]:
        """The averages that :meth:`schedule` can reach, ascending."""
        return [keep for keep in range(1, visual_tokens + 1) if self._reaches(keep, visual_tokens, depth, options)]

    def budgets(self, visual_tokens: int, depth: int, options: Mapping[str, Any]) -> tuple[int, int]:
        """The smallest and the largest average that :meth:`schedule` can reach.

        Raises:
            BudgetError: if it reaches none.
        """
        reached = self.served(visual_tokens, depth, options)
        if not reached:
            self.schedule(visual_tokens, visual_tokens, depth, options)  # says why
        return reached[0], reached[-1]

    def _reaches(self, keep: int, visual_tokens: int, depth: int, options: Mapping[str, Any]) -> bool:
        try:
            return bool(self.schedule(keep, visual_tokens, depth, options))
        except BudgetError:
            return False

    def raters(self, image_features: np.ndarray, text_embeds: np.ndarray, **options: Any) -> np.ndarray:
        """Which tokens behind the image judge it, bool [T], from float32 input embeddings [N, D] and [T, D].

        The last token of the prompt, unless the method says otherwise.
        """
        import numpy as np

        return np.arange(len(text_embeds)) == len(text_embeds) - 1

    def build_raters(
        self, g: Graph, image_features: ir.Value, text_embeds: ir.Value, **options: Any
    ) -> ir.Value | None:
        """:meth:`raters` as a graph, bool [1, T] from [1, N, D] and [1, T, D]; None: no graph is needed."""
        return None

    @abstractmethod
    def rate(self, attention: np.ndarray, **context: Any) -> np.ndarray:
        """The score of each visual token, float32 [N].

        Args:
            attention: float32 [R, N], or [heads, R, N]: what the raters gave to the visual tokens.
            context: ``rater_positions`` int64 [R], ``visual_positions`` int64 [N] and ``angles`` (cos and sin of
                int64 positions) where the method reads them; and all options.
        """

    def merged_counts(self, removed: int, options: Mapping[str, Any]) -> tuple[int, int]:
        """Of ``removed`` tokens, how many are recycled and how many vectors they become; (0, 0) if they are dropped."""
        return 0, 0

    def recycle(self, visual: np.ndarray, scores: np.ndarray, kept: np.ndarray, **options: Any) -> np.ndarray:
        """What the removed tokens are merged into, float32 [C, D]; none, unless the method says otherwise."""
        import numpy as np

        return np.zeros((0, visual.shape[1]), np.float32)

    def clusters(self, visual: np.ndarray, scores: np.ndarray, kept: np.ndarray, **options: Any) -> np.ndarray:
        """Which vector of :meth:`recycle` each token went into, int64 [N]; -1: into none."""
        import numpy as np

        return np.full(len(visual), -1, np.int64)

    def point(
        self, visual: np.ndarray, attention: np.ndarray, *, keep: int, **context: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """One prune point in NumPy.

        Args:
            visual: [N, D] hidden states of one image's tokens.
            attention: As for :meth:`rate`.
            keep: Tokens to keep, 1 ≤ keep < N.
            context: As for :meth:`rate`.

        Returns:
            Kept indices int64 [keep], ascending, and merged vectors float32 [C, D].
        """
        import numpy as np

        visual = np.asarray(visual, np.float32)
        scores = self.rate(np.asarray(attention, np.float32), **context)
        kept = np.sort(np.argsort(-scores, kind="stable")[:keep]).astype(np.int64)
        options = {option.name: context[option.name] for option in self.options if option.name in context}
        return kept, self.recycle(visual, scores, kept, **options)

    def select(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> np.ndarray:
        """The choice of one prune point, from its ``attention``."""
        return self.point(image_features, inputs.pop("attention"), keep=keep, **inputs)[0]

    def reference(
        self, image_features: np.ndarray, *, keep: int, attention: np.ndarray | None = None, **context: Any
    ) -> np.ndarray:
        """The selection of one prune point, in NumPy.

        Args:
            image_features: [N, D], hidden states of one image's tokens.
            keep: Tokens to keep, 1 ≤ keep ≤ N.
            attention: [R, N] (or [heads, R, N]): attention of the raters to them.
            context: As for :meth:`rate`; options may be strings.

        Returns:
            int64 [keep], ascending.

        Raises:
            BudgetError: for a budget or option that cannot be served.
            InputError: for attention that is missing or of the wrong shape.
        """
        import numpy as np

        if attention is None:
            raise InputError(f"method {self.name} needs attention: what its raters gave to the tokens, [R, N]")
        features, block = np.asarray(image_features), np.asarray(attention)
        if features.ndim != 2 or block.ndim not in (2, 3) or block.shape[-1] != len(features) or 0 in block.shape:
            raise InputError(
                f"attention has shape {block.shape}; with image_features {features.shape} it must be [R, N] or "
                "[heads, R, N]"
            )
        keep = self.check_keep(keep, len(features))
        known = {option.name for option in self.options}
        options = {name: value for name, value in context.items() if name in known}
        context = {name: value for name, value in context.items() if name not in known}
        return self.select(features, keep=keep, attention=block, **context, **self.validate_options(options))

    @abstractmethod
    def build_point(
        self, g: Graph, inputs: Mapping[str, ir.Value], layer: LayerAccess, **options: Any
    ) -> tuple[ir.Value, ir.Value, ir.Value | None]:
        """Write one prune point.

        Args:
            g: The graph.
            inputs: Those of ``point_needs`` and the three that are always there; where tokens are recycled,
                ``recycled`` and ``merged`` int64 [1], see :meth:`merged_counts`.
            layer: The decoder around the point.
            options: All options, validated.

        Returns:
            Kept indices int64 [1, keep], ascending, their states [1, keep, D], and what others were merged into
            [1, merged, D], if they are.
        """


def write_choice(g: Graph, scores: ir.Value, inputs: Mapping[str, ir.Value]) -> tuple[ir.Value, ir.Value, None]:
    """The ``keep`` best visual tokens by ``scores`` [1, N], in order: indices [1, keep] and states [1, keep, D]."""
    from trtprune.graph.ops import topk_gather

    visual = g.op.GatherND(inputs["hidden_states"], g.op.Unsqueeze(inputs["visual_index"], g.ints(2)), batch_dims=1)
    kept, indices = topk_gather(g, scores, visual, inputs["keep"])
    return indices, kept, None
