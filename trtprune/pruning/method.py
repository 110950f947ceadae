"""Methods that prune before the decoder: a NumPy reference and a graph builder side by side.

Both forms compute in float32 whatever the dtype of the features, give ascending indices, break ties by the lower index
and put NaN scores last, so that they can be compared index for index.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from trtprune.pruning.base import BaseMethod, BuildContext, TowerTraits
from trtprune.pruning.inputs import FROM_CLIP, FROM_LAYER, INPUT_NAMES, INPUTS

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from trtprune.graph import Graph

__all__ = ["Method"]


class Method(BaseMethod):
    """A way to choose visual tokens before the decoder.

    A method that ``merges`` has :meth:`merge` and :meth:`build_merged`, and its ``kept_indices`` name one token of each
    row.
    """

    inside: ClassVar[bool] = False

    def describe_needs(self) -> list[str]:
        words = [entry.words for name, entry in INPUTS.items() if name in self.needs]
        if self.without_cls:
            other = self.needs_of(self.complete_options(None, TowerTraits(has_cls=False))) - self.needs
            words += [f"or, without a CLS token, {INPUTS[name].words}" for name in sorted(other)]
        words += ["a seed"] if "seed" in self.needs else []
        if self.needs & set(FROM_CLIP):
            words.append("a build with CLIP's text tower (--clip)")
        if self.without_clip:
            other = self.needs_of(self.validate_options(self.without_clip)) - self.needs
            setting = " ".join(f"{name}={value}" for name, value in self.without_clip.items())
            words += [f"or, with {setting}, {INPUTS[name].words}" for name in sorted(other)]
        return words

    def check_budget(self, keep: int, tokens: int, depth: int, options: Mapping[str, Any]) -> None:
        self.check_keep(keep, tokens)

    def budgets(self, tokens: int, depth: int, options: Mapping[str, Any]) -> tuple[int, int]:
        return 1, tokens

    def build_graphs(self, context: BuildContext, options: Mapping[str, Any]) -> dict[tuple[str, int | None], Graph]:
        from trtprune.pruning.graph import write_pruner

        g = context.make("pruner")
        layer = context.layer_access(-1) if context.layer_access and self.needs_of(options) & {*FROM_LAYER} else None
        write_pruner(
            g, self, context.hidden_size, options, row_width=context.row_width,
            num_tokens=context.num_tokens, most_crops=context.most_crops, widths=context.widths, layer=layer,
        )  # fmt: skip
        return {("pruner", None): g}

    def reference(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> np.ndarray:
        """The selection, in NumPy.

        Args:
            image_features: [N, D], or [B, N, D] for a batch of images; any float dtype.
            keep: Tokens to keep per image, 1 ≤ keep ≤ N.
            inputs: The inputs that the method needs, by the names of :data:`trtprune.pruning.inputs.INPUTS`, each with
                or without the dimension B; ``text_mask`` [T] or [B, T] beside ``text_embeds``, where 0 marks padding
                (default: no padding); ``seed``, an integer (default: 0).  ``grid`` may be the rows and columns of
                patches of one crop.  Inputs that the method does not need are ignored.  Other names are its options;
                strings are parsed.

        Returns:
            int64 [keep], or [B, keep] for a batch; ascending in each row.

        Raises:
            BudgetError: for an impossible budget or an invalid option.
            InputError: for a missing input or one of the wrong shape.
        """
        return self._stack(image_features, self._rows(image_features, keep, inputs, self.select))

    def pruned(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`reference`, with the decoder's rows: (indices, float32 [keep, D] or [B, keep, D])."""
        indices, features = zip(*self._rows(image_features, keep, inputs, self.merge), strict=True)
        return self._stack(image_features, indices), self._stack(image_features, features)

    def merged_into(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> np.ndarray:
        """The row of each token: int64 [N] or [B, N], the kept token whose row it is a part of, -1 for none.

        Arguments and errors as for :meth:`reference`. A kept token is a part of its own row; if the method does
        not merge, all other tokens are part of none.
        """
        return self._stack(image_features, self._rows(image_features, keep, inputs, self.assign))

    def assign(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> np.ndarray:
        """:meth:`merged_into` for one image, inputs and options checked."""
        import numpy as np

        kept = self.select(image_features, keep=keep, **inputs)
        found = np.full(len(image_features), -1, np.int64)
        found[kept[kept >= 0]] = kept[kept >= 0]
        return found

    @staticmethod
    def _stack(image_features: np.ndarray, rows: Sequence[np.ndarray]) -> np.ndarray:
        import numpy as np

        return np.stack(rows) if np.ndim(image_features) == 3 else rows[0]

    def _rows(
        self, image_features: np.ndarray, keep: int, inputs: Mapping[str, Any], choose: Callable[..., Any]
    ) -> list[Any]:
        """``choose`` for each image, with checked inputs in float32."""
        import numpy as np

        from trtprune.pruning.feeds import read_images

        options = self.validate_options({name: value for name, value in inputs.items() if name not in INPUT_NAMES})
        images = read_images(
            self.name, self.needs_of(options), image_features, inputs, of_each_crop=self.of_each_crop(options)
        )
        allowed = [int((image["grid"][:, 1] >= 0).sum()) for image in images if "grid" in image]
        keep = self.check_keep(keep, min([np.shape(image_features)[-2], *allowed]))
        with np.errstate(over="ignore", invalid="ignore"):  # inf and NaN are part of the definition: they come last
            return [choose(keep=keep, **image, **options) for image in images]

    @abstractmethod
    def select(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> np.ndarray:
        """The reference for one image, with checked float32 inputs and without masked text rows."""

    def merge(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> tuple[np.ndarray, np.ndarray]:
        """:meth:`select` and the rows that the decoder gets, float32 [keep, D]; for one image."""
        indices = self.select(image_features, keep=keep, **inputs)
        return indices, image_features[indices]

    def scores(self, g: Graph, inputs: Mapping[str, ir.Value], *, keep: ir.Value, **options: Any) -> ir.Value | None:
        """Write float32 scores [batch, N] whose ``keep`` largest are the selection, or return None.

        A method with such scores uses the shared top-k and gather of :mod:`trtprune.pruning.graph`.
        """
        return None

    def build(self, g: Graph, inputs: Mapping[str, ir.Value], *, keep: ir.Value, **options: Any) -> ir.Value:
        """Write the selection into ``g``.

        Args:
            g: The graph; only ``op``, ``constant``, ``scalar``, ``ints`` and ``builder.subgraph`` are used.
            inputs: ``image_features`` [batch, N, D] and the inputs that the method needs, by name.
            keep: int64 [1], a run-time value.
            options: All options of the method, validated; and ``most_crops`` for a method that needs the grid.

        Returns:
            int64 [batch, keep], ascending in each row.
        """
        from trtprune.pruning import ops

        scores = self.scores(g, inputs, keep=keep, **options)
        assert scores is not None, f"{self.name} must write scores() or build()"
        return ops.ascending(g, ops.top(g, scores, keep)[1], keep)

    def build_merged(
        self, g: Graph, inputs: Mapping[str, ir.Value], *, keep: ir.Value, **options: Any
    ) -> tuple[ir.Value, ir.Value]:
        """As :meth:`build`, for a method that ``merges``: indices and float32 rows [batch, keep, D]."""
        raise NotImplementedError(f"{self.name} does not merge")
