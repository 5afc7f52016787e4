"""A frozen linear layer with a LoKr on it in one pass, as `frozen` does it for other kinds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from anima_pipe.adapters.frozen import FrozenLinear, scaled_product


def lokr_linear(
    x: Tensor, base: FrozenLinear, first: Tensor, second: Tensor, scale: float, *, merged: bool
) -> Tensor:
    """Return the output of a frozen layer with a LoKr of whole factors on it.

    Args:
        x: Float[..., in_m * in_n].
        base: The layer.
        first: Float[out_l, in_m], of any float dtype; cast to x's.
        second: Float[out_k, in_n], likewise.
        scale: Multiplies the change.
        merged: Multiply by the sum of weight and change, formed twice, and not by the factors. The
            gradients of the factors never take the change as a whole.

    Returns:
        Float[..., out_l * out_k] in x's dtype.
    """
    return _LokrLinear.apply(x, first.to(x.dtype), second.to(x.dtype), scale, base, merged)


def thin_lokr_linear(
    x: Tensor, base: FrozenLinear, first: Tensor, second: Sequence[Tensor], scale: float
) -> Tensor:
    """Return the output of a frozen layer with a LoKr whose large factor is a product.

    Args:
        x: Float[..., in_m * in_n].
        base: The layer.
        first: Float[out_l, in_m], of any float dtype; cast to x's.
        second: w2_a Float[out_k, r] and w2_b Float[r, in_n], likewise.
        scale: Multiplies the change.

    Returns:
        Float[..., out_l * out_k] in x's dtype.
    """
    small, tall, wide = (factor.to(x.dtype) for factor in (first, *second))
    return _ThinLokrLinear.apply(x, small, tall, wide, scale, base)


class _LokrLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        small: Tensor,
        large: Tensor,
        scale: float,
        base: FrozenLinear,
        merged: bool,
    ) -> Tensor:
        ctx.base, ctx.merged, ctx.scale = base, merged, scale
        ctx.save_for_backward(x, small, large)
        weight = base.weight_in(x.dtype)
        rows = x.flatten(0, -2)
        if merged:
            output = linear(rows, _plus_kronecker(weight, small, large, scale), base.bias)
            return output.view(*x.shape[:-1], -1)
        output = linear(rows, weight, base.bias)
        blocks = linear(rows.unflatten(1, (small.shape[1], -1)), large)
        output.view(-1, small.shape[0], large.shape[0]).baddbmm_(
            small.expand(len(rows), -1, -1), blocks, alpha=scale
        )
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator has no types
        x, small, large = ctx.saved_tensors
        rows = grad_outputs[0].flatten(0, -2)
        blocks = x.flatten(0, -2).unflatten(1, (small.shape[1], -1))
        of_blocks = rows.unflatten(1, (small.shape[0], -1))
        back = of_blocks @ large
        of_x = None
        if ctx.needs_input_grad[0]:
            weight = ctx.base.weight_in(x.dtype)
            if ctx.merged:
                of_x = rows @ _plus_kronecker(weight, small, large, ctx.scale)
            else:
                of_x = rows @ weight
                turned = small.T.expand(len(rows), -1, -1)
                of_x.view(blocks.shape).baddbmm_(turned, back, alpha=ctx.scale)
            of_x = of_x.view(x.shape)
        of_small = _summed_products(back, blocks.transpose(1, 2), ctx.scale)
        mixed = _mixed(small, blocks)
        of_large = scaled_product(of_blocks.flatten(0, 1).T, mixed.flatten(0, 1), ctx.scale)
        return of_x, of_small, of_large, None, None, None


class _ThinLokrLinear(torch.autograd.Function):
    """As a LoRA whose inner activations, of each block of x, are mixed by the small factor."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        small: Tensor,
        tall: Tensor,
        wide: Tensor,
        scale: float,
        base: FrozenLinear,
    ) -> Tensor:
        ctx.base, ctx.scale = base, scale
        rows = x.flatten(0, -2)
        inner = linear(rows.unflatten(1, (small.shape[1], -1)), wide)
        mixed = _mixed(small, inner)
        output = linear(rows, base.weight_in(x.dtype), base.bias)
        output.view(-1, len(tall)).addmm_(mixed.flatten(0, 1), tall.T, alpha=scale)
        ctx.save_for_backward(x, small, tall, wide, inner, mixed)
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator has no types
        x, small, tall, wide, inner, mixed = ctx.saved_tensors
        rows = grad_outputs[0].flatten(0, -2)
        of_blocks = rows.view(-1, len(tall))
        of_tall = scaled_product(of_blocks.T, mixed.flatten(0, 1), ctx.scale)
        of_mixed = scaled_product(of_blocks, tall, ctx.scale).view(mixed.shape)
        of_inner = _mixed(small.T, of_mixed)
        of_small = torch.bmm(of_mixed, inner.transpose(1, 2)).sum(0)
        of_wide = of_inner.flatten(0, 1).T @ x.flatten(0, -2).view(-1, wide.shape[1])
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = rows @ ctx.base.weight_in(x.dtype)
            of_x.view(-1, wide.shape[1]).addmm_(of_inner.flatten(0, 1), wide)
            of_x = of_x.view(x.shape)
        return of_x, of_small, of_tall, of_wide, None, None


def _mixed(small: Tensor, blocks: Tensor) -> Tensor:
    """Return small @ blocks[n] of each n, Float[N, o, k], of Float[o, i] and Float[N, i, k]."""
    # torch.matmul would turn the blocks around, with a copy before and one behind.
    return torch.bmm(small.expand(len(blocks), -1, -1), blocks)


def _summed_products(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """Return scale * the sum of all left[n] @ right[n], Float[i, j].

    Args:
        left: Float[N, i, k].
        right: Float[N, k, j].
        scale: A number.
    """
    products = torch.baddbmm(left.new_empty(1), left, right, beta=0, alpha=scale)
    return products.sum(0)


def _plus_kronecker(weight: Tensor, first: Tensor, second: Tensor, scale: float) -> Tensor:
    """Return weight + scale * kron(first, second) in one sweep.

    Args:
        weight: Float[out_l * out_k, in_m * in_n].
        first: Float[out_l, in_m].
        second: Float[out_k, in_n].
        scale: Multiplies the product.
    """
    (rows, columns), (inner_rows, inner_columns) = first.shape, second.shape
    blocks = weight.view(rows, inner_rows, columns, inner_columns)
    outer = first[:, None, :, None], second[None, :, None, :]
    return torch.addcmul(blocks, *outer, value=scale).view(weight.shape)
