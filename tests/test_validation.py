"""The loss on pictures held out: which they are, when it is measured, and that it compares."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from commands import anima_pipe, demo_pictures, tensors_of, write_dataset
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from anima_pipe.dataset.config import held_out

Cached = dict[str, object]
NAMES = ["validation/loss", *(f"validation/sigma_{sigma}" for sigma in (0.1, 0.3, 0.5, 0.7, 0.9))]


@given(st.integers(1, 200), st.floats(0, 1), st.integers(0, 2**31))
def test_the_last_of_a_shuffled_list_are_held_out(count: int, share: float, seed: int):
    chosen = held_out(count, share, seed)

    shuffled = [f"{number}.png" for number in range(count)]
    random.Random(seed).shuffle(shuffled)
    last = shuffled[count - round(count * share) :]
    assert {f"{number}.png" for number in chosen} == set(last)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of which two are held out, with everything that chance may do to them."""
    folder = demo_pictures(tmp_path_factory.mktemp("held_out") / "pictures")
    keys = {"flip_aug": True, "shuffle_caption": True, "caption_tag_dropout_rate": 0.3}
    given = {**keys, "caption_dropout_rate": 0.2, "validation_split": 0.34}
    return write_dataset(folder.parent / "dataset.toml", folder, **given)


@pytest.fixture(scope="module")
def held(dataset: Path) -> Cached:
    """Options of runs on them; the caches fill with the first one."""
    return {"dataset_config": dataset, "cache_dir": dataset.parent / "cache"}


def curves(folder: Path) -> dict[str, dict[int, float]]:
    """Scalars by tag and step."""
    (log,) = (folder / "logs").iterdir()
    events = EventAccumulator(str(log))
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in tags}


def train(held: Cached, folder: Path, **values: object):
    given = {"log_with": "tensorboard", "logging_dir": folder / "logs", **held, **values}
    return anima_pipe("train", folder / "summary.json", output_dir=folder, **given).ok()


