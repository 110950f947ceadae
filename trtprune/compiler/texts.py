"""The text files of a checkpoint at build: tokenizer, chat template and image processor, tried before work begins.

What a run would refuse is refused here, by the objects a run makes of the same files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtprune.checkpoint import SIDE_FILES
from trtprune.errors import CheckpointError, EngineDirError, InputError

if TYPE_CHECKING:
    from trtprune.checkpoint import Checkpoint
    from trtprune.models import Model
    from trtprune.reports.reporter import Report

__all__ = ["check_texts", "read_texts"]

TOKENIZER = "tokenizer.json"
"""The one text that no run can do without."""


def read_texts(checkpoint: Checkpoint) -> dict[str, str]:
    """Content by name of those of :data:`trtprune.checkpoint.SIDE_FILES` that the checkpoint has.

    Raises:
        CheckpointError: if a file cannot be read, or there is no tokenizer.
    """
    found = {name: text for name in SIDE_FILES if (text := checkpoint.text_file(name)) is not None}
    if TOKENIZER not in found:
        raise CheckpointError(
            f"{checkpoint.path}: {TOKENIZER} is missing",
            hint="AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) in transformers writes it",
        )
    return found


def check_texts(checkpoint: Checkpoint, model: Model, say: Report) -> None:
    """Asks one question and a second one, and reads the image processor's settings.

    Args:
        checkpoint: Whose files they are.
        model: The checkpoint, opened.
        say: Called with what users of the build should know.

    Raises:
        CheckpointError: naming the file at fault, if a run of the build could not answer a question.
    """
    from trtprune.runtime.prompt import PromptEncoder

    files, spec = read_texts(checkpoint), model.spec
    assert model.processor is not None  # raises where a run could not prepare an image
    try:
        encoder = PromptEncoder(files, spec.image_token, spec.image_token_id)
        notes = encoder.rehearse()
    except (EngineDirError, InputError) as error:
        raise CheckpointError(f"{checkpoint.path}: {error.marked_message}", hint=error.marked_hint) from None
    for note in notes:
        say("prompt", f"warning: {note}")
