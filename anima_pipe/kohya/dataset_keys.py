"""The keys of dataset.toml: where each may stand, what it takes, and what fills its gaps.

A key that is an option of the command line too has that option's row for type, range and fate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from anima_pipe.kohya.custom_attributes import sigma_offset
from anima_pipe.kohya.options import find_option
from anima_pipe.kohya.rows import Kind, Option, flag, no_op, number, path, text

GENERAL: Final = "[general]"
DATASETS: Final = "[[datasets]]"
SUBSETS: Final = "[[datasets.subsets]]"

_ANYWHERE: Final = (GENERAL, DATASETS, SUBSETS)
_NOT_IN_SUBSETS: Final = (GENERAL, DATASETS)
_ONLY_IN_SUBSETS: Final = (SUBSETS,)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetKey:
    """One key of dataset.toml."""

    name: str
    levels: tuple[str, ...]
    """The tables that it may stand in."""
    row: Option
    """What it takes, and what becomes of it."""
    fallback: str | None = None
    """The option that fills in where no table has the key."""
    reader: Callable[[object], object] | None = None
    """What makes the value of what was written, where that is more than the row's kind."""


def _as_option(levels: tuple[str, ...], name: str, option_name: str = "") -> DatasetKey:
    row = find_option(option_name or name)
    assert row is not None, name
    return DatasetKey(name=name, levels=levels, row=row, fallback=row.name)


def _of_its_own(levels: tuple[str, ...], *rows: Option) -> list[DatasetKey]:
    return [DatasetKey(name=row.name, levels=levels, row=row) for row in rows]


def _visits() -> DatasetKey:
    key = _as_option(_ANYWHERE, "num_repeats", "dataset_repeats")
    # A subset without repeats is left out, not an error.
    return replace(key, row=replace(key.row, minimum=None))


_SUBSET_KEYS: Final = (
    "color_aug",
    "face_crop_aug_range",
    "flip_aug",
    "random_crop",
    "shuffle_caption",
    "keep_tokens",
    "keep_tokens_separator",
    "keep_sections",
    "secondary_separator",
    "caption_separator",
    "enable_wildcard",
    "token_warmup_min",
    "token_warmup_step",
    "caption_prefix",
    "caption_suffix",
    "resize_interpolation",
    "caption_dropout_every_n_epochs",
    "caption_dropout_rate",
    "caption_tag_dropout_rate",
    "caption_seed",
    "keep_backslashes",
    "caption_extension",
    "cache_info",
    "validation_seed",
    "validation_split",
)

_DATASET_KEYS: Final = (
    "bucket_no_upscale",
    "bucket_reso_steps",
    "enable_bucket",
    "max_bucket_reso",
    "min_bucket_reso",
    "resolution",
    "skip_image_resolution",
)

_KEYS: Final = (
    *(_as_option(_ANYWHERE, name) for name in _SUBSET_KEYS),
    _visits(),
    *_of_its_own(
        _ANYWHERE,
        text(
            "class_tokens",
            "Caption of pictures without a caption file.",
            test="test_options_of_datasets.py::test_class_tokens_are_the_caption_of_pictures_without_one",
        ),
        number(
            "loss_weight",
            "Factor of the loss of these pictures; below 1 they count less.",
            default=1.0,
            minimum=0,
            test="test_plan.py::test_every_visit_carries_the_loss_weight_of_its_subset",
        ),
    ),
    DatasetKey(
        name="custom_attributes",
        levels=_ANYWHERE,
        row=Option(
            name="custom_attributes",
            kind=Kind.TABLE,
            help="{ timestep_sampling = { offset = X } } adds X to the normal draw behind noise "
            "levels; -0.5 to 0.5, below 0 trains more on clean latents.",
            test="test_sigma_offsets.py::test_an_offset_moves_the_noise_levels_of_its_samples",
        ),
        reader=sigma_offset,
    ),
    *(_as_option(_NOT_IN_SUBSETS, name) for name in _DATASET_KEYS),
    _as_option(_NOT_IN_SUBSETS, "batch_size", "train_batch_size"),
    *_of_its_own(
        _NOT_IN_SUBSETS,
        *no_op(
            "Kohya's Anima training does not read it either",
            number("network_multiplier", "Strength of the adapter.", default=1.0),
        ),
    ),
    *_of_its_own(
        _ONLY_IN_SUBSETS,
        path(
            "image_dir",
            "Folder of pictures.",
            test="test_options_of_datasets.py::test_a_metadata_file_names_pictures_of_image_dir_and_their_captions",
        ),
        flag(
            "is_reg",
            "These are regularisation pictures: visited as often in all as the dataset's other "
            "pictures, their loss weighed by prior_loss_weight.",
            test="test_regularisation.py::test_an_epoch_has_as_many_visits_to_regularisation_pictures_as_to_others",
        ),
        path(
            "metadata_file",
            "JSON (or .jsonl) of pictures with captions and tags; relative paths in it start from "
            "image_dir, or else from the file's own folder.",
            test="test_options_of_datasets.py::test_a_metadata_file_names_pictures_of_image_dir_and_their_captions",
        ),
    ),
    _as_option(_ONLY_IN_SUBSETS, "alpha_mask"),
    _as_option(_ONLY_IN_SUBSETS, "conditioning_data_dir"),
)

DATASET_KEYS: Final[Mapping[str, DatasetKey]] = {key.name: key for key in _KEYS}
"""Every key, by its name."""

RENAMED: Final[Mapping[str, str]] = {
    key.fallback: key.name for key in _KEYS if key.fallback and key.fallback != key.name
}
"""Options of the command line that dataset.toml calls otherwise."""
