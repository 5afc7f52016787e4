"""Pictures on disk: finding them, reading their headers, decoding them to pixels."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from anima_pipe.errors import DataError, PipeError
from anima_pipe.records import PIXELS_PER_LATENT, ImageFile, LatentRequest, MaskRequest
from anima_pipe.source.boundary import reason_of
from anima_pipe.source.colours import to_mask, to_rgb
from anima_pipe.source.resize import resize_and_crop

if TYPE_CHECKING:
    from numpy.typing import NDArray

EXTENSIONS = frozenset(
    (
        *(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif", ".jxl"),
        *(".gif", ".tif", ".tiff", ".jfif", ".jpe", ".jp2", ".tga", ".heic", ".heif"),
    )
)
"""Kohya's, and more. Those that Pillow lacks a decoder for are reported, not passed over."""

FORMATS = (
    *("PNG", "JPEG", "WEBP", "BMP", "DIB", "AVIF", "JXL"),
    *("GIF", "TIFF", "JPEG2000", "TGA", "HEIF"),
)
"""What these may hold, by Pillow's names, whatever a file is called.

Nobody has training pictures in Pillow's other formats, and an EPS would start Ghostscript.
"""

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings a picture upright, by its EXIF orientation."""

UPRIGHT = 1
FIRST_SIDEWAYS = 5
"""From this EXIF orientation on, width and height change places."""

HASH_BYTES = 16

DECODING_BYTES = 12
"""For each pixel, about: Pillow has 4 for RGB and RGBA, a picture that is turned or laid on white
is there twice, and decoders of WebP and AVIF have buffers of their own."""

REMEDY = "save the picture again as an 8-bit PNG or JPEG, or remove it"

_pillow_lock = threading.Lock()


def find_images(folder: Path) -> list[Path]:
    """List the pictures that lie directly in a folder, by name; see `image_names`."""
    return [folder / name for name in image_names(folder)]


def image_names(folder: Path) -> list[str]:
    """List the file names of the pictures that lie directly in a folder, sorted.

    Hidden files are left out, among them the `._*` files that macOS leaves on shared disks.

    Raises:
        DataError: There is no such folder, or it cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if _is_picture(entry))
    except OSError as error:
        raise DataError(
            f"image folder {folder} cannot be listed: {error.strerror}",
            "give the path of a folder with pictures in it",
        ) from error


def _is_picture(entry: os.DirEntry[str]) -> bool:
    name = entry.name
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - a Path for each is five times slower
    if suffix not in EXTENSIONS or name.startswith("."):
        return False
    try:
        return not entry.is_dir()
    except OSError:
        return True  # a link to itself, for one: reading it says what is wrong


def read_image_file(path: Path) -> ImageFile:
    """Read a picture's size from its header, and hash its bytes.

    Safe to call from several threads, which then hash in parallel.

    Raises:
        DataError: The file is missing, empty, or not a picture that Pillow can read.
    """
    with _failing_as_data_error(path), _regular(path) as file:
        content = _content_hash(file)
        if not file.tell():
            raise DataError(f"{path} is empty (0 bytes)", REMEDY)
        file.seek(0)
        with _quiet_pillow(), _opened(file) as picture:
            width, height = picture.size
            if _orientation(picture) >= FIRST_SIDEWAYS:
                width, height = height, width
    return ImageFile(path=path, size=(width, height), content=content)


def load_pixels(request: LatentRequest) -> NDArray[np.uint8]:
    """Decode a picture and bring it to its bucket: upright, in RGB, over white, resized, cropped.

    Of an animation or a file of several pages the first picture is taken.

    Returns:
        UInt8[height, width, 3] of `request.choice.bucket`.

    Raises:
        DataError: The file is damaged, cut short, or no longer what `request.image` says.
        ConfigError: There is no filter named `request.interpolation`.
    """
    with _failing_as_data_error(request.image.path):
        pixels = resize_and_crop(
            to_rgb(_decoded(request.image)), request.choice, request.interpolation
        )
    return pixels[:, ::-1].copy() if request.flipped else pixels


def decoding_cost(size: tuple[int, int]) -> int:
    """Return about how many bytes decoding a picture of so many pixels takes at a time."""
    return size[0] * size[1] * DECODING_BYTES


def refuse_more_pixels(image: ImageFile, most: int) -> None:
    """Check a picture's size before it is decoded.

    Raises:
        DataError: It has more pixels.
    """
    width, height = image.size
    if width * height > most:
        raise DataError(
            f"{image.path} is {width}x{height} pixels, more than max_image_pixels {most}",
            "scale it down, or raise --max_image_pixels",
        )


