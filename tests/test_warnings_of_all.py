"""`all` says each warning once, although every stage comes upon it."""

import sys
from pathlib import Path

from commands import MODEL, demo_pictures, run_apart, write_dataset


def test_a_warning_of_options_or_dataset_is_said_once(tmp_path: Path):
    pictures = demo_pictures(tmp_path / "pictures", every=18)
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
