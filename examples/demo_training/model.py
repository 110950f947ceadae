"""The trainable model: frozen DINOv2 and SmolLM2 in bfloat16, a projector and LoRA deltas in float32.

Written out by hand instead of wrapping transformers' modules: q, k, v (and gate, up) are one matrix here and share
one low-rank input, which saves a third of the small operations that dominate a CPU step. ``evaluate.py`` checks the
result through transformers, so nothing here has to be trusted.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model

from trtprune.demo import _text, _vision

HEAD_DIM = _text.HIDDEN // _text.HEADS
KV = _text.KV_HEADS * HEAD_DIM
ROPE_THETA, EPS = 100000.0, 1e-5
# Group → (the stacked linear layers and their output rows, input width, rank).
GROUPS: dict[str, tuple[dict[str, int], int, int]] = {
    "qkv": ({"self_attn.q_proj": _text.HIDDEN, "self_attn.k_proj": KV, "self_attn.v_proj": KV}, _text.HIDDEN, 32),
    "o": ({"self_attn.o_proj": _text.HIDDEN}, _text.HIDDEN, 16),
    "gate_up": ({"mlp.gate_proj": _text.INTERMEDIATE, "mlp.up_proj": _text.INTERMEDIATE}, _text.HIDDEN, 32),
    "down": ({"mlp.down_proj": _text.HIDDEN}, _text.INTERMEDIATE, 16),
}
SCALE = 1.0


class Lora(nn.Module):
    """``x @ W.T + SCALE * (x @ A.T) @ B.T`` with W frozen; several layers that read one input are stacked."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.register_buffer("weight", weight.bfloat16(), persistent=False)
        out, width = weight.shape
        self.a = nn.Parameter(torch.randn(rank, width) / math.sqrt(width))
        self.b = nn.Parameter(torch.zeros(out, rank))

    def forward(self, x: Tensor) -> Tensor:
        low = F.linear(x, self.a.to(x.dtype))
        return F.linear(x, self.weight.to(x.dtype)) + SCALE * F.linear(low, self.b.to(x.dtype))


class Layer(nn.Module):
    """One Llama layer."""

    def __init__(self, weights: dict[str, Tensor], index: int) -> None:
        super().__init__()
        name = f"model.layers.{index}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            self.register_buffer(norm, weights[f"{name}{norm}.weight"].bfloat16(), persistent=False)
        for group, (members, _, rank) in GROUPS.items():
            stacked = torch.cat([weights[f"{name}{member}.weight"] for member in members])
            setattr(self, group, Lora(stacked, rank))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor) -> Tensor:
        batch, length, _ = x.shape
        y = F.rms_norm(x, (_text.HIDDEN,), self.input_layernorm.to(x.dtype), EPS)
        heads = self.qkv(y).view(batch, length, -1, HEAD_DIM).transpose(1, 2)
        qk, v = heads[:, : _text.HEADS + _text.KV_HEADS], heads[:, _text.HEADS + _text.KV_HEADS :]
        half = HEAD_DIM // 2
        qk = qk * cos + torch.cat([-qk[..., half:], qk[..., :half]], dim=-1) * sin
        q, k = qk[:, : _text.HEADS], qk[:, _text.HEADS :]
        # Plain matrix products, query heads grouped under the key head they share: on a CPU the backward of
        # scaled_dot_product_attention with a mask costs several times as much at these lengths.
        group = _text.HEADS // _text.KV_HEADS
        q = q.reshape(batch * _text.KV_HEADS, group * length, HEAD_DIM)
        k, v = (t.reshape(batch * _text.KV_HEADS, length, HEAD_DIM) for t in (k, v))
        scores = torch.bmm(q * HEAD_DIM**-0.5, k.transpose(1, 2)).view(batch, _text.HEADS, length, length) + bias
        weights = scores.softmax(-1).view(batch * _text.KV_HEADS, group * length, length)
        y = torch.bmm(weights, v).view(batch, _text.HEADS, length, HEAD_DIM)
        x = x + self.o(y.transpose(1, 2).reshape(batch, length, -1))
        y = F.rms_norm(x, (_text.HIDDEN,), self.post_attention_layernorm.to(x.dtype), EPS)
        gate, up = self.gate_up(y).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Projector(nn.Module):
    """Standardise (fixed, folded into ``linear_1`` at export) → linear → GELU → linear, all float32."""

    def __init__(self, mean: Tensor, std: Tensor, embedding_std: float) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.linear_1 = nn.Linear(_vision.HIDDEN, _text.HIDDEN)
        self.linear_2 = nn.Linear(_text.HIDDEN, _text.HIDDEN)
        nn.init.normal_(self.linear_1.weight, std=_vision.HIDDEN**-0.5)
        # Unit-variance input gives GELU an output of mean square ~0.43: start at the scale of word embeddings.
        nn.init.normal_(self.linear_2.weight, std=embedding_std / math.sqrt(0.43 * _text.HIDDEN))
        nn.init.zeros_(self.linear_1.bias)
        nn.init.zeros_(self.linear_2.bias)

    def forward(self, features: Tensor) -> Tensor:
        x = (features.float() - self.mean) / self.std
        return self.linear_2(F.gelu(self.linear_1(x)))


