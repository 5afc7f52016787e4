"""What runs on the device during some work, by torch's profiler."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

LARGEST = 20
COPIES = ("Memcpy", "Memset")


@dataclass
class Kernels:
    """What the profiler saw; filled when `watching` ends."""

    launches: int | None = None
    """Kernels, copies left out; None where the device has none."""
    table: str = ""
    """The largest items, as torch prints them."""
    largest: list[dict[str, object]] = field(default_factory=list)
    """The same as columns."""


@contextmanager
def watching(device: torch.device) -> Generator[Kernels]:
    """Watch what is done inside.

    Of a card its own work alone is watched: every operation of the host besides takes seconds.
    """
    kernels = Kernels()
    on_gpu = device.type == "cuda"
    kind = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with profile(activities=[kind]) as profiler:
        yield kernels
        if on_gpu:
            torch.cuda.synchronize(device)
    averages = profiler.key_averages()
    order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    kernels.table = averages.table(sort_by=order, row_limit=LARGEST, max_name_column_width=90)
    # The times of kernels stand on the operations that launched them, too.
    items = [each for each in averages if not on_gpu or is_kernel(each)]
    whole = sum(getattr(each, order) for each in items) or 1
    for each in sorted(items, key=lambda each: -getattr(each, order))[:LARGEST]:
        own = getattr(each, order)
        share = 100 * own / whole
        kernels.largest.append({"item": each.key, "calls": each.count, "ms": own / 1e3, "%": share})
    if on_gpu:
        kernels.launches = sum(each.count for each in items if not each.key.startswith(COPIES))


def is_kernel(item: Any) -> bool:
    """Tell whether a row of the profiler is work of the card itself, not a name for some of it."""
    return item.device_type == torch.autograd.DeviceType.CUDA and not item.is_user_annotation
