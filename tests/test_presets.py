"""The presets that come with the project: whole, understood, and each of them trains."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner
from commands import MODEL, ROOT, TRAINING, anima_pipe, demo_pictures

from anima_pipe.cli.main import main
from anima_pipe.hub.home import record_models
from anima_pipe.kohya.resolve import resolve

PRESETS = sorted(path for path in (ROOT / "configs" / "presets").iterdir() if path.is_dir())
by_preset = pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.name)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures with captions."""
    return demo_pictures(tmp_path_factory.mktemp("demo") / "pictures", every=18)


@pytest.fixture
def mine(preset: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the preset with pictures beside it, as its user would have it."""
    folder = tmp_path / preset.name
    shutil.copytree(preset, folder)
    shutil.copytree(pictures, folder / "pictures")
    monkeypatch.chdir(tmp_path)
    return folder


def test_there_is_a_preset_for_every_card_and_subject():
    assert {path.name for path in PRESETS} == {
        *(f"{size}gb" for size in (6, 8, 12, 16, 24)),
        *(
            f"{what}_{kind}"
            for what in ("character", "style", "concept")
            for kind in ("lora", "lokr")
        ),
    }


@by_preset
def test_a_preset_is_in_order_with_all_three_files(mine: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ANIMA_PIPE_HOME", str(mine / "home"))
    record_models({name: Path(str(path)) for name, path in MODEL.items()})
    checked = CliRunner().invoke(main, ["config", "check", str(mine / "train_args.toml")])

    assert checked.exit_code == 0, checked.stdout
    assert checked.stdout.count(": ok") == 3, checked.stdout
    assert "3 files in order" in checked.stdout


@by_preset
def test_a_preset_stands_on_what_people_found(preset: Path):
    options = resolve("train", {}, preset / "train_args.toml")

    assert options.warnings == ()
    assert options.value("train_llm_adapter") is False
    assert 2e-5 <= options.value("learning_rate") <= 1e-4
    assert options.value("optimizer_args") == {"betas": (0.9, 0.99), "weight_decay": 0.01}
    assert (options.value("timestep_sampling"), options.value("discrete_flow_shift")) == (
        "sigmoid",
        1,
    )
    assert "caption_dropout_rate = 0.1" in (preset / "dataset.toml").read_text()


@by_preset
def test_every_value_of_a_preset_has_its_reason(preset: Path):
    """A comment stands over each key, or over a few that belong together."""
    for name in ("train_args.toml", "dataset.toml"):
        lines = (preset / name).read_text(encoding="utf-8").splitlines()
        comments = sum(line.startswith("# ") for line in lines)
        keys = sum("=" in line and not line.startswith("#") for line in lines)
        assert comments >= keys / 2


@by_preset
def test_a_preset_trains(preset: Path, mine: Path, tmp_path: Path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("fox --w 64 --h 64 --s 1 --l 1\n")
    given: dict[str, object] = {
        **dict.fromkeys(TRAINING),
        **MODEL,
        "config_file": mine / "train_args.toml",
        "sample_prompts": prompts,
        "output_dir": tmp_path / "out",
        "cache_dir": tmp_path / "cache",
        "log_with": "none",
        "max_train_steps": 2,
        "max_train_epochs": "",
    }
    options = resolve("train", {}, mine / "train_args.toml")
    if options.value("optimizer_type").endswith("8bit") and find_spec("bitsandbytes") is None:
        given["optimizer_type"] = "AdamW"

    ended = anima_pipe("train", tmp_path / "summary.json", **given).ok()

    assert ended.summary is not None
    assert ended.summary["steps"] == 2
    assert (tmp_path / "out" / f"{mine.name}.safetensors").is_file()
