"""What runs say of what they did and of what they left out."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from anima_pipe.dataset.links import LinksOut
from anima_pipe.dataset.overlap import held_out_but_trained
from anima_pipe.dataset.picture_captions import caption_lines
from anima_pipe.dataset.plan import describe
from anima_pipe.dataset.survey import NothingUsableError
from anima_pipe.errors import DataError
from anima_pipe.fill import ALONE, FillSummary, long_text
from anima_pipe.records import T5_LIMIT, Skipped
from anima_pipe.runs.rejects import Rejects
from anima_pipe.runtime import Rank, counted, say, warn
from anima_pipe.shards.index import Problem
from anima_pipe.source.variants import CaptionNote

if TYPE_CHECKING:
    from torch import nn

    from anima_pipe.dataset.batches import Batches
    from anima_pipe.dataset.survey import Survey
    from anima_pipe.runs.prepare import Training
    from anima_pipe.trained import TableRow

NAMED = 20
"""Problems that are listed one by one; of the others there is a count."""


def report_fill(what: str, summary: FillSummary, rank: Rank = ALONE) -> None:
    """Say what is wrong in the cache, how much was encoded and how much was there already.

    Every process says what it encoded; what all of them found is said by the first alone.
    """
    if rank.number == 0:
        report_problems(summary.problems)
    place = f" (process {rank.number + 1} of {rank.processes})" if rank.processes > 1 else ""
    if summary.encoded or summary.failed:
        in_bf16 = f" ({summary.kept_in_bf16} in bf16: beyond fp16)" if summary.kept_in_bf16 else ""
        elsewhere = f", {summary.elsewhere} left to the others" if summary.elsewhere else ""
        say(
            f"{what:<9} {summary.encoded} encoded{in_bf16}, "
            f"{summary.reused} already cached{elsewhere}, "
            f"{counted(summary.shards, 'shard')} written in {summary.seconds:.1f} s{place}"
        )
    elif summary.elsewhere:
        say(f"{what:<9} nothing to encode here, {summary.elsewhere} left to the others{place}")
    else:
        say(f"{what:<9} all {summary.reused} already cached, nothing to encode{place}")


def report_long(texts: Sequence[Skipped]) -> None:
    """List texts that are longer than what the model was made for, and are kept whole."""
    if texts:
        _list(f"kept whole, over {T5_LIMIT} T5 tokens ({len(texts)}):", texts)


def report_links(links: LinksOut) -> None:
    """List the links out of a dataset's folders, before anything is done with what they lead to."""
    if links.count:
        followed = f"not followed ({links.refused})" if links.refused else "followed"
        heading = f"links out of the dataset's folders ({links.count}), {followed}:"
        _list(heading, links.first, links.count)


def report_overlap(pictures: Sequence[Skipped]) -> None:
    """List pictures that are held out for validation and trained on nevertheless."""
    if pictures:
        heading = f"held out for validation, but trained on elsewhere ({len(pictures)}):"
        _list(heading, pictures)
        warn(
            "the validation loss is too low by them; give every subset that lists them the same "
            "validation_split and validation_seed, or keep them in a folder of their own"
        )


def report_survey(survey: Survey, *, strict: bool, damaged: Sequence[Skipped] = ()) -> None:
    """Tell all that a survey found wrong, as every command does that looks at a whole dataset.

    Args:
        survey: Of the dataset.
        strict: Make it an error.
        damaged: Pictures of it that are used although they are damaged.

    Raises:
        DataError: No picture of a subset has a caption; under `strict`, anything cannot be used, or
            is damaged.
    """
    report_surveyed_captions(survey, strict=strict)
    report_surveyed_pictures(survey, strict=strict, damaged=damaged)


def report_surveyed_captions(survey: Survey, *, strict: bool) -> None:
    """Tell what is wrong with the captions of a survey; see `report_survey`."""
    report_uncaptioned(survey.uncaptioned(), strict=strict)
    report_weighted(survey.caption_notes["weights"], survey.noted("weights"))


def report_surveyed_pictures(
    survey: Survey,
    *,
    strict: bool,
    undecoded: Sequence[Skipped] = (),
    damaged: Sequence[Skipped] = (),
    rejects: Rejects | None = None,
) -> None:
    """Tell what is wrong with the pictures of a survey; see `report_survey`.

    Args:
        survey: Of the dataset.
        strict: Make it an error if any cannot be used.
        undecoded: Pictures of it that turned out unreadable when they were decoded.
        damaged: Pictures of it that are used although they are damaged.
        rejects: Where all of them are listed.
    """
    skipped = [*survey.skipped, *dict.fromkeys(undecoded)]
    report_skipped(skipped, strict=strict, damaged=damaged, rejects=rejects)
    report_overlap(held_out_but_trained(survey))


def report_long_captions(survey: Survey, count_t5: Callable[[str], int] | None) -> None:
    """List captions over the limit of T5 tokens before they are encoded.

    Args:
        survey: With captions.
        count_t5: Counts T5's tokens; None: no tokenizer is known, and nothing is said.
    """
    if count_t5 is not None:
        counts = ((text, count_t5(str(text))) for text in survey.captions)
        report_long([long_text(text, tokens) for text, tokens in counts if tokens > T5_LIMIT])


def report_problems(problems: Sequence[Problem]) -> None:
    """List what is wrong in a cache."""
    if problems:
        _list(f"wrong in the cache ({len(problems)}):", problems)


