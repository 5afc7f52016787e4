"""Regularisation pictures: how often they are visited, what their loss weighs, where they stand."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from anima_pipe.dataset.config import DatasetConfig, regularisation_visits
from anima_pipe.dataset.pictures import find_pictures
from anima_pipe.dataset.plan import Plan, describe, make_plan
from anima_pipe.dataset.survey import Survey, survey_pictures
from anima_pipe.errors import ConfigError
from anima_pipe.kohya.dataset_toml import load_dataset_config
from anima_pipe.kohya.datasets import dataset_configs
from anima_pipe.kohya.resolve import resolve
from anima_pipe.records import Skipped
from anima_pipe.shards.keys import text_key


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with three pictures to train on and four that regularise."""
    for folder, count in (("train/2_fox", 3), ("reg/1_animal", 4)):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(count):
            colour = (number * 40, count * 20, 0)
            Image.new("RGB", (64, 64), colour).save(tmp_path / folder / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(*subsets: dict[str, object], **options: object) -> list[DatasetConfig]:
    file = Path("dataset.json")
    file.write_text(json.dumps({"datasets": [{"resolution": 64, "subsets": list(subsets)}]}))
    return load_dataset_config(file, options)


def fox(**keys: object) -> dict[str, object]:
    return {"image_dir": "train/2_fox", "class_tokens": "fox", "num_repeats": 2, **keys}


def animal(**keys: object) -> dict[str, object]:
    return {"image_dir": "reg/1_animal", "class_tokens": "animal", "is_reg": True, **keys}


def survey_of(datasets: list[DatasetConfig]) -> Survey:
    return survey_pictures(find_pictures(datasets), caption_variants=None)


def planned(survey: Survey) -> Plan:
    return make_plan(survey, survey.latents, map(text_key, survey.captions), seed=0)


def visits_in(plan: Plan) -> tuple[dict[str, int], dict[str, int]]:
    """Visits of an epoch to each picture to train on, and to each one that regularises."""
    counts: tuple[Counter[str], Counter[str]] = Counter(), Counter()
    for batch in plan.epoch(0):
        for visit in batch:
            counts[visit.text == text_key("animal")][visit.name] += 1
    return dict(counts[0]), dict(counts[1])


@pytest.mark.parametrize(
    ("repeats", "wanted", "visits"),
    [
        ([1, 1, 1, 1], 6, [2, 2, 1, 1]),  # too few: each in turn gets one more
        ([2, 2, 2, 2], 6, [2, 2, 2, 0]),  # more than enough: the last stays out
        ([4, 4, 4], 6, [4, 4, 0]),  # the last one in comes with all of its repeats
        ([10], 6, [10]),
        ([1, 3], 6, [2, 4]),
        ([5, 5], 0, [0, 0]),
    ],
)
def test_visits_to_regularisation_pictures_are_spread_by_kohyas_rule(repeats, wanted, visits):
    assert regularisation_visits(repeats, wanted) == visits


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(0, 200))
def test_visits_are_those_of_handing_them_out_one_by_one(repeats: list[int], wanted: int):
    by_hand = [0] * len(repeats)
    for place, own in enumerate(repeats):
        if sum(by_hand) < wanted:
            by_hand[place] = own
    place = 0
    while sum(by_hand) < wanted:
        by_hand[place % len(repeats)] += 1
        place += 1
    assert regularisation_visits(repeats, wanted) == by_hand


def test_an_epoch_has_as_many_visits_to_regularisation_pictures_as_to_others():
    plan = planned(survey_of(load(fox(), animal())))
    trained, regularising = visits_in(plan)
    assert trained == {"0.png": 2, "1.png": 2, "2.png": 2}
    assert regularising == {"0.png": 2, "1.png": 2, "2.png": 1, "3.png": 1}
    lines = describe(plan)
    assert "images      3, 6 visits per epoch" in lines
    assert "reg images  4, 6 visits per epoch" in lines


