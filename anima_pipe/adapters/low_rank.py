"""Products of two thin matrices: their start, their norms, and the best approximations by them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

from anima_pipe.errors import CheckpointError
from anima_pipe.weights.writing import is_finite

OVERSAMPLED: Final = 8
"""Directions looked at beside those wanted."""
POWER_ITERATIONS: Final = 4
"""Each multiplies the large singular values' lead over the small ones by their ratio squared."""


def kaiming_uniform(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Return Float32[rows, columns] as torch starts a linear layer: uniform, a = sqrt 5."""
    start = torch.empty(rows, columns)
    return nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)


def leading_factors(matrix: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return nearly the best approximation of a rank, without a full SVD of a large matrix.

    A random sketch of the range, sharpened by power iterations (Halko, Martinsson and Tropp,
    arXiv:0909.4061). Matrices not much wider than the rank are decomposed exactly.

    Args:
        matrix: Float32[out, in].
        rank: Of the approximation; at most the smaller dimension is used.
        generator: On the CPU, for the sketch.

    Returns:
        up Float32[out, r] and down Float32[r, in], of equal norms.
    """
    columns = rank + OVERSAMPLED
    if columns >= min(matrix.shape):
        return truncated(*svd(matrix), rank)
    sketch = torch.randn(matrix.shape[1], columns, generator=generator).to(matrix.device)
    basis = torch.linalg.qr(matrix @ sketch)[0]
    for _iteration in range(POWER_ITERATIONS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis)[0])[0]
    left, values, right = svd(basis.T @ matrix)
    return truncated(basis @ left, values, right, rank)


def svd_of_product(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the exact SVD of up @ down, which is never formed.

    Args:
        up: Float[out, r].
        down: Float[r, in].

    Returns:
        Float[out, k], Float[k] falling, Float[k, in], with k at most r and either dimension.
    """
    left, left_core = torch.linalg.qr(up)
    right, right_core = torch.linalg.qr(down.T)
    inner_left, values, inner_right = svd(left_core @ right_core.T)
    return left @ inner_left, values, inner_right @ right.T


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the SVD of a matrix, Float[rows, columns], with as many values as its smaller side.

    Returns:
        Float[rows, k], Float[k] falling, Float[k, columns].

    Raises:
        CheckpointError: Not every number is finite.
    """
    if not is_finite(matrix):
        raise CheckpointError(
            "not every number is finite, or they are too large to be multiplied",
            "use another save of this adapter, or a whole checkpoint",
        )
    return torch.linalg.svd(matrix, full_matrices=False)


def truncated(left: Tensor, values: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return up and down of the leading part of an SVD, the singular values shared evenly."""
    shares = values[:rank].sqrt()
    return left[:, :rank] * shares, shares.unsqueeze(1) * right[:rank]


def product_norms(products: Sequence[tuple[Tensor, Tensor]]) -> list[float]:
    """Return the norm of up @ down of each pair, none of which is formed.

    The square of the norm is the sum of the elementwise product of up^T up and down down^T. Pairs
    of one shape are computed together, and the host reads all of them at once.

    Args:
        products: up Float[out, r] and down Float[r, in], of any shapes.
    """
    by_shape: dict[tuple[torch.Size, torch.Size], list[int]] = {}
    for number, (up, down) in enumerate(products):
        by_shape.setdefault((up.shape, down.shape), []).append(number)
    norms: list[Tensor] = []
    for numbers in by_shape.values():
        ups = torch.stack([products[number][0] for number in numbers]).float()
        downs = torch.stack([products[number][1] for number in numbers]).float()
        squares = (ups.mT @ ups).mul_(downs @ downs.mT).sum((1, 2))
        norms.append(squares.clamp_(min=0).sqrt_())
    read = torch.cat(norms).tolist() if norms else []
    order = [number for numbers in by_shape.values() for number in numbers]
    return [norm for _, norm in sorted(zip(order, read, strict=True))]
