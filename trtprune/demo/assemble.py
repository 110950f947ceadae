"""Assemble the demo model: a real, small LLaVA checkpoint out of two packages and the weights trained for trtprune.

Needs neither torch nor transformers; the result is a normal transformers checkpoint directory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trtprune.demo import _files, _packages, _safetensors, _text, _vision
from trtprune.errors import CheckpointError
from trtprune.files.cache import cache_root
from trtprune.reports.downloads import Progress

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["PARTS", "TRAINED", "assemble", "lora_groups", "merge_deltas"]

TRAINED, CARD = "trained.safetensors", "CARD.md"
PARTS: dict[str, tuple[tuple[str, ...], str]] = {
    "demo": ((TRAINED,), CARD),
    "demo-signs": ((TRAINED, "signs.safetensors"), "SIGNS.md"),
}
"""Model → files of trained weights (tensors of later files replace those of earlier ones), and its card."""
# Part of the directory's name: raise it whenever the same inputs give other files.
FORMAT = "1"
FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    "README.md",
)

Array = npt.NDArray[Any]


def assemble(
    cache_dir: Path | None = None,
    *,
    name: str = "demo",
    progress: Callable[[str], None] | None = None,
    trained: Path | None = None,
) -> Path:
    """Build a demo checkpoint in the cache, or find an earlier one.

    Args:
        cache_dir: Folder of the checkpoint and the packages' wheels; see :func:`cache_root`.
        name: ``demo`` or ``demo-signs``.
        progress: Called with one line per step; a :class:`trtprune.reports.downloads.Progress` also shows the state of
            downloads.
        trained: A file of trained weights that replaces the last shipped one (the result of a training).

    Returns:
        Directory ``<name>-<digest>`` with config.json, model.safetensors (float16), tokenizer, chat template, image
        processor and model card. It appears only when complete, so a killed or second run does no harm.

    Raises:
        CheckpointError: gguf is not installed, a package cannot be found or downloaded, or a file is not the pinned
            one.
    """
    steps = Progress.of(progress)
    root = cache_root(cache_dir)
    data = Path(str(resources.files("trtprune.demo"))) / "data"
    names, card = PARTS[name]
    files = [data / part for part in names]
    if trained is not None:
        files[-1] = trained
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{file} is missing", hint="reinstall trtprune: its package data is incomplete")
    target = root / f"{name}-{_digest(files, data / card)}"
    if all((target / name).is_file() for name in FILES):
        return target
    _text.require_gguf()
    try:
        with _staging(root) as staging:
            _write(staging / "checkpoint", root / "downloads", files, data / card, steps)
            _publish(staging / "checkpoint", target)
    except OSError as error:
        raise CheckpointError(
            f"cannot write the demo checkpoint to {root}: {error.strerror or error}", hint="set TRTPRUNE_CACHE"
        ) from error
    return target


@contextlib.contextmanager
def _staging(root: Path) -> Iterator[Path]:
    """A working folder, removed at the end; folders of killed processes are removed now, if no other process works."""
    root.mkdir(parents=True, exist_ok=True)
    with _descriptor(root) as lock:
        if _take(lock, alone=True):
            for left in root.glob(".demo-*/"):
                shutil.rmtree(left, ignore_errors=True)
        # Shared from here on: other processes may work at the same time, and the lock keeps them from cleaning up.
        _take(lock, alone=False)
        staging = Path(tempfile.mkdtemp(prefix=".demo-", dir=root))
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextlib.contextmanager
def _descriptor(folder: Path) -> Iterator[int | None]:
    """A descriptor of the folder itself, which serves as the lock and leaves no file behind; None without one."""
    if fcntl is None:
        yield None
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _take(lock: int | None, *, alone: bool) -> bool:
    """Takes the lock, alone or together with others; whether that succeeded."""
    if lock is None:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
    except OSError:  # taken, or a file system without locks: then nothing is cleaned up
        return False
    return True


def lora_groups() -> dict[str, dict[str, int]]:
    """Group → the decoder layers it stacks and their output rows; layers that read one input share their A."""
    head = _text.HIDDEN // _text.HEADS
    return {
        "qkv": {
            "self_attn.q_proj": _text.HIDDEN,
            "self_attn.k_proj": _text.KV_HEADS * head,
            "self_attn.v_proj": _text.KV_HEADS * head,
        },
        "o": {"self_attn.o_proj": _text.HIDDEN},
        "gate_up": {"mlp.gate_proj": _text.INTERMEDIATE, "mlp.up_proj": _text.INTERMEDIATE},
        "down": {"mlp.down_proj": _text.HIDDEN},
    }


def merge_deltas(weights: dict[str, Array], trained: Mapping[str, Array]) -> None:
    """Add the LoRA products ``b @ a`` to the decoder's matrices, in place.

    Args:
        weights: ``model.layers.N.….weight`` → float32 ``[out, in]``.
        trained: ``layers.N.GROUP.a`` ``[rank, in]`` and ``layers.N.GROUP.b`` ``[sum of out, rank]``.
    """
    for layer in range(_text.LAYERS):
        for group, members in lora_groups().items():
            try:
                a, b = trained[f"layers.{layer}.{group}.a"], trained[f"layers.{layer}.{group}.b"]
            except KeyError as error:
                raise CheckpointError(f"the trained weights lack {error.args[0]}") from error
            start = 0
            for member, rows in members.items():
                weights[f"model.layers.{layer}.{member}.weight"] += b[start : start + rows] @ a
                start += rows


def _digest(trained: Sequence[Path], card: Path) -> str:
    """A digest of the inputs: the trained weights and their card, both packages, and the version of this recipe."""
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in trained))
    digest.update(card.read_bytes() if card.is_file() else b"")
    for part in (_packages.VISION.sha256, _packages.TEXT.sha256, FORMAT):
        digest.update(part.encode())
    return digest.hexdigest()[:12]


def _write(out: Path, downloads: Path, trained: Sequence[Path], card: Path, say: Progress) -> None:
    out.mkdir()
    onnx_path = _packages.fetch(_packages.VISION, downloads, out.parent, say)
    gguf_path = _packages.fetch(_packages.TEXT, downloads, out.parent, say)
    say("vision tower: DINOv2 ViT-S/14, position table to 24 x 24")
    deltas = {key: tensor for file in trained for key, tensor in _safetensors.read(file).items()}
    weights = {f"vision_tower.{k}": v for k, v in _vision.read_tower(onnx_path, grid=_files.GRID).items()}
    say("decoder: SmolLM2-135M-Instruct, dequantised, trained deltas merged")
    decoder = _text.read_decoder(gguf_path)
    merge_deltas(decoder, deltas)
    weights |= {f"language_model.{k}": v for k, v in decoder.items()}
    weights |= {k: v for k, v in deltas.items() if k.startswith("multi_modal_projector.")}
    say("writing model.safetensors")
    # Half the size of float32, and rounding changes the logits less than one training step; the embedding table and the
    # 4-bit matrices had 8 and 4 bits from the beginning.
    halves = {k: v.astype(np.float16) for k, v in weights.items()}
    _safetensors.write(out / "model.safetensors", halves, {"format": "pt"})
    (out / "tokenizer.json").write_text(_text.build_tokenizer(gguf_path), encoding="utf-8")
    (out / "chat_template.jinja").write_text(_files.CHAT_TEMPLATE, encoding="utf-8")
    for name, content in (
        ("config.json", _files.config()),
        ("generation_config.json", _files.generation_config()),
        ("preprocessor_config.json", _files.preprocessor_config()),
        ("processor_config.json", _files.processor_config()),
        ("tokenizer_config.json", _files.tokenizer_config()),
    ):
        (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    text = card.read_text(encoding="utf-8") if card.is_file() else "# trtprune demo model\n"
    (out / "README.md").write_text(text, encoding="utf-8")


def _publish(checkpoint: Path, target: Path) -> None:
    """Move the finished directory into place; if another process was first, its copy is equal."""
    if target.exists() and not all((target / name).is_file() for name in FILES):
        shutil.rmtree(target)  # not from this code, whose directories appear complete
    try:
        os.rename(checkpoint, target)
    except OSError:
        if not target.exists():
            raise
