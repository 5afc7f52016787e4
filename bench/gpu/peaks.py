"""How many operations a card does in a second at most: by its data sheet, and as measured."""

from __future__ import annotations

import torch

from gpu.timing import seconds_each

DATASHEET_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10": 125.0,
    "RTX 6000 Ada": 364.0,
    "RTX 5090": 209.5,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
    "A6000": 154.8,
}
"""Part of a card's name -> dense bf16 products summed in fp32, by its vendor's data sheet; of two
parts that fit, the one that stands first."""


def datasheet_tflops(name: str) -> float | None:
    """Return what a card's data sheet says; None for one that is not listed."""
    return next((most for part, most in DATASHEET_TFLOPS.items() if part in name), None)


def matmul_tflops(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """Return what the product of two square matrices of random numbers comes to.

    Args:
        device: Where to multiply.
        dtype: Of the matrices.
        side: Of the matrices. Random numbers, because zeros take less power and run faster.
    """
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds, _host = seconds_each(lambda: left @ right, device)
    return 2 * side**3 / min(seconds) / 1e12
