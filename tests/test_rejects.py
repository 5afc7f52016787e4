"""One bad picture or caption is left out and named, whatever is wrong with it; all are listed."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest
from commands import Ended, anima_pipe, assert_one_error, demo_pictures, write_dataset

from anima_pipe.source.captions import CaptionRules, render_caption
from anima_pipe.source.prompts import has_weights, read_prompt

BAD_CAPTIONS = {
    "deep": '{"tags": ' + "[" * 200_000,
    "digits": '{"caption": "a fox", "meta": ' + "9" * 5000 + "}",
    "half": '{"caption": "a \\ud83d fox"}',
    "list": '{"caption": ["a"]}',
    "sixty thousand words": json.dumps({"caption": "word " * 60_000}),
    "a file of a megabyte": json.dumps({"caption": "fox", "meta": "x" * 2**20}),
}


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A dataset with captions in JSON, of which some cannot be read, and two such pictures."""
    pictures = demo_pictures(tmp_path / "pictures")
    pixels = min(pictures.glob("*.png"))
    for text in pictures.glob("*.txt"):
        text.with_suffix(".json").write_text(json.dumps({"caption": text.read_text()}))
        text.unlink()
    for number, (name, content) in enumerate(BAD_CAPTIONS.items()):
        shutil.copy(pixels, pictures / f"{name}.png")
        # Not a copy of the others: each latent is one of its own.
        with (pictures / f"{name}.png").open("ab") as file:
            file.write(bytes([number]))
        (pictures / f"{name}.json").write_text(content)
    (pictures / "to itself.png").symlink_to("to itself.png")
    (pictures / "broken.png").write_bytes(b"no picture")
    return write_dataset(tmp_path / "dataset.toml", pictures, caption_extension=".json")


def run(stage: str, dataset: Path, **given: object) -> Ended:
    cache = dataset.parent / "cache"
    return anima_pipe(stage, dataset_config=dataset, cache_dir=cache, **given).ok()


def listed(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def names(entries: list[dict[str, Any]], stage: str) -> set[str]:
    return {Path(entry["name"]).stem for entry in entries if entry["stage"] == stage}


def test_whatever_is_wrong_with_a_picture_or_caption_leaves_out_that_one_alone(dataset: Path):
    good = len(list((dataset.parent / "pictures").glob("[0-9]*.json")))

    summary = dataset.parent / "summary.json"
    latents = run("cache-latents", dataset, summary=summary)
    texts = run("encode-text", dataset, summary=summary)

    assert latents.summary
    assert texts.summary
    assert latents.summary["skipped"] == 2
    assert "to itself.png cannot be used: Too many levels of symbolic links" in latents.said
    assert texts.summary["skipped"] == len(BAD_CAPTIONS)
    assert texts.summary["encoded"] == good + 1  # the empty one
    assert "has 299,999 letters, more than 16,384" in texts.said
    assert "a file of a megabyte.json has more than 1,048,576 bytes" in texts.said
    entries = listed(dataset.parent / "rejects.jsonl")
    assert names(entries, "cache-latents") == {"to itself", "broken"}
    assert names(entries, "encode-text") == set(BAD_CAPTIONS)


def test_a_training_leaves_all_of_them_out_and_lists_them_in_its_cache(dataset: Path):
    run("train", dataset, output_dir=dataset.parent / "out")

    entries = listed(dataset.parent / "cache" / "rejects.jsonl")
    assert names(entries, "train") == {*BAD_CAPTIONS, "to itself", "broken"}
    assert all(entry["reason"] for entry in entries)


def test_the_terminal_names_twenty_and_says_where_all_are_until_they_are_mended(tmp_path: Path):
    pictures = demo_pictures(tmp_path / "pictures")
    broken = [pictures / f"broken {number:02}.png" for number in range(25)]
    for path in broken:
        path.write_bytes(b"no picture")
    dataset = write_dataset(tmp_path / "dataset.toml", pictures)
    list_of_all = tmp_path / "cache" / "rejects.jsonl"

    ended = run("cache-latents", dataset)

    assert ended.said.count("is not a picture") == 20
    assert f"  ... and 5 more, all in {list_of_all}" in ended.said
    assert [entry["name"] for entry in listed(list_of_all)] == [str(path) for path in broken]
    for path in broken:
        path.unlink()
    run("cache-latents", dataset)
    assert not list_of_all.exists()


@pytest.mark.parametrize("stage", ["cache-latents", "train"])
def test_where_not_one_picture_is_left_all_are_listed_nevertheless(tmp_path: Path, stage: str):
    pictures = demo_pictures(tmp_path / "pictures")
    for path in pictures.iterdir():
        if path.suffix != ".txt":
            path.unlink()
    for number in range(25):
        (pictures / f"{number:02}.png").write_bytes(b"no picture")
        (pictures / f"{number:02}.txt").write_text("a fox")
    dataset = write_dataset(tmp_path / "dataset.toml", pictures)
    folders = {"cache_dir": tmp_path / "cache"}
    if stage == "train":
        folders["output_dir"] = tmp_path / "out"

    ended = anima_pipe(stage, tmp_path / "summary.json", dataset_config=dataset, **folders)

    assert_one_error(ended, "none of the 25 pictures can be used")
    file = tmp_path / "rejects.jsonl"
    assert len(names(listed(file), stage)) == 25
    assert f"and 5 more, all in {file}" in ended.said


def test_where_not_one_picture_can_be_decoded_all_are_listed_nevertheless(tmp_path: Path):
    pictures = demo_pictures(tmp_path / "pictures")
    broken = sorted(path for path in pictures.iterdir() if path.suffix != ".txt")
    for path in broken:
        path.write_bytes(path.read_bytes()[:3000])
    dataset = write_dataset(tmp_path / "dataset.toml", pictures)
    folders = {"cache_dir": tmp_path / "cache", "output_dir": tmp_path / "out"}

    ended = anima_pipe("train", tmp_path / "summary.json", dataset_config=dataset, **folders)

    assert_one_error(ended, f"none of the {len(broken)} pictures can be decoded")
    assert len(names(listed(tmp_path / "rejects.jsonl"), "train")) == len(broken)


GROWING = {
    "braces": lambda count: render_caption(
        "{a" * count, CaptionRules(enable_wildcard=True), rng=Random(0)
    ),
    "stops": lambda count: render_caption(
        "a. " * count, CaptionRules(shuffle_caption=True, keep_sections=True), rng=Random(0)
    ),
    "digits": lambda count: has_weights("(a:" + "1" * count),
    "a nested prompt": lambda count: read_prompt("(" * count + "fox" + ")" * count),
    "a prompt of numbers": lambda count: read_prompt("(" * count + "fox" + ":1)" * count),
    "a prompt that is not closed": lambda count: read_prompt("(a " * count + ")"),
    "a prompt that nothing opened": lambda count: read_prompt("a) (b" * count),
}


@pytest.mark.parametrize("kind", GROWING)
def test_a_caption_of_four_times_the_length_takes_no_sixteen_times_as_long(kind: str):
    def seconds(count: int) -> float:
        times = []
        for _ in range(3):
            begun = time.process_time()
            GROWING[kind](count)
            times.append(time.process_time() - begun)
        return min(times)

    assert seconds(20_000) < 9 * seconds(5_000) + 0.01
