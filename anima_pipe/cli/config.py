"""Explain keys of the configuration, check files, and describe them to editors."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from anima_pipe.cli.ending import ending_of
from anima_pipe.errors import PipeError
from anima_pipe.hub.home import MODEL_OPTIONS
from anima_pipe.kohya.check import Report, check_files
from anima_pipe.kohya.explain import explain
from anima_pipe.kohya.schema import dataset_schema, train_args_schema
from anima_pipe.plain_text import json_text, paragraphs
from anima_pipe.runtime import counted, show

SCHEMAS = {"train_args": train_args_schema, "dataset": dataset_schema}


@click.group("config", help=__doc__, context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Group the three."""


@command.command(
    "explain",
    short_help="What a key does, or which keys a word concerns.",
    context_settings={"ignore_unknown_options": True},
)
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
def explain_keys(keys: Sequence[str]) -> None:
    """Say what an option or a key of dataset.toml or network_args does, takes and defaults to.

    A word that is none of them, such as memory, lists those that it concerns; network_args lists
    its keys by network.
    """

    def work() -> int:
        show(*paragraphs(explain(key) for key in keys))
        return 0

    sys.exit(ending_of(work))


@command.command("check", short_help="All that is wrong with files, before a run.")
@click.argument("files", nargs=-1, required=True, metavar="FILES...", type=click.Path())
def check(files: Sequence[str]) -> None:
    """Find everything that is wrong with files of options, datasets and sample prompts.

    They are told apart by what is in them; datasets and prompts that options name are examined
    too. Options fill the gaps of a dataset beside them. No model is loaded.

    Ends as `anima-pipe train` with these files would start here: with 0 where it would, with 2
    where it would refuse them or lack what they name or leave to the command line.
    """

    def work() -> int:
        reports = check_files([Path(file).expanduser() for file in files])
        for report in reports:
            _print(report)
        show(_closing(reports))
        return PipeError.exit_code if any(report.problems for report in reports) else 0

    sys.exit(ending_of(work))


@command.command("schema", short_help="The JSON Schema of a file, for editors.")
@click.argument("file", type=click.Choice([*SCHEMAS]), default="train_args", metavar="[FILE]")
def schema(file: str) -> None:
    """Print the JSON Schema of train_args (the default) or dataset, for editors."""
    show(*json_text(SCHEMAS[file](), indent=2).split("\n"))


def _print(report: Report) -> None:
    show(f"{report.path} ({report.kind.value}): {_state(report)}")
    for finding in report.findings:
        show(f"  {finding}", f"    Fix: {finding.remedy}")
    for finding in report.absent:
        show(f"  warning: {finding}; {finding.remedy}")
    if report.left:
        show(f"  warning: {_left(report)}")
    for warning in report.warnings:
        show(f"  warning: {warning}")


def _state(report: Report) -> str:
    if report.findings:
        return f"{len(report.findings)} to be mended"
    if report.absent:
        return "in order, but it names what is not here"
    return "in order, but not all that a run needs" if report.left else "ok"


def _left(report: Report) -> str:
    """Say what a file leaves to the command line, and what brings it."""
    fetched = any(name in MODEL_OPTIONS for name in report.left)
    remedy = "; `anima-pipe fetch-models` brings the model files" if fetched else ""
    return f"{report.path.name} leaves {', '.join(report.left)} to the command line{remedy}"


def _closing(reports: Sequence[Report]) -> str:
    """Return what it comes to, in one sentence."""
    wrong = sum(len(report.findings) for report in reports)
    lacking = sum(len(report.absent) + len(report.left) for report in reports)
    if wrong:
        return f"to be mended: {counted(wrong, 'problem')}"
    if lacking:
        things = counted(lacking, "thing")
        return f"the files are in order, but a run here would stop: {things} missing, see above"
    return f"{counted(len(reports), 'file')} in order"
