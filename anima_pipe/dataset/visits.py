"""One picture as training visits it: what is drawn for a visit, as keys of the caches."""

from __future__ import annotations

import hashlib
import random
from bisect import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path

from anima_pipe.shards.keys import text_key
from anima_pipe.source.captions import warmup_steps

EMPTY_CAPTION = text_key("")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSample:
    """One picture as training visits it."""

    name: str
    """Of the picture's file."""
    folder: Path = field(default=Path(), repr=False)
    """That the file is in; one object for all pictures in it."""
    latents: tuple[str, ...]
    """Keys of its crops and orientations; one is drawn per visit."""
    texts: tuple[str, ...]
    """Keys of its caption variants; one is drawn per visit."""
    chances: tuple[float, ...] = ()
    """How often each of them is drawn, 1 in all; empty: all alike."""
    warmup: tuple[tuple[str, ...], ...] = ()
    """Keys of the texts for each of the equal parts of a token warmup; empty without one."""
    warmup_chances: tuple[tuple[float, ...], ...] = ()
    """How often each of those is drawn; empty: all alike."""
    warmup_length: float = 0
    """Of the token warmup: in steps or, below 1, as a fraction of the run."""
    group: tuple[int, int, int]
    """Number of the dataset, and the bucket's width and height: what may share a batch."""
    batch_size: int
    repeats: int
    """Visits per epoch; 0 where it is held out."""
    dropout_rate: float
    dropout_every_n_epochs: int
    crops: int = 1
    """How many crops the latents are of, each in as many orientations."""
    loss_weight: float = 1.0
    """Factor of its loss."""
    sigma_offset: float = 0.0
    """Added to the normal draw behind its noise levels."""
    is_reg: bool = False
    """A regularisation picture."""
    masks: tuple[str, ...] = ()
    """Keys of its masks, one per latent; empty where everything counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One picture in one batch, everything drawn."""

    name: str
    """Of the picture's file."""
    folder: Path = Path()
    """That the file is in."""
    latent: str
    text: str
    loss_weight: float
    sigma_offset: float
    mask: str | None
    """Key of what counts in the loss; None: everything."""
    warmup: tuple[str, ...] = ()
    """Keys of the texts that replace `text`, one for each part of a token warmup."""
    warmup_length: float = 0
    """See `PlannedSample`."""

    @property
    def path(self) -> Path:
        """Where the picture is."""
        return self.folder / self.name

    def at_step(self, step: int, max_train_steps: int) -> Visit:
        """Return it with its text at an optimizer step (from 0), as a token warmup has it."""
        if not self.warmup:
            return self
        steps = warmup_steps(self.warmup_length, max_train_steps)
        if step >= steps:
            return self
        return replace(self, text=self.warmup[step * len(self.warmup) // steps])


def draw_visit(sample: PlannedSample, epoch: int, rng: random.Random) -> Visit:
    """Draw a crop or orientation, a text, and whether the text is dropped.

    Args:
        sample: Of which.
        epoch: Counted from 0.
        rng: Three numbers are taken from it.
    """
    number = rng.randrange(len(sample.latents))
    position, chance = rng.random(), rng.random()
    # Kohya counts epochs from 1 here.
    every = sample.dropout_every_n_epochs
    dropped = chance < sample.dropout_rate or (every > 0 and (epoch + 1) % every == 0)
    return Visit(
        name=sample.name,
        folder=sample.folder,
        latent=sample.latents[number],
        text=EMPTY_CAPTION if dropped else _at(position, sample.texts, sample.chances),
        loss_weight=sample.loss_weight,
        sigma_offset=sample.sigma_offset,
        mask=sample.masks[number] if sample.masks else None,
        # No draw of its own: once it is over, a run goes on like one without a warmup.
        warmup=() if dropped else _warmup_at(position, sample),
        warmup_length=sample.warmup_length,
    )


def _warmup_at(position: float, sample: PlannedSample) -> tuple[str, ...]:
    chances = sample.warmup_chances or ((),) * len(sample.warmup)
    return tuple(
        _at(position, part, of_part) for part, of_part in zip(sample.warmup, chances, strict=True)
    )


def _at(position: float, keys: Sequence[str], chances: Sequence[float]) -> str:
    """Return what lies at a position in [0, 1), where each key takes the room of its chance."""
    if not chances:
        return keys[int(position * len(keys))]
    # Rounding may leave the last one's end a little below 1.
    return keys[min(bisect(list(accumulate(chances)), position), len(keys) - 1)]


def plain_visit(sample: PlannedSample) -> Visit:
    """Return the visit that leaves nothing to chance, as validation judges a picture.

    That is its first crop as it is, with its first text; its loss counts as any other's.
    """
    return Visit(
        name=sample.name,
        folder=sample.folder,
        latent=sample.latents[0],
        text=sample.texts[0],
        loss_weight=1.0,
        sigma_offset=0.0,
        mask=sample.masks[0] if sample.masks else None,
    )


def samples_digest(samples: Iterable[PlannedSample]) -> str:
    """Return a hash of samples in their order, whatever they are called, in hexadecimal."""
    digest = hashlib.blake2b(digest_size=8)
    for sample in samples:
        digest.update(repr(replace(sample, name="")).encode())
    return digest.hexdigest()
