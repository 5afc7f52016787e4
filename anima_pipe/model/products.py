"""A sum and a product in one kernel, with gradients that take no more than they must."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def add_product(start: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return start + first * second, rounded once.

    Torch's own gradient multiplies both factors by one before it uses them: of an activation that
    is a copy, for nothing.

    Args:
        start: Float[...], of one dtype with the others, all of which broadcast to one shape.
        first: Float[...].
        second: Float[...].
    """
    return _AddProduct.apply(start, first, second)


class _AddProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, start: Tensor, first: Tensor, second: Tensor) -> Tensor:
        _, of_first, of_second = ctx.needs_input_grad
        ctx.save_for_backward(first if of_second else None, second if of_first else None)
        ctx.shapes = start.shape, first.shape, second.shape
        return torch.addcmul(start, first, second)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator has no types
        first, second = ctx.saved_tensors
        (gradient,) = grad_outputs
        of_start, of_first, of_second = ctx.needs_input_grad
        start_shape, first_shape, second_shape = ctx.shapes
        return (
            gradient.sum_to_size(start_shape) if of_start else None,
            (gradient * second).sum_to_size(first_shape) if of_first else None,
            (gradient * first).sum_to_size(second_shape) if of_second else None,
        )
