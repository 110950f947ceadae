"""A loaded engine directory: pictures and questions in, answers out.

Puts pictures, prompt, chain and sampler together.  No arithmetic on tensors here: that is in ``chain``.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from trtprune.arguments import arg
from trtprune.errors import BackendError, InputError
from trtprune.runtime.batch import Batch, Stream, turns_of
from trtprune.runtime.chain import Chain, Clock, Features, Layout, lay_out
from trtprune.runtime.clip_text import ClipText
from trtprune.runtime.pictures import ImageInput, load_picture
from trtprune.runtime.preprocess import Geometry, Preprocessor
from trtprune.runtime.prompt import Prompt, PromptEncoder
from trtprune.runtime.result import Request, Result
from trtprune.runtime.sampling import Sampling
from trtprune.runtime.selecting import select
from trtprune.runtime.texts import text_files

if TYPE_CHECKING:
    from PIL import Image

    from trtprune.backends.base import Array, Backend
    from trtprune.engine_dir import EngineDir
    from trtprune.runtime.conversation import Conversation
    from trtprune.runtime.result import Images

__all__ = ["Stream", "View", "Vlm"]


@dataclass(frozen=True)
class View:
    """One picture as the model sees it: features and the text the method would select by."""

    image: Image.Image
    geometry: Geometry
    features: Features
    prompt: Prompt
    text_embeds: Array
    """[T, D], of all ids of the prompt."""


class Vlm:
    """Answers questions about pictures; make it with :func:`trtprune.load`.

    Several threads may share one: they take turns, a whole call each, or of a stream a piece.  As a context manager
    it is closed at the end of the block.

    Attributes:
        config: The engine directory.
        provider: What runs it.
    """

    def __init__(
        self, config: EngineDir, backend: Backend, *, max_pixels: int, strict_images: bool = False, urls: bool = False
    ) -> None:
        self.config = config
        self.provider = backend.name
        self._turn = threading.RLock()
        self._closed = False
        self.chain = Chain(config, backend)
        files = text_files(config)
        self.encoder = PromptEncoder(files, config.model.image_token, config.model.image_token_id)
        self.clip_text = ClipText(self.chain, files)
        self.preprocessor = Preprocessor.from_files(files, config.model.image_size)
        taken = self.preprocessor.pixels_taken
        self._load = partial(load_picture, max_pixels=max_pixels, strict=strict_images, urls=urls, prepared=taken)
        # Opening them now, not at the first question, is where a provider that does not load must show.
        for component in map(config.component, config.chain):
            self.chain.session(component.role, component.segment)

    @contextmanager
    def using(self) -> Iterator[None]:
        """One thread's turn: sessions, their requests and the memory of caches are shared by all calls.

        Raises:
            BackendError: if the model is closed.
        """
        with self._turn:
            if self._closed:
                raise BackendError("this model is closed", hint="trtprune.load opens the directory again")
            yield

    def close(self) -> None:
        """Frees sessions and memory; whatever is asked afterwards is an error.  Closing twice is none."""
        with self._turn:
            self._closed = True
            self.chain.close()

    def __enter__(self) -> Vlm:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def generate(
        self,
        images: Images,
        prompt: str,
        *,
        keep: int | None = None,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        ignore_eos: bool = False,
        system: str | None = None,
        raw_prompt: bool = False,
    ) -> Result:
        """Answers one question about one picture, or about several together.

        What is None is as the checkpoint's ``generation_config.json`` says, read as transformers reads it, and so are
        the settings that have no argument here; see :class:`trtprune.engine_dir.GenerationInfo`.

        Args:
            images: A path, ``data:`` address, bytes of a file, open binary file, PIL image or uint8 array (see
                :func:`trtprune.runtime.pictures.load_picture`), or the :class:`Features` of one; or a list of those,
                all in one prompt.
            prompt: The question, put through the checkpoint's chat template unless ``raw_prompt``.
            keep: Visual tokens to keep of each image; None: the build's default.
            max_new_tokens: Longest answer; 64, if the checkpoint does not say either.
            temperature: 0 always takes the likeliest token; above, draws, whatever the checkpoint does by default.
            top_k: Draw among so many likeliest tokens; 0 is off, and 50 is transformers' default.
            top_p: Draw among the likeliest tokens that together have this probability; 1 is off.
            repetition_penalty: Above 1 makes what was said before less likely.
            seed: Makes draws repeat.
            stop: Texts that end the answer; they are not part of it.  An empty list: none, nor the checkpoint's.
            ignore_eos: Go on behind an end-of-sequence token, for measurements of a fixed length.
            system: A system prompt.
            raw_prompt: ``prompt`` is the whole prompt with a placeholder for each image.

        Raises:
            InputError: for a picture, prompt or setting that cannot be used.
            BudgetError: for a ``keep`` outside the build's range.
        """
        request = Request(images, prompt, system=system, raw_prompt=raw_prompt)
        return self.generate_batch(
            [request],
            keep=keep,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            stop=stop,
            ignore_eos=ignore_eos,
        )[0]

    def generate_batch(
        self,
        requests: Sequence[Request],
        *,
        keep: int | None = None,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        ignore_eos: bool = False,
    ) -> list[Result]:
        """Answers requests side by side; prompts may differ in length and number of images.

        Each answer is what the request alone would give, up to the rounding of larger matrix products.  Settings as
        for :meth:`generate`; those of a request come first.
        """
        sampling = Sampling.of(
            self.config.generation,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        )
        batch = Batch(
            self,
            requests,
            keep=keep,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            stop=stop,
            ignore_eos=ignore_eos,
        )
        with self.using():
            for _ in batch.steps():
                pass
        return batch.results

    def stream(
        self,
        images: Images,
        prompt: str,
        *,
        keep: int | None = None,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        ignore_eos: bool = False,
        system: str | None = None,
        raw_prompt: bool = False,
    ) -> Stream:
        """As :meth:`generate`, but gives the text in pieces as it comes; they add up to the result's text.

        Nothing is computed before the first piece is asked for.
        """
        request = Request(images, prompt, system=system, raw_prompt=raw_prompt)
        sampling = Sampling.of(
            self.config.generation,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        )
        return Stream(
            self,
            Batch(
                self,
                [request],
                keep=keep,
                max_new_tokens=max_new_tokens,
                sampling=sampling,
                stop=stop,
                ignore_eos=ignore_eos,
            ),
        )

    def chat(self, images: Images, *, system: str | None = None) -> Conversation:
        """Starts a conversation of several questions about the same pictures."""
        from trtprune.runtime.conversation import Conversation

        return Conversation(self, images, system=system)

    def look(self, image: ImageInput, prompt: str, *, system: str | None = None) -> View:
        """Features of one picture and the text its tokens would be selected by; for ``show``."""
        with self.using():
            picture = self._load(image)
            features = self.chain.look([self.preprocessor(picture)])[0]
            encoded = self.encoder.encode(turns_of(prompt, 1, system))
            embeds = self.chain.embed(encoded.ids[None], self.encoder.token)[0]
        return View(picture, self.preprocessor.geometry(picture), features, encoded, embeds)

    def select(self, view: View, *, keep: int, method: str | None = None, seed: int | None = None) -> np.ndarray:
        """Kept indices, int64 [keep], of a viewed picture.

        The method this was built with runs as its graph; another runs as its NumPy reference.

        Raises:
            BudgetError: for a budget, or a method, that this build cannot serve.
        """
        with self.using():
            return select(self, view, keep=keep, method=method, seed=seed)

    # -- what a run needs, in the order it needs it

    def pictures(self, images: Images) -> list[ImageInput | Features]:
        """The images of a request as a list; raises InputError if there is none."""
        if isinstance(images, list | tuple):
            found = list(images)
        else:
            found = [] if images is None else [images]
        if not found:
            raise InputError(
                "no image given", hint=f"{arg('images', 'PICTURE')}; the engines were built for questions on images"
            )
        return found

    def features(self, images: Sequence[ImageInput | Features], clock: Clock | None = None) -> list[Features]:
        """Features of each image; one that occurs twice is looked at once, and one that is features already not at all.

        Raises:
            InputError: for a picture that cannot be read, or features that are not of this build's kind.
        """
        with self.using():
            return self._features(images, clock or Clock())

    def _features(self, images: Sequence[ImageInput | Features], clock: Clock) -> list[Features]:
        keys: list[Any] = []
        pixels: dict[Any, np.ndarray] = {}
        found: dict[Any, Features] = {}
        with clock.stage("preprocess"):
            for image in images:
                key = _identity(image)
                if isinstance(image, Features):
                    found[key] = self.chain.check_features(image)
                elif key not in pixels:
                    pixels[key] = self.preprocessor(self._load(image))
                keys.append(key)
        with clock.stage("vision"):
            if pixels:
                found |= zip(pixels, self.chain.look(list(pixels.values())), strict=True)
        return [found[key] for key in keys]

    def embed(self, prompt: Prompt, clock: Clock) -> Array:
        """Embeddings [T, D] of a prompt's ids; those at placeholders mean nothing."""
        with clock.stage("prefill"):
            return self.chain.embed(prompt.ids[None], self.encoder.token)[0]

    def cut(
        self, prompt: Prompt, features: Sequence[Features], keep: int, seed: int, clock: Clock
    ) -> tuple[Array, list[np.ndarray], list[Array]]:
        """Prunes the pictures of one prompt.

        Returns:
            Embeddings [T, D] of the prompt; kept indices [keep] and features [keep, D] of each picture.  All of
            them, where the decoder prunes.
        """
        embeds = self.embed(prompt, clock)
        return embeds, *self.prune(prompt, embeds, features, keep, seed, clock)

    def prune(
        self, prompt: Prompt, embeds: Array, features: Sequence[Features], keep: int, seed: int, clock: Clock
    ) -> tuple[list[np.ndarray], list[Array]]:
        """As :meth:`cut`, of a prompt whose embeddings are there already."""
        if self.chain.segments:  # the decoder does it
            everything = np.arange(self.config.model.visual_tokens)
            return [everything for _ in features], [f.image for f in features]
        with clock.stage("prune"):
            text = None
            if "text_embeds" in self.config.pruning.needs:
                text = embeds[prompt.span(self.config.pruning.text_span)]
            given = self.clip_text.read(prompt)
            # Several pictures of one request must not draw alike.
            found = [self.chain.prune(f, text, keep, seed + i, given) for i, f in enumerate(features)]
        return [indices for indices, _ in found], [rows for _, rows in found]

    def lay_out(
        self, prompt: Prompt, embeds: Array, rows: Sequence[Array], kept: Sequence[np.ndarray], keep: int = 0
    ) -> Layout:
        """The prompt's text and kept features in one row; ``keep`` is what the decoder is to prune to, if it does."""
        info = self.config
        return lay_out(prompt, embeds, rows, kept, info.model.visual_tokens, info.pruning.positions, keep)


def _identity(image: ImageInput | Features) -> Any:
    """Equal for what is surely the same picture within one call."""
    if isinstance(image, str | os.PathLike):
        return ("path", os.fspath(image))
    if isinstance(image, bytes | bytearray | memoryview):
        return ("bytes", hashlib.sha256(image).digest())
    return ("object", id(image))
