"""Makes a stage into a command: its options from the table, its errors in two lines, its summary.

Every option is optional to click and carries no default: what is given here wins over the config
file, which wins over the table's defaults (`kohya.resolve`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from anima_pipe.cli.ending import ending_of
from anima_pipe.cli.help_text import help_text
from anima_pipe.cli.typed import handed_over
from anima_pipe.files import rehearse, write_atomically
from anima_pipe.kohya.findings import raise_findings
from anima_pipe.kohya.inspection import inspect_run
from anima_pipe.kohya.options import options_of
from anima_pipe.kohya.output_config import config_text
from anima_pipe.kohya.resolve import examine
from anima_pipe.kohya.resolved import Resolved
from anima_pipe.kohya.rows import Kind, NoOp, Option, Refused
from anima_pipe.kohya.table.other_tools import OTHER_TOOLS
from anima_pipe.kohya.train_toml import train_args_path
from anima_pipe.plain_text import json_text
from anima_pipe.runtime import launched_rank, say, show, warn
from anima_pipe.secrecy import redacted

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SEVERAL = (Kind.TEXTS, Kind.PAIRS)
"""Kinds whose flag takes all values up to the next flag, as argparse's nargs="*" does."""

METAVARS = {
    Kind.TEXT: "NAME",
    Kind.PATH: "PATH",
    Kind.PLACE: "PATH|URL",
    Kind.FLAG: "",
    Kind.INTEGER: "N",
    Kind.NUMBER: "X",
    Kind.COUNT_OR_SHARE: "N|SHARE",
    Kind.SIZE: "N|W,H",
    Kind.RANGE: "LOW,HIGH",
    Kind.TEXTS: "A B ...",
    Kind.PAIRS: "KEY=VALUE ...",
}
"""What the help writes behind a flag."""


