"""From any of Pillow's colour modes to 8-bit RGB without transparency, or to a mask."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

from anima_pipe.records import MaskChannel

MOST_OF_16_BITS = 65535


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
    values = np.asarray(picture).astype(np.int64)
    if values.min() < 0 or values.max() > MOST_OF_16_BITS:
        raise ValueError("its 32-bit values have no agreed range")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _over(picture: Image.Image, colour: str) -> Image.Image:
    layer = picture.convert("RGBA")
    paper = Image.new("RGBA", layer.size, colour)
    return Image.alpha_composite(paper, layer).convert("RGB")


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