def load_small(image: ImageFile, longest: int) -> Image.Image:
    """Decode a picture small: upright, in RGB, over white.

    JPEGs are decoded at a fraction of their size, many times as fast. The file's bytes are not
    compared with the scan's.

    Args:
        image: The picture.
        longest: Its longer side, in pixels, at most; it is never enlarged.

    Raises:
        DataError: The file is damaged or cut short.
    """
    with _failing_as_data_error(image.path):
        with _quiet_pillow(), _opened(image.path) as picture:
            picture.draft("RGB", (longest, longest))
            upright = _upright(picture)
        small = to_rgb(upright)
        small.thumbnail((longest, longest), Image.Resampling.BOX, reducing_gap=None)
    return small


def load_mask(request: MaskRequest) -> NDArray[np.float32]:
    """Decode a mask, bring it to its picture's bucket as the picture, and average over positions.

    Returns:
        Float32[height / 8, width / 8] of `request.choice.bucket`, in [0, 1].

    Raises:
        DataError: The file is damaged, cut short, or no longer what `request.image` says.
        ConfigError: There is no filter named `request.interpolation`.
    """
    with _failing_as_data_error(request.image.path):
        mask = to_mask(_decoded(request.image), request.channel)
        pixels = resize_and_crop(mask, request.choice, request.interpolation)
    width, height = (side // PIXELS_PER_LATENT for side in request.choice.bucket)
    squares = pixels.reshape(height, PIXELS_PER_LATENT, width, PIXELS_PER_LATENT)
    averaged = squares.mean(axis=(1, 3), dtype=np.float32) / np.float32(255)
    return averaged[:, ::-1].copy() if request.flipped else averaged


def _regular(path: Path) -> BufferedReader:
    """Open a file.

    Raises:
        DataError: It is a pipe or a device, opening which may wait for ever.
        OSError: There is none, or it cannot be opened.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise DataError(f"{path} is no file, but a pipe or a device", "remove it from the folder")
    return path.open("rb")


def _opened(file: Path | BufferedReader | BytesIO) -> Image.Image:
    """Read a picture's header, if it is of one of the `FORMATS` that there is a decoder for."""
    return Image.open(file, formats=_decoders())


@cache
def _decoders() -> tuple[str, ...]:
    """Return which of the `FORMATS` this Pillow can read, packages that extend it included."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _decoded(image: ImageFile) -> Image.Image:
    """Decode a file and turn it upright, having made sure that it is what the scan saw.

    Raises:
        DataError: It is not. Whatever else a decoder raises is left to the caller.
    """
    encoded = image.path.read_bytes()
    # A cache keeps pixels under the hash of the scan: they have to be of the same bytes.
    if _content_hash(BytesIO(encoded)) != image.content:
        raise DataError(f"{image.path} has changed since it was scanned", "run the stage again")
    with _quiet_pillow(), _opened(BytesIO(encoded)) as picture:
        upright = _upright(picture)
    if upright.size != image.size:
        raise DataError(
            f"{image.path} is {upright.width}x{upright.height} pixels, but its header says "
            f"{image.size[0]}x{image.size[1]}",
            REMEDY,
        )
    return upright


def _content_hash(file: BufferedReader | BytesIO) -> str:
    return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=HASH_BYTES)).hexdigest()


def _upright(picture: Image.Image) -> Image.Image:
    orientation = _orientation(picture)
    picture.load()
    return picture.transpose(TURNS[orientation]) if orientation in TURNS else picture


def _orientation(picture: Image.Image) -> int:
    """EXIF orientation, 1 (upright) to 8, of a picture that is open but not decoded.

    Of a PNG only what stands before the pixels is looked at: Pillow's own getexif would decode
    the picture to look behind them. TIFFs come upright out of Pillow.
    """
    if picture.format == "TIFF":
        return UPRIGHT
    try:
        orientation = Image.Image.getexif(picture).get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001 - damaged EXIF fails in every way; the pixels may be sound
        return UPRIGHT
    return orientation if orientation in TURNS else UPRIGHT


@contextmanager
def _quiet_pillow() -> Generator[None]:
    """Keep Pillow's warnings of odd metadata to itself, and its limit of pixels: there is our own.

    One thread at a time, because both are the whole process's.
    """
    with _pillow_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


@contextmanager
def _failing_as_data_error(path: Path) -> Generator[None]:
    """Turn whatever a picture makes the decoders raise into a DataError that names the file."""
    try:
        yield
    except PipeError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(
            f"{path} is not a picture, or of a format that is not read here", REMEDY
        ) from error
    except Exception as error:
        # Pillow's decoders raise nearly every kind of error on damaged files.
        raise DataError(f"{path} cannot be used: {reason_of(error)}", REMEDY) from error
