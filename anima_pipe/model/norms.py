"""RMS norms, by weights in the dtype of what they norm or in fp32.

A norm whose weight trains has it in fp32, for a change of a thousandth is lost in a bf16 weight of
one. `_WideNorm` is for these: it reads and writes half precision, computes in fp32, and of its
input keeps what it was given and no copy in fp32. It computes in the order that torch does without
a kernel of its own, so that a weight that has not changed yet gives the same bits.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as F  # noqa: N812 - everybody's name for it
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from anima_pipe.model.recomputed import recomputed

EPSILON: Final = 1e-6


class RMSNorm(nn.Module):
    """Division by the root mean square over the last axis, then a weight per feature."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return Float[..., width] in the dtype of x, computed in fp32."""
        return self.with_weight(x, self.weight)

    def with_weight(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return what the norm would give with another weight.

        Args:
            x: Float[..., width].
            weight: Float[width], of any float dtype.

        Returns:
            Float[..., width] in the dtype of x, computed in fp32.
        """
        if x.dtype in (weight.dtype, torch.float32):
            # One kernel, which reads and writes x's dtype and computes in fp32.
            return recomputed(F.rms_norm, x, weight.shape, weight.to(x.dtype), EPSILON)
        inverse = _inverse_root_mean_square(x.detach())
        return recomputed(_WideNorm.apply, x, weight.float(), inverse)


class _WideNorm(torch.autograd.Function):
    """x * inverse * weight, where the inverse is that of x's own root mean square."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, inverse)
        return torch.mul(x * inverse, weight, out=torch.empty_like(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator has no types
        x, weight, inverse = ctx.saved_tensors
        (gradient,) = grad_outputs
        width = weight.numel()
        normed = x * inverse
        products = (gradient * normed).view(-1, width)
        of_weight = products.sum(0) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, of_weight, None
        # What the mean square takes back: of each row, the mean of gradient * weight * normed.
        along = torch.mv(products, weight).view(inverse.shape)
        of_normed = (gradient * weight).addcmul_(normed, along, value=-1 / width)
        return torch.mul(of_normed, inverse, out=torch.empty_like(x)), of_weight, None


def _inverse_root_mean_square(x: Tensor) -> Tensor:
    """Return 1 / sqrt(mean square + epsilon), Float32[..., 1], of Float[..., width]."""
    return x.float().square_().mean(-1, keepdim=True).add_(EPSILON).rsqrt_()
