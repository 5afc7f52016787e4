"""Everything that is wrong with what a command was given, found before anything is loaded.

Each part of a configuration is examined by whoever knows it: options by the table, datasets and
prompts by their readers, arguments by the adapter and the optimizer. Here they are asked in turn,
so that a command ends once, with all of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, cast

from anima_pipe.errors import ConfigError
from anima_pipe.hub.home import MODEL_OPTIONS
from anima_pipe.kohya.datasets import examine_datasets
from anima_pipe.kohya.findings import Finding, raise_findings
from anima_pipe.kohya.model_files import models_needed, with_recorded_models
from anima_pipe.kohya.parts import part_findings
from anima_pipe.kohya.resolved import Resolved, Written
from anima_pipe.kohya.rows import ALL, EXPORT, LATENTS, TEXT, TRAIN, TRAINING
from anima_pipe.kohya.rules import unset_rate_warnings
from anima_pipe.kohya.sample_prompts import examine_sample_prompts

FILES_READ: Final = (
    "pretrained_model_name_or_path",
    "llm_adapter_path",
    "vae",
    "qwen3",
    "network_weights",
    "base_weights",
    "input",
    "merge",
)
"""Options that name files or folders to be read as they are."""

PREVIEW_TIMES: Final = ("sample_every_n_steps", "sample_every_n_epochs", "sample_at_first")
"""Options that say when previews are drawn."""

DATASETS: Final = ("dataset_config", "in_json", "train_data_dir")
"""Options that name what is trained on, the first of which counts."""


def inspect_run(options: Resolved, findings: Sequence[Finding]) -> Resolved:
    """Return the options of a command that is about to run, model files that were noted included.

    Args:
        options: As `examine` made them out.
        findings: What it found wrong with them.

    Raises:
        ConfigError: It lists everything that is wrong with options, files, datasets and prompts.
    """
    needed = required_options(options)
    noted = MODEL_OPTIONS if options.command == ALL else needed
    if needed:
        options = with_recorded_models(options, *(name for name in noted if name in MODEL_OPTIONS))
    found = [
        *findings,
        *options.missing(*needed),
        *file_findings(options),
        *dataset_findings(options),
        *prompt_findings(options),
        *(part_findings(options) if options.command in TRAINING else ()),
    ]
    raise_findings(list(dict.fromkeys(found)))
    if "output_dir" in needed:
        options = replace(options, warnings=(*options.warnings, *unset_rate_warnings(options)))
    return options


def required_options(options: Resolved) -> tuple[str, ...]:
    """Return the names of the options that a command cannot do without."""
    if options.command == TRAIN and options.value("show_timesteps"):
        return ()
    if options.command == TRAIN and options.value("debug_dataset"):
        return ("dataset_config",)
    if options.command == TRAIN or (options.command == ALL and options.given("config_file")):
        return (*models_needed(options), "dataset_config", "output_dir")
    return {
        LATENTS: ("dataset_config", "vae"),
        TEXT: ("dataset_config", "qwen3"),
        EXPORT: ("input", "output"),
    }.get(options.command, ())


def file_findings(options: Resolved) -> Iterator[Finding]:
    """Yield each file that a command would read and that is not there."""
    for name in FILES_READ:
        item = options.written.get(name)
        if item is None or name not in options.defaults or not item.value:
            continue
        paths = [item.value] if isinstance(item.value, Path) else item.value
        for path in map(Path, cast("Iterable[str | Path]", paths)):
            if not path.exists():
                yield absent_file(item, path)


def absent_file(item: Written, path: Path) -> Finding:
    """Return the finding that a file or folder that an option names is not there."""
    return Finding(
        place=item.place,
        problem=f"{item.spelling}: there is no {path}",
        remedy="correct the path",
        here_only=True,
    )


def dataset_findings(options: Resolved) -> Iterator[Finding]:
    """Yield what is wrong with the datasets that the options name."""
    given = [name for name in DATASETS if options.defaults.keys() & {name} and options.value(name)]
    if not given:
        return
    try:
        yield from examine_datasets(options).findings
    except ConfigError as error:
        yield _of_file(error, options, given[0])


def prompt_findings(options: Resolved) -> Iterator[Finding]:
    """Yield what is wrong with the prompts of previews."""
    name = "sample_prompts"
    if name not in options.defaults:
        return
    if not options.value(name):
        yield from _promptless(options)
        return
    try:
        yield from examine_sample_prompts(options.value(name)).findings
    except ConfigError as error:
        yield _of_file(error, options, name)


def _promptless(options: Resolved) -> Iterator[Finding]:
    """Yield a finding where it is said when to draw, but not what."""
    asked = (options.written.get(name) for name in PREVIEW_TIMES)
    first = next((item for item in asked if item and item.value), None)
    if first and options.command == TRAIN:
        yield Finding(
            place=first.place,
            problem=f"{first.spelling} is set, but there are no prompts to draw",
            remedy="set sample_prompts to a file with one prompt a line",
        )


def _of_file(error: ConfigError, options: Resolved, name: str) -> Finding:
    """Return an error about a whole file as a finding at the option that names it."""
    path: Path = options.value(name)
    return Finding(
        place=options.given(name) or options.command,
        problem=error.problem,
        remedy=error.remedy,
        here_only=not path.exists(),
    )
