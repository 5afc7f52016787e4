"""`anima-pipe sample`: pictures with adapters at strengths, and sheets that compare them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from anima_pipe.adapters import create_adapter, save_adapter
from anima_pipe.cli.main import main
from anima_pipe.cli.sample_axes import parse_axis
from anima_pipe.demo import DEMO_TRANSFORMER
from anima_pipe.model import load_transformer
from anima_pipe.runtime import LOGGER

SMALL = ("--demo", "--device", "cpu", "--width", "64", "--height", "64", "--steps", "2")


def sample(folder: Path, *arguments: object) -> Result:
    given = ["sample", *SMALL, "--output_dir", folder, *arguments]
    ended = CliRunner().invoke(main, list(map(str, given)))
    LOGGER.handlers.clear()
    return ended


def drawn(folder: Path, *arguments: object) -> list[Image.Image]:
    ended = sample(folder, *arguments)
    assert ended.exit_code == 0, ended.stderr
    pictures = []
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as picture:
            picture.load()
        pictures.append(picture)
    return pictures


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters that change the picture, of two kinds."""
    folder = tmp_path_factory.mktemp("adapters")
    files: dict[str, Path] = {}
    for seed, kind in enumerate(("lora", "lokr")):
        adapter = create_adapter(kind, load_transformer(DEMO_TRANSFORMER), 4, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        for parameter in adapter.parameters():
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
        files[kind] = save_adapter(adapter, folder / f"{kind}.safetensors")
    return files


def test_one_prompt_gives_one_picture_the_same_every_time(tmp_path):
    (first,) = drawn(tmp_path / "a", "--prompt", "a fox --w 96 --d 7")
    (second,) = drawn(tmp_path / "b", "--prompt", "a fox --w 96", "--seed", "7")
    (other,) = drawn(tmp_path / "c", "--prompt", "a fox --w 96", "--seed", "8")
    assert first.size == (96, 64)
    assert np.array_equal(pixels(first), pixels(second))
    assert not np.array_equal(pixels(first), pixels(other))


def test_pictures_drawn_before_stay(tmp_path):
    (first,) = drawn(tmp_path, "--prompt", "a fox")
    kept, second = drawn(tmp_path, "--prompt", "a wolf")
    assert np.array_equal(pixels(kept), pixels(first))
    assert not np.array_equal(pixels(second), pixels(first))


def test_pictures_of_a_name_in_another_folder_number_on_there(tmp_path):
    for prompt in ("a fox", "a wolf"):
        assert sample(tmp_path, "--prompt", prompt, "--output_name", "of/fox").exit_code == 0
    assert sorted(path.name for path in (tmp_path / "of").iterdir()) == [
        "fox_000.png",
        "fox_001.png",
    ]


def test_only_a_star_stands_for_other_names_of_adapters(tmp_path):
    names = ["fox[1]-1.safetensors", "fox[1]-2.safetensors", "fox1-1.safetensors", "a?.safetensors"]
    for name in [*names, "ab.safetensors"]:
        (tmp_path / name).touch()
    patterns = f"{tmp_path}/fox[1]-*.safetensors,{tmp_path}/a?.safetensors,{tmp_path}/fox[1]-1.*"
    found = [Path(value).name for value in parse_axis(f"adapter={patterns}").values]
    assert found == [*names[:2], "a?.safetensors", names[0]]


def test_strength_nothing_is_the_base_and_adapters_add_up(tmp_path, adapters):
    base, off, lora, both = (
        drawn(tmp_path / str(number), "--prompt", "a fox", *given)[0]
        for number, given in enumerate(
            (
                (),
                ("--adapter", f"{adapters['lora']}:0"),
                ("--adapter", adapters["lora"]),
                ("--adapter", adapters["lora"], "--adapter", f"{adapters['lokr']}:0.5"),
            )
        )
    )
    assert np.array_equal(pixels(base), pixels(off))
    assert not np.array_equal(pixels(base), pixels(lora))
    assert not np.array_equal(pixels(lora), pixels(both))


def test_a_picture_says_what_it_was_drawn_with(tmp_path, adapters):
    adapter = f"{adapters['lora']}:0.8"
    (picture,) = drawn(
        tmp_path, "--prompt", "a fox, 狐", "--negative", "blurry", "--adapter", adapter
    )
    prompt, negative, settings = picture.info["parameters"].splitlines()
    assert prompt == "a fox, 狐 <lora:lora:0.8>"
    assert negative == "Negative prompt: blurry"
    assert settings.startswith(
        "Steps: 2, Sampler: Euler, Schedule type: Simple, CFG scale: 4, Shift: 3, Seed: 0, "
        "Size: 64x64, Model: transformer, Version: anima-pipe "
    )
    assert str(tmp_path) not in picture.info["parameters"]


def test_an_xy_sheet_has_checkpoints_and_strengths_and_each_cell_is_its_picture(tmp_path, adapters):
    names = f"adapter=none,{adapters['lora'].parent}/*.safetensors"
    *pictures, sheet = drawn(tmp_path, "--prompt", "a fox", "--xy", names, "strength=0,1")
    # Without an adapter the strength changes nothing: five distinct pictures for six cells.
    assert len(pictures) == 5
    cells = [sheet.crop(box) for box in _boxes(sheet)]
    assert len(cells) == 6
    base, *_ = pictures
    for number in (0, 1, 2, 3):
        assert np.array_equal(pixels(cells[number]), pixels(base))
    lora, lokr = cells[5], cells[4]
    assert not np.array_equal(pixels(lora), pixels(lokr))
    (alone,) = drawn(tmp_path / "alone", "--prompt", "a fox", "--adapter", adapters["lora"])
    assert np.array_equal(pixels(lora), pixels(alone))


def _boxes(sheet: Image.Image) -> list[tuple[int, int, int, int]]:
    """Return the boxes of a sheet of three columns and two rows of 64 pixels, row by row."""
    left, top = sheet.width - 3 * 72, sheet.height - 2 * 72
    return [
        (left + 72 * column, top + 72 * row, left + 72 * column + 64, top + 72 * row + 64)
        for row in range(2)
        for column in range(3)
    ]


def test_settings_can_be_axes_and_every_prompt_gets_a_sheet(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox\na cat --d 3\n")
    given = ("--sample_prompts", prompts, "--xy", "seed=1,2", "cfg=1,4")
    pictures = drawn(tmp_path / "out", *given)
    assert len(pictures) == 8 + 2
    assert (tmp_path / "out" / "sample_xy_01.png").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "nothing to draw"),
        (("--prompt", "a", "--width", "100"), "command line: width 100"),
        (("--prompt", "a --q 1"), "unknown setting --q"),
        (("--prompt", "a", "--xy", "seed=1", "seed=2"), "seed on both axes"),
        (("--prompt", "a", "--xy", "seed=1", "strength=1"), "strength of no adapter"),
        (("--prompt", "a", "--xy", "seed=1", "colour=1"), "colour=1 is no axis"),
        (("--prompt", "a", "--xy", "seed=x", "cfg=1"), "--d takes a whole number"),
        (("--prompt", "a", "--xy", "adapter=none", "strength=x"), "'x' is no number"),
        (("--prompt", "a", "--xy", "adapter=none", "strength=nan"), "'nan' is no number"),
        (("--prompt", "a", "--adapter", "a.safetensors:inf"), "names a strength of inf"),
        (("--prompt", "a", "--xy", "adapter=no/*.such", "cfg=1"), "no file matches"),
        (("--prompt", "a", "--adapter", "missing.safetensors"), "missing.safetensors"),
    ],
)
def test_what_cannot_be_drawn_is_said_before_anything_is_loaded(tmp_path, arguments, complaint):
    ended = sample(tmp_path / "out", *arguments)
    assert ended.exit_code in (2, 3, 4), ended.stderr
    assert complaint in ended.stderr
    assert not (tmp_path / "out").exists()


