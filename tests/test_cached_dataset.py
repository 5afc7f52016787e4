"""CachedDataset: a dataset and its caches, for a training loop of one's own."""

from __future__ import annotations

import gc
import itertools
import pickle
import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from anima_pipe import demo
from anima_pipe.buckets import BucketRules
from anima_pipe.dataset.batches import Batches
from anima_pipe.dataset.cached import CachedDataset, CachedSample, collate
from anima_pipe.dataset.config import DatasetConfig, SubsetConfig
from anima_pipe.dataset.pictures import find_pictures
from anima_pipe.dataset.survey import survey_pictures
from anima_pipe.errors import CacheError, DataError
from anima_pipe.fill import (
    CacheSettings,
    LatentSettings,
    TextSettings,
    fill_latents,
    fill_masks,
    fill_text,
)
from anima_pipe.records import Batch, TextCondition
from anima_pipe.shards import LatentWriter, TextWriter, open_cache, text_key
from anima_pipe.shards.text import text_metadata
from anima_pipe.source.captions import CaptionRules
from anima_pipe.source.variants import WARMUP_PARTS

BUCKETS = BucketRules(
    resolution=(128, 128), min_bucket_reso=64, max_bucket_reso=256, bucket_reso_steps=32
)
SHUFFLED = CaptionRules(shuffle_caption=True, keep_tokens=1, caption_dropout_rate=0.3)


def dataset_of(pictures: Path, captions: CaptionRules = SHUFFLED, **subset: Any) -> DatasetConfig:
    return DatasetConfig(
        subsets=(SubsetConfig(image_dir=pictures, captions=captions, **subset),),
        buckets=BUCKETS,
        batch_size=2,
    )


def files_of(pictures: Path) -> list[Path]:
    return sorted(path for path in pictures.iterdir() if path.suffix != ".txt")


def filled(dataset: DatasetConfig, folder: Path) -> Path:
    """Cache what a dataset needs, with the demo's model."""
    cache = CacheSettings(folder=folder, device="cpu")
    survey = survey_pictures(find_pictures([dataset]), caption_variants=None, crop_variants=4)
    latents = LatentSettings(cache=cache, vae=demo.DEMO_VAE, workers=0)
    fill_latents(survey.latents, latents)
    fill_masks(survey.masks, latents)
    text = TextSettings(cache=cache, qwen=demo.DEMO_QWEN, t5_tokenizer_dir=demo.DEMO_T5_TOKENIZER)
    fill_text(survey.captions, text)
    return folder


@pytest.fixture(scope="module")
def varied(pictures: Path) -> DatasetConfig:
    """With crops, mirroring, shuffled captions that grow and are dropped, masks, and two visits."""
    captions = replace(SHUFFLED, token_warmup_step=0.5, token_warmup_min=1)
    return dataset_of(
        pictures,
        captions,
        num_repeats=2,
        flip_aug=True,
        random_crop=True,
        alpha_mask=True,
        loss_weight=0.5,
        sigma_offset=0.25,
        validation_split=0.3,
    )


