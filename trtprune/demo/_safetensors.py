"""Reading and writing safetensors with NumPy alone (the demo needs nothing else of that package)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trtprune.errors import CheckpointError

Array = npt.NDArray[Any]
_DTYPES: dict[str, np.dtype[Any]] = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4")}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def read(path: Path) -> dict[str, Array]:
    """All tensors of a float16/float32 file, as float32."""
    data = path.read_bytes()
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__", None)
        tensors = {}
        for name, entry in header.items():
            start, stop = (8 + length + offset for offset in entry["data_offsets"])
            flat = np.frombuffer(data[start:stop], _DTYPES[entry["dtype"]])
            tensors[name] = flat.reshape(entry["shape"]).astype(np.float32)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a float16/float32 safetensors file") from error
    return tensors


def write(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """Write float16/float32 arrays, sorted by name, one at a time."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    names = sorted(tensors)
    for name in names:
        array = tensors[name]
        dtype = _NAMES[array.dtype.newbyteorder("<")]
        stop = offset + array.nbytes
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, stop]}
        offset = stop
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in names:
            array = tensors[name]
            file.write(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
