"""Engine directories as a model of lmms-eval, the harness of most pruning papers.

    pip install 'trtprune[lmms]'
    python -m lmms_eval --model trtprune --model_args out=OUT,keep=64,method=divprune --tasks gqa --batch_size 1

``python -m trtprune.eval.lmms`` is the same command with this model as the default; it also works without the package's
entry point.  Requests run one at a time: pruning with padded batches has led to wrong published figures
(github.com/EvolvingLMMs-Lab/lmms-eval/issues/236).  Only this module needs lmms-eval.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trtprune.backends.running import Running
from trtprune.errors import BudgetError, InputError, one_line
from trtprune.log import logger
from trtprune.reports.installer import to_install

try:
    _model = importlib.import_module("lmms_eval.api.model")
    _registry = importlib.import_module("lmms_eval.api.registry")
except ImportError as error:
    missing = InputError(
        f"lmms-eval cannot be imported: {error}", hint=f"{to_install(extra='lmms')}, or lmms-eval itself"
    )
    if __name__ == "__main__":
        if {"-h", "--help"} & set(sys.argv[1:]):
            print(__doc__)
        sys.exit(f"error: {one_line(missing.flag_message)}\nhint:  {one_line(missing.flag_hint or '')}")
    raise missing from None

if TYPE_CHECKING:
    from trtprune.runtime.features import Features

__all__ = ["TrtPrune", "main", "manifest"]

NAME = "trtprune"
MAX_NEW_TOKENS = 1024
"""The longest answer of a task without a limit, as in lmms-eval's other adapters; at most the room in the cache."""


