"""dataset.toml, its JSON form and bare folders: keys, levels, inheritance, and what is refused."""

import json
import logging
from pathlib import Path

import pytest
from PIL import Image

from anima_pipe.dataset.config import DatasetConfig
from anima_pipe.errors import ConfigError
from anima_pipe.kohya.dataset_keys import DATASET_KEYS
from anima_pipe.kohya.dataset_toml import (
    examine_dataset_config,
    examine_training_folders,
    load_dataset_config,
    settled,
)
from anima_pipe.kohya.datasets import dataset_configs, examine_datasets
from anima_pipe.kohya.resolve import resolve

PUBLISHED = json.loads(
    (Path(__file__).parent / "data" / "published_configs.json").read_text(encoding="utf-8")
)


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch) -> Path:
    """A working directory with the folders of pictures `a` and `b`, and `toml` for the file."""
    for name in ("a", "b", "toml", "data/images"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(text: str, suffix: str = ".toml", **fallbacks: object) -> list[DatasetConfig]:
    file = Path("toml", f"dataset{suffix}").absolute()
    file.write_text(text, encoding="utf-8")
    return load_dataset_config(file, fallbacks)


def problem_of(text: str, suffix: str = ".toml", **fallbacks: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text, suffix, **fallbacks)
    return str(caught.value)


WHOLE = """
[general]
shuffle_caption = true
caption_extension = "caption"
resolution = 512
batch_size = 2

[[datasets]]
enable_bucket = true
max_bucket_reso = 768

  [[datasets.subsets]]
  image_dir = "a"
  num_repeats = 10
  keep_tokens = 1

  [[datasets.subsets]]
  image_dir = "b"
  shuffle_caption = false
  class_tokens = "sks dog"

[[datasets]]
resolution = [640, 512]
batch_size = 4
keep_tokens = 3

  [[datasets.subsets]]
  image_dir = "a"
  flip_aug = true
  random_crop = true
  resize_interpolation = "box"
"""


def test_keys_are_inherited_from_general_and_from_the_dataset(folders):
    first, second = load(WHOLE)
    assert first.batch_size == 2
    assert first.buckets.resolution == (512, 512)
    assert first.buckets.enable_bucket
    assert first.buckets.max_bucket_reso == 768
    assert second.batch_size == 4
    assert second.buckets.resolution == (640, 512)
    assert not second.buckets.enable_bucket
    dogs, cats = first.subsets
    assert (dogs.image_dir, dogs.num_repeats) == (folders / "a", 10)
    assert dogs.captions.shuffle_caption
    assert dogs.captions.keep_tokens == 1
    assert not cats.captions.shuffle_caption
    assert cats.class_tokens == "sks dog"
    assert cats.num_repeats == 1
    (again,) = second.subsets
    assert again.captions.keep_tokens == 3
    assert again.flip_aug
    assert again.random_crop
    assert again.resize_interpolation == "area"
    assert {subset.caption_extension for subset in (dogs, cats, again)} == {".caption"}


def test_a_subset_may_weigh_its_loss(folders):
    first, _, _ = WHOLE.partition("[[datasets]]\nresolution")
    (dataset,) = load(f"{first}loss_weight = 0.5\n")
    assert [subset.loss_weight for subset in dataset.subsets] == [1.0, 0.5]
    assert "loss_weight: -1 is too small" in problem_of(one(subset="loss_weight = -1"))


def test_the_same_in_json(folders):
    import tomllib

    assert load(json.dumps(tomllib.loads(WHOLE)), ".json") == load(WHOLE)


ONE = 'datasets = [{ %s, subsets = [{ image_dir = "a", %s }] }]\n'


def one(dataset: str = "resolution = 512", subset: str = "num_repeats = 1") -> str:
    return ONE % (dataset, subset)


def test_options_fill_gaps_but_do_not_win_over_the_file():
    options = {
        "train_batch_size": 3,
        "dataset_repeats": 7,
        "shuffle_caption": True,
        "caption_dropout_rate": 0.1,
        "enable_bucket": True,
        "resolution": (768, 768),
        "caption_prefix": None,
    }
    (gaps,) = load(
        "datasets = [{ subsets = [{ image_dir = 'a', shuffle_caption = false }] }]", **options
    )
    assert gaps.batch_size == 3
    assert gaps.buckets.resolution == (768, 768)
    assert gaps.buckets.enable_bucket
    (subset,) = gaps.subsets
    assert subset.num_repeats == 7
    assert subset.captions.caption_dropout_rate == 0.1
    assert not subset.captions.shuffle_caption
    (full,) = load(one("resolution = 512, enable_bucket = false, batch_size = 2"), **options)
    assert full.batch_size == 2
    assert full.buckets.resolution == (512, 512)
    assert not full.buckets.enable_bucket


def test_kohyas_defaults_hold_where_nothing_is_said():
    (dataset,) = load(one())
    (subset,) = dataset.subsets
    assert dataset.batch_size == 1
    assert not dataset.buckets.enable_bucket
    assert dataset.buckets.bucket_reso_steps == 64
    assert subset.caption_extension == ".txt"
    assert subset.captions.caption_separator == ","
    assert subset.class_tokens is None
    assert subset.resize_interpolation is None


def test_a_bare_folder_is_a_bucketed_dataset(folders):
    (dataset,) = load_dataset_config(folders / "a", {})
    (subset,) = dataset.subsets
    assert subset.image_dir == folders / "a"
    assert dataset.buckets.resolution == (1024, 1024)
    assert dataset.buckets.enable_bucket
    assert dataset.buckets.side_limits == (256, 2048)


def test_options_shape_a_bare_folder(folders):
    options = {
        "resolution": (64, 96),
        "bucket_reso_steps": 16,
        "train_batch_size": 2,
        "shuffle_caption": True,
    }
    (dataset,) = load_dataset_config(folders / "a", options)
    assert dataset.batch_size == 2
    assert dataset.buckets.side_limits == (16, 192)
    assert dataset.subsets[0].captions.shuffle_caption
    (flat,) = load_dataset_config(folders / "a", {"enable_bucket": False})
    assert not flat.buckets.enable_bucket


def training_folder(folders: Path, *names: str) -> Path:
    """A folder of folders, each with a picture."""
    for name in names:
        (folders / "fox" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folders / "fox" / name / "picture.png")
    return folders / "fox"


@pytest.mark.parametrize("given", ["dataset_config", "train_data_dir"])
def test_a_folder_of_folders_named_by_kohyas_rule_is_a_dataset_however_it_is_given(folders, given):
    folder = training_folder(folders, "10_fox", "2_red fox", "other")
    options = resolve("cache-latents", {given: str(folder), "resolution": "512"})
    (dataset,) = dataset_configs(options)
    subsets = {s.image_dir.name: (s.num_repeats, s.class_tokens) for s in dataset.subsets}
    assert subsets == {"10_fox": (10, "fox"), "2_red fox": (2, "red fox")}
    assert examine_datasets(options).warnings == [
        f"{folder / 'other'} is left out: its name does not begin with a number and _"
    ]


@pytest.mark.parametrize(
    ("name", "expected"), [("10_fox", (10, "fox")), ("2024", (1, None)), ("fox", (1, None))]
)
def test_the_name_of_a_folder_of_pictures_says_its_repeats_as_in_kohya(folders, name, expected):
    examined = examine_dataset_config(training_folder(folders, name) / name, {})
    (subset,) = examined.datasets[0].subsets
    assert (subset.num_repeats, subset.class_tokens) == expected
    assert ["10 visits of each picture" in warning for warning in examined.warnings] == [True] * (
        expected[0] == 10
    )


def test_what_the_user_sets_wins_over_the_name_of_a_folder(folders):
    folder = training_folder(folders, "10_fox") / "10_fox"
    ((subset,),) = (d.subsets for d in load_dataset_config(folder, {"dataset_repeats": 3}))
    assert (subset.num_repeats, subset.class_tokens) == (3, "fox")


def test_pictures_beside_such_folders_are_what_a_bare_folder_means(folders):
    folder = training_folder(folders, "10_fox")
    Image.new("RGB", (8, 8)).save(folder / "picture.png")
    examined = examine_dataset_config(folder, {})
    (subset,) = examined.datasets[0].subsets
    assert (subset.image_dir, subset.num_repeats) == (folder, 1)
    (warning,) = examined.warnings
    assert "1 folder named like 10_subject" in warning
    assert f"--train_data_dir {folder}" in warning


def test_a_folder_that_is_not_here_may_lie_beside_the_file(folders):
    (folders / "toml" / "c").mkdir()
    (dataset,) = load(one().replace('"a"', '"c"'))
    assert dataset.subsets[0].image_dir == folders / "toml" / "c"
    problem = problem_of(one().replace('"a"', '"d"'))
    assert f"there is no folder {folders / 'd'} and {folders / 'toml' / 'd'}" in problem


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            one(subset="num_repeat = 2"),
            ["dataset.toml line 1: datasets[0].subsets[0].num_repeat", "did you mean num_repeats?"],
        ),
        ("[general]\nfoo = 1\n" + one(), ["line 2: general.foo: there is no such key"]),
        (one("resolution = 512, train_batch_size = 2"), ["dataset.toml calls it batch_size"]),
        (one("resolution = 512, learning_rate = 1"), ["it is an option of the training"]),
        (one("resolution = 512, bucket_free_fit = true"), ["is a key of a fork"]),
        (one(subset="batch_size = 2"), ["move it to [general] or [[datasets]]"]),
        (one("resolution = 512, is_reg = true"), ["move it to [[datasets.subsets]]"]),
        ('[general]\nimage_dir = "a"\n' + one(), ["cannot stand in [general]"]),
        (
            "resolution = 512\n" + one(),
            ["resolution: there is no such key", "move it to [general]"],
        ),
        ("[generall]\n" + one(), ["did you mean general?"]),
        (one("resolution = '512px'"), ["'512px' is not a size"]),
        (one(subset="num_repeats = 1.5"), ["num_repeats: 1.5 is not a whole number"]),
        (one(subset="shuffle_caption = 1"), ["1 is neither true nor false"]),
        (one(subset="caption_dropout_rate = 5"), ["5 is too large"]),
        (one(subset="resize_interpolation = 'foo'"), ["'foo' is unknown", "lanczos"]),
        (one("batch_size = 0, resolution = 512"), ["batch_size: 0 is too small"]),
        (one("batch_size = 1"), ["datasets[0]: resolution is required"]),
        (one("resolution = 200"), ["resolution 200x200 does not fit the model"]),
        (
            one("resolution = 512, enable_bucket = true, bucket_reso_steps = 24"),
            ["bucket_reso_steps is 24", "multiple of 16"],
        ),
        (
            one("resolution = 128, enable_bucket = true"),
            ["min_bucket_reso must be equal or less than resolution"],
        ),
        (
            one("resolution = 2048, enable_bucket = true"),
            ["max_bucket_reso must be equal or greater than resolution"],
        ),
        (one(subset="caption_separator = ''"), ["caption_separator is empty"]),
        ("[general]\n", ["there is no [[datasets]]"]),
        ("[[datasets]]\nresolution = 512\n", ["datasets[0]: there is no [[datasets.subsets]]"]),
        ("datasets = 5", ["there is no [[datasets]]"]),
        ("datasets = [5]", ["is not a list of tables"]),
        ("general = 5\n" + one(), ["general: is not a table"]),
        ("datasets = [{ resolution = 512, subsets = [{}] }]", ["image_dir is missing"]),
        (one(subset="is_reg = true"), ["holds regularisation pictures only"]),
        (
            one(subset='conditioning_data_dir = "a"'),
            ["conditioning_data_dir: is read only with masked_loss"],
        ),
        (one(subset="color_aug = true"), ["cannot be cached"]),
        (one(subset="face_crop_aug_range = [3.0, 1.0]"), ["[3.0, 1.0] is not a range"]),
        (one(subset="face_crop_aug_range = [0, 1]"), ["[0, 1] is not a range"]),
        (one(subset="face_crop_aug_range = '2'"), ["'2' is not a range"]),
        (one(subset="custom_attributes = { a = 1 }"), ["a is an attribute that nothing reads"]),
        (one(subset="custom_attributes = 5"), ["custom_attributes: 5 is not a table"]),
        (
            one(subset="custom_attributes = { timestep_sampling = { ofset = 1 } }"),
            ["timestep_sampling.ofset is an attribute", "did you mean timestep_sampling.offset?"],
        ),
        (
            one(subset="custom_attributes = { timestep_sampling = { offset = '1' } }"),
            ["timestep_sampling.offset is '1', which is not a number"],
        ),
        (one(subset="custom_attributes.timestep_sampling = 1"), ["timestep_sampling is not a"]),
        (
            one(subset="custom_attributes.diff_output_preservation = true"),
            ["diff_output_preservation is refused", "regularisation pictures"],
        ),
        (one("resolution = 512, validation_split = 1.1"), ["validation_split: 1.1 is too large"]),
        (
            "datasets = [{ resolution = 512, subsets = [{ metadata_file = 'm.json' }] }]",
            ["metadata_file: there is no file"],
        ),
        (one("resolution = 512, skip_image_resolution = 'x'"), ["skip_image_resolution: 'x' is"]),
        ("datasets = [", ["is not TOML"]),
    ],
)
def test_what_is_wrong_is_named(text: str, parts: list[str]):
    problem = problem_of(text)
    for part in parts:
        assert part in problem


