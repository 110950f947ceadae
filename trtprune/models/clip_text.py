"""A second checkpoint beside the model's: the CLIP with the model's vision tower, for its text tower.

LLaVA has CLIP's vision tower only.  Methods that rate patches by CLIP's own text (``clip_image_embeds``,
``clip_text_embeds``) take the rest from the original CLIP:

* ``clip_text``, a graph of its own: ``input_ids`` → ``clip_text_embeds``.  Tensors ``text_model.*`` and
  ``text_projection.weight``.
* in the vision graph: ``vision_model.post_layernorm`` and ``visual_projection`` behind the hidden state that feeds the
  projector, as in https://github.com/Theia-4869/CDPruner.

Its weight files are beside the model's, under names that begin with ``clip-``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import onnx_ir as ir

from trtprune.arguments import arg
from trtprune.checkpoint import Checkpoint, resolve
from trtprune.checkpoint.of_build import CLIP_CONFIG, CLIP_PREFIX, CLIP_TOKENIZER
from trtprune.checkpoint.safetensors import TensorInfo, parse_json, read_header
from trtprune.components import clip as clip_tower
from trtprune.components.clip_text import TextTowerConfig, build_text_tower, text_tower_weights
from trtprune.components.config import Section
from trtprune.components.vit import TowerConfig, linear_weights, norm_weights
from trtprune.engine_dir import WEIGHTS
from trtprune.errors import CheckpointError, EngineDirError, InputError, shown
from trtprune.graph import Graph, Lowering
from trtprune.graph.ops import layer_norm
from trtprune.models.weights import compare
from trtprune.text.process import TextModel

if TYPE_CHECKING:
    import numpy as np

    from trtprune.engine_dir import EngineDir

__all__ = ["Clip", "build_clip_text", "check_tower", "clip_of_build", "open_clip", "project_patches"]

ROOT = "clip."
"""Prefix of the names of its tensors, to keep them apart from the model's."""
TEXT, VISION = ROOT + "text_model.", ROOT + "vision_model."
TEXT_PROJECTION, VISUAL_PROJECTION = ROOT + "text_projection", ROOT + "visual_projection"

DIGEST_VALUES = 128
SAMPLES = 4096
# Rounded weights have a correlation of 1, weights of another training of about 0; fine-tuning changes them little.
SAME_TOWER = 0.9
ROUNDING = 2.0**-7


@dataclass(frozen=True)
class Clip:
    """The checked checkpoint.

    Attributes:
        checkpoint: The checkpoint's files.
        text: Sizes of its text tower.
        vision: Sizes of its vision tower.
        tensors: Key, with :data:`ROOT`, → tensor, with the file name that it has in a build.
        tokenizer: Text of its ``tokenizer.json``, set to split a text into segments that fit the tower.
        digest: Digest of all of this and a few bytes of each used tensor.
    """

    checkpoint: Checkpoint
    text: TextTowerConfig
    vision: TowerConfig
    tensors: Mapping[str, TensorInfo]
    tokenizer: str
    digest: str

    @property
    def width(self) -> int:
        """P, the width of the joint space of images and texts."""
        return self.text.projection_size

    @property
    def files(self) -> dict[str, str]:
        """Names of the weight files in a build → those in the checkpoint."""
        return {_placed(file): file for file in self.checkpoint.files}


def open_clip(name: str | os.PathLike[str], *, progress: Callable[[str], None] | None = None) -> Clip:
    """Finds and reads a CLIP checkpoint.

    Args:
        name: Alias, hub id or directory, as for ``--model``.
        progress: Called with one line per step of a download.

    Raises:
        CheckpointError: naming ``clip`` and the fault.
    """
    given = arg("clip", os.fspath(name))
    try:
        checkpoint = resolve(name, progress=progress, check=_check_config, argument="clip")
        tokenizer = checkpoint.text_file("tokenizer.json")
        if tokenizer is None:
            raise CheckpointError(
                "tokenizer.json is missing",
                hint="AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) in transformers writes it",
            )
        return _read(checkpoint, tokenizer)
    except CheckpointError as error:
        message, hint = error.marked_message, error.marked_hint
        if not error.message.startswith(("clip=", "clip is")):
            message = f"{given}: {message.removeprefix(f'{os.fspath(name)}: ')}"
        if "neither model.safetensors" in message or "only pickled weights" in message:
            hint = (
                "in transformers: CLIPModel.from_pretrained(ID).save_pretrained(DIR) and "
                f"AutoTokenizer.from_pretrained(ID).save_pretrained(DIR), then {arg('clip', 'DIR')}"
            )
        raise CheckpointError(message, hint=hint) from None


