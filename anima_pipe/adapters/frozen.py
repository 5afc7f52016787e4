"""A frozen linear layer and its change in one pass, which keeps nothing but the layer's input.

Each function here gives what the base's output plus the kind's plain arithmetic (`lora_delta`,
`lokr_delta`, `loha_delta`) gives, in values and in gradients; the tests hold it to that. Written by
hand they add in place, and make anew in the backward pass what autograd would have kept. Their
gradients have no gradients of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear


@runtime_checkable
class FrozenLinear(Protocol):
    """A linear layer that does not train, however its weight is kept."""

    @property
    def bias(self) -> Tensor | None:
        """The bias, Float[out], if it has one."""
        ...

    def weight_in(self, dtype: torch.dtype) -> Tensor:
        """Return the weight, Float[out, in], in a dtype."""
        ...


class PlainLinear:
    """torch's own linear layer as a frozen one."""

    def __init__(self, layer: nn.Linear) -> None:
        self.bias: Tensor | None = layer.bias
        self._weight = layer.weight

    def weight_in(self, dtype: torch.dtype) -> Tensor:
        """Return the weight; see `FrozenLinear`."""
        return self._weight.to(dtype)


def frozen_linear(module: nn.Module) -> FrozenLinear | None:
    """Return a module as a frozen linear layer, or None: it trains, or it is something else."""
    if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
        return None
    if type(module) is nn.Linear:
        return PlainLinear(module)
    return module if isinstance(module, FrozenLinear) else None


def frozen_product(x: Tensor, base: FrozenLinear) -> Tensor:
    """Return the output of a frozen layer alone; its weight is made again in the backward pass."""
    return _FrozenProduct.apply(x, base)


def lora_linear(
    x: Tensor,
    base: FrozenLinear,
    down: Tensor,
    up: Tensor,
    scale: float,
    kept: Tensor | None = None,
) -> Tensor:
    """Return the output of a frozen layer with a LoRA on it.

    Args:
        x: Float[..., in].
        base: The layer.
        down: Float[r, in], of any float dtype; cast to x's.
        up: Float[out, r], likewise.
        scale: Multiplies the change.
        kept: Multiplies the inner activation besides, Float that broadcasts to [..., r]; None: 1.

    Returns:
        Float[..., out] in x's dtype.
    """
    return _LoraLinear.apply(x, down.to(x.dtype), up.to(x.dtype), scale, kept, base)


def merged_linear(
    x: Tensor, base: FrozenLinear, form: Callable[..., Tensor], factors: Sequence[Tensor]
) -> Tensor:
    """Return the output of a frozen layer whose weight's change is formed as a whole.

    Args:
        x: Float[..., in].
        base: The layer.
        form: Returns the change, Float[out, in], of the factors; called in both passes.
        factors: What trains, of any float dtype.

    Returns:
        Float[..., out] in x's dtype.
    """
    return _MergedLinear.apply(x, base, form, *factors)


def added_in_place(x: Tensor) -> bool:
    """Tell whether a weight and its change may be summed in a dtype.

    In half precision the sum would round the change away.
    """
    return x.dtype in (torch.float32, torch.float64)


def scaled_product(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """Return scale * left @ right in one kernel, which scales before it rounds.

    Args:
        left: Float[n, k].
        right: Float[k, m].
        scale: A number.
    """
    if scale == 1:
        return left @ right
    # With beta=0 nothing is read of what is added to.
    return torch.addmm(left.new_empty(1), left, right, beta=0, alpha=scale)


class _FrozenProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, base: FrozenLinear) -> Tensor:
        ctx.base = base
        return linear(x, base.weight_in(x.dtype), base.bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator has no types
        return grad_outputs[0] @ ctx.base.weight_in(grad_outputs[0].dtype), None


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        down: Tensor,
        up: Tensor,
        scale: float,
        kept: Tensor | None,
        base: FrozenLinear,
    ) -> Tensor:
        ctx.base, ctx.scale = base, scale
        rows = x.flatten(0, -2)
        inner = _weighed(linear(rows, down), kept, x)
        output = linear(rows, base.weight_in(x.dtype), base.bias)
        output.addmm_(inner, up.T, alpha=scale)
        ctx.save_for_backward(x, down, up, inner, kept)
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator has no types
        x, down, up, inner, kept = ctx.saved_tensors
        rows, gradient = x.flatten(0, -2), grad_outputs[0].flatten(0, -2)
        of_inner = _weighed(scaled_product(gradient, up, ctx.scale), kept, x)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = gradient @ ctx.base.weight_in(x.dtype)
            of_x = of_x.addmm_(of_inner, down).view(x.shape)
        of_up = scaled_product(gradient.T, inner, ctx.scale)
        return of_x, of_inner.T @ rows, of_up, None, None, None


def _weighed(inner: Tensor, kept: Tensor | None, x: Tensor) -> Tensor:
    """Return inner activations, Float[n, r], times what broadcasts to [..., r] over x's axes."""
    if kept is None:
        return inner
    return (inner.view(*x.shape[:-1], -1) * kept).flatten(0, -2)


class _MergedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, base: FrozenLinear, form: Callable[..., Tensor], *factors: Tensor
    ) -> Tensor:
        ctx.base, ctx.form = base, form
        ctx.save_for_backward(x, *factors)
        weight, change = base.weight_in(x.dtype), form(*factors).to(x.dtype)
        if added_in_place(x):
            return linear(x, weight + change, base.bias)
        rows = x.flatten(0, -2)
        output = linear(rows, weight, base.bias).addmm_(rows, change.T)
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator has no types
        x, *factors = ctx.saved_tensors
        rows = grad_outputs[0].flatten(0, -2)
        leaves = [factor.detach().requires_grad_() for factor in factors]
        with torch.enable_grad():
            change = ctx.form(*leaves)
        of_change = (rows.T @ x.flatten(0, -2)).to(change.dtype)
        of_factors = torch.autograd.grad(change, leaves, of_change)
        of_x = None
        if ctx.needs_input_grad[0]:
            weight, change = ctx.base.weight_in(x.dtype), change.detach().to(x.dtype)
            if added_in_place(x):
                of_x = rows @ (weight + change)
            else:
                of_x = (rows @ weight).addmm_(rows, change)
            of_x = of_x.view(x.shape)
        return of_x, None, None, *of_factors
