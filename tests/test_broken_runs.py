"""A run that cannot go on ends on all processes, and leaves the state of its last step."""

from __future__ import annotations

import re
import shutil
import socket
from pathlib import Path

import pytest
from commands import (
    LAUNCH_TWO,
    MODEL,
    TRAINING,
    Ended,
    anima_pipe,
    assert_one_error,
    options,
    run_apart,
    write_dataset,
)
from last_threads import THREADS, gloo_threads, note_threads_at_exit
from torch.multiprocessing import spawn

from anima_pipe.shards.keys import text_key

Cached = dict[str, object]

STEPS = 4
"""An epoch."""


@pytest.fixture
def own_cache(cached: Cached, tmp_path: Path) -> Cached:
    """The dataset, with a copy of its caches that may be damaged."""
    shutil.copytree(Path(str(cached["cache_dir"])), tmp_path / "cache")
    return {**cached, "cache_dir": tmp_path / "cache"}


def train(cached: Cached, folder: Path, **values: object) -> Ended:
    given = {"max_train_steps": STEPS, **cached, **values}
    return anima_pipe("train", output_dir=folder, **given)


def damage(cached: Cached, pictures: Path, step: int) -> str:
    """Flip a byte of a caption that is trained in a step of the first epoch; return its picture."""
    shown = anima_pipe("train", **{**cached, **dict.fromkeys(MODEL)}, debug_dataset=True).ok()
    (first, *_) = re.findall(rf"step {step}: (\S+)", shown.printed)
    caption = (pictures / first).with_suffix(".txt").read_text().strip()
    name = f"{text_key(caption)}.safetensors".encode()
    (shard,) = (
        path for path in Path(str(cached["cache_dir"])).rglob("*.tar") if name in path.read_bytes()
    )
    content = bytearray(shard.read_bytes())
    content[content.index(name) + 800] ^= 1
    shard.write_bytes(content)
    return first


def test_a_damaged_sample_ends_the_run_with_its_state_saved(
    own_cache: Cached, pictures: Path, tmp_path: Path
):
    train(own_cache, tmp_path / "whole").ok()
    damage(own_cache, pictures, step=3)
    ended = train(own_cache, tmp_path / "broken")
    assert_one_error(ended, "is damaged", "encode-text")
    assert [path.name for path in (tmp_path / "broken").iterdir()] == ["fox-step00000002-state"]

    # It is encoded again, and the run goes on.
    train(own_cache, tmp_path / "broken", resume="latest").ok()
    files = [(tmp_path / name / "fox.safetensors").read_bytes() for name in ("whole", "broken")]
    assert files[0] == files[1]


def test_a_damaged_sample_behind_the_last_step_does_no_harm(
    own_cache: Cached, pictures: Path, tmp_path: Path
):
    damage(own_cache, pictures, step=STEPS)
    ended = train(own_cache, tmp_path / "out", max_train_steps=STEPS - 1).ok()
    assert "is damaged" not in ended.said
    assert (tmp_path / "out" / "fox.safetensors").is_file()


def test_what_goes_wrong_between_the_steps_leaves_the_state_too(cached: Cached, tmp_path: Path):
    out = tmp_path / "out"
    # A folder where a save should be.
    (out / "fox-step00000002.safetensors" / "in the way").mkdir(parents=True)
    ended = train(cached, out, save_every_n_steps=2)
    assert_one_error(ended, "fox-step00000002.safetensors")
    assert (out / "fox-step00000002-state").is_dir()
    shutil.rmtree(out / "fox-step00000002.safetensors")
    train(cached, out, resume="latest").ok()
    train(cached, tmp_path / "whole").ok()
    files = [(folder / "fox.safetensors").read_bytes() for folder in (out, tmp_path / "whole")]
    assert files[0] == files[1]


def launched(cached: Cached, folder: Path, **values: object) -> Ended:
    given = {**MODEL, **TRAINING, **cached, "device": "cpu", "output_dir": folder, **values}
    return run_apart(*LAUNCH_TWO, *options(**given))


@pytest.mark.slow
def test_a_sample_that_one_process_cannot_read_ends_both_with_the_state_saved(
    own_cache: Cached, pictures: Path, tmp_path: Path
):
    # The fourth batch is the second process's second.
    damage(own_cache, pictures, step=4)
    ended = launched(own_cache, tmp_path / "out", max_train_steps=4)
    assert ended.code != 0
    assert "is damaged" in ended.said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["fox-step00000001-state"]


@pytest.mark.slow
def test_an_alarm_of_the_first_process_ends_both_with_the_state_saved(
    cached: Cached, tmp_path: Path
):
    alarm = {"anima_monitor_memory_warn_ratio": 0, "anima_monitor_alert_policy": "raise"}
    ended = launched(cached, tmp_path / "out", max_train_steps=4, **alarm)
    assert ended.code != 0
    assert "of the memory is in use" in ended.said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["fox-step00000002-state"]


def train_on_own_data(number: int, folder: Path, cache_dir: Path) -> None:
    """Be one of two processes, each with a folder of pictures of its own; note what it came to."""
    place = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": (folder / "port").read_text()}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**place, **meeting}.items():
            patch.setenv(name, str(value))
        if THREADS.exists():
            note_threads_at_exit(folder)
        given = {"dataset_config": folder / f"{number}.toml", "cache_dir": cache_dir}
        ended = anima_pipe("train", **given, output_dir=folder, auto_cache=False)
    assert ended.code == 2
    (folder / f"{number}.txt").write_text(ended.said)


@pytest.mark.slow
def test_processes_that_see_different_pictures_train_none(
    cached: Cached, pictures: Path, tmp_path: Path
):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        (tmp_path / "port").write_text(str(probe.getsockname()[1]))
    for number in (0, 1):
        folder = Path(shutil.copytree(pictures, tmp_path / f"pictures{number}"))
        write_dataset(tmp_path / f"{number}.toml", folder)
    lost = min(folder.glob("*.png"))
    lost.unlink()

    spawn(train_on_own_data, (tmp_path, Path(str(cached["cache_dir"]))), nprocs=2)

    for number in (0, 1):
        said = (tmp_path / f"{number}.txt").read_text()
        assert "the 2 processes of this run would train on different data" in said
        assert f"not all of them have {lost.name}" in said
        assert not THREADS.exists() or not gloo_threads(tmp_path, number)
    assert not list(tmp_path.glob("*.safetensors"))
