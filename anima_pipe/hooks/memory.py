"""How much memory a process uses, and how much of it there is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
import torch

GIB: Final = 2**30
MIB: Final = 2**20
CGROUP: Final = Path("/sys/fs/cgroup")
"""Where Linux says what a container may use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """Bytes at one moment."""

    resident: int
    """Of this process, in the machine's memory."""
    allocated: int | None
    """Of this process's tensors on the GPU, at their most so far; None: no GPU."""
    used_share: float
    """Of the GPU's memory, or else of the machine's, by everyone, in [0, 1]."""


def memory_use(device: torch.device) -> MemoryUse:
    """Look at the memory; the GPU is not waited for."""
    resident = psutil.Process().memory_info().rss
    if device.type != "cuda":
        return MemoryUse(resident=resident, allocated=None, used_share=_machine_share())
    free, total = torch.cuda.mem_get_info(device)
    # What torch holds in reserve it can give to other tensors: of its own, only these count.
    others = total - free - torch.cuda.memory_reserved(device)
    allocated = torch.cuda.max_memory_allocated(device)
    return MemoryUse(
        resident=resident, allocated=allocated, used_share=(others + allocated) / total
    )


def size_text(size: float) -> str:
    """Write bytes as people say them: 812 MiB, 3.89 GiB."""
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / MIB:.0f} MiB"


def _machine_share() -> float:
    """Return the share of memory in use: of the machine, or of its container if that is fuller."""
    machine = psutil.virtual_memory()
    shares = [1 - machine.available / machine.total]
    try:
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text()) - _reclaimable()
        shares.append(used / limit)
    except (OSError, ValueError):
        pass  # No container, or one without a limit.
    return max(shares)


def _reclaimable() -> int:
    """Return the container's bytes of files that the system drops when memory runs short."""
    facts = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    return int(facts.get("inactive_file", 0)) + int(facts.get("active_file", 0))
