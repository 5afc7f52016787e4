"""What is trained, how often and in which order: a dataset joined with its caches.

The order and every draw (orientation, caption variant, caption dropout) are a pure function of the
seed and the epoch, so that a run can be continued at any batch without saved generator state.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from anima_pipe.dataset.picture_captions import caption_lines
from anima_pipe.dataset.samples import Sample
from anima_pipe.dataset.survey import Survey
from anima_pipe.dataset.visits import (
    EMPTY_CAPTION,
    PlannedSample,
    Visit,
    draw_visit,
    plain_visit,
    samples_digest,
)
from anima_pipe.errors import CacheError, DataError
from anima_pipe.records import PIXELS_PER_LATENT, T5_LIMIT
from anima_pipe.runtime import counted, derive_seed
from anima_pipe.shards.keys import text_key
from anima_pipe.source.variants import CaptionNote

if TYPE_CHECKING:
    import torch

    from anima_pipe.shards import Cache, Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The samples of a run; nothing in it changes while training."""

    samples: tuple[PlannedSample, ...]
    seed: int
    held_out: tuple[PlannedSample, ...] = ()
    """Not trained on: what validation looks at, each shown in one way only."""
    long_texts: AbstractSet[str] = frozenset()
    """Keys of texts of more than `T5_LIMIT` tokens, of this dataset or others."""
    left_out: tuple[str, ...] = ()
    """What is not trained on, and why; for people."""
    caption_notes: Mapping[CaptionNote, int] = field(default_factory=dict[CaptionNote, int])
    """Of how many captions something is true."""
    links_out: int = 0
    """Links out of the dataset's folders, followed or not."""

    def batches_per_epoch(self) -> int:
        """Return the number of batches in every epoch; a bucket's last one may be smaller."""
        visits: Counter[tuple[tuple[int, int, int], int]] = Counter()
        for sample in self.samples:
            visits[sample.group, sample.batch_size] += sample.repeats
        return sum(-(-count // batch_size) for (_, batch_size), count in visits.items())

    def epoch(self, epoch: int) -> list[tuple[Visit, ...]]:
        """Return the batches of an epoch (counted from 0) in the order of training."""
        rng = random.Random(derive_seed("order", self.seed, epoch))  # noqa: S311 - not a secret
        groups: dict[tuple[int, int, int], list[PlannedSample]] = {}
        for sample in self.samples:
            groups.setdefault(sample.group, []).extend([sample] * sample.repeats)
        batches: list[tuple[Visit, ...]] = []
        for members in groups.values():
            rng.shuffle(members)
            size = members[0].batch_size
            for start in range(0, len(members), size):
                chunk = members[start : start + size]
                batches.append(tuple(draw_visit(sample, epoch, rng) for sample in chunk))
        rng.shuffle(batches)
        return batches

    def digest(self) -> str:
        """Return a hash of what is visited, how often, how and in which order, in hexadecimal.

        Where the pictures are and what they are called is no part of it, nor what is held out.
        """
        return samples_digest(self.samples)

    def validation_batches(self, seed: int) -> list[tuple[Visit, ...]]:
        """Return the batches of validation, always the same ones.

        Args:
            seed: Of their order, so that the first few are a fair choice among the buckets.
        """
        groups: dict[tuple[int, int, int], list[PlannedSample]] = {}
        for sample in self.held_out:
            groups.setdefault(sample.group, []).append(sample)
        batches = [
            tuple(plain_visit(sample) for sample in members[start : start + size])
            for members in groups.values()
            for size in (members[0].batch_size,)
            for start in range(0, len(members), size)
        ]
        random.Random(derive_seed("validation", seed)).shuffle(batches)  # noqa: S311 - not a secret
        return batches


def make_plan(
    survey: Survey,
    latent_keys: Iterable[str],
    text_keys: Iterable[str],
    mask_keys: Iterable[str] = (),
    *,
    seed: int,
    long_texts: AbstractSet[str] = frozenset(),
) -> Plan:
    """Join the dataset's samples with what the caches hold.

    Args:
        survey: The dataset.
        latent_keys: Keys in the latent cache.
        text_keys: Keys in the text cache.
        mask_keys: Keys in the cache of masks.
        seed: Of the run.
        long_texts: Keys in the text cache of texts of more than `T5_LIMIT` tokens.

    Raises:
        CacheError: A sample's latents, masks or texts, or the empty caption, are not in the caches.
        DataError: Validation holds out every picture that could be used.
    """
    samples = tuple(_planned(sample, survey) for sample in survey.samples)
    trained = tuple(sample for sample in samples if sample.repeats)
    if not trained:
        raise DataError(
            "all pictures that can be used are held out for validation", "lower validation_split"
        )
    cached_latents, cached_texts = frozenset(latent_keys), frozenset(text_keys)
    cached_masks = frozenset(mask_keys)
    without_latents = [s.name for s in samples if not cached_latents.issuperset(s.latents)]
    without_masks = [s.name for s in samples if not cached_masks.issuperset(s.masks)]
    without_text = [
        s.name
        for s in samples
        if not cached_texts.issuperset(s.texts) or not all(map(cached_texts.issuperset, s.warmup))
    ]
    _refuse_gaps("latents", without_latents, len(samples), "cache-latents")
    _refuse_gaps("masks", without_masks, len(samples), "cache-latents")
    _refuse_gaps("text", without_text, len(samples), "encode-text")
    if EMPTY_CAPTION not in cached_texts:
        raise CacheError(
            "the text cache has no empty caption, which caption dropout needs",
            "run `anima-pipe encode-text` for this dataset",
        )
    held_out = tuple(sample for sample in samples if not sample.repeats)
    return Plan(
        samples=trained,
        seed=seed,
        held_out=held_out,
        long_texts=long_texts,
        left_out=tuple(_left_out(survey)),
        caption_notes=survey.caption_notes,
        links_out=survey.links.count,
    )


def plan_from_cache(survey: Survey, cache: Cache, seed: int) -> Plan:
    """Join the dataset's samples with all that a cache holds.

    Raises:
        CacheError: As `make_plan`; or a latent or a mask has not the size of its bucket.
        DataError: As `make_plan`.
    """
    try:
        plan = make_plan(
            survey,
            cache.latents.keys(),
            cache.text.keys(),
            cache.masks.keys(),
            seed=seed,
            long_texts=cache.text.longer_than(T5_LIMIT, "t5_ids"),
        )
    except CacheError as error:
        problems = (*cache.latents.problems, *cache.masks.problems, *cache.text.problems)
        if not problems:
            raise
        raise CacheError(f"{error.problem}; {problems[0]}", error.remedy) from error
    for sample in (*plan.samples, *plan.held_out):
        _refuse_other_sizes(sample, sample.latents, cache.latents)
        _refuse_other_sizes(sample, sample.masks, cache.masks)
    return plan


def _refuse_other_sizes(
    sample: PlannedSample, keys: Iterable[str], store: Store[torch.Tensor]
) -> None:
    """Check that what is cached of a picture has the size of its bucket.

    Raises:
        CacheError: It has another one: it was cached under the key of something else.
    """
    _, width, height = sample.group
    positions = height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT
    for key in keys:
        if (size := store.shape(key)[-2:]) != positions:
            tar = store.shard_of(key)
            raise CacheError(
                f"sample {key} in {tar}: tensor {store.tensor} has {size[0]}x{size[1]} positions, "
                f"and the bucket {width}x{height} of {sample.name} has "
                f"{positions[0]}x{positions[1]}",
                f"remove {tar} and run `anima-pipe cache-latents`, which encodes it anew",
            )


def describe(plan: Plan) -> list[str]:
    """Return the lines that tell a user what will be trained."""
    buckets = Counter(sample.group[1:] for sample in plan.samples)
    texts = [key for s in plan.samples for part in (s.texts, *s.warmup) for key in part]
    long = sum(key in plan.long_texts for key in texts)
    mirrored = sum(len(sample.latents) > sample.crops for sample in plan.samples)
    crops = sum(sample.crops for sample in plan.samples if sample.crops > 1)
    training = [sample for sample in plan.samples if not sample.is_reg]
    lines = [
        f"images      {_visits(training)}"
        + (f", {mirrored} also mirrored" if mirrored else "")
        + (f", {crops} random crops" if crops else ""),
        *([f"repeats     {_repeats(training)}"] if training else []),
        *_special_lines(plan),
        f"captions    {counted(len(texts), 'variant')}"
        + (f", {long} over {T5_LIMIT} T5 tokens" if long else ""),
        *caption_lines(plan.caption_notes),
        f"batches     {plan.batches_per_epoch()} per epoch",
    ]
    by_size = sorted(buckets.items(), key=lambda item: (-item[1], item[0]))
    sizes = ", ".join(f"{w}x{h} ({count})" for (w, h), count in by_size)
    return [*lines, f"buckets     {sizes}"]


def _left_out(survey: Survey) -> Iterator[str]:
    """Yield how many pictures of the dataset are not in a plan, by reason."""
    if unusable := len(survey.skipped):
        yield f"{unusable} that cannot be used (named above)"
    if survey.too_small:
        yield f"{survey.too_small} by skip_image_resolution"
    if survey.not_needed:
        yield f"{counted(survey.not_needed, 'regularisation picture')} that are not needed"


def _repeats(samples: Sequence[PlannedSample]) -> str:
    counts = sorted(Counter(sample.repeats for sample in samples).items())
    if len(counts) == 1:
        return f"{counts[0][0]} of each image"
    return ", ".join(f"{repeats} ({counted(images, 'image')})" for repeats, images in counts)


def _visits(samples: Sequence[PlannedSample]) -> str:
    return f"{len(samples)}, {sum(sample.repeats for sample in samples)} visits per epoch"


def _special_lines(plan: Plan) -> Iterator[str]:
    """Yield what is true of some pictures only."""
    if plan.left_out:
        yield f"left out    {', '.join(plan.left_out)}"
    if plan.links_out:
        yield f"links       {plan.links_out} out of the dataset's folders (named above)"
    if plan.held_out:
        yield f"held out    {counted(len(plan.held_out), 'image')}, for validation"
    if regularising := [sample for sample in plan.samples if sample.is_reg]:
        yield f"reg images  {_visits(regularising)}"
    for title, usual, values in (
        ("loss weight", 1.0, [sample.loss_weight for sample in plan.samples]),
        ("noise shift", 0.0, [sample.sigma_offset for sample in plan.samples]),
    ):
        if set(values) != {usual}:
            counts = sorted(Counter(values).items())
            shares = (f"{value:g} ({counted(count, 'image')})" for value, count in counts)
            yield f"{title} {', '.join(shares)}"
    if growing := [sample for sample in plan.samples if sample.warmup]:
        lengths = sorted({sample.warmup_length for sample in growing})
        shown = ", ".join(f"{n:.0%} of the run" if n < 1 else f"{n:g} steps" for n in lengths)
        yield f"tag warmup  of {counted(len(growing), 'image')}, over {shown}"
    if masked := sum(bool(sample.masks) for sample in plan.samples):
        yield f"masks       of {counted(masked, 'image')}"


def _planned(sample: Sample, survey: Survey) -> PlannedSample:
    subset = sample.picture.subset
    return PlannedSample(
        name=sample.picture.name,
        folder=sample.picture.folder,
        latents=sample.latent_keys,
        texts=tuple(map(text_key, sample.captions.full)),
        chances=sample.captions.chances,
        warmup=tuple(tuple(map(text_key, texts)) for texts in sample.captions.warmup),
        warmup_chances=sample.captions.warmup_chances,
        warmup_length=subset.captions.token_warmup_step,
        group=(survey.datasets.index(sample.picture.dataset), *sample.choice.bucket),
        batch_size=sample.picture.dataset.batch_size,
        repeats=sample.visits,
        dropout_rate=subset.captions.caption_dropout_rate,
        dropout_every_n_epochs=subset.captions.caption_dropout_every_n_epochs,
        crops=len(sample.latent_keys) // (2 if sample.picture.rules.flip_aug else 1),
        loss_weight=subset.loss_weight,
        sigma_offset=subset.sigma_offset,
        is_reg=subset.is_reg,
        masks=sample.mask_keys,
    )


def _refuse_gaps(what: str, names: Sequence[str], total: int, command: str) -> None:
    if names:
        first = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise CacheError(
            f"{len(names)} of {total} images have no cached {what}: {first}",
            f"run `anima-pipe {command}` with the same dataset, or leave auto_cache on",
        )