def test_all_problems_are_reported_together():
    text = """[general]
shuffle = true

[[datasets]]
resolution = "big"
bucket_reso_steps = 24
enable_bucket = true
  [[datasets.subsets]]
  image_dir = "nowhere"
  [[datasets.subsets]]
  image_dir = "a"
  keep_tokens = -1
"""
    problem = problem_of(text)
    for part in (
        "line 2: general.shuffle: there is no such key",
        "line 5: datasets[0].resolution: 'big' is not a size",
        "line 9: datasets[0].subsets[0].image_dir: there is no folder",
        "line 12: datasets[0].subsets[1].keep_tokens: -1 is too small",
    ):
        assert part in problem


def test_what_is_refused_may_be_written_out_as_off():
    off = "is_reg = false, alpha_mask = false, color_aug = false, custom_attributes = {}"
    (dataset,) = load(one("resolution = 512, validation_split = 0.0", off))
    assert len(dataset.subsets) == 1


def test_subsets_that_kohya_leaves_out_are_left_out_with_a_warning(caplog):
    text = """[[datasets]]
resolution = 512
subsets = [
  { image_dir = "a" },
  { image_dir = "b", num_repeats = 0 },
  { image_dir = "toml/../a" },
  { image_dir = "a", flip_aug = true },
]
[[datasets]]
resolution = 256
subsets = [{ image_dir = "a" }]
"""
    with caplog.at_level(logging.WARNING, logger="anima_pipe"):
        first, second = load(text)
    assert [subset.image_dir.name for subset in first.subsets] == ["a"]
    assert [subset.image_dir.name for subset in second.subsets] == ["a"]
    left_out = [record.getMessage().split(" is left out: ")[0] for record in caplog.records]
    assert left_out == [f"warning: datasets[0].subsets[{number}]" for number in (1, 2, 3)]