def clip_of_build(made: EngineDir) -> Clip | None:
    """The CLIP checkpoint in an engine directory; None if there is none.

    Raises:
        CheckpointError: if its files are damaged.
    """
    if CLIP_CONFIG not in made.files or CLIP_TOKENIZER not in made.files:
        return None
    path = made.path(CLIP_CONFIG)
    names = sorted(name for name in made.weight_files() if name.startswith(CLIP_PREFIX))
    headers = {name: read_header(made.path(f"{WEIGHTS}/{name}")) for name in names}
    checkpoint = Checkpoint(
        made.root,
        parse_json(path.read_bytes(), path, "config"),
        {name: info for header in headers.values() for name, info in header.tensors.items()},
        tuple(names),
        made.built_with.get("clip", "clip"),
        weights=made.root / WEIGHTS,
        _headers=headers,
    )
    return _read(checkpoint, made.path(CLIP_TOKENIZER).read_text(encoding="utf-8"))


def _check_config(checkpoint: Checkpoint) -> None:
    """Refuses a checkpoint that is not CLIP, before its weights are fetched."""
    kind = checkpoint.config.get("model_type")
    if kind != "clip":
        raise CheckpointError(
            f"config.json: model_type is {shown(kind)}, not 'clip'",
            hint="a checkpoint of transformers' CLIPModel, such as openai/clip-vit-large-patch14-336",
        )


