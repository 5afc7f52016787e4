"""Look into a cache, check it, and remove what no dataset needs any more."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from anima_pipe.cli.cache_told import statistics_json, statistics_lines, sum_of, waste_line
from anima_pipe.cli.ending import ending_of
from anima_pipe.errors import DataError
from anima_pipe.kohya.check import FileKind, file_kind
from anima_pipe.kohya.resolve import resolve
from anima_pipe.kohya.resolved import Resolved
from anima_pipe.kohya.rows import TEXT as ENCODE_TEXT
from anima_pipe.kohya.rows import TRAIN
from anima_pipe.plain_text import json_text, paragraphs
from anima_pipe.runtime import counted, show
from anima_pipe.shards.places import (
    open_place,
    publish_manifest,
    refresh_manifest,
    require_writable,
    shown_path,
)

if TYPE_CHECKING:
    from anima_pipe.shards.codec import Codec
    from anima_pipe.shards.folders import Kind
    from anima_pipe.shards.pruning import Waste

PROBLEMS_FOUND = 1
"""Exit code of `verify`."""


SETTINGS: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    # --cache-dir is --cache_dir, and so for all of them.
    "token_normalize_func": lambda token: token.replace("-", "_"),
}


@click.group("cache", help=__doc__, context_settings=SETTINGS)
def command() -> None:
    """Group the four."""


def _of_cache(work: Callable[..., None]) -> Callable[..., None]:
    """Add the options that name a cache; `work` gets, as `cache`, what returns its folder."""

    @click.option(
        "--cache_dir",
        default="cache",
        show_default=True,
        help="The cache folder, or its address: s3://, gs://, hf://, https://.",
    )
    @click.option(
        "--cache_mirror_dir",
        type=click.Path(path_type=Path),
        help="Where an address has its mirror. [default: in the user's cache folder]",
    )
    @functools.wraps(work)
    def with_cache(cache_dir: str, cache_mirror_dir: Path | None, **given: object) -> None:
        # Opened by the command itself, which knows how to report what goes wrong.
        work(cache=functools.partial(open_place, cache_dir, cache_mirror_dir), **given)

    return with_cache


@command.command("stats", short_help="How much is in a cache.")
@_of_cache
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def stats(cache: Callable[[], Path], *, as_json: bool) -> None:
    """Say how much is in a cache: samples, bytes, buckets, lengths of texts, by encoder."""

    def work() -> int:
        from anima_pipe.shards.statistics import cache_statistics

        folders = cache_statistics(cache())
        if as_json:
            show(*json_text([statistics_json(folder) for folder in folders], indent=2).split("\n"))
        else:
            show(*paragraphs(statistics_lines(folder) for folder in folders))
        return 0

    sys.exit(ending_of(work))


@command.command("verify", short_help="Read every sample, compare its checksum.")
@_of_cache
@click.option(
    "--reencode",
    type=click.IntRange(min=1),
    metavar="N",
    help="Also encode N samples again, and compare.",
)
@click.option(
    "--config_file",
    help="train_args.toml that names the encoders and the dataset of --reencode.",
)
@click.option("--dataset_config", help="Where the pictures are.")
@click.option("--vae", help="What made the latents.")
@click.option("--qwen3", help="What made the texts, with --t5_tokenizer_dir.")
@click.option("--t5_tokenizer_dir", help="Folder of the T5 tokenizer.")
@click.option("--device", help="Where to encode: auto, cpu, cuda, cuda:1, mps.")
def verify(
    cache: Callable[[], Path], reencode: int | None, config_file: str | None, **given: str | None
) -> None:
    """Read every sample and compare its checksum; end with 1 if something is wrong.

    What is damaged is noted, and encoded anew by the next caching run that needs it. A lost or
    wrong sidecar is rebuilt.
    """

    def work() -> int:
        cache_dir = cache()
        wrong = _compare_checksums(cache_dir)
        if reencode is not None:
            place = {"cache_dir": str(cache_dir), **given}
            options = resolve(TRAIN, place, Path(config_file) if config_file else None)
            wrong += _compare_encoded(options, reencode)
        return PROBLEMS_FOUND if wrong else 0

    sys.exit(ending_of(work))


@command.command("gc", short_help="Remove what none of some datasets needs.")
@click.argument(
    "files", nargs=-1, required=True, metavar="FILES...", type=click.Path(path_type=Path)
)
@_of_cache
@click.option(
    "--config_file",
    type=click.Path(path_type=Path),
    help="train_args.toml whose options fill the gaps of the datasets.",
)
@click.option("--caption_variants", "--caption-variants", type=int, help="As given to training.")
@click.option("--caption_seed", "--caption-seed", type=int, help="As given to training.")
@click.option(
    "--keep_backslashes/--no-keep_backslashes", default=None, help="As given to training."
)
@click.option("--crop_variants", "--crop-variants", type=int, help="As given to training.")
@click.option("--masked_loss/--no-masked_loss", default=None, help="As given to training.")
@click.option("--sample_prompts", "--sample-prompts", help="Of previews: their texts are kept too.")
@click.option("--delete", is_flag=True, help="Remove it. Without this, nothing is changed.")
@click.option(
    "--now",
    is_flag=True,
    help="Delete at once what --delete moves to the trash for a day, and empty the trash. There is "
    "no way back, and a run that reads the cache without a lease (from a disk that it cannot write "
    "to) may end for want of its samples.",
)
def collect(
    files: Sequence[Path],
    cache: Callable[[], Path],
    config_file: Path | None,
    delete: bool,
    now: bool,
    **given: object,
) -> None:
    """Remove what none of the FILES needs; without --delete only say what that would be.

    Each of the FILES is a dataset.toml, a folder of pictures, or a train_args.toml that names its
    dataset. Give all that are still trained on. What a run has open stays. What is removed lies in
    the cache's trash for a day before a later gc or caching run deletes it.
    """

    def work() -> int:
        from anima_pipe.shards.pruning import alone, find_waste

        cache_dir = cache()
        needed = _needed(_resolved(files, config_file, given), cache_dir)
        if not delete:
            wastes = find_waste(cache_dir, needed)
            show(*map(waste_line, wastes), f"would remove {sum_of(wastes)}; --delete does it")
            return 0
        require_writable(cache_dir)
        with alone(cache_dir):
            _remove(find_waste(cache_dir, needed), cache_dir, now=now)
        return 0

    sys.exit(ending_of(work))


@command.command("manifest", short_help="List a cache's files, for reading over http.")
@_of_cache
def manifest(cache: Callable[[], Path]) -> None:
    """Write the list of a cache's files, by which it can be read over http.

    Whoever writes to an address keeps the list up to date. A folder that a web server hands out
    needs this after every caching run.
    """

    def work() -> int:
        show(f"wrote {publish_manifest(cache())}")
        return 0

    sys.exit(ending_of(work))


def _remove(wastes: Sequence[Waste], cache_dir: Path, *, now: bool) -> None:
    from anima_pipe.files import refusals_named
    from anima_pipe.shards.contents import tidy
    from anima_pipe.shards.mirror import mirror_at
    from anima_pipe.shards.pruning import remove_waste
    from anima_pipe.shards.trash import TRASH, empty_trash

    removed: list[Waste] = []
    for waste in wastes:
        if stays := remove_waste(waste, now=now):
            show(f"{shown_path(cache_dir, waste.tar)}: {stays}")
        else:
            show(waste_line(waste))
            removed.append(waste)
    tidy(cache_dir)
    if now:
        with refusals_named(cache_dir / TRASH):
            empty_trash(cache_dir, now=True)
    refresh_manifest(cache_dir)
    show(f"removed {sum_of(removed)}")
    if removed and not now and not mirror_at(cache_dir):
        show(f"what was removed lies in {cache_dir / TRASH} for a day; --now deletes at once")
    if len(removed) < len(wastes):
        left = counted(len(wastes) - len(removed), "shard")
        show(f"{left} in use: run gc again when nobody reads the cache")


def _compare_checksums(cache_dir: Path) -> int:
    """Read every sample; return how many problems were found."""
    from anima_pipe.shards.latents import LATENTS
    from anima_pipe.shards.masks import MASKS
    from anima_pipe.shards.statistics import cache_statistics
    from anima_pipe.shards.store import Store
    from anima_pipe.shards.text import TEXT

    codecs: dict[Kind, Codec[Any]] = {"latents": LATENTS, "masks": MASKS, "text": TEXT}
    wrong = 0
    for folder in cache_statistics(cache_dir):
        name = f"{folder.identity.fingerprint}-{folder.identity.dtype}"
        found = Store(codecs[folder.identity.kind], cache_dir, name).verify()
        # The statistics have rebuilt lost sidecars already, and may name the same samples.
        problems = list(dict.fromkeys(map(str, [*folder.problems, *found])))
        for problem in problems:
            show(problem)
        verdict = counted(len(problems), "problem") if problems else "all whole"
        show(f"{folder.folder.name}: {counted(folder.samples, 'sample')}, {verdict}")
        wrong += len(problems)
    return wrong


def _compare_encoded(options: Resolved, count: int) -> int:
    """Encode samples again; return how many are no longer what is cached."""
    from anima_pipe.cli.reencoding import reencode

    comparisons = reencode(options, count)
    for one in comparisons:
        for key in one.different:
            show(f"{one.folder.name}, sample {key}: its encoder makes something else of it")
        show(
            f"{one.folder.name}: {one.compared} encoded again, {len(one.different)} differ; "
            f"values by {one.largest:.2g} at most"
        )
    return sum(len(one.different) for one in comparisons)


def _needed(datasets: Iterable[Resolved], cache_dir: Path) -> dict[Kind, set[str]]:
    """Return the keys that datasets need, each with the options of its training.

    Raises:
        DataError: A picture or a caption cannot be read, so that what it needs is not known.
        ConfigError: A file is wrong, or names no dataset.
    """
    from anima_pipe.dataset.pictures import find_pictures
    from anima_pipe.dataset.probes import probes_wanted
    from anima_pipe.dataset.survey import survey_pictures
    from anima_pipe.kohya.caching import leakage_config, preview_prompts
    from anima_pipe.kohya.datasets import dataset_configs
    from anima_pipe.shards.keys import text_key
    from anima_pipe.source.prompts import prompt_texts

    needed: dict[Kind, set[str]] = {"latents": set(), "masks": set(), "text": set()}
    for options in datasets:
        pictures = find_pictures(dataset_configs(options))
        survey = survey_pictures(
            pictures,
            caption_variants=options.value("caption_variants"),
            crop_variants=options.value("crop_variants"),
            cache_dir=cache_dir,
            # What a run with a higher limit needs stays.
            max_image_pixels=sys.maxsize,
        )
        if survey.skipped:
            first = survey.skipped[0]
            raise DataError(
                f"{counted(len(survey.skipped), 'picture')} cannot be used, so that what "
                f"the dataset needs is not known; the first: {first}",
                "mend or remove them: nothing has been removed from the cache",
            )
        needed["latents"].update(survey.latents)
        needed["masks"].update(survey.masks)
        probes = probes_wanted(leakage_config(options), pictures)
        texts = [*survey.captions, *prompt_texts(preview_prompts(options))]
        texts += probes.texts if probes else ()
        needed["text"].update(map(text_key, texts))
    return needed


def _resolved(
    files: Iterable[Path], config_file: Path | None, given: Mapping[str, object]
) -> Iterator[Resolved]:
    for file in files:
        if file_kind(file) is FileKind.DATASET:
            options = resolve(ENCODE_TEXT, {**given, "dataset_config": str(file)}, config_file)
        else:
            options = resolve(ENCODE_TEXT, given, file)
        options.require("dataset_config")
        yield options
