"""`all` says each warning once, although every stage comes upon it, and shows calm commands."""

import shlex
import sys
from pathlib import Path

import pytest
from commands import MODEL, demo_pictures, run_apart, write_dataset

from anima_pipe.cli.all_stages import command_line, shown_command


def test_a_warning_of_options_dataset_or_pictures_is_said_once(tmp_path: Path):
    pictures = demo_pictures(tmp_path / "pictures", every=12)
    (pictures / "broken.png").write_bytes(b"no picture")
    (pictures / "broken.txt").write_text("fox")
    next(path for path in sorted(pictures.glob("*.txt")) if path.stem != "broken").unlink()
    dataset = write_dataset(tmp_path / "dataset.toml", pictures, cache_info=True)
    lines = [f"{name} = '{path}'" for name, path in MODEL.items()]
    values = ["max_train_steps = 1", "cache_latents = true", "max_data_loader_n_workers = 0"]
    config = tmp_path / "train_args.toml"
    config.write_text("\n".join([*lines, *values, 'log_with = "none"', ""]))

    ended = run_apart(
        sys.executable,
        "-m",
        "anima_pipe.cli",
        "all",
        "--config_file",
        str(config),
        "--dataset_config",
        str(dataset),
        "--output_dir",
        str(tmp_path / "out"),
        "--device",
        "cpu",
    ).ok()

    assert ended.said.count("cache_latents (train_args.toml line 6) changes nothing") == 1
    assert ended.said.count("cache_info (dataset.toml") == 1
    assert ended.said.count("warning: left out 1:") == 1
    assert ended.said.count("1 picture without a caption:") == 1


def test_a_command_is_shown_in_lines_that_can_be_typed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    given = {
        "output_dir": tmp_path / "out put",
        "vae": Path("/models/vae.safetensors"),
        "optimizer_args": ["betas=0.9,0.99", "weight_decay=0.01"],
        "save_state": True,
        "logging_dir": "logs/of/a/run/with/a/name/that/is/rather/long",
    }

    shown = shown_command("train", given)

    assert len(shown) > 1
    assert all(len(line) <= 100 for line in shown)
    typed = shlex.split("\n".join(shown).removeprefix("$ ").replace("\\\n", " "))
    assert typed == [
        "anima-pipe",
        "train",
        *command_line("train", {**given, "output_dir": "out put"}),
    ]
