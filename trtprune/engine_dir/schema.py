"""The schema of an engine directory's ``config.json``, as dataclasses."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trtprune.engine_dir.generation import GenerationInfo
from trtprune.engine_dir.json_text import json_text
from trtprune.engine_dir.paths import inside
from trtprune.engine_dir.roles import DECODER, Part
from trtprune.errors import EngineDirError
from trtprune.schedules import ScheduleInfo
from trtprune.text.info import TextInfo

__all__ = [
    "POSITIONS",
    "QUANTIZATION",
    "SCHEMA_VERSION",
    "WEIGHTS",
    "ComponentInfo",
    "EngineDir",
    "EngineInfo",
    "KvInfo",
    "ModelInfo",
    "PositionsInfo",
    "PruningInfo",
    "TensorSpec",
    "VisionInfo",
]

SCHEMA_VERSION = 2
QUANTIZATION = "quantization"
"""Entry of ``built_with``: how the checkpoint's matrices are stored, if it is a quantised one."""
POSITIONS = ("compact", "original")
"""Position ids of kept tokens: renumbered, or those of the whole image."""
WEIGHTS = "onnx/weights"
"""Folder of the weight files; graphs name them ``weights/FILE``, relative to their own folder, as ONNX defines it."""


@dataclass(frozen=True)
class TensorSpec:
    """One graph input or output. ``shape`` holds ints and symbolic names; ``dtype`` is a NumPy-style name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


Range = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Smallest, typical and largest shape of an input of an engine; for a shape input, its values."""

Profile = dict[str, Range]
"""The range of each input whose shape is not fixed: one optimisation profile."""


@dataclass(frozen=True)
class ComponentInfo:
    """One graph of the chain.

    ``role`` is its purpose (:mod:`trtprune.engine_dir.roles`); ``segment`` is the decoder segment that it is or
    follows; ``name`` is for people and file names.
    """

    name: str
    role: str
    segment: int | None
    onnx: str
    engine: str | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[Profile, ...]
    dtype: str

    @property
    def part(self) -> Part:
        """The component's place in the chain."""
        return Part(self.role, self.segment)


@dataclass(frozen=True)
class ModelInfo:
    """The runtime's facts of the model; sizes in pixels or tokens.

    ``image_size`` and ``patch_grid`` are those of a crop; None with a packed tower, which reads images of any size.
    ``video_token`` stands for a video in prompts, which no model here takes; None: the model has none.
    ``digest`` is the checkpoint's (see ``Checkpoint.digest``).  ``first_patch`` is the patch (row by row)
    of visual token 0; -1 if it is the CLS token.  ``deepstack_levels`` is L, the levels of the vision tower that a
    visual token brings along: a row of the decoder's input is D · (1 + L) wide, and level l is added behind layer l.
    """

    id: str
    revision: str | None
    digest: str
    family: str
    image_size: tuple[int, int] | None
    patch_grid: tuple[int, int] | None
    visual_tokens: int
    has_cls: bool
    hidden_size: int
    vocab_size: int
    max_positions: int
    image_token: str
    image_token_id: int
    eos_token_ids: tuple[int, ...]
    keeps_cls_feature: bool = False
    first_patch: int = 0
    video_token: str | None = None
    deepstack_levels: int = 0

    @property
    def row_width(self) -> int:
        """The width of a row of the decoder's input."""
        return self.hidden_size * (1 + self.deepstack_levels)


@dataclass(frozen=True)
class VisionInfo:
    """The steps from an image to visual tokens.

    Attributes:
        processor: The image processor's name (:mod:`trtprune.runtime.images`).
        settings: Its settings, complete for a processor in any runtime.
        tokens: The smallest and the largest number of visual tokens of an image, before pruning.
        crops: The smallest and the largest number of crops of an image, rows of the vision graph.
        newlines: The newline tokens of an image that is pruned: ``keep`` those of a line with a kept token, beside the
            budget; ``drop`` all; ``candidates``: the method selects among them as among other visual tokens.  An image
            that is not pruned keeps all of them.
        saliency: The outputs of the vision graph that say how strongly the tower attends to each patch, as far as the
            method reads them: ``cls_attention``, ``mean_query_attention``, ``shallow_attention``, ``deep_attention``.
    """

    processor: str
    settings: dict[str, Any]
    tokens: tuple[int, int]
    crops: tuple[int, int]
    newlines: str
    saliency: tuple[str, ...]


@dataclass(frozen=True)
class PositionsInfo:
    """The positions of a prompt's tokens in the decoder.

    Attributes:
        rule: The rule's name (:mod:`trtprune.runtime.positions`), one of :data:`POSITIONS`.
        axes: Numbers of a position: 1, or 3 for time, row and column (M-RoPE).
        sections: For each axis, the number of rotary frequencies that turn by it; all together head_dim / 2.
        interleaved: Whether the axes alternate over the frequencies; else they lie behind one another.
    """

    rule: str
    axes: int
    sections: tuple[int, ...]
    interleaved: bool = False


