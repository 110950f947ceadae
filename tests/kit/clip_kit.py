"""A tiny CLIP checkpoint whose vision tower is that of a tiny LLaVA, with CLIP's own kind of tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.kit import tiny
from tests.kit.tiny import draw

WIDTH = 24
LENGTH = 77
VOCAB = 530
END = VOCAB - 1


@dataclass
class ClipKit:
    """The checkpoint, and how transformers reads it."""

    path: Path
    model: Any
    tokenizer: Any

    @classmethod
    def make(
        cls, path: Path, t: tiny.Tiny, tower: Any, *, seed: int = 7, dtype: str = "float32", **text: Any
    ) -> ClipKit:
        """Writes it.

        Args:
            path: Directory.
            t: Of the LLaVA model.
            tower: The model's vision tower in transformers, whose weights it gets; None: weights of its own.
            seed: Of the weights.
            dtype: They are stored in.
            text: Further ``text_config`` entries.
        """
        values = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": VOCAB,
            "max_position_embeddings": LENGTH,
            "bos_token_id": VOCAB - 2,
            "eos_token_id": END,
            "projection_dim": WIDTH,
        }
        config = transformers.CLIPConfig(
            text_config={**values, **text}, vision_config=tiny.vision_config(t).to_dict(), projection_dim=WIDTH
        )
        model = transformers.CLIPModel(config)
        for i, part in enumerate(model.children()):
            draw(part, seed + i, False)
        if tower is not None:
            model.vision_model.load_state_dict(tower.state_dict())
        model.to(getattr(torch, dtype)).save_pretrained(path)
        write_tokenizer(path)
        return cls(path, load(path), transformers.CLIPTokenizer.from_pretrained(path))

    def text_embeds(self, ids: Any) -> torch.Tensor:
        """[M, P] of int64 [M, length] ids."""
        with torch.no_grad():
            return self.model.get_text_features(torch.as_tensor(ids)).pooler_output

    def image_embeds(self, hidden: torch.Tensor) -> torch.Tensor:
        """[B, N, P] of a hidden state of the tower: CLIP's own head, on every token."""
        with torch.no_grad():
            return self.model.visual_projection(self.model.vision_model.post_layernorm(hidden))


def load(path: Path) -> Any:
    """The checkpoint in transformers, in float32."""
    return transformers.CLIPModel.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


def write_tokenizer(path: Path, vocab_size: int = VOCAB) -> None:
    """``tokenizer.json`` as CLIP's: lower case, byte-level pairs with a mark at the end of words, a token around."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e</w>"), ("i", "s</w>"), ("o", "n</w>"), ("a", "t</w>"), ("w", "h")]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    words += [f"<unused{i}>" for i in range(vocab_size - 2 - len(words))]
    vocab = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    transformers.CLIPTokenizer(vocab=vocab, merges=merges).save_pretrained(path)
