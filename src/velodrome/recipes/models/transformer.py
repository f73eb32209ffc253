"""A decoder-only transformer: GPT in a size that learns a novel's letters on a laptop."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from velodrome.errors import ArgumentError, DataError

__all__ = ["GPT", "gpt"]

Auto = Literal["auto"]
Share = Annotated[float, Field(ge=0, lt=1)]


class Attention(nn.Module):
    """Each position gathers from itself and the positions before it. Shapes: (N, T, width) to the same."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return what each position gathered."""
        batch, length, width = x.shape
        heads = self.query_key_value(x).view(batch, length, 3, self.num_heads, width // self.num_heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each (N, heads, T, width / heads)
        dropout = self.dropout if self.training else 0.0
        gathered = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        return self.output(gathered.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    """Attention, then two linear layers, each added to what it read: `x + f(norm(x))`."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, num_heads, dropout)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the next layer's input, of the same shape."""
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class GPT(nn.Module):
    """Predicts each next token from those before it.

    Learned positions, norms before each part, one matrix for reading tokens and for scoring them.

    Shapes: token ids (N, T), with T up to `context`, to logits (N, vocab_size, T): classes in dimension 1, as
    cross entropy wants them against targets (N, T).
    Source: A. Radford, J. Wu, R. Child, D. Luan, D. Amodei and I. Sutskever, "Language Models are Unsupervised Multitask
        Learners", 2019, section 2.3 (norm first, initialisation); O. Press and L. Wolf, "Using the Output Embedding to
        Improve Language Models", 2017 (the shared matrix).
    """

    def __init__(
        self, *, vocab_size: int, context: int, num_layers: int, num_heads: int, width: int, dropout: float
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, num_heads, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        self.apply(_initialise)
        # 2 x num_layers parts are added up: each starts smaller, so that the sum does not grow with the depth.
        for name, parameter in self.named_parameters():
            if name.endswith(("attention.output.weight", "feed_forward.2.weight")):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * num_layers))

    def forward(self, ids: Tensor) -> Tensor:
        """Return the scores of every token at every position.

        Raises:
            DataError: more positions than the model has, or no (N, T).
        """
        if ids.ndim != 2 or ids.shape[1] > len(self.positions.weight):
            raise DataError(
                f"The token ids have shape {tuple(ids.shape)}. They must be (samples, positions) with at most "
                f"{len(self.positions.weight)} positions: use shorter windows, or a model with a larger context."
            )
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        # The shared matrix is used, not assigned to a second layer: one name in files, one entry in the optimizer.
        return F.linear(self.norm(x), self.tokens.weight).transpose(1, 2)


def gpt(
    vocab_size: PositiveInt | Auto = "auto",
    context: PositiveInt | Auto = "auto",
    num_layers: PositiveInt = 4,
    num_heads: PositiveInt = 4,
    width: PositiveInt = 128,
    dropout: Share = 0.1,
) -> nn.Module:
    """Build a small GPT.

    Args:
        vocab_size: number of different tokens; "auto" in a recipe counts those of the data.
        context: the most positions that it can look back over; "auto" in a recipe takes the data's window.
        num_layers: blocks of attention and two linear layers.
        num_heads: of attention; must divide `width`.
        width: numbers a position carries from block to block.
        dropout: share that is dropped of the embeddings, the attention and each block's additions.
    Raises:
        ArgumentError: a number is out of range, or the heads do not divide the width.
    """
    numbers = {
        "vocab_size": vocab_size, "context": context, "num_layers": num_layers, "num_heads": num_heads, "width": width,
    }  # fmt: skip
    for name, value in numbers.items():
        if not isinstance(value, int) or value <= 0:
            raise ArgumentError(
                f'{name}={value!r} must be a positive number. Only a recipe may say "auto", and only for vocab_size and context.'
            )
    if width % num_heads:
        raise ArgumentError(
            f"num_heads={num_heads} does not divide width={width} ({width} % {num_heads} = {width % num_heads}). "
            f"Use width={width - width % num_heads or num_heads} or width={width - width % num_heads + num_heads}."
        )
    if not 0 <= dropout < 1:
        raise ArgumentError(f"dropout={dropout} must be at least 0 and less than 1. Use 0.1, or 0 for none.")
    assert isinstance(vocab_size, int)
    assert isinstance(context, int)
    return GPT(
        vocab_size=vocab_size,
        context=context,
        num_layers=num_layers,
        num_heads=num_heads,
        width=width,
        dropout=dropout,
    )


def _initialise(module: nn.Module) -> None:
    """Draw weights with a standard deviation of 0.02 and set biases to zero, as GPT-2 does."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        with torch.no_grad():
            module.bias.zero_()
