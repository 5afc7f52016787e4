"""What the transformer's blocks keep of a batch for the backward pass, in bytes.

Counted off `blocks.py`: with N tokens of pictures, T positions of text, the width W and that of the
mlp M, a block keeps for its three sub-layers

    their inputs on the residual stream                           3 N W
    queries, keys, values and what self-attention gathered        4 N W
    the same of cross-attention                                   2 N W + 2 T W
    the mlp's inner numbers before their activation                 N M
    where the modulation trains, the updates of the stream        3 N W

What `recomputed` makes again, and a checkpointed block therefore holds while it runs again: three
modulated streams, where the modulation trains the normed ones that they are made of, queries and
keys in place, and the activated mlp. Where no kernel norms in one go
queries and keys are kept in fp32 as well: in half precision if their norms do not train, whose
weights are then kept in it, and in fp32 if they do. Ranks of adapters are small beside all this and
left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from anima_pipe.model.anima import CONDITION_LENGTH
from anima_pipe.model.blocks import residual_dtype
from anima_pipe.model.config import TransformerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSize:
    """How much goes through the model at once."""

    pictures: int
    tokens: int
    """Of each picture: an area of 16 by 16 pixels is one."""

    @property
    def picture_tokens(self) -> int:
        """N, of all pictures."""
        return self.pictures * self.tokens

    @property
    def text_tokens(self) -> int:
        """T, of all captions, none of which is longer than the model was made for."""
        return self.pictures * CONDITION_LENGTH


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """What decides how much of a batch is kept."""

    dtype: torch.dtype
    """Of the frozen weights."""
    checkpointed: bool
    modulation_trains: bool
    """Something trains that the modulations follow from."""
    head_norms_train: bool
    """The norms of queries and keys train."""
    fused_norms: bool
    """The device norms in one kernel, which keeps its input alone; CUDA does."""


def block_activations(config: TransformerConfig, batch: BatchSize, keeping: Keeping) -> int:
    """Return the bytes that all blocks keep from their forward to their backward pass."""
    once = residual_dtype(keeping.dtype).itemsize * batch.picture_tokens * config.width
    kept = kept_by_block(config, batch, keeping)
    if keeping.checkpointed:
        return config.blocks * once + kept + _remade(config, batch, keeping)
    return config.blocks * kept


def kept_by_block(config: TransformerConfig, batch: BatchSize, keeping: Keeping) -> int:
    """Return the bytes that one block keeps which is not checkpointed."""
    pictures, text, width = batch.picture_tokens, batch.text_tokens, config.width
    streams = 3 * pictures * width * (2 if keeping.modulation_trains else 1)
    attention = (6 * pictures + 2 * text) * width
    in_fp32 = keeping.dtype == torch.float32
    heads_in_fp32 = not keeping.fused_norms and keeping.head_norms_train == in_fp32
    return (
        residual_dtype(keeping.dtype).itemsize * streams
        + keeping.dtype.itemsize * (attention + pictures * config.mlp_width)
        + torch.float32.itemsize * heads_in_fp32 * (3 * pictures + text) * width
    )


def _remade(config: TransformerConfig, batch: BatchSize, keeping: Keeping) -> int:
    """Return the bytes of what a block makes again where it does not keep it."""
    pictures, text, width = batch.picture_tokens, batch.text_tokens, config.width
    streams = 6 if keeping.modulation_trains else 3
    numbers = ((streams + 3) * pictures + text) * width + pictures * config.mlp_width
    return keeping.dtype.itemsize * numbers


def block_weights(config: TransformerConfig) -> int:
    """Return how many numbers the large layers of all blocks hold, those that bear 8 bits."""
    width = config.width
    attention = 6 * width**2 + 2 * width * config.context_width
    return config.blocks * (attention + 2 * width * config.mlp_width)
