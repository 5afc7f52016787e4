"""The processes of a run: joining them, and what they agree on before they start."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs, InitProcessGroupKwargs, broadcast

from anima_pipe.errors import ConfigError
from anima_pipe.runtime import launched_rank

PATIENCE: Final = timedelta(days=7)
"""How long a process waits for another: one may encode a large dataset, or draw previews."""


def start_accelerate(mixed_precision: str, *, cpu: bool = False) -> Accelerator:
    """Join the processes that `accelerate launch` started, or be the only one.

    The model casts explicitly, so autocast stays off; accelerate's precision is there for fp16's
    gradient scaler.

    Args:
        mixed_precision: no, bf16 or fp16.
        cpu: Stay on the CPU although there is a GPU.

    Raises:
        ConfigError: Several processes were started that cannot join.
    """
    accelerator = Accelerator(
        mixed_precision=mixed_precision,
        cpu=cpu,
        kwargs_handlers=[AutocastKwargs(enabled=False), InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    launched = launched_rank().processes
    if accelerator.num_processes != launched:
        raise ConfigError(
            f"{launched} processes were started, but on {accelerator.device} they cannot join",
            "start one process",
        )
    return accelerator


def agree_on_seed(accelerator: Accelerator) -> int:
    """Draw a seed, the same one on every process."""
    drawn = torch.randint(2**31, (1,), generator=_fresh_generator()).to(accelerator.device)
    shared = broadcast(drawn)
    assert isinstance(shared, torch.Tensor)
    return int(shared.item())


def _fresh_generator() -> torch.Generator:
    generator = torch.Generator()
    generator.seed()
    return generator


def sum_over_processes(accelerator: Accelerator, values: torch.Tensor) -> torch.Tensor:
    """Return the sum of each value over the processes, all of which call this."""
    total = accelerator.reduce(values, "sum")
    assert isinstance(total, torch.Tensor)
    return total
