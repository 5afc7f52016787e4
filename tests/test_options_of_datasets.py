"""What the options of datasets do, given as options or as keys of dataset.toml."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from anima_pipe.dataset.picture_captions import PictureTexts
from anima_pipe.dataset.pictures import find_pictures
from anima_pipe.dataset.plan import make_plan
from anima_pipe.dataset.survey import Survey, survey_pictures
from anima_pipe.dataset.visits import EMPTY_CAPTION
from anima_pipe.kohya.dataset_keys import DATASET_KEYS, SUBSETS
from anima_pipe.kohya.datasets import dataset_configs
from anima_pipe.kohya.resolve import resolve
from anima_pipe.kohya.toml_text import toml_lines
from anima_pipe.shards.keys import text_key
from anima_pipe.source.images import load_pixels

BESIDE = {"resolution": 128, "enable_bucket": True, "min_bucket_reso": 64, "bucket_reso_steps": 32}
"""What holds where a test says nothing else."""

Keys = dict[str, object]
Read = Callable[[Keys], Survey]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    return tmp_path / "pictures"


def add_picture(folder: Path, caption: str, size: tuple[int, int] = (128, 128)) -> None:
    """Put a picture of stripes, and its caption beside it."""
    number = len(list(folder.glob("*.png")))
    picture = Image.new("RGB", size)
    picture.putdata(
        [(7 * x % 256, 40 * number, x % 2 * 255) for _ in range(size[1]) for x in range(size[0])]
    )
    picture.save(folder / f"{number}.png")
    (folder / f"{number}.txt").write_text(caption, encoding="utf-8")


def as_options(keys: Keys) -> dict[str, object]:
    """The options of a run on the folder, by the options' names."""
    lines = ["[[datasets]]", "[[datasets.subsets]]", "image_dir = 'pictures'"]
    Path("dataset.toml").write_text("\n".join(lines), encoding="utf-8")
    names = {key.name: key.fallback for key in DATASET_KEYS.values()}
    options = {names[key]: value for key, value in keys.items()}
    Path("options.toml").write_text("\n".join(toml_lines(options)), encoding="utf-8")
    return {"dataset_config": "dataset.toml", "config_file": Path("options.toml")}


def as_keys(keys: Keys) -> dict[str, object]:
    """The options of a run on the folder, by keys of its dataset.toml, each as far in as may be."""
    inner = {key for key in keys if SUBSETS in DATASET_KEYS[key].levels}
    lines = [
        "[[datasets]]",
        *toml_lines({key: value for key, value in keys.items() if key not in inner}),
        "[[datasets.subsets]]",
        "image_dir = 'pictures'",
        *toml_lines({key: value for key, value in keys.items() if key in inner}),
    ]
    Path("dataset.toml").write_text("\n".join(lines), encoding="utf-8")
    return {"dataset_config": "dataset.toml"}


@pytest.fixture(params=[as_options, as_keys])
def read(request: pytest.FixtureRequest, folder: Path) -> Read:
    """What a run would make of keys, given in either place."""

    def survey(keys: Keys) -> Survey:
        given = request.param(BESIDE | keys)
        file = given.pop("config_file", None)
        options = resolve("cache-latents", given, file)
        pictures = find_pictures(dataset_configs(options))
        return survey_pictures(
            pictures, caption_variants=None, crop_variants=options.value("crop_variants")
        )

    return survey


def texts_of(survey: Survey) -> set[str]:
    """The distinct texts that the text stage encodes, but for the empty one of dropout."""
    captions = PictureTexts([s.picture for s in survey.samples], caption_variants=None)
    return {*captions} - {""}


def orders(*tags: str) -> set[str]:
    return {", ".join(order) for order in itertools.permutations(tags)}


