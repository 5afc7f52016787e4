"""What an adapter learned, and what it changes besides, as shares of the base model's error.

    v* the target, v_0 the base's velocity, v_1 the adapted model's, at the same noise; means are
    over positions, noise levels and pictures or prompts

    unit     mean |v* - v_0|^2 of the pictures with their captions: the base's error
    gain     mean |v* - v_0|^2 - mean |v* - v_1|^2
    learned  gain with the captions / unit
    bound    learned - gain with the captions without the trigger / unit
    changed  mean |v_1 - v_0|^2 of the pictures with their captions / unit
    leaked   mean |v_1 - v_0|^2 of unrelated prompts / unit
    score    learned (1 - leaked / changed), at least 0 if learned is

The size of a change alone does not tell what was learned: it grows where an adapter breaks the
picture, too. A gain does not: with d = v_1 - v_0 it is 2 <d, v* - v_0> - |d|^2, so that what points
elsewhere than to the target takes away from it. Where d is as good as it can be, the expectation
of what the base lacks, <d, v* - v_0> = |d|^2 on average: learned and changed are the same then.

The score is the part of what was learned that is done to the pictures and not to every prompt, if
what is useful in the change leaks as much as all of it. It compares a leak with the change on the
pictures, not with what was learned: the change of a real adapter also has a part that is of no use,
which would outweigh the gain in the end, and the best save would be the one that hardly trained.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureErrors:
    """Mean square errors of a model on pictures, at each of some noise levels."""

    captioned: torch.Tensor
    """Float64[P, S]: of P pictures at S noise levels, with their captions."""
    without: torch.Tensor
    """Float64[Q, S]: of those that have a trigger in their captions, without it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """Mean squares by which an adapter changes the velocity, at each of some noise levels."""

    pictures: torch.Tensor
    """Float64[P, S]: of the pictures with their captions."""
    unrelated: torch.Tensor
    """Float64[U, S]: of the unrelated prompts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakageFigures:
    """Shares of the base's error: 0 where the adapter changes nothing."""

    learned: float
    """At most 1; below 0 where the adapter is worse than the base."""
    bound: float | None
    """Of what was learned, what is not there without the trigger; None: no trigger is known."""
    changed: float
    """At least 0."""
    leaked: float
    """At least 0."""

    @property
    def score(self) -> float:
        """By which saves compare; 0 where unrelated prompts change as much as the pictures."""
        if self.leaked >= self.changed:
            return min(self.learned, 0.0)
        return self.learned * (1 - self.leaked / self.changed)


def leakage_figures(
    base: PictureErrors, adapted: PictureErrors, has_trigger: torch.Tensor, changes: Changes
) -> LeakageFigures:
    """Return the figures of one adapter.

    Args:
        base: Of the model without it.
        adapted: Of the model with it, on the same pictures with the same noise.
        has_trigger: Bool[P], which pictures `without` is of; what is bound is told by them alone.
        changes: From the one model to the other.
    """
    unit = base.captioned.mean()
    gains = base.captioned - adapted.captioned
    bound = None
    if has_trigger.any():
        unbound = base.without - adapted.without
        bound = float((gains[has_trigger] - unbound).mean() / unit)
    return LeakageFigures(
        learned=float(gains.mean() / unit),
        bound=bound,
        changed=float(changes.pictures.mean() / unit),
        leaked=float(changes.unrelated.mean() / unit),
    )
