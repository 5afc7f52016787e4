"""What a run needs of memory, and what to do where there is not enough."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, cast

import torch

from anima_pipe.adapters import Adapter
from anima_pipe.errors import PipeError
from anima_pipe.hooks.memory import size_text
from anima_pipe.model.activations import BatchSize, Keeping, block_activations, block_weights

if TYPE_CHECKING:
    from anima_pipe.dataset.plan import Plan
    from anima_pipe.model import AnimaTransformer
    from anima_pipe.model.config import TransformerConfig
    from anima_pipe.trained import Trained

SAVERS_NAMED: Final = 3

OPTIMIZER_BYTES: Final = 8
"""For each trained number: the two moments of Adam and its kin, in fp32."""
SMALL_OPTIMIZER_BYTES: Final = 2
"""The same in 8 bits."""

WIDE_BYTES: Final = 4
"""Of a number in fp32."""

TOKEN_SIDE: Final = 16
"""Of a token, in pixels."""

MODULATING: Final = r"^t_embed|adaln_modulation"
"""Names of tensors that the blocks' modulations follow from."""
HEAD_NORMS: Final = r"^blocks\.\d+\.\w+_attn\.[qk]_norm\."

CPU_REFUSALS: Final = ("DefaultCPUAllocator", "can't allocate memory", "not enough memory")
"""What torch says where the machine's memory is at an end, by a plain RuntimeError."""


class NoMemoryError(PipeError):
    """The GPU's or the machine's memory is not enough."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeeds:
    """What a run holds of memory, and what that follows from."""

    config: TransformerConfig
    batch: BatchSize
    """The largest."""
    keeping: Keeping
    frozen: int
    """Numbers of the base that this process keeps, be it in 8 bits."""
    in_8_bits: bool
    """The base's blocks are."""
    processes: int = 1
    """How many the base's linear layers are sharded over."""
    called: str
    """What trains."""
    trained_numbers: int
    trained_bytes: int
    """Of those numbers themselves."""
    optimizer_bytes: int
    """Of the optimizer's state, for each of them."""
    averaged: bool = False
    """Their average is kept, in fp32."""
    exchanged: bool = False
    """Processes exchange the gradients by way of copies."""
    widened: int = 0
    """Numbers of them that are there in fp32 too, with their gradients, while a step is taken."""

    @property
    def base(self) -> int:
        """Bytes of the frozen weights."""
        each = self.keeping.dtype.itemsize
        if not self.in_8_bits:
            return each * self.frozen
        in_blocks = block_weights(self.config) // self.processes
        return each * (self.frozen - in_blocks) + in_blocks

    @property
    def trained(self) -> int:
        """Bytes of what trains, its gradients, its average, and the optimizer's state."""
        each = self.optimizer_bytes + WIDE_BYTES * self.averaged
        return (2 + self.exchanged) * self.trained_bytes + each * self.trained_numbers

    @property
    def activations(self) -> int:
        """Bytes that the transformer's blocks keep of the largest batch for its backward pass."""
        return block_activations(self.config, self.batch, self.keeping)

    @property
    def whole(self) -> int:
        """Bytes in all."""
        # No batch is under way while a step is taken.
        at_step = 2 * WIDE_BYTES * self.widened
        return self.base + self.trained + max(self.activations, at_step)

    def __str__(self) -> str:
        average = ", its average" if self.averaged else ""
        base = f"{size_text(self.base)} of the base, " if self.frozen else ""
        return (
            f"about {size_text(self.whole)} ({base}"
            f"{size_text(self.trained)} of the {self.called}, its gradients{average} and the "
            f"optimizer, {size_text(self.activations)} of activations for {self.batch.pictures} x "
            f"{self.batch.tokens} tokens)"
        )


