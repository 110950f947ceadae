"""Text files of an engine directory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtprune.errors import EngineDirError
from trtprune.files.reading import SMALL_JSON_BYTES, read_bounded
from trtprune.text.tokens import MAX_TOKENIZER_BYTES

if TYPE_CHECKING:
    from trtprune.engine_dir import EngineDir

__all__ = ["text_files"]


def text_files(config: EngineDir) -> dict[str, str]:
    """Content of the text files in the directory's list; other files were not checked and are not read."""
    found = {}
    for name in config.files:
        if "/" in name or not name.endswith((".json", ".jinja")):
            continue
        path = config.path(name)
        try:
            # Only a tokenizer can be large.
            data = read_bounded(path, MAX_TOKENIZER_BYTES if name.endswith("tokenizer.json") else SMALL_JSON_BYTES)
            if data is None:
                raise OSError(0, "missing")
            found[name] = data.decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise EngineDirError(f"{path}: cannot be read: {reason}", hint="build the directory again") from None
    return found
