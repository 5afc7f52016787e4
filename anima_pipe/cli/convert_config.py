"""Convert an older root-style TOML, or a preset of kohya_ss GUI, to Kohya's two files."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from anima_pipe.cli.ending import ending_of
from anima_pipe.kohya.convert import Conversion, convert_file
from anima_pipe.runtime import show, warn


@click.command(
    "convert-config",
    help=f"{__doc__}\n\nThe result is checked; what training would refuse is said.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.argument("file", required=False, metavar="FILE")
@click.option("--input", "named", metavar="FILE", help="The file to convert, by name.")
@click.option(
    "--output_dir",
    metavar="DIR",
    help="Where the new files go. [default: kohya_converted beside the input]",
)
@click.option(
    "--train_args_name",
    default="train_args.toml",
    show_default=True,
    metavar="NAME",
    help="File name of the options.",
)
@click.option(
    "--dataset_name",
    default="dataset.toml",
    show_default=True,
    metavar="NAME",
    help="File name of the dataset.",
)
@click.option("--overwrite", is_flag=True, help="Replace files that are there already.")
def command(
    file: str | None,
    named: str | None,
    output_dir: str | None,
    train_args_name: str,
    dataset_name: str,
    *,
    overwrite: bool,
) -> None:
    """Convert one file."""
    given = [path for path in (file, named) if path is not None]
    if len(given) != 1:
        raise click.UsageError("give one file to convert: anima-pipe convert-config FILE")

    def work() -> int:
        source = Path(given[0]).expanduser()
        folder = Path(output_dir) if output_dir else source.parent / "kohya_converted"
        _report(
            convert_file(
                source,
                folder.expanduser(),
                train_args_name=train_args_name,
                dataset_name=dataset_name,
                overwrite=overwrite,
            )
        )
        return 0

    sys.exit(ending_of(work))


def _report(conversion: Conversion) -> None:
    for path in conversion.paths:
        show(f"Generated: {path}")
    reasons = conversion.converted.unmapped_by_reason()
    if reasons:
        show("Unmapped keys:")
    for why, keys in reasons.items():
        show(f"  {', '.join(keys)}  ({why})")
    for note in conversion.converted.notes:
        show(f"Note: {note}")
    findings = [finding for report in conversion.reports for finding in report.findings]
    if findings:
        show("To be mended before training:")
    for finding in findings:
        show(f"  {finding}", f"    Fix: {finding.remedy}")
    for warning in (warning for report in conversion.reports for warning in report.warnings):
        warn(warning)
