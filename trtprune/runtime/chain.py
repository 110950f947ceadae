"""The chain: pixels → features → kept features → decoder → tokens.

Works on arrays and token ids.  Pictures, text and the user's flags are in ``vlm``; which token to choose is in
``sampling``; memory of the cache is in ``kv_cache``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from trtprune.arguments import arg, whole
from trtprune.backends.binding import numpy_dtype
from trtprune.engine_dir.roles import DECODER, EMBED, PRUNER, VISION, Part
from trtprune.errors import BudgetError, InputError
from trtprune.pruning.inputs import FROM_VISION
from trtprune.runtime.kv_cache import CachePool, check_length
from trtprune.runtime.layout import Layout, lay_out
from trtprune.runtime.segments import Segments

if TYPE_CHECKING:
    from trtprune.backends.base import Array, Backend, Session, Step
    from trtprune.engine_dir import EngineDir
    from trtprune.runtime.sampling import Sampler

__all__ = ["Chain", "Clock", "Features", "Layout", "Row", "lay_out"]

# Pictures in one vision run: more would only add activations, the work a picture is the same.
VISION_BATCH = 8


@dataclass(frozen=True)
class Features:
    """What the vision graph gives for one picture.

    All of it is in the backend's memory, and so is what is made of it.  A call that takes pictures takes these, too:
    such a picture is not looked at again.

    Attributes:
        image: [N, D] in the build's dtype.
        extras: Other outputs by name, without their batch dimension; see :data:`trtprune.pruning.inputs.INPUTS`.
    """

    image: Array
    extras: Mapping[str, Array] = field(default_factory=dict)

    @property
    def cls(self) -> Array | None:
        """``cls_attention``, float32 [N], if the tower has a CLS token."""
        return self.extras.get("cls_attention")


@dataclass
class Row:
    """A row while it is answered.

    ``on_token`` is told every chosen id and says whether the row is done ("stop"), else None.
    """

    layout: Layout
    max_new_tokens: int
    sampler: Sampler
    on_token: Callable[[int], str | None]
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None


class Clock:
    """Milliseconds spent, by stage."""

    def __init__(self) -> None:
        self.ms: dict[str, float] = dict.fromkeys(("preprocess", "vision", "prune", "prefill", "decode"), 0.0)
        self._start = time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time of the block to ``name``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.ms[name] += 1000 * (time.perf_counter() - start)

    def read(self) -> dict[str, float]:
        """All stages and ``total``, the time since the clock was made."""
        return {name: round(ms, 3) for name, ms in self.ms.items()} | {
            "total": round(1000 * (time.perf_counter() - self._start), 3)
        }


def _skip(pieces: Sequence[Array], rows: int) -> list[Array]:
    """What is left of ``pieces`` behind their first ``rows`` rows."""
    left = []
    for piece in pieces:
        if rows < len(piece):
            left.append(piece[rows:] if rows else piece)
        rows = max(0, rows - len(piece))
    return left


class Chain:
    """The sessions of an engine directory, in order.

    Args:
        config: The engine directory.
        backend: Opens them; each session when it is first needed.
    """

    def __init__(self, config: EngineDir, backend: Backend) -> None:
        self.config = config
        self.memory = backend.memory
        self._backend = backend
        self._sessions: dict[Part, Session] = {}
        self._pool: CachePool | Segments | None = None
        self.dtype = numpy_dtype(config.dtype)

    def session(self, role: str, segment: int | None = None) -> Session:
        """The session of a component."""
        part = Part(role, segment)
        if part not in self._sessions:
            self._sessions[part] = self._backend.session(self.config.part(role, segment), self.config.root)
        return self._sessions[part]

    def close(self) -> None:
        """Lets go of sessions and memory."""
        self._sessions.clear()
        self._pool = None
        vars(self).pop("segments", None)

    @property
    def pool(self) -> CachePool | Segments:
        """Cache memory of the decoder."""
        if self._pool is None:
            self._pool = self.segments or CachePool(self.session(DECODER), self.config.kv)
        return self._pool

    def share_pool(self, other: Chain) -> None:
        """Takes cache memory from the pool of another chain with the same decoder session from now on."""
        assert self.session(DECODER) is other.session(DECODER)
        self._pool = other.pool

    @cached_property
    def segments(self) -> Segments | None:
        """The decoder's segments, where the method prunes between its layers."""
        if not self.config.segments:
            return None
        from trtprune import pruning

        return Segments(self.config, pruning.get(self.config.pruning.method), self.session, self.memory)

    def look(self, pixels: Sequence[np.ndarray]) -> list[Features]:
        """Features of pictures, each float32 [3, H, W]."""
        found = []
        vision = self.session(VISION)
        size = min(VISION_BATCH, vision.max_batch)
        for start in range(0, len(pixels), size):
            batch = np.stack(pixels[start : start + size]).astype(self.dtype)
            out = dict(vision.run({"pixel_values": batch}))
            images = out.pop("image_features")
            found += [Features(images[i], {name: array[i] for name, array in out.items()}) for i in range(len(batch))]
        self.memory.wait()
        return found

    def embed(self, ids: np.ndarray, name: Callable[[int], str] = str) -> Array:
        """Embeddings [B, T, D] of int64 [B, T] ids.

        Args:
            ids: Of tokens; those at the image placeholder mean nothing.
            name: The text of a token, for the message.

        Raises:
            InputError: for a token of the tokenizer that the model has no embedding of.
        """
        model = self.config.model
        beyond = ids[((ids >= model.vocab_size) | (ids < 0)) & (ids != model.image_token_id)]
        if len(beyond):
            raise InputError(
                f"the prompt holds {name(int(beyond[0]))!r}, token {beyond[0]}, and the model has embeddings of "
                f"{model.vocab_size} tokens only",
                hint="leave it out; or give the checkpoint the tokens of its tokenizer (in transformers, "
                "resize_token_embeddings), and build again",
            )
        # Some checkpoints number the image placeholder behind the last word; its embedding is never used.
        ids = np.where(ids < model.vocab_size, ids, 0)
        return self.session(EMBED).run({"input_ids": ids})["text_embeds"]

    def check_keep(self, keep: int | None) -> int:
        """The budget an image gets: ``keep``, or the build's default.

        Raises:
            BudgetError: if the build does not serve it.
        """
        info = self.config.pruning
        if keep is None:
            return info.keep
        low, high = info.keep_range
        try:
            keep = whole("keep", keep)
        except InputError as error:
            raise BudgetError(error.marked_message) from None
        if not low <= keep <= high:
            if info.method == "none":
                raise BudgetError(
                    f"{arg('keep', keep)}: method none keeps all {high} visual tokens",
                    hint=f"leave out {arg('keep')}, or build with a method that prunes",
                )
            total = self.config.model.visual_tokens
            wider = f"build with a wider {arg('keep_range')}"
            hint = wider if 1 <= keep <= total else f"an image has {total} visual tokens"
            if low == high and info.options.get("schedule", "auto") != "auto":
                hint = f"leave out {arg('keep')}; this build's schedule makes it {low}"
            raise BudgetError(
                f"{arg('keep', keep)}: outside {low} to {high}, the {arg('keep_range')} of this build", hint=hint
            )
        if self.segments:
            self.segments.check_keep(int(keep))
        return keep

    def check_features(self, features: Features) -> Features:
        """What another call, or a build of the same checkpoint, made of a picture.

        Raises:
            InputError: if it is not what this build's vision graph returns.
        """
        model, array = self.config.model, features.image
        if tuple(array.shape) != (model.visual_tokens, model.hidden_size) or array.dtype != self.dtype:
            raise InputError(
                f"features of a picture are {array.dtype.name} {list(array.shape)}; this build makes "
                f"{self.config.dtype} [{model.visual_tokens}, {model.hidden_size}]",
                hint="give the picture itself, or features made by a build of the same checkpoint and dtype",
            )
        for name in self.picture_inputs:
            if name not in features.extras:
                raise InputError(
                    f"features of a picture lack {name}, which method {self.config.pruning.method} needs",
                    hint="give the picture itself, or features made by a build whose vision graph returns it",
                )
        return features

    @cached_property
    def picture_inputs(self) -> tuple[str, ...]:
        """What the pruner reads of :attr:`Features.extras`."""
        pruner = self.config.find(PRUNER)
        return () if pruner is None else tuple(spec.name for spec in pruner.inputs if spec.name in FROM_VISION)

    def prune(
        self,
        features: Features,
        text: Array | None,
        keep: int,
        seed: int,
        given: Mapping[str, Array] | None = None,
    ) -> tuple[np.ndarray, Array]:
        """Cuts one picture.

        Args:
            features: Of the picture.
            text: [T, D], the text the method selects by, if it does.
            keep: Tokens to keep.
            seed: For methods that draw.
            given: Further inputs by name, without their batch dimension.

        Returns:
            Kept indices int64 [keep], ascending, and features [keep, D].
        """
        session = self.session(PRUNER)
        inputs: dict[str, Array] = {
            "image_features": features.image[None],
            "keep": np.array([keep], np.int64),
        }
        needs = {spec.name for spec in self.config.part(PRUNER).inputs}
        for name in self.picture_inputs:
            inputs[name] = features.extras[name][None]
        for name, array in (given or {}).items():
            if name in needs:
                inputs[name] = array[None]
        if "text_embeds" in needs:
            assert text is not None
            inputs["text_embeds"] = text[None]
            inputs["text_mask"] = np.ones((1, len(text)), np.int64)
        if "seed" in needs:
            inputs["seed"] = np.array([seed], np.int64)
        out = session.run(inputs)
        return self.memory.to_host(out["kept_indices"])[0], out["pruned_features"][0]

    @property
    def max_batch(self) -> int:
        """Rows the decoder takes at once."""
        return self.segments.max_batch if self.segments else self.session(DECODER).max_batch

    def check_batch(self, rows: int) -> None:
        """Refuses more rows than the decoder takes at once."""
        limit = self.max_batch
        if rows > limit:
            raise InputError(
                f"{arg('batch_size')}: {rows} rows at once; the engines were built for {limit}",
                hint=f"a smaller batch, or build with a larger {arg('max_batch_size')}",
            )

    def room(self, sequence: Layout) -> int:
        """Tokens of an answer that fit behind a prompt; below 1 if none does."""
        kv, model = self.config.kv, self.config.model
        return min(kv.capacity - len(sequence.ids), model.max_positions - sequence.next_position) + 1

    def check(self, sequence: Layout, max_new_tokens: int) -> None:
        """Refuses what does not fit in the cache or the model's positions."""
        inside = self.segments is not None
        check_length(len(sequence.ids), max_new_tokens, self.config.kv.capacity, whole_images=inside)
        check_length(sequence.next_position, max_new_tokens, self.config.model.max_positions, "positions")

    def prefill(self, rows: Sequence[Layout], cache: Any, start: Sequence[int] | None = None) -> np.ndarray:
        """Writes prompts into the cache.

        Args:
            rows: A prompt a row.
            cache: With room for the longest.
            start: For each row how many of its tokens the cache holds already; the rest is computed.

        Returns:
            Logits float32 [B, V] of each row's last token.
        """
        begin = [0] * len(rows) if start is None else list(start)
        if self.segments:
            return self.segments.prefill(rows, cache, begin)
        lengths = [len(row.ids) - first for row, first in zip(rows, begin, strict=True)]
        width = max(lengths)
        # Rows are padded on the right: what a padding token writes lies past the row's end, where the row's next
        # real token overwrites it before anything attends to it.
        positions = np.zeros((len(rows), width), np.int64)
        for i, (row, first, length) in enumerate(zip(rows, begin, lengths, strict=True)):
            positions[i, :length] = row.positions[first:]
        pieces = [_skip(row.embeds, first) for row, first in zip(rows, begin, strict=True)]
        inputs = {
            "inputs_embeds": self.memory.join(pieces, width),
            "position_ids": positions,
            "write_index": np.array(begin, np.int64),
            "logits_index": np.array(lengths, np.int64)[:, None] - 1,
        }
        return self.memory.to_host(self.session(DECODER).run(inputs, cache)["logits"])[:, 0]

    def selected(self, cache: Any) -> list[tuple[list[np.ndarray], list[list[int]]]]:
        """Of each row that was just prefilled: kept indices and tokens in each segment, both by image.

        Empty where nothing is pruned inside the decoder.
        """
        return list(zip(cache.kept, cache.counts, strict=True)) if self.segments else []

    def decode(self, rows: Sequence[Row], logits: np.ndarray, cache: Any, clock: Clock) -> Iterator[None]:
        """Generates until every row is done; yields after each round of tokens.

        The cache then holds of each row its prompt and all of its answer but the last token.
        """
        if self.segments:
            step: Step = self.segments.step(cache)
        else:
            step = self._backend.step(self.session(EMBED), self.session(DECODER), cache)
        length = np.array([len(row.layout.ids) for row in rows], np.int64)
        place = np.array([row.layout.next_position for row in rows], np.int64)
        token = np.zeros((len(rows), 1), np.int64)
        while True:
            # 1. Choose a token for every row that is not done, each with its own settings.
            with clock.stage("decode"):
                for i, row in enumerate(rows):
                    if row.finish_reason is None:
                        token[i] = row.sampler.choose(logits[i])
                        row.token_ids.append(int(token[i, 0]))
                        row.finish_reason = row.on_token(int(token[i, 0]))
                        if row.finish_reason is None and len(row.token_ids) >= row.max_new_tokens:
                            row.finish_reason = "length"
            yield
            going = np.array([row.finish_reason is None for row in rows])
            if not going.any():
                return
            with clock.stage("decode"):
                # 2. Feed them back. A row that is done stays in the batch: it writes to its last place again.
                logits = step(token, place[:, None], np.minimum(length, cache.capacity - 1))
                # 3. Step on.
                length += going
                place += going
