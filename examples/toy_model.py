"""The model that the example serves: a transformer with random weights. What it says is noise; how it is loaded is real."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

VOCABULARY = 4096
HEADS = 8
MLP_RATIO = 4
ATTENTION = ("q", "k", "v", "o")


class Config(NamedTuple):
    """What tells one model of this family from another."""

    width: int
    blocks: int


class Linear(nn.Linear):
    """A linear layer without bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def reset_parameters(self) -> None:
        """Draw no random weights: they come from a file. On the meta device the drawing takes longer than to read them."""


class Embedding(nn.Embedding):
    """A vector for each token."""

    def reset_parameters(self) -> None:
        """Draw none, as in `Linear`."""


class Attention(nn.Module):
    """Self-attention over the whole sequence."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for name in ATTENTION:
            setattr(self, name, Linear(width, width))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Mix the positions of *hidden* (positions, width)."""
        positions, width = hidden.shape
        q, k, v = (getattr(self, name)(hidden).view(positions, HEADS, -1).transpose(0, 1) for name in "qkv")
        weights = torch.softmax(q @ k.transpose(1, 2) * (width // HEADS) ** -0.5, dim=-1)
        mixed: torch.Tensor = self.o((weights @ v).transpose(0, 1).reshape(positions, width))
        return mixed


class Block(nn.Module):
    """Attention, then a multilayer perceptron."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = Attention(width)
        self.up = Linear(width, MLP_RATIO * width)
        self.down = Linear(MLP_RATIO * width, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map *hidden* (positions, width) to the same shape."""
        hidden = hidden + self.attention(_normalize(hidden))
        widened: torch.Tensor = nn.functional.silu(self.up(_normalize(hidden)))
        return hidden + self.down(widened)


class Transformer(nn.Module):
    """Tokens to the logits of the next token."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embedding = Embedding(VOCABULARY, config.width)
        self.blocks = nn.ModuleList(Block(config.width) for _ in range(config.blocks))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the logits (vocabulary,) after *tokens* (positions,)."""
        hidden = self.embedding(tokens)
        for block in self.blocks:
            hidden = block(hidden)
        return _normalize(hidden)[-1] @ self.embedding.weight.t()


def _normalize(hidden: torch.Tensor) -> torch.Tensor:
    return nn.functional.layer_norm(hidden, hidden.shape[-1:])
