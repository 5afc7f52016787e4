"""Configuration files examined without running anything: everything that is wrong with them.

What only this machine cannot serve, such as a path that is not there, is told apart: the file may
be meant for another one.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Final

from anima_pipe.errors import ConfigError
from anima_pipe.hub.home import recorded_models
from anima_pipe.kohya.config_file import read_json, read_text, read_toml
from anima_pipe.kohya.dataset_toml import examine_dataset_config
from anima_pipe.kohya.datasets import told_of_overruled
from anima_pipe.kohya.findings import Finding
from anima_pipe.kohya.inspection import absent_file, file_findings, required_options
from anima_pipe.kohya.parts import part_findings
from anima_pipe.kohya.resolve import examine
from anima_pipe.kohya.resolved import Resolved
from anima_pipe.kohya.rows import TRAIN
from anima_pipe.kohya.rules import unset_rate_warnings
from anima_pipe.kohya.sample_prompts import examine_sample_prompts, is_prompt_table
from anima_pipe.kohya.train_toml import train_args_path

NAMES_A_FILE: Final = {"dataset_config": "DATASET", "sample_prompts": "PROMPTS"}
"""Options that name a file to be examined too, and the name of its kind."""

NAMES_A_FOLDER: Final = ("t5_tokenizer_dir", "train_data_dir", "reg_data_dir", "in_json")
"""Options that name what else has to be there, beside the files that a run reads as they are."""


class FileKind(Enum):
    """What a file turns out to be; the text is what messages call it."""

    TRAIN_ARGS = "options of the training"
    DATASET = "dataset"
    PROMPTS = "sample prompts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was found in one file."""

    path: Path
    kind: FileKind
    findings: Sequence[Finding] = ()
    """What is wrong wherever the file is used."""
    absent: Sequence[Finding] = ()
    """What this machine lacks of what the file names: a run here would stop at it."""
    left: Sequence[str] = ()
    """Options that training cannot do without and that are left to the command line: a run of the
    file alone would stop at them."""
    warnings: Sequence[str] = ()
    """What has no effect."""

    @property
    def problems(self) -> int:
        """The number of things that a run of the file, here, would stop at."""
        return len(self.findings) + len(self.absent) + len(self.left)


@dataclass(slots=True)
class _Examined:
    """What comes up about one file."""

    findings: list[Finding] = field(default_factory=list[Finding])
    warnings: list[str] = field(default_factory=list[str])

    def report(self, path: Path, kind: FileKind) -> Report:
        """Part what holds everywhere from what holds on this machine."""
        found = dict.fromkeys(self.findings)
        return Report(
            path=path,
            kind=kind,
            findings=[finding for finding in found if not finding.here_only],
            absent=[finding for finding in found if finding.here_only],
            warnings=self.warnings,
        )


def check_files(paths: Sequence[Path], *, named_beside: bool = False) -> list[Report]:
    """Examine files of options, datasets and prompts, told apart by what is in them.

    Datasets and prompts that a file of options names are examined too, where they are there. Where
    exactly one file of options is among them, its options fill the gaps of the datasets, as they
    will in training.

    Args:
        paths: The files; a folder is a dataset, where no file of options has its name.
        named_beside: Look for what a file of options names beside it first, not in the current
            folder as a run does: of files that are to stand together wherever they are used.
    """
    kinds = {path: file_kind(path) for path in map(_meant, paths)}
    options: dict[Path, Resolved] = {}
    reports: dict[Path, Report] = {}
    for path in [path for path, kind in kinds.items() if kind is FileKind.TRAIN_ARGS]:
        examined = _Examined()
        with _whole_file(path, examined):
            options[path] = _examine_train_args(path, examined)
            for named, kind in _named_files(options[path], path.parent if named_beside else None):
                kinds.setdefault(named, kind)
        reports[path] = examined.report(path, FileKind.TRAIN_ARGS)
    of_all = next(iter(options.values())) if len(options) == 1 else None
    for path, kind in kinds.items():
        if kind is FileKind.TRAIN_ARGS:
            continue
        examined = _Examined()
        with _whole_file(path, examined):
            if kind is FileKind.DATASET:
                _examine_dataset(path, of_all, examined)
            else:
                examined.findings += examine_sample_prompts(path).findings
        reports[path] = examined.report(path, kind)
    brings_dataset = FileKind.DATASET in kinds.values()
    return [
        _with_gaps(report, options.get(path), brings_dataset=brings_dataset)
        for path in kinds
        if (report := reports[path])
    ]


