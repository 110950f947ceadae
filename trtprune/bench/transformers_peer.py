"""The same checkpoint in transformers, with the same question and the same clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtprune.bench.cells import Sample, Workload
from trtprune.errors import BackendError, CheckpointError
from trtprune.reports.installer import to_install

if TYPE_CHECKING:
    import numpy as np

__all__ = ["DTYPES", "TransformersPeer", "require_transformers"]

DTYPES = ("float32", "bfloat16")
TOWERS, PROJECTORS = ("visual", "vision_tower", "vision_model"), ("visual", "multi_modal_projector", "connector")
"""The names of a model's tower and projector in transformers; a packed tower has its merger in itself."""


def require_transformers() -> Any:
    """The packages torch and transformers.

    Raises:
        BackendError: if one of them is missing.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise BackendError(
            f"--against transformers: {str(error).splitlines()[0]}", hint=to_install(extra="torch")
        ) from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return torch, transformers


class _Times:
    """A streamer that only records the times of ids: those of the prompt first, then each chosen token."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.times: list[float] = []

    def put(self, ids: Any) -> None:
        self.times.append(self._clock())

    def end(self) -> None:
        return


class TransformersPeer:
    """``generate`` with ``sdpa`` attention, greedy, for a fixed number of tokens.

    Preprocessing is the checkpoint's processor, vision is from its tower to its projector; the rest before the first
    token is prefill.

    Args:
        path: The checkpoint.
        dtype: ``float32`` or ``bfloat16``.
        question: The question.
        threads: CPU threads; None: torch's choice.
        clock: Seconds.

    Raises:
        BackendError: if torch or transformers is missing.
        CheckpointError: if transformers cannot load the checkpoint.
    """

    peer = True

    def __init__(
        self,
        path: Path,
        dtype: str,
        question: Workload,
        *,
        threads: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        torch, transformers = require_transformers()
        if threads is not None:
            torch.set_num_threads(threads)
        self.method = f"transformers {dtype}"
        self._torch, self._question, self._clock = torch, question, clock
        try:
            self.processor = transformers.AutoProcessor.from_pretrained(str(path))
            model = transformers.AutoModelForImageTextToText.from_pretrained(
                str(path), dtype=getattr(torch, dtype), attn_implementation="sdpa"
            )
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            raise CheckpointError(
                f"{path}: transformers cannot load it: {str(error).strip().splitlines()[0][:300]}"
            ) from None
        self.model = model.eval()
        # Nothing ends an answer before its length. A minimum length would do the same, but it forbids the end token and
        # so changes the answer.
        self.model.generation_config.eos_token_id = None
        self.model.generation_config.stop_strings = None
        text = self.model.config.text_config
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        self._kv_per_token = 2 * text.num_hidden_layers * heads * width * getattr(torch, dtype).itemsize
        content = [{"type": "image"}, {"type": "text", "text": question.prompt}]
        self._text = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        self.keep = self.budget = self.visual_tokens()

    def _inputs(self) -> Any:
        inputs = self.processor(images=self._question.image, text=self._text, return_tensors="pt")
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        return inputs

    def prompt_ids(self) -> np.ndarray:
        """int64 [S], with one placeholder per visual token."""
        found: np.ndarray = self._inputs()["input_ids"][0].numpy()
        return found

    def visual_tokens(self) -> int:
        """Visual tokens of the image."""
        config = self.model.config
        place = getattr(config, "image_token_index", None)
        return int((self.prompt_ids() == (config.image_token_id if place is None else place)).sum())

    def run(self) -> Sample:
        """One answer."""
        tokens, seen = self._question.tokens, _Times(self._clock)
        with self._torch.inference_mode(), self._vision() as vision:
            start = self._clock()
            inputs = self._inputs()
            ready = self._clock()
            out = self.model.generate(**inputs, max_new_tokens=tokens, do_sample=False, streamer=seen)
            end = self._clock()
        prompt = inputs["input_ids"].shape[1]
        first = 1000 * (seen.times[1] - start)
        preprocess, looked = 1000 * (ready - start), 1000 * (vision[-1] - vision[0])
        stages = {
            "preprocess": preprocess,
            "vision": looked,
            "prune": 0.0,
            "prefill": first - preprocess - looked,
            "decode": 1000 * (end - seen.times[1]),
        }
        ids = tuple(out[0, prompt:].tolist())
        cached = self._kv_per_token * (prompt + tokens - 1)
        return Sample(stages, first, 1000 * (end - start), len(ids), cached, prompt, ids)

    @contextmanager
    def _vision(self) -> Iterator[list[float]]:
        """The times of the tower's begin and the projector's end."""
        inner, times = getattr(self.model, "model", self.model), []

        def note(*_: Any) -> None:
            times.append(self._clock())

        parts = [
            next(part for name in names if (part := getattr(inner, name, None)) is not None)
            for names in (TOWERS, PROJECTORS)
        ]
        handles = [parts[0].register_forward_pre_hook(note), parts[1].register_forward_hook(note)]
        try:
            yield times
        finally:
            for handle in handles:
                handle.remove()
