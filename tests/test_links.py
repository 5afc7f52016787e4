"""Links out of a dataset's folders: named before the work, refused where that is asked for."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from commands import Ended, anima_pipe, assert_one_error, demo_pictures, write_dataset
from safetensors import safe_open

from anima_pipe.cli.main import main
from anima_pipe.errors import OutputError
from anima_pipe.runtime import LOGGER
from anima_pipe.shards.remote import Remote

SECRET = "root:x:0:0:the users own"

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """A folder of the user's own, that no dataset names: a text, a picture, a mask."""
    folder = tmp_path / "private"
    folder.mkdir()
    (folder / "passwd").write_text(f"{SECRET}\n")
    for name, colour in (("portrait.png", b"1"), ("mask.png", b"2")):
        shutil.copy(next(iter(sorted(_demo(tmp_path).glob("*.png")))), folder / name)
        with (folder / name).open("ab") as file:
            file.write(colour)  # behind the picture: bytes of its own
    return folder


@pytest.fixture
def pictures(tmp_path: Path, private: Path) -> Path:
    """A folder in which a picture, a caption (by two links) and a picture next door are links."""
    folder = shutil.copytree(_demo(tmp_path), tmp_path / "pictures")
    first, second, *_ = sorted(folder.glob("*.txt"))
    first.unlink()
    (folder / "hop").symlink_to(private / "passwd")
    first.symlink_to("hop")
    (folder / "portrait.png").symlink_to(private / "portrait.png")
    (folder / "portrait.txt").symlink_to(second.name)
    return folder


def _demo(tmp_path: Path) -> Path:
    folder = tmp_path / "demo"
    return folder if folder.exists() else demo_pictures(folder)


def caption(pictures: Path) -> Path:
    return min(path for path in pictures.glob("*.txt") if path.name != "portrait.txt")


def run(stage: str, dataset: Path, **given: object) -> Ended:
    folder = dataset.parent
    places = {"dataset_config": dataset, "cache_dir": folder / "cache"}
    return anima_pipe(stage, folder / f"{stage}.json", **{**places, **given})


def holds(folder: Path, text: str) -> list[str]:
    return [
        str(path)
        for path in folder.rglob("*")
        if path.is_file() and text.encode() in path.read_bytes()
    ]


def test_links_out_of_the_dataset_are_named_and_refused_without_follow_links(
    tmp_path: Path, pictures: Path, private: Path
):
    dataset = write_dataset(tmp_path / "dataset.toml", pictures)
    ways = [
        f"{pictures / 'portrait.png'} -> {private / 'portrait.png'}",
        f"{caption(pictures)} -> {private / 'passwd'}",
    ]

    refused = {
        stage: run(stage, dataset, follow_links=False, cache_dir=tmp_path / "strict").ok()
        for stage in ("cache-latents", "encode-text")
    }
    followed = {stage: run(stage, dataset).ok() for stage in ("cache-latents", "encode-text")}

    for stage, links in (("cache-latents", ways[:1]), ("encode-text", sorted(ways))):
        for ended in (refused[stage], followed[stage]):
            assert ended.summary is not None
            assert ended.summary["links_out"] == len(links)
            assert sorted(ended.summary["links_out_first"]) == links
            before, _, _ = ended.said.partition(" encoded")
            assert all(way in before for way in links)
        assert refused[stage].summary["skipped"] == 1
        assert followed[stage].summary["skipped"] == 0
    assert "out of the dataset's folders: --no-follow_links is set" in refused["encode-text"].said
    assert holds(tmp_path / "cache", SECRET)
    assert not holds(tmp_path / "strict", SECRET)
    assert holds(tmp_path / "strict", "portrait.txt") == []


def test_what_a_refused_caption_links_to_is_in_no_file_of_a_training(
    tmp_path: Path, pictures: Path
):
    dataset = write_dataset(tmp_path / "dataset.toml", pictures)
    config = tmp_path / "options.toml"
    config.write_text("follow_links = false\n")

    trained = run("train", dataset, config_file=config, output_dir=tmp_path / "out").ok()
    assert trained.summary is not None
    plan = next(line for line in trained.said.splitlines() if line.startswith("links "))
    with safe_open(trained.summary["output"], "np") as file:
        frequency = file.metadata()["ss_tag_frequency"]

    assert " ".join(plan.split()) == "links 2 out of the dataset's folders (named above)"
    assert trained.summary["links_out"] == 2
    assert "root" not in frequency
    for folder in ("cache", "out"):
        assert not holds(tmp_path / folder, SECRET)


def test_masks_that_are_links_count_too(tmp_path: Path, private: Path):
    pictures = _demo(tmp_path)
    masks = tmp_path / "masks"
    masks.mkdir()
    images = sorted(path for path in pictures.iterdir() if path.suffix != ".txt")
    for image in images[1:]:
        shutil.copy(image, masks / image.name)
    (masks / f"{images[0].stem}.png").symlink_to(private / "mask.png")
    dataset = write_dataset(tmp_path / "dataset.toml", pictures, conditioning_data_dir=str(masks))

    ended = run("cache-latents", dataset, masked_loss=True, follow_links=False).ok()

    assert ended.summary is not None
    assert [ended.summary[name] for name in ("links_out", "skipped")] == [1, 1]


