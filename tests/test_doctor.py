"""doctor says what is there, what is wrong with it and what to do next."""

import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from tiny_text_encoder import write_t5_folder

from anima_pipe import demo
from anima_pipe.cli.main import main
from anima_pipe.hub.home import record_models
from anima_pipe.runtime import LOGGER
from anima_pipe.self_check import STORED, check_parts


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
    assert "transformer   none is named" in ended.stdout
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
    assert "1 samples in 1 shards, by vae.safetensors" in ended.stdout


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


def test_the_self_check_passes_here_and_fails_on_other_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    checks = check_parts(torch.device("cpu"))
    assert {check.part for check in checks if check.passes} == set(STORED)

    weights = load_file(demo.DEMO_VAE)
    weights["encoder.conv1.weight"] *= 1.05
    save_file(weights, tmp_path / "vae.safetensors")
    monkeypatch.setattr("anima_pipe.self_check.DEMO_VAE", tmp_path / "vae.safetensors")
    failed = {check.part for check in check_parts(torch.device("cpu")) if not check.passes}
    assert "VAE" in failed
    assert "text encoder" not in failed


def test_numbers_that_are_none_do_not_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    weights = load_file(demo.DEMO_VAE)
    weights["encoder.conv1.weight"].fill_(torch.nan)
    save_file(weights, tmp_path / "vae.safetensors")
    monkeypatch.setattr("anima_pipe.self_check.DEMO_VAE", tmp_path / "vae.safetensors")

    ended = doctor()

    assert ended.exit_code == 1
    assert "VAE is off" in ended.stdout
