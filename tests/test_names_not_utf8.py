"""Names that are no text, and names with signs that a terminal obeys."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import anima_pipe, assert_one_error, demo_pictures, files_in, write_dataset
from safetensors import safe_open

from anima_pipe.cli.ending import ending_of
from anima_pipe.errors import DataError
from anima_pipe.plain_text import in_utf8, json_text, on_one_line
from anima_pipe.runtime import setup_messages, show, warn
from anima_pipe.shards import open_cache

FOX = os.fsdecode("狐の絵".encode("shift_jis"))
"""As Python has a folder out of a zip from a Japanese Windows."""
SHOWN_FOX = in_utf8(FOX)

pytestmark = pytest.mark.skipif(os.name == "nt", reason="names are always Unicode there")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Pictures and captions whose names are not UTF-8, in such a folder."""
    folder = demo_pictures(tmp_path / FOX)
    for path in list(folder.iterdir()):
        path.rename(path.with_name(f"{FOX}{path.name}"))
    return folder


def train(pictures: Path, tmp_path: Path, **given: object) -> Any:
    options = {
        "dataset_config": pictures,
        "resolution": 64,
        "cache_dir": tmp_path / "cache",
        "output_dir": tmp_path / "out",
        "log_with": "tensorboard",
        "logging_dir": tmp_path / "logs",
        "save_state": True,
        "save_every_n_steps": 1,
    }
    return anima_pipe("train", tmp_path / f"{FOX}.json", **(options | given))


def test_a_training_on_names_that_are_not_utf8_ends_with_its_adapter_and_can_be_resumed(
    pictures: Path, tmp_path: Path
):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox --w 64 --h 64 --s 1 --l 1\n")
    given = {"sample_prompts": prompts, "sample_every_n_steps": 1}

    first = train(pictures, tmp_path, **given).ok()
    resumed = train(pictures, tmp_path, **given, max_train_steps=3, resume="latest").ok()

    assert (first.summary["steps"], resumed.summary["steps"]) == (2, 3)
    with safe_open(resumed.summary["output"], framework="pt") as file:
        metadata = file.metadata()
    assert list(json.loads(metadata["ss_dataset_dirs"])) == [SHOWN_FOX]
    assert json.loads(metadata["ss_datasets"])[0]["subsets"][0]["image_dir"] == SHOWN_FOX
    assert list(json.loads(metadata["ss_tag_frequency"])) == [SHOWN_FOX]
    logged = next((tmp_path / "logs").glob("fox_*/metrics.jsonl"))
    assert [json.loads(line)["step"] for line in logged.read_text().splitlines()][-1] == 3
    assert (tmp_path / "out" / "sample" / "fox.png").is_file()


def test_caches_pages_and_lists_spell_the_bytes_of_names_that_are_not_utf8(
    pictures: Path, tmp_path: Path
):
    broken = pictures / f"{FOX}.png"
    broken.write_bytes(b"no picture")
    cache = tmp_path / FOX / "cache"
    data = {"dataset_config": pictures, "resolution": 64, "cache_dir": cache}
    page = tmp_path / f"{FOX}.html"

    cached = anima_pipe("cache-latents", tmp_path / "summary.json", **data).ok()
    again = anima_pipe("cache-latents", tmp_path / "summary.json", **data).ok()
    anima_pipe("encode-text", **data).ok()
    anima_pipe_inspect(pictures, page)

    assert cached.summary
    assert cached.summary["failed"] == 0
    assert f"  {tmp_path}/{SHOWN_FOX}/{SHOWN_FOX}.png is not a picture" in cached.said
    assert again.summary
    assert again.summary["encoded"] == 0
    assert SHOWN_FOX in page.read_text(encoding="utf-8")
    latents = open_cache(cache)
    assert len(list(latents.latents)) == len(list(pictures.glob("*.txt")))


def anima_pipe_inspect(folder: Path, page: Path) -> None:
    from click.testing import CliRunner

    from anima_pipe.cli.main import main

    result = CliRunner().invoke(main, ["inspect", str(folder), "--output", str(page)])
    assert result.exit_code == 0, result.stderr


def test_an_output_that_no_program_could_read_is_refused_before_anything_is_encoded(
    tmp_path: Path,
):
    data = demo_pictures(tmp_path / "data")
    ended = train(data, tmp_path, output_dir=tmp_path / FOX / "out", log_with="none")
    of_all = anima_pipe("all", dataset_config=data, output_dir=tmp_path / FOX / "out")

    assert_one_error(ended, SHOWN_FOX, "not UTF-8", "output_dir")
    assert_one_error(of_all, SHOWN_FOX, "not UTF-8", "output_dir")
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / FOX).exists()


