"""Files that no person wrote: endless, nested without end, numbers without end. One error each."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from commands import MODEL, anima_pipe, assert_one_error, demo_pictures, write_dataset

from anima_pipe.cli.main import main
from anima_pipe.errors import ConfigError
from anima_pipe.kohya.config_file import key_lines, read_json, read_toml

MANY = 100_000
DIGITS = "9" * 5000

ABSURD = {
    "dotted.toml": ("a" + ".a" * MANY + " = 1", "has a key of more than 64 parts"),
    "table.toml": ("[a" + ".a" * MANY + "]\nx = 1", "has a key of more than 64 parts"),
    "quoted.toml": ("x = {a" + ' . "a"' * MANY + " = 1}", "has a key of more than 64 parts"),
    "lists.toml": ("x = " + "[" * MANY + "]" * MANY, "is nested more than 64 deep"),
    "some lists.toml": ("x = " + "[" * 80 + "]" * 80, "is nested more than 64 deep"),
    "tables.toml": ("x = " + "{a=" * 300 + "1" + "}" * 300, "is nested more than 64 deep"),
    "endless.toml": (f"max_train_steps = {DIGITS}", "whole number of more than 18 digits"),
    "long.toml": (f"learning_rate = {DIGITS[:400]}", "whole number of more than 18 digits"),
    "large.toml": ("x = 1\n" * 800_000, "it has 4,800,000 bytes, more than 4,194,304"),
    "lists.json": ("[" * MANY, "is nested more than 64 deep"),
    "objects.json": ('{"a":' * MANY, "is nested more than 64 deep"),
    "some.json": ('{"a":' * 80 + "1" + "}" * 80, "is nested more than 64 deep"),
    "endless.json": ('{"datasets": ' + DIGITS + "}", "whole number of more than 18 digits"),
    "long.json": ('{"datasets": ' + DIGITS[:400] + "}", "whole number of more than 18 digits"),
}


@pytest.mark.parametrize("name", ABSURD)
def test_a_config_file_that_nobody_means_is_one_clear_error(tmp_path: Path, name: str):
    content, problem = ABSURD[name]
    (tmp_path / name).write_text(content)
    read = read_json if name.endswith(".json") else read_toml
    with pytest.raises(ConfigError, match=problem):
        read(tmp_path / name)


def test_what_people_write_is_not_mistaken_for_it(tmp_path: Path):
    file = tmp_path / "options.toml"
    dots = ".".join("a" * 200)
    file.write_text(
        f"[a.b.\"c.d\".e]\nkey = \"{dots}\" # {dots}\nmany = '''{dots}'''\nseed = {2**63 - 1}\n"
    )
    table = read_toml(file).table["a"]["b"]["c.d"]["e"]
    assert table == {"key": dots, "many": dots, "seed": 2**63 - 1}


def test_lines_of_keys_are_counted_whatever_their_number():
    text = "".join(f"key{number} = [1,\n 2]\n\n" for number in range(500))
    lines = key_lines(text)
    assert [lines["key0",], lines["key499",]] == [1, 3 * 499 + 1]


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """A pipe that nobody writes into: opening it would take for ever."""
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
@pytest.mark.parametrize(
    ("option", "ending"),
    [
        ("config_file", ".toml"),
        ("dataset_config", ".toml"),
        ("dataset_config", ".json"),
        ("sample_prompts", ".txt"),
        ("sample_prompts", ".json"),
        ("log_tracker_config", ".toml"),
        ("network_weights", ".safetensors"),
        ("pretrained_model_name_or_path", ".safetensors"),
        ("vae", ".safetensors"),
        ("metadata_thumbnail", ".png"),
    ],
)
def test_a_pipe_given_as_a_file_is_an_error_and_not_waited_for(
    tmp_path: Path, pipe: Path, option: str, ending: str
):
    named = pipe.rename(tmp_path / f"pipe{ending}")
    dataset = write_dataset(tmp_path / "dataset.toml", demo_pictures(tmp_path / "data"))
    folders = {"cache_dir": tmp_path / "cache", "output_dir": tmp_path / "out"}
    given = {"dataset_config": dataset, "save_state": False, **folders, option: named}

    ended = anima_pipe("train", **given)

    assert_one_error(ended, named, "no file, but a pipe or a device")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
def test_an_adapter_that_is_a_pipe_is_an_error_and_not_waited_for(pipe: Path):
    ended = CliRunner().invoke(main, ["info", str(pipe)])
    assert ended.exit_code == 2
    assert f"{pipe} cannot be read: it is no file, but a pipe or a device" in ended.stderr


@pytest.mark.parametrize("option", ["max_train_steps", "learning_rate", "network_dim"])
@pytest.mark.parametrize("digits", [400, 5000])
def test_a_number_of_hundreds_of_digits_on_the_command_line_is_one_clear_error(
    tmp_path: Path, option: str, digits: int
):
    dataset = write_dataset(tmp_path / "dataset.toml", demo_pictures(tmp_path / "data"))
    ended = anima_pipe("train", dataset_config=dataset, **{option: DIGITS[:digits]}, **MODEL)
    assert_one_error(ended, option, "not a")


UNKNOWN = {
    "config_file": lambda count: "".join(f"max_step_{n} = 1\n" for n in range(count)),
    "dataset_config": lambda count: (
        "[general]\n" + "".join(f"max_step_{n} = 1\n" for n in range(count))
    ),
}


@pytest.mark.parametrize("option", UNKNOWN)
def test_of_thousands_of_unknown_keys_the_first_are_shown_and_no_meaning_is_sought_for_the_others(
    tmp_path: Path, option: str
):
    def seconds(count: int) -> float:
        file = tmp_path / f"{count}.toml"
        file.write_text(UNKNOWN[option](count))
        begun = time.process_time()
        ended = anima_pipe("train", **{option: file})
        assert_one_error(ended, "problems in the configuration, the first 50:", "max_step_45")
        assert "max_step_51" not in ended.said
        return time.process_time() - begun

    seconds(60)
    assert seconds(6_000) < 20 * seconds(60)
