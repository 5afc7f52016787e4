"""doctor says what is there, what is wrong with it and what to do next."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from tiny_text_encoder import write_t5_folder

from anima_pipe import demo
from anima_pipe.cli.main import main
from anima_pipe.demo.self_check import STORED, check_parts
from anima_pipe.hooks.train_state import DESCRIPTION, FORMAT_VERSION
from anima_pipe.hub.home import record_models
from anima_pipe.runtime import LOGGER


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home of our own, and an empty folder to stand in."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("ANIMA_PIPE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def doctor(*arguments: object) -> Result:
    result = CliRunner().invoke(main, ["doctor", "--device", "cpu", *map(str, arguments)])
    LOGGER.handlers.clear()
    assert isinstance(result.exception, SystemExit | None), result.exception
    return result


def next_step(result: Result) -> str:
    return result.stdout.splitlines()[-1].removeprefix("next").strip()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration that names copies of the embedded model's files."""
    files = {
        "pretrained_model_name_or_path": demo.DEMO_TRANSFORMER,
        "vae": demo.DEMO_VAE,
        "qwen3": demo.DEMO_QWEN,
        "t5_tokenizer_dir": demo.DEMO_T5_TOKENIZER,
    }
    (tmp_path / "files").mkdir()
    lines: list[str] = []
    for option, source in files.items():
        copy = tmp_path / "files" / source.name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, copy)
        lines.append(f'{option} = "{copy}"')
    path = tmp_path / "train_args.toml"
    path.write_text("\n".join(lines))
    return path


def test_on_a_bare_machine_it_sends_to_fetch_models():
    ended = doctor()

    assert ended.exit_code == 0
    assert "transformer   not named (--pretrained_model_name_or_path), nor noted" in ended.stdout
    assert f"torch       {torch.__version__}" in ended.stdout
    assert next_step(ended).startswith("anima-pipe fetch-models")
    assert len(ended.stdout.splitlines()) <= 24


def test_with_everything_there_it_sends_to_all(config: Path):
    ended = doctor("--config_file", config)

    assert ended.exit_code == 0, ended.stdout
    assert "Anima transformer, BF16, 3 blocks" in ended.stdout
    assert "Wan 2.1 / Qwen-Image VAE, BF16" in ended.stdout
    assert "whole, its files agree" in ended.stdout
    assert "VAE passes, text encoder passes, transformer passes (on cpu)" in ended.stdout
    assert next_step(ended).startswith(f"anima-pipe all --config_file {config}")
    assert len(ended.stdout.splitlines()) <= 24


def test_what_fetch_models_noted_is_examined(config: Path, tmp_path: Path):
    record_models({"vae": tmp_path / "files" / "vae.safetensors"})

    assert str(tmp_path / "files" / "vae.safetensors") in doctor().stdout


def test_a_file_of_another_kind_is_named(config: Path, tmp_path: Path):
    shutil.copy(demo.DEMO_VAE, tmp_path / "files" / "transformer.safetensors")

    ended = doctor("--config_file", config)

    assert ended.exit_code == 1
    assert "is not the transformer" in ended.stdout
    assert "Wan 2.1 / Qwen-Image VAE" in ended.stdout
    assert "--pretrained_model_name_or_path" in next_step(ended)


@pytest.mark.parametrize("content", [b"", b"<html>", b"x" * 100])
def test_a_damaged_file_is_named(config: Path, tmp_path: Path, content: bytes):
    (tmp_path / "files" / "vae.safetensors").write_bytes(content)

    ended = doctor("--config_file", config)

    assert ended.exit_code == 1
    assert "cannot be used" in ended.stdout


def test_a_tokenizer_whose_files_disagree_is_named(config: Path, tmp_path: Path):
    other = write_t5_folder(tmp_path / "other", pieces=1000)
    shutil.copy(other / "spiece.model", tmp_path / "files" / "t5_tokenizer")

    ended = doctor("--config_file", config)

    assert ended.exit_code == 1
    assert "disagree" in ended.stdout
    assert "--force" in next_step(ended)


def test_an_incomplete_tokenizer_is_no_fault_where_it_would_be_fetched(
    config: Path, tmp_path: Path
):
    (tmp_path / "files" / "t5_tokenizer" / "spiece.model").unlink()

    ended = doctor("--config_file", config)

    assert ended.exit_code == 0
    assert "lacks spiece.model; fetched when needed" in ended.stdout


