"""Baking changes into the weights that they are of."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from anima_pipe.adapters.delta import effective_weights
from anima_pipe.adapters.eight_bit import EightBitLinear


@torch.no_grad()
def add_changes(root: nn.Module, changes: Mapping[str, Tensor]) -> None:
    """Add changes to a module's own weights.

    The sum is made in fp32 and rounded once, to the dtype of the weight.

    Args:
        root: Under all wrappers.
        changes: By parameter, fp32, in its shape.
    """
    own, before = dict(root.named_parameters(recurse=False)), effective_weights(root)
    for name, change in changes.items():
        merged = before[name] + change
        if isinstance(root, EightBitLinear) and name == "weight":
            root.take(merged)
        else:
            own[name].copy_(merged)