def test_a_dataset_whose_every_subset_is_left_out_is_left_out_itself():
    text = """[[datasets]]
subsets = [{ image_dir = "a", num_repeats = 0 }]
[[datasets]]
subsets = [{ image_dir = "b" }]
"""
    (dataset,) = load(text, resolution=(512, 512))
    assert dataset.subsets[0].image_dir.name == "b"
    assert "leaves no pictures" in problem_of(one(subset="num_repeats = 0"))


def test_folders_named_for_their_visits_are_one_dataset(folders, caplog):
    for name in ("10_sks fox", "2_a_dog", "5", "notes"):
        (folders / "pictures" / name).mkdir(parents=True)
    (folders / "pictures" / "3_file").touch()
    options = {"resolution": (512, 512), "train_batch_size": 4, "shuffle_caption": True}

    with caplog.at_level(logging.WARNING, logger="anima_pipe"):
        (dataset,) = settled(examine_training_folders(Path("pictures"), None, options))

    assert [(s.image_dir.name, s.num_repeats, s.class_tokens) for s in dataset.subsets] == [
        ("10_sks fox", 10, "sks fox"),
        ("2_a_dog", 2, "a_dog"),
        ("5", 5, None),
    ]
    assert dataset.batch_size == 4
    assert dataset.subsets[0].captions.shuffle_caption
    (warning,) = caplog.records
    assert "notes is left out: its name does not begin with a number" in warning.getMessage()


