"""What is done to the tensors of all layers in one go, where each layer would do it by itself.

A layer's factors are small: to cast hundreds of them one by one takes a GPU no time at all, and the
host several milliseconds. Here one call of torch's foreach forms casts or sums them all, into one
flat buffer, and another brings their gradients back. Nothing is kept beyond the pass that asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from anima_pipe import foreach
from anima_pipe.foreach import copied_together


def cast_together(tensors: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return tensors of any shapes in a dtype, differentiable; their gradients are cast back.

    Args:
        tensors: Of one dtype, on one device.
        dtype: Of what is returned, shapes as they are.
    """
    return _Cast.apply(dtype, *tensors) if tensors else ()


def summed_together(frozen: Sequence[Tensor], changes: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return frozen + change, fp32, for each pair of one shape; differentiable in the changes.

    Args:
        frozen: Of any float dtype.
        changes: Float32.
    """
    return _Sum.apply(list(frozen), *changes) if changes else ()


def quotients_less_one(
    trained: Sequence[Tensor], frozen: Sequence[Tensor], dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """Return trained / frozen - 1 for each pair of one shape; differentiable in what trains.

    Args:
        trained: Float32.
        frozen: Float32, none of them zero.
        dtype: Of what is returned, rounded after the subtraction.
    """
    return _QuotientsLessOne.apply(list(frozen), dtype, *trained) if trained else ()


class _Cast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        # What no gradient comes for gets none, as without this.
        ctx.set_materialize_grads(False)
        ctx.wide = tensors[0].dtype
        return tuple(copied_together(tensors, dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator has no types
        given = [gradient for gradient in grad_outputs if gradient is not None]
        cast = iter(copied_together(given, ctx.wide))
        return None, *(None if gradient is None else next(cast) for gradient in grad_outputs)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, frozen: list[Tensor], *changes: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        sums = copied_together(frozen, torch.float32)
        foreach.add_(sums, changes)
        return tuple(sums)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator has no types
        del ctx
        return None, *grad_outputs


class _QuotientsLessOne(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, frozen: list[Tensor], dtype: torch.dtype, *trained: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.frozen = frozen
        quotients = foreach.divide(trained, frozen)
        foreach.subtract_(quotients, 1)
        return tuple(copied_together(quotients, dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator has no types
        pairs = [(g, f) for g, f in zip(grad_outputs, ctx.frozen, strict=True) if g is not None]
        wide = copied_together([gradient for gradient, _ in pairs], torch.float32)
        if wide:
            wide = foreach.divide(wide, [frozen for _, frozen in pairs])
        each = iter(wide)
        return None, None, *(None if g is None else next(each) for g in grad_outputs)
