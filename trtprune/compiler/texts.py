"""The text files of a checkpoint at build: tokenizer, chat template and image processor, tried before the work.

The same objects as in a run are created from the files, so that a build refuses whatever a run would refuse.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtprune.checkpoint import SIDE_FILES
from trtprune.errors import CheckpointError, EngineDirError, InputError

if TYPE_CHECKING:
    from trtprune.checkpoint import Checkpoint
    from trtprune.models import Model
    from trtprune.reports.reporter import Report
    from trtprune.text.info import TextInfo

__all__ = ["check_texts", "read_texts"]

TOKENIZER = "tokenizer.json"
"""The one required text file."""


def read_texts(checkpoint: Checkpoint) -> dict[str, str]:
    """Content by name of the checkpoint's :data:`trtprune.checkpoint.SIDE_FILES`.

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


def check_texts(checkpoint: Checkpoint, model: Model, say: Report) -> TextInfo:
    """Asks one question and a second one, and reads the image processor's settings.

    Args:
        checkpoint: The checkpoint with the files.
        model: The opened checkpoint.
        say: Called with notes for users of the build.

    Returns:
        Tokenizer and chat template for ``config.json``.

    Raises:
        CheckpointError: naming the faulty file, if a run of the build could not answer a question.
    """
    from trtprune.runtime.prompt import PromptEncoder

    files, spec = read_texts(checkpoint), model.spec
    assert model.processor is not None  # raises if a run could not prepare an image
    try:
        encoder = PromptEncoder(files, spec.image_token, spec.image_token_id, video_token=spec.video_token)
        notes = encoder.rehearse()
        texts = encoder.describe()
    except (EngineDirError, InputError) as error:
        raise CheckpointError(f"{checkpoint.path}: {error.marked_message}", hint=error.marked_hint) from None
    for note in notes:
        say("prompt", f"warning: {note}")
    if texts.reason is not None:
        say("prompt", f"{texts.reason}, so it is not compiled: it runs in Python, not in a runtime without jinja2")
    return texts
