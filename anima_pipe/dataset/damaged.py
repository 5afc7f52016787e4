"""Pictures of a dataset that are used although their data is damaged."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from anima_pipe.dataset.survey import Survey
from anima_pipe.records import Skipped
from anima_pipe.source.damage import Damaged, remembered


def damaged_pictures(
    survey: Survey, cache_dir: Path | None, found: Iterable[Damaged] = ()
) -> list[Skipped]:
    """List the pictures, and masks, whose data is damaged, as far as they were ever decoded.

    Args:
        survey: Of the dataset.
        cache_dir: Where damage is remembered; None: nowhere.
        found: What this run has decoded; it may be that it could not be remembered.
    """
    known = remembered(cache_dir) if cache_dir else {}
    known |= {damaged.image.content: damaged.reason for damaged in found}
    if not known:
        return []
    images = (image for sample in survey.samples for image in (sample.image, sample.mask) if image)
    damaged = (image for image in images if image.content in known)
    return list(dict.fromkeys(Damaged(image, known[image.content]).named() for image in damaged))
