"""The processes of a run: joining them, and what they agree on before they start."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import torch
from accelerate import Accelerator
from accelerate.utils import (
    AutocastKwargs,
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    broadcast,
)
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from anima_pipe.adapters.divided import divided_tensors
from anima_pipe.errors import ConfigError
from anima_pipe.runtime import launched_rank

PATIENCE: Final = timedelta(days=7)
"""How long a process waits for another: one may encode a large dataset, or draw previews."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessConfig:
    """How several processes work together."""

    timeout: timedelta = PATIENCE
    """How long one waits for another."""
    gradient_as_bucket_view: bool = False
    """Gradients lie in the buffers that are exchanged: one copy less of them."""
    static_graph: bool = False
    """Every step uses the same parameters in the same order; not so with module_dropout."""


def start_accelerate(
    mixed_precision: str, processes: ProcessConfig | None = None, *, cpu: bool = False
) -> Accelerator:
    """Join the processes that `accelerate launch` started, or be the only one.

    The model casts explicitly, so autocast stays off; accelerate's precision is there for fp16's
    gradient scaler.

    Args:
        mixed_precision: no, bf16 or fp16.
        processes: How they work together.
        cpu: Stay on the CPU although there is a GPU.

    Raises:
        ConfigError: Several processes were started that cannot join, or with DeepSpeed.
    """
    _refuse_deepspeed()
    processes = processes or ProcessConfig()
    accelerator = Accelerator(
        mixed_precision=mixed_precision,
        cpu=cpu,
        kwargs_handlers=[
            AutocastKwargs(enabled=False),
            InitProcessGroupKwargs(timeout=processes.timeout),
            DistributedDataParallelKwargs(
                gradient_as_bucket_view=processes.gradient_as_bucket_view,
                static_graph=processes.static_graph,
            ),
        ],
    )
    if mixed_precision == "fp16" and accelerator.scaler is None:
        # accelerate makes one for GPUs alone; with torch's for the CPU both take the same way.
        accelerator.native_amp, accelerator.scaler = True, torch.amp.GradScaler("cpu")
    launched = launched_rank().processes
    if accelerator.num_processes != launched:
        raise ConfigError(
            f"{launched} processes were started, but on {accelerator.device} they cannot join",
            "start one process",
        )
    return accelerator


def _refuse_deepspeed() -> None:
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() in ("true", "1"):
        raise ConfigError(
            "accelerate is set to DeepSpeed, which takes over the optimizer and what is saved",
            "launch with configs/accelerate/fsdp.yaml, which divides the frozen weights among the "
            "processes, or with configs/accelerate/ddp.yaml",
        )


def wrapped(accelerator: Accelerator, module: nn.Module) -> nn.Module:
    """Return a module whose gradients are averaged over the processes, where there are several.

    Processes start from the first one's tensors, but for frozen weights of which each has a part.
    """
    # torch has no public name for it.
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        module, divided_tensors(module)
    )
    return accelerator.prepare_model(module)


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