def report_skipped(
    skipped: Sequence[Skipped],
    *,
    strict: bool,
    damaged: Sequence[Skipped] = (),
    rejects: Rejects | None = None,
) -> None:
    """List what could not be used.

    Args:
        skipped: Pictures and captions that were left out.
        strict: Make any of them an error.
        damaged: Pictures that were not left out, although they are damaged; an error as well.
        rejects: Where all that was left out is listed; None: nowhere.

    Raises:
        DataError: Something was left out or is damaged, under `strict`.
    """
    place = rejects.write(skipped) if rejects else None
    if damaged:
        _list(f"damaged, and used as they decode ({len(damaged)}):", damaged)
    if skipped:
        _list(f"left out {len(skipped)}:", skipped, place=place)
    if strict and (skipped or damaged):
        unusable = f"{len(skipped)} pictures or captions could not be used"
        wrong = f"{counted(len(damaged), 'picture')} used all the same"
        raise DataError(
            f"{unusable}, and of damaged data {wrong}" if damaged else unusable,
            "mend or remove the files listed above, or leave out --strict",
        )


@contextmanager
def all_rejects_told(rejects: Rejects | None) -> Generator[None]:
    """List what was left out also where nothing is left, which ends the run.

    Args:
        rejects: Where all of it is listed; None: nowhere.
    """
    try:
        yield
    except NothingUsableError as error:
        report_skipped(error.skipped, strict=False, rejects=rejects)
        raise


def report_uncaptioned(pictures: Sequence[Skipped], *, strict: bool) -> None:
    """List pictures without a caption.

    Raises:
        DataError: There is one, under `strict`.
    """
    if not pictures:
        return
    _list(f"{counted(len(pictures), 'picture')} without a caption:", pictures)
    if strict:
        raise DataError(
            f"{counted(len(pictures), 'picture')} without a caption",
            "write the captions, set class_tokens for their folder, or leave out --strict",
        )


def report_captions(notes: Mapping[CaptionNote, int], weighted: Iterable[str]) -> None:
    """Say how some captions are read.

    Args:
        notes: Of how many captions each is true.
        weighted: The pictures in whose captions there are weights, or the first of them.
    """
    for line in caption_lines(notes):
        say(line)
    report_weighted(notes.get("weights", 0), weighted)


def report_weighted(count: int, pictures: Iterable[str]) -> None:
    """List pictures whose captions hold a weight, such as (x:1.2), which only prompts can have.

    Args:
        count: How many there are.
        pictures: Their names, or those of the first.
    """
    if count:
        heading = (
            f"(x:1.2) in {counted(count, 'caption')} is trained as text, parentheses and number "
            "too; in prompts it is a weight, so that nobody ever draws with this text:"
        )
        _list(heading, list(islice(pictures, NAMED)), count)


def report_plan(training: Training, needs: object, tokenizer: Path | None) -> None:
    """Say, before the first step, what will be trained, on what and for how long.

    Args:
        training: What will be trained, and on what.
        needs: Of memory, shown as text.
        tokenizer: Folder of the T5 tokenizer that captions are encoded with; None: the cache's own.
    """
    config, batches, trained = training.config, training.batches, training.trained
    rates: dict[nn.Parameter, float] = {
        parameter: group.get("initial_lr", group["lr"])
        for group in training.optimizer.param_groups
        for parameter in group["params"]
    }
    device = training.accelerator.device
    lines = [
        *describe(batches.plan),
        *([f"tokenizer   {tokenizer}"] if tokenizer else []),
        f"steps       {config.max_train_steps}, {_steps_note(batches, config.max_train_steps)}",
        f"machine     {device}, {trained.precision_note(config.dtype)}, seed {config.seed}",
        f"memory      {needs}{', for each process' if batches.processes > 1 else ''}",
        *_table_lines(trained.table(rates)),
    ]
    say("", *lines, "")


def _steps_note(batches: Batches, steps: int) -> str:
    per_epoch = batches.windows_per_epoch()
    notes = [f"{per_epoch} per epoch: {steps / per_epoch:.1f} epochs"]
    if batches.accumulation > 1:
        notes.append(f"{batches.accumulation} batches a step")
    if batches.processes > 1:
        notes.append(f"{batches.processes} processes")
    return ", ".join(notes)


def _rank(rank: int | None) -> str:
    return "" if rank is None else str(rank)


def _table_lines(rows: Sequence[TableRow]) -> list[str]:
    """Lay the table of what is trained out in columns."""
    width = max(len(row.modules) for row in rows)
    kind = max(6, *(len(row.kind) for row in rows))
    total = sum(row.parameters for row in rows)
    head = (
        f"{'trained':<{width}}  {'kind':<{kind}} {'rank':>5} {'modules':>8} {'parameters':>12}  lr"
    )
    body = [
        f"{row.modules:<{width}}  {row.kind:<{kind}} {_rank(row.rank):>5} {row.count:>8} "
        f"{row.parameters:>12,}  {', '.join(f'{rate:g}' for rate in row.rates)}"
        for row in rows
    ]
    return [head, *body, f"{'in all':<{width}}  {'':<{kind}} {'':>5} {'':>8} {total:>12,}"]


def _list(
    heading: str,
    items: Sequence[object],
    count: int | None = None,
    place: Path | None = None,
) -> None:
    """List the first items, and say how many others there are.

    Args:
        heading: What they are.
        items: All of them, or the first.
        count: Of all of them, where there are more than `items`.
        place: A file that lists all of them.
    """
    more = (len(items) if count is None else count) - min(len(items), NAMED)
    lines = [f"  {item}" for item in items[:NAMED]]
    if more:
        lines.append(f"  ... and {more} more" + (f", all in {place}" if place else ""))
    warn(heading, *lines)