def overruled(text: str, **options: str) -> list[str]:
    Path("dataset.toml").write_text(text, encoding="utf-8")
    given = resolve("train", {"dataset_config": "dataset.toml", **options})
    return [said for said in examine_datasets(given).warnings if "has no effect" in said]


@pytest.mark.parametrize(
    ("option", "given", "key", "in_file"),
    [
        ("resolution", "768", "resolution", "512"),
        ("train_batch_size", "4", "batch_size", "2"),
        ("keep_tokens", "3", "keep_tokens", "1"),
        ("caption_dropout_rate", "0.2", "caption_dropout_rate", "0.1"),
        ("dataset_repeats", "5", "num_repeats", "2"),
        ("max_bucket_reso", "2048", "max_bucket_reso", "1536"),
    ],
)
def test_an_option_that_a_dataset_overrules_is_warned_of(folders, option, given, key, in_file):
    general = f"[general]\nenable_bucket = true\n{key} = {in_file}\n"
    text = f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\n{general}"
    assert overruled(text, **{"resolution": "512", option: given}) == [
        f"{option} (command line) has no effect: dataset.toml sets {key} for every subset"
    ]
    assert overruled(text, **{"resolution": "512", option: in_file}) == []


def test_rules_for_buckets_without_buckets_are_warned_of(folders):
    text = "[[datasets]]\nresolution = 512\nmax_bucket_reso = 1536\n"
    subset = "[[datasets.subsets]]\nimage_dir = 'a'\n"
    assert overruled(text + subset, min_bucket_reso="320") == [
        "min_bucket_reso = 320 has no effect without enable_bucket",
        "datasets[0].max_bucket_reso = 1536 has no effect without enable_bucket",
    ]
    assert overruled(f"{text}enable_bucket = true\n{subset}") == []


