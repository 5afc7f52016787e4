"""The file behind --config_file: TOML whose section headings do not matter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

from anima_pipe.errors import ConfigError
from anima_pipe.kohya.config_file import ConfigFile, KeyPath, read_toml

_ROOT_STYLE_KEYS: Final[Mapping[str, frozenset[str]]] = {
    "model": frozenset({"transformer_path", "text_encoder_path"}),
    "training": frozenset({"epochs", "max_steps", "grad_accum", "grad_checkpoint"}),
    "lora": frozenset({"network_type", "lora_rank", "lora_alpha", "lora_name"}),
    "optimizer": frozenset({"type", "beta1", "beta2"}),
    "output": frozenset({"save_every"}),
    "dataset": frozenset({"data_dir", "repeats", "min_reso", "max_reso", "reso_step"}),
}
"""Keys that only the seed's root-style files have, by their section."""


class TrainArg(NamedTuple):
    """One key of the file."""

    key: str
    value: object
    line: int


def train_args_path(path: Path) -> Path:
    """Return the file that --config_file means: `.toml` may be left off."""
    if path.suffix == ".toml" or path.is_file():
        return path
    return path.with_name(f"{path.name}.toml")


def read_train_args(path: Path) -> list[TrainArg]:
    """Read the keys of a train_args.toml in their order; a key may stand in several sections.

    Raises:
        ConfigError: The file cannot be read, is not TOML, or is another kind of file.
    """
    if path.suffix == ".json":
        raise ConfigError(
            f"{path} is JSON, but --config_file takes TOML",
            "write its options into a train_args.toml; a preset of kohya_ss GUI is converted by "
            f"`anima-pipe convert-config {path}`",
        )
    file = read_toml(train_args_path(path))
    _refuse_other_kinds(file)
    return list(_flatten(file, (), file.table))


def _flatten(file: ConfigFile, above: KeyPath, table: Mapping[str, Any]) -> Iterator[TrainArg]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flatten(file, (*above, key), cast("dict[str, Any]", value))
        else:
            yield TrainArg(key, value, file.lines.get((*above, key), 0))


def _refuse_other_kinds(file: ConfigFile) -> None:
    if "datasets" in file.table:
        raise ConfigError(
            f"{file.path} describes datasets, not the training",
            "give it as --dataset_config",
        )
    for section, keys in _ROOT_STYLE_KEYS.items():
        table: object = file.table.get(section)
        if isinstance(table, dict) and (found := sorted(keys & cast("set[str]", table.keys()))):
            raise ConfigError(
                f"{file.path} is a root-style file ([{section}] with {', '.join(found)}), "
                "which training does not read",
                f"convert it: `anima-pipe convert-config {file.path}`",
            )
