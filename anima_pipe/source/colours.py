"""From any of Pillow's colour modes to 8-bit RGB without transparency, or to a mask."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

from anima_pipe.records import MaskChannel

MOST_OF_16_BITS = 65535

STRIP_PIXELS = 2**20
"""Changed at a time."""


def to_rgb(picture: Image.Image) -> Image.Image:
    """Convert a decoded picture to mode RGB, its transparent parts over white.

    As in Kohya, an RGB picture's own colour profile is not applied: nearly all are sRGB, and
    those who train on others expect the same numbers. CMYK means nothing without its profile,
    so there it is.

    Args:
        picture: In any mode.

    Raises:
        ValueError: The values have no agreed range (floating point, 32-bit integers).
    """
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        picture = _with_8_bits(picture)
    if picture.mode == "F":
        raise ValueError("its floating-point values have no agreed range")
    if picture.has_transparency_data:
        return _over(picture, "white")
    if picture.mode == "CMYK":
        return _from_cmyk(picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def to_mask(picture: Image.Image, channel: MaskChannel) -> Image.Image:
    """Return one channel of a decoded picture as a mask of mode L.

    As in Kohya, the red channel of a mask image counts, and a picture without transparency counts
    everywhere. Transparent parts of a mask image count for nothing.

    Args:
        picture: In any mode.
        channel: Which one.

    Raises:
        ValueError: The values have no agreed range (floating point, 32-bit integers).
    """
    if channel == "alpha":
        if not picture.has_transparency_data:
            return Image.new("L", picture.size, "white")
        return picture.convert("RGBA").getchannel("A")
    if picture.has_transparency_data:
        return _over(picture, "black").getchannel("R")
    return to_rgb(picture).getchannel("R")


def _with_8_bits(picture: Image.Image) -> Image.Image:
    """16-bit gray, scaled; Pillow's own conversion cuts everything above 255 off."""

    def scaled(strip: Image.Image) -> Image.Image:
        values = np.asarray(strip).astype(np.int64)
        if values.min() < 0 or values.max() > MOST_OF_16_BITS:
            raise ValueError("its 32-bit values have no agreed range")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))

    return _in_strips(picture, "L", scaled)


def _over(picture: Image.Image, colour: str) -> Image.Image:
    def on_paper(strip: Image.Image) -> Image.Image:
        layer = strip.convert("RGBA")
        paper = Image.new("RGBA", layer.size, colour)
        return Image.alpha_composite(paper, layer).convert("RGB")

    return _in_strips(picture, "RGB", on_paper)


def _in_strips(
    picture: Image.Image, mode: str, change: Callable[[Image.Image], Image.Image]
) -> Image.Image:
    """Change a picture strip by strip: whole, it would be in memory once for each step."""
    changed = Image.new(mode, picture.size)
    width, height = picture.size
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        strip = picture.crop((0, top, width, min(top + rows, height)))
        changed.paste(change(strip), (0, top))
    return changed


def _from_cmyk(picture: Image.Image) -> Image.Image:
    profile = picture.info.get("icc_profile")
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(BytesIO(profile))
            target = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(picture, source, target, outputMode="RGB")
        except (OSError, ImageCms.PyCMSError):
            converted = None  # a damaged profile, or one of another colour space
        if converted is not None:
            return converted
    return picture.convert("RGB")
