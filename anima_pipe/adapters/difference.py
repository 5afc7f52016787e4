"""A parameter's whole change, as files call it `diff`; and `diff_b`, that of the bias.

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
    """The change of a linear layer, an embedding or a norm, as large as its parameters.

    Args:
        weight: Float32[out, in] or Float32[n]; None where the bias alone changes.
        bias: Float32[out] or Float32[n]; None where the weight alone changes.
    """

    group: ClassVar[str] = "linear"
    own_names: ClassVar[tuple[str, ...]] = ("diff",)
    tensor_names: ClassVar[tuple[str, ...]] = ("diff", "diff_b")

    def __init__(self, weight: Tensor | None, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = None if weight is None else nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)

    @classmethod
    def from_file(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Return the delta that a file's tensors describe; see `Delta.from_file`."""
        weight = tensors.get("diff")
        if weight is not None and weight.ndim not in (1, 2):
            raise CheckpointError(
                f"diff has shape {tuple(weight.shape)}",
                "only adapters of linear layers and norms can be used here",
            )
        bias = take(tensors, "diff_b", 1) if "diff_b" in tensors else None
        return cls(None if weight is None else take(tensors, "diff", weight.ndim), bias)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the parameters that change."""
        return {name: tuple(value.shape) for name, value in self.named_parameters()}

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the changes by their names in a file."""
        named = {"diff": self.weight, "diff_b": self.bias}
        return {name: value for name, value in named.items() if value is not None}

    def weight_changes(self, _weights: Mapping[str, Tensor], /) -> dict[str, Tensor]:
        """Return the change of each parameter that has one; see `Delta.weight_changes`."""
        return dict(self.named_parameters())

    def forward(self, base: nn.Module, x: Tensor) -> Tensor:
        """Return what the changed module gives; see `Delta.forward`."""
        if self.strength == 0:
            return base(x)
        if self.weight is not None and self.weight.ndim == 1:
            return self._as_norm(base, x)
        output = base(x)
        if self.weight is not None:
            change = (self.weight * self.strength).to(output.dtype)
            # Whole numbers are the rows of an embedding that are asked for.
            act = nn.functional.linear if x.is_floating_point() else nn.functional.embedding
            output = output + act(x, change)
        return output if self.bias is None else output + (self.bias * self.strength).to(x.dtype)

    def _as_norm(self, base: nn.Module, x: Tensor) -> Tensor:
        """Return what a norm gives with its weight changed, computed in fp32."""
        weights = effective_weights(base)
        changed = {**weights, **changed_weights(self, weights)}
        exact = torch.promote_types(x.dtype, torch.float32)
        return functional_call(root_module(base), changed, x.to(exact)).to(x.dtype)
