"""A dataset as its caches hold it, for a training loop of one's own.

    dataset = CachedDataset.open(datasets, "data/cache", seed=1)
    dataset[7]              the eighth picture, plainly: no draw, any order
    dataset.epoch(0)        what training sees in its first epoch, in its order
    dataset.held_out()      what validation looks at

All three are map-style datasets: torch's DataLoader takes them, with `collate` as its collate_fn
and any number of workers; `loader` makes the one whose batches are training's. Keys are what is
kept; tensors and captions are read from the shards when asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from anima_pipe.dataset.batches import Batches, pad_texts, stack_masks
from anima_pipe.dataset.config import DatasetConfig
from anima_pipe.dataset.links import refusal
from anima_pipe.dataset.pictures import find_pictures
from anima_pipe.dataset.plan import Plan, plan_from_cache
from anima_pipe.dataset.survey import survey_pictures
from anima_pipe.dataset.visits import Visit, plain_visit
from anima_pipe.errors import DataError
from anima_pipe.records import Batch, Skipped, TextCondition
from anima_pipe.shards.cache import Cache, open_cache
from anima_pipe.shards.places import open_place
from anima_pipe.shards.text import caption_of


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedSample:
    """One picture as a training step sees it, on the CPU."""

    latent: torch.Tensor
    """Float[16, H, W], normalised, in the cache's dtype."""
    condition: TextCondition
    """The encoded caption."""
    path: Path
    """The picture."""
    caption: str
    """The text that was encoded; "" where the caption was dropped."""
    mask: torch.Tensor | None
    """Float16[H, W] in [0, 1]: how much each position counts in the loss; None: all the same."""
    loss_weight: float
    """Factor of its loss."""
    sigma_offset: float
    """Added to the normal draw behind its noise level."""


class CachedSamples(Dataset[CachedSample]):
    """Some visits in an order, each read when it is asked for.

    Args:
        batches: The visits, by the batches that training makes of them.
        cache: What they are read from.
    """

    def __init__(self, batches: Iterable[Sequence[Visit]], cache: Cache) -> None:
        self._visits: list[Visit] = []
        self._cache = cache
        self.batches: list[list[int]] = []
        """Places of the samples in each batch, all of one size: a DataLoader's batch_sampler."""
        for batch in batches:
            start = len(self._visits)
            self._visits += batch
            self.batches.append(list(range(start, len(self._visits))))

    def __len__(self) -> int:
        return len(self._visits)

    def __getitem__(self, place: int) -> CachedSample:
        """Read a sample.

        Raises:
            CacheError: It is not in the cache any more, or damaged.
        """
        return _read(self._visits[place], self._cache)

    def __iter__(self) -> Iterator[CachedSample]:
        return map(self.__getitem__, range(len(self)))

    def loader(self, workers: int = 0) -> Iterable[Batch]:
        """Return a DataLoader of the batches that training makes.

        Args:
            workers: Processes that read ahead; 0: none.
        """
        return DataLoader(self, batch_sampler=self.batches, collate_fn=collate, num_workers=workers)


