"""Images of a request: from an address to the arrays of the vision graph."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trtprune.errors import InputError
from trtprune.runtime.inflight import Picture
from trtprune.runtime.sources import local_file, opened
from trtprune.serving.faults import ApiError

if TYPE_CHECKING:
    from trtprune.runtime.pipeline import Pipeline

__all__ = ["Sources", "prepare"]


@dataclass(frozen=True)
class Sources:
    """Where images may come from, beside ``data:`` addresses.

    Attributes:
        urls: Whether http(s) addresses are fetched; they reach everything that the server reaches.
        folder: The folder whose files may be named; None: none.
    """

    urls: bool = False
    folder: Path | None = None

    def read(self, url: str) -> bytes:
        """The bytes of an image's file.

        Raises:
            ApiError: for an address that is not allowed.
            InputError: for one that cannot be read.
        """
        scheme = url.partition(":")[0].lower() if ":" in url[:16] else ""
        if scheme in ("http", "https") and not self.urls:
            raise _refused("images at http(s) addresses are not allowed here; send a data: address")
        if scheme not in ("data", "http", "https"):
            return self._file(url)
        with opened(url, self.urls) as (stream, _):
            return stream.read()

    def _file(self, url: str) -> bytes:
        # One message for every file that is not served: others would tell which files exist.
        refused = _refused("images in files are not allowed here; send a data: address")
        if self.folder is None:
            raise refused
        try:
            named = local_file(url)
            assert named is not None
            path = Path(os.path.realpath(self.folder / named))
            if path.is_relative_to(os.path.realpath(self.folder)):
                with opened(path, False) as (stream, _):
                    return stream.read()
        except (InputError, OSError, ValueError):
            pass
        raise _refused("there is no such file in the folder that this server serves images of")


def _refused(message: str) -> ApiError:
    return ApiError(400, message, param="messages", code="image_not_allowed")


def prepare(pipeline: Pipeline, sources: Sources, urls: list[str]) -> list[Picture]:
    """The prepared images of a request.

    Raises:
        ApiError, InputError: naming the number of the first one that cannot be used.
    """
    found: list[Picture] = []
    for number, url in enumerate(urls, 1):
        try:
            data = sources.read(url)
            # Some processors cut an image otherwise if it is not the only one.
            key = (hashlib.blake2b(data, digest_size=32).digest(), len(urls))
            found.append(Picture(key, pipeline.processor.prepare(pipeline.load(data), len(urls))))
        except InputError as error:
            raise ApiError(400, f"image {number}: {error}", param="messages", code="invalid_image") from None
    return found
