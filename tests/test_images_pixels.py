"""Decoding: the same 8-bit RGB pixels of the bucket's size, whatever the file is like."""

import numpy as np
import picture_files
import pytest
from picture_files import (
    ORIENTATIONS,
    SIZE,
    gray_ramp,
    lossless,
    pixels_of,
    png_of_16_bits,
    profile_that_sees_green,
    saved,
)
from PIL import ExifTags, Image, ImageOps

from anima_pipe.buckets import BucketRules, choose_bucket
from anima_pipe.errors import ConfigError, DataError
from anima_pipe.records import BucketChoice


@pytest.fixture
def photo():
    return picture_files.photo()


# What Pillow's transposition does to the stored picture, undone: stored = how[o] of the upright.
STORED_AS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize(
    ("extension", "options"),
    [("png", {}), ("tif", {}), ("webp", {"lossless": True}), ("jpg", {"quality": 95})],
)
def test_every_exif_orientation_gives_the_upright_pixels(
    tmp_path, photo, extension, options, orientation
):
    how = STORED_AS[orientation]
    stored = photo if how is None else photo.transpose(how)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = saved(tmp_path, stored, f"turned.{extension}", exif=exif, **options)
    difference = np.abs(pixels_of(path).astype(int) - np.asarray(photo))
    # JPEG is lossy; wrong by one transposition it would be off by 40 on average.
    assert difference.mean() <= (3 if extension == "jpg" else 0)


@pytest.mark.parametrize("damaged", [b"MM\0*\0\0\0\x08\xff\xff\0\0", b"no tags at all", b""])
def test_damaged_exif_does_not_cost_the_picture(tmp_path, photo, damaged):
    path = saved(tmp_path, photo, "odd.jpg", exif=b"Exif\0\0" + damaged)
    assert pixels_of(path).shape == (80, 120, 3)