def cache_pictures(cache: Path, pictures: Path) -> None:
    """Fill a cache with the latents of one picture of the demo."""
    pictures.mkdir()
    first = min(demo.DEMO_PICTURES.glob("*.txt"))
    for path in demo.DEMO_PICTURES.glob(f"{first.stem}.*"):
        shutil.copy(path, pictures)
    arguments = ["--dataset_config", pictures, "--cache_dir", cache, "--vae", demo.DEMO_VAE]
    arguments += ["--device", "cpu", "--resolution", 64, "--max_data_loader_n_workers", 0]
    result = CliRunner().invoke(main, ["cache-latents", *map(str, arguments)])
    assert result.exit_code == 0, result.stderr


def test_caches_are_found_and_counted(tmp_path: Path):
    cache_pictures(tmp_path / "cache", tmp_path / "pictures")

    ended = doctor("--cache_dir", tmp_path / "cache")

    assert ended.exit_code == 0
    assert "1 sample in 1 shard, by vae.safetensors" in ended.stdout


def test_a_cache_that_cannot_be_read_is_named(tmp_path: Path):
    cache_pictures(tmp_path / "cache", tmp_path / "pictures")
    (description,) = (tmp_path / "cache").glob("*/cache.json")
    description.write_text("{")

    ended = doctor("--cache_dir", tmp_path / "cache")

    assert ended.exit_code == 1
    assert "cache.json cannot be read" in ended.stdout


def test_a_configuration_that_is_wrong_is_refused_as_everywhere(tmp_path: Path):
    (tmp_path / "wrong.toml").write_text("network_dimm = 4\n")

    ended = doctor("--config_file", tmp_path / "wrong.toml")

    assert ended.exit_code == 2
    assert "there is no option network_dimm" in ended.stderr


PARTS = {
    "VAE": ("DEMO_VAE", demo.DEMO_VAE, "encoder.conv1.weight"),
    "text encoder": ("DEMO_QWEN", demo.DEMO_QWEN, "model.layers.0.mlp.down_proj.weight"),
    "transformer": ("DEMO_TRANSFORMER", demo.DEMO_TRANSFORMER, "x_embedder.proj.1.weight"),
}
"""Where each part is, and one of its weights."""


def test_the_self_check_passes_here():
    checks = check_parts(torch.device("cpu"))

    assert {check.part for check in checks if check.passes} == set(STORED) == set(PARTS)


@pytest.mark.parametrize("part", PARTS)
def test_the_self_check_fails_where_one_weight_is_a_little_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
):
    name, place, weight = PARTS[part]
    changed = tmp_path / place.name
    (shutil.copytree if place.is_dir() else shutil.copy)(place, changed)
    file = changed / "model.safetensors" if changed.is_dir() else changed
    weights = load_file(file)
    weights[next(key for key in weights if key.endswith(weight))] *= 1.05
    save_file(weights, file)
    monkeypatch.setattr(f"anima_pipe.demo.self_check.{name}", changed)

    ended = doctor()

    assert ended.exit_code == 1
    assert f"{part} is off by" in ended.stdout


def test_numbers_that_are_none_do_not_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    weights = load_file(demo.DEMO_VAE)
    weights["encoder.conv1.weight"].fill_(torch.nan)
    save_file(weights, tmp_path / "vae.safetensors")
    monkeypatch.setattr("anima_pipe.demo.self_check.DEMO_VAE", tmp_path / "vae.safetensors")

    ended = doctor()

    assert ended.exit_code == 1
    assert "VAE is off" in ended.stdout


@pytest.fixture
def run(config: Path, tmp_path: Path) -> Path:
    """That configuration with a folder for results; return the configuration."""
    text = config.read_text()
    config.write_text(f'{text}\noutput_dir = "{tmp_path / "out"}"\noutput_name = "fox"\n')
    return config


def fill_caches(cache: Path, tmp_path: Path, *, text: bool = True) -> None:
    cache_pictures(cache, tmp_path / "pictures")
    if text:
        arguments = ["--dataset_config", tmp_path / "pictures", "--cache_dir", cache]
        arguments += ["--qwen3", demo.DEMO_QWEN, "--t5_tokenizer_dir", demo.DEMO_T5_TOKENIZER]
        result = CliRunner().invoke(main, ["encode-text", "--device=cpu", *map(str, arguments)])
        assert result.exit_code == 0, result.stderr


def test_where_only_the_tokenizer_is_missing_it_sends_to_fetch_tokenizer(run: Path, tmp_path: Path):
    shutil.rmtree(tmp_path / "files" / "t5_tokenizer")

    ended = doctor("--config_file", run)

    assert next_step(ended) == f"anima-pipe fetch-tokenizer --config_file {run}"


