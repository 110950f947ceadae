"""A model repository for Triton Inference Server, made of an engine directory."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from trtprune.errors import BuildError, InputError
from trtprune.serving.sizes import BatchSizes

if TYPE_CHECKING:
    from trtprune.engine_dir import EngineDir

__all__ = ["TritonSettings", "write_repository"]

MODEL_PY = '''"""Written by `trtprune triton`: the model beside this file, in trtprune's running batch."""

import os
import sys

# Triton's interpreter does not read the variable, which is how a virtual environment is named to it.
sys.path += [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path not in sys.path]

import triton_python_backend_utils as utils

from trtprune.serving.triton_model import TritonModel


class TritonPythonModel:
    def __init__(self):
        self._model = TritonModel(utils)

    def initialize(self, args):
        self._model.initialize(args)

    def execute(self, requests):
        self._model.execute(requests)

    def finalize(self):
        self._model.finalize()
'''
INPUTS = (
    ("text_input", "TYPE_STRING", 1, True),
    ("image", "TYPE_STRING", -1, True),
    ("messages", "TYPE_STRING", 1, True),
    ("stream", "TYPE_BOOL", 1, True),
    ("sampling_parameters", "TYPE_STRING", 1, True),
)
OUTPUTS = (
    ("text_output", "TYPE_STRING"),
    ("finish_reason", "TYPE_STRING"),
    ("num_input_tokens", "TYPE_INT32"),
    ("num_output_tokens", "TYPE_INT32"),
    ("visual_tokens", "TYPE_INT32"),
    ("kept_tokens", "TYPE_INT32"),
)


@dataclass(frozen=True)
class TritonSettings:
    """Settings that go into ``config.pbtxt``.

    Attributes:
        name: The model's name, its folder in the repository.
        sizes: Those of the batch.
        provider, threads: As of ``load``; None: as built, all cores.
    """

    name: str
    sizes: BatchSizes = field(default_factory=BatchSizes)
    provider: str | None = None
    threads: int | None = None

    def parameters(self) -> Mapping[str, str]:
        """The parameters of ``config.pbtxt``."""
        values = asdict(self.sizes) | {"provider": self.provider, "threads": self.threads}
        return {name: "" if value is None else str(value) for name, value in values.items()}


def config_text(made: EngineDir, settings: TritonSettings) -> str:
    """``config.pbtxt``."""
    gpu = made.engines is not None and settings.provider is None
    lines = [f'name: "{settings.name}"', 'backend: "python"', "max_batch_size: 0"]
    lines += ["model_transaction_policy { decoupled: true }"]
    for name, kind, size, optional in INPUTS:
        lines.append(
            f'input {{ name: "{name}" data_type: {kind} dims: [ {size} ]{" optional: true" if optional else ""} }}'
        )
    lines += [f'output {{ name: "{name}" data_type: {kind} dims: [ 1 ] }}' for name, kind in OUTPUTS]
    # One instance: its batch is the way to answer several requests at once.
    lines.append(f"instance_group [ {{ count: 1 kind: {'KIND_GPU' if gpu else 'KIND_CPU'} }} ]")
    for name, value in settings.parameters().items():
        lines.append(f'parameters {{ key: "{name}" value: {{ string_value: "{value}" }} }}')
    return "\n".join(lines) + "\n"


def write_repository(made: EngineDir, output: Path, settings: TritonSettings) -> Path:
    """Writes the model's folder into a repository, which may have other models; returns it.

    The folder holds a copy of the engine directory (without copied blocks, where the file system can share them).

    Raises:
        InputError: for a name that is none, or a folder that is there already.
        BuildError: if it cannot be written; nothing is left of it.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", settings.name):
        raise InputError(f"--name {settings.name[:100]!r}: letters, digits, and . _ - behind the first")
    engines = made.engines
    if engines is not None and settings.provider is None and settings.sizes.max_batch_size > engines.max_batch_size:
        raise InputError(
            f"--max-batch-size {settings.sizes.max_batch_size}: the engines were built for {engines.max_batch_size}",
            hint="a smaller one, or build with a larger --max-batch-size",
        )
    target = output / settings.name
    if target.exists() or target.is_symlink():
        raise InputError(f"{target}: is there already", hint="another --name, or remove it")
    try:
        output.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{settings.name}.", dir=output))
        try:
            version = staging / "1"
            version.mkdir()
            shutil.copytree(made.root, version / "engine", copy_function=_copy)
            (version / "model.py").write_text(MODEL_PY, encoding="utf-8")
            (staging / "config.pbtxt").write_text(config_text(made, settings), encoding="utf-8")
            staging.chmod(0o755)
            os.rename(staging, target)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
    except (OSError, shutil.Error) as error:
        raise BuildError(f"{target}: cannot be written: {getattr(error, 'strerror', None) or error}") from None
    return target


def _copy(source: str, target: str) -> str:
    """A file's content as a new file; several hard links of one file become files of their own."""
    with open(source, "rb") as read, open(target, "wb") as write:
        size, done = os.fstat(read.fileno()).st_size, 0
        while done < size:
            # The kernel shares blocks where it can.
            count = os.copy_file_range(read.fileno(), write.fileno(), size - done)
            if not count:
                break
            done += count
    return target
