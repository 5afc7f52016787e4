"""dataset.toml (or .json), or a bare folder of pictures, into the datasets to train on.

A key is looked for in the subset, then its dataset, then [general], then the options of the command
line and train_args.toml, as Kohya does; the first that says anything wins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

from anima_pipe.buckets import BucketRules
from anima_pipe.dataset.config import DatasetConfig, SubsetConfig
from anima_pipe.errors import ConfigError
from anima_pipe.kohya.bucket_keys import bucket_rules
from anima_pipe.kohya.config_file import ConfigFile, KeyPath, read_json, read_toml
from anima_pipe.kohya.dataset_keys import DATASETS, GENERAL, RENAMED, SUBSETS
from anima_pipe.kohya.dataset_tables import (
    Levels,
    Reading,
    Table,
    first_value,
    named,
    note_use_of_options,
    object_to_unknown,
    read_level,
    read_tables,
    written,
)
from anima_pipe.kohya.findings import Finding, raise_findings
from anima_pipe.kohya.training_folders import folder_table, training_folders
from anima_pipe.runtime import warn
from anima_pipe.source.captions import CaptionRules

_OPTION_OF_KEY: Final = {key: option for option, key in RENAMED.items()}


class _Source(NamedTuple):
    """Where a subset's pictures are."""

    folder: Path
    metadata_file: Path | None = None


class ExaminedDatasets(NamedTuple):
    """What a file describes."""

    datasets: list[DatasetConfig]
    """All that can be made out."""
    findings: list[Finding]
    """What is wrong with the others."""
    warnings: list[str]
    """What is without effect, or left out as Kohya leaves it out."""
    overruled: Mapping[str, str]
    """Options that have no say, by name, and the keys that are set otherwise in every subset."""


def load_dataset_config(path: Path, fallbacks: Mapping[str, object]) -> list[DatasetConfig]:
    """Return the datasets that a file or a bare folder of pictures describes.

    Args:
        path: dataset.toml, the same as JSON, or a folder of pictures with captions beside them.
        fallbacks: Values by option name that fill the gaps; None counts as a gap.

    Raises:
        ConfigError: It lists everything that is wrong, each with its key, line and remedy.
    """
    return settled(examine_dataset_config(path, fallbacks))


def settled(examined: ExaminedDatasets) -> list[DatasetConfig]:
    """Return the datasets, having said what is without effect.

    Raises:
        ConfigError: It lists everything that is wrong.
    """
    for warning in examined.warnings:
        warn(warning)
    raise_findings(examined.findings)
    return examined.datasets


def examine_dataset_config(path: Path, fallbacks: Mapping[str, object]) -> ExaminedDatasets:
    """Read the datasets of a file or a bare folder without stopping at what is wrong.

    Raises:
        ConfigError: The file cannot be read, or is neither TOML nor JSON.
    """
    notes: list[str] = []
    if path.is_dir():
        table, notes = folder_table(path, _by_key(fallbacks))
        reading = _reading(ConfigFile(path=path, table=table, lines={}), fallbacks)
    else:
        reading = _reading(_read_file(path), fallbacks)
    reading.warnings.extend(notes)
    return _examined(reading, list(_datasets(reading)))


def examine_training_folders(
    folder: Path, reg_folder: Path | None, fallbacks: Mapping[str, object]
) -> ExaminedDatasets:
    """Read the dataset that Kohya's --train_data_dir and --reg_data_dir make up.

    Args:
        folder: Holds folders of pictures named 10_subject.
        reg_folder: Holds folders of regularisation pictures named 10_class.
        fallbacks: See `load_dataset_config`.
    """
    subsets, left_out = training_folders(folder, reg_folder)
    table: dict[str, Any] = {"datasets": [{"subsets": subsets}]} if subsets else {}
    reading = _reading(ConfigFile(path=folder, table=table, lines={}), fallbacks)
    reading.warnings.extend(left_out)
    for root in filter(None, (folder, reg_folder)):
        if not any(Path(str(subset["image_dir"])).parent == root for subset in subsets):
            problem = f"there is no folder named like 10_subject in {root}"
            remedy = "name the folders so, or give a folder of pictures itself as --dataset_config"
            reading.object_to((), problem, remedy, here_only=not root.is_dir())
    return _examined(reading, list(_datasets(reading)) if subsets else [])