def test_where_caches_are_missing_it_sends_to_all(run: Path, tmp_path: Path):
    fill_caches(tmp_path / "out" / "cache", tmp_path, text=False)

    ended = doctor("--config_file", run)

    assert next_step(ended) == f"anima-pipe all --config_file {run} --dataset_config dataset.toml"


def test_where_caches_are_there_it_sends_to_train(run: Path, tmp_path: Path):
    cache = tmp_path / "out" / "cache"
    fill_caches(cache, tmp_path)

    ended = doctor("--config_file", run)

    dataset = "--dataset_config dataset.toml"
    expected = f"anima-pipe train --config_file {run} {dataset} --cache_dir {cache}"
    assert next_step(ended) == expected


def test_where_training_was_stopped_it_sends_to_resume(run: Path, tmp_path: Path):
    fill_caches(tmp_path / "out" / "cache", tmp_path)
    state = tmp_path / "out" / "fox-step00000001-state"
    state.mkdir()
    description = {"format_version": FORMAT_VERSION, "current_step": 1}
    (state / DESCRIPTION).write_text(json.dumps(description))

    assert next_step(doctor("--config_file", run)).endswith(" --resume latest")


def test_where_an_adapter_is_trained_it_sends_to_export_and_then_to_comfyui(
    run: Path, tmp_path: Path
):
    trained, exported = tmp_path / "out" / "fox.safetensors", tmp_path / "out" / "comfyui"
    exported.mkdir(parents=True)
    trained.touch()

    to_export = next_step(doctor("--config_file", run))
    shutil.copy(trained, exported)
    to_comfyui = next_step(doctor("--config_file", run))

    output = exported / "fox.safetensors"
    assert to_export == f"anima-pipe export-comfy --input {trained} --output {output}"
    assert to_comfyui.startswith(f"cp {output} ComfyUI/models/loras")


def test_where_the_model_itself_is_trained_it_sends_straight_to_comfyui(run: Path, tmp_path: Path):
    run.write_text(run.read_text() + '\nnetwork_module = "none"\n')
    trained = tmp_path / "out" / "fox.safetensors"
    trained.parent.mkdir(parents=True)
    trained.touch()

    expected = f"cp {trained} ComfyUI/models/diffusion_models"
    assert next_step(doctor("--config_file", run)).startswith(expected)


def test_before_there_is_a_configuration_it_says_to_write_one(config: Path, tmp_path: Path):
    record_models(
        {
            name: tmp_path / "files" / path.name
            for name, path in (
                ("pretrained_model_name_or_path", demo.DEMO_TRANSFORMER),
                ("vae", demo.DEMO_VAE),
                ("qwen3", demo.DEMO_QWEN),
                ("t5_tokenizer_dir", demo.DEMO_T5_TOKENIZER),
            )
        }
    )

    before = next_step(doctor())
    Path("train_args.toml").touch()
    Path("dataset.toml").touch()
    after = next_step(doctor())

    assert before.startswith("write train_args.toml and dataset.toml")
    assert after.startswith("anima-pipe all --config_file train_args.toml --dataset_config")
    assert before.endswith(after)


def test_a_file_that_the_configuration_names_and_nobody_has_is_to_be_taken_out(
    config: Path, tmp_path: Path
):
    (tmp_path / "files" / "vae.safetensors").unlink()

    alone = next_step(doctor("--config_file", config))
    record_models({"vae": demo.DEMO_VAE})
    noted = next_step(doctor("--config_file", config))

    assert alone.startswith("take vae out of train_args.toml line 2, and run")
    assert alone.endswith("anima-pipe fetch-models")
    assert noted == f"take vae out of train_args.toml line 2: fetch-models noted {demo.DEMO_VAE}"


def test_a_fetched_file_that_is_damaged_is_to_be_fetched_again(home: Path):
    damaged = home / "models" / "vae" / "vae.safetensors"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"damaged")
    record_models({"vae": damaged})

    assert next_step(doctor()) == f"rm {damaged} && anima-pipe fetch-models"


def test_caches_of_first_looks_in_the_current_folder_are_found(tmp_path: Path):
    cache_pictures(Path("output/demo/cache"), tmp_path / "pictures")
    cache_pictures(Path("cache"), tmp_path / "others")

    said = doctor().stdout

    assert "cache/latents-" in said
    assert "output/demo/cache/latents-" in said


def test_many_caches_fit_on_a_screen_too(tmp_path: Path):
    cache_pictures(Path("output/a/cache"), tmp_path / "pictures")
    for name in "bcdefghijklmnopqrstuvwxyz":
        shutil.copytree("output/a", f"output/{name}")

    said = doctor().stdout

    assert "and 20 more" in said
    assert len(said.splitlines()) <= 24