def _meant(path: Path) -> Path:
    """Return the file, or the folder, that a path means, as --config_file and DATASET take it."""
    file = train_args_path(path)
    return path if path.is_dir() and not file.exists() else file


@contextmanager
def _whole_file(path: Path, examined: _Examined) -> Generator[None]:
    """Take an error about a whole file as a finding."""
    try:
        yield
    except ConfigError as error:
        finding = Finding(place=str(path), problem=error.problem, remedy=error.remedy)
        examined.findings.append(finding)


def file_kind(path: Path) -> FileKind:
    """Return what a file is, by its content; what cannot be read counts as options."""
    if path.is_dir():
        return FileKind.DATASET
    if path.suffix.lower() == ".txt":
        return FileKind.PROMPTS
    in_json = path.suffix.lower() == ".json"
    try:
        if in_json and read_text(path).lstrip().startswith("["):
            return FileKind.PROMPTS
        table = (read_json if in_json else read_toml)(path).table
    except ConfigError:
        return FileKind.TRAIN_ARGS
    if is_prompt_table(table):
        return FileKind.PROMPTS
    return FileKind.DATASET if "datasets" in table else FileKind.TRAIN_ARGS


def _examine_train_args(path: Path, examined: _Examined) -> Resolved:
    resolved, findings = examine(TRAIN, {}, path)
    examined.findings += [*findings, *part_findings(resolved), *file_findings(resolved)]
    examined.findings += _absent(resolved, (*NAMES_A_FILE, *NAMES_A_FOLDER))
    examined.warnings += resolved.warnings
    if not findings:
        # Else what is wrong may be the rate itself.
        examined.warnings += unset_rate_warnings(resolved)
    return resolved


def _absent(resolved: Resolved, names: Iterable[str]) -> Iterator[Finding]:
    """Yield each of these paths that is not there."""
    for name in names:
        item = resolved.written.get(name)
        if item and isinstance(item.value, Path) and not item.value.exists():
            yield absent_file(item, item.value)


def _named_files(resolved: Resolved, folder: Path | None) -> Iterator[tuple[Path, FileKind]]:
    """Yield the files that options name and that are there, with what they should be.

    Args:
        resolved: The options.
        folder: Where a relative path is looked for first; None: in the current folder.
    """
    for name, kind in NAMES_A_FILE.items():
        item = resolved.written.get(name)
        if item is None or not isinstance(item.value, Path):
            continue
        beside = folder / str(item.given) if folder else item.value
        path = beside if beside.exists() else item.value
        if path.exists():
            yield path, FileKind[kind]


def _with_gaps(report: Report, options: Resolved | None, *, brings_dataset: bool) -> Report:
    """Add, to the report of a file of options, what it leaves to the command line.

    What fetch-models and fetch-tokenizer noted need not be named anywhere.
    """
    if options is None:
        return report
    brought = {"dataset_config"} if brings_dataset else set[str]()
    brought |= recorded_models().keys()
    needed = [*required_options(options)]
    if options.value("auto_cache") and not options.value("auto_download_t5_tokenizer"):
        needed.append("t5_tokenizer_dir")
    lacking = options.lacking(*(name for name in needed if name not in brought))
    return replace(report, left=[option.name for option in lacking])


def _examine_dataset(path: Path, options: Resolved | None, examined: _Examined) -> None:
    datasets = examine_dataset_config(path, options.dataset_fallbacks() if options else {})
    if options:
        datasets = told_of_overruled(datasets, path, options)
    examined.findings += datasets.findings
    examined.warnings += datasets.warnings