def examine_metadata_file(
    file: Path, folder: Path | None, fallbacks: Mapping[str, object]
) -> ExaminedDatasets:
    """Read the dataset that Kohya's --in_json makes up.

    Args:
        file: See `source.metadata_file`.
        folder: What its relative paths start from; None: its own folder.
        fallbacks: See `load_dataset_config`.
    """
    subset = {"metadata_file": str(file)} | ({"image_dir": str(folder)} if folder else {})
    table: dict[str, Any] = {"datasets": [{"subsets": [subset]}]}
    reading = _reading(ConfigFile(path=file, table=table, lines={}), fallbacks)
    return _examined(reading, list(_datasets(reading)))


def _reading(file: ConfigFile, fallbacks: Mapping[str, object]) -> Reading:
    return Reading(file=file, options=_by_key(fallbacks))


def _by_key(fallbacks: Mapping[str, object]) -> dict[str, object]:
    """Return the options that are set, by what dataset.toml calls them."""
    given = {name: value for name, value in fallbacks.items() if value is not None}
    return {RENAMED.get(name, name): value for name, value in given.items()}


def _examined(reading: Reading, datasets: list[DatasetConfig]) -> ExaminedDatasets:
    if not datasets and not reading.findings:
        problem = "this leaves no pictures to train on: num_repeats is below 1 everywhere"
        reading.object_to((), problem, "set num_repeats of a subset to 1 or more")
    subsets = [subset for dataset in datasets for subset in dataset.subsets]
    has_reg = any(subset.is_reg for subset in subsets)
    if _prior_weight(reading) != 1 and not has_reg:
        unused = "prior_loss_weight changes nothing: there are no regularisation pictures"
        reading.warnings.append(unused)
    if reading.options.get("masked_loss") and not any(s.mask_dir or s.alpha_mask for s in subsets):
        reading.warnings.append(
            "masked_loss changes nothing: no subset has conditioning_data_dir or alpha_mask"
        )
    keys = reading.overruled - reading.taken
    overruled = {_OPTION_OF_KEY.get(key, key): key for key in sorted(keys)}
    return ExaminedDatasets(datasets, reading.findings, reading.warnings, overruled)


def _read_file(path: Path) -> ConfigFile:
    match path.suffix.lower():
        case ".toml":
            return read_toml(path)
        case ".json":
            return read_json(path)
        case _ if path.exists():
            raise ConfigError(
                f"not supported config file format: {path}", "give a .toml, a .json or a folder"
            )
        case _:
            raise ConfigError(f"file not found: {path}", "correct --dataset_config")


def _datasets(reading: Reading) -> Iterator[DatasetConfig]:
    """Yield every dataset that can be made out; what cannot goes to the findings."""
    table = reading.file.table
    for key in table:
        if key not in ("general", "datasets"):
            object_to_unknown(reading, (key,), top=True)
    general = read_level(reading, ("general",), table.get("general", {}), GENERAL)
    tables = read_tables(reading, ("datasets",), table.get("datasets"))
    for number, dataset_table in enumerate(tables):
        path = ("datasets", number)
        own = read_level(reading, path, dataset_table, DATASETS)
        levels = (own, general, reading.options)
        buckets = bucket_rules(reading, path, levels)
        subsets = tuple(_subsets(reading, path, dataset_table.get("subsets"), levels))
        if subsets and all(subset.is_reg for subset in subsets):
            problem = "holds regularisation pictures only, and nothing to train on"
            reading.object_to(path, problem, "add a subset without is_reg")
        if buckets and subsets:
            yield _dataset(subsets, buckets, levels)


def _dataset(
    subsets: tuple[SubsetConfig, ...], buckets: BucketRules, levels: Levels
) -> DatasetConfig:
    return DatasetConfig(
        subsets=subsets,
        buckets=buckets,
        batch_size=first_value("batch_size", levels),
        skip_image_resolution=first_value("skip_image_resolution", levels),
    )


def _subsets(
    reading: Reading, path: KeyPath, found: object, levels: Levels
) -> Iterator[SubsetConfig]:
    """Yield the subsets of one dataset, without those that Kohya leaves out too."""
    sources: set[Path] = set()
    for number, table in enumerate(read_tables(reading, (*path, "subsets"), found)):
        own_path = (*path, "subsets", number)
        own = read_level(reading, own_path, table, SUBSETS)
        own_levels = (own, *levels)
        note_use_of_options(reading, own_levels)
        source = _source(reading, own_path, table, own)
        if source is None:
            continue
        identity = source.metadata_file or source.folder
        if first_value("num_repeats", own_levels) < 1:
            reading.warnings.append(f"{written(own_path)} is left out: num_repeats is below 1")
        elif identity.resolve() in sources:
            repeated = f"{written(own_path)} is left out: its dataset has {identity} already"
            reading.warnings.append(repeated)
        elif subset := _subset(reading, own_path, source, own_levels):
            sources.add(identity.resolve())
            yield subset