@pytest.fixture(scope="module")
def cache_dir(varied: DatasetConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return filled(varied, tmp_path_factory.mktemp("cache"))


def same(one: Batch, other: Batch) -> bool:
    text, others = one.text, other.text
    assert one.masks is not None
    assert other.masks is not None
    pairs = (
        (one.latents, other.latents),
        (one.masks, other.masks),
        (one.weights, other.weights),
        (one.sigma_offsets, other.sigma_offsets),
        (text.qwen_hidden, others.qwen_hidden),
        (text.qwen_mask, others.qwen_mask),
        (text.t5_ids, others.t5_ids),
        (text.t5_mask, others.t5_mask),
    )
    return one.names == other.names and all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_an_epoch_is_what_training_sees_in_its_order(
    varied: DatasetConfig, cache_dir: Path, accumulation: int
):
    numbers = {"accumulation": accumulation, "max_train_steps": 12}
    dataset = CachedDataset.open([varied], cache_dir, seed=3, **numbers)
    supply = Batches(plan=dataset.plan, cache=dataset.cache, **numbers)
    windows = itertools.islice(supply.starting_at(0), 3 * supply.windows_per_epoch())
    trained = [micro.batch for window in windows for micro in window.micro_batches]
    epochs = [dataset.epoch(number) for number in range(3)]
    seen = [collate([epoch[i] for i in batch]) for epoch in epochs for batch in epoch.batches]
    assert len(seen) == len(trained) > 6
    assert all(map(same, seen, trained))


def test_every_draw_is_seen_in_some_epoch(varied: DatasetConfig, cache_dir: Path):
    dataset = CachedDataset.open([varied], cache_dir)
    samples = [sample for number in range(12) for sample in dataset.epoch(number)]
    assert len(samples) == 12 * 2 * len(dataset)
    for picture in dataset:
        own = [sample for sample in samples if sample.path == picture.path]
        assert len({sample.caption for sample in own}) > 3
        assert "" in {sample.caption for sample in own}
        latents = [sample.latent for sample in own]
        assert any(torch.equal(latent, picture.latent) for latent in latents)
        assert not all(torch.equal(latent, picture.latent) for latent in latents)


def test_a_sample_brings_its_picture_and_the_text_that_was_encoded(pictures: Path, tmp_path: Path):
    plain = dataset_of(pictures, CaptionRules())
    samples = list(CachedDataset.open([plain], filled(plain, tmp_path)))
    assert [sample.path for sample in samples] == files_of(pictures)
    for sample in samples:
        assert sample.caption == sample.path.with_suffix(".txt").read_text().strip()
        assert sample.latent.shape[0] == 16
        assert len(sample.condition.qwen_hidden) > 0
        assert (sample.mask, sample.loss_weight, sample.sigma_offset) == (None, 1.0, 0.0)


def test_samples_shown_plainly_can_be_read_in_any_order(varied: DatasetConfig, cache_dir: Path):
    dataset = CachedDataset.open([varied], cache_dir)
    backwards = [dataset[place] for place in reversed(range(len(dataset)))]
    for sample, again in zip(dataset, reversed(backwards), strict=True):
        assert (sample.path, sample.caption) == (again.path, again.caption)
        assert torch.equal(sample.latent, again.latent)
        assert (sample.loss_weight, sample.sigma_offset) == (0.5, 0.25)
        tags = sample.caption.split(", ")
        assert sorted(tags) == sorted(sample.path.with_suffix(".txt").read_text().split(", "))
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_captions_of_a_token_warmup_grow_with_the_steps(varied: DatasetConfig, cache_dir: Path):
    growing = replace(varied.subsets[0].captions, caption_dropout_rate=0.0)
    subset = replace(varied.subsets[0], captions=growing)
    dataset = CachedDataset.open(
        [replace(varied, subsets=(subset,))], cache_dir, max_train_steps=2 * 2 * WARMUP_PARTS
    )
    epochs = [dataset.epoch(number) for number in range(8)]
    assert len(epochs) * len(epochs[0].batches) > 2 * 2 * WARMUP_PARTS / 2
    for picture in dataset:
        shown = [
            len(sample.caption.split(", "))
            for epoch in epochs
            for sample in epoch
            if sample.path == picture.path
        ]
        assert shown == sorted(shown)
        assert shown[0] < shown[-1] == len(picture.caption.split(", "))


def test_pictures_held_out_are_apart(varied: DatasetConfig, cache_dir: Path, pictures: Path):
    dataset = CachedDataset.open([varied], cache_dir)
    trained = {sample.path for sample in dataset.epoch(0)}
    held_out = {sample.path for sample in dataset.held_out()}
    assert {sample.path for sample in dataset} == trained
    assert len(held_out) == 2
    assert held_out | trained == set(files_of(pictures))
    assert not held_out & trained


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_takes_it(varied: DatasetConfig, cache_dir: Path, workers: int):
    dataset = CachedDataset.open([varied], cache_dir)
    epoch = dataset.epoch(1)
    loaded = list(epoch.loader(workers))
    assert len(loaded) == len(epoch.batches)
    for batch, places in zip(loaded, epoch.batches, strict=True):
        assert same(batch, collate([epoch[place] for place in places]))
    first = list(DataLoader(epoch, batch_sampler=epoch.batches[:2], collate_fn=collate))
    assert len(first) == 2
    assert all(map(same, first, loaded))
    singly: list[CachedSample] = list(DataLoader(dataset, batch_size=None, num_workers=workers))
    assert [one.path for one in singly] == [one.path for one in dataset]
    assert all(torch.equal(a.latent, b.latent) for a, b in zip(singly, dataset, strict=True))


def test_a_copy_for_another_process_reads_the_same(varied: DatasetConfig, cache_dir: Path):
    epoch = CachedDataset.open([varied], cache_dir).epoch(0)
    copy = pickle.loads(pickle.dumps(epoch))
    assert [sample.caption for sample in copy] == [sample.caption for sample in epoch]


def test_samples_of_several_sizes_cannot_share_a_batch(varied: DatasetConfig, cache_dir: Path):
    dataset = CachedDataset.open([varied], cache_dir)
    with pytest.raises(DataError, match="positions cannot share a batch") as refused:
        collate(list(dataset))
    assert "batch_sampler" in refused.value.remedy


def test_a_cache_that_lacks_something_is_an_error_that_names_the_command(
    varied: DatasetConfig, cache_dir: Path, tmp_path: Path
):
    with pytest.raises(CacheError, match="6 of 6 images have no cached latents") as refused:
        CachedDataset.open([varied], tmp_path)
    assert "cache-latents" in refused.value.remedy
    subset = replace(varied.subsets[0], captions=CaptionRules(caption_prefix="new, "))
    other = replace(varied, subsets=(subset,))
    with pytest.raises(CacheError, match="have no cached text") as refused:
        CachedDataset.open([other], cache_dir)
    assert "encode-text" in refused.value.remedy


def test_a_latent_that_has_not_the_size_of_its_bucket_is_named_before_training(
    varied: DatasetConfig, cache_dir: Path, tmp_path: Path
):
    shutil.copytree(cache_dir, tmp_path, dirs_exist_ok=True)
    latents = open_cache(tmp_path).latents
    identity = latents.identity
    assert identity is not None
    turned = next(key for key in latents if len(set(latents.shape(key)[1:])) == 2)
    held = {key: latents[key] for key in latents}
    shutil.rmtree(latents.folder)
    with LatentWriter(tmp_path, identity.fingerprint, identity.dtype, "another") as writer:
        for key, latent in held.items():
            writer.add(key, latent.transpose(1, 2) if key == turned else latent, {})

    with pytest.raises(
        CacheError,
        match=rf"sample {turned} in {writer.folder}/.*\.tar: tensor latent has \d+x\d+ positions, "
        r"and the bucket \d+x\d+ of .*\n.*cache-latents",
    ):
        CachedDataset.open([varied], tmp_path)


def test_a_latent_that_is_refused_is_named_with_what_is_wrong(
    varied: DatasetConfig, cache_dir: Path, tmp_path: Path
):
    shutil.copytree(cache_dir, tmp_path, dirs_exist_ok=True)
    tar = next(tmp_path.glob("latents-*/*.tar"))
    tar.write_bytes(tar.read_bytes().replace(b"[16,", b"[61,"))
    for sidecar in tar.parent.glob("*.index.json"):
        sidecar.unlink()

    with pytest.raises(CacheError, match=rf"have no cached latents: .*; {tar}"):
        CachedDataset.open([varied], tmp_path)


def test_a_text_cache_that_does_not_say_its_texts_is_an_error(pictures: Path, tmp_path: Path):
    plain = dataset_of(pictures, CaptionRules())
    filled(plain, tmp_path)
    sample = CachedDataset.open([plain], tmp_path)[0]
    with TextWriter(tmp_path, "f" * 32, "fp16", "another") as writer:
        for path in [*pictures.glob("*.txt"), None]:
            text = path.read_text().strip() if path else ""
            writer.add(text_key(text), TextCondition(torch.ones(1, 4), torch.ones(1).int()), {})
    dataset = CachedDataset.open([plain], tmp_path, text="f" * 32)
    with pytest.raises(CacheError, match="does not say what it was encoded from"):
        _ = dataset[0]
    assert sample.caption


def test_pictures_that_cannot_be_used_are_left_out_and_named(pictures: Path, tmp_path: Path):
    folder = shutil.copytree(pictures, tmp_path / "pictures")
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "broken.txt").write_text("fox")
    plain = dataset_of(folder, CaptionRules())
    dataset = CachedDataset.open([plain], filled(plain, tmp_path / "cache"))
    assert [Path(skipped.name).name for skipped in dataset.skipped] == ["broken.png"]
    assert len(dataset) == len(files_of(folder)) - 1


