"""Norms: the weight (and bias) of a LayerNorm or RMSNorm plus a vector of the same length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from anima_pipe.adapters.delta import (
    Adapted,
    Delta,
    changed_weights,
    deltas_of,
    effective_weights,
    end_after_backward,
    root_module,
    take,
)
from anima_pipe.adapters.together import summed_together


def is_norm(module: nn.Module) -> bool:
    """Tell whether a module is a LayerNorm or RMSNorm, of torch or anyone else, with a weight."""
    named = type(module).__name__.endswith(("LayerNorm", "RMSNorm"))
    return named and isinstance(getattr(module, "weight", None), nn.Parameter)


@runtime_checkable
class Reweighted(Protocol):
    """A norm that can do with another weight than its own, which may stay in fp32."""

    weight: nn.Parameter

    def with_weight(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return what it would give with another weight, computed in fp32.

        Args:
            x: Float[..., n].
            weight: Float[n], of any float dtype.

        Returns:
            Float[..., n] in the dtype of x.
        """
        ...


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

    changed_weight: Tensor | None = None
    """The whole weight in the pass that is running, Float32[n], made for all norms at once."""

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
        root = root_module(base)
        if self.changed_weight is not None and isinstance(root, Reweighted):
            return root.with_weight(x, self.changed_weight)
        weights = effective_weights(base)
        changed = {**weights, **changed_weights(self, weights)}
        if isinstance(root, Reweighted):
            return root.with_weight(x, changed["weight"])
        return functional_call(root, changed, x.float()).to(x.dtype)

    @classmethod
    def begin_pass(cls, adapted: Sequence[Adapted], sigmas: Tensor, dtype: torch.dtype) -> None:
        """Sum up the weights of all norms at once; see `Delta.begin_pass`."""
        del sigmas, dtype
        alone = [
            (wrapper.base, delta)
            for wrapper, delta in zip(adapted, deltas_of(adapted, cls), strict=True)
            if isinstance(wrapper.base, Reweighted)
            and not wrapper.base.weight.requires_grad
            and delta.strength == 1
        ]
        frozen = [base.weight for base, _ in alone]
        sums = summed_together(frozen, [delta.weight for _, delta in alone])
        for (_, delta), weight in zip(alone, sums, strict=True):
            delta.changed_weight = weight
        end_after_backward(sums, [delta for _, delta in alone])

    def end_pass(self) -> None:
        """Let go of the whole weight; see `Delta.end_pass`."""
        self.changed_weight = None

    def weight_changes(self, _weights: Mapping[str, Tensor], /) -> dict[str, Tensor]:
        """Return the delta of each parameter that has one; see `Delta.weight_changes`."""
        return dict(self.named_parameters())
