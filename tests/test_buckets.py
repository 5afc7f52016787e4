"""Buckets: Kohya's numbers, and what holds for every picture."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anima_pipe.buckets import BucketRules, choose_bucket, predefined_buckets
from anima_pipe.errors import ConfigError, DataError
from anima_pipe.records import BucketChoice

KOHYA = json.loads((Path(__file__).parent / "data" / "kohya_buckets.json").read_text())


def rules_of(setting):
    return BucketRules(
        resolution=tuple(setting["resolution"]),
        min_bucket_reso=setting["min_bucket_reso"],
        max_bucket_reso=setting["max_bucket_reso"],
        bucket_reso_steps=setting["bucket_reso_steps"],
        bucket_no_upscale=setting["bucket_no_upscale"],
    )


def name_of(setting):
    width, height = setting["resolution"]
    limits = f"{setting['min_bucket_reso']}-{setting['max_bucket_reso']}"
    suffix = "-no_upscale" if setting["bucket_no_upscale"] else ""
    return f"{width}x{height}-{limits}-{setting['bucket_reso_steps']}{suffix}"


@pytest.mark.parametrize("setting", KOHYA["settings"], ids=name_of)
def test_buckets_are_kohyas_number_for_number(setting):
    rules = rules_of(setting)
    assert rules.side_limits == (setting["adjusted_min"], setting["adjusted_max"])
    for width, height, *expected in setting["rows"]:
        if 0 in expected[:2]:
            with pytest.raises(DataError, match=f"image too extreme: {width}x{height}"):
                choose_bucket(rules, image_size=(width, height))
            continue
        choice = choose_bucket(rules, image_size=(width, height))
        assert [*choice.bucket, *choice.resized, *choice.crop] == expected[:6], (width, height)


@pytest.mark.parametrize(
    "setting", [s for s in KOHYA["settings"] if "predefined_buckets" in s], ids=name_of
)
def test_the_list_of_buckets_is_kohyas(setting):
    listed = [list(size) for size in predefined_buckets(rules_of(setting))]
    assert listed == setting["predefined_buckets"]


@pytest.mark.parametrize("section", KOHYA["no_bucket"], ids=lambda s: str(s["resolution"]))
def test_without_buckets_every_picture_covers_the_resolution(section):
    rules = BucketRules(resolution=tuple(section["resolution"]), enable_bucket=False)
    for width, height, *expected in section["rows"]:
        choice = choose_bucket(rules, image_size=(width, height))
        assert [*choice.bucket, *choice.resized] == expected, (width, height)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"min_bucket_reso": 576}, "min_bucket_reso must be equal or less than resolution"),
        ({"max_bucket_reso": 448}, "max_bucket_reso must be equal or greater than resolution"),
        ({"bucket_reso_steps": 0}, "bucket_reso_steps is 0"),
        ({"min_bucket_reso": 32}, "min_bucket_reso 32 is less than one step"),
        ({"resolution": (512, 0)}, "resolution 512x0"),
    ],
)
def test_impossible_rules_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        BucketRules(**{"resolution": (512, 512)} | changes)


def test_limits_have_no_effect_without_buckets():
    rules = BucketRules(resolution=(128, 64), enable_bucket=False)
    choice = choose_bucket(rules, image_size=(128, 64))
    assert choice == BucketChoice(bucket=(128, 64), resized=(128, 64), crop=(0, 0))


@pytest.mark.parametrize("size", [(63, 900), (1, 1), (4_000_000, 3)])
def test_a_picture_too_extreme_for_any_bucket_is_refused_with_its_size(size):
    rules = BucketRules(resolution=(1024, 1024), bucket_no_upscale=True)
    with pytest.raises(DataError, match=f"{size[0]}x{size[1]}"):
        choose_bucket(rules, image_size=size)


SIDES = st.integers(1, 12_000)
SIZES = st.tuples(SIDES, SIDES)


@st.composite
def bucket_rules(draw):
    steps = draw(st.sampled_from([8, 16, 32, 48, 64]))
    sides = st.integers(256, 2048)
    resolution = (draw(sides), draw(sides))
    return BucketRules(
        resolution=resolution,
        min_bucket_reso=draw(st.integers(steps, min(resolution))),
        max_bucket_reso=draw(st.integers(max(resolution), 4096)),
        bucket_reso_steps=steps,
        bucket_no_upscale=draw(st.booleans()),
    )


def choice_or_none(rules, size):
    try:
        return choose_bucket(rules, image_size=size)
    except DataError:
        assert rules.bucket_no_upscale
        return None


@given(rules=bucket_rules(), size=SIZES)
def test_the_resized_picture_covers_its_bucket_and_the_crop_is_centred(rules, size):
    choice = choice_or_none(rules, size)
    if choice is None:
        return
    for whole, part, offset in zip(choice.resized, choice.bucket, choice.crop, strict=True):
        assert 0 < part <= whole
        assert 0 <= whole - part - 2 * offset <= 1


@given(rules=bucket_rules(), size=SIZES)
def test_sides_of_buckets_are_whole_steps_and_areas_stay_below_the_resolutions(rules, size):
    choice = choice_or_none(rules, size)
    if choice is None:
        return
    assert all(side % rules.bucket_reso_steps == 0 for side in choice.bucket)
    # Kohya rounds half up on the way when it does not enlarge: half a pixel of the shorter side.
    rounding = 2 / min(choice.bucket) if rules.bucket_no_upscale else 0
    assert choice.bucket[0] * choice.bucket[1] <= rules.area * (1 + rounding)


@given(rules=bucket_rules(), size=SIZES)
def test_the_bucket_is_the_first_of_those_nearest_in_aspect_ratio(rules, size):
    if rules.bucket_no_upscale or size in predefined_buckets(rules):
        return
    ratio = size[0] / size[1]
    nearest = min(predefined_buckets(rules), key=lambda bucket: abs(bucket[0] / bucket[1] - ratio))
    assert choose_bucket(rules, image_size=size).bucket == nearest


@given(rules=bucket_rules(), size=SIZES)
def test_no_upscale_never_enlarges(rules, size):
    choice = choice_or_none(rules, size)
    if choice is None or not rules.bucket_no_upscale:
        return
    # One pixel: the side that is not brought to whole steps is rounded half up.
    assert choice.resized[0] <= size[0] + 1
    assert choice.resized[1] <= size[1] + 1
