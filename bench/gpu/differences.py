"""How far numbers are from the numbers that they should be."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def plain_fp32() -> None:
    """Have products of fp32 numbers computed in fp32, not in TF32's nineteen bits."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def largest(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference relative to the largest number that is expected."""
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def overall(actual: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> float:
    """Return the norm of all differences relative to the norm of all that is expected.

    For what an optimizer made: where a gradient is near zero the sign of its rounding decides a
    whole step of Adam, so the largest difference says little.
    """
    assert actual.keys() == expected.keys()
    pairs = [(actual[name].double().cpu(), expected[name].double().cpu()) for name in expected]
    off = sum((own - other).square().sum().item() for own, other in pairs)
    whole = sum(other.square().sum().item() for _own, other in pairs)
    return (off / whole) ** 0.5


def unequal(actual: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> float:
    """Return how many tensors are not the same to the bit."""
    assert actual.keys() == expected.keys()
    return float(
        sum(not torch.equal(actual[name].cpu(), expected[name].cpu()) for name in expected)
    )
