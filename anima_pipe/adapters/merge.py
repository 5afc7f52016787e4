"""Baking deltas into the weights they change."""

from __future__ import annotations

import torch
from torch import nn

from anima_pipe.adapters.delta import Delta, effective_weights, root_module
from anima_pipe.adapters.eight_bit import EightBitLinear


@torch.no_grad()
def merge_delta(module: nn.Module, delta: Delta) -> None:
    """Add a delta's change to the weights of the module under it.

    The sum is made in fp32 and rounded once, to the dtype of the weight.

    Args:
        module: The module that the delta was put on, perhaps adapted itself.
        delta: At the strength to bake in.
    """
    weights, root = effective_weights(module), root_module(module)
    own, before = dict(root.named_parameters(recurse=False)), effective_weights(root)
    for name, change in delta.weight_changes(weights).items():
        merged = before[name] + change * delta.strength
        if isinstance(root, EightBitLinear) and name == "weight":
            root.take(merged)
        else:
            own[name].copy_(merged)
