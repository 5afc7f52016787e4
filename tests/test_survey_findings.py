"""What is wrong with a dataset is told alike by training, by --debug_dataset and by inspect."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from commands import BUCKETS, MODEL, Ended, anima_pipe, demo_pictures

from anima_pipe.cli.main import main
from anima_pipe.kohya.toml_text import toml_lines
from anima_pipe.runtime import LOGGER

FINDINGS = re.compile(
    r"left out 1:|2 pictures without a caption:|trained on elsewhere \(\d\):"
    r"|over 512 T5 tokens \(1\):|\(x:1\.2\) in 2 captions"
)
"""What training tells of the dataset below: each of the five once."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of which four have something wrong."""
    folder = demo_pictures(tmp_path / "pictures", every=6)
    first, second, third, *_ = sorted(folder.glob("*.txt"))
    first.unlink()
    second.write_text("(fox:1.2), meadow\n")
    third.write_text(f"{'a fox in a meadow, ' * 120}\n")
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "broken.txt").write_text("fox")
    return folder


@pytest.fixture
def dataset(folder: Path, tmp_path: Path) -> Path:
    """A dataset whose second subset trains on what the first one holds out."""
    shutil.copytree(folder, tmp_path / "copies")
    (tmp_path / "copies" / "broken.png").unlink()
    lines = ["[[datasets]]", *toml_lines(BUCKETS)]
    for name, share in (("pictures", 0.3), ("copies", 0.0)):
        subset = {"image_dir": str(tmp_path / name), "validation_split": share}
        lines += ["[[datasets.subsets]]", *toml_lines(subset)]
    file = tmp_path / "dataset.toml"
    file.write_text("\n".join([*lines, ""]))
    return file


def trained(dataset: Path, folder: Path, **values: object) -> Ended:
    given = {"dataset_config": dataset, "cache_dir": folder / "cache", "max_train_steps": 1}
    return anima_pipe("train", output_dir=folder / "out", **given, **values)


def inspected(dataset: Path, folder: Path) -> Ended:
    tokenizer = MODEL["t5_tokenizer_dir"]
    words = ["--output", folder / "page.html", "--t5_tokenizer_dir", tokenizer]
    result = CliRunner().invoke(main, ["inspect", str(dataset), *map(str, words)])
    LOGGER.handlers.clear()
    return Ended(code=result.exit_code, said=result.stderr, printed=result.stdout, summary=None)


def test_debug_dataset_and_inspect_tell_what_training_tells(dataset: Path, tmp_path: Path):
    runs = {
        "train": trained(dataset, tmp_path),
        "debug_dataset": trained(dataset, tmp_path, debug_dataset=True),
        "inspect": inspected(dataset, tmp_path),
    }

    told = {name: FINDINGS.findall(ended.ok().said) for name, ended in runs.items()}
    assert sorted(told["train"]) == sorted(told["debug_dataset"]) == sorted(told["inspect"])
    assert len(told["train"]) == 5
    broken = str(tmp_path / "pictures" / "broken.png")
    assert all(broken in ended.said for ended in runs.values())


def test_inspect_names_what_only_decoding_finds_as_training_does(folder: Path, tmp_path: Path):
    (folder / "broken.png").unlink()
    picture = next(path for path in sorted(folder.iterdir()) if path.suffix == ".png")
    picture.write_bytes(picture.read_bytes()[:-200])

    for ended in (trained(folder, tmp_path, resolution=128), inspected(folder, tmp_path)):
        named = ended.ok().said.partition("left out 1:")[2].splitlines()[1]
        assert str(picture) in named


@pytest.mark.parametrize("values", [{}, {"debug_dataset": True}])
def test_what_strict_refuses_is_refused_by_debug_dataset_too(
    values: dict[str, object], dataset: Path, tmp_path: Path
):
    (tmp_path / "pictures" / "broken.png").unlink()

    ended = trained(dataset, tmp_path, strict=True, **values)

    assert ended.code == 2
    assert "2 pictures without a caption" in ended.said


def test_a_folder_without_captions_ends_training_and_its_preview_but_not_inspect(
    folder: Path, tmp_path: Path
):
    for caption in folder.glob("*.txt"):
        caption.unlink()
    problem = f"pictures in {folder} has a caption file ending in .txt"

    for values in ({}, {"debug_dataset": True}):
        ended = trained(folder, tmp_path, resolution=128, **values)
        assert ended.code == 2
        assert problem in ended.said
    page = inspected(folder, tmp_path).ok()
    assert problem in page.said
    assert "training would end here" in page.said
    assert (tmp_path / "page.html").exists()