@pytest.mark.parametrize(
    ("keys", "caption", "texts"),
    [
        ({"shuffle_caption": True}, "fox, snow", orders("fox", "snow")),
        ({"shuffle_caption": True, "keep_tokens": 2}, "fox, snow, sun", {"fox, snow, sun"}),
        (
            {"shuffle_caption": True, "keep_tokens_separator": "|||"},
            "fox, snow ||| sun",
            {"fox, snow, sun"},
        ),
        ({"shuffle_caption": True, "caption_separator": ";"}, "fox, snow", {"fox, snow"}),
        ({"shuffle_caption": True, "secondary_separator": ";"}, "fox;snow", {"fox,snow"}),
        (
            {"shuffle_caption": True, "keep_sections": True},
            "1girl, fox, snow",
            {"1girl, fox, snow", "1girl, snow, fox"},
        ),
        ({"enable_wildcard": True}, "{red|white} fox", {"red fox", "white fox"}),
        ({"caption_prefix": "photo,"}, "fox", {"photo, fox"}),
        ({"caption_suffix": "in snow"}, "fox", {"fox in snow"}),
        ({"caption_tag_dropout_rate": 1.0, "keep_tokens": 1}, "fox, snow", {"fox"}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_rule_for_captions_gives_its_texts(
    keys: Keys, caption: str, texts: set[str], folder: Path, read: Read
):
    add_picture(folder, caption)

    assert texts_of(read(keys)) == texts


def test_backslashes_of_parentheses_stay_only_if_asked_to(folder: Path, read: Read):
    add_picture(folder, r"saber \(fate\), (sitting:1.2)")

    assert texts_of(read({})) == {"saber (fate), (sitting:1.2)"}
    assert texts_of(read({"keep_backslashes": True})) == {r"saber \(fate\), (sitting:1.2)"}


def test_another_caption_seed_draws_other_variants(folder: Path, read: Read):
    add_picture(folder, "fox, snow, sun, tree, moss, rock")
    shuffled: Keys = {"shuffle_caption": True}
    drawn = texts_of(read(shuffled))

    assert texts_of(read({**shuffled, "caption_seed": 7})) != drawn
    assert texts_of(read({**shuffled, "caption_seed": 0})) == drawn


@pytest.mark.parametrize(
    ("keys", "without"),
    [
        ({}, [False, False, False]),
        ({"caption_dropout_rate": 1.0}, [True, True, True]),
        ({"caption_dropout_every_n_epochs": 2}, [False, True, False]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_caption_dropout_makes_visits_without_caption(
    keys: Keys, without: list[bool], folder: Path, read: Read
):
    add_picture(folder, "fox")
    survey = read(keys)

    plan = make_plan(survey, survey.latents, map(text_key, survey.captions), seed=0)

    epochs = [[visit.text for batch in plan.epoch(n) for visit in batch] for n in range(3)]
    assert [texts == [EMPTY_CAPTION] for texts in epochs] == without


def test_captions_are_in_the_files_of_the_ending_that_is_named(folder: Path, read: Read):
    add_picture(folder, "a fox")
    (folder / "0.words").write_text("snow", encoding="utf-8")

    assert texts_of(read({"caption_extension": ".words"})) == {"snow"}


def test_class_tokens_are_the_caption_of_pictures_without_one(folder: Path):
    add_picture(folder, "a fox")
    (folder / "0.txt").unlink()
    options = resolve("encode-text", as_keys(BESIDE | {"class_tokens": "sks fox"}))

    captions = PictureTexts(find_pictures(dataset_configs(options)), caption_variants=None)
    assert "sks fox" in captions


def test_a_metadata_file_names_pictures_of_image_dir_and_their_captions(folder: Path):
    add_picture(folder, "a fox")
    add_picture(folder, "snow")
    Path("words.json").write_text('{"1": {"caption": "sunset"}}', encoding="utf-8")
    options = resolve("encode-text", as_keys(BESIDE | {"metadata_file": "words.json"}))

    pictures = find_pictures(dataset_configs(options))
    captions = PictureTexts(pictures, caption_variants=None)
    assert [picture.path.name for picture in pictures] == ["1.png"]
    assert {*captions} - {""} == {"sunset"}


def bucket_of(survey: Survey) -> tuple[int, int]:
    (sample,) = survey.samples
    return sample.choice.bucket


@pytest.mark.parametrize(
    ("keys", "size", "without", "bucket"),
    [
        ({"resolution": 256}, (512, 512), (128, 128), (256, 256)),
        ({"enable_bucket": False}, (256, 128), (160, 96), (128, 128)),
        ({"min_bucket_reso": 128}, (256, 128), (160, 96), (128, 128)),
        ({"max_bucket_reso": 128}, (512, 128), (256, 64), (128, 64)),
        ({"bucket_reso_steps": 16}, (256, 128), (160, 96), (176, 80)),
        ({"bucket_no_upscale": True}, (64, 64), (128, 128), (64, 64)),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_rule_for_buckets_chooses_another_bucket(
    keys: Keys,
    size: tuple[int, int],
    without: tuple[int, int],
    bucket: tuple[int, int],
    folder: Path,
    read: Read,
):
    add_picture(folder, "fox", size)

    assert (bucket_of(read({})), bucket_of(read(keys))) == (without, bucket)


def test_flip_aug_asks_for_the_mirrored_picture_too(folder: Path, read: Read):
    add_picture(folder, "fox")

    plain, mirrored = (load_pixels(r) for r in read({"flip_aug": True}).latents.values())
    assert (plain[:, ::-1] == mirrored).all()
    assert (plain != mirrored).any()


def test_random_crop_asks_for_as_many_crops_as_crop_variants_says(folder: Path):
    add_picture(folder, "fox", (300, 128))
    given = {**as_keys(BESIDE | {"random_crop": True, "enable_bucket": False}), "crop_variants": 3}

    options = resolve("cache-latents", given)

    survey = survey_pictures(
        find_pictures(dataset_configs(options)),
        caption_variants=0,
        crop_variants=options.value("crop_variants"),
    )
    assert len({request.choice.crop for request in survey.latents.values()}) == 3


def test_random_crop_moves_the_crop_off_the_middle(folder: Path, read: Read):
    add_picture(folder, "fox", (300, 128))
    keys = {"enable_bucket": False}

    (middle,) = read(keys).latents.values()
    crops = {request.choice.crop for request in read(keys | {"random_crop": True}).latents.values()}
    assert len(crops) > 1
    assert crops - {middle.choice.crop}


def test_resize_interpolation_changes_the_pixels(folder: Path, read: Read):
    add_picture(folder, "fox", (256, 256))

    (smooth,) = read({}).latents.values()
    (coarse,) = read({"resize_interpolation": "nearest"}).latents.values()
    assert (load_pixels(smooth) != load_pixels(coarse)).any()


def test_skip_image_resolution_leaves_small_pictures_out(folder: Path, read: Read):
    add_picture(folder, "fox", (100, 100))
    add_picture(folder, "snow", (200, 200))

    survey = read({"skip_image_resolution": "128,128"})
    assert [sample.picture.path.name for sample in survey.samples] == ["1.png"]