def test_an_option_that_fills_the_gap_of_one_subset_is_not_said_to_be_idle(folders):
    text = "[[datasets]]\nresolution = 512\n" + "".join(
        f"[[datasets.subsets]]\nimage_dir = '{name}'\n{key}\n"
        for name, key in (("a", "keep_tokens = 1"), ("b", ""))
    )
    assert overruled(text, keep_tokens="2") == []


def test_training_folders_serve_where_no_dataset_is_given(folders):
    for name in ("10_fox", "2_cat"):
        (folders / "pictures" / name).mkdir(parents=True)
    given = {"train_data_dir": "pictures", "resolution": "512"}

    options = resolve("cache-latents", given)
    options.require("dataset_config")
    assert [len(dataset.subsets) for dataset in dataset_configs(options)] == [2]

    both = resolve("cache-latents", {**given, "dataset_config": "a"})
    (dataset,) = dataset_configs(both)
    assert [subset.image_dir.name for subset in dataset.subsets] == ["a"]
    assert both.warnings == ("train_data_dir (command line) has no effect beside dataset_config",)
    with pytest.raises(ConfigError, match="a dataset is required"):
        resolve("cache-latents", {}).require("dataset_config")


def test_a_metadata_file_stands_for_the_folders_pictures(folders):
    (folders / "toml" / "meta.json").write_text("{}")
    subset = "{ image_dir = 'a', metadata_file = 'meta.json', num_repeats = 3 }"
    (dataset,) = load(f"datasets = [{{ resolution = 512, subsets = [{subset}] }}]")
    (subset,) = dataset.subsets
    assert subset.metadata_file == folders / "toml" / "meta.json"
    assert (subset.image_dir, subset.num_repeats) == (folders / "a", 3)


def test_without_image_dir_a_metadata_files_paths_start_from_its_own_folder(folders):
    (folders / "toml" / "meta.json").write_text("{}")
    subset = "{ metadata_file = 'meta.json' }"
    (dataset,) = load(f"datasets = [{{ resolution = 512, subsets = [{subset}] }}]")
    assert dataset.subsets[0].image_dir == folders / "toml"


