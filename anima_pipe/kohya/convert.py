"""Foreign configurations into train_args.toml and dataset.toml."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from anima_pipe.errors import ConfigError
from anima_pipe.files import write_atomically
from anima_pipe.kohya.check import Report, check_files
from anima_pipe.kohya.config_file import read_json, read_toml
from anima_pipe.kohya.converted import Converted
from anima_pipe.kohya.gui_preset import PROMPTS_NAME, convert_gui_preset
from anima_pipe.kohya.options import find_option
from anima_pipe.kohya.root_style import convert_root_style
from anima_pipe.kohya.toml_text import toml_lines
from anima_pipe.kohya.train_toml import read_train_args
from anima_pipe.secrecy import redacted


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """The files that were written."""

    paths: Sequence[Path]
    converted: Converted
    reports: Sequence[Report]
    """What training will object to in them."""


def convert_file(
    source: Path, folder: Path, *, train_args_name: str, dataset_name: str, overwrite: bool
) -> Conversion:
    """Convert one file and examine the result.

    Args:
        source: A root-style .toml, or a .json preset of kohya_ss GUI.
        folder: Where the new files go.
        train_args_name: File name of the options.
        dataset_name: File name of the dataset.
        overwrite: Whether files that are there already are replaced.

    Raises:
        ConfigError: The file is missing or of another kind, or a new file is there already.
        OutputError: A file cannot be written.
    """
    if not source.is_file():
        raise ConfigError(f"Input config does not exist: {source}", "correct the path")
    train_args, dataset = folder / train_args_name, folder / dataset_name
    _check_names(source, train_args, dataset)
    converted = _convert(source, dataset_name)
    texts = {train_args: _train_args_text(source, converted)}
    if converted.dataset is not None:
        texts[dataset] = _dataset_text(source, converted.dataset)
    if converted.prompts is not None:
        texts[folder / PROMPTS_NAME] = converted.prompts
    _check_room([*texts], overwrite=overwrite)
    for path, text in texts.items():
        write_atomically(path, text.encode(), private=redacted(text) != text)
    reports = check_files([*texts], named_beside=True)
    if objections := "".join(_objections(reports)):
        # Behind everything else, so that the lines named in them stay what they are.
        text = f"{texts[train_args]}\n{objections}"
        write_atomically(train_args, text.encode(), private=redacted(text) != text)
    return Conversion(paths=[*texts], converted=converted, reports=reports)


def _convert(source: Path, dataset_name: str) -> Converted:
    if source.suffix.lower() == ".json":
        return convert_gui_preset(read_json(source).table)
    table = read_toml(source).table
    if _is_kohyas(source):
        raise ConfigError(
            f"{source} needs no conversion: training reads all of its keys as they are",
            f"give it as --config_file; `anima-pipe config check {source}` examines it",
        )
    return convert_root_style(table, dataset_name)


def _is_kohyas(source: Path) -> bool:
    """Tell whether a file is a train_args.toml, by its keys: sections have the same names there."""
    try:
        keys = [arg.key for arg in read_train_args(source)]
    except ConfigError:
        return False
    return bool(keys) and all(map(find_option, keys))


def _check_names(source: Path, train_args: Path, dataset: Path) -> None:
    for path in (train_args, dataset):
        if path.suffix.lower() != ".toml":
            raise ConfigError(f"{path.name} does not end in .toml", "name it so")
        if path.exists() and path.samefile(source):
            raise ConfigError(f"{path} is the file to convert", "choose another --output_dir")
    if train_args == dataset:
        raise ConfigError(f"both files would be {dataset}", "give them two names")


def _check_room(paths: Sequence[Path], *, overwrite: bool) -> None:
    for path in paths:
        if path.exists() and not overwrite:
            raise ConfigError(
                f"Output file already exists: {path}", "choose another folder, or add --overwrite"
            )


def _train_args_text(source: Path, converted: Converted) -> str:
    lines = [
        f"# Converted from {source.name}. Run: anima-pipe train --config_file THIS_FILE",
        *(f"# Note: {note}" for note in converted.notes),
        *(
            f"# Not converted: {', '.join(keys)} ({why})"
            for why, keys in converted.unmapped_by_reason().items()
        ),
        "",
        *toml_lines(converted.train_args),
    ]
    return "\n".join(lines) + "\n"


def _dataset_text(source: Path, dataset: Mapping[str, object]) -> str:
    lines = [f"# Converted from {source.name}."]
    if general := cast("Mapping[str, object] | None", dataset.get("general")):
        lines += ["", "[general]", *toml_lines(general)]
    for table in cast("Sequence[Mapping[str, object]]", dataset["datasets"]):
        own = {key: value for key, value in table.items() if key != "subsets"}
        lines += ["", "[[datasets]]", *toml_lines(own)]
        for subset in cast("Sequence[Mapping[str, object]]", table["subsets"]):
            lines += ["", "[[datasets.subsets]]", *toml_lines(subset)]
    return "\n".join(lines) + "\n"


def _objections(reports: Sequence[Report]) -> Iterator[str]:
    for finding in (finding for report in reports for finding in report.findings):
        yield f"# To be mended: {finding}\n#   {finding.remedy}\n"
