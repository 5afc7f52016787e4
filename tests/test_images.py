"""Pictures on disk: found, measured, and refused by name if they are damaged."""

import os
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib as mpl
import picture_files
import pytest
from picture_files import (
    ORIENTATIONS,
    SIDEWAYS,
    SIZE,
    pixels_of,
    png_chunk,
    saved,
    whole,
)
from PIL import ExifTags, Image

from anima_pipe.errors import DataError
from anima_pipe.records import MOST_PIXELS, ImageFile, LatentRequest
from anima_pipe.source.images import (
    find_images,
    load_pixels,
    load_small,
    read_image_file,
    refuse_more_pixels,
)


@pytest.fixture
def photo():
    return picture_files.photo()


class TestFinding:
    def test_pictures_are_found_by_extension_in_any_case_and_sorted(self, tmp_path):
        names = ["b.PNG", "a.jpg", "c.Jpeg", "d.webp", "e.bmp", "f.avif", "g.gif", "h.tiff"]
        for name in [*names, "a.txt", "notes.md", ".hidden.png", "._a.jpg"]:
            (tmp_path / name).touch()
        (tmp_path / "folder.png").mkdir()
        assert [path.name for path in find_images(tmp_path)] == sorted(names)

    def test_subfolders_are_not_searched(self, tmp_path):
        (tmp_path / "sub").mkdir()
        (tmp_path / "sub" / "a.png").touch()
        assert find_images(tmp_path) == []

    def test_a_link_to_a_picture_that_is_gone_is_listed_and_then_refused(self, tmp_path):
        (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
        (path,) = find_images(tmp_path)
        with pytest.raises(DataError, match=r"gone\.png cannot be used: No such file"):
            read_image_file(path)

    @pytest.mark.parametrize("name", ["missing", "file.txt"])
    def test_what_is_not_a_folder_is_refused_by_name(self, tmp_path, name):
        (tmp_path / "file.txt").touch()
        with pytest.raises(DataError, match=name):
            find_images(tmp_path / name)


class TestReading:
    def test_the_content_hash_is_of_the_bytes_and_not_of_the_name(self, tmp_path, photo):
        first = read_image_file(saved(tmp_path, photo, "a.png"))
        renamed = read_image_file(saved(tmp_path, photo, "b.png"))
        other = photo.copy()
        other.putpixel((0, 0), (1, 2, 3))
        changed = read_image_file(saved(tmp_path, other, "c.png"))
        assert first.content == renamed.content != changed.content

    @pytest.mark.parametrize("orientation", ORIENTATIONS)
    @pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tif", "avif"])
    def test_sizes_are_those_of_the_upright_picture(self, tmp_path, photo, extension, orientation):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        path = saved(tmp_path, photo, f"turned.{extension}", exif=exif)
        expected = SIZE[::-1] if orientation in SIDEWAYS else SIZE
        assert read_image_file(path).size == expected
        assert pixels_of(path).shape == (*expected[::-1], 3)

    def test_many_threads_may_read_at_once_and_leave_the_warning_filters_alone(
        self, tmp_path, photo
    ):
        paths = [saved(tmp_path, photo, f"{index}.png") for index in range(40)]
        before = list(warnings.filters)
        with ThreadPoolExecutor(8) as threads:
            images = list(threads.map(read_image_file, paths))
        assert [image.path for image in images] == paths
        assert warnings.filters == before

    def test_a_real_photograph_from_a_camera_is_measured(self):
        folder = Path(mpl.get_data_path()) / "sample_data"
        assert read_image_file(folder / "grace_hopper.jpg").size == (512, 600)


class TestBadFiles:
    """One error that names the file; never a picture with parts made up."""

    def test_an_empty_file_is_named(self, tmp_path):
        (tmp_path / "a.png").touch()
        with pytest.raises(DataError, match=r"a\.png is empty"):
            read_image_file(tmp_path / "a.png")

    @pytest.mark.parametrize("content", [b"not a picture", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
    def test_a_file_that_is_no_picture_is_named(self, tmp_path, content):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(DataError, match=r"a\.png is not a picture"):
            read_image_file(tmp_path / "a.png")

    def test_a_picture_with_another_formats_extension_is_taken(self, tmp_path, photo):
        path = saved(tmp_path, photo, "really_jpeg.png", format="JPEG")
        assert pixels_of(path).shape == (80, 120, 3)

    @pytest.mark.parametrize("kind", ["EPS", "PPM", "PCX", "ICO"])
    def test_a_format_that_nobody_has_training_pictures_in_is_not_opened(
        self, tmp_path, photo, kind
    ):
        path = saved(tmp_path, photo, "really_another.png", format=kind)
        with pytest.raises(DataError, match=r"really_another\.png is not a picture"):
            read_image_file(path)
        as_one = ImageFile(path=path, size=SIZE, content="")
        with pytest.raises(DataError, match=r"really_another\.png is not a picture"):
            load_small(as_one, 64)

    @pytest.mark.parametrize("extension", ["jpg", "png", "webp", "gif", "bmp", "tif", "avif"])
    @pytest.mark.parametrize("kept", [0.95, 0.6])
    def test_a_truncated_picture_is_refused_and_not_filled_with_gray(
        self, tmp_path, photo, extension, kept
    ):
        path = saved(tmp_path, photo.resize((480, 320)), f"cut.{extension}")
        encoded = path.read_bytes()
        path.write_bytes(encoded[: int(kept * len(encoded))])
        with pytest.raises(DataError, match=rf"cut\.{extension}"):
            pixels_of(path)

    def test_a_truncated_progressive_jpeg_is_refused(self, tmp_path, photo):
        path = saved(tmp_path, photo.resize((480, 320)), "cut.jpg", progressive=True)
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(DataError, match=r"cut\.jpg"):
            pixels_of(path)

    def test_a_decompression_bomb_is_refused_before_it_is_unpacked(self, tmp_path):
        header = struct.pack(">IIBBBBB", 60_000, 60_000, 1, 0, 0, 0, 0)
        content = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(bytes(1000)))
        (tmp_path / "bomb.png").write_bytes(
            b"\x89PNG\r\n\x1a\n" + content + png_chunk(b"IEND", b"")
        )
        bomb = read_image_file(tmp_path / "bomb.png")
        with pytest.raises(DataError, match=r"bomb\.png is 60000x60000 pixels, more than max"):
            refuse_more_pixels(bomb, MOST_PIXELS)

    def test_a_very_large_scan_is_not_mistaken_for_a_bomb(self, tmp_path):
        path = saved(tmp_path, Image.new("1", (12_000, 9_000)), "scan.png")
        scan = read_image_file(path)
        refuse_more_pixels(scan, MOST_PIXELS)
        assert scan.size == (12_000, 9_000)

    def test_a_picture_that_changed_since_the_scan_is_refused(self, tmp_path, photo):
        image = read_image_file(saved(tmp_path, photo, "a.png"))
        saved(tmp_path, photo.rotate(180), "a.png")
        with pytest.raises(DataError, match=r"a\.png has changed since"):
            load_pixels(LatentRequest(key="", image=image, choice=whole(SIZE)))


def test_a_pipe_named_like_a_picture_is_an_error_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fox.png")

    with pytest.raises(DataError, match=r"fox\.png is no file"):
        read_image_file(tmp_path / "fox.png")