def described(folder: Path, *names: str) -> str:
    return json.dumps({name: {"caption": f"a fox by {name}"} for name in names})


def test_a_metadata_file_that_is_a_link_is_named_or_refused(tmp_path: Path, private: Path):
    pictures = _demo(tmp_path)
    name = min(path.name for path in pictures.glob("*.png"))
    (private / "meta.json").write_text(described(pictures, name))
    (pictures / "meta.json").symlink_to(private / "meta.json")
    dataset = write_dataset(
        tmp_path / "dataset.toml", pictures, metadata_file=str(pictures / "meta.json")
    )

    followed = run("encode-text", dataset).ok()

    assert followed.summary is not None
    assert followed.summary["links_out"] == 1
    refused = run("encode-text", dataset, follow_links=False, cache_dir=tmp_path / "strict")
    assert_one_error(refused, pictures / "meta.json", private / "meta.json")


def test_a_folder_within_the_dataset_that_is_a_link_counts_once(tmp_path: Path, private: Path):
    pictures = _demo(tmp_path)
    (pictures / "more").symlink_to(private)
    own = min(path.name for path in pictures.glob("*.png"))
    names = (own, "more/portrait.png", "more/mask.png")
    (tmp_path / "meta.json").write_text(described(pictures, *names))
    dataset = write_dataset(
        tmp_path / "dataset.toml", pictures, metadata_file=str(tmp_path / "meta.json")
    )

    followed = run("cache-latents", dataset).ok()
    refused = run("cache-latents", dataset, follow_links=False).ok()

    assert followed.summary is not None
    assert refused.summary is not None
    assert followed.summary["links_out_first"] == [f"{pictures / 'more'} -> {private}"]
    assert [ended.summary["skipped"] for ended in (followed, refused)] == [0, 2]


def test_a_folder_of_train_data_dir_that_is_a_link_is_named_or_refused(
    tmp_path: Path, private: Path
):
    folders = tmp_path / "folders"
    shutil.copytree(_demo(tmp_path), folders / "1_fox")
    (folders / "2_me").symlink_to(private)

    def encoded(**given: object) -> Ended:
        places = {"train_data_dir": folders, "cache_dir": tmp_path / "cache", "resolution": 64}
        return anima_pipe("cache-latents", tmp_path / "summary.json", **{**places, **given})

    followed = encoded().ok()
    assert followed.summary is not None
    assert followed.summary["links_out_first"] == [f"{folders / '2_me'} -> {private}"]
    assert_one_error(encoded(follow_links=False), folders / "2_me", private)


def test_a_folder_that_the_user_names_is_the_datasets_wherever_it_is(tmp_path: Path):
    (tmp_path / "named").symlink_to(_demo(tmp_path))
    dataset = write_dataset(tmp_path / "dataset.toml", tmp_path / "named")

    ended = run("cache-latents", dataset, follow_links=False).ok()

    assert ended.summary is not None
    assert [ended.summary[name] for name in ("links_out", "skipped")] == [0, 0]


def test_a_page_follows_no_link_out_of_the_dataset(tmp_path: Path, pictures: Path):
    dataset = write_dataset(tmp_path / "dataset.toml", pictures)
    page = tmp_path / "inspect.html"

    ended = CliRunner().invoke(main, ["inspect", str(dataset), "--output", str(page)])
    LOGGER.handlers.clear()

    assert ended.exit_code == 0, ended.stderr
    text = page.read_text()
    assert SECRET not in text
    cards, listed = text.count('alt="portrait.png"'), text.count("portrait.png")
    assert cards == 0
    assert listed >= 1
    assert "a page follows no such link" in ended.stderr


def test_nothing_that_a_link_leads_to_is_sent_to_an_address(tmp_path: Path, pictures: Path):
    dataset = write_dataset(tmp_path / "dataset.toml", pictures)
    address = {"cache_dir": f"file://{tmp_path / 'remote'}", "cache_mirror_dir": tmp_path / "m"}

    sent = [run(stage, dataset, **address).ok() for stage in ("cache-latents", "encode-text")]

    assert [ended.summary["skipped"] for ended in sent if ended.summary] == [1, 1]
    assert not holds(tmp_path / "remote", SECRET)
    assert not holds(tmp_path / "m", SECRET)


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_file_that_is_a_link_is_not_uploaded(tmp_path: Path, private: Path, is_folder: bool):
    link = tmp_path / "link"
    link.symlink_to(private if is_folder else private / "passwd")

    with pytest.raises(OutputError, match="is a link to"):
        Remote(f"file://{tmp_path / 'remote'}").upload(
            link / "passwd" if is_folder else link, "latents-1-fp16/a.tar"
        )

    assert not (tmp_path / "remote").exists()
