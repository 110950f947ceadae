"""The exchange that every answer goes through: prompt → features → selection → layout → cache → prefill → decode.

A batch, a conversation and an evaluation differ only in what they keep between two exchanges.  No arithmetic on
tensors here: ``chain``, ``pruner`` and ``decoder`` do that.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from trtprune.arguments import arg, text_of, whole
from trtprune.engine_dir import CONFIG_NAME
from trtprune.engine_dir.roles import PRUNER
from trtprune.errors import BackendError, BudgetError, InputError
from trtprune.runtime.answer import MAX_NEW_TOKENS, Answer, AnswerSettings, check_shortest, unpruned_ids
from trtprune.runtime.budget import Budget
from trtprune.runtime.chain import Chain
from trtprune.runtime.clip_text import ClipText
from trtprune.runtime.decoder import Decoder, WholeDecoder
from trtprune.runtime.features import Features
from trtprune.runtime.generation import generate
from trtprune.runtime.images import Prepared, processor_from_settings
from trtprune.runtime.kv_cache import check_length
from trtprune.runtime.layout import Layout, Selection, lay_out
from trtprune.runtime.pictures import ImageInput, load_picture
from trtprune.runtime.positions import position_rule
from trtprune.runtime.prompt import Prompt, PromptEncoder
from trtprune.runtime.pruner import Pruner, crop_inputs, image_inputs, reads_text
from trtprune.runtime.texts import text_files
from trtprune.text.template import Turn

if TYPE_CHECKING:
    from trtprune.backends.base import Array, Backend
    from trtprune.engine_dir import EngineDir
    from trtprune.runtime.clock import Clock
    from trtprune.runtime.result import Images

__all__ = ["Pipeline", "turns_of"]


def turns_of(prompt: str, images: int, system: str | None) -> list[Turn]:
    """The turns of a single question."""
    first = [] if system is None else [Turn("system", text_of("system", system))]
    return [*first, Turn("user", text_of("prompt", prompt), images)]


class Pipeline:
    """The stages of an engine directory.

    Several threads may share one: they take turns, see :meth:`using`.

    Args:
        config: The engine directory.
        backend: The backend that opens its components.
        max_pixels: Limit of an image's pixels.
        strict_images: Whether animations and files of several pages are refused.
        urls: Whether ``http(s)`` addresses of images are fetched.

    Attributes:
        chain: The sessions.
        encoder: Tokenizer and chat template.
        clip_text: CLIP's tokenizer and text tower, if the chain has one.
        processor: From images to crops and their visual tokens.
        positions: The rule of a prompt's positions.
        pruner: The pruner before the decoder; None without one.
    """

    def __init__(
        self, config: EngineDir, backend: Backend, *, max_pixels: int, strict_images: bool = False, urls: bool = False
    ) -> None:
        self.config = config
        self._turn = threading.RLock()
        self.chain = Chain(config, backend)
        files = text_files(config)
        model, template = config.model, config.text.template
        self.encoder = PromptEncoder(files, model.image_token, model.image_token_id, template, model.video_token)
        self.clip_text = ClipText(self.chain, files)
        vision = config.vision
        self.processor = processor_from_settings(vision.processor, vision.settings, str(config.root / CONFIG_NAME))
        self.positions = position_rule(config.positions.rule, config.positions.axes)
        taken = self.processor.pixels_taken
        self.load = partial(load_picture, max_pixels=max_pixels, strict=strict_images, urls=urls, prepared=taken)
        """Function of a caller's image to a PIL image."""
        # Opened now, so that a provider that does not load fails here and not at the first question.
        for component in map(config.component, config.chain):
            self.chain.session(component.role, component.segment)
        self._decoder: Decoder | None = _open_decoder(self.chain)
        self.pruner = None if config.find(PRUNER) is None else Pruner(self.chain)
        self.on_whole: Callable[[int, int, int], None] | None = None

    @property
    def decoder(self) -> Decoder:
        """The decoder, whole or cut as the directory has it.

        Raises:
            BackendError: if the model is closed.
        """
        if self._decoder is None:
            raise _closed()
        return self._decoder

    @contextmanager
    def using(self) -> Iterator[None]:
        """One thread's turn: sessions, their requests and the memory of caches are shared by all calls.

        Raises:
            BackendError: if the model is closed.
        """
        with self._turn:
            if self._decoder is None:
                raise _closed()
            yield

    def close(self) -> None:
        """Frees sessions and memory; later calls are errors, except closing again."""
        with self._turn:
            self._decoder = None
            self.chain.close()

    # -- limits of a request

    @property
    def reads_question(self) -> bool:
        """Whether the selection of visual tokens depends on the prompt."""
        return self.decoder.prunes or reads_text(self.config)

    def check_keep(self, keep: int | None) -> int:
        """The budget of an image: ``keep``, or the build's default.

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
            raise self._out_of_range(keep)
        self.decoder.check_keep(int(keep))
        return keep

    def budget(self, keep: int | None, keep_ratio: float | None) -> Budget:
        """The budget of every image of a request; the build's default if neither is set.

        Raises:
            BudgetError: if the build does not serve it.  A share is checked when the image's tokens are known.
            InputError: for both at once, or a share out of range.
        """
        if keep_ratio is None:
            return Budget(self.check_keep(keep))
        if keep is not None:
            raise InputError(
                f"{arg('keep', keep)} and {arg('keep_ratio', keep_ratio)} exclude each other", hint="leave out one"
            )
        return Budget(self.config.pruning.keep, keep_ratio)

    def _keep_of(self, budget: Budget, features: Features) -> int:
        """The number of tokens to keep of an image."""
        keep = budget.of(features.visual_tokens)
        if budget.ratio is not None and keep < features.visual_tokens:
            self.check_keep(keep)
        return keep

    def _out_of_range(self, keep: int) -> BudgetError:
        info, total = self.config.pruning, self.config.model.visual_tokens
        low, high = info.keep_range
        if low == total:
            return BudgetError(
                f"{arg('keep', keep)}: method {info.method} keeps all {high} visual tokens",
                hint=f"leave out {arg('keep')}, or build with a method that prunes",
            )
        wider = f"build with a wider {arg('keep_range')}"
        hint = wider if 1 <= keep <= total else f"an image has {total} visual tokens"
        if info.schedule is not None and info.schedule.rule == "fixed":
            hint = f"leave out {arg('keep')}; this build's schedule makes it {low}"
        message = f"{arg('keep', keep)}: outside {low} to {high}, the {arg('keep_range')} of this build"
        return BudgetError(message, hint=hint)

    def check_batch(self, rows: int) -> None:
        """Refuses more rows than the decoder can run at once."""
        limit = self.decoder.max_batch
        if rows > limit:
            raise InputError(
                f"{arg('batch_size')}: {rows} rows at once; the engines were built for {limit}",
                hint=f"a smaller batch, or build with a larger {arg('max_batch_size')}",
            )

    def images(self, images: Images) -> list[ImageInput | Features]:
        """The images of a request as a list; raises InputError if there is none."""
        if isinstance(images, list | tuple):
            several = list(images)
        else:
            several = [] if images is None else [images]
        if not several:
            raise InputError(
                "no image given", hint=f"{arg('images', 'PICTURE')}; the engines were built for questions on images"
            )
        return several

    # -- the stages, in their order

    def features(
        self, images: Sequence[ImageInput | Features], clock: Clock, together: Sequence[int] | None = None
    ) -> list[Features]:
        """Features of each image; one that occurs twice is looked at once, and one that is features already not at all.

        Args:
            images: The images.
            clock: Counts the time as ``preprocess`` and ``vision``.
            together: For each image, how many stand in its prompt; None: all of these.

        Raises:
            InputError: for an image that cannot be read, or features that are not of this build's kind.
        """
        keys: list[Any] = []
        prepared: dict[Any, Prepared] = {}
        known: dict[Any, Features] = {}
        with clock.stage("preprocess"):
            for image, count in zip(images, together or [len(images)] * len(images), strict=True):
                key = (_identity(image), count)
                if isinstance(image, Features):
                    known[key] = self._check_features(image)
                elif key not in prepared:
                    prepared[key] = self.processor.prepare(self.load(image), count)
                keys.append(key)
        with clock.stage("vision"):
            if prepared:
                known |= zip(prepared, self.chain.look(list(prepared.values())), strict=True)
        return [known[key] for key in keys]

    def _check_features(self, features: Features) -> Features:
        """Features from another call, or from a build of the same checkpoint, after a check.

        Raises:
            InputError: if they differ from the outputs of this build's vision graph.
        """
        model, array = self.config.model, features.image
        least, most = self.config.vision.tokens
        fits = least <= array.shape[0] <= most and tuple(array.shape) == (features.plan.tokens, model.row_width)
        if not fits or array.dtype != self.chain.dtype:
            tokens = str(most) if least == most else f"{least} to {most}"
            raise InputError(
                f"features of a picture are {array.dtype.name} {list(array.shape)}; this build makes "
                f"{self.config.dtype} [{tokens}, {model.row_width}]",
                hint="give the picture itself, or features made by a build of the same checkpoint and dtype",
            )
        by_crop = crop_inputs(self.config)
        for name in image_inputs(self.config):
            if name not in (features.crops if name in by_crop else features.extras):
                raise InputError(
                    f"features of a picture lack {name}, which method {self.config.pruning.method} needs",
                    hint="give the picture itself, or features made by a build whose vision graph returns it",
                )
        return features

    def written_out(
        self, prompt: Prompt, turns: Sequence[Turn], features: Sequence[Features], *, raw: bool = False
    ) -> Prompt:
        """A prompt with the markers of its images, which follow from their sizes; without any, the prompt itself.

        Args:
            prompt: The encoded turns, with one placeholder an image.
            turns: The turns.
            features: Features of each image.
            raw: Whether the last turn's text is the whole prompt.
        """
        markers = _markers(features)
        return prompt if markers is None else self.encoder.encode(turns, raw=raw, markers=markers)

    def encode(self, turns: Sequence[Turn], images: Sequence[Features | Prepared]) -> Prompt:
        """The prompt of turns about images, with their markers.

        Raises:
            InputError: as :meth:`PromptEncoder.encode`.
        """
        return self.encoder.encode(turns, markers=_markers(images))

    def embed(self, prompt: Prompt, clock: Clock) -> Array:
        """Embeddings [T, D] of a prompt's ids; those at placeholders have no meaning."""
        with clock.stage("prefill"):
            return self.chain.embed(prompt.ids[None], self.encoder.token)[0]

    def select(
        self, prompt: Prompt, embeds: Array, features: Sequence[Features], budget: Budget, seed: int, clock: Clock
    ) -> Selection:
        """The visual tokens of a prompt's images that enter the decoder; all of them without a pruner before it.

        Args:
            prompt: The prompt.
            embeds: Its embeddings, see :meth:`embed`.
            features: Features of each image.
            budget: The budget of each image.
            seed: Seed of methods that draw at random; images of one prompt have different seeds.
            clock: Counts the time as ``prune``.
        """
        grids = tuple(seen.plan.grid for seen in features)
        spans = tuple(seen.plan.spans for seen in features)
        keeps = tuple(self._keep_of(budget, seen) for seen in features)
        if budget.ratio is None:
            self._tell_whole(features, keeps)
        if self.pruner is None:
            everything = tuple(np.arange(seen.visual_tokens) for seen in features)
            return Selection(everything, tuple(seen.image for seen in features), grids, keeps, spans)
        with clock.stage("prune"):
            span = prompt.span(self.config.pruning.text_span)
            text = embeds[span] if self.pruner.reads_embeds else None
            given = self.clip_text.read(prompt)
            pruned = [
                self.pruner.prune(seen, text, keep, seed + i, given)
                for i, (seen, keep) in enumerate(zip(features, keeps, strict=True))
            ]
        kept, rows = tuple(indices for indices, _ in pruned), tuple(rows for _, rows in pruned)
        return Selection(kept, rows, grids, keeps, spans)

    def _tell_whole(self, features: Sequence[Features], keeps: Sequence[int]) -> None:
        """Reports the images with no more visual tokens than their budget."""
        if self.on_whole is None or (self.pruner is None and not self.decoder.prunes):
            return
        for number, (seen, keep) in enumerate(zip(features, keeps, strict=True), 1):
            settled = None if self.decoder.prunes else seen.plan.without_choice(keep, self.config.vision.newlines)
            whole = keep > seen.visual_tokens if settled is None else len(settled) == seen.visual_tokens
            if whole:
                self.on_whole(number, seen.visual_tokens, keep)

    def lay_out(self, prompt: Prompt, embeds: Array, selection: Selection) -> Layout:
        """The prompt's text and selected features in one row."""
        return lay_out(prompt, embeds, selection, self.positions)

    def answer(self, prompt: Prompt, layout: Layout, settings: AnswerSettings) -> Answer:
        """A new answer, before its first token.

        Raises:
            InputError: if prompt and answer do not fit in the cache, the model's positions or the checkpoint's limit,
                or if the shortest answer is above the longest one.
        """
        longest = settings.max_new_tokens
        if longest is None:
            longest = self._longest(prompt, layout)
        check_shortest(settings.min_new_tokens, longest)
        kv, model = self.config.kv, self.config.model
        check_length(len(layout.ids), longest, kv.capacity, whole_images=self.decoder.prunes)
        check_length(layout.next_position, longest, model.max_positions, "positions")
        return Answer(self.config, self.encoder, prompt, layout, longest, settings)

    def _longest(self, prompt: Prompt, layout: Layout) -> int:
        """Longest answer without a caller's limit: the checkpoint's, as far as there is room, else 64 tokens."""
        info = self.config.generation
        longest = info.max_new_tokens
        if longest is None and info.max_length is not None:
            whole_prompt = len(unpruned_ids(prompt, layout))
            longest = info.max_length - whole_prompt
            if longest < 1:
                raise InputError(
                    f"the prompt has {whole_prompt} tokens with all of its visual ones, and the checkpoint's "
                    f"generation_config.json allows {info.max_length} with the answer",
                    hint=f"{arg('max_new_tokens', MAX_NEW_TOKENS)} goes before that",
                )
        if longest is None:
            return MAX_NEW_TOKENS
        return max(1, min(longest, self._room(len(layout.ids), layout.next_position)))

    def _room(self, tokens: int, next_position: int) -> int:
        return min(self.config.kv.capacity - tokens, self.config.model.max_positions - next_position) + 1

    def room(self, prompt: Prompt, keep: int, grids: Sequence[np.ndarray]) -> int:
        """The number of answer tokens that fit behind a prompt at a budget; below 1 if none does.

        Args:
            prompt: The prompt, with the markers of its images.
            keep: The budget of an image.
            grids: For each image int [N, 3], crop, row and column of its visual tokens.
        """
        words = len(prompt.ids) - len(prompt.image_positions)
        entering = [min(len(grid), self.decoder.entering(keep, len(grid))) for grid in grids]
        numbered = sum(map(self.positions.most, entering, grids))
        return self._room(words + sum(entering), words + numbered)

    def run(
        self, answers: Sequence[Answer], layouts: Sequence[Layout], cache: Any, start: Sequence[int], clock: Clock
    ) -> Iterator[None]:
        """Prefill and decode: completes the answers; yields after each round of tokens.

        Args:
            answers: One answer per row.
            layouts: Their prompts.
            cache: A cache of the decoder with room for the longest row.
            start: For each row, the number of its tokens in the cache.
            clock: Counts the time.
        """
        with clock.stage("prefill"):
            prefill = self.decoder.prefill(layouts, cache, start)
        for answer, kept, tokens in zip(answers, prefill.kept, prefill.segment_tokens, strict=True):
            answer.kept, answer.segment_tokens = kept, tokens
        rows = [answer.row for answer in answers]
        yield from generate(rows, prefill.logits, self.decoder.step(cache), cache.capacity, clock)


def _markers(images: Sequence[Features | Prepared]) -> list[tuple[str, ...]] | None:
    """The texts around and between the spans of each image; None if every image is one span without such text."""
    markers = [image.plan.markers for image in images]
    return markers if any(texts != ("", "") for texts in markers) else None


def _open_decoder(chain: Chain) -> Decoder:
    if not chain.config.segments:
        return WholeDecoder(chain)
    from trtprune.runtime.cut_decoder import CutDecoder

    return CutDecoder(chain)


def _closed() -> BackendError:
    return BackendError("this model is closed", hint="trtprune.load opens the directory again")


def _identity(image: ImageInput | Features) -> Any:
    """A key that is equal for surely equal images within one call."""
    if isinstance(image, str | os.PathLike):
        return ("path", os.fspath(image))
    if isinstance(image, bytes | bytearray | memoryview):
        return ("bytes", hashlib.sha256(image).digest())
    return ("object", id(image))
