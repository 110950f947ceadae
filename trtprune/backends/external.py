"""The place of a graph's weights, for runtimes that accept them only below the folder of the model file."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["has_links", "located"]

WEIGHTS = "weights"


def located(graph: bytes, folder: Path) -> tuple[bytes, Path]:
    """A serialised graph, and the folder of its relative weight locations.

    Both are returned unchanged, except where weights are links out of ``folder``, as in the cache of the Hugging Face
    hub: runtimes refuse such links, so the graph gets the names of their target files.  The allowed targets are
    checked before, see :func:`trtprune.engine_dir.paths.inside`.
    """
    folder = folder.resolve()
    if not has_links(folder):
        return graph, folder
    import onnx

    model = onnx.load_model_from_string(graph)
    entries = [e for tensor in model.graph.initializer for e in tensor.external_data if e.key == "location"]
    files = {entry.value: (folder / entry.value).resolve() for entry in entries}
    if not files:
        return graph, folder
    common = Path(os.path.commonpath([path.parent for path in files.values()]))
    for entry in entries:
        entry.value = files[entry.value].relative_to(common).as_posix()
    return model.SerializeToString(), common


def has_links(folder: Path) -> bool:
    """Whether weights of the graphs in a folder are symbolic links."""
    weights = folder / WEIGHTS
    try:
        with os.scandir(weights) as entries:
            return weights.is_symlink() or any(entry.is_symlink() for entry in entries)
    except OSError:
        return False
