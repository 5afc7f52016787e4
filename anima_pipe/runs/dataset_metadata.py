"""What a saved file says of its dataset: Kohya's ss_* facts, folders by their names alone."""

from __future__ import annotations

import functools
import operator
from collections import ChainMap, Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from anima_pipe.dataset.config import DatasetConfig, SubsetConfig
from anima_pipe.dataset.samples import Sample
from anima_pipe.dataset.survey import Survey
from anima_pipe.plain_text import json_text


def dataset_facts(survey: Survey) -> dict[str, object]:
    """Return what is known of all datasets, and of the first one by the names of old tools."""
    trained = [sample for sample in survey.samples if not sample.picture.held_out]
    datasets = [_dataset(dataset, _of(dataset, trained)) for dataset in survey.datasets]
    frequencies = [dataset["tag_frequency"] for dataset in datasets]
    sums = {
        name: sum(dataset[name] for dataset in datasets)
        for name in ("num_train_images", "num_reg_images")
    }
    return {
        **{f"ss_{name}": number for name, number in sums.items()},
        "ss_num_validation_images": len(survey.samples) - len(trained),
        "ss_datasets": json_text(datasets),
        # What several datasets list is counted in the first, as the visits are counted elsewhere.
        "ss_tag_frequency": json_text(dict(ChainMap(*frequencies))),
        "ss_dataset_dirs": json_text(_folders(survey, trained, is_reg=False)),
        "ss_reg_dataset_dirs": json_text(_folders(survey, trained, is_reg=True)),
        **_of_first(survey.datasets[0], datasets[0]),
    }


def _of_first(config: DatasetConfig, dataset: Mapping[str, Any]) -> dict[str, object]:
    """Return the first dataset's facts, by the names from the time when there was only one."""
    subset = dataset["subsets"][0]
    chances = ("color_aug", "flip_aug", "random_crop", "shuffle_caption", "keep_tokens")
    return {
        "ss_batch_size_per_device": dataset["batch_size_per_device"],
        "ss_resolution": config.buckets.resolution,
        "ss_enable_bucket": dataset["enable_bucket"],
        "ss_bucket_no_upscale": config.buckets.bucket_no_upscale,
        "ss_min_bucket_reso": dataset["min_bucket_reso"],
        "ss_max_bucket_reso": dataset["max_bucket_reso"],
        "ss_bucket_info": json_text(dataset["bucket_info"]),
        **{f"ss_{name}": subset[name] for name in chances},
    }


def _folders(survey: Survey, samples: Sequence[Sample], *, is_reg: bool) -> dict[str, Any]:
    """Return the folders and metadata files; one that is listed again gets a number."""
    folders: dict[str, Any] = {}
    for dataset in survey.datasets:
        own = _of(dataset, samples)
        for subset in dataset.subsets:
            if subset.is_reg != is_reg:
                continue
            name = _name(subset)
            again = sum(known == name or known.startswith(f"{name} (") for known in folders)
            numbered = f"{name} ({again + 1})" if again else name
            count = _count(own, subset)
            folders[numbered] = {"n_repeats": subset.num_repeats, "img_count": count}
    return folders


def _dataset(dataset: DatasetConfig, samples: Sequence[Sample]) -> dict[str, Any]:
    rules = dataset.buckets
    visits = {
        is_reg: sum(s.visits for s in samples if s.picture.subset.is_reg == is_reg)
        for is_reg in (False, True)
    }
    return {
        "is_dreambooth": not any(subset.metadata_file for subset in dataset.subsets),
        "batch_size_per_device": dataset.batch_size,
        "num_train_images": visits[False],
        "num_reg_images": visits[True],
        "resolution": list(rules.resolution),
        "enable_bucket": rules.enable_bucket,
        "min_bucket_reso": rules.min_bucket_reso if rules.enable_bucket else None,
        "max_bucket_reso": rules.max_bucket_reso if rules.enable_bucket else None,
        "tag_frequency": _tag_frequency(samples),
        "bucket_info": _bucket_info(samples),
        "resize_interpolation": dataset.subsets[0].resize_interpolation,
        "subsets": [_subset(subset, samples) for subset in dataset.subsets],
    }


def _subset(subset: SubsetConfig, samples: Iterable[Sample]) -> dict[str, Any]:
    rules = subset.captions
    return {
        "img_count": _count(samples, subset),
        "num_repeats": subset.num_repeats,
        "color_aug": False,
        "flip_aug": subset.flip_aug,
        "random_crop": subset.random_crop,
        "shuffle_caption": rules.shuffle_caption,
        "keep_tokens": rules.keep_tokens,
        "keep_tokens_separator": rules.keep_tokens_separator,
        "secondary_separator": rules.secondary_separator,
        "enable_wildcard": rules.enable_wildcard,
        "caption_prefix": rules.caption_prefix,
        "caption_suffix": rules.caption_suffix,
        "resize_interpolation": subset.resize_interpolation,
        "image_dir": subset.image_dir.resolve().name,
        **({"metadata_file": subset.metadata_file.name} if subset.metadata_file else {}),
        "class_tokens": subset.class_tokens,
        "is_reg": subset.is_reg,
    }


def _bucket_info(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return the visits of each bucket, and how far pictures are from their bucket's shape."""
    visits: Counter[tuple[int, int]] = Counter()
    errors: list[float] = []
    for sample in samples:
        width, height = sample.choice.bucket
        visits[width, height] += sample.visits
        own_width, own_height = sample.image.size
        errors.append(abs(width / height - own_width / own_height))
    return {
        "buckets": {
            str(number): {"resolution": list(bucket), "count": visits[bucket]}
            for number, bucket in enumerate(sorted(visits))
        },
        "mean_img_ar_error": sum(errors) / len(errors) if errors else 0.0,
    }


def _tag_frequency(samples: Iterable[Sample]) -> dict[str, dict[str, int]]:
    """Return how often each tag stands in a folder's captions; a caption's variants count as one.

    What one variant was left without by tag dropout stands in another.
    """
    by_folder: dict[str, Counter[str]] = {}
    for sample in samples:
        counts = by_folder.setdefault(_name(sample.picture.subset), Counter())
        variants = [Counter(_tags(caption)) for caption in sample.captions.full]
        counts.update(functools.reduce(operator.or_, variants, Counter()))
    return {folder: dict(sorted(counts.items())) for folder, counts in sorted(by_folder.items())}


def _tags(caption: str) -> Iterator[str]:
    return (tag.strip().lower() for tag in caption.split(",") if tag.strip())


def _of(dataset: DatasetConfig, samples: Iterable[Sample]) -> list[Sample]:
    return [sample for sample in samples if sample.picture.dataset == dataset]


def _count(samples: Iterable[Sample], subset: SubsetConfig) -> int:
    return sum(sample.picture.subset == subset for sample in samples)


def _name(subset: SubsetConfig) -> str:
    """Return what a subset is known by, without where it is; resolved, for "." has no name."""
    return (subset.metadata_file or subset.image_dir).resolve().name