def test_the_models_files_come_from_a_configuration(tmp_path):
    from anima_pipe import demo

    config = tmp_path / "train_args.toml"
    files = {
        "pretrained_model_name_or_path": demo.DEMO_TRANSFORMER,
        "vae": demo.DEMO_VAE,
        "qwen": demo.DEMO_QWEN,
        "t5_tokenizer_dir": demo.DEMO_T5_TOKENIZER,
        "sample_prompts": "prompts.txt",
    }
    config.write_text("".join(f"{name} = '{path}'\n" for name, path in files.items()))
    (tmp_path / "prompts.txt").write_text("a fox --w 64 --h 64 --s 1 --l 1\n")
    out = tmp_path / "out"
    given = ["sample", "--config_file", config, "--device", "cpu", "--output_dir", out]
    ended = CliRunner().invoke(main, list(map(str, given)))
    LOGGER.handlers.clear()
    assert ended.exit_code == 0, ended.stderr
    assert [path.name for path in out.iterdir()] == ["sample_000.png"]


def test_the_demo_is_drawn_with_its_own_text_adapter_whatever_a_file_says(tmp_path):
    """Prompts and their settings are taken from the file of options, the model is not."""
    config, prompts = tmp_path / "train_args.toml", tmp_path / "prompts.txt"
    prompts.write_text("a fox --d 3\n")
    config.write_text(
        "pretrained_model_name_or_path = 'base.safetensors'\n"
        f"llm_adapter_path = 'adapter.safetensors'\nsample_prompts = '{prompts}'\n"
    )
    (ours,) = drawn(tmp_path / "a", "--config_file", config)
    (plain,) = drawn(tmp_path / "b", "--prompt", "a fox --d 3")
    assert np.array_equal(pixels(ours), pixels(plain))
