"""JPEGs whose data is damaged decode with grey or shifted parts; that is not passed over."""

import io
import random
from pathlib import Path

import numpy as np
import pytest
from commands import anima_pipe, assert_one_error, demo_pictures, write_dataset
from picture_files import photo, saved
from PIL import Image

from anima_pipe.source.damage import damage_of

KINDS = {
    "baseline": {"quality": 90},
    "progressive": {"quality": 90, "progressive": True},
    "restarting": {"quality": 90, "restart_marker_rows": 1},
}


def large(mode: str = "RGB") -> Image.Image:
    return photo().resize((480, 320), Image.Resampling.BICUBIC).convert(mode)


def flipped(path: Path, rng: random.Random) -> None:
    """Flip a bit of a JPEG's picture data."""
    content = bytearray(path.read_bytes())
    content[rng.randrange(content.index(b"\xff\xda") + 14, len(content) - 2)] ^= 1 << rng.randrange(
        8
    )
    path.write_bytes(content)


@pytest.mark.parametrize("kind", KINDS)
def test_of_flipped_bits_in_jpegs_those_that_libjpeg_notices_are_told(tmp_path, kind):
    """Others hit a value and not its length: what they spoil cannot be told from a picture."""
    rng, found, wrecked, told = random.Random(0), 0, 0, 0
    whole = saved(tmp_path, large(), "whole.jpg", **KINDS[kind])
    assert damage_of(whole) is None
    before = np.asarray(Image.open(whole)).astype(int)
    for _ in range(400):
        path = tmp_path / "flipped.jpg"
        path.write_bytes(whole.read_bytes())
        flipped(path, rng)
        try:
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB")).astype(int)
        except OSError:
            continue  # told by whoever decodes it
        is_told = damage_of(path) is not None
        is_wrecked = (abs(pixels - before).max(axis=2) > 24).mean() > 0.05
        found += is_told
        wrecked += is_wrecked
        told += is_told and is_wrecked
    assert found >= 30, (found, wrecked, told)
    assert told >= 0.3 * wrecked, (found, wrecked, told)


def with_behind(content: bytes) -> bytes:
    return content + b"what some cameras put behind a picture" * 20


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", [bytes, with_behind])
def test_a_whole_jpeg_of_any_kind_is_not_called_damaged(tmp_path, mode, kind, change):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path, large(mode), "whole.jpg", exif=exif, **KINDS[kind])
    path.write_bytes(change(path.read_bytes()))
    assert damage_of(path) is None


@pytest.mark.parametrize("form", ["PNG", "WEBP", "AVIF", "GIF", "TIFF", "BMP"])
def test_other_formats_are_not_called_damaged(tmp_path, form):
    picture = large()
    path = tmp_path / "picture.jpg"  # whatever it is called
    picture.save(path, form)
    assert damage_of(path) is None


def test_a_png_with_a_flipped_bit_does_not_decode_at_all():
    rng, buffer = random.Random(0), io.BytesIO()
    large().save(buffer, "PNG")
    start = buffer.getvalue().index(b"IDAT") + 4
    for _ in range(100):
        content = bytearray(buffer.getvalue())
        content[rng.randrange(start, len(content) - 16)] ^= 1 << rng.randrange(8)
        with pytest.raises((OSError, SyntaxError)):
            Image.open(io.BytesIO(content)).load()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of which one is a damaged JPEG that decodes."""
    folder = demo_pictures(tmp_path / "pictures")
    rng = random.Random(0)
    content = saved(tmp_path, large(), "whole.jpg", quality=90).read_bytes()
    path = folder / "grey.jpg"
    path.write_bytes(content)
    while damage_of(path) is None:
        path.write_bytes(content)
        flipped(path, rng)
    (folder / "grey.txt").write_text("a cat")
    return folder


@pytest.mark.usefixtures("elsewhere")
def test_a_damaged_jpeg_is_warned_of_whenever_it_is_used_and_is_an_error_under_strict(
    folder, tmp_path
):
    data = {
        "dataset_config": write_dataset(tmp_path / "dataset.toml", folder),
        "cache_dir": tmp_path / "cache",
    }
    first = anima_pipe("cache-latents", tmp_path / "first.json", **data)
    again = anima_pipe("cache-latents", tmp_path / "again.json", **data)

    assert (first.code, again.code) == (0, 0)
    assert (again.summary["encoded"], again.summary["failed"]) == (0, 0)
    for ended in (first, again):
        assert ended.summary["damaged"] == 1
        assert "damaged, and used as they decode (1):" in ended.said
        assert ended.said.count(f"{folder / 'grey.jpg'}: its data is damaged: Corrupt JPEG") == 1
    for cache in ("cache", "another"):
        strict = anima_pipe("cache-latents", strict=True, **data | {"cache_dir": tmp_path / cache})
        assert_one_error(strict, "1 picture", "--strict")
        assert "grey.jpg" in strict.said