def test_regularisation_pictures_that_are_not_needed_are_not_cached_and_said_so(caplog):
    with caplog.at_level(logging.INFO, logger="anima_pipe"):
        survey = survey_of(load(fox(num_repeats=1), animal(num_repeats=2)))
    assert visits_in(planned(survey))[1] == {"0.png": 2, "1.png": 2}
    assert len(survey.latents) == 5
    assert "2 regularisation pictures not used" in caplog.text


def test_a_picture_that_cannot_be_decoded_takes_its_visits_with_it():
    survey = survey_of(load(fox(), animal()))
    first = survey.samples[0]
    failed = Skipped(name=str(first.picture.path), reason="damaged")
    trained, regularising = visits_in(planned(survey.without({*first.latent_keys}, [failed])))
    assert trained == {"1.png": 2, "2.png": 2}
    assert regularising == {"0.png": 1, "1.png": 1, "2.png": 1, "3.png": 1}


def test_each_dataset_is_matched_on_its_own(folders):
    own = load(fox(), animal())
    other = load(fox(num_repeats=5), animal(num_repeats=1, flip_aug=True), resolution=(64, 64))
    survey = survey_of([*own, *other])
    visits = [
        sum(
            sample.visits
            for sample in survey.samples
            if sample.picture.dataset == dataset and sample.picture.subset.is_reg
        )
        for dataset in survey.datasets
    ]
    assert visits == [6, 15]


def test_regularisation_pictures_weigh_what_prior_loss_weight_says():
    datasets = load(fox(loss_weight=2.0), animal(loss_weight=0.5), prior_loss_weight=0.3)
    plan = planned(survey_of(datasets))
    weights = {(visit.text, visit.loss_weight) for batch in plan.epoch(0) for visit in batch}
    assert weights == {(text_key("fox"), 2.0), (text_key("animal"), 0.15)}
    assert "loss weight 0.15 (4 images), 2 (3 images)" in describe(plan)


def test_prior_loss_weight_without_regularisation_pictures_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING, logger="anima_pipe"):
        load(fox(), prior_loss_weight=0.3)
    assert "prior_loss_weight changes nothing" in caplog.text


def test_folders_of_regularisation_pictures_match_the_training_folders():
    given = {"train_data_dir": "train", "reg_data_dir": "reg", "resolution": "64"}
    options = resolve("train", {**given, "prior_loss_weight": "0.5"})
    (dataset,) = datasets = dataset_configs(options)
    facts = [(s.image_dir.name, s.is_reg, s.loss_weight, s.class_tokens) for s in dataset.subsets]
    assert facts == [("2_fox", False, 1.0, "fox"), ("1_animal", True, 0.5, "animal")]
    _, regularising = visits_in(planned(survey_of(datasets)))
    assert sum(regularising.values()) == 6


def test_regularisation_folders_need_training_folders_and_folders_named_for_their_visits():
    with pytest.raises(ConfigError, match="a dataset is required"):
        resolve("train", {"reg_data_dir": "reg"}).require("dataset_config")
    options = resolve(
        "train", {"train_data_dir": "train", "reg_data_dir": "train/2_fox", "resolution": "64"}
    )
    with pytest.raises(ConfigError, match=r"10_subject in train.2_fox"):
        dataset_configs(options)


@pytest.mark.parametrize("beside", ["dataset_config", "in_json"])
def test_regularisation_folders_are_ignored_where_kohya_ignores_them(beside: str):
    (warning,) = resolve("train", {"reg_data_dir": "reg", beside: "train"}).warnings
    assert warning == f"reg_data_dir (command line) has no effect beside {beside}"


def test_pictures_of_a_metadata_file_cannot_regularise():
    Path("meta.json").write_text("{}")
    with pytest.raises(ConfigError, match="metadata file cannot be regularisation pictures"):
        load(fox(), animal(metadata_file="meta.json"))


def test_there_must_be_something_to_train_on_beside_them():
    with pytest.raises(ConfigError, match="regularisation pictures only"):
        load(animal())
