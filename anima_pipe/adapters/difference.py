"""A weight's whole change, as files call it `diff`; and `diff_b`, that of the bias.

Nothing starts like this here: such tensors come of files, and of merging what has no smaller form.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from anima_pipe.adapters.delta import (
    Delta,
    changed_weights,
    effective_weights,
    root_module,
    take,
)
from anima_pipe.errors import CheckpointError


class DifferenceDelta(Delta):
    """The change of one linear layer or norm, as large as its parameters.

    Args:
        weight: Float32[out, in] or Float32[n].
        bias: Float32[out] or Float32[n], or None where the bias stays.
    """

    group: ClassVar[str] = "linear"
    tensor_names: ClassVar[tuple[str, ...]] = ("diff", "diff_b")

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)

    @classmethod
    def from_file(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Return the delta that a file's tensors describe; see `Delta.from_file`."""
        axes = tensors["diff"].ndim if "diff" in tensors else 2
        if axes > 2:
            raise CheckpointError(
                f"diff has shape {tuple(tensors['diff'].shape)}",
                "only adapters of linear layers and norms can be used here",
            )
        bias = take(tensors, "diff_b", 1) if "diff_b" in tensors else None
        return cls(take(tensors, "diff", axes), bias)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the weight and, if it changes, the bias."""
        return {name: tuple(value.shape) for name, value in self.named_parameters()}

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the changes by their names in a file."""
        bias = {} if self.bias is None else {"diff_b": self.bias}
        return {"diff": self.weight, **bias}

    def weight_changes(self, _weights: Mapping[str, Tensor], /) -> dict[str, Tensor]:
        """Return the change of each parameter that has one; see `Delta.weight_changes`."""
        return dict(self.named_parameters())

    def forward(self, base: nn.Module, x: Tensor) -> Tensor:
        """Return what the changed module gives; see `Delta.forward`."""
        if self.strength == 0:
            return base(x)
        if self.weight.ndim == 2:
            bias = None if self.bias is None else (self.bias * self.strength).to(x.dtype)
            change = (self.weight * self.strength).to(x.dtype)
            return base(x) + nn.functional.linear(x, change, bias)
        weights = effective_weights(base)
        changed = {**weights, **changed_weights(self, weights)}
        exact = torch.promote_types(x.dtype, torch.float32)
        return functional_call(root_module(base), changed, x.to(exact)).to(x.dtype)
