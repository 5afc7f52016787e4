"""Frozen linear layers sharded over processes: each keeps some rows, and gathers all to use it.

What is frozen needs no gradient, so nothing but the weight is ever exchanged. It is asked for where
it is multiplied by, in the forward and in the backward pass, and gone when that is done: a process
holds its part of the model, and of one layer the whole. All processes have to run the same layers
in the same order. The weight that comes out is the layer's to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
import torch.distributed
from torch import Tensor, nn

from anima_pipe.adapters.eight_bit import EightBitLinear, from_eight_bits
from anima_pipe.adapters.frozen import frozen_product
from anima_pipe.adapters.inject import walk
from anima_pipe.runtime import Rank

_gather: Final[Callable[[Tensor, Tensor], object]] = getattr(
    torch.distributed,
    # Its name from torch 2.13 on, where the older one warns.
    "all_gather_single"
    if hasattr(torch.distributed, "all_gather_single")
    else "all_gather_into_tensor",
)
"""Puts the second tensor of each process into the first of all, one behind the other."""


class ShardedLinear(nn.Linear):
    """A frozen linear layer of whose weight a process keeps its share of the rows.

    Args:
        layer: The layer as it was, which may be freed.
        rank: Which of the processes this is.
    """

    @torch.no_grad()
    def __init__(self, layer: nn.Linear, rank: Rank) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.weight = nn.Parameter(_own_rows(layer.weight, rank), requires_grad=False)
        self.bias = layer.bias
        self._processes = rank.processes

    def weight_in(self, dtype: torch.dtype) -> Tensor:
        """Return the whole weight, Float[out, in], in a dtype; see `FrozenLinear`."""
        return self._whole(self.weight).to(dtype)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name for it
        """Return the layer's output, Float[..., out], of Float[..., in]."""
        return frozen_product(input, self)

    @torch.no_grad()
    def _whole(self, own: Tensor) -> Tensor:
        """Return all rows, [out, ...], where each process has its own, [rows, ...]."""
        rows = own.new_empty(len(own) * self._processes, *own.shape[1:])
        _gather(rows, own)
        return rows[: self.out_features]


class ShardedEightBitLinear(ShardedLinear):
    """The same of a layer whose weight is kept in 8 bits; they are what is gathered.

    Args:
        layer: As for `ShardedLinear`.
        rank: As for `ShardedLinear`.
    """

    scale: Tensor

    def __init__(self, layer: EightBitLinear, rank: Rank) -> None:
        super().__init__(layer, rank)
        self.register_buffer("scale", _own_rows(layer.scale, rank))

    def weight_in(self, dtype: torch.dtype) -> Tensor:
        """Return the whole weight, Float[out, in], in a dtype; see `FrozenLinear`."""
        return from_eight_bits(self._whole(self.weight), self._whole(self.scale), dtype)


def shard(model: nn.Module, rank: Rank) -> None:
    """Leave a process its part of the frozen linear layers, which hold most of the weights.

    Norms, biases and embeddings stay whole.

    Args:
        model: The same on every process; no adapter is on it yet.
        rank: Which of the processes this is.
    """
    for path, layer in list(walk(model)):
        if type(layer) is nn.Linear:
            sharded = ShardedLinear(layer, rank)
        elif isinstance(layer, EightBitLinear):
            sharded = ShardedEightBitLinear(layer, rank)
        else:
            continue
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, sharded)


def sharded_tensors(module: nn.Module) -> list[str]:
    """Return the names of the parameters and buffers that differ between processes."""
    return [
        f"{path}.{name}"
        for path, layer in module.named_modules()
        if isinstance(layer, ShardedLinear)
        for name in ("weight", "scale")
        if hasattr(layer, name)
    ]


def _own_rows(whole: Tensor, rank: Rank) -> Tensor:
    """Return a process's rows of [out, ...], a copy, with zeros where there are not enough."""
    count = -(-len(whole) // rank.processes)
    mine = whole.detach()[rank.number * count : (rank.number + 1) * count]
    own = whole.new_zeros(count, *whole.shape[1:])
    own[: len(mine)] = mine
    return own
