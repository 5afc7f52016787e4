"""Frozen linear layers whose weight is kept in 8 bits, and made whole where it is used.

A weight is kept as whole numbers from -127 to 127 and a scale per output row. Of weights spread
like a normal distribution that keeps all but 0.9 % (root mean square); the 8-bit floats of Kohya's
fp8_base (e4m3), scaled or not, keep all but 2.6 %, and are not there on every device.
"""

from __future__ import annotations

import re
from typing import Final

import torch
from torch import Tensor, nn

from anima_pipe.adapters.frozen import frozen_product
from anima_pipe.adapters.inject import walk

LARGEST: Final = 127
"""Of the whole numbers; -128 would make the range lopsided."""


class EightBitLinear(nn.Linear):
    """A frozen linear layer in 8 bits; its output has the dtype of its input.

    Args:
        layer: The layer as it was, which may be freed.
    """

    scale: Tensor

    @torch.no_grad()
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.weight = nn.Parameter(
            torch.empty_like(layer.weight, dtype=torch.int8), requires_grad=False
        )
        self.register_buffer("scale", layer.weight.new_empty(len(layer.weight), 1).bfloat16())
        self.bias = layer.bias
        self.take(layer.weight)

    @torch.no_grad()
    def take(self, weight: Tensor) -> None:
        """Keep another weight, Float[out, in]."""
        exact = weight.float()
        scale = exact.abs().amax(1, keepdim=True) / LARGEST
        # A bf16 number no smaller, so that nothing is cut off and bf16 arithmetic is exact in it.
        scale = (scale * (1 + 2**-8)).bfloat16().masked_fill(scale == 0, 1)
        self.scale.copy_(scale)
        self.weight.copy_((exact / scale.float()).round())

    def weight_in(self, dtype: torch.dtype) -> Tensor:
        """Return the weight, Float[out, in], in a dtype; see `FrozenLinear`."""
        return from_eight_bits(self.weight, self.scale, dtype)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name for it
        """Return the layer's output, Float[..., out], of Float[..., in]."""
        return frozen_product(input, self)


def from_eight_bits(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the numbers that 8 bits stand for.

    Args:
        weight: Int8[out, in].
        scale: BFloat16[out, 1].
        dtype: Of what is returned.

    Returns:
        Float[out, in].
    """
    if dtype == torch.bfloat16:
        return weight * scale
    return (weight * scale.float()).to(dtype)


def keep_in_eight_bits(model: nn.Module, pattern: str) -> int:
    """Keep the weights of frozen linear layers in 8 bits from now on.

    Args:
        model: No adapter is on it yet.
        pattern: A regular expression that is the whole path of each of the layers.

    Returns:
        How many layers that are.
    """
    chosen = [
        (path, module)
        for path, module in walk(model)
        if type(module) is nn.Linear and re.fullmatch(pattern, path)
    ]
    for path, layer in chosen:
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, EightBitLinear(layer))
    return len(chosen)