class StageCommand(click.Command):
    """A command whose list options take several values after one flag, as Kohya's do.

    Options of its own, beside those of the table, come first in its help.
    """

    def __init__(self, *args: Any, table: tuple[Option, ...], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.table = table

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat a list option's flag before each of its values."""
        several = {f"--{s}" for o in self.table if o.kind in SEVERAL for s in o.spellings}
        try:
            return super().parse_args(ctx, _repeat_flags(args, several))
        except click.NoSuchOption as error:
            if other := OTHER_TOOLS.get(error.option_name.lstrip("-")):
                whose = f"{error.option_name} is an option of {other.tool}, not of Kohya's scripts"
                raise click.UsageError(f"{whose}\n  Fix: {other.instead}", ctx) from error
            raise

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under the headings of the table."""
        parameters = {p.name: p for p in self.params}
        names = {spelling for option in self.table for spelling in option.spellings}
        own = [
            parameter.get_help_record(ctx)
            for name, parameter in parameters.items()
            if name not in names and isinstance(parameter, click.Option)
        ]
        if records := [record for record in own if record]:
            with formatter.section("Options"):
                formatter.write_dl(records)
        for title in dict.fromkeys(option.group for option in self.table):
            rows = [
                record
                for option in self.table
                if option.group == title and not isinstance(option.status, Refused)
                if (record := parameters[option.name].get_help_record(ctx)) is not None
            ]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def stage_command(
    name: str, run: Callable[[Resolved], DataclassInstance], description: str | None
) -> click.Command:
    """Return the click command of a stage.

    Args:
        name: The command's name, by which the table knows its options.
        run: The stage; takes the resolved options, returns a summary, a dataclass.
        description: For the help: the stage's docstring.
    """
    table = options_of(name)

    def callback(**values: object) -> None:
        given = {key: value for key, value in values.items() if value not in (None, ())}
        given |= handed_over()
        sys.exit(run_stage(name, run, given))

    return StageCommand(
        name,
        table=table,
        callback=callback,
        params=[parameter for option in table for parameter in click_options(option)],
        help=help_text(description),
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )


def run_stage(
    name: str, run: Callable[[Resolved], DataclassInstance], given: Mapping[str, object]
) -> int:
    """Resolve the options, run the stage, write its summary; return the exit code."""

    def work() -> int:
        file = Path(str(given["config_file"])) if given.get("config_file") else None
        new = _new_config(file) if given.get("output_config") else None
        options, findings = examine(name, given, None if new else file)
        if options.value("output_config"):
            raise_findings(findings)
            write_config(options, new)
            return 0
        summary_file = _summary_file(options)
        if summary_file:
            rehearse(summary_file)
            summary_file.unlink(missing_ok=True)  # a run that fails leaves none of an earlier one
        options = inspect_run(options, findings)
        for warning in options.warnings:
            warn(warning)
        write_summary(run(options), summary_file)
        return 0

    return ending_of(work, debug=bool(given.get("debug")))


def _new_config(file: Path | None) -> Path | None:
    """Return where --config_file shall be written; None: nowhere, or it is there already."""
    path = train_args_path(file) if file else None
    return None if path and path.is_file() else path


def write_config(options: Resolved, path: Path | None) -> None:
    """Write the resolved options to a new config file, or print them.

    Raises:
        OutputError: The file cannot be written.
    """
    text = config_text(options)
    if path is None:
        show(*text.removesuffix("\n").split("\n"))
    else:
        write_atomically(path, text.encode(), private=redacted(text) != text)
        say(f"wrote {path}")


def _summary_file(options: Resolved) -> Path | None:
    """Return where the summary goes, if one was asked for.

    Of processes launched together each has its own: `summary.json`, `summary.rank1.json`, ...
    """
    path: Path | None = options.value("summary_json")
    rank = launched_rank().number
    return path.with_name(f"{path.stem}.rank{rank}{path.suffix}") if path and rank else path


def write_summary(summary: DataclassInstance, path: Path | None) -> None:
    """Write a stage's summary as JSON, if a file was asked for.

    Raises:
        OutputError: The file cannot be written.
    """
    if path is not None:
        assert is_dataclass(summary)
        text = redacted(json_text(asdict(summary), indent=2))
        write_atomically(path, text.encode() + b"\n")


def click_options(option: Option) -> list[click.Option]:
    """Return the click options of a row, one for each spelling, so that none hides another.

    They hand texts on, which `resolve` converts; the help shows the first.
    """
    return [
        _click_option(option, spelling, hidden=spelling != option.name)
        for spelling in option.spellings
    ]


def _click_option(option: Option, spelling: str, *, hidden: bool) -> click.Option:
    hidden = hidden or isinstance(option.status, Refused)
    text = option.help + _notes(option)
    if option.kind is Kind.FLAG:
        flag = f"--{spelling}/--no-{spelling}"
        return click.Option([flag, spelling], default=None, help=text, hidden=hidden)
    return click.Option(
        [f"--{spelling}", spelling],
        default=None,
        multiple=option.kind in SEVERAL,
        metavar=METAVARS[option.kind],
        help=text,
        hidden=hidden,
    )


def _notes(option: Option) -> str:
    notes: list[str] = []
    if option.aliases:
        notes.append(f"also {', '.join(f'--{alias}' for alias in option.aliases)}")
    if option.choices:
        notes.append(" | ".join(option.choices))
    if option.default not in (None, "", ()) and option.kind is not Kind.FLAG:
        notes.append(f"default {option.default}")
    if option.kind is Kind.FLAG and option.default:
        notes.append("on by default")
    if isinstance(option.status, NoOp):
        notes.append("changes nothing here")
    return f" [{'; '.join(notes)}]" if notes else ""


def _repeat_flags(args: list[str], several: set[str]) -> list[str]:
    """Turn `--flag a b` into `--flag a --flag b` for the flags that take several values."""
    repeated: list[str] = []
    current: str | None = None
    for arg in args:
        if arg.startswith("--"):
            current = arg if arg in several else None
            if current is None:
                repeated.append(arg)
        elif current is not None:
            repeated += [current, arg]
        else:
            repeated.append(arg)
    return repeated
