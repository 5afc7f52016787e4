"""What tells whether an adapter knows its trigger and nothing else: pictures, and texts to encode.

It is known before any picture is opened, so that the stage that encodes texts and the training
that looks at them choose the same.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from anima_pipe.dataset.config import LeakageConfig
from anima_pipe.dataset.picture_captions import picture_captions
from anima_pipe.dataset.pictures import Picture
from anima_pipe.errors import DataError
from anima_pipe.source.captions import CaptionRules
from anima_pipe.source.triggers import shared_tags, without_trigger

PICTURES: Final = 6
"""That are looked at. With three noise levels, two captions and the unrelated prompts a save costs
54 passes: less than one preview of thirty guided steps."""

CAPTIONS: Final = 64
"""Of each folder, in which the tags that all share are looked for."""

_BEGINNING: Final = "masterpiece, best quality, score_7, safe"

UNRELATED: Final = (
    f"{_BEGINNING}, 1girl, solo, long hair, school uniform, classroom, window",
    f"{_BEGINNING}, 1boy, solo, short hair, armor, sword, castle, night",
    f"{_BEGINNING}, 2girls, umbrella, rain, street, city",
    f"{_BEGINNING}, no humans, scenery, mountain, lake, tree, sunset",
    f"{_BEGINNING}, no humans, cat, sleeping, indoors, table, lamp",
    f"{_BEGINNING}, no humans, house, flower field, blue sky. A house stands among flowers.",
)
"""Prompts of many subjects, in Anima's order. Always the same ones, so that runs compare."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureProbe:
    """A picture that is looked at, with its caption whole and without the trigger."""

    picture: Picture
    caption: str
    """The first of its final texts."""
    without: str | None
    """None: there is no trigger in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probes:
    """All that is looked at."""

    pictures: tuple[PictureProbe, ...]
    unrelated: tuple[str, ...]
    """Those of `UNRELATED` that have no trigger in them."""
    trigger: tuple[str, ...]
    """All of it, of all folders."""

    @property
    def texts(self) -> list[str]:
        """What must be encoded, the captions of the pictures included."""
        captions = (text for probe in self.pictures for text in (probe.caption, probe.without))
        return [*(text for text in captions if text is not None), *self.unrelated]


def probes_wanted(config: LeakageConfig | None, pictures: Sequence[Picture]) -> Probes | None:
    """Return what will be looked at; None where nothing is to be measured."""
    return choose_probes(pictures, config) if config else None


def choose_probes(pictures: Sequence[Picture], config: LeakageConfig) -> Probes:
    """Choose pictures that are held out, or some of all where none is, and read their captions.

    They are spread evenly over the dataset. A picture whose caption cannot be read is left out;
    regularisation pictures are of another subject.

    Args:
        pictures: From `find_pictures`.
        config: What the trigger is, where that is known.
    """
    places = _Places(pictures)
    chosen = [pictures[place] for place in _spread(places.held_out or places.trained, PICTURES)]
    triggers: dict[int, tuple[str, ...]] = {}
    for picture in chosen:
        number = id(picture.subset)
        if number not in triggers:
            triggers[number] = config.trigger or _shared(pictures, places.by_subset[number])
    trigger = tuple(dict.fromkeys(tag for tags in triggers.values() for tag in tags))
    return Probes(
        pictures=tuple(_probed(chosen, triggers)),
        unrelated=tuple(p for p in UNRELATED if without_trigger(p, trigger, CaptionRules()) == p),
        trigger=trigger,
    )


class _Places:
    """Where among the pictures those are that may be looked at; numbers alone, for they are many.

    Args:
        pictures: All of them.
    """

    def __init__(self, pictures: Sequence[Picture]) -> None:
        self.held_out = array("Q")
        self.trained = array("Q")
        self.by_subset: dict[int, array[int]] = {}
        # By identity: the hash of a subset is that of all its settings.
        for place, picture in enumerate(pictures):
            if picture.subset.is_reg:
                continue
            (self.held_out if picture.held_out else self.trained).append(place)
            self.by_subset.setdefault(id(picture.subset), array("Q")).append(place)


def _spread(places: Sequence[int], count: int) -> list[int]:
    """Return so many of the places, or all, at even distances."""
    count = min(count, len(places))
    return [places[number * len(places) // count] for number in range(count)]


def _shared(pictures: Sequence[Picture], places: Sequence[int]) -> tuple[str, ...]:
    """Return the tags that nearly all captions of a subset share, as far as some of them tell."""
    some = [pictures[place] for place in _spread(places, CAPTIONS)]
    captions = [caption for _, caption in captioned(some)]
    return shared_tags(captions, some[0].subset.captions)


def captioned(pictures: Iterable[Picture]) -> Iterator[tuple[Picture, str]]:
    """Yield the pictures whose captions can be read, each with the first of its final texts."""
    for picture in pictures:
        try:
            yield picture, picture_captions(picture, 1).full[0]
        except DataError:  # told where the dataset is read
            continue


def _probed(
    pictures: Iterable[Picture], triggers: dict[int, tuple[str, ...]]
) -> Iterator[PictureProbe]:
    for picture, caption in captioned(pictures):
        trigger = triggers[id(picture.subset)]
        rest = without_trigger(caption, trigger, picture.subset.captions)
        yield PictureProbe(
            picture=picture, caption=caption, without=None if rest == caption else rest
        )
