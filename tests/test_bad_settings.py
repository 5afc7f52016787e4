"""Wrong options, devices and places for results: one clear error before any work is done."""

import sys
from pathlib import Path

import pytest
import torch
from commands import (
    MODEL,
    anima_pipe,
    assert_one_error,
    files_in,
    run_apart,
    shards_in,
    write_dataset,
)
from safetensors.torch import save_file

pytestmark = pytest.mark.usefixtures("elsewhere")


# Configuration


def test_all_that_training_needs_is_asked_for_at_once():
    run = anima_pipe("train", **dict.fromkeys(MODEL))

    needed = ("--anima_transformer", "--vae", "--qwen", "--dataset_config", "--output_dir")
    assert_one_error(run, "5 problems", *needed)


def test_an_unknown_key_of_train_args_is_named_with_file_line_and_the_nearest_name(
    cached: dict[str, object], tmp_path: Path
):
    config = tmp_path / "train_args.toml"
    config.write_text("[network]\nnetwork_dim = 4\n\n[training]\nlearning_rat = 1e-4\n")

    run = anima_pipe("train", config_file=config, output_dir=tmp_path / "out", **cached)

    assert_one_error(run, "train_args.toml line 5", "learning_rat", "did you mean learning_rate?")
    assert not (tmp_path / "out").exists()


def test_an_unknown_option_is_named_with_the_nearest(tmp_path: Path):
    ended = run_apart(sys.executable, "-m", "anima_pipe.cli", "train", "--learning_rat", "1")

    assert ended.code == 2
    assert "No such option" in ended.said
    assert "--learning_rat" in ended.said
    assert "--learning_rate" in ended.said
    assert "Traceback" not in ended.said


def test_an_unknown_command_is_named():
    ended = run_apart(sys.executable, "-m", "anima_pipe.cli", "trian")

    assert ended.code == 2
    assert "trian" in ended.said
    assert "Traceback" not in ended.said


def test_a_config_file_that_is_not_toml_is_named(cached: dict[str, object], tmp_path: Path):
    config = tmp_path / "train_args.toml"
    config.write_text("network_dim: 4\n")

    run = anima_pipe("train", config_file=config, output_dir=tmp_path / "out", **cached)

    assert_one_error(run, str(config))


@pytest.mark.parametrize("stage", ["cache-latents", "encode-text", "train"])
def test_an_unknown_key_of_dataset_toml_is_named_with_its_line(
    stage: str, pictures: Path, tmp_path: Path
):
    dataset = write_dataset(tmp_path / "dataset.toml", pictures, num_repeat=2)
    output = {"output_dir": tmp_path / "out"} if stage == "train" else {}

    ended = anima_pipe(stage, dataset_config=dataset, **output)

    assert_one_error(ended, "dataset.toml line 10", "num_repeat", "num_repeats")


def test_a_file_of_prompts_that_does_not_exist_is_named(cached: dict[str, object], tmp_path: Path):
    missing = tmp_path / "prompts.txt"

    for stage, output in (("encode-text", {}), ("train", {"output_dir": tmp_path / "out"})):
        assert_one_error(
            anima_pipe(stage, sample_prompts=missing, **output, **cached), str(missing)
        )


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("stage", ["cache-latents", "encode-text", "train"])
def test_a_device_that_is_not_there_is_an_error(stage: str, dataset: Path, tmp_path: Path):
    output = {"output_dir": tmp_path / "out"} if stage == "train" else {}
    names = {"dataset_config": dataset, "cache_dir": tmp_path / "cache"}

    ended = anima_pipe(stage, device="cuda", **names, **output)

    assert_one_error(ended, "device 'cuda' cannot be used")
    assert shards_in(tmp_path) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_an_error_with_complete_caches_too(
    cached: dict[str, object], tmp_path: Path
):
    run = anima_pipe("train", device="cuda", output_dir=tmp_path / "out", **cached)

    assert_one_error(run, "device 'cuda' cannot be used")
    assert files_in(tmp_path) == set()