class TestColours:
    """Every mode ends as 8-bit RGB over white."""

    @pytest.mark.parametrize("extension", ["png", "webp", "tif"])
    def test_transparent_parts_are_white_and_half_transparent_ones_half_white(
        self, tmp_path, extension
    ):
        rgba = np.zeros((16, 16, 4), np.uint8)
        rgba[..., 0] = 200
        rgba[:8, :, 3], rgba[8:, 8:, 3] = 255, 128
        path = saved(tmp_path, Image.fromarray(rgba), f"a.{extension}", **lossless(extension))
        pixels = pixels_of(path).astype(int)
        assert (pixels[:8] == (200, 0, 0)).all()
        assert (pixels[8:, :8] == 255).all()
        assert np.abs(pixels[8:, 8:] - (227, 127, 127)).max() <= 1

    def test_a_transparent_palette_colour_is_white(self, tmp_path):
        palette = Image.new("P", (16, 16))
        palette.putpalette([0, 0, 0, 10, 20, 30])
        palette.paste(1, (8, 0, 16, 16))
        pixels = pixels_of(saved(tmp_path, palette, "p.png", transparency=0))
        assert (pixels[:, :8] == 255).all()
        assert (pixels[:, 8:] == (10, 20, 30)).all()

    def test_palette_colours_may_each_have_their_own_transparency(self, tmp_path):
        palette = Image.new("P", (16, 16))
        palette.putpalette([0, 0, 0, 0, 0, 0])
        palette.paste(1, (8, 0, 16, 16))
        pixels = pixels_of(saved(tmp_path, palette, "p.png", transparency=bytes([128, 255])))
        assert np.abs(pixels[:, :8].astype(int) - 127).max() <= 1
        assert (pixels[:, 8:] == 0).all()

    @pytest.mark.parametrize("mode", ["RGB", "L"])
    def test_a_colour_marked_transparent_is_white(self, tmp_path, mode):
        plain = Image.new(mode, (16, 16))
        key = (0, 0, 0) if mode == "RGB" else 0
        assert (pixels_of(saved(tmp_path, plain, "k.png", transparency=key)) == 255).all()

    def test_gray_with_alpha_is_over_white(self, tmp_path):
        pixels = pixels_of(saved(tmp_path, Image.new("LA", (16, 16), (50, 0)), "la.png"))
        assert (pixels == 255).all()

    @pytest.mark.parametrize("extension", ["png", "jpg", "bmp"])
    def test_gray_has_three_equal_channels(self, tmp_path, photo, extension):
        pixels = pixels_of(saved(tmp_path, ImageOps.grayscale(photo), f"g.{extension}"))
        assert pixels.shape == (80, 120, 3)
        assert (pixels == pixels[..., :1]).all()

    def test_one_bit_pictures_are_black_and_white(self, tmp_path, photo):
        pixels = pixels_of(saved(tmp_path, photo.convert("1"), "b.png"))
        assert set(np.unique(pixels)) == {0, 255}

    @pytest.mark.parametrize("extension", ["png", "tif"])
    def test_16_bit_gray_keeps_its_whole_range(self, tmp_path, extension):
        ramp = gray_ramp(65535)
        pixels = pixels_of(saved(tmp_path, Image.fromarray(ramp), f"deep.{extension}"))
        assert np.abs(pixels[..., 0] - ramp / 257).max() <= 0.5

    @pytest.mark.parametrize("count", [2, 3, 4])
    def test_16_bit_colour_and_alpha_keep_their_whole_range(self, tmp_path, count):
        channels = np.full((16, 16, count), 65535, np.uint16)
        channels[..., : count - (count != 3)] = gray_ramp(65535)[..., None]
        (tmp_path / "deep.png").write_bytes(png_of_16_bits(channels))
        pixels = pixels_of(tmp_path / "deep.png")
        assert np.abs(pixels - channels[..., :1] / 257).max() <= 1

    @pytest.mark.parametrize("values", [np.full((16, 16), 0.5, "f4"), np.full((16, 16), 1 << 20)])
    def test_values_without_an_agreed_range_are_refused(self, tmp_path, values):
        image = Image.fromarray(values.astype("i4" if values.dtype.kind == "i" else "f4"))
        path = saved(tmp_path, image, "deep.tif")
        with pytest.raises(DataError, match=r"deep\.tif .* no agreed range"):
            pixels_of(path)

    def test_the_first_frame_of_an_animation_counts(self, tmp_path, photo):
        black = Image.new("RGB", SIZE)
        for extension in ("gif", "webp", "png"):
            options = {"save_all": True, "append_images": [black], "duration": 100}
            path = saved(tmp_path, photo, f"moving.{extension}", **options, **lossless(extension))
            difference = np.abs(pixels_of(path).astype(int) - np.asarray(photo))
            assert difference.mean() < 12, extension

    def test_transparency_of_an_animation_is_white(self, tmp_path):
        frames = [Image.new("RGBA", (16, 16), (9, 9, 9, alpha)) for alpha in (0, 255)]
        path = saved(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:])
        assert (pixels_of(path) == 255).all()


class TestCmyk:
    """Ink amounts mean nothing without their profile, so it is used where there is one."""

    def test_without_a_profile_the_plain_conversion_is_taken(self, tmp_path, photo):
        path = saved(tmp_path, photo.convert("CMYK"), "ink.jpg", quality=95)
        assert np.abs(pixels_of(path).astype(int) - np.asarray(photo)).mean() < 4

    def test_the_embedded_profile_is_used(self, tmp_path):
        ink = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
        path = saved(tmp_path, ink, "ink.tif", icc_profile=profile_that_sees_green())
        red, green, blue = pixels_of(path)[8, 8].astype(int)
        assert green > 100
        assert max(red, blue) < 60, "the plain conversion of this ink is (0, 255, 255)"

    @pytest.mark.parametrize("profile", [b"no profile", "RGB"])
    def test_a_profile_that_does_not_fit_is_left_out(self, tmp_path, photo, profile):
        if profile == "RGB":
            from PIL import ImageCms

            profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        path = saved(tmp_path, photo.convert("CMYK"), "ink.tif", icc_profile=profile)
        assert np.abs(pixels_of(path).astype(int) - np.asarray(photo)).max() <= 2


