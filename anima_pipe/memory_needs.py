"""What a run needs of memory for certain, and what to do where there is not enough."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from anima_pipe.errors import PipeError
from anima_pipe.memory import GIB

if TYPE_CHECKING:
    from anima_pipe.adapters import Adapter
    from anima_pipe.kohya.training import TrainSettings

SAVERS_NAMED: Final = 3

OPTIMIZER_BYTES: Final = 8
"""For each trained number: the two moments of Adam and its kin, in fp32."""
SMALL_OPTIMIZER_BYTES: Final = 2
"""The same in 8 bits."""

CPU_REFUSALS: Final = ("DefaultCPUAllocator", "can't allocate memory", "not enough memory")
"""What torch says where the machine's memory is at an end, by a plain RuntimeError."""


class NoMemoryError(PipeError):
    """The GPU's or the machine's memory is not enough."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeeds:
    """Bytes that a run holds from its first step to its last."""

    base: int
    """Frozen weights."""
    trained: int
    """The adapter, its gradients, and the optimizer's state."""

    def __str__(self) -> str:
        whole = (self.base + self.trained) / GIB
        return (
            f"{whole:.2f} GiB ({self.base / GIB:.2f} of the base, {self.trained / GIB:.2f} of the "
            "adapter, its gradients and the optimizer), and activations by picture size and batch"
        )


def memory_needs(adapter: Adapter, optimizer_type: str) -> MemoryNeeds:
    """Add up what is known before the first step.

    Args:
        adapter: On its model.
        optimizer_type: By Kohya's name.
    """
    parameters = list(adapter.parameters())
    own = _bytes(parameters)
    whole = _bytes([*adapter.model.parameters(), *adapter.model.buffers()])
    in_8_bits = "8bit" in optimizer_type.lower()
    each = SMALL_OPTIMIZER_BYTES if in_8_bits else OPTIMIZER_BYTES
    numbers = sum(parameter.numel() for parameter in parameters)
    return MemoryNeeds(base=whole - own, trained=2 * own + each * numbers)


def savers(settings: TrainSettings) -> Iterator[str]:
    """Yield what would save memory in this run and is not in use yet, what saves most first."""
    if not settings.model.gradient_checkpointing:
        yield "gradient_checkpointing"
    if any(dataset.batch_size > 1 for dataset in settings.data.datasets):
        yield "train_batch_size 1 with more gradient_accumulation_steps"
    if settings.mixed_precision == "no":
        yield "mixed_precision bf16"
    if not settings.model.eight_bit:
        yield "fp8_base"
    yield "a smaller resolution"
    yield "a smaller network_dim"
    yield "optimizer_type AdamW8bit"


@contextmanager
def memory_explained(needs: MemoryNeeds, settings: TrainSettings) -> Generator[None]:
    """Turn the end of the memory into an error that says what was needed and what saves most.

    Raises:
        NoMemoryError: The memory of the GPU or of the machine came to its end.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _tells_of_memory(error):
            raise
        named = [saver for saver, _ in zip(savers(settings), range(SAVERS_NAMED), strict=False)]
        reason = str(error).partition("\n")[0] or "no memory is left"
        raise NoMemoryError(
            f"out of memory: {reason}; the run needs {needs}",
            f"use {', '.join(named[:-1])} or {named[-1]}",
        ) from error


def _tells_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(refusal in str(error) for refusal in CPU_REFUSALS)


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
