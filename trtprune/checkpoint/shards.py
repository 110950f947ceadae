"""The weight files of a checkpoint directory: one file, or the shards of an index."""

from __future__ import annotations

import os
from pathlib import Path

from trtprune.checkpoint.advice import for_files
from trtprune.checkpoint.files import plain_name, read_text, weight_path
from trtprune.checkpoint.safetensors import MAX_HEADER_BYTES, Header, TensorInfo, parse_json, read_header
from trtprune.errors import CheckpointError, shown

__all__ = ["INDEX", "SINGLE", "file_names", "no_config", "no_weights", "read_weights"]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_TENSORS = 500_000
"""The largest number of tensors of a checkpoint; the largest mixtures of experts have 150,000."""
_AGAIN = "download the checkpoint again"


def read_weights(root: Path) -> tuple[dict[str, Header], dict[str, TensorInfo]]:
    """The headers of all weight files by base name, and their tensors by name.

    Raises:
        CheckpointError: if there are no weight files, or index and files do not agree.
    """
    if exists(root / SINGLE):
        header = _read_file(root / SINGLE)
        headers, tensors = {SINGLE: header}, header.tensors
    elif exists(root / INDEX):
        headers, tensors = _read_sharded(root)
    else:
        raise no_weights(root, file_names(root))
    if not tensors:
        raise CheckpointError(f"{root}: the weight files hold no tensors", hint=_AGAIN)
    return headers, tensors


def file_names(root: Path) -> list[str]:
    """Names of the files in a directory, sorted; empty if there is no directory."""
    try:
        return sorted(entry.name for entry in os.scandir(root))
    except OSError:
        return []


def exists(path: Path) -> bool:
    """Whether the path exists, also as a broken link."""
    return path.is_symlink() or path.exists()


def _read_sharded(root: Path) -> tuple[dict[str, Header], dict[str, TensorInfo]]:
    path = root / INDEX
    text = read_text(root, INDEX, MAX_HEADER_BYTES)
    assert text is not None
    weight_map = parse_json(text, path, "index").get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"{path}: weight_map must map tensor names to file names", hint=_AGAIN)
    headers: dict[str, Header] = {}
    tensors: dict[str, TensorInfo] = {}
    for name, file in weight_map.items():
        if file in headers:
            continue
        headers[file] = header = _read_shard(root, file, name)
        for tensor, info in header.tensors.items():
            if tensor in tensors:
                raise CheckpointError(
                    f"{root / file}: tensor {shown(tensor)} is also in {tensors[tensor].file}", hint=_AGAIN
                )
            if tensor not in weight_map:
                raise CheckpointError(f"{root / file}: tensor {shown(tensor)} is not listed in {INDEX}", hint=_AGAIN)
            tensors[tensor] = info
        if len(tensors) > MAX_TENSORS:
            raise CheckpointError(f"{root}: more than {MAX_TENSORS} tensors", hint=_AGAIN)
    for name, file in weight_map.items():
        if name not in tensors or tensors[name].file != file:
            raise CheckpointError(f"{root / file}: tensor {shown(name)} is missing, {INDEX} puts it there", hint=_AGAIN)
    return headers, tensors


def _read_shard(root: Path, file: str, tensor: str) -> Header:
    try:
        plain_name(file, root)
    except CheckpointError:
        raise CheckpointError(
            f"{root / INDEX}: tensor {shown(tensor)}: path {shown(file)} leaves the checkpoint directory", hint=_AGAIN
        ) from None
    if not exists(root / file):
        raise CheckpointError(f"{root / file}: missing shard, the index puts tensor {shown(tensor)} there", hint=_AGAIN)
    return _read_file(root / file)


def _read_file(path: Path) -> Header:
    weight_path(path)
    return read_header(path)


def no_weights(where: object, names: list[str]) -> CheckpointError:
    """The error for a directory or repository with the files ``names`` but without readable weights."""
    pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
    others = [name for name in names if name.endswith(".safetensors")]
    adapter = "adapter_config.json" in names
    if pickles and not others and not adapter:
        return CheckpointError(
            f"{where}: only pickled weights ({pickles[0]}), which can run code when opened and are never read",
            hint="convert them: load the checkpoint with transformers and call save_pretrained(NEW_DIRECTORY)",
        )
    found = f"; found {', '.join(others[:3])}" if others else ""
    what, advice = for_files(names) or ("", f"{_AGAIN}, with its weights")
    return CheckpointError(f"{where}: neither {SINGLE} nor {INDEX}{found}{what and f': {what}'}", hint=advice)


def no_config(where: object, names: list[str]) -> CheckpointError:
    """The error for a directory or repository with the files ``names`` but without ``config.json``."""
    known = for_files(names)
    if known is not None:
        return CheckpointError(f"{where}: config.json is missing: {known[0]}", hint=known[1])
    return CheckpointError(
        f"{where}: config.json is missing", hint="a checkpoint has config.json and model.safetensors in one directory"
    )
