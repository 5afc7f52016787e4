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
    x: Tensor, base: FrozenLinear, down: Tensor, up: Tensor, scale: float | Tensor
) -> Tensor:
    """Return the output of a frozen layer with a LoRA on it.

    Args:
        x: Float[..., in].
        base: The layer.
        down: Float[r, in], of any float dtype; cast to x's.
        up: Float[out, r], likewise.
        scale: Multiplies the inner activation: a number, or Float[..., r] that broadcasts to it.

    Returns:
        Float[..., out] in x's dtype.
    """
    return _LoraLinear.apply(x, down, up, scale, base)


def lokr_linear(
    x: Tensor, base: FrozenLinear, first: Tensor, second: Tensor, *, merged: bool
) -> Tensor:
    """Return the output of a frozen layer with a LoKr of whole factors on it.

    Args:
        x: Float[..., in_m * in_n].
        base: The layer.
        first: Float[out_l, in_m], scaled, of any float dtype; cast to x's.
        second: Float[out_k, in_n], likewise.
        merged: Multiply by the sum of weight and change, formed twice, and not by the factors. The
            gradients of the factors never take the change as a whole.

    Returns:
        Float[..., out_l * out_k] in x's dtype.
    """
    return _LokrLinear.apply(x, first, second, base, merged)


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
        ctx: Any, x: Tensor, down: Tensor, up: Tensor, scale: float | Tensor, base: FrozenLinear
    ) -> Tensor:
        rows = x.flatten(0, -2)
        inner = (linear(x, down.to(x.dtype)) * scale).flatten(0, -2)
        output = linear(rows, base.weight_in(x.dtype), base.bias)
        output.addmm_(inner, up.to(x.dtype).T)
        ctx.base = base
        ctx.scale = None if isinstance(scale, Tensor) else scale
        ctx.save_for_backward(x, down, up, inner, scale if isinstance(scale, Tensor) else None)
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator has no types
        x, down, up, inner, scales = ctx.saved_tensors
        rows, gradient = x.flatten(0, -2), grad_outputs[0].flatten(0, -2)
        of_inner = (gradient @ up.to(x.dtype)).view(*x.shape[:-1], -1)
        of_inner = (of_inner * (ctx.scale if scales is None else scales)).flatten(0, -2)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = gradient @ ctx.base.weight_in(x.dtype)
            of_x = of_x.addmm_(of_inner, down.to(x.dtype)).view(x.shape)
        of_down = (of_inner.T @ rows).to(down.dtype)
        of_up = (gradient.T @ inner).to(up.dtype)
        return of_x, of_down, of_up, None, None


class _LokrLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, first: Tensor, second: Tensor, base: FrozenLinear, merged: bool
    ) -> Tensor:
        ctx.base, ctx.merged = base, merged
        ctx.save_for_backward(x, first, second)
        small, large = first.to(x.dtype), second.to(x.dtype)
        weight = base.weight_in(x.dtype)
        rows = x.flatten(0, -2)
        if merged:
            output = linear(rows, _plus_kronecker(weight, small, large), base.bias)
            return output.view(*x.shape[:-1], -1)
        output = linear(rows, weight, base.bias)
        blocks = linear(rows.unflatten(1, (small.shape[1], -1)), large)
        output.view(-1, small.shape[0], large.shape[0]).baddbmm_(
            small.expand(len(rows), -1, -1), blocks
        )
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator has no types
        x, first, second = ctx.saved_tensors
        small, large = first.to(x.dtype), second.to(x.dtype)
        rows = grad_outputs[0].flatten(0, -2)
        blocks = x.flatten(0, -2).unflatten(1, (small.shape[1], -1))
        of_blocks = rows.unflatten(1, (small.shape[0], -1))
        back = of_blocks @ large
        of_x = None
        if ctx.needs_input_grad[0]:
            weight = ctx.base.weight_in(x.dtype)
            if ctx.merged:
                of_x = rows @ _plus_kronecker(weight, small, large)
            else:
                of_x = rows @ weight
                of_x.view(blocks.shape).baddbmm_(small.T.expand(len(rows), -1, -1), back)
            of_x = of_x.view(x.shape)
        of_first = torch.bmm(back, blocks.transpose(1, 2)).sum(0, dtype=first.dtype)
        mixed = torch.matmul(small, blocks)
        of_second = of_blocks.flatten(0, 1).T @ mixed.flatten(0, 1)
        return of_x, of_first, of_second.to(second.dtype), None, None


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


def _plus_kronecker(weight: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return weight + kron(first, second), Float[out_l * out_k, in_m * in_n], in one sweep."""
    (rows, columns), (inner_rows, inner_columns) = first.shape, second.shape
    blocks = weight.view(rows, inner_rows, columns, inner_columns)
    total = torch.addcmul(blocks, first[:, None, :, None], second[None, :, None, :])
    return total.view(weight.shape)
