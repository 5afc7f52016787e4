"""Kohya's metadata files: which pictures they mean, and with which captions."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from anima_pipe.buckets import BucketRules
from anima_pipe.dataset.config import DatasetConfig, SubsetConfig
from anima_pipe.dataset.picture_captions import PictureTexts, uncaptioned
from anima_pipe.dataset.pictures import find_pictures
from anima_pipe.dataset.survey import survey_pictures
from anima_pipe.errors import DataError
from anima_pipe.source.captions import CaptionRules
from anima_pipe.source.metadata_file import read_metadata_file


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "deeper").mkdir(parents=True)
    for name in ("a.png", "b.webp", "deeper/c.png", "unused.png"):
        Image.new("RGB", (64, 64)).save(folder / name)
    return folder


def metadata(folder: Path, content: Any, name: str = "meta.json") -> Path:
    file = folder.parent / name
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return file


def read(
    folder: Path, content: Any, *, wildcards: bool = False, name: str = "meta.json"
) -> dict[str, str | None]:
    found = read_metadata_file(
        metadata(folder, content, name), folder, separator=",", enable_wildcard=wildcards
    )
    return {picture.path.relative_to(folder).as_posix(): picture.caption for picture in found}


def test_paths_are_found_with_and_without_suffix_absolute_and_relative(pictures):
    content = {
        "b": {"caption": "two"},
        str(pictures / "a.png"): {"caption": "one"},
        "deeper/c": {"caption": "three"},
    }
    assert read(pictures, content) == {"a.png": "one", "b.webp": "two", "deeper/c.png": "three"}


def test_a_picture_saved_in_another_format_is_found_by_its_stem(pictures):
    assert read(pictures, {"b.png": {"caption": "two"}}) == {"b.webp": "two"}


@pytest.mark.parametrize(
    ("entry", "wildcards", "caption"),
    [
        ({"caption": "a fox"}, False, "a fox"),
        ({"tags": "fox, snow"}, False, "fox, snow"),
        ({"tags": ["fox", "snow"]}, False, "fox,snow"),
        ({"caption": "a fox", "tags": "fox, snow"}, False, "a fox,fox, snow"),
        ({"caption": "one\ntwo", "tags": "t"}, True, "one,t\ntwo,t"),
        ({"caption": "one\n\n two ", "tags": "t\nu"}, True, "one,t,u\ntwo,t,u"),
        ({"caption": "", "tags": ""}, False, None),
        ({"train_resolution": [512, 512]}, False, None),
    ],
)
def test_tags_follow_the_caption(pictures, entry, wildcards, caption):
    assert read(pictures, {"a": entry}, wildcards=wildcards) == {"a.png": caption}


def test_a_file_of_one_object_a_line_is_read_too(pictures):
    lines = '{"image_path": "a.png", "caption": "one"}\n\n{"image_path": "b", "tags": "two"}\n'
    assert read(pictures, lines, name="meta.jsonl") == {"a.png": "one", "b.webp": "two"}


@pytest.mark.parametrize("sign", ["\u2028", "\u0085", "\x7f"])
def test_an_object_of_jsonl_ends_at_the_end_of_its_line_alone(pictures, sign):
    entries = [{"image_path": "a.png", "caption": f"one{sign}two"}, {"image_path": "b"}]
    lines = "\r\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
    assert read(pictures, lines, name="meta.jsonl") == {"a.png": f"one{sign}two", "b.webp": None}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "is not JSON"),
        ("[1]", "is not a metadata file"),
        ('{"a": ' * 200_000, "is not JSON"),
        ('{"a": {"train_resolution": ' + "9" * 5000 + "}}", "is not JSON"),
        ({}, "describes no picture"),
        (b"\xff", "is not UTF-8"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(pictures, content, problem):
    file = pictures.parent / "meta.json"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        metadata(pictures, content)
    with pytest.raises(DataError, match=problem):
        read_metadata_file(file, pictures, separator=",", enable_wildcard=False)


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("caption", "'a' has no object of its own"),
        ({"caption": 5}, "'a': caption is 5, not a text"),
        ({"caption": "fox", "tags": ["b", 1]}, r"'a': tags is ['b', 1], not a text or a li"),
    ],
)
def test_what_is_wrong_with_an_entry_leaves_out_its_picture_alone(pictures, entry, problem):
    file = metadata(pictures, {"a": entry, "b": {"caption": "two"}})
    found = find_pictures([dataset(pictures, file)])

    survey = survey_pictures(found, caption_variants=None)
    texts = PictureTexts(found, caption_variants=None)

    assert [sample.picture.name for sample in survey.samples] == ["b.webp"]
    assert [problem in skipped.reason for skipped in survey.skipped] == [True]
    assert list(texts) == ["", "two"]
    assert texts.skipped == survey.skipped


def test_what_is_wrong_with_a_line_is_said_of_the_line(pictures):
    lines = [
        '{"image_path": "a.png", "caption": "one"}',
        '{"image_path": "b.webp", "caption": "two"',
        '{"caption": "three"}',
        '{"x": ' * 100_000,
        '{"image_path": "deeper/c.png", "seed": ' + "9" * 5000 + "}",
        '{"image_path": "d.png", "caption": "' + "x" * 2**20 + '"}',
        '{"image_path": "deeper/c.png", "caption": "four"}',
    ]
    file = metadata(pictures, "\n".join(lines), "meta.jsonl")

    survey = survey_pictures(find_pictures([dataset(pictures, file)]), caption_variants=None)

    assert [sample.picture.name for sample in survey.samples] == ["a.png", "c.png"]
    said = {skipped.name.rpartition("/")[2]: skipped.reason for skipped in survey.skipped}
    assert [*said] == [f"meta.jsonl line {number}" for number in (2, 3, 4, 5, 6)]
    assert ["is not JSON" in reason for reason in said.values()] == [True, False, True, True, False]
    assert "no object with an image_path" in said["meta.jsonl line 3"]
    assert "more than 1,048,576 letters" in said["meta.jsonl line 6"]


def test_a_name_that_no_disk_holds_leaves_out_its_picture_alone(pictures):
    names = ["x" * 5000, "y" * 5000 + ".png", "deeper/" * 2000 + "z", "no\0where.png"]
    file = metadata(pictures, {name: {"caption": "one"} for name in ["a", *names]})

    survey = survey_pictures(find_pictures([dataset(pictures, file)]), caption_variants=None)

    assert [sample.picture.name for sample in survey.samples] == ["a.png"]
    assert len(survey.skipped) == len(names)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
def test_a_pipe_in_a_metadata_files_place_is_not_waited_for(pictures):
    os.mkfifo(pictures.parent / "meta.json")
    with pytest.raises(DataError, match=r"meta\.json is no file, but a folder, a pipe or a device"):
        find_pictures([dataset(pictures, pictures.parent / "meta.json")])


def test_a_missing_file_is_named(pictures):
    with pytest.raises(DataError, match=r"cannot read .*nowhere\.json"):
        read_metadata_file(Path("nowhere.json"), pictures, separator=",", enable_wildcard=False)


def dataset(folder: Path, file: Path, **subset: Any) -> DatasetConfig:
    buckets = BucketRules(
        resolution=(64, 64),
        min_bucket_reso=32,
        max_bucket_reso=128,
        bucket_reso_steps=32,
        bucket_no_upscale=False,
    )
    config = SubsetConfig(image_dir=folder, metadata_file=file, **subset)
    return DatasetConfig(subsets=(config,), buckets=buckets)


def test_only_described_pictures_are_trained_with_their_captions(pictures):
    file = metadata(pictures, {"a": {"caption": "one, two"}, "gone": {"caption": "three"}})
    rules = CaptionRules(caption_prefix="sks")

    found = find_pictures([dataset(pictures, file, captions=rules)])
    survey = survey_pictures(found, caption_variants=None)

    (sample,) = survey.samples
    assert sample.captions.full == ("sks one, two",)
    (skipped,) = survey.skipped
    assert "gone" in skipped.name
    assert list(PictureTexts(found, caption_variants=None)) == ["", "sks one, two", "sks three"]


def test_what_a_metadata_file_leaves_open_is_in_the_file_beside_or_the_class_tokens(pictures):
    (pictures / "a.txt").write_text("beside")
    file = metadata(pictures, {"a": {}, "b": {}})

    named = find_pictures([dataset(pictures, file, class_tokens="class")])
    assert list(PictureTexts(named, caption_variants=None)) == ["", "beside", "class"]

    (missing,) = uncaptioned(find_pictures([dataset(pictures, file)]))
    assert missing.name.endswith("b.webp")


def test_pictures_of_no_more_than_an_area_are_left_out_without_a_complaint(pictures):
    Image.new("RGB", (64, 65)).save(pictures / "larger.png")
    file = metadata(pictures, {"a": {"caption": "one"}, "larger": {"caption": "two"}})
    small = replace(dataset(pictures, file), skip_image_resolution=(64, 64))

    survey = survey_pictures(find_pictures([small]), caption_variants=None)

    assert [sample.picture.path.name for sample in survey.samples] == ["larger.png"]
    assert survey.skipped == ()
    every = replace(small, skip_image_resolution=(512, 512))
    with pytest.raises(DataError, match="none of the 2 pictures can be used, they are all too"):
        survey_pictures(find_pictures([every]), caption_variants=None)
