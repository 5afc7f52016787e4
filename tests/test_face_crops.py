"""Crops around faces that file names locate: Kohya's face_crop_aug_range."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from commands import anima_pipe
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from anima_pipe.dataset.config import DatasetConfig
from anima_pipe.dataset.face_crops import Face, face_crops, face_in_name
from anima_pipe.dataset.pictures import find_pictures
from anima_pipe.dataset.plan import make_plan
from anima_pipe.dataset.survey import survey_pictures
from anima_pipe.kohya.dataset_toml import load_dataset_config
from anima_pipe.records import BucketChoice
from anima_pipe.shards.keys import text_key

TARGET = (512, 512)
FACE = Face(centre=(800, 600), size=400)


def crops(
    closeness: tuple[float, float], count: int = 200, *, wanders: bool = False, face: Face = FACE
) -> tuple[BucketChoice, ...]:
    return face_crops(TARGET, (2000, 1500), face, closeness, count, wanders=wanders, seed="a")


@pytest.mark.parametrize(
    ("stem", "face"),
    [
        ("fox_812_604_300_340", Face(centre=(812, 604), size=340)),
        ("a_fox_at_sea_1_2_30_4", Face(centre=(1, 2), size=30)),
        ("fox_604_300_340", None),
        ("fox_at_the_blue_sea", None),
        ("fox_0_604_300_340", None),
        ("fox_812_604_0_340", None),
    ],
)
def test_a_file_name_locates_a_face_by_its_last_four_numbers(stem: str, face: Face | None):
    assert face_in_name(stem) == face


def test_a_crop_of_one_closeness_is_centred_on_the_face():
    # The crop is two faces long: 512 / (2 * 400) = 0.64 of 2000 x 1500, the face at (512, 384).
    (only,) = crops((2.0, 2.0))
    assert only == BucketChoice(bucket=TARGET, resized=(1280, 960), crop=(256, 128))


def test_a_picture_is_neither_enlarged_nor_shrunk_below_the_crop():
    near, far = crops((0.5, 0.5))[0], crops((50.0, 50.0))[0]
    assert near.resized == (2000, 1500)
    assert far.resized == (683, 512)
    assert far.crop[1] == 0


def test_crops_of_a_range_differ_in_closeness_and_a_little_in_place():
    drawn = crops((1.5, 3.0))
    scales = [choice.resized[0] / 2000 for choice in drawn]
    assert 512 / (3 * 400) - 1e-3 < min(scales) < 0.45
    assert 0.83 < max(scales) < 512 / (1.5 * 400) + 1e-3
    for choice, scale in zip(drawn, scales, strict=True):
        for axis in (0, 1):
            centred = FACE.centre[axis] * scale - 256
            inside = min(max(centred, 0), choice.resized[axis] - 512)
            assert abs(choice.crop[axis] - inside) <= 400 // 20 + 1


def test_small_faces_stay_in_the_middle():
    small = Face(centre=(800, 600), size=39)
    for choice in crops((15.0, 20.0), face=small):
        centre = int(800 * choice.resized[0] / 2000 + 0.5)
        assert abs(choice.crop[0] + 256 - centre) <= 1


def test_random_crop_moves_the_crop_off_the_face_less_often_the_farther():
    lefts = [choice.crop[0] for choice in crops((2.0, 2.0), wanders=True)]
    assert min(lefts) < 100
    assert max(lefts) > 500
    near = sum(abs(left - 256) < 128 for left in lefts)
    assert near > 0.2 * len(lefts)


@given(
    st.tuples(st.integers(64, 3000), st.integers(64, 3000)),
    st.tuples(st.floats(0, 1), st.floats(0, 1), st.integers(1, 600)),
    st.tuples(st.floats(0.5, 4), st.floats(0, 4)),
    st.booleans(),
)
def test_a_crop_lies_within_the_picture_and_keeps_its_shape(size, place, closeness, wanders):
    face = Face(centre=(int(place[0] * size[0]), int(place[1] * size[1])), size=place[2])
    ends = closeness[0], closeness[0] + closeness[1]
    for choice in face_crops(TARGET, size, face, ends, 3, wanders=wanders, seed="b"):
        for start, part, whole in zip(choice.crop, choice.bucket, choice.resized, strict=True):
            assert 0 <= start <= whole - part
        ratio = choice.resized[0] / choice.resized[1]
        assert ratio == pytest.approx(size[0] / size[1], rel=2 / min(choice.resized))


def test_more_crops_begin_with_the_same_ones():
    assert crops((1.5, 3.0), 2) == crops((1.5, 3.0), 5)[:2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, colour in (("fox_60_40_40_50", "red"), ("cat", "teal")):
        Image.new("RGB", (160, 120), colour).save(tmp_path / f"{name}.png")
    (tmp_path / "fox.txt").write_text("a fox")
    (tmp_path / "cat.txt").write_text("a cat")
    return tmp_path


def dataset(folder: Path, **keys: object) -> list[DatasetConfig]:
    subset = {"image_dir": str(folder), "face_crop_aug_range": [1.5, 3.0], "flip_aug": True}
    file = folder / "dataset.json"
    file.write_text(json.dumps({"datasets": [{"resolution": 64, **keys, "subsets": [subset]}]}))
    return load_dataset_config(file, {})


def test_crops_around_a_face_are_cached_and_drawn(folder: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, logger="anima_pipe"):
        pictures = find_pictures(dataset(folder))
        survey = survey_pictures(pictures, caption_variants=None, crop_variants=3)
    cat, fox = survey.samples
    assert (len(cat.latent_keys), len(fox.latent_keys)) == (2, 6)
    assert fox.captions.full == ("a fox",)
    places = {
        (survey.latents[key].choice.resized, survey.latents[key].flipped) for key in fox.latent_keys
    }
    assert len(places) == 6
    assert "no face in the file names of 1 picture of face_crop_aug_range" in caplog.text
    plan = make_plan(survey, survey.latents, map(text_key, survey.captions), seed=0)
    seen = {visit.latent for epoch in range(60) for b in plan.epoch(epoch) for visit in b}
    assert seen == set(survey.latents)


def test_beside_buckets_it_has_no_effect_and_that_is_said(
    folder: Path, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING, logger="anima_pipe"):
        (loaded,) = dataset(folder, enable_bucket=True, min_bucket_reso=64)
    assert loaded.subsets[0].face_crop_aug_range is None
    assert "face_crop_aug_range has no effect beside enable_bucket" in caplog.text


def test_what_has_no_effect_is_said_once_by_a_run_over_a_bare_folder(folder: Path, tmp_path: Path):
    ended = anima_pipe(
        "train",
        dataset_config=folder,
        resolution=64,
        face_crop_aug_range="1,2",
        cache_dir=tmp_path / "cache",
        output_dir=tmp_path / "out",
        max_train_steps=1,
    ).ok()
    warning = "warning: face_crop_aug_range has no effect beside enable_bucket, as in Kohya\n"
    assert ended.said.count("has no effect beside enable_bucket") == ended.said.count(warning) == 1
