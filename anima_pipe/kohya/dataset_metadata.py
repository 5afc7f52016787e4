"""What a saved file says of its dataset: Kohya's ss_* facts, folders by their names alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from anima_pipe.dataset.config import DatasetConfig, SubsetConfig
from anima_pipe.dataset.survey import Sample, Survey


def dataset_facts(survey: Survey) -> dict[str, object]:
    """Return what is known of all datasets, and of the first one by the names of old tools."""
    datasets = [_dataset(dataset, _of(dataset, survey)) for dataset in survey.datasets]
    subsets = [subset for dataset in survey.datasets for subset in dataset.subsets]
    regular, regularising = (
        {
            _name(subset): {
                "n_repeats": subset.num_repeats,
                "img_count": _count(survey.samples, subset),
            }
            for subset in subsets
            if subset.is_reg == is_reg
        }
        for is_reg in (False, True)
    )
    first = datasets[0]
    sums = {
        name: sum(dataset[name] for dataset in datasets)
        for name in ("num_train_images", "num_reg_images")
    }
    return {
        **{f"ss_{name}": number for name, number in sums.items()},
        "ss_datasets": json.dumps(datasets, ensure_ascii=False),
        "ss_tag_frequency": json.dumps(_tag_frequency(survey.samples), ensure_ascii=False),
        "ss_dataset_dirs": json.dumps(regular, ensure_ascii=False),
        "ss_reg_dataset_dirs": json.dumps(regularising, ensure_ascii=False),
        "ss_batch_size_per_device": first["batch_size_per_device"],
        "ss_resolution": survey.datasets[0].buckets.resolution,
        "ss_enable_bucket": first["enable_bucket"],
        "ss_bucket_no_upscale": survey.datasets[0].buckets.bucket_no_upscale,
        "ss_min_bucket_reso": first["min_bucket_reso"],
        "ss_max_bucket_reso": first["max_bucket_reso"],
        "ss_bucket_info": json.dumps(first["bucket_info"]),
    }


def _dataset(dataset: DatasetConfig, samples: Sequence[Sample]) -> dict[str, Any]:
    rules = dataset.buckets
    visits = {
        is_reg: sum(s.visits for s in samples if s.picture.subset.is_reg == is_reg)
        for is_reg in (False, True)
    }
    return {
        "is_dreambooth": True,
        "batch_size_per_device": dataset.batch_size,
        "num_train_images": visits[False],
        "num_reg_images": visits[True],
        "resolution": list(rules.resolution),
        "enable_bucket": rules.enable_bucket,
        "min_bucket_reso": rules.min_bucket_reso if rules.enable_bucket else None,
        "max_bucket_reso": rules.max_bucket_reso if rules.enable_bucket else None,
        "tag_frequency": _tag_frequency(samples),
        "bucket_info": _bucket_info(samples),
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
        "image_dir": _name(subset),
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
    """Return in how many captions of a folder each tag stands; several orders count as one."""
    by_folder: dict[str, Counter[str]] = {}
    for sample in samples:
        counts = by_folder.setdefault(_name(sample.picture.subset), Counter())
        caption = next(iter(sample.captions), "")
        counts.update(tag.strip().lower() for tag in caption.split(",") if tag.strip())
    return {folder: dict(sorted(counts.items())) for folder, counts in sorted(by_folder.items())}


def _of(dataset: DatasetConfig, survey: Survey) -> list[Sample]:
    return [sample for sample in survey.samples if sample.picture.dataset == dataset]


def _count(samples: Iterable[Sample], subset: SubsetConfig) -> int:
    return sum(sample.picture.subset == subset for sample in samples)


def _name(subset: SubsetConfig) -> str:
    """Return the folder's name without where it is; resolved, for "." has none."""
    return subset.image_dir.resolve().name
