"""Batches for the training step, read from the caches in the plan's order.

One optimizer step is a window: `accumulation` batches on each of `processes` processes. Windows
do not cross epochs; the last one of an epoch may be short, and each batch in it counts the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

import torch
from torch.nn.utils.rnn import pad_sequence

from anima_pipe.dataset.plan import Plan
from anima_pipe.dataset.visits import Visit
from anima_pipe.records import Batch, PaddedText, TextCondition

if TYPE_CHECKING:
    from anima_pipe.shards import Cache


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """One batch of this process within a window."""

    batch: Batch
    weight: float
    """Factor of its mean loss, so that the gradient averaged over processes is the window's mean;
    0 for a filler on a process that a short window leaves without a batch."""
    place: int
    """Number of the batch, or of the filler, within the window, over all processes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What this process contributes to one optimizer step."""

    epoch: int
    """Counted from 0."""
    index: int
    """Number of the window within its epoch."""
    ends_epoch: bool
    samples: int
    """Samples in it, over all processes."""
    batches: int = 1
    """Batches in it, over all processes."""
    micro_batches: tuple[MicroBatch, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """An endless supply of windows, which may begin at any optimizer step."""

    plan: Plan
    cache: Cache
    accumulation: int = 1
    """Batches per process and optimizer step."""
    processes: int = 1
    rank: int = 0
    """Number of this process, below `processes`."""
    max_train_steps: int = 0
    """Optimizer steps of the run; a token warmup may be given as a fraction of them."""

    @property
    def window_size(self) -> int:
        """Batches per optimizer step over all processes."""
        return self.accumulation * self.processes

    def windows_per_epoch(self) -> int:
        """Return the optimizer steps per epoch."""
        return -(-self.plan.batches_per_epoch() // self.window_size)

    def starting_at(self, step: int) -> Iterator[Window]:
        """Yield the windows of optimizer step `step` (counted from 0) and all after it."""
        # Counted once: it goes over all samples, of which there may be many.
        per_epoch = self.windows_per_epoch()
        epoch, index = divmod(step, per_epoch)
        while True:
            for number, window in enumerate(self.drawn(epoch, index), index):
                yield Window(
                    epoch=epoch,
                    index=number,
                    ends_epoch=number + 1 == per_epoch,
                    samples=sum(map(len, window)),
                    batches=len(window),
                    micro_batches=tuple(self._micro_batches(window)),
                )
            epoch, index = epoch + 1, 0

    def drawn(self, epoch: int, index: int = 0) -> Iterator[list[tuple[Visit, ...]]]:
        """Yield the windows of an epoch as visits, of all processes; nothing is read.

        Args:
            epoch: Counted from 0.
            index: Of the first window wanted.
        """
        batches = self.plan.epoch(epoch)
        windows = [
            batches[start : start + self.window_size]
            for start in range(0, len(batches), self.window_size)
        ]
        for number, window in enumerate(windows[index:], epoch * len(windows) + index):
            yield [
                tuple(visit.at_step(number, self.max_train_steps) for visit in batch)
                for batch in window
            ]

    def _micro_batches(self, window: Sequence[tuple[Visit, ...]]) -> Iterator[MicroBatch]:
        weight = self.processes / len(window)
        for start in range(0, len(window), self.processes):
            mine = start + self.rank
            if mine < len(window):
                batch = read_batch(window[mine], self.cache)
                yield MicroBatch(batch=batch, weight=weight, place=mine)
            else:
                batch = read_batch(window[start], self.cache)
                yield MicroBatch(batch=batch, weight=0.0, place=mine)


def read_batch(visits: Sequence[Visit], cache: Cache) -> Batch:
    """Read the visits' latents, masks and texts, in their stored dtypes, on the CPU."""
    latents = cache.latents.stacked([visit.latent for visit in visits])
    masks = [cache.masks[visit.mask] if visit.mask else None for visit in visits]
    return Batch(
        latents=latents,
        text=pad_texts([cache.text[visit.text] for visit in visits]),
        weights=torch.tensor([visit.loss_weight for visit in visits]),
        sigma_offsets=torch.tensor([visit.sigma_offset for visit in visits]),
        names=tuple(visit.name for visit in visits),
        masks=stack_masks(masks, latents.shape[2:]),
    )


def stack_masks(masks: Sequence[torch.Tensor | None], size: tuple[int, ...]) -> torch.Tensor | None:
    """Return masks as one tensor, Float16[B, H, W]; None where no sample has one.

    Args:
        masks: Float16[H, W] each; of a sample without one everything counts.
        size: (H, W) of the latents.
    """
    if all(mask is None for mask in masks):
        return None
    everything = torch.ones(size, dtype=torch.float16)
    return torch.stack([everything if mask is None else mask for mask in masks])


def pad_texts(conditions: Sequence[TextCondition]) -> PaddedText:
    """Pad captions to the longest of them; Qwen's part to at least one row."""
    hidden = [condition.qwen_hidden for condition in conditions]
    # An fp16 cache keeps texts that fp16 cannot hold in bf16: together they need fp32.
    dtype = reduce(torch.promote_types, (states.dtype for states in hidden))
    qwen = pad_sequence([states.to(dtype) for states in hidden], batch_first=True)
    if qwen.shape[1] == 0:
        qwen = qwen.new_zeros(qwen.shape[0], 1, qwen.shape[2])
    ids = pad_sequence([condition.t5_ids.long() for condition in conditions], batch_first=True)
    return PaddedText(
        qwen_hidden=qwen,
        qwen_mask=_real([len(states) for states in hidden], qwen.shape[1]),
        t5_ids=ids,
        t5_mask=_real([len(condition.t5_ids) for condition in conditions], ids.shape[1]),
        t5_weights=_weights(conditions),
    )


def _weights(conditions: Sequence[TextCondition]) -> torch.Tensor | None:
    """Return the factors of all tokens, Float32[B, max Lt]; None where all are 1."""
    if all(condition.t5_weights is None for condition in conditions):
        return None
    each = [
        torch.ones(len(condition.t5_ids)) if condition.t5_weights is None else condition.t5_weights
        for condition in conditions
    ]
    return pad_sequence(each, batch_first=True, padding_value=1.0)


def _real(lengths: Sequence[int], longest: int) -> torch.Tensor:
    """Return the mask of real tokens, Bool[B, longest]."""
    return torch.arange(longest) < torch.tensor(lengths).unsqueeze(1)