class TestResizing:
    @pytest.mark.parametrize("size", [(301, 211), (120, 80), (97, 64), (640, 97)])
    def test_area_gives_the_mean_of_what_each_pixel_covers(self, tmp_path, size):
        source = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        path = saved(tmp_path, Image.fromarray(source), "a.png")
        choice = BucketChoice(bucket=(32, 48), resized=(61, 53), crop=(14, 2))
        pixels = pixels_of(path, choice)
        expected = slow_area_average(source, choice)
        assert np.abs(pixels - expected).max() <= 0.5 + 1e-3

    @pytest.mark.parametrize(
        ("name", "pillows"),
        [
            (None, "LANCZOS"),
            ("lanczos", "LANCZOS"),
            ("lanczos4", "LANCZOS"),
            ("bilinear", "BILINEAR"),
            ("linear", "BILINEAR"),
            ("bicubic", "BICUBIC"),
            ("cubic", "BICUBIC"),
            ("nearest", "NEAREST"),
            ("box", "BOX"),
        ],
    )
    def test_pictures_are_enlarged_with_the_filter_asked_for(self, tmp_path, photo, name, pillows):
        path = saved(tmp_path, photo, "a.png")
        choice = choose_bucket(BucketRules(resolution=(256, 256)), image_size=SIZE)
        left, top = choice.crop
        width, height = choice.bucket
        expected = photo.resize(choice.resized, Image.Resampling[pillows])
        expected = expected.crop((left, top, left + width, top + height))
        assert (pixels_of(path, choice, interpolation=name) == np.asarray(expected)).all()

    @pytest.mark.parametrize(("resized", "same_as"), [((60, 40), "area"), ((121, 40), "lanczos")])
    def test_the_default_is_area_unless_a_side_grows(self, tmp_path, photo, resized, same_as):
        path = saved(tmp_path, photo, "a.png")
        choice = BucketChoice(bucket=(32, 32), resized=resized, crop=(3, 4))
        default = pixels_of(path, choice)
        assert (default == pixels_of(path, choice, interpolation=same_as)).all()

    def test_an_unknown_filter_is_refused_with_those_there_are(self, tmp_path, photo):
        path = saved(tmp_path, photo, "a.png")
        with pytest.raises(ConfigError, match=r"sinc.*\n.*lanczos4"):
            pixels_of(path, interpolation="sinc")

    def test_the_crop_is_cut_where_the_choice_says(self, tmp_path, photo):
        path = saved(tmp_path, photo, "a.png")
        choice = BucketChoice(bucket=(64, 32), resized=SIZE, crop=(10, 20))
        assert (pixels_of(path, choice) == np.asarray(photo)[20:52, 10:74]).all()

    def test_flipping_mirrors_left_and_right_after_the_crop(self, tmp_path, photo):
        path = saved(tmp_path, photo, "a.png")
        choice = BucketChoice(bucket=(64, 32), resized=SIZE, crop=(10, 20))
        flipped = pixels_of(path, choice, flipped=True)
        assert (flipped == pixels_of(path, choice)[:, ::-1]).all()

    def test_a_strip_that_would_grow_past_memory_is_refused(self, tmp_path):
        path = saved(tmp_path, Image.new("RGB", (1, 20_000)), "strip.png")
        choice = choose_bucket(BucketRules(resolution=(512, 512)), image_size=(1, 20_000))
        with pytest.raises(DataError, match=r"strip\.png .* too extreme"):
            pixels_of(path, choice)


def slow_area_average(source, choice):
    """The definition, pixel by pixel: each output pixel's rectangle laid over the source."""

    def coverage(available, resized, first, count):
        """Float[count, available]: how much of each source pixel lies under an output pixel."""
        edges = np.arange(available)
        begins = (first + np.arange(count))[:, None] * available / resized
        ends = begins + available / resized
        return np.clip(np.minimum(edges + 1, ends) - np.maximum(edges, begins), 0, None)

    down = coverage(source.shape[0], choice.resized[1], choice.crop[1], choice.bucket[1])
    across = coverage(source.shape[1], choice.resized[0], choice.crop[0], choice.bucket[0])
    summed = np.einsum("yh,xw,hwc->yxc", down, across, source.astype(float), optimize=True)
    return summed / down.sum(1)[:, None, None] / across.sum(1)[:, None]