def _read(checkpoint: Checkpoint, tokenizer: str) -> Clip:
    _check_config(checkpoint)
    config = Section(checkpoint.config, "")
    text_section, vision_section = (_section(config, name) for name in ("text_config", "vision_config"))
    text = TextTowerConfig.read(text_section, config.integer("projection_dim", 512))
    vision = clip_tower.read_config(vision_section, None)
    tensors = {ROOT + name: replace(info, file=_placed(info.file)) for name, info in checkpoint.tensors.items()}
    required = {
        **text_tower_weights(text, TEXT, TEXT_PROJECTION),
        **norm_weights(f"{VISION}post_layernorm", vision.hidden_size),
        **linear_weights(VISUAL_PROJECTION, text.projection_size, vision.hidden_size, bias=False),
    }
    try:
        compare(required, tensors, [".*"], allow_extra=True)
    except CheckpointError as error:  # in the words of the file
        raise CheckpointError(error.marked_message.replace(f"'{ROOT}", "'"), hint=error.marked_hint) from None
    prepared = _prepare_tokenizer(tokenizer, text)
    digest = hashlib.sha256()
    for part in (json.dumps(checkpoint.config, sort_keys=True), prepared):
        digest.update(hashlib.sha256(part.encode()).digest())
    for name in sorted(required):
        info = tensors[name]
        values = checkpoint.read(info.name).reshape(-1)
        middle = values[len(values) // 2 :][:DIGEST_VALUES]
        digest.update(f"{name}:{info.dtype}:{info.shape}\n".encode() + middle.tobytes())
    return Clip(checkpoint, text, vision, tensors, prepared, "sha256:" + digest.hexdigest())


def _placed(file: str) -> str:
    return file if file.startswith(CLIP_PREFIX) else CLIP_PREFIX + file


def _section(config: Section, name: str) -> Section:
    """The section ``name``, with the entries of ``name_dict`` in old files replacing its own."""
    old = config.section(f"{name}_dict").values
    return Section({**config.section(name).values, **old}, name)


def _prepare_tokenizer(text: str, cfg: TextTowerConfig) -> str:
    """``tokenizer.json`` that splits long texts, checked against the tower.

    Raises:
        CheckpointError: if it does not add one token before and the tower's end-of-text token behind a text.
    """
    try:
        # A file of unknown origin can make the library take hours; see trtprune.text.
        found = TextModel("clip", text=text, name="tokenizer.json", length=cfg.max_positions).info
    except (EngineDirError, InputError) as error:
        raise CheckpointError(error.marked_message, hint=error.marked_hint) from None
    around, size = found["around"], found["size"]
    if size > cfg.vocab_size:
        raise CheckpointError(
            f"tokenizer.json: has ids up to {size - 1}, the text tower {cfg.vocab_size} of them",
            hint="the tokenizer is not that of these weights",
        )
    end = cfg.eos_token_id if cfg.eos_token_id is not None else size - 1
    if len(around) != 2 or around[1] != end:
        raise CheckpointError(
            f"tokenizer.json: puts tokens {around} around a text; the text tower reads what ends with {end}",
            hint="CLIP's tokenizer adds <|startoftext|> and <|endoftext|>; config.json: text_config.eos_token_id "
            "names the latter",
        )
    return str(found["text"])


def check_tower(
    clip: Clip,
    tower: TowerConfig,
    tensors: Mapping[str, TensorInfo],
    prefix: str,
    read: Callable[[str], np.ndarray],
    layers: Sequence[int],
) -> list[str]:
    """Checks that a model's vision tower is that of the CLIP checkpoint.

    Args:
        clip: The checkpoint.
        tower: The model's tower.
        tensors: The model's tensors by canonical name.
        prefix: Prefix of its tower's names.
        read: Returns the model's tensor for a name in the file.
        layers: Indices of the hidden states that feed the projector.

    Returns:
        Warnings: the weights are near those of the CLIP, not equal.

    Raises:
        CheckpointError: if it is another tower.
    """
    given = arg("clip", clip.checkpoint.id)
    other = f"a {arg('method')} that needs no CLIP text, and no {arg('clip')}"
    hint = "the CLIP checkpoint that the model's vision tower was taken from"
    if tower.model_type != clip.vision.model_type:
        raise CheckpointError(
            f"{given}: the model's vision tower is a {tower.model_type}, not CLIP's",
            hint=other,
        )
    if len(layers) != 1:
        raise CheckpointError(
            f"{given}: the model's projector reads {len(layers)} layers of its vision tower; CLIP's reads one",
            hint=other,
        )
    deepest = max(layers)
    for field in fields(TowerConfig):
        theirs, ours = getattr(clip.vision, field.name), getattr(tower, field.name)
        if theirs != ours:
            raise CheckpointError(
                f"{given}: not the CLIP of this model: its vision_config has {field.name} {theirs}, the model's {ours}",
                hint=hint,
            )
    names = ["embeddings.class_embedding", "embeddings.position_embedding.weight"]
    for layer in sorted({0, deepest // 2, max(deepest - 1, 0)} & set(range(deepest))):
        names += [f"encoder.layers.{layer}.self_attn.q_proj.weight", f"encoder.layers.{layer}.mlp.fc2.weight"]
    changed = False
    for name in names:
        info = clip.tensors.get(VISION + name)
        if info is None:
            raise CheckpointError(f"{given}: lacks tensor 'vision_model.{name}'", hint=hint)
        own = tensors[prefix + name]
        theirs = _sample(clip.checkpoint.read(info.name))
        ours = _sample(read(own.name))
        if theirs.shape != ours.shape or not _correlation(theirs, ours) > SAME_TOWER:
            raise CheckpointError(
                f"{given}: not the CLIP of this model: the weights of vision_model.{name} are others", hint=hint
            )
        changed |= bool((abs(theirs - ours) > ROUNDING * abs(theirs) + 1e-5).any())
    if changed:
        return [
            f"CLIP {clip.checkpoint.id}: the model's vision tower was trained on from this one, whose text may fit it "
            "less well"
        ]
    return []


def _sample(values: np.ndarray) -> np.ndarray:
    """About :data:`SAMPLES` numbers at even distances in a tensor, float32."""
    import numpy as np

    flat = values.reshape(-1)
    with np.errstate(over="ignore"):
        return flat[:: max(1, len(flat) // SAMPLES)].astype(np.float32)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    import numpy as np

    a, b = a.astype(np.float64), b.astype(np.float64)
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    if size == 0:
        return float((a == b).all())
    return float(a @ b) / size


def build_clip_text(clip: Clip, *, dtype: str, lowering: Lowering, fixed_length: bool) -> Graph:
    """The graph ``clip_text``; reads no weight.

    Args:
        clip: The checkpoint.
        dtype: Compute dtype.
        lowering: Forms of the operators.
        fixed_length: Whether every segment is padded to the tower's full length.  Engines are built for it; on a
            processor a short question without padding is several times faster.
    """
    g = Graph("clip_text", dtype=dtype, lowering=lowering, tensors=clip.tensors)
    build_text_tower(g, clip.text, TEXT, TEXT_PROJECTION, fixed_length=fixed_length)
    return g


def project_patches(g: Graph, clip: Clip, hidden: ir.Value) -> ir.Value:
    """``clip_image_embeds``: a hidden state [B, N, C] of the tower in the space of ``clip_text_embeds``, [B, N, P].

    The product is in float32, as in CDPruner's code, unless the backend has no such products.
    """
    normed = layer_norm(g, hidden, f"{VISION}post_layernorm", eps=clip.vision.norm_eps)
    dtype = ir.DataType.FLOAT if g.lowering.products == "op" else g.dtype
    weight = g.weight(f"{VISUAL_PROJECTION}.weight", dtype=dtype)
    return g.op.MatMul(g.cast(normed, dtype), g.op.Transpose(weight, perm=[1, 0]))