def test_a_log_that_tensorboard_could_not_write_is_refused_before_anything_is_encoded(
    tmp_path: Path,
):
    ended = train(demo_pictures(tmp_path / "data"), tmp_path, logging_dir=tmp_path / FOX)

    assert_one_error(ended, SHOWN_FOX, "not UTF-8", "logging_dir")
    assert not (tmp_path / "cache").exists()


def test_a_name_that_the_disk_would_refuse_is_refused_before_anything_is_encoded(
    tmp_path: Path,
):
    data = demo_pictures(tmp_path / "data")
    ended = train(data, tmp_path, output_name="f" * 240, log_with="none")

    assert_one_error(ended, "File name too long")
    assert not (tmp_path / "cache").exists()
    assert files_in(tmp_path / "out") == set()


def test_a_folder_in_the_adapters_place_is_found_before_anything_is_encoded(tmp_path: Path):
    (tmp_path / "out" / "fox.safetensors").mkdir(parents=True)
    ended = train(demo_pictures(tmp_path / "data"), tmp_path, log_with="none")

    assert_one_error(ended, "fox.safetensors: it is a folder")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["s" * 240, "folder"])
def test_a_summary_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path, name: str):
    (tmp_path / "folder").mkdir()
    dataset = write_dataset(tmp_path / "dataset.toml", demo_pictures(tmp_path / "data"))
    ended = anima_pipe(
        "cache-latents",
        dataset_config=dataset,
        cache_dir=tmp_path / "cache",
        summary_json=tmp_path / name,
    )

    assert_one_error(ended, f"cannot write {tmp_path / name}: ")
    assert not (tmp_path / "cache").exists()


def test_no_name_begins_a_line_or_steers_the_terminal(tmp_path: Path):
    data = demo_pictures(tmp_path / "data")
    forged = "a.png\nerror: forged\r\x1b[2J\u202eb\x85\u2028.png"
    (data / forged).write_bytes(b"no picture")
    dataset = write_dataset(tmp_path / "dataset.toml", data)

    ended = anima_pipe("cache-latents", dataset_config=dataset, cache_dir=tmp_path / "cache").ok()

    spelled = r"a.png\nerror: forged\r\x1b[2J\u202eb\x85\u2028.png"
    assert f"{spelled} is not a picture" in ended.said
    assert not [line for line in ended.said.splitlines() if line.startswith("error")]
    assert "\x1b" not in ended.said


def test_an_error_keeps_its_two_lines_whatever_it_names(capsys: pytest.CaptureFixture[str]):
    def work() -> int:
        raise DataError("a\nerror: forged is wrong", f"remove {FOX}\nor not")

    assert ending_of(work) == 2
    said = capsys.readouterr().err
    assert said == f"error: a\\nerror: forged is wrong\n  Fix: remove {SHOWN_FOX}\\nor not\n"


def test_what_is_printed_to_a_strict_terminal_is_text(capfdbinary: pytest.CaptureFixture[bytes]):
    setup_messages()
    show(FOX, "second line")
    warn(FOX, "  listed\nforged")

    printed, said = capfdbinary.readouterr()
    assert printed.decode() == f"{SHOWN_FOX}\nsecond line\n"
    assert said.decode() == f"warning: {SHOWN_FOX}\n  listed\\nforged\n"


def test_bytes_and_halves_of_characters_are_told_apart_and_whole_ones_stay():
    halves = "\ud83d" + "\udc8f"
    assert in_utf8(f"狐\n{halves}") == "狐\n\\ud83d\\x8f"
    assert on_one_line(f"狐 👩\u200d🎨\n{halves}") == "狐 👩\u200d🎨\\n\\ud83d\\x8f"
    assert json.loads(json_text({FOX: [Path(FOX), "a\nb"]})) == {SHOWN_FOX: [SHOWN_FOX, "a\nb"]}


def test_a_folder_that_toml_cannot_name_is_an_error_of_its_own(tmp_path: Path):
    shutil.copytree(demo_pictures(tmp_path / "data"), tmp_path / FOX)
    ended = anima_pipe("train", dataset_config=tmp_path / FOX, output_config=True)

    assert_one_error(ended, SHOWN_FOX, "TOML")
