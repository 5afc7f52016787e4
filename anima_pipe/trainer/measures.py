"""What a step measures on the device, brought to the processor in one go."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from accelerate import Accelerator

SIGMA_BINS: Final = 10
"""The losses are told by noise level too, in so many bins of equal width."""

BIN_NAMES: Final = tuple(
    f"{number / SIGMA_BINS:.1f}-{(number + 1) / SIGMA_BINS:.1f}" for number in range(SIGMA_BINS)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one optimizer step came to, over all processes."""

    loss: float
    """Mean over its batches."""
    sigma_losses: dict[str, float]
    """Mean by noise level, such as "0.3-0.4", where there was a sample of it."""
    grad_norm: float
    """Before clipping."""
    grad_norms: dict[str, float]
    """The same of each parameter group."""
    weight_norms: dict[str, float]
    """Of each group's trained tensors, before the step."""
    learning_rates: dict[str, float]
    """Of each group, that it was taken with."""
    stopping: bool
    """Some process was asked to stop."""
    taken: bool = True
    """False: the weights were left as they were."""


class StepMeasures:
    """Sums up the losses of one step's batches, without waiting for the device.

    Args:
        device: Where the losses are.
    """

    def __init__(self, device: torch.device) -> None:
        self._loss = torch.zeros((), device=device)
        self._sums = torch.zeros(SIGMA_BINS, device=device)
        self._counts = torch.zeros(SIGMA_BINS, device=device)

    def add(self, losses: torch.Tensor, sigmas: torch.Tensor, weight: float) -> None:
        """Take in one batch.

        Args:
            losses: Of each sample, Float32[B].
            sigmas: Noise level of each sample, Float32[B], in [0, 1].
            weight: Factor of the batch's mean loss; 0: it does not count.
        """
        losses = losses.detach()
        self._loss += losses.mean() * weight
        if weight:
            bins = (sigmas * SIGMA_BINS).long().clamp(0, SIGMA_BINS - 1)
            self._sums.index_add_(0, bins, losses)
            self._counts.index_add_(0, bins, torch.ones_like(losses))

    def over_processes(
        self,
        accelerator: Accelerator,
        norms: torch.Tensor,
        rates: dict[str, float],
        *,
        stop: bool,
    ) -> Outcome:
        """Bring together what all processes measured; the only wait for the device in a step.

        Args:
            accelerator: Of the run.
            norms: From `group_norms`, the same on every process.
            rates: Of the groups by name, which the step is to be taken with.
            stop: Whether this process was asked to stop.
        """
        own = torch.stack([self._loss, torch.full_like(self._loss, float(stop))])
        mean = accelerator.reduce(torch.cat([own, self._sums, self._counts]), "mean")
        assert isinstance(mean, torch.Tensor)
        loss, stopping, *rest = torch.cat([mean, norms.to(mean)]).tolist()
        sums, counts = rest[:SIGMA_BINS], rest[SIGMA_BINS : 2 * SIGMA_BINS]
        grad_norm, *by_group = rest[2 * SIGMA_BINS :]
        return Outcome(
            loss=loss,
            sigma_losses={
                name: total / count
                for name, total, count in zip(BIN_NAMES, sums, counts, strict=True)
                if count
            },
            grad_norm=grad_norm,
            grad_norms=dict(zip(rates, by_group[: len(rates)], strict=True)),
            weight_norms=dict(zip(rates, by_group[len(rates) :], strict=True)),
            learning_rates=rates,
            stopping=stopping > 0,
        )


def group_norms(
    groups: Sequence[Sequence[torch.nn.Parameter]], total: torch.Tensor, limit: float
) -> torch.Tensor:
    """Return the norms of all gradients, of each group's gradients, and of each group's weights.

    Those of the gradients are from before they were clipped.

    Args:
        groups: Their gradients have been clipped.
        total: Norm of all gradients before.
        limit: What they were clipped to; infinite: they were not.
    """
    factor = 1.0 if math.isinf(limit) else (total / limit).clamp(min=1.0)
    gradients = [[p.grad for p in group if p.grad is not None] for group in groups]
    weights = [[p.detach() for p in group] for group in groups]
    return torch.stack(
        [
            total,
            *(_norm(tensors, total) * factor for tensors in gradients),
            *(_norm(tensors, total) for tensors in weights),
        ]
    )


def _norm(tensors: Sequence[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """Return the norm of all of them, as a number of the kind and place of another."""
    return torch.nn.utils.get_total_norm(tensors).to(like) if tensors else like.new_zeros(())
