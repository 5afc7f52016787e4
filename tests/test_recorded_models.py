"""What fetch-models noted serves every command where nothing else names a model file."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from commands import MODEL, anima_pipe, assert_one_error

from anima_pipe.cli.main import main
from anima_pipe.hub.home import record_models

UNNAMED: dict[str, None] = dict.fromkeys(MODEL)
TRANSFORMER = "pretrained_model_name_or_path"


@pytest.fixture
def noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model's files, noted as fetch-models notes what it fetched or found."""
    monkeypatch.setenv("ANIMA_PIPE_HOME", str(tmp_path / "home"))
    record_models(MODEL)


def taken(said: str) -> list[str]:
    return [line.split()[0] for line in said.splitlines() if "which was noted earlier" in line]


@pytest.mark.usefixtures("noted")
def test_latents_are_cached_with_the_noted_vae(dataset: Path, tmp_path: Path):
    ended = anima_pipe("cache-latents", vae=None, dataset_config=dataset, cache_dir=tmp_path)

    assert taken(ended.ok().said) == ["vae"]
    assert f"taking {MODEL['vae']}" in ended.said


@pytest.mark.usefixtures("noted")
def test_texts_are_encoded_with_the_noted_files(dataset: Path, tmp_path: Path):
    names: dict[str, object] = {"qwen3": None, "t5_tokenizer_dir": None}

    ended = anima_pipe("encode-text", dataset_config=dataset, cache_dir=tmp_path, **names)

    assert taken(ended.ok().said) == ["qwen3", "t5_tokenizer_dir"]


@pytest.mark.usefixtures("noted")
def test_training_takes_all_noted_files(cached: dict[str, object], tmp_path: Path):
    ended = anima_pipe("train", output_dir=tmp_path, max_train_steps=1, **cached, **UNNAMED)

    assert set(taken(ended.ok().said)) == set(MODEL)


@pytest.mark.usefixtures("noted")
def test_training_on_caches_alone_takes_the_transformer_alone(
    cached: dict[str, object], tmp_path: Path
):
    given = {**cached, **UNNAMED, "auto_cache": False, "output_dir": tmp_path}

    ended = anima_pipe("train", max_train_steps=1, **given)

    assert taken(ended.ok().said) == [TRANSFORMER]


@pytest.mark.usefixtures("noted")
def test_what_the_command_line_names_wins(dataset: Path, tmp_path: Path):
    missing = tmp_path / "missing.safetensors"

    ended = anima_pipe("cache-latents", vae=missing, dataset_config=dataset, cache_dir=tmp_path)

    assert_one_error(ended, missing)
    assert taken(ended.said) == []


@pytest.mark.usefixtures("noted")
def test_a_noted_file_that_has_gone_is_not_taken(dataset: Path, tmp_path: Path):
    record_models({"vae": tmp_path / "gone.safetensors"})

    ended = anima_pipe("cache-latents", vae=None, dataset_config=dataset, cache_dir=tmp_path)

    assert_one_error(ended, "Anima VAE path is required. Set --vae.")


def test_where_none_is_noted_the_error_says_how_to_fetch(dataset: Path, tmp_path: Path):
    ended = anima_pipe("train", dataset_config=dataset, output_dir=tmp_path, **UNNAMED)

    assert_one_error(ended, "3 problems", "run `anima-pipe fetch-models`", "or set --vae")


@pytest.mark.usefixtures("noted")
def test_config_check_asks_for_no_file_that_is_noted(tmp_path: Path):
    (tmp_path / "train_args.toml").write_text("max_train_steps = 1\n")

    checked = CliRunner().invoke(main, ["config", "check", str(tmp_path / "train_args.toml")])

    assert "train_args.toml leaves dataset_config, output_dir to the command line" in checked.stdout