def _subset(
    reading: Reading, path: KeyPath, source: _Source, levels: Levels
) -> SubsetConfig | None:
    captions = {rule.name: first_value(rule.name, levels) for rule in fields(CaptionRules)}
    extension: str = first_value("caption_extension", levels)
    is_reg: bool = first_value("is_reg", levels)
    weight: float = first_value("loss_weight", levels)
    if is_reg and source.metadata_file:
        problem = "pictures of a metadata file cannot be regularisation pictures"
        reading.object_to((*path, "is_reg"), problem, "describe them by image_dir alone")
    try:
        return SubsetConfig(
            image_dir=source.folder,
            found_in=_found_in(reading, source.folder),
            metadata_file=source.metadata_file,
            num_repeats=first_value("num_repeats", levels),
            caption_extension=extension if extension.startswith(".") else f".{extension}",
            class_tokens=first_value("class_tokens", levels),
            captions=CaptionRules(**captions),
            flip_aug=first_value("flip_aug", levels),
            random_crop=first_value("random_crop", levels),
            face_crop_aug_range=_face_crops(reading, path, levels),
            resize_interpolation=first_value("resize_interpolation", levels),
            loss_weight=weight * _prior_weight(reading) if is_reg else weight,
            is_reg=is_reg,
            sigma_offset=first_value("custom_attributes", levels) or 0.0,
            mask_dir=_mask_dir(reading, path, levels),
            alpha_mask=first_value("alpha_mask", levels),
            validation_split=first_value("validation_split", levels),
            validation_seed=first_value("validation_seed", levels),
        )
    except ConfigError as error:
        reading.object_to(path, error.problem, error.remedy)
        return None


def _face_crops(reading: Reading, path: KeyPath, levels: Levels) -> tuple[float, float] | None:
    """Return how close crops come to faces; None beside buckets, where Kohya ignores it too."""
    closeness: tuple[float, float] | None = first_value("face_crop_aug_range", levels)
    if closeness and first_value("enable_bucket", levels):
        name = named((*path, "face_crop_aug_range"), levels)
        reading.warnings.append(f"{name} has no effect beside enable_bucket, as in Kohya")
        return None
    return closeness


def _prior_weight(reading: Reading) -> float:
    return cast("float", reading.options.get("prior_loss_weight", 1.0))


def _source(
    reading: Reading, path: KeyPath, table: Table, own: Mapping[str, object]
) -> _Source | None:
    """Return where a subset's pictures are; what is missing goes to the findings."""
    if not {"image_dir", "metadata_file"} & table.keys():
        reading.object_to(path, "image_dir is missing", "add image_dir, a folder of pictures")
    folder = _place(reading, (*path, "image_dir"), own.get("image_dir"))
    metadata_file = _place(reading, (*path, "metadata_file"), own.get("metadata_file"))
    if folder is None and metadata_file and "image_dir" not in table:
        folder = metadata_file.parent
    lacks_metadata = metadata_file is None and "metadata_file" in table
    return None if folder is None or lacks_metadata else _Source(folder, metadata_file)


def _found_in(reading: Reading, folder: Path) -> Path | None:
    """Return the folder that a subset's was found in; None: it was named, by a file or itself."""
    given = reading.file.path
    return None if not given.is_dir() or folder == given.absolute() else folder.parent


def _mask_dir(reading: Reading, path: KeyPath, levels: Levels) -> Path | None:
    """Return the folder of a subset's masks; as in Kohya it needs masked_loss."""
    given = first_value("conditioning_data_dir", levels)
    if given is None:
        return None
    own_path = (*path, "conditioning_data_dir")
    if not reading.options.get("masked_loss"):
        remedy = "set masked_loss = true among the options of the training, or remove it"
        reading.object_to(own_path, "is read only with masked_loss", remedy, here_only=True)
        return None
    return _place(reading, own_path, given)


def _place(reading: Reading, path: KeyPath, given: object) -> Path | None:
    """Return a folder, or a metadata file, relative to where we are or else to the file."""
    if not isinstance(given, Path):
        return None
    is_folder = path[-1] != "metadata_file"
    candidates = dict.fromkeys(base / given for base in (Path.cwd(), reading.file.path.parent))
    for candidate in candidates:
        if candidate.is_dir() if is_folder else candidate.is_file():
            return candidate
    looked = " and ".join(str(candidate) for candidate in candidates)
    problem = f"there is no {'folder' if is_folder else 'file'} {looked}"
    reading.object_to(path, problem, "correct the path", here_only=True)
    return None
