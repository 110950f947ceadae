"""Opens an engine directory for questions."""

from __future__ import annotations

import os
from collections.abc import Mapping

from trtprune.backends.opening import open_backend
from trtprune.engine_dir import open_engine_dir
from trtprune.runtime.pictures import max_pixels_from
from trtprune.runtime.vlm import Vlm

__all__ = ["load"]


def load(
    path: str | os.PathLike[str],
    *,
    provider: str | None = None,
    threads: int | None = None,
    verify: str = "auto",
    provider_options: Mapping[str, str] | None = None,
    max_pixels: int | None = None,
    strict_images: bool = False,
    urls: bool = False,
) -> Vlm:
    """Opens an engine directory.

    Args:
        path: The directory of a build.
        provider: ``cpu`` or ``cuda`` of ONNX Runtime, or ``openvino``; None: the build's own.  A directory of TensorRT
            engines also has their graphs: a provider runs those.
        threads: Processor threads of a provider; None: all that the container allows.
        verify: Level of the file checks: ``auto``, ``none``, ``fast``, ``full``.
        provider_options: See :class:`trtprune.backends.onnxruntime.OrtBackend`,
            :class:`trtprune.backends.openvino.OpenVinoBackend` and
            :class:`trtprune.backends.tensorrt.backend.TrtBackend`.
        max_pixels: Limit of an image's pixels; None: ``$TRTPRUNE_MAX_PIXELS`` or 64 Mi.
        strict_images: Whether animations and files of several pages are refused, instead of giving their first frame
            with a note.
        urls: Whether ``http(s)`` addresses of images are fetched.  Leave it off if users of your program name images:
            they would reach everything that its machine reaches.  Such a program should refuse paths, too.

    Raises:
        EngineDirError: if the directory is damaged or foreign.
        BackendError: if the provider, library or GPU is missing or refuses the directory.
    """
    config = open_engine_dir(path, verify=verify)
    backend = open_backend(config, provider=provider, threads=threads, options=provider_options)
    limit = max_pixels_from(max_pixels)
    return Vlm(config, backend, max_pixels=limit, strict_images=strict_images, urls=urls)
