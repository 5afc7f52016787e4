"""From resolved options to the datasets that they name."""

from __future__ import annotations

from pathlib import Path

from anima_pipe.dataset.config import DatasetConfig
from anima_pipe.kohya.dataset_toml import (
    ExaminedDatasets,
    examine_dataset_config,
    examine_metadata_file,
    examine_training_folders,
    settled,
)
from anima_pipe.kohya.resolved import Resolved


def dataset_configs(options: Resolved) -> list[DatasetConfig]:
    """Return the datasets of dataset_config, or else of the training folders or in_json.

    Raises:
        ConfigError: It lists everything that is wrong with them.
    """
    return settled(examine_datasets(options))


def examine_datasets(options: Resolved) -> ExaminedDatasets:
    """Read those datasets without stopping at what is wrong.

    Raises:
        ConfigError: The file that describes them cannot be read.
    """
    fallbacks = options.dataset_fallbacks()
    folder = options.value("train_data_dir")
    if path := options.value("dataset_config"):
        examined = examine_dataset_config(path, fallbacks)
    elif path := options.value("in_json"):
        examined = examine_metadata_file(path, folder, fallbacks)
    else:
        path = folder
        examined = examine_training_folders(path, options.value("reg_data_dir"), fallbacks)
    return told_of_overruled(examined, path, options)


def told_of_overruled(
    examined: ExaminedDatasets, path: Path, options: Resolved
) -> ExaminedDatasets:
    """Return what was read with a warning for each option that has no say there.

    Args:
        examined: What was read.
        path: From where.
        options: Whose values filled the gaps.
    """
    said = [
        f"{options.written[name]} has no effect: {path.name} sets {key} for every subset"
        for name, key in examined.overruled.items()
    ]
    return examined._replace(warnings=[*examined.warnings, *said])
