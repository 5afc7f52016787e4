"""Encoding in the precision that a cache names, whatever the machine is set to."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch


@contextmanager
def without_tf32() -> Generator[None]:
    """Multiply fp32 by fp32 for a while: a cache is to hold the same numbers from every device.

    A GPU may round to TF32's 10 bits, in convolutions it does so unless told otherwise, and a
    processor to bf16 where a program allowed that.
    """
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions
