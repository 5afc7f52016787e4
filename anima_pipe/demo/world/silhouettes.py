"""Finding things in a picture of the embedded model's world by their colour and their outline.

Everything is looked for in the world's own palette: pixels near one of its colours that hang
together are a patch, and a patch is a thing where a kind's silhouette, stretched over it, covers
just about the same pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain, product
from typing import Final

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFilter

from anima_pipe.demo.canvas import Pen
from anima_pipe.demo.world.things import INK_WIDTH, PAINTERS, PALETTE, Painter, coat

TOLERANCE: Final = 55.0
"""Distance in RGB, of 255 each, up to which a pixel has a colour of the palette."""
TOLERANCE_GREY: Final = 14.0
"""The same in a picture without colours."""
SMALLEST: Final = 0.012
"""Share of the picture that a thing covers at least."""
GAPS: Final = (2, 6)
"""Pixels of lines and flakes that do not part what they cross: without outlines, and with them."""
LIKENESS: Final = 0.55
"""Intersection over union with a silhouette from which on a patch is a thing of that kind."""
PART: Final = 0.2
"""By so much a part may be more like a thing than the whole is."""
_DETAIL: Final = 48
"""Side of the square in which a patch and a silhouette are compared."""

Mask = np.ndarray
"""Bool[height, width]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A thing that was found in a picture."""

    kind: str
    colour: str
    left: float
    right: float
    """Its box, fractions of the picture's width."""
    likeness: float
    """Intersection over union of what was found with the kind's silhouette, 0 to 1."""
    patch: Mask
    """The pixels of its colour, holes filled."""

    @property
    def centre(self) -> float:
        """Where it stands, a fraction of the picture's width."""
        return (self.left + self.right) / 2


def find_things(
    pixels: np.ndarray, *, grey: bool = False, painters: Mapping[str, Painter] = PAINTERS
) -> list[Found]:
    """Return the things of a picture, the clearest first.

    Args:
        pixels: Float[height, width, 3], 0 to 255, of a picture in the style "flat color" or
            "thick outlines".
        grey: Whether there are no colours in it: things are then told by outline alone.
        painters: Of the kinds that are known.
    """
    candidates = list(_candidates(pixels, grey, painters))
    whole = [one for one in candidates if not any(_is_part(one, other) for other in candidates)]
    found = sorted(whole, key=lambda thing: -thing.likeness)
    things: list[Found] = []
    for thing in found:
        if all(_overlap(thing, other) < 0.5 for other in things):
            things.append(thing)
    return things


def _is_part(one: Found, other: Found) -> bool:
    """Tell whether a thing is but a part of another: a belly is round and no ball.

    What is around a thing may also be its outline, which then is less like anything.
    """
    if one.patch.sum() > 0.5 * other.patch.sum() or one.likeness > other.likeness + PART:
        return False
    rows, columns = np.flatnonzero(other.patch.any(1)), np.flatnonzero(other.patch.any(0))
    box = one.patch[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return bool(box.sum() > 0.95 * one.patch.sum())


def _overlap(one: Found, other: Found) -> float:
    """Return the share of the narrower one's width that lies within the other."""
    common = min(one.right, other.right) - max(one.left, other.left)
    return common / min(one.right - one.left, other.right - other.left)


def _candidates(pixels: np.ndarray, grey: bool, painters: Mapping[str, Painter]) -> Iterator[Found]:
    smallest = round(SMALLEST * pixels.shape[0] * pixels.shape[1])
    for colour, near in _near_palette(pixels, grey).items():
        for patch in chain.from_iterable(patches(near, smallest, gap) for gap in GAPS):
            if (thing := _as_thing(patch, colour, painters)) is not None:
                yield thing


def _as_thing(patch: Mask, colour: str, painters: Mapping[str, Painter]) -> Found | None:
    """Return the thing that a patch is, if it is one."""
    height, width = patch.shape
    rows, columns = np.flatnonzero(patch.any(1)), np.flatnonzero(patch.any(0))
    top, bottom = rows[0] / height, (rows[-1] + 1) / height
    left, right = columns[0] / width, (columns[-1] + 1) / width
    # A thing stands on the ground; what reaches from edge to edge is ground or sky.
    if right - left > 0.75 or bottom < 0.6 or top < 0.22:
        return None
    whole = closed(patch)
    # A line around something in another colour is no thing.
    if patch.sum() < 0.5 * whole.sum():
        return None
    box = whole[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    kind, likeness = _most_alike(box, painters)
    if likeness < LIKENESS:
        return None
    return Found(kind=kind, colour=colour, left=left, right=right, likeness=likeness, patch=whole)


def _near_palette(pixels: np.ndarray, grey: bool) -> dict[str, Mask]:
    """Return which pixels have each colour of the palette; each pixel has the nearest one's."""
    names = list(PALETTE)
    palette = np.array([ImageColor.getrgb(PALETTE[name])[:3] for name in names], np.float32)
    if grey:
        weights = np.array((0.299, 0.587, 0.114), np.float32)
        values, palette = pixels @ weights, palette @ weights
        return {
            name: np.abs(values - level) < TOLERANCE_GREY
            for name, level in zip(names, palette, strict=True)
        }
    distances = np.linalg.norm(pixels[:, :, None] - palette, axis=-1)
    nearest, least = distances.argmin(-1), distances.min(-1)
    return {name: (nearest == at) & (least < TOLERANCE) for at, name in enumerate(names)}


def patches(mask: Mask, smallest: int, gap: int) -> Iterator[Mask]:
    """Yield each set of at least `smallest` pixels of a mask that hang together.

    Args:
        mask: The pixels.
        smallest: How many make a set.
        gap: Pixels between two, even, across which they still hang together.
    """
    grown = Image.fromarray(mask.astype(np.uint8) * 255)
    image = grown.filter(ImageFilter.MaxFilter(gap + 1))
    left = mask.copy()
    while left.any():
        row, column = np.argwhere(left)[0]
        ImageDraw.floodfill(image, (int(column), int(row)), 128)
        reached = np.asarray(image) == 128
        image.paste(0, (0, 0, *image.size), Image.fromarray(reached.astype(np.uint8) * 255))
        patch = reached & mask
        left &= ~reached
        if patch.sum() >= smallest:
            yield patch


def closed(mask: Mask) -> Mask:
    """Return a mask without holes and cracks: eyes, windows and spots are part of a thing."""
    around = Image.fromarray(np.pad(mask, 4).astype(np.uint8) * 255)
    image = around.filter(ImageFilter.MaxFilter(5)).filter(ImageFilter.MinFilter(5))
    ImageDraw.floodfill(image, (0, 0), 128)
    return (np.asarray(image) != 128)[4:-4, 4:-4]


def _most_alike(box: Mask, painters: Mapping[str, Painter]) -> tuple[str, float]:
    """Return the kind whose silhouette is most like a patch that fills its box, and how much."""
    aspect = box.shape[1] / box.shape[0]
    square = _stretched(box)
    best = ("", 0.0)
    for (kind, painter), inked in product(painters.items(), (False, True)):
        outline, own_aspect = silhouette(painter, inked)
        # A stretched silhouette says nothing of how high it is for its width.
        distortion = min(aspect, own_aspect) / max(aspect, own_aspect)
        union = (square | outline).sum()
        likeness = float((square & outline).sum() / union) * distortion**0.5
        if likeness > best[1]:
            best = (kind, likeness)
    return best


@cache
def silhouette(painter: Painter, inked: bool) -> tuple[Mask, float]:
    """Return what the body of a kind of thing covers in its box, and the box's width over height.

    Only what has the thing's own colour counts, and what that encloses.

    Args:
        painter: Of the kind.
        inked: With thick outlines, which take some of it.
    """
    large = Image.new("RGB", (160, 160))
    pen = Pen(draw=ImageDraw.Draw(large, "RGBA"), origin=(80.0, 120.0), scale=60.0)
    painter(replace(pen, ink="#000000", ink_width=INK_WIDTH) if inked else pen, coat("red"))
    distances = np.linalg.norm(
        np.asarray(large, np.float32) - np.array(ImageColor.getrgb(PALETTE["red"])), axis=-1
    )
    body = distances < TOLERANCE / 2
    rows, columns = np.flatnonzero(body.any(1)), np.flatnonzero(body.any(0))
    box = closed(body[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    return _stretched(box), box.shape[1] / box.shape[0]


def _stretched(mask: Mask) -> Mask:
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(image.resize((_DETAIL, _DETAIL), Image.Resampling.BOX)) > 127