def test_two_metadata_files_may_describe_one_folder(folders):
    for name in ("one.json", "two.json"):
        (folders / name).write_text("{}")
    files = ("one.json", "two.json", "one.json")
    subsets = ", ".join(f"{{ image_dir = 'a', metadata_file = '{name}' }}" for name in files)
    (dataset,) = load(f"datasets = [{{ resolution = 512, subsets = [{subsets}] }}]")
    described = [subset.metadata_file for subset in dataset.subsets]
    assert described == [folders / "one.json", folders / "two.json"]


def test_in_json_and_train_data_dir_are_one_dataset(folders):
    (folders / "meta.json").write_text("{}")
    given = {"in_json": "meta.json", "resolution": "512", "dataset_repeats": "4"}

    (dataset,) = dataset_configs(resolve("cache-latents", {**given, "train_data_dir": "a"}))

    (subset,) = dataset.subsets
    assert subset.metadata_file == folders / "meta.json"
    assert (subset.image_dir, subset.num_repeats) == (folders / "a", 4)
    resolve("cache-latents", given).require("dataset_config")


def test_skip_image_resolution_is_of_a_dataset():
    first, second = load(
        "general = { resolution = 512, skip_image_resolution = 64 }\n"
        "datasets = [{ subsets = [{ image_dir = 'a' }] }, "
        "{ skip_image_resolution = [128, 32], subsets = [{ image_dir = 'a' }] }]\n"
    )
    assert (first.skip_image_resolution, second.skip_image_resolution) == ((64, 64), (128, 32))
    assert first.leaves_out((4096, 1))
    assert not first.leaves_out((4097, 1))
    assert not load(one())[0].leaves_out((1, 1))


@pytest.mark.parametrize(
    ("folder", "options", "problem"),
    [
        ("a", {"resolution": (512, 512)}, "there is no folder named like 10_subject in a"),
        ("nowhere", {"resolution": (512, 512)}, "10_subject in nowhere"),
        ("data", {}, "resolution is required"),
    ],
)
def test_what_is_wrong_with_training_folders_is_named(folders, folder, options, problem):
    (folders / "data" / "1_x").mkdir()
    with pytest.raises(ConfigError) as caught:
        settled(examine_training_folders(Path(folder), None, options))
    assert problem in str(caught.value)


def test_files_of_another_kind_are_told_apart(folders):
    with pytest.raises(ConfigError, match="file not found"):
        load_dataset_config(Path("nowhere"), {})
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere\.toml"):
        load_dataset_config(Path("nowhere.toml"), {})
    assert "not supported config file format" in problem_of("{}", ".yaml")
    assert "is not JSON" in problem_of("{", ".json")
    assert "is not a JSON object" in problem_of("[]", ".json")


def test_keys_without_lines_are_named_all_the_same():
    text = json.dumps({"datasets": [{"resolution": 512, "subsets": [{"image_dir": "a", "x": 1}]}]})
    assert "dataset.json: datasets[0].subsets[0].x: there is no such key" in problem_of(
        text, ".json"
    )


@pytest.mark.parametrize(
    "config",
    [c for c in PUBLISHED if c["dataset"] and c["form"] in ("toml", "cli")],
    ids=lambda config: config["id"],
)
def test_a_published_dataset_passes_or_fails_by_names_that_its_author_knows(config):
    tables = config["dataset"]
    foreign = {
        key
        for dataset in tables["datasets"]
        for key in {*dataset, *(key for subset in dataset["subsets"] for key in subset)}
        if key not in {*DATASET_KEYS, "subsets"}
    }
    if foreign:
        problem = problem_of(json.dumps(tables), ".json")
        assert all(f"{key}: is a key of " in problem for key in foreign)
    else:
        assert len(load(json.dumps(tables), ".json")) == len(tables["datasets"])


def test_the_share_held_out_is_that_of_the_innermost_table():
    text = """
[general]
resolution = 512
validation_split = 0.1
validation_seed = 7
[[datasets]]
  [[datasets.subsets]]
  image_dir = "a"
  [[datasets.subsets]]
  image_dir = "b"
  validation_split = 1.0
"""
    (dataset,) = load(text)
    assert [subset.validation_split for subset in dataset.subsets] == [0.1, 1.0]
    assert {subset.validation_seed for subset in dataset.subsets} == {7}