def test_norms_cannot_be_saved_for_diffusers_which_is_told_before_training(
    cached: dict[str, object], tmp_path: Path
):
    run = anima_pipe("train", output_dir=tmp_path, save_format="diffusers", **cached)

    assert_one_error(run, "diffusers", "norm")
    assert "\nstep " not in run.said
    assert files_in(tmp_path) == set()


NOT_FINITE = [
    {"base_weights": ["a"], "base_weights_multiplier": ["nan"]},
    {"network_args": ["loraplus_lr_ratio=nan"]},
    {"network_args": ["dropout=inf"]},
    {"network_args": ["network_reg_lrs=.*=nan"]},
    {"lr_scheduler": "piecewise_constant", "lr_scheduler_args": ["step_rules=nan:2,0.5"]},
]


@pytest.mark.parametrize("given", NOT_FINITE, ids=str)
def test_a_number_within_a_text_that_is_not_finite_is_refused(
    cached: dict[str, object], tmp_path: Path, given: dict[str, object]
):
    run = anima_pipe("train", output_dir=tmp_path, **{**cached, **given})

    assert_one_error(run, "inf" if "inf" in str(given) else "nan")
    assert files_in(tmp_path) == set()


LAYER = "diffusion_model.blocks.0.mlp.layer1"
UNFIT = {
    "of another width": {f"{LAYER}.lora_{side}.weight": torch.zeros(5, 5) for side in "AB"},
    "of several kinds": {
        f"{LAYER}.diff": torch.zeros(5, 5),
        **{f"{LAYER}.lora_{side}.weight": torch.zeros(5, 5) for side in "AB"},
    },
    "not finite": {f"{LAYER}.diff": torch.full((512, 128), torch.nan)},
}


@pytest.mark.parametrize("option", ["network_weights", "base_weights"])
@pytest.mark.parametrize("adapter", UNFIT)
def test_an_adapter_that_does_not_fit_is_refused_before_anything_is_cached(
    dataset: Path, tmp_path: Path, adapter: str, option: str
):
    file = tmp_path / "adapter.safetensors"
    save_file(UNFIT[adapter], file)
    given = {option: [file] if option == "base_weights" else file}

    run = anima_pipe(
        *("train",),
        dataset_config=dataset,
        cache_dir=tmp_path / "cache",
        output_dir=tmp_path / "out",
        **given,
    )

    assert_one_error(run, str(file), "blocks.0.mlp.layer1")
    assert shards_in(tmp_path / "cache") == []


# The place for the results


@pytest.mark.parametrize("stage", ["cache-latents", "encode-text", "train", "export-comfy"])
def test_a_place_for_results_that_cannot_be_written_is_an_error(
    stage: str, cached: dict[str, object], tmp_path: Path
):
    file = tmp_path / "a file"
    file.write_text("mine")
    layer = "diffusion_model.blocks.0.mlp.layer1"
    factors = {f"{layer}.lora_{side}.weight": torch.zeros(4, 4) for side in "AB"}
    save_file(factors, tmp_path / "adapter.safetensors")
    place: dict[str, object] = {
        "cache-latents": {**cached, "cache_dir": file / "cache"},
        "encode-text": {**cached, "cache_dir": file / "cache"},
        "train": {**cached, "output_dir": file / "out"},
        "export-comfy": {
            "input": tmp_path / "adapter.safetensors",
            "output": file / "out.safetensors",
        },
    }[stage]

    assert_one_error(anima_pipe(stage, **place), str(file))
    assert file.read_text() == "mine"


@pytest.mark.parametrize("place", ["logging_dir", "summary_json"])
def test_a_place_for_records_that_cannot_be_written_is_an_error_before_the_work(
    place: str, cached: dict[str, object], tmp_path: Path
):
    (tmp_path / "a file").write_text("mine")
    given = {"log_with": "tensorboard", "logging_dir": tmp_path / "logs"}
    given[place] = tmp_path / "a file" / "within"

    run = anima_pipe("train", output_dir=tmp_path / "out", **cached, **given)

    assert_one_error(run, str(tmp_path / "a file"))
    assert files_in(tmp_path) == {"a file"}
