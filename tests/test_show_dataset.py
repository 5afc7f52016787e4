"""--debug_dataset, and runs of two steps with everything that a sample may carry."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from commands import BUCKETS, Ended, anima_pipe, demo_pictures, files_in

from anima_pipe.kohya.toml_text import toml_lines


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures to train on, two that regularise, each with rules of its own."""
    folder = tmp_path_factory.mktemp("carried")
    pictures = demo_pictures(folder / "fox", every=18)
    animals = demo_pictures(folder / "animals", every=18)
    shown = {
        "image_dir": str(pictures),
        "num_repeats": 2,
        "random_crop": True,
        "flip_aug": True,
        "shuffle_caption": True,
        "token_warmup_step": 1,
        "loss_weight": 2.0,
    }
    lines = [
        "[[datasets]]",
        *toml_lines(BUCKETS),
        "[[datasets.subsets]]",
        *toml_lines(shown),
        "custom_attributes.timestep_sampling.offset = -0.5",
        "[[datasets.subsets]]",
        *toml_lines({"image_dir": str(animals), "is_reg": True, "class_tokens": "animal"}),
    ]
    file = folder / "dataset.toml"
    file.write_text("\n".join([*lines, ""]))
    return file


def run(dataset: Path, folder: Path, **values: object) -> Ended:
    options = {"dataset_config": dataset, "cache_dir": dataset.parent / "cache", "seed": 3}
    options |= {"crop_variants": 2, "prior_loss_weight": 0.5, "output_dir": folder}
    return anima_pipe("train", folder / "summary.json", **options, **values).ok()


def test_every_visit_of_the_first_epoch_is_shown_and_nothing_done(dataset: Path, tmp_path: Path):
    models = dict.fromkeys(("pretrained_model_name_or_path", "vae", "qwen3", "t5_tokenizer_dir"))
    shown = run(dataset, tmp_path, debug_dataset=True, **models)

    lines = shown.printed.splitlines()
    assert shown.summary == {"images": 4, "visits": 8, "batches": 4, "skipped": 0}
    assert len(lines) == 8
    assert [line.split(":")[0] for line in lines] == [
        f"step {n}" for n in (1, 2, 3, 4) for _ in "ab"
    ]
    fox = [line for line in lines if "loss weight 2" in line]
    assert len(fox) == 4
    assert all("loss weight 2, noise shift -0.5" in line for line in fox)
    assert any("mirrored" in line for line in lines)
    assert all("128x128 of" in line for line in fox)
    regularising = [line for line in lines if "loss weight 0.5" in line]
    assert len(regularising) == 4
    assert all("loss weight 0.5" in line and "mirrored" not in line for line in regularising)
    assert "reg images  2, 4 visits per epoch" in shown.said
    assert files_in(tmp_path) == {"summary.json"}


def test_steps_are_counted_as_the_processes_of_a_launch_take_them(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")

    lines = run(dataset, tmp_path, debug_dataset=True).printed.splitlines()

    assert [line.split(":")[0] for line in lines] == [f"step {n}" for n in (1, 2) for _ in "abcd"]


def test_an_offset_that_nothing_takes_is_warned_of_and_not_shown(dataset: Path, tmp_path: Path):
    shown = run(dataset, tmp_path, debug_dataset=True, timestep_sampling="uniform")

    assert "noise shift" not in shown.printed
    assert "timestep_sampling.offset has no effect beside" in shown.said


def test_what_is_shown_grows_with_a_token_warmup(dataset: Path, tmp_path: Path):
    one, all_of_it = (
        run(dataset, tmp_path, debug_dataset=True, gradient_accumulation_steps=n).printed
        for n in (4, 1)
    )
    assert one.count("step 1:") == 8
    shown = [
        max(line.count(",") for line in text.splitlines() if "loss weight 2" in line)
        for text in (one, all_of_it)
    ]
    assert shown[0] < shown[1]


def test_a_run_trains_on_all_that_samples_carry_and_does_so_again_to_the_bit(
    dataset: Path, tmp_path: Path
):
    first, again = (run(dataset, tmp_path / name) for name in "ab")
    other = run(dataset, tmp_path / "c", timestep_sampling="uniform")

    assert first.summary is not None
    assert first.summary["steps"] == 2
    assert math.isfinite(first.summary["final_loss"])
    for line in (
        "images      2, 4 visits per epoch, 2 also mirrored",
        "reg images  2, 4 visits per epoch",
        "loss weight 0.5 (2 images), 2 (2 images)",
        "noise shift -0.5 (2 images), 0 (2 images)",
        "tag warmup  of 2 images, over 1 steps",
    ):
        assert line in first.said
    files = [(tmp_path / name / "fox.safetensors").read_bytes() for name in "abc"]
    assert files[0] == files[1] != files[2]
    assert again.summary is not None
    assert again.summary["first_loss"] == first.summary["first_loss"]
    assert "timestep_sampling.offset has no effect beside" in other.said