def test_a_dataset_without_captions_is_refused_as_training_refuses_it(
    varied: DatasetConfig, cache_dir: Path
):
    subset = replace(varied.subsets[0], caption_extension=".caption")
    with pytest.raises(DataError, match="none of the 6 pictures in"):
        CachedDataset.open([replace(varied, subsets=(subset,))], cache_dir)


MANY = 500
LONG_CAPTION = "a fox in the snow " * 200


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[DatasetConfig, Path]:
    """Pictures whose captions are long, and their caches."""
    folder, cache_dir = tmp_path_factory.mktemp("many"), tmp_path_factory.mktemp("cache")
    for number in range(MANY):
        Image.new("RGB", (16, 16), (number % 256, number // 256, 0)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"{number} {LONG_CAPTION}")
    dataset = dataset_of(folder, CaptionRules())
    survey = survey_pictures(find_pictures([dataset]), caption_variants=None)
    with LatentWriter(cache_dir, "a" * 32, "fp16", "vae") as latents:
        for key in survey.latents:
            latents.add(key, torch.zeros(16, 16, 16), {})
    condition = TextCondition(torch.ones(1, 4), torch.ones(1).int())
    with TextWriter(cache_dir, "b" * 32, "fp16", "qwen") as texts:
        for caption in survey.captions:
            texts.add(text_key(caption), condition, text_metadata(caption, condition))
    return dataset, cache_dir


def test_what_is_kept_of_a_picture_does_not_grow_with_its_caption(
    many: tuple[DatasetConfig, Path],
):
    dataset, cache_dir = many
    opened = CachedDataset.open([dataset], cache_dir)
    assert len(opened[MANY - 1].caption) > len(LONG_CAPTION) - 1
    plan_and_places = kept_bytes(lambda: CachedDataset.open([dataset], cache_dir)) / MANY
    reading = kept_bytes(lambda: [None for sample in opened if not sample.caption])
    assert plan_and_places < len(LONG_CAPTION) / 2
    assert reading / MANY < 200


def kept_bytes(make: Callable[[], object]) -> int:
    """Return how many bytes are kept of what is made."""
    gc.collect()
    tracemalloc.start()
    made = make()
    gc.collect()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del made
    return kept
