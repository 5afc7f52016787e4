"""Encode some cached samples once more, and compare: `anima-pipe cache verify --reencode N`."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from anima_pipe.dataset.pictures import find_pictures
from anima_pipe.dataset.survey import survey_pictures
from anima_pipe.encoders.fingerprints import text_fingerprint, vae_fingerprint
from anima_pipe.errors import ConfigError
from anima_pipe.fill import LatentSettings, TextSettings, fill_latents, fill_masks, fill_text
from anima_pipe.kohya.caching import latent_settings, text_settings
from anima_pipe.kohya.datasets import dataset_configs
from anima_pipe.kohya.model_files import with_recorded_models
from anima_pipe.kohya.resolved import Resolved
from anima_pipe.records import LatentRequest, MaskRequest, Text, TextCondition
from anima_pipe.shards.folders import MASK_CACHE, Identity, Kind, described_folders
from anima_pipe.shards.latents import LATENTS
from anima_pipe.shards.masks import MASKS
from anima_pipe.shards.store import Store
from anima_pipe.shards.text import TEXT, noted_text

ABSOLUTE_TOLERANCE = 0.01
RELATIVE_TOLERANCE = 0.02
"""Another device rounds otherwise, in bf16 by nearly 0.01 of a value; other pixels are far off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Samples of one cache as they are there and as they are encoded now."""

    folder: Path
    compared: int
    different: tuple[str, ...]
    """Keys of those that are not what the encoder makes now."""
    largest: float
    """Largest difference of two values, over all that were compared."""


def reencode(options: Resolved, count: int) -> list[Comparison]:
    """Encode up to `count` samples of each encoder that the options name, or fetch-models noted.

    Args:
        options: Of training: they name encoders, the cache and, for latents, the dataset.
        count: Samples per encoder and dtype, drawn the same way every time.

    Raises:
        ConfigError: The options name no encoder, or none that the cache is of.
        PipeError: An encoder or the dataset cannot be read.
    """
    if not (options.value("vae") or options.value("qwen3")):
        options = with_recorded_models(options, "vae", "qwen3", "t5_tokenizer_dir")
    comparisons: list[Comparison] = []
    if options.value("vae"):
        comparisons += _reencode_latents(options, count)
    if options.value("qwen3"):
        comparisons += _reencode_texts(options, count)
    if not comparisons:
        raise ConfigError(
            "there is nothing to encode again: no cache of an encoder that was given",
            "set --vae, or --qwen3 and --t5_tokenizer_dir, to those that made the cache",
        )
    return comparisons


def _reencode_latents(options: Resolved, count: int) -> Iterator[Comparison]:
    options.require("dataset_config")
    settings = latent_settings(options)
    pictures = find_pictures(dataset_configs(options))
    survey = survey_pictures(
        pictures,
        caption_variants=0,
        crop_variants=options.value("crop_variants"),
        cache_dir=settings.cache.folder,
        max_image_pixels=options.value("max_image_pixels"),
    )
    yield from _redo_masks(survey.masks, settings, count)
    requests = survey.latents
    fingerprint = vae_fingerprint(settings.vae)
    for folder, identity in _folders_of(settings.cache.folder, "latents", fingerprint):
        cached = Store(LATENTS, settings.cache.folder, f"{fingerprint}-{identity.dtype}")
        keys = _drawn(requests.keys() & cached.keys(), count)
        fresh = _latents_anew({key: requests[key] for key in keys}, settings, identity)
        pairs = {key: (cached[key], fresh[key]) for key in keys if key in fresh}
        yield _compared(folder, keys, pairs)


def _redo_masks(
    requests: Mapping[str, MaskRequest], settings: LatentSettings, count: int
) -> Iterator[Comparison]:
    cached = Store(MASKS, settings.cache.folder, MASK_CACHE)
    keys = _drawn(requests.keys() & cached.keys(), count)
    if not keys:
        return
    with tempfile.TemporaryDirectory() as folder:
        anew = replace(settings, cache=replace(settings.cache, folder=Path(folder)))
        fill_masks({key: requests[key] for key in keys}, anew)
        fresh = Store(MASKS, Path(folder), MASK_CACHE)
        pairs = {key: (cached[key], fresh[key].clone()) for key in keys if key in fresh}
        yield _compared(cached.folder, keys, pairs)


def _reencode_texts(options: Resolved, count: int) -> Iterator[Comparison]:
    options.require("t5_tokenizer_dir")
    settings = text_settings(options)
    fingerprint = text_fingerprint(settings.qwen, settings.t5_tokenizer_dir)
    for folder, identity in _folders_of(settings.cache.folder, "text", fingerprint):
        cached = Store(TEXT, settings.cache.folder, f"{fingerprint}-{identity.dtype}")
        keys = _drawn(cached.keys(), count)
        texts = [noted_text(cached.metadata(key)) for key in keys]
        fresh = _texts_anew(texts, settings, identity)
        pairs = {
            key: (cached[key].qwen_hidden, fresh[key].qwen_hidden)
            for key in keys
            if key in fresh and _same_tokens(cached[key], fresh[key])
        }
        yield _compared(folder, keys, pairs)


def _folders_of(cache_dir: Path, kind: Kind, fingerprint: str) -> list[tuple[Path, Identity]]:
    """Return one encoder's folders: one for each dtype."""
    folders = described_folders(cache_dir, kind)
    return [found for found in folders if found[1].fingerprint == fingerprint]


def _drawn(keys: Collection[str], count: int) -> list[str]:
    rng = random.Random("verify")  # noqa: S311 - not a secret
    return rng.sample(sorted(keys), min(count, len(keys)))


def _latents_anew(
    requests: Mapping[str, LatentRequest], settings: LatentSettings, identity: Identity
) -> dict[str, torch.Tensor]:
    """Encode latents as the stage does, into a cache that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        cache = replace(settings.cache, folder=Path(folder), dtype=identity.dtype)
        fill_latents(requests, replace(settings, cache=cache))
        store = Store(LATENTS, Path(folder), None)
        return {key: store[key].clone() for key in store}


def _texts_anew(
    texts: Sequence[Text], settings: TextSettings, identity: Identity
) -> dict[str, TextCondition]:
    """Encode texts as the stage does, into a cache that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        cache = replace(settings.cache, folder=Path(folder), dtype=identity.dtype)
        fill_text(texts, replace(settings, cache=cache))
        store = Store(TEXT, Path(folder), None)
        return {
            key: TextCondition(store[key].qwen_hidden.clone(), store[key].t5_ids.clone())
            for key in store
        }


def _compared(
    folder: Path, keys: Sequence[str], pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
) -> Comparison:
    """Compare what was encoded again; a key without a pair is another sample altogether."""
    differences = [(then.float() - now.float()).abs() for then, now in pairs.values()]
    return Comparison(
        folder=folder,
        compared=len(keys),
        different=tuple(key for key in keys if key not in pairs or not _alike(*pairs[key])),
        # Of tensors, for max() of Python loses what is no number.
        largest=torch.tensor([0.0, *(d.max().item() for d in differences if d.numel())])
        .max()
        .item(),
    )


def _same_tokens(then: TextCondition, now: TextCondition) -> bool:
    lengths = len(then.qwen_hidden), len(now.qwen_hidden)
    return torch.equal(then.t5_ids, now.t5_ids) and lengths[0] == lengths[1]


def _alike(then: torch.Tensor, now: torch.Tensor) -> bool:
    return torch.allclose(
        then.float(), now.float(), rtol=RELATIVE_TOLERANCE, atol=ABSOLUTE_TOLERANCE
    )
