"""Norms: the weight (and bias) of a LayerNorm or RMSNorm plus a vector of the same length."""

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


def is_norm(module: nn.Module) -> bool:
    """Tell whether a module is a LayerNorm or RMSNorm, of torch or anyone else, with a weight."""
    named = type(module).__name__.endswith(("LayerNorm", "RMSNorm"))
    return named and isinstance(getattr(module, "weight", None), nn.Parameter)


class NormDelta(Delta):
    """The change of one norm's weight and, where it has one, bias.

    What trains is the difference from the frozen weight, so that weight decay pulls towards the
    model as it was and not towards zero.

    Args:
        weight: Float32[n].
        bias: Float32[n], or None for a norm without one.
    """

    group: ClassVar[str] = "norm"
    own_names: ClassVar[tuple[str, ...]] = ("w_norm", "b_norm")
    tensor_names: ClassVar[tuple[str, ...]] = (*own_names, "diff_b")
    read_as_others: ClassVar[Mapping[str, str]] = {"diff_b": "b_norm"}

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)

    @classmethod
    def create(cls, base: nn.Module) -> Self:
        """Return a delta of zeros for a norm, perhaps adapted already."""
        start = {
            name: torch.zeros_like(value, dtype=torch.float32, requires_grad=False)
            for name, value in root_module(base).named_parameters(recurse=False)
        }
        return cls(start["weight"], start.get("bias"))

    @classmethod
    def from_file(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Return the delta that a file's tensors describe; see `Delta.from_file`."""
        name = next((name for name in ("b_norm", "diff_b") if name in tensors), None)
        bias = None if name is None else take(tensors, name, 1)
        return cls(take(tensors, "w_norm", 1), bias)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the weight and, if it changes, the bias."""
        return {name: tuple(value.shape) for name, value in self.named_parameters()}

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the delta of the weight and, if there is one, of the bias."""
        return {f"{name[0]}_norm": value for name, value in self.named_parameters()}

    def forward(self, base: nn.Module, x: Tensor) -> Tensor:
        """Return the norm of `x` with the changed weights; see `Delta.forward`.

        The sum and the norm are computed in fp32: a change of a thousandth is lost in a bf16 weight
        of one.
        """
        if self.strength == 0:
            return base(x)
        weights = effective_weights(base)
        changed = {**weights, **changed_weights(self, weights)}
        return functional_call(root_module(base), changed, x.float()).to(x.dtype)

    def weight_changes(self, _weights: Mapping[str, Tensor], /) -> dict[str, Tensor]:
        """Return the delta of each parameter that has one; see `Delta.weight_changes`."""
        return dict(self.named_parameters())