class DemoVlm(nn.Module):
    """Tower, projector and decoder; only the projector and the LoRA matrices are trainable."""

    def __init__(self, onnx_path: Path, gguf_path: Path, *, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.dtype = dtype
        self.vision = load_tower(onnx_path, dtype)
        weights = {k: torch.from_numpy(v) for k, v in _text.read_decoder(gguf_path).items()}
        table = weights["model.embed_tokens.weight"][: _text.VOCAB]
        self.register_buffer("table", table.bfloat16(), persistent=False)
        self.register_buffer("norm", weights["model.norm.weight"].bfloat16(), persistent=False)
        self.layers = nn.ModuleList(Layer(weights, i) for i in range(_text.LAYERS))
        self.projector = Projector(torch.zeros(_vision.HIDDEN), torch.ones(_vision.HIDDEN), float(table.std()))
        frequency = ROPE_THETA ** (-torch.arange(0, HEAD_DIM, 2).float() / HEAD_DIM)
        self.register_buffer("frequency", frequency, persistent=False)

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """float ``[n, 3, s, s]`` → the tower's penultimate patch features ``[n, (s / 14)^2, 384]``."""
        hidden = self.vision.embeddings(pixels.to(self.dtype))
        for layer in self.vision.encoder.layer:
            hidden = layer(hidden)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        return hidden[:, 1:]

    def hidden(self, embeds: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """``[b, l, 576]``, int ``[b, l]``, bool ``[b, 1, l, l]`` (True = attend) → normed states ``[b, l, 576]``."""
        angle = positions[:, None, :, None].float() * self.frequency
        angle = torch.cat([angle, angle], dim=-1)
        cos, sin = angle.cos().to(self.dtype), angle.sin().to(self.dtype)
        bias = torch.zeros(mask.shape, dtype=self.dtype).masked_fill_(~mask, -torch.inf)
        x = embeds.to(self.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin, bias)
        return F.rms_norm(x, (_text.HIDDEN,), self.norm.to(x.dtype), EPS)


def load_tower(onnx_path: Path, dtype: torch.dtype) -> Dinov2Model:
    """The first 11 of DINOv2's 12 layers, with the original position table so that any resolution works."""
    config = Dinov2Config(
        hidden_size=_vision.HIDDEN,
        num_hidden_layers=_vision.LAYERS,
        num_attention_heads=_vision.HEADS,
        image_size=518,
        patch_size=_vision.PATCH,
    )
    weights = {k: torch.from_numpy(v) for k, v in _vision.read_tower(onnx_path, grid=37).items()}
    tower = Dinov2Model.from_pretrained(None, config=config, state_dict=weights, dtype=dtype)
    tower.encoder.layer = tower.encoder.layer[:-1]
    return tower.eval().requires_grad_(False)


def trainable(model: DemoVlm) -> dict[str, Tensor]:
    """Name → parameter of what is trained, plus the two fixed statistics of the projector."""
    return {k: v for k, v in model.state_dict().items() if k.startswith("projector.") or k.endswith((".a", ".b"))}