@_registry.register_model(NAME)
class TrtPrune(_model.lmms):  # type: ignore[name-defined]
    """Answers lmms-eval's generation tasks.

    Args:
        out: Engine directory; ``pretrained`` is the same.
        keep: Visual tokens to keep; None: the build's own.
        method: ``METHOD[:OPTION=VALUE]…`` instead of the build's own, on the same weights.
        clip: The CLIP checkpoint of the vision tower, for a method that reads its text.
        provider: Execution provider of ONNX Runtime.
        threads: Processor threads.
        max_new_tokens: Longest answer, with priority over the tasks' limits.
        system: A system prompt.
        seed: Seed of method ``random``, the same for every question.
        batch_size: 1; other values are refused.
        device, max_batch_size: Arguments that lmms-eval passes to every model; not used, because the build decides.

    Raises:
        InputError: for an unknown argument, or a batch.
        BudgetError: for a method or budget that the model cannot serve.
    """

    is_simple = True

    def __init__(
        self,
        out: str | None = None,
        *,
        pretrained: str | None = None,
        keep: int | None = None,
        method: str | None = None,
        clip: str | None = None,
        provider: str | None = None,
        threads: int | None = None,
        max_new_tokens: int | None = None,
        system: str | None = None,
        seed: int = 0,
        batch_size: int | str = 1,
        device: str | None = None,
        max_batch_size: int | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            hint = "out, keep, method, clip, provider, threads, max_new_tokens, system, seed"
            raise InputError(f"--model_args: {', '.join(sorted(unknown))}: no such argument", hint=hint)
        if str(batch_size) != "1":
            raise InputError(f"--batch_size {batch_size}: requests run one at a time", hint="--batch_size 1")
        directory = out if out is not None else pretrained
        if directory is None:
            raise InputError("--model_args: out is missing", hint="out=DIRECTORY, as trtprune build wrote it")

        from trtprune.variants import Variant, Variants

        if method is not None:
            Variant.parse(str(method))  # an error before anything is opened
        self._variants = Variants(
            str(directory),
            Running(provider, threads=threads),
            build_options=None if clip is None else {"clip": clip},
        )
        shared = self._variants
        self.variant = shared.own if method is None else Variant.parse(str(method), tower=shared.tower)
        base = self._variants.base.pruning
        if keep is None and self.variant not in (self._variants.own, Variant.make("none")):
            # A variant's default budget is all tokens: without ``keep``, a method would be marked unpruned.
            if base.method == "none":
                raise BudgetError(f"--model_args: method={method} without keep", hint="keep=64, for instance")
            keep = base.keep
        self.vlm = self._variants.open(self.variant)
        self.keep = self.vlm.check_keep(keep)
        self._longest, self._system, self._seed = max_new_tokens, system, seed
        self.visual_tokens = 0
        """Number of visual tokens of all images so far."""
        self._prunable = False  # whether an image had more visual tokens than the budget
        self.kept_tokens = 0.0
        """Number of these that the decoder's layers processed, on average over the layers."""

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The greedy answers (drawn ones for a task with a temperature), in the requests' order."""
        from rich.progress import track

        answers = []
        for request in track(requests, description=self.variant.label, disable=self.rank != 0):
            context, settings, doc_to_visual, doc_id, task, split = request.args
            pictures = doc_to_visual(self.task_dict[task][split][doc_id])
            text = self._answer(context, pictures, settings)
            self.cache_hook.add_partial("generate_until", (context, settings), text)
            answers.append(text)
        if self.visual_tokens:
            share = 100 * self.kept_tokens / self.visual_tokens
            logger.info("%s, keep %s: %.1f %% of the visual tokens processed", self.variant.label, self.keep, share)
        if self._prunable and self.kept_tokens == self.visual_tokens > 0:
            raise BudgetError(f"{self.variant.label}: nothing was pruned", hint="answers are those of the full model")
        return answers

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError("trtprune answers tasks of one round (generate_until)")

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError(
            "trtprune's decoder returns the logits of the last token only, so likelihoods of given answers are not "
            "to be had; use the generation form of the task"
        )

    def clean(self) -> None:
        """Closes the sessions and removes the build for ``method``."""
        self._variants.close()

    def _answer(self, context: str, pictures: Any, settings: Mapping[str, Any]) -> str:
        images = list(pictures) if isinstance(pictures, (list, tuple)) else [pictures]
        if not images or any(image is None for image in images):
            raise InputError("a question without a picture", hint="take the task's form with images only")
        # Tasks with images in the text write "<image>"; the chat template puts the images first.
        question = context.replace(self.vlm.config.model.image_token, "").replace("<image>", "").strip()
        if int(settings.get("num_beams") or 1) != 1:
            raise InputError("num_beams: there is no beam search", hint="--gen_kwargs num_beams=1")
        until = settings.get("until") or []
        temperature = float(settings.get("temperature") or 0) if settings.get("do_sample", True) else 0.0
        asked = self._longest or int(settings.get("max_new_tokens") or MAX_NEW_TOKENS)
        features = self.vlm.features(images)
        totals = [seen.visual_tokens for seen in features]
        result = self.vlm.generate(
            features,
            question,
            keep=self.keep,
            max_new_tokens=max(1, min(asked, self._room(question, features))),
            temperature=temperature,
            top_p=float(settings["top_p"]) if temperature and settings.get("top_p") else None,
            stop=[until] if isinstance(until, str) else [text for text in until if text],
            system=self._system,
            seed=self._seed,
        )
        self.visual_tokens += result.visual_tokens
        self._prunable |= self.keep < max(totals)
        self.kept_tokens += result.tokens_per_layer if result.segment_tokens else result.kept_tokens
        return result.text.strip()

    def _room(self, question: str, features: Sequence[Features]) -> int:
        """The longest possible answer, by the room in the cache and the positions."""
        from trtprune.runtime.pipeline import turns_of

        prompt = self.vlm.pipeline.encode(turns_of(question, len(features), self._system), features)
        return self.vlm.pipeline.room(prompt, self.keep, [seen.plan.grid for seen in features])


def manifest() -> Any:
    """The manifest for lmms-eval's entry-point group ``lmms_eval.models``."""
    registry = importlib.import_module("lmms_eval.models.registry_v2")
    return registry.ModelManifest(model_id=NAME, simple_class_path="trtprune.eval.lmms.TrtPrune")


def main(arguments: Sequence[str] | None = None) -> None:
    """lmms-eval's command line with ``--model trtprune``."""
    models = importlib.import_module("lmms_eval.models")
    models.MODEL_REGISTRY_V2.register_manifest(manifest(), overwrite=True)
    given = list(sys.argv[1:] if arguments is None else arguments)
    sys.argv = ["lmms_eval", *([] if "--model" in given else ["--model", NAME]), *given]
    importlib.import_module("lmms_eval.__main__").cli_evaluate()


if __name__ == "__main__":
    main()
