"""Configuration files examined without running anything: everything that is wrong with them.

What only this machine cannot serve, such as a path that is not there, is told apart: the file may
be meant for another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final

from anima_pipe.errors import ConfigError
from anima_pipe.hub.home import recorded_models
from anima_pipe.kohya.config_file import read_json, read_text, read_toml
from anima_pipe.kohya.dataset_toml import examine_dataset_config
from anima_pipe.kohya.findings import Finding
from anima_pipe.kohya.resolve import examine
from anima_pipe.kohya.resolved import Resolved
from anima_pipe.kohya.rows import TRAIN
from anima_pipe.kohya.sample_prompts import is_prompt_table, read_sample_prompts
from anima_pipe.kohya.train_toml import train_args_path

REQUIRED: Final = (
    "pretrained_model_name_or_path",
    "vae",
    "qwen3",
    "t5_tokenizer_dir",
    "dataset_config",
    "output_dir",
)
"""Options that training cannot do without.

The command line may bring what a file lacks, and fetch-models may have noted it.
"""

READ_PATHS: Final = (
    "pretrained_model_name_or_path",
    "vae",
    "qwen3",
    "t5_tokenizer_dir",
    "dataset_config",
    "train_data_dir",
    "reg_data_dir",
    "in_json",
    "network_weights",
    "sample_prompts",
)
"""Options that name files and folders to be read."""


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
    warnings: Sequence[str] = ()
    """What has no effect, is missing, or is not on this machine."""


@dataclass(slots=True)
class _Examined:
    """Findings about one file, as they come up."""

    findings: list[Finding] = field(default_factory=list[Finding])
    warnings: list[str] = field(default_factory=list[str])

    def add(self, findings: Iterable[Finding]) -> None:
        """Sort findings into those that hold everywhere and those of this machine."""
        for finding in findings:
            if finding.here_only:
                self.warnings.append(f"{finding}; {finding.remedy}")
            else:
                self.findings.append(finding)


def check_files(paths: Sequence[Path]) -> list[Report]:
    """Examine files of options, datasets and prompts, told apart by what is in them.

    Where exactly one file of options is among them, its options fill the gaps of the datasets, as
    they will in training. Files that options name are not followed: give them too.
    """
    kinds = {path: file_kind(path) for path in map(train_args_path, paths)}
    resolved: list[Resolved] = []
    reports: dict[Path, Report] = {}
    for path, kind in sorted(kinds.items(), key=lambda item: item[1] is not FileKind.TRAIN_ARGS):
        examined = _Examined()
        try:
            match kind:
                case FileKind.TRAIN_ARGS:
                    resolved.append(_examine_train_args(path, kinds, examined))
                case FileKind.DATASET:
                    fallbacks = resolved[0].dataset_fallbacks() if len(resolved) == 1 else {}
                    _examine_dataset(path, fallbacks, examined)
                case FileKind.PROMPTS:
                    read_sample_prompts(path)
        except ConfigError as error:
            finding = Finding(place=str(path), problem=error.problem, remedy=error.remedy)
            examined.findings.append(finding)
        reports[path] = Report(
            path=path, kind=kind, findings=examined.findings, warnings=examined.warnings
        )
    return [reports[path] for path in kinds]


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


def _examine_train_args(
    path: Path, kinds: Mapping[Path, FileKind], examined: _Examined
) -> Resolved:
    # It imports torch, which is not needed to explain a key.
    from anima_pipe.kohya.parts import part_findings

    resolved, findings = examine(TRAIN, {}, path)
    examined.add([*findings, *part_findings(resolved)])
    examined.warnings += [*resolved.warnings, *_absent(resolved)]
    has_dataset = FileKind.DATASET in kinds.values() or any(
        resolved.value(name) for name in ("train_data_dir", "in_json")
    )
    brought = {"dataset_config"} if has_dataset else set[str]()
    brought |= recorded_models().keys()
    if resolved.value("auto_download_t5_tokenizer"):
        brought.add("t5_tokenizer_dir")
    missing = [name for name in REQUIRED if not (name in brought or resolved.value(name))]
    if missing:
        names = ", ".join(missing)
        examined.warnings.append(f"{path.name} leaves {names} to the command line")
    return resolved


def _absent(resolved: Resolved) -> Iterator[str]:
    """Yield a sentence for each path that is to be read and is not there."""
    for name in READ_PATHS:
        item = resolved.written.get(name)
        if item and isinstance(item.value, Path) and not item.value.exists():
            yield f"{item}: there is no {item.value} on this machine"


def _examine_dataset(path: Path, fallbacks: Mapping[str, object], examined: _Examined) -> None:
    datasets = examine_dataset_config(path, fallbacks)
    examined.add(datasets.findings)
    examined.warnings += datasets.warnings
