"""Everything that is wrong with a configuration is told at once, before anything is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from commands import TAKES, anima_pipe, assert_one_error, files_in

TRAIN_ARGS = """\
seed = "x"
network_dimm = 4
mixed_precision = "bf17"
full_fp16 = true
network_dropout = 2
lr_scheduler = "cosine"
optimizer_type = "AdamWScheduleFree"
network_args = ["rank_dropuot=0.1"]
optimizer_args = ["beta=1"]
min_timestep = 900
max_timestep = 100
sample_prompts = "prompts.txt"
base_weights = ["below.safetensors"]
base_weights_multiplier = [1, 2]
ema_decay = 0.99
"""
DATASET = """\
[general]
shuffle_captoin = true
[[datasets]]
resolution = 512
enable_bucket = true
bucket_reso_steps = 24
[[datasets.subsets]]
image_dir = "nowhere"
keep_tokens = "1"
[[datasets]]
[[datasets.subsets]]
image_dir = "pictures"
"""
PROMPTS = "fox --w 100 --q 1\nfox --s 0\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three files, each with several mistakes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "train_args.toml").write_text(TRAIN_ARGS)
    (tmp_path / "dataset.toml").write_text(DATASET)
    (tmp_path / "prompts.txt").write_text(PROMPTS)
    return tmp_path


OF_OPTIONS = (
    "train_args.toml line 1: seed: 'x' is not a whole number",
    "train_args.toml line 2: there is no option network_dimm",
    "train_args.toml line 3: mixed_precision: 'bf17' is unknown",
    "train_args.toml line 5: network_dropout: 2 is too large",
)
OF_TRAINING = (
    "train_args.toml line 4: full_fp16 is refused",
    "train_args.toml line 6: optimizer=AdamWScheduleFree requires lr_scheduler=constant",
    "train_args.toml line 8: adapter kind 'lora' has no setting 'rank_dropuot'",
    "train_args.toml line 9: optimizer_args do not fit AdamWScheduleFree",
    "train_args.toml line 10: ",
    "train_args.toml line 13: base_weights: there is no below.safetensors",
    "train_args.toml line 14: base_weights_multiplier has 2 values for 1 base_weights",
    "train_args.toml line 15: ema_decay",
    "train: Anima VAE path is required.",
    "train: a folder for the results is required.",
    "command line: pretrained_model_name_or_path: there is no missing.safetensors",
)
OF_THE_DATASET = (
    "dataset.toml line 2: general.shuffle_captoin: there is no such key",
    "dataset.toml line 3: datasets[0]: bucket_reso_steps is 24",
    "dataset.toml line 8: datasets[0].subsets[0].image_dir: there is no folder",
    "dataset.toml line 9: datasets[0].subsets[0].keep_tokens: '1' is not a whole number",
    "dataset.toml line 10: datasets[1]: resolution is required",
)
OF_THE_PROMPTS = (
    "prompts.txt line 1: width 100 is not a multiple of 16",
    "prompts.txt line 1: unknown setting --q",
    "prompts.txt line 2: --s 0 steps",
)


@pytest.mark.parametrize(
    ("command", "problems"),
    [
        ("cache-latents", (*OF_OPTIONS, *OF_THE_DATASET)),
        ("encode-text", (*OF_OPTIONS, *OF_THE_DATASET, *OF_THE_PROMPTS)),
        ("train", (*OF_OPTIONS, *OF_TRAINING, *OF_THE_DATASET, *OF_THE_PROMPTS)),
    ],
)
def test_a_command_tells_all_that_is_wrong_at_once(
    command: str, problems: tuple[str, ...], folder: Path
):
    given: dict[str, object] = {"config_file": "train_args.toml", "dataset_config": "dataset.toml"}
    if command == "train":
        own = dict.fromkeys(("max_train_steps", "learning_rate", "seed", "output_name", "vae"))
        given |= own | {"pretrained_model_name_or_path": "missing.safetensors"}
    before = files_in(folder)

    ended = anima_pipe(command, **given)

    assert_one_error(ended, *problems)
    assert ended.said.count("bucket_reso_steps is 24") == 1
    assert files_in(folder) == before


def test_all_tells_what_training_would_have_told_hours_later(folder: Path):
    ended = anima_pipe(
        "all", config_file="train_args.toml", dataset_config="dataset.toml", output_dir="out"
    )

    assert_one_error(ended, *OF_OPTIONS, *OF_THE_DATASET, *OF_THE_PROMPTS, "'rank_dropuot'")
    assert "anima-pipe cache-latents" not in ended.said
    assert not (folder / "out").exists()


def test_a_package_that_is_not_installed_stops_a_run(folder: Path):
    given = {"dataset_config": "pictures", "output_dir": "out", "resolution": 64}

    ended = anima_pipe("train", optimizer_type="not_installed.Fast", **given)

    assert_one_error(ended, "command line: optimizer Fast is in the package not_installed")


def test_every_file_that_a_run_reads_is_looked_for_first(folder: Path):
    missing = {name: f"no-{name}" for name in TAKES["train"] if name != "t5_tokenizer_dir"}
    given = {"dataset_config": "nowhere.toml", "sample_prompts": "none.txt", "output_dir": "out"}

    ended = anima_pipe("train", **missing, **given, network_weights="start.safetensors")

    paths = (*missing.values(), "nowhere.toml", "none.txt", "start.safetensors")
    assert_one_error(ended, *paths)


@pytest.mark.parametrize("command", ["cache-latents", "encode-text"])
def test_the_caching_stages_find_mistakes_without_importing_torch(command: str):
    arguments = [command, "--config_file", "train_args", "--dataset_config", "dataset.toml"]
    program = (
        "import sys\n"
        "from anima_pipe.cli.main import main\n"
        "try:\n"
        f"    main({arguments})\n"
        "except SystemExit as end:\n"
        "    sys.exit('torch' in sys.modules or end.code != 2)\n"
    )

    ended = subprocess.run([sys.executable, "-c", program], capture_output=True)

    assert ended.returncode == 0, ended.stderr.decode()
