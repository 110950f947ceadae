"""A loaded engine directory: from images and questions to answers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Unpack

from trtprune.runtime.answer import AnswerArguments, AnswerSettings
from trtprune.runtime.batch import Batch, Stream
from trtprune.runtime.clock import Clock
from trtprune.runtime.conversation import Conversation
from trtprune.runtime.pipeline import Pipeline
from trtprune.runtime.result import Request, Result
from trtprune.runtime.viewing import look, select

if TYPE_CHECKING:
    import numpy as np

    from trtprune.backends.base import Backend
    from trtprune.engine_dir import EngineDir
    from trtprune.runtime.chain import Chain
    from trtprune.runtime.features import Features
    from trtprune.runtime.pictures import ImageInput
    from trtprune.runtime.prompt import PromptEncoder
    from trtprune.runtime.result import Images
    from trtprune.runtime.viewing import View

__all__ = ["Vlm"]


class Vlm:
    """A model that answers questions about images, from :func:`trtprune.load`.

    Several threads may share one: they take turns, for a whole call or for one piece of a stream.  As a context manager
    it is closed at the end of the block.

    Attributes:
        config: The engine directory.
        provider: Name of its runtime.
        pipeline: The stages behind the answers.
    """

    def __init__(
        self, config: EngineDir, backend: Backend, *, max_pixels: int, strict_images: bool = False, urls: bool = False
    ) -> None:
        self.config = config
        self.provider = backend.name
        self.pipeline = Pipeline(config, backend, max_pixels=max_pixels, strict_images=strict_images, urls=urls)

    @property
    def chain(self) -> Chain:
        """The sessions."""
        return self.pipeline.chain

    @property
    def encoder(self) -> PromptEncoder:
        """Tokenizer and chat template."""
        return self.pipeline.encoder

    def using(self) -> AbstractContextManager[None]:
        """One thread's turn; see :meth:`trtprune.runtime.pipeline.Pipeline.using`."""
        return self.pipeline.using()

    def check_keep(self, keep: int | None) -> int:
        """The budget of an image: ``keep``, or the build's default; raises BudgetError if it is not served."""
        return self.pipeline.check_keep(keep)

    def close(self) -> None:
        """Frees sessions and memory; later calls are errors, except closing again."""
        self.pipeline.close()

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
        keep_ratio: float | None = None,
        system: str | None = None,
        raw_prompt: bool = False,
        **settings: Unpack[AnswerArguments],
    ) -> Result:
        """Answers one question about one image, or about several together.

        Args:
            images: A path, ``data:`` address, bytes of a file, open binary file, PIL image or uint8 array (see
                :func:`trtprune.runtime.pictures.load_picture`), or the :class:`Features` of one; or a list of
                these, all in one prompt.
            prompt: The question, put through the checkpoint's chat template unless ``raw_prompt``.
            keep: Visual tokens to keep of each image, all of its crops together; None: the build's default.
            keep_ratio: The same as a share of the image's visual tokens, above 0 and at most 1.
            system: A system prompt.
            raw_prompt: Whether ``prompt`` is the whole prompt, with a placeholder for each image.
            settings: ``max_new_tokens``, ``min_new_tokens``, ``temperature``, ``top_k``, ``top_p``,
                ``repetition_penalty``, ``seed``, ``stop`` and ``ignore_eos``, see
                :class:`trtprune.runtime.answer.AnswerArguments`.

        Raises:
            InputError: for an image, prompt or setting that cannot be used.
            BudgetError: for a budget outside the build's range.
        """
        request = Request(images, prompt, system=system, raw_prompt=raw_prompt)
        return self.generate_batch([request], keep=keep, keep_ratio=keep_ratio, **settings)[0]

    def generate_batch(
        self,
        requests: Sequence[Request],
        *,
        keep: int | None = None,
        keep_ratio: float | None = None,
        **settings: Unpack[AnswerArguments],
    ) -> list[Result]:
        """Answers requests as one batch; prompts may differ in length and number of images.

        Each answer equals that of the request alone, up to the rounding of larger matrix products.  Settings as in
        :meth:`generate`; those of a request have priority.
        """
        answers = AnswerSettings.of(self.config.generation, **settings)
        batch = Batch(self.pipeline, requests, answers, keep=keep, keep_ratio=keep_ratio)
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
        keep_ratio: float | None = None,
        system: str | None = None,
        raw_prompt: bool = False,
        **settings: Unpack[AnswerArguments],
    ) -> Stream:
        """As :meth:`generate`, but returns the text piece by piece; the pieces add up to the result's text.

        The computation starts with the first piece.
        """
        request = Request(images, prompt, system=system, raw_prompt=raw_prompt)
        answers = AnswerSettings.of(self.config.generation, **settings)
        return Stream(self.pipeline, Batch(self.pipeline, [request], answers, keep=keep, keep_ratio=keep_ratio))

    def chat(self, images: Images, *, system: str | None = None) -> Conversation:
        """Starts a conversation of several questions about the same images."""
        return Conversation(self.pipeline, images, system=system)

    def features(self, images: Sequence[ImageInput | Features]) -> list[Features]:
        """Features of each image; one that occurs twice is looked at once, and one that is features already not at all.

        Raises:
            InputError: for an image that cannot be read, or features that are not of this build's kind.
        """
        with self.using():
            return self.pipeline.features(images, Clock())

    def look(self, image: ImageInput, prompt: str, *, system: str | None = None) -> View:
        """Features of one image and the text its tokens would be selected by."""
        with self.using():
            return look(self.pipeline, image, prompt, system=system)

    def select(self, view: View, *, keep: int, seed: int | None = None) -> np.ndarray:
        """Kept indices, int64 [keep], of a viewed image, by the method this was built with.

        Raises:
            BudgetError: for a budget that this build cannot serve.
        """
        with self.using():
            return select(self.pipeline, view, keep=keep, seed=seed)
