"""One HTML page that shows a dataset as training will see it: crops, captions, what is odd.

DATASET is a dataset.toml, a folder of pictures, or a train_args.toml that names its dataset; or
--config_file names it.

Reads   the dataset's pictures and captions, the tokenizers
Writes  one page, which needs no server and nothing from elsewhere
Costs   the decoding of every picture, small: a minute for some thousands
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from anima_pipe.cli.ending import ending_of
from anima_pipe.cli.help_text import help_text
from anima_pipe.cli.stage_command import StageCommand, click_options
from anima_pipe.errors import ConfigError, DataError
from anima_pipe.kohya.check import FileKind, file_kind
from anima_pipe.kohya.options import DATASET_GROUP, options_of
from anima_pipe.kohya.resolve import resolve
from anima_pipe.kohya.resolved import Resolved
from anima_pipe.kohya.rows import TRAIN
from anima_pipe.runtime import say, warn

if TYPE_CHECKING:
    from anima_pipe.dataset.survey import Survey
    from anima_pipe.inspection.entries import Entry, Inspection, Look
    from anima_pipe.records import ImageFile, Skipped

SHOWN: Final = 2000
"""Pictures that have a card unless more are asked for: some 30 MB of page."""

OTHER_OPTIONS: Final = (
    "config_file",
    "train_data_dir",
    "in_json",
    "caption_variants",
    "crop_variants",
    "qwen3",
    "t5_tokenizer_dir",
    "cache_dir",
    "cache_mirror_dir",
    "cache_mirror_gb",
    "rehash",
    "max_image_pixels",
    "max_data_loader_n_workers",
    "debug",
)
"""Options of training that this command takes beside those of datasets."""

UNSEEN: Final = (
    "train_batch_size",
    "resize_interpolation",
    "caption_dropout_rate",
    "caption_dropout_every_n_epochs",
    "prior_loss_weight",
    "alpha_mask",
)
"""Options of datasets that change nothing on the page; in files they may stand all the same."""

SOURCES: Final = ("dataset_config", "train_data_dir", "in_json")
"""Options that name a dataset."""

_ROWS: Final = tuple(
    row
    for row in options_of(TRAIN)
    if row.name in OTHER_OPTIONS or (row.group == DATASET_GROUP and row.name not in UNSEEN)
)


def _callback(dataset: Path | None, output: Path, limit: int, **given: object) -> None:
    given = {name: value for name, value in given.items() if value not in (None, ())}
    sys.exit(
        ending_of(lambda: _inspect(dataset, output, limit, given), debug=bool(given.get("debug")))
    )


command = StageCommand(
    "inspect",
    table=_ROWS,
    callback=_callback,
    params=[
        click.Argument(["dataset"], required=False, type=click.Path(path_type=Path)),
        click.Option(
            ["--output"],
            type=click.Path(path_type=Path, dir_okay=False),
            default=Path("inspect.html"),
            help="The page. [default: inspect.html]",
        ),
        click.Option(
            ["--limit"],
            type=click.IntRange(min=0),
            default=SHOWN,
            metavar="N",
            help=f"Cards for so many pictures, marked ones first; 0: for all. [default: {SHOWN}]",
        ),
        *(parameter for row in _ROWS for parameter in click_options(row)),
    ],
    help=help_text(__doc__),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _inspect(dataset: Path | None, output: Path, limit: int, given: dict[str, object]) -> int:
    """Survey, look at every picture, write the page."""
    from anima_pipe.pages.dataset import write_dataset_page

    options = _resolved(dataset, given)
    inspection = _inspected(options)
    shown = _chosen(inspection.entries, limit)
    title = f"Dataset {options.value('dataset_config') or options.value('train_data_dir')}"
    write_dataset_page(output, inspection, title=title, shown=shown)
    size = output.stat().st_size / 1e6
    say(f"wrote     {output}: {len(shown)} of {len(inspection.entries)} pictures, {size:.1f} MB")
    return 0


def _resolved(dataset: Path | None, given: dict[str, object]) -> Resolved:
    """Return the options of training, which name the dataset.

    Raises:
        ConfigError: They name none, or one of them cannot be honoured.
    """
    file = Path(str(given["config_file"])).expanduser() if given.get("config_file") else None
    if dataset is not None and file is None and file_kind(dataset) is FileKind.TRAIN_ARGS:
        file, dataset = dataset, None
    if dataset is not None:
        given = {**given, "dataset_config": str(dataset)}
    options = resolve(TRAIN, given, file)
    if not any(options.value(name) for name in SOURCES):
        where = file or "the command line"
        raise ConfigError(
            f"{where} names no dataset to look at",
            "give one: `anima-pipe inspect dataset.toml`, or a folder of pictures",
        )
    return options


def _inspected(options: Resolved) -> Inspection:
    from anima_pipe.dataset.damaged import damaged_pictures
    from anima_pipe.dataset.pictures import find_pictures
    from anima_pipe.dataset.survey import survey_pictures
    from anima_pipe.encoders.t5_tokens import t5_counter
    from anima_pipe.inspection.gather import inspect_survey
    from anima_pipe.inspection.thumbnails import look_at_all
    from anima_pipe.kohya.datasets import dataset_configs
    from anima_pipe.kohya.model_files import known_tokenizer
    from anima_pipe.progress import progress_bar

    survey = survey_pictures(
        find_pictures(dataset_configs(options), links_refused="a page follows no such link"),
        caption_variants=options.value("caption_variants"),
        crop_variants=options.value("crop_variants"),
        cache_dir=_scans(options),
        rehash=options.value("rehash"),
        max_image_pixels=options.value("max_image_pixels"),
    )
    count_t5 = t5_counter(known_tokenizer(options))
    images = [sample.image for sample in survey.samples]
    looks: list[Look] = []
    looking = look_at_all(images, workers=_workers(options, images))
    with progress_bar(len(images), "image", "pictures") as bar, closing(looking):
        for look in looking:
            looks.append(look)
            bar.update()
    _report(survey, looks, count_t5, damaged_pictures(survey, _scans(options)))
    return inspect_survey(survey, looks, count_qwen=_qwen_counter(options), count_t5=count_t5)


def _report(
    survey: Survey,
    looks: Sequence[Look],
    count_t5: Callable[[str], int] | None,
    damaged: Sequence[Skipped],
) -> None:
    """Tell what a training would tell of the dataset; what would end it does not end this."""
    from anima_pipe.records import Skipped
    from anima_pipe.runs.reports import (
        report_links,
        report_long_captions,
        report_surveyed_captions,
        report_surveyed_pictures,
    )

    report_links(survey.links)
    try:
        report_surveyed_captions(survey, strict=False)
    except DataError as error:
        warn(f"{error.problem}: training would end here; {error.remedy}")
    undecoded = [
        Skipped(name=str(sample.picture.path), reason=look.problem)
        for sample, look in zip(survey.samples, looks, strict=True)
        if look.problem
    ]
    report_surveyed_pictures(survey, strict=False, undecoded=undecoded, damaged=damaged)
    report_long_captions(survey, count_t5)


def _scans(options: Resolved) -> Path | None:
    """Return the cache folder, which remembers earlier scans; one that is not there is not made."""
    from anima_pipe.kohya.caching import cache_folder

    folder = cache_folder(options)
    return folder if folder.is_dir() else None


def _workers(options: Resolved, images: Sequence[ImageFile]) -> int:
    """Return how many processes decode: none where starting them takes longer."""
    return options.value("max_data_loader_n_workers") if len(images) > 64 else 0


def _qwen_counter(options: Resolved) -> Callable[[str], int]:
    """Return what counts Qwen's tokens: by the encoder's own tokenizer, or Qwen3's."""
    from anima_pipe.encoders.qwen_files import find_tokenizer
    from anima_pipe.encoders.qwen_tokens import read_qwen_tokenizer

    tokenizer = read_qwen_tokenizer(find_tokenizer(options.value("qwen3")))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def _chosen(entries: Sequence[Entry], limit: int) -> list[Entry]:
    """Return the pictures that have a card, in order: where not all can, marked ones first."""
    if not limit or len(entries) <= limit:
        return list(entries)
    first = sorted(entries, key=lambda entry: (not entry.flags, entry.number))[:limit]
    return sorted(first, key=lambda entry: entry.number)
