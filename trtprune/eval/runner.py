"""Asks all unanswered questions: method by method if memory requires it, otherwise image by image."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from trtprune.engine_dir.roles import VISION
from trtprune.errors import InputError
from trtprune.eval.answering import Answerer, batches
from trtprune.eval.scoring import score
from trtprune.eval.store import Record

if TYPE_CHECKING:
    from trtprune.eval.planning import MethodBudget, Subject, Trial
    from trtprune.eval.rows import Row
    from trtprune.eval.store import Key, Store
    from trtprune.runtime import Features, Result, Vlm
    from trtprune.variants import Variant, Variants

__all__ = ["Builds", "Responder", "run", "sessions_of"]

GREY_LEVEL = 127
GREY_SIZE = (336, 336)


class Responder(Protocol):
    """The source of answers for the points of one group."""

    def ask(self, points: Sequence[MethodBudget], subject: Subject, question: str) -> Sequence[Result]:
        """Answers to a question about an image, for points with one budget.

        Questions about one image are consecutive, and among them those to points of one budget.
        """


Opener = Callable[[Sequence["MethodBudget"]], "contextlib.AbstractContextManager[Responder]"]


def sessions_of(points: Sequence[MethodBudget]) -> list[list[MethodBudget]]:
    """Groups of points in memory at the same time: all with the whole decoder, then each in-LLM method alone."""
    together = [point for point in points if not point.inside]
    inside: dict[Variant, list[MethodBudget]] = {}
    for point in points:
        if point.inside:
            inside.setdefault(point.variant, []).append(point)
    return [group for group in (together, *inside.values()) if group]


def run(
    points: Sequence[MethodBudget],
    subjects: Sequence[Subject],
    store: Store,
    opener: Opener,
    *,
    ask: Callable[[Row], str],
    metric: Callable[[Row], str],
    strict: bool = False,
    advance: Callable[[int], None] = lambda answers: None,
) -> dict[str, str]:
    """Answers the questions without an answer in the store.

    Args:
        points: Methods and budgets.
        subjects: Images with their questions.
        store: Receives each answer at once.
        opener: Function that opens the source of answers for the points of a group.
        ask: Function of a row to the question.
        metric: Function of a row to its metric.
        strict: Whether an unreadable image is an error.
        advance: Called with the number of finished, or impossible, answers.

    Returns:
        The reason of each row that could not be asked, by id.

    Raises:
        InputError: with ``strict``, for an unreadable image; if the disk is full.
    """
    unread: dict[str, str] = {}
    for group in sessions_of(points):
        todo = {id(s): _missing(group, s, store) for s in subjects}
        wanted = [point for point in group if any(point in missing for missing in todo.values())]
        if not wanted:
            continue
        with opener(wanted) as responder:
            for subject in subjects:
                try:
                    _answer(todo[id(subject)], subject, store, responder, ask, metric, advance)
                except _UnreadPicture as error:
                    if strict:
                        raise error.reason from None
                    unread |= {asked.row.id: error.reason.message for asked in subject.asked if not asked.control}
                    advance(sum(_key(p, a) not in store for p, asks in todo[id(subject)].items() for a in asks))
    return unread


def _key(point: MethodBudget, asked: Trial) -> Key:
    return asked.row.id, point.label, point.keep, asked.control


class _UnreadPicture(Exception):
    def __init__(self, reason: InputError) -> None:
        super().__init__(reason.message)
        self.reason = reason


def _missing(group: Sequence[MethodBudget], subject: Subject, store: Store) -> dict[MethodBudget, list[Trial]]:
    found: dict[MethodBudget, list[Trial]] = {}
    for point in group:
        asked = [a for a in subject.asked if _key(point, a) not in store]
        if asked:
            found[point] = asked
    return found


def _answer(
    todo: dict[MethodBudget, list[Trial]],
    subject: Subject,
    store: Store,
    responder: Responder,
    ask: Callable[[Row], str],
    metric: Callable[[Row], str],
    advance: Callable[[int], None],
) -> None:
    for keep in dict.fromkeys(point.keep for point in todo):
        alike = [point for point in todo if point.keep == keep]
        for asked in subject.asked:
            points = [point for point in alike if _key(point, asked) not in store]
            results = responder.ask(points, subject, ask(asked.row)) if points else []
            for point, result in zip(points, results, strict=True):
                mark = score(asked.row, result.text, metric(asked.row))
                store.add(
                    Record(
                        id=asked.row.id,
                        method=point.label,
                        keep=point.keep,
                        answer=result.text,
                        score=mark,
                        # For an in-LLM method the average over the layers counts, not the last segment.
                        kept=result.tokens_per_layer or result.kept_tokens,
                        visual=result.visual_tokens,
                        finish=result.finish_reason,
                        control=asked.control,
                    )
                )
                advance(1)


class Builds:
    """Answers with builds of one engine directory; :meth:`open` is an opener for :func:`run`.

    Args:
        variants: The builds.
        max_new_tokens: Longest answer.
        stop: Texts that end an answer.
        reuse: As in :class:`Answerer`.
    """

    def __init__(
        self, variants: Variants, *, max_new_tokens: int, stop: Sequence[str] = (), reuse: bool = True
    ) -> None:
        self._variants, self._max_new_tokens, self._stop, self._reuse = variants, max_new_tokens, stop, reuse
        self._vlms: dict[Variant, Vlm] = {}
        self._answerers: dict[tuple[Variant, ...], Answerer] = {}
        self._at: tuple[Subject, int] | None = None
        self._looks: dict[str, Features] = {}

    @contextlib.contextmanager
    def open(self, points: Sequence[MethodBudget]) -> Iterator[Builds]:
        """A block with the builds of these points in memory."""
        try:
            for variant in dict.fromkeys(point.variant for point in points):
                self._vlms[variant] = self._variants.open(variant)
            yield self
        finally:
            self._close()
            self._looks.clear()
            self._at = None
            for variant in self._vlms:
                self._variants.release(variant)
            self._vlms.clear()

    def ask(self, points: Sequence[MethodBudget], subject: Subject, question: str) -> list[Result]:
        """See :class:`Responder`."""
        keep = points[0].keep
        if self._at is None or self._at[0] is not subject:
            self._looks.clear()
        if self._at is None or self._at[0] is not subject or self._at[1] != keep:
            # The caches' content is not needed any more; other batches can use the memory.
            self._close()
        self._at = subject, keep
        vlms = [self._vlms[point.variant] for point in points]
        features = [self._look(vlm, subject) for vlm in vlms]
        found: dict[int, Result] = {}
        longest = max(seen.visual_tokens for seen in features)
        for places in batches(vlms, longest + self._max_new_tokens):
            results = self._answerer([points[i].variant for i in places]).ask(
                [features[i] for i in places], question, keep, subject.seed
            )
            found |= zip(places, results, strict=True)
        return [found[i] for i in range(len(points))]

    def _answerer(self, variants: Sequence[Variant]) -> Answerer:
        key = tuple(variants)
        if key not in self._answerers:
            self._answerers[key] = Answerer(
                [self._vlms[variant] for variant in variants],
                max_new_tokens=self._max_new_tokens,
                stop=self._stop,
                reuse=self._reuse,
            )
        return self._answerers[key]

    def _close(self) -> None:
        for answerer in self._answerers.values():
            answerer.close()
        self._answerers.clear()

    def _look(self, vlm: Vlm, subject: Subject) -> Features:
        """An image's features; builds with equal vision graphs share them."""
        config = vlm.config
        graph = self._variants.graph_digest_of(config, config.part(VISION))
        if graph not in self._looks:
            try:
                if subject.source is None:
                    picture: Any = _grey(config.model.image_size or GREY_SIZE)
                else:
                    picture = subject.source.picture()
                self._looks[graph] = vlm.features([picture])[0]
            except InputError as error:
                raise _UnreadPicture(error) from None
        return self._looks[graph]


def _grey(size: Sequence[int]) -> Any:
    from PIL import Image

    return Image.new("RGB", (int(size[1]), int(size[0])), (GREY_LEVEL,) * 3)
