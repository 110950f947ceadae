"""Methods that prune between decoder layers.

The decoder is cut into segments behind the method's points.  At each point the visual tokens of one image go through a
*point graph*: their hidden states, what the raters' queries gave them in the layer before (``rater_attention``, only
those rows of the attention), and ``keep``, the number of tokens to keep there, come in; the kept ones, and what the
others were merged into, come out.  How many that is at each point follows from the budget and the depth and is decided
on the host, before the prefill or, with a rank-adaptive method, between two segments.

A point graph is one row of a batch and one image; several images of a prompt are pruned one by one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from trtprune.errors import BudgetError, InputError
from trtprune.pruning.base import BaseMethod, BuildContext, LayerAccess
from trtprune.pruning.trace import Trace

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from trtprune.graph import Graph
    from trtprune.schedules import Schedule, ScheduleInfo

__all__ = ["InLlmMethod", "LayerAccess", "write_choice"]


class InLlmMethod(BaseMethod):
    """A way to choose visual tokens inside the decoder; see the module's docstring.

    ``point_needs`` lists what the point graph reads beside ``hidden_states`` [1, S, D], ``visual_index`` int64 [1, N]
    and ``keep`` int64 [1], out of ``rater_attention`` float32 [1, R, S] ([1, heads, R, S] for ``"heads"``) with
    ``rater_weights`` float32 [1, R], ``rater_index`` int64 [1, R] and ``position_ids`` int64 [1, axes, S].
    """

    inside: ClassVar[bool] = True
    point_needs: ClassVar[frozenset[str]] = frozenset({"rater_attention"})

    def text_span(self, options: Mapping[str, Any] | None = None) -> str:
        """Raters are tokens behind the image: only those have seen it."""
        return "after_image"

    def attention(self, options: Mapping[str, Any]) -> Literal["mean", "heads"] | None:
        """The form of the raters' attention that segments return: its mean over heads, all heads, or nothing."""
        return "mean"

    def describe_needs(self) -> list[str]:
        return ["text behind the image, and cuts the decoder into segments"]

    # -- schedule -----------------------------------------------------------------------------------------------

    @abstractmethod
    def plan(self, depth: int, options: Mapping[str, Any]) -> ScheduleInfo:
        """The cuts of a decoder of ``depth`` layers, and the number of tokens behind each.

        Raises:
            BudgetError: if the decoder is too shallow for it.
        """

    def points(self, depth: int, options: Mapping[str, Any]) -> tuple[int, ...]:
        """The layers behind which the decoder of ``depth`` layers is cut; raises as :meth:`plan`."""
        return self.plan(depth, options).points

    def schedule(self, keep: int, visual_tokens: int, depth: int, options: Mapping[str, Any]) -> Schedule:
        """The number of tokens behind each point for an average of ``keep``.

        Raises:
            BudgetError: if the average cannot be reached.
        """
        try:
            return self.plan(depth, options).schedule(keep, visual_tokens)
        except BudgetError as error:
            raise BudgetError(f"{self.name}: {error.marked_message}", hint=error.marked_hint) from None

    def check_budget(self, keep: int, tokens: int, depth: int, options: Mapping[str, Any]) -> None:
        self.schedule(keep, tokens, depth, options)

    def budgets(self, tokens: int, depth: int, options: Mapping[str, Any]) -> tuple[int, int]:
        return self.plan(depth, options).budgets(tokens)

    def longest_order(self, tokens: int, keep: int, options: Mapping[str, Any]) -> int:
        # Early points keep more than the budget, and some order all tokens.
        return tokens

    def own_positions(self, options: Mapping[str, Any]) -> str:
        return self.positions

    def positions_of(self, axes: int) -> str:
        """One rule for every model: whether the rows of a layer are numbered again is a part of the algorithm."""
        return self.positions

    def passes_all(self, options: Mapping[str, Any]) -> bool:
        return False

    # -- graphs -------------------------------------------------------------------------------------------------

    def build_graphs(self, context: BuildContext, options: Mapping[str, Any]) -> dict[tuple[str, int | None], Graph]:
        from trtprune.pruning.point_graph import build_point, build_raters
        from trtprune.pruning.rank import build_rank

        plan = self.plan(context.depth, options)
        assert context.layer_access is not None
        graphs: dict[tuple[str, int | None], Graph] = {}
        raters = build_raters(self, context, options)
        if raters is not None:
            graphs["raters", None] = raters
        if plan.ranked and context.float64:  # elsewhere the rank is computed on the host
            graphs["rank", None] = build_rank()
        for k, layer in enumerate(plan.points):
            graphs["pruner", k] = build_point(self, context.make, f"pruner.{k}", context.layer_access(layer), options)
        return graphs

    # -- NumPy --------------------------------------------------------------------------------------------------

    def raters(self, image_features: np.ndarray, text_embeds: np.ndarray, **options: Any) -> np.ndarray:
        """The tokens behind the image that judge it, bool [T], from float32 input embeddings [N, D] and [T, D].

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
            context: ``rater_positions`` int64 [R] or [axes, R], ``visual_positions`` int64 [N] or [axes, N] and
                ``angles`` (their cos and sin) where the method reads them; and all options.
        """

    def merges_with(self, options: Mapping[str, Any]) -> bool:
        return self.recycles(options)

    def recycles(self, options: Mapping[str, Any]) -> bool:
        """Whether removed tokens are merged into vectors."""
        return False

    def recycle(self, visual: np.ndarray, scores: np.ndarray, kept: np.ndarray, **options: Any) -> np.ndarray:
        """The vectors that removed tokens are merged into, float32 [C, D]; none, unless the method says otherwise."""
        import numpy as np

        return np.zeros((0, visual.shape[1]), np.float32)

    def clusters(self, visual: np.ndarray, scores: np.ndarray, kept: np.ndarray, **options: Any) -> np.ndarray:
        """The vector of :meth:`recycle` that each token is a part of, int64 [N]; -1: none."""
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
        features, inputs = self._point_inputs(image_features, keep, attention, context)
        return self.select(features, **inputs)

    def pruned(
        self, image_features: np.ndarray, *, keep: int, attention: np.ndarray | None = None, **context: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`reference`, with the kept rows and, behind them, what others were merged into, float32."""
        import numpy as np

        features, inputs = self._point_inputs(image_features, keep, attention, context)
        kept, merged = self.point(features, **inputs)
        return kept, np.concatenate([features[kept].astype(np.float32), merged])

    def merged_into(
        self, image_features: np.ndarray, *, keep: int, attention: np.ndarray | None = None, **context: Any
    ) -> np.ndarray:
        """The row of each token of one prune point, int64 [N]: a token of the same row, -1 for none."""
        import numpy as np

        features, inputs = self._point_inputs(image_features, keep, attention, context)
        options = {option.name: inputs[option.name] for option in self.options}
        trace = Trace(self, options, len(features))
        trace(features, np.asarray(attention), self.select(features, **inputs))
        return trace.merged_into()

    def _point_inputs(
        self, image_features: np.ndarray, keep: int, attention: np.ndarray | None, context: Mapping[str, Any]
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Checked features [N, D], and the keyword arguments of :meth:`point`."""
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
        options = self.validate_options({name: value for name, value in context.items() if name in known})
        rest = {name: value for name, value in context.items() if name not in known}
        return features, {"attention": block, "keep": keep, **rest, **options}

    def trace(self, tokens: int, options: Mapping[str, Any]) -> Trace | None:
        return Trace(self, options, tokens) if self.recycles(options) else None

    @abstractmethod
    def build_point(
        self, g: Graph, inputs: Mapping[str, ir.Value], layer: LayerAccess, **options: Any
    ) -> tuple[ir.Value, ir.Value, ir.Value | None]:
        """Write one prune point.

        Args:
            g: The graph.
            inputs: Those of ``point_needs`` and the three that are always there; where tokens are recycled,
                ``recycled`` and ``merged`` int64 [1], see :meth:`trtprune.schedules.ScheduleInfo.merged_counts`.
            layer: The decoder around the point.
            options: All options, validated.

        Returns:
            Kept indices int64 [1, keep], ascending, their rows [1, keep, row_width], and what others were merged into
            [1, merged, D], if they are.
        """


def write_choice(g: Graph, scores: ir.Value, inputs: Mapping[str, ir.Value]) -> tuple[ir.Value, ir.Value, None]:
    """The ``keep`` best visual tokens by ``scores`` [1, N], in order: indices [1, keep], rows [1, keep, row_width]."""
    from trtprune.graph.ops import topk_gather

    visual = g.op.GatherND(inputs["hidden_states"], g.op.Unsqueeze(inputs["visual_index"], g.ints(2)), batch_dims=1)
    kept, indices = topk_gather(g, scores, visual, inputs["keep"])
    return indices, kept, None
