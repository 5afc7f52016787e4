"""The processes of a run: joining them, and what they agree on before they start."""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, TypeVar

import torch

# Its functions' defaults are the group that there is when it is first imported, which DDP does:
# after a run has joined its processes, it would keep the group, and gloo's threads, to the end.
import torch.distributed.nn  # pyright: ignore[reportUnusedImport]
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import (
    AutocastKwargs,
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    broadcast,
    gather_object,
)
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from anima_pipe.adapters.sharded import sharded_tensors
from anima_pipe.errors import ConfigError
from anima_pipe.runtime import launched_rank, warn

T = TypeVar("T")

LAUNCHER: Final = "ACCELERATE_"
"""How the variables begin by which `accelerate launch` says what is wanted."""

STATES: Final = (PartialState, AcceleratorState, GradientState)
"""What accelerate keeps for a process; it has no public name for it."""

TIMEOUT: Final = timedelta(minutes=30)
"""How long a process waits for another in a run: one may draw previews, or save."""

PATIENCE: Final = timedelta(days=7)
"""The same while the first one encodes a large dataset."""

OF_OPTIONS: Final = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("1", "gradient_accumulation_steps of the options"),
    "ACCELERATE_DYNAMO_BACKEND": ("NO", "no option: compiling is not there yet"),
}
"""What accelerate would take from the environment behind the options' backs: the variable, its
value that asks for nothing, and what decides here."""

ELSEWHERE: Final = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed, which takes over the optimizer and what is saved",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM, which has models of its own",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config, which divides a model's layers",
}
"""What it may be set to that trains something else, by the launcher's variable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessConfig:
    """How several processes work together."""

    timeout: timedelta = TIMEOUT
    """How long one waits for another, but for `first_process_first`."""
    gradient_as_bucket_view: bool = False
    """Gradients lie in the buffers that are exchanged: one copy less of them."""
    static_graph: bool = False
    """Every step uses the same parameters in the same order; not so with module_dropout."""


@contextmanager
def accelerate_afresh() -> Generator[None]:
    """Let a run have accelerate to itself, and put back what it knew before.

    It keeps one state for a process: a caller's own Accelerator, or a run before this one, would
    decide on its precision and its device. What a run takes out of the environment comes back too.
    """
    launched = {name: value for name, value in os.environ.items() if name.startswith(LAUNCHER)}
    kept = [state._shared_state for state in STATES]  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    before = [dict(state) for state in kept]
    for state in kept:
        state.clear()
    try:
        yield
    finally:
        for state, own in zip(kept, before, strict=True):
            state.clear()
            state.update(own)
        os.environ.update(launched)


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
        ConfigError: Several processes were started that cannot join, or with DeepSpeed and such.
    """
    _refuse_other_trainers()
    _warn_of_idle_settings()
    processes = processes or ProcessConfig()
    accelerator = Accelerator(
        mixed_precision=mixed_precision,
        cpu=cpu,
        # Said here, for what is not said is looked up in the environment.
        dynamo_backend="no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[
            AutocastKwargs(enabled=False),
            InitProcessGroupKwargs(timeout=processes.timeout),
            DistributedDataParallelKwargs(
                # They never change: all processes have the first one's from the start.
                broadcast_buffers=False,
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
    if launched > 1:
        # gloo's threads end with the last that holds the group, which a cycle may do. One that lets
        # go of a tensor while Python is taken down would abort the process, and so the launch.
        atexit.register(gc.collect)
    return accelerator


def _refuse_other_trainers() -> None:
    for variable, what in ELSEWHERE.items():
        if os.environ.get(variable, "").lower() in ("true", "1"):
            raise ConfigError(
                f"accelerate is set to {what}",
                "launch with configs/accelerate/fsdp.yaml, which shards the frozen weights over "
                "the processes, or with configs/accelerate/ddp.yaml",
            )


def _warn_of_idle_settings() -> None:
    for variable, (idle, decides) in OF_OPTIONS.items():
        value = os.environ.get(variable, idle)
        if value.upper() != idle and launched_rank().number == 0:
            name = variable.removeprefix("ACCELERATE_").lower()
            warn(f"accelerate's {name} is {value}: without effect; what counts is {decides}")


@contextmanager
def first_process_first(accelerator: Accelerator) -> Generator[None]:
    """Let the first process do something long before the others, which wait for days if need be."""
    if accelerator.num_processes == 1:
        yield
        return
    # A group of its own, for the run's would give up after its timeout.
    patient = distributed.new_group(timeout=PATIENCE, backend="gloo")
    assert isinstance(patient, distributed.ProcessGroup)
    if not accelerator.is_main_process:
        distributed.barrier(patient)
    yield
    if accelerator.is_main_process:
        distributed.barrier(patient)
    distributed.destroy_process_group(patient)


def prepared(
    accelerator: Accelerator, module: nn.Module, optimizer: Optimizer
) -> tuple[nn.Module, AcceleratedOptimizer]:
    """Return a module and its optimizer as `Trainer` takes them.

    The module's gradients are averaged over the processes, where there are several; these start
    from the first one's tensors, but for frozen weights of which each has a part. The optimizer
    takes fp16's scale out of the gradients; the one that was given is its `optimizer`.

    Args:
        accelerator: From `start_accelerate`.
        module: Brought to the accelerator's device where it is elsewhere.
        optimizer: Over its trainable parameters, after the schedule was made for it: both replace
            its `step`, and the schedule's must be the inner one.
    """
    # torch has no public name for it.
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        module, sharded_tensors(module)
    )
    prepared_module = accelerator.prepare_model(module)
    prepared_optimizer = accelerator.prepare_optimizer(optimizer)
    assert isinstance(prepared_optimizer, AcceleratedOptimizer)
    return prepared_module, prepared_optimizer


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


def gathered(accelerator: Accelerator, value: T) -> list[T]:
    """Return what each process has to say, in their order; all of them call this."""
    return gather_object([value]) if accelerator.num_processes > 1 else [value]