def memory_needs(
    trained: Trained,
    optimizer_type: str,
    batch: BatchSize,
    device: torch.device,
    *,
    in_8_bits: bool = False,
    processes: int = 1,
    averaged: bool = False,
    exchanged: bool = False,
    widened: int = 0,
) -> MemoryNeeds:
    """Add up what is known before the first step.

    Args:
        trained: What trains.
        optimizer_type: By Kohya's name.
        batch: The largest.
        device: Of the run.
        in_8_bits: Whether the base's blocks are.
        processes: How many the base's linear layers are sharded over.
        averaged: Whether an average of what trains is kept.
        exchanged: Whether processes exchange gradients by way of copies.
        widened: See `MemoryNeeds`.
    """
    model = cast("AnimaTransformer", trained.model)
    own = [*trained.parameters()]
    names = [name for name, _ in trained.named_parameters()]
    small = "8bit" in optimizer_type.lower()
    keeping = Keeping(
        dtype=model.dtype,
        checkpointed=model.checkpointed,
        modulation_trains=any(re.search(MODULATING, name) for name in names),
        head_norms_train=any(re.search(HEAD_NORMS, name) for name in names),
        fused_norms=device.type == "cuda",
    )
    everything = [*model.parameters(), *model.buffers()]
    own_numbers = sum(parameter.numel() for parameter in own)
    return MemoryNeeds(
        config=model.config,
        batch=batch,
        keeping=keeping,
        frozen=sum(tensor.numel() for tensor in everything) - own_numbers,
        in_8_bits=in_8_bits,
        processes=processes,
        called=trained.called,
        trained_numbers=own_numbers,
        trained_bytes=sum(parameter.numel() * parameter.element_size() for parameter in own),
        optimizer_bytes=SMALL_OPTIMIZER_BYTES if small else OPTIMIZER_BYTES,
        averaged=averaged,
        exchanged=exchanged,
        widened=widened,
    )


def largest_batch(plan: Plan) -> BatchSize:
    """Return the size of the batch that holds most tokens."""
    visits: Counter[tuple[tuple[int, int, int], int]] = Counter()
    for sample in plan.samples:
        visits[sample.group, sample.batch_size] += sample.repeats
    sizes = [
        BatchSize(pictures=min(most, count), tokens=(width // TOKEN_SIDE) * (height // TOKEN_SIDE))
        for ((_, width, height), most), count in visits.items()
    ]
    return max(sizes, key=lambda size: size.picture_tokens)


def savers(needs: MemoryNeeds) -> list[tuple[str, int]]:
    """Return what would save memory in a run and is not in use yet, with bytes, most first."""
    keeping, batch = needs.keeping, needs.batch
    changed = {
        "gradient_checkpointing": replace(needs, keeping=replace(keeping, checkpointed=True)),
        "train_batch_size 1 with more gradient_accumulation_steps": replace(
            needs, batch=replace(batch, pictures=1)
        ),
        "a resolution of three quarters": replace(
            needs, batch=replace(batch, tokens=batch.tokens * 9 // 16)
        ),
        "optimizer_type AdamW8bit": replace(needs, optimizer_bytes=SMALL_OPTIMIZER_BYTES),
        "no ema_decay": replace(needs, averaged=False),
        "ddp_gradient_as_bucket_view": replace(needs, exchanged=False),
        **(_of_adapters(needs) if needs.called == Adapter.called else _of_models(needs)),
    }
    if keeping.dtype == torch.float32:
        changed["mixed_precision bf16"] = replace(
            needs, keeping=replace(keeping, dtype=torch.bfloat16)
        )
    saved = [(name, needs.whole - other.whole) for name, other in changed.items()]
    return sorted((pair for pair in saved if pair[1] > 0), key=lambda pair: -pair[1])


def _of_adapters(needs: MemoryNeeds) -> dict[str, MemoryNeeds]:
    """Return what would save memory in the training of an adapter."""
    numbers, size = needs.trained_numbers // 2, needs.trained_bytes // 2
    return {
        "fp8_base": replace(needs, in_8_bits=True),
        "half the network_dim": replace(needs, trained_numbers=numbers, trained_bytes=size),
    }


def _of_models(needs: MemoryNeeds) -> dict[str, MemoryNeeds]:
    """Return what would save memory where the model itself trains."""
    in_bf16 = replace(needs, trained_bytes=torch.bfloat16.itemsize * needs.trained_numbers)
    return {"full_bf16": in_bf16} if in_bf16.trained < needs.trained else {}


@contextmanager
def memory_explained(needs: MemoryNeeds) -> Generator[None]:
    """Turn an out-of-memory error into one that says what was needed and what would save most.

    Raises:
        NoMemoryError: The memory of the GPU or of the machine came to its end.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _tells_of_memory(error):
            raise
        named = [
            f"{name} (about {size_text(saved)} less)"
            for name, saved in savers(needs)[:SAVERS_NAMED]
        ]
        reason = str(error).partition("\n")[0] or "no memory is left"
        raise NoMemoryError(
            f"out of memory: {reason}; the run needs {needs}",
            f"use {', '.join(named[:-1])} or {named[-1]}",
        ) from error


def _tells_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(refusal in str(error) for refusal in CPU_REFUSALS)
