"""--output_config: the options of a command as the file that sets them."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from anima_pipe.cli.main import main
from anima_pipe.errors import ConfigError
from anima_pipe.kohya.options import EVERY_COMMAND
from anima_pipe.kohya.output_config import config_text
from anima_pipe.kohya.resolve import resolve

PUBLISHED = json.loads(
    (Path(__file__).parent / "data" / "published_configs.json").read_text(encoding="utf-8")
)


def train(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["train", *map(str, arguments)])


def test_the_command_lines_options_are_written_to_a_new_file(tmp_path):
    new = tmp_path / "new.toml"

    arguments = ["--network_dim", "8", "--optimizer_args", "eps=1e-6", "betas=(0.9,0.99)"]
    ended = train("--config_file", tmp_path / "new", "--output_config", *arguments)

    assert ended.exit_code == 0, ended.stderr
    assert f"wrote {new}" in ended.stderr
    options = resolve("train", {}, new)
    assert options.value("network_dim") == 8
    assert options.value("optimizer_args") == {"eps": 1e-6, "betas": (0.9, 0.99)}
    assert options.given("network_alpha") is None
    assert "# network_alpha = 1\n" in new.read_text()
    assert "output_config" not in new.read_text()


def test_a_file_that_is_there_is_never_written(tmp_path):
    file = tmp_path / "a.toml"
    file.write_text("seed = 1 # mine\nnetwork_dim = 4\n")

    ended = train("--config_file", file, "--output_config", "--seed", "2")

    assert ended.exit_code == 0, ended.stderr
    assert file.read_text() == "seed = 1 # mine\nnetwork_dim = 4\n"
    (tmp_path / "b.toml").write_text(ended.stdout)
    options = resolve("train", {}, tmp_path / "b.toml")
    assert (options.value("seed"), options.value("network_dim")) == (2, 4)


def test_what_is_wrong_is_an_error_and_nothing_is_written(tmp_path):
    ended = train("--config_file", tmp_path / "new.toml", "--output_config", "--network_dim", "0")

    assert ended.exit_code == 2
    assert "network_dim: 0 is too small" in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_path_found_beside_the_file_is_written_as_found(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "dataset.toml").touch()
    (tmp_path / "configs" / "a.toml").write_text('dataset_config = "dataset.toml"\n')
    monkeypatch.chdir(tmp_path)

    ended = train("--config_file", "configs/a.toml", "--output_config")

    assert 'dataset_config = "configs/dataset.toml"\n' in ended.stdout


def test_the_seeds_spelling_is_kept_for_it_means_more(tmp_path):
    ended = train("--output_config", "--anima_flow_shift", "3")
    assert "anima_flow_shift = 3.0\n" in ended.stdout


def test_two_spellings_with_different_values_on_the_command_line_are_an_error():
    ended = train("--output_config", "--qwen", "a", "--qwen3", "b")
    assert ended.exit_code == 2
    assert "qwen3 = b contradicts" in ended.stderr or "qwen = a contradicts" in ended.stderr
    assert train("--output_config", "--qwen", "a", "--qwen3", "a").exit_code == 0


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_every_command_writes_its_options(command: str):
    ended = CliRunner().invoke(main, [command, "--output_config"])
    assert ended.exit_code == 0, ended.stderr
    assert "summary_json" not in ended.stdout


@pytest.mark.parametrize(
    "config", [c for c in PUBLISHED if c["form"] == "cli"], ids=lambda config: config["id"]
)
def test_a_published_command_line_as_a_file_means_the_same(config, tmp_path):
    given = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in config["train_args"].items()
    }
    try:
        options = resolve("train", given)
    except ConfigError:
        pytest.skip("refused")
    (tmp_path / "a.toml").write_text(config_text(options))

    again = resolve("train", {}, tmp_path / "a.toml")

    assert {n: again.value(n) for n in again.defaults} == {
        n: options.value(n) for n in options.defaults
    }
