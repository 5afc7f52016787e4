"""Rotary position embedding: tables of angles and the rotation, both in fp32."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

BASE = 10000.0
SPATIAL_RATIO = 4.0
"""How far Anima stretches the wavelengths of rows and columns beyond those of Cosmos' training."""


class Rotation(NamedTuple):
    """Cosines and sines that `rotate` multiplies with: Float32[N, 1, head width] each.

    The angle of frequency i belongs to the pair of features (i, i + head width / 2). The sines of
    the first half carry the minus sign of the rotation matrix.
    """

    cos: torch.Tensor
    signed_sin: torch.Tensor


def rotate(heads: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Rotate queries or keys by their positions.

    Args:
        heads: Float[B, N, heads, head width], of any dtype; the products are in fp32, into which
            the fp32 table promotes them inside the kernel, without a copy.
        rotation: For the same N and head width.

    Returns:
        Float[B, N, heads, head width] in the dtype of `heads`.
    """
    return _Rotated.apply(heads, rotation.cos, rotation.signed_sin)


class _Rotated(torch.autograd.Function):
    """A rotation by hand: three kernels each way, and nothing kept but the table."""

    @staticmethod
    def forward(
        ctx: Any, heads: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(cos, signed_sin)
        return _turned(heads, cos, signed_sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator has no types
        cos, signed_sin = ctx.saved_tensors
        # A rotation's gradient is rotated back.
        return _turned(grad_outputs[0], cos, signed_sin, -1), None, None


def _turned(
    heads: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor, direction: int
) -> torch.Tensor:
    """Return heads rotated forwards (1) or backwards (-1), in their dtype."""
    partners = heads.roll(heads.shape[-1] // 2, dims=-1)
    turned = torch.empty_like(heads)
    return torch.addcmul(heads * cos, partners, signed_sin, value=direction, out=turned)


def image_rotation(
    rows: int, columns: int, head_width: int, device: torch.device | str
) -> Rotation:
    """Return the rotation of a picture's tokens, row by row.

    Cosmos-Predict2 splits the head into time, rows and columns; rows and columns get a third each,
    rounded down to even, time the rest. A picture is the frame at time 0, which is not rotated.

    Args:
        rows: Tokens from top to bottom: latent height / 2.
        columns: Tokens from left to right.
        head_width: At least 12, even.
        device: Where the table is wanted.
    """
    axis_width = head_width // 6 * 2
    base = BASE * SPATIAL_RATIO ** (axis_width / (axis_width - 2))
    row_angles = _angles(rows, axis_width, base, device)
    column_angles = _angles(columns, axis_width, base, device)
    time_angles = row_angles.new_zeros((head_width - 2 * axis_width) // 2)
    angles = torch.cat(
        [
            time_angles.expand(rows, columns, -1),
            row_angles[:, None].expand(-1, columns, -1),
            column_angles.expand(rows, -1, -1),
        ],
        dim=-1,
    )
    return _rotation(angles.flatten(0, 1))


def text_rotation(length: int, head_width: int, device: torch.device | str) -> Rotation:
    """Return the rotation of tokens by their index, for the text adapter."""
    return _rotation(_angles(length, head_width, BASE, device))


def _angles(positions: int, width: int, base: float, device: torch.device | str) -> torch.Tensor:
    """Return position x frequency, Float32[positions, width / 2]."""
    # fp32 whatever the weights are: in bf16 the angle of a far position is off by 0.2 radians.
    exponents = torch.arange(0, width, 2, device=device, dtype=torch.float32) / width
    indices = torch.arange(positions, device=device, dtype=torch.float32)
    return torch.outer(indices, base**-exponents)


def _rotation(angles: torch.Tensor) -> Rotation:
    cos, sin = angles.cos(), angles.sin()
    return Rotation(
        cos=torch.cat([cos, cos], dim=-1)[:, None],
        signed_sin=torch.cat([-sin, sin], dim=-1)[:, None],
    )
