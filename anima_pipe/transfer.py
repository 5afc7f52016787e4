"""Tensors on their way to the device, which the host does not wait for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def on_device(
    tensor: torch.Tensor, device: torch.device, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Return a tensor on a device, of any shape, in its own dtype or another.

    To a GPU it goes from pinned memory, and as it is: a copy that also casts does so on the
    processor, into memory that is not pinned, and holds the host up until it has arrived.

    Args:
        tensor: Anywhere.
        device: Where it is wanted.
        dtype: Cast to this when it has arrived; None: as it is.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True).to(dtype or tensor.dtype)