@dataclass(frozen=True)
class PruningInfo:
    """The method of the build. ``keep`` is the default budget per image, ``keep_range`` the inclusive limits.

    ``schedule`` has the prune points of a decoder in segments, and the rule of its token counts; None for a whole
    decoder.
    """

    method: str
    keep: int
    keep_range: tuple[int, int]
    options: dict[str, bool | int | float | str]
    needs: tuple[str, ...]
    text_span: str
    schedule: ScheduleInfo | None = None


@dataclass(frozen=True)
class KvInfo:
    """The KV cache. ``capacity`` is the largest number of tokens a request may hold (prompt + answer).

    ``segment_layers`` are the numbers of layers of the decoder's segments; empty for a whole decoder.
    """

    capacity: int
    bytes_per_token: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: str
    segment_layers: tuple[int, ...] = ()


@dataclass(frozen=True)
class EngineInfo:
    """The settings of the TensorRT engines, and their requirements; None in a build without engines.

    ``version`` is the library's (``1.7.1.116``).  ``targets`` are the compute capabilities, ``("sm89", "sm120")``.
    ``max_input_len`` counts text tokens of a prompt, ``max_images`` images of a prompt; the optimisation profiles
    follow from them, ``max_batch_size`` and ``keep_range``.  ``plugins`` maps each plugin that the engines need to
    its version.
    """

    version: str
    targets: tuple[str, ...]
    max_batch_size: int
    max_input_len: int
    max_images: int
    attention: str
    version_compatible: bool = False
    hardware_compatibility: str = "none"
    weight_streaming: bool = False
    plugins: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class EngineDir:
    """The parsed ``config.json``; ``root`` is the directory that it was read from and is not part of the file.

    ``files`` maps each file to ``sha256:HEX`` (all bytes); a weight file to ``sha256-header-size:HEX``
    (safetensors header and file size), an engine to ``sha256-head-size:HEX`` (its first MiB and its size), and, if it
    was small enough to hash at build, ``sha256:HEX`` behind it.
    ``weight_dtype`` is ``int8`` or ``int4`` if the build quantised the decoder's matrices, else None; a quantised
    checkpoint is described by ``built_with[QUANTIZATION]``.
    """

    schema_version: int
    backend: str
    lowering: dict[str, str]
    dtype: str
    model: ModelInfo
    vision: VisionInfo
    text: TextInfo
    positions: PositionsInfo
    pruning: PruningInfo
    components: tuple[ComponentInfo, ...]
    chain: tuple[str, ...]
    kv: KvInfo
    generation: GenerationInfo
    built_with: dict[str, str]
    build_digest: str
    files: dict[str, str]
    weight_dtype: str | None = None
    engines: EngineInfo | None = None
    root: Path = field(default=Path("."), compare=False)

    def component(self, name: str) -> ComponentInfo:
        """The component called ``name``.

        Raises:
            EngineDirError: for an unknown name.
        """
        for component in self.components:
            if component.name == name:
                return component
        have = ", ".join(component.name for component in self.components)
        raise EngineDirError(f"{self.root}: no component '{name}'", hint=f"it has: {have}")

    def by_role(self, role: str) -> tuple[ComponentInfo, ...]:
        """The components of the chain with a role, in the order of their segments."""
        components = [c for c in self.components if c.role == role and c.name in self.chain]
        return tuple(sorted(components, key=lambda component: component.segment or 0))

    def find(self, role: str, segment: int | None = None) -> ComponentInfo | None:
        """The component of the chain with a role and a segment; None if there is none."""
        return next((c for c in self.by_role(role) if c.segment == segment), None)

    def part(self, role: str, segment: int | None = None) -> ComponentInfo:
        """As :meth:`find`, for a component that must exist.

        Raises:
            EngineDirError: if the chain has no such component.
        """
        component = self.find(role, segment)
        if component is None:
            hint = f"its chain is {', '.join(self.chain)}; build the directory again"
            raise EngineDirError(f"{self.root}: no {Part(role, segment).name} in the chain", hint=hint)
        return component

    @property
    def segments(self) -> tuple[ComponentInfo, ...]:
        """The segments of the decoder, in order; empty for a whole decoder."""
        return tuple(component for component in self.by_role(DECODER) if component.segment is not None)

    def path(self, relative: str) -> Path:
        """The absolute path of a file named in the config, checked to be inside the directory."""
        return inside(self.root, relative)

    def weight_files(self) -> tuple[str, ...]:
        """The names of the weight files, without their folder."""
        prefix = f"{WEIGHTS}/"
        return tuple(name.removeprefix(prefix) for name in self.files if name.startswith(prefix))

    def to_json(self) -> str:
        """The text of ``config.json``."""
        data = dataclasses.asdict(self)
        del data["root"]
        return json_text(data) + "\n"
