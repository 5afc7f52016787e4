"""Times of work that a device does while the host goes on."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence

import torch

SETTLING_ROUNDS = 3
"""The first ones choose kernels and fill the allocator."""


def synchronize(device: torch.device) -> None:
    """Wait until all work asked for so far is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_each(
    work: Callable[[], object],
    device: torch.device,
    *,
    rounds: int = 10,
    settling: int = SETTLING_ROUNDS,
) -> tuple[list[float], list[float]]:
    """Do something several times.

    Args:
        work: What to do.
        device: Where it is done.
        rounds: Times that count.
        settling: Times before.

    Returns:
        Of each time the seconds until all was done, and until the host had asked for all.
    """
    whole: list[float] = []
    host: list[float] = []
    for number in range(settling + rounds):
        synchronize(device)
        began = time.perf_counter()
        work()
        asked = time.perf_counter()
        synchronize(device)
        if number >= settling:
            host.append(asked - began)
            whole.append(time.perf_counter() - began)
    return whole, host


def in_ms(seconds: Sequence[float], name: str = "ms") -> dict[str, float]:
    """Return median, fastest and slowest in milliseconds, as columns of a table."""
    return {
        name: statistics.median(seconds) * 1e3,
        f"{name}, least": min(seconds) * 1e3,
        f"{name}, most": max(seconds) * 1e3,
    }


class PeakMemory:
    """What is allocated and reserved at most on a device from here on."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._device = device
        if self._on_gpu:
            torch.cuda.init()
            # What a run before this one left in cycles is not this one's.
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)

    def in_gib(self) -> dict[str, float | None]:
        """Return both in GiB, as columns of a table; None where the device does not tell."""
        if not self._on_gpu:
            return {"allocated GiB": None, "reserved GiB": None}
        return {
            "allocated GiB": torch.cuda.max_memory_allocated(self._device) / 2**30,
            "reserved GiB": torch.cuda.max_memory_reserved(self._device) / 2**30,
        }