@pytest.fixture(scope="module")
def validated(held: Cached, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps, more than an epoch, validated after each step."""
    folder = tmp_path_factory.mktemp("validated")
    run = train(held, folder, max_train_steps=4, validate_every_n_steps=1, network_dropout=0.1)
    assert "held out    2 images" in run.said
    assert "images      4, 4 visits" in run.said
    return folder


def test_every_noise_level_is_told_apart_and_the_loss_is_their_mean(validated: Path):
    found = curves(validated)

    assert set(NAMES) <= found.keys()
    assert all(list(found[name]) == [0, 1, 2, 3, 4] for name in NAMES)
    for step in range(5):
        mean = sum(found[name][step] for name in NAMES[1:]) / 5
        assert found["validation/loss"][step] == pytest.approx(mean)
    assert found["validation/loss"][4] != found["validation/loss"][0]


def test_runs_with_other_seeds_and_batches_start_from_the_same_value(
    held: Cached, dataset: Path, validated: Path, tmp_path: Path
):
    """The share is said once for all here, on the command line, and captions are dropped."""
    text = dataset.read_text().replace("batch_size = 2", "batch_size = 1")
    ones = tmp_path / "ones.toml"
    ones.write_text(text.replace("validation_split = 0.34", "caption_dropout_every_n_epochs = 1"))
    values = {"seed": 77, "max_train_steps": 1, "network_dropout": 0.5, "loss_type": "huber"}
    train({**held, "dataset_config": ones, "validation_split": 0.34}, tmp_path, **values)

    ours, theirs = curves(tmp_path), curves(validated)
    assert all(ours[name][0] == pytest.approx(theirs[name][0], rel=1e-5) for name in NAMES)


def test_another_seed_of_validation_holds_out_other_pictures(
    held: Cached, validated: Path, tmp_path: Path
):
    assert held_out(6, 0.34, 5) != held_out(6, 0.34, 0)
    train(held, tmp_path, validation_seed=5, max_train_steps=1)

    ours, theirs = curves(tmp_path), curves(validated)
    assert ours["validation/loss"][0] != pytest.approx(theirs["validation/loss"][0], rel=1e-3)


def test_looking_at_held_out_pictures_changes_nothing(
    held: Cached, validated: Path, tmp_path: Path
):
    values = {"max_train_steps": 4, "validate_every_n_steps": 3, "network_dropout": 0.1}
    train(held, tmp_path, **values, validate_every_n_epochs=0)

    expected = (validated / "fox.safetensors").read_bytes()
    assert (tmp_path / "fox.safetensors").read_bytes() == expected


def test_pictures_held_out_are_not_trained_on(held: Cached, dataset: Path, tmp_path: Path):
    """Without the pictures held out at all, the same file is trained."""
    pictures = sorted(p for p in (dataset.parent / "pictures").iterdir() if p.suffix != ".txt")
    rest = tmp_path / "rest"
    rest.mkdir()
    for place, picture in enumerate(pictures):
        if place not in held_out(len(pictures), 0.34, 0):
            shutil.copy(picture, rest)
            shutil.copy(picture.with_suffix(".txt"), rest)
    text = dataset.read_text().replace("validation_split = 0.34", "")
    alone = tmp_path / "alone.toml"
    alone.write_text(text.replace(str(dataset.parent / "pictures"), str(rest)))

    with_others = train(held, tmp_path / "with")
    without = train({**held, "dataset_config": alone}, tmp_path / "without")
    ours, theirs = tensors_of(with_others), tensors_of(without)
    assert all(ours[name].equal(theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("values", "steps"),
    [
        ({}, [0, 3, 6, 7]),
        ({"validate_every_n_epochs": 2}, [0, 6, 7]),
        ({"validate_every_n_steps": 5}, [0, 5, 7]),
    ],
)
def test_validation_happens_when_it_is_due(
    held: Cached, tmp_path: Path, values: Cached, steps: list[int]
):
    train(held, tmp_path, max_train_steps=7, **values)

    assert list(curves(tmp_path)["validation/loss"]) == steps


def test_a_limit_says_how_many_batches_are_looked_at(held: Cached, dataset: Path, tmp_path: Path):
    """Of batches of one, the first alone: its loss is not the mean of both."""
    ones = tmp_path / "ones.toml"
    ones.write_text(dataset.read_text().replace("batch_size = 2", "batch_size = 1"))
    given = {**held, "dataset_config": ones, "max_train_steps": 1}
    train(given, tmp_path / "both")
    train(given, tmp_path / "first", max_validation_steps=1)

    both, first = (curves(tmp_path / name)["validation/loss"][0] for name in ("both", "first"))
    assert both != pytest.approx(first, rel=1e-3)


@pytest.mark.parametrize("values", [{"ema_decay": 0.9}, {"optimizer_type": "RAdamScheduleFree"}])
def test_averaged_weights_are_what_is_validated(held: Cached, tmp_path: Path, values: Cached):
    """The adapter that is saved, measured as the start of another run, gives the same value."""
    train(held, tmp_path / "run", max_train_steps=3, **values)
    ema = "ema_decay" in values
    saved = tmp_path / "run" / ("fox-ema.safetensors" if ema else "fox.safetensors")
    train(held, tmp_path / "again", max_train_steps=1, network_weights=saved)

    name = "validation_ema/loss" if ema else "validation/loss"
    measured = curves(tmp_path / "run")[name][3]
    assert measured == pytest.approx(curves(tmp_path / "again")["validation/loss"][0], rel=1e-5)


def test_a_share_of_too_few_pictures_is_warned_of(held: Cached, dataset: Path, tmp_path: Path):
    small = tmp_path / "small.toml"
    small.write_text(dataset.read_text().replace("split = 0.34", "split = 0.01"))
    ended = anima_pipe("train", output_dir=tmp_path, **{**held, "dataset_config": small}).ok()

    assert "validation_split holds out no picture" in ended.said


def test_a_split_that_leaves_nothing_to_train_on_is_refused(
    held: Cached, dataset: Path, tmp_path: Path
):
    whole = tmp_path / "whole.toml"
    whole.write_text(dataset.read_text().replace("split = 0.34", "split = 1.0"))
    ended = anima_pipe("train", output_dir=tmp_path, **{**held, "dataset_config": whole})

    assert ended.code == 2
    assert "validation_split holds out all 6 pictures" in ended.said


def test_a_picture_held_out_here_and_trained_on_there_is_warned_of(
    held: Cached, dataset: Path, tmp_path: Path
):
    """A second dataset lists the same folder at another resolution; a third has the same split."""
    text = dataset.read_text()
    second = text.replace("resolution = 128", "resolution = 96")
    both = tmp_path / "both.toml"
    both.write_text(text + second.replace("validation_split = 0.34", ""))
    given = {**held, "dataset_config": both, "max_train_steps": 1}
    said = train(given, tmp_path / "run").said

    pictures = sorted(p for p in (dataset.parent / "pictures").iterdir() if p.suffix != ".txt")
    assert "held out for validation, but trained on elsewhere (2):" in said
    named = [p for p in pictures if f"{p}: listed a second time" in said]
    assert named == [pictures[place] for place in sorted(held_out(6, 0.34, 0))]
    both.write_text(text + second)
    assert "trained on elsewhere" not in train(given, tmp_path / "again").said


def test_a_copy_of_a_picture_that_is_held_out_is_warned_of(held: Cached, tmp_path: Path):
    folder = demo_pictures(tmp_path / "pictures")
    first = min(p for p in folder.iterdir() if p.suffix != ".txt")
    copied = shutil.copytree(folder, tmp_path / "copies") / first.name
    config = write_dataset(tmp_path / "dataset.toml", folder, validation_split=0.34)
    lines = [f"[[datasets.subsets]]\nimage_dir = {str(copied.parent)!r}\n"]
    config.write_text(config.read_text() + "".join(lines))
    said = train({**held, "dataset_config": config}, tmp_path / "run", max_train_steps=1).said

    assert "but trained on elsewhere (2):" in said
    assert f": the same picture as {copied.parent}" in said