class CachedDataset(Dataset[CachedSample]):
    """The pictures that a run trains on, in the dataset's order, each shown plainly.

    Plainly is: its first crop as it is, with its first text. What training draws (crops, mirroring,
    caption variants, dropout, repeats) is in `epoch`.

    Args:
        plan: What is trained.
        cache: What holds it.
        accumulation: Batches per optimizer step, which a token warmup goes by.
        max_train_steps: Optimizer steps of the run; a token warmup may be a fraction of them.
        skipped: Pictures that cannot be used.
    """

    def __init__(
        self,
        plan: Plan,
        cache: Cache,
        *,
        accumulation: int = 1,
        max_train_steps: int = 0,
        skipped: tuple[Skipped, ...] = (),
    ) -> None:
        self.plan = plan
        self.cache = cache
        self.skipped = skipped
        self._supply = Batches(
            plan=plan, cache=cache, accumulation=accumulation, max_train_steps=max_train_steps
        )

    @classmethod
    def open(
        cls,
        datasets: Sequence[DatasetConfig],
        cache_dir: Path | str,
        *,
        seed: int = 0,
        latents: str | None = None,
        text: str | None = None,
        caption_variants: int | None = None,
        crop_variants: int = 4,
        follow_links: bool = True,
        accumulation: int = 1,
        max_train_steps: int = 0,
    ) -> CachedDataset:
        """Join datasets with the caches that were filled for them.

        Args:
            datasets: What is to be trained on.
            cache_dir: The cache folder, or its address.
            seed: Of every draw and of the order, as `--seed` is.
            latents: Which of the latent caches, see `open_cache`; None: the only one there.
            text: The same for the text cache.
            caption_variants: As for `encode-text`.
            crop_variants: As for `cache-latents`.
            follow_links: The same.
            accumulation: See the class.
            max_train_steps: See the class.

        Raises:
            DataError: Not one picture can be used, or no picture of a subset has a caption.
            CacheError: The caches lack something, or several of them fit.
        """
        folder = open_place(cache_dir)
        survey = survey_pictures(
            find_pictures(datasets, links_refused=refusal(folder, follow_links=follow_links)),
            caption_variants=caption_variants,
            crop_variants=crop_variants,
            cache_dir=folder,
        )
        survey.uncaptioned()
        cache = open_cache(folder, latents, text)
        return cls(
            plan_from_cache(survey, cache, seed),
            cache,
            accumulation=accumulation,
            max_train_steps=max_train_steps,
            skipped=survey.skipped,
        )

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.plan.samples)

    def __getitem__(self, place: int) -> CachedSample:
        """Read a picture's sample.

        Raises:
            CacheError: It is not in the cache any more, or damaged.
        """
        sample = self.plan.samples[place]
        visit = replace(
            plain_visit(sample), loss_weight=sample.loss_weight, sigma_offset=sample.sigma_offset
        )
        return _read(visit, self.cache)

    def __iter__(self) -> Iterator[CachedSample]:
        return map(self.__getitem__, range(len(self)))

    def epoch(self, number: int) -> CachedSamples:
        """Return what training sees in an epoch (counted from 0), drawn and in its order."""
        windows = self._supply.drawn(number)
        return CachedSamples((batch for window in windows for batch in window), self.cache)

    def held_out(self, seed: int = 0) -> CachedSamples:
        """Return what validation looks at, which is not trained on.

        Args:
            seed: Of the order, as `--validation_seed` is.
        """
        return CachedSamples(self.plan.validation_batches(seed), self.cache)


def collate(samples: Sequence[CachedSample]) -> Batch:
    """Return samples as one batch, as a training step takes it; a DataLoader's collate_fn.

    Raises:
        DataError: Their latents are not of one size.
    """
    sizes = dict.fromkeys(tuple(sample.latent.shape[1:]) for sample in samples)
    if len(sizes) > 1:
        shown = ", ".join(f"{height}x{width}" for height, width in sizes)
        raise DataError(
            f"latents of {shown} positions cannot share a batch",
            "take batches from `loader`, or give a DataLoader `batches` as its batch_sampler",
        )
    return Batch(
        latents=torch.stack([sample.latent for sample in samples]),
        text=pad_texts([sample.condition for sample in samples]),
        weights=torch.tensor([sample.loss_weight for sample in samples]),
        sigma_offsets=torch.tensor([sample.sigma_offset for sample in samples]),
        names=tuple(sample.path.name for sample in samples),
        masks=stack_masks([sample.mask for sample in samples], next(iter(sizes))),
    )


def _read(visit: Visit, cache: Cache) -> CachedSample:
    return CachedSample(
        latent=cache.latents[visit.latent],
        condition=cache.text[visit.text],
        path=visit.path,
        caption=caption_of(cache.text, visit.text),
        mask=cache.masks[visit.mask] if visit.mask else None,
        loss_weight=visit.loss_weight,
        sigma_offset=visit.sigma_offset,
    )
