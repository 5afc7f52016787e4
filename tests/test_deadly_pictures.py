"""Pictures that take too much memory: one is set aside and named, and all others are cached."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from commands import Ended, anima_pipe, demo_pictures, write_dataset
from PIL import Image
from worker_tasks import Picture, a_megabyte, die, peak_of_decoding, tasks, workers_of

from anima_pipe.inspection.thumbnails import look_at_all
from anima_pipe.records import ImageFile
from anima_pipe.source.budget import Budget
from anima_pipe.source.images import decoding_cost, read_image_file
from anima_pipe.source.workers import Care, WorkerDiedError, in_processes

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")

DEADLY = (217, 113)
"""The size of a picture that kills whoever decodes it, in the processes of these tests."""

KILLER = f"""
import os, signal, sys
if any("worker_process" in argument for argument in sys.orig_argv):
    from PIL import ImageFile
    load = ImageFile.ImageFile.load
    def deadly(picture):
        if picture.size == {DEADLY}:
            os.kill(os.getpid(), signal.SIGKILL)
        return load(picture)
    ImageFile.ImageFile.load = deadly
"""
"""What Python imports at its start: the system's killer for want of memory."""


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset of which one picture kills the process that decodes it."""
    (tmp_path / "killer").mkdir()
    (tmp_path / "killer" / "sitecustomize.py").write_text(KILLER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "killer"))
    pictures = demo_pictures(tmp_path / "pictures")
    Image.new("RGB", DEADLY, "red").save(pictures / "00_deadly.png")
    (pictures / "00_deadly.txt").write_text("a fox")
    return write_dataset(tmp_path / "dataset.toml", pictures, flip_aug=True)


def cached(dataset: Path, workers: int = 2, **given: object) -> Ended:
    folder = dataset.parent
    options = {"dataset_config": dataset, "cache_dir": folder / "cache", "vae_batch_size": 4}
    return anima_pipe(
        "cache-latents",
        folder / "summary.json",
        **options,
        max_data_loader_n_workers=workers,
        **given,
    )


def counts(ended: Ended) -> list[int]:
    assert ended.ok().summary is not None
    return [ended.summary[name] for name in ("encoded", "reused", "skipped", "failed")]


def test_a_picture_that_kills_its_decoder_is_named_and_set_aside_by_its_content(dataset: Path):
    others = 2 * len(list((dataset.parent / "pictures").glob("*.txt"))) - 2

    first = cached(dataset)
    pictures = dataset.parent / "pictures"
    (pictures / "00_deadly.png").rename(pictures / "renamed.png")
    second = cached(dataset)
    asked = cached(dataset, rehash=True)

    assert counts(first) == [others, 0, 0, 1]
    assert "00_deadly.png kills the process that decodes it" in first.said
    assert counts(second) == [0, others, 1, 0]
    assert "renamed.png kills the process that decodes it" in second.said
    assert counts(asked) == [0, others, 0, 1]


def test_without_workers_too_a_large_picture_that_kills_its_decoder_is_set_aside(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
):
    large = (4800, 4700)
    killer = dataset.parent / "killer" / "sitecustomize.py"
    killer.write_text(KILLER.replace(str(DEADLY), str(large)))
    pictures = dataset.parent / "pictures"
    Image.new("1", large).save(pictures / "00_deadly.png")
    others = 2 * len(list(pictures.glob("*.txt"))) - 2

    first, second = cached(dataset, workers=0), cached(dataset, workers=0)

    assert counts(first) == [others, 0, 0, 1]
    assert "00_deadly.png kills the process that decodes it" in first.said
    assert counts(second) == [0, others, 1, 0]


def test_without_workers_no_process_is_started_for_pictures_of_the_usual_sizes(tmp_path: Path):
    image = _a_picture(tmp_path / "small.png", (1024, 1024))
    running: list[int] = []
    for _ in look_at_all([image] * 20, workers=0):
        running += workers_of()
    assert running == []
    large = _a_picture(tmp_path / "large.png", (4800, 4700))
    assert [look.problem for look in look_at_all([image, large], workers=0)] == ["", ""]
    assert workers_of() == []


def _a_picture(path: Path, size: tuple[int, int]) -> ImageFile:
    Image.new("1", size).save(path)
    return read_image_file(path)


def test_the_page_of_a_dataset_shows_a_picture_that_kills_its_decoder_as_unreadable(dataset: Path):
    paths = sorted((dataset.parent / "pictures").glob("*.png"))
    images = [read_image_file(path) for path in paths]

    looks = list(look_at_all(images, workers=2))

    assert [bool(look.problem) for look in looks] == [path.stem == "00_deadly" for path in paths]


def test_a_picture_of_more_pixels_than_max_image_pixels_is_named_with_its_size(dataset: Path):
    pixels = DEADLY[0] * DEADLY[1]
    pictures = dataset.parent / "pictures"
    for path in pictures.iterdir():
        if path.suffix != ".txt" and path.stem != "00_deadly":
            with Image.open(path) as picture:
                small = picture.convert("RGB").resize((96, 96))
            small.save(path)

    none_left_out = cached(dataset, max_image_pixels=pixels)
    left_out = cached(dataset, max_image_pixels=pixels - 1, rehash=True)

    assert counts(none_left_out)[3] == 1
    assert counts(left_out)[2:] == [1, 0]
    assert f"00_deadly.png is 217x113 pixels, more than max_image_pixels {pixels - 1}" in (
        left_out.said
    )


def test_a_worker_that_is_killed_by_chance_costs_no_picture():
    done = []
    care = Care(cost=lambda _: 1, joined=lambda results: results[0])
    given = tasks(24, seconds=0.02)
    for number, (name, _) in enumerate(in_processes(a_megabyte, given, 2, care)):
        done.append(name)
        if number % 6 == 0 and (alive := workers_of()):
            alive[-1].kill()
    assert done == [task[0].name for task in given]
    assert workers_of() == []


def test_where_every_picture_kills_its_worker_they_are_not_blamed_for_it():
    care = Care(cost=lambda _: 1, joined=lambda outcomes: [type(each) for each in outcomes])
    given = [[Picture(str(number))] for number in range(40)]
    with pytest.raises(WorkerDiedError, match=r"SIGKILL[\s\S]*--num_workers"):
        list(in_processes(die, given, 2, care))


def test_pictures_that_are_decoded_at_once_take_no_more_than_the_budget():
    budget, at_once, most = Budget(100), [], []

    def take(count: int | None) -> None:
        with budget.taking(count):
            at_once.append(count)
            most.append(sum(100 if each is None else min(each, 100) for each in at_once))
            time.sleep(0.01)
            at_once.remove(count)

    wants = [40, 70, 20, None, 1000, 30, 60] * 3
    threads = [threading.Thread(target=take, args=(want,)) for want in wants]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == len(wants)
    assert max(most) <= 100


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "I;16"])
def test_decoding_takes_no_more_memory_than_it_is_reckoned_with(tmp_path: Path, mode: str):
    size = (5000, 4000)
    path = tmp_path / "large.png"
    if mode == "I;16":
        Image.fromarray(np.zeros(size[::-1], np.uint16)).save(path)
    else:
        Image.new(mode, size).save(path)

    (peak,) = in_processes(peak_of_decoding, [[read_image_file(path)]], 1)

    assert size[0] * size[1] < peak < decoding_cost(size)
