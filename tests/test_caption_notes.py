"""How captions are read is told before training: escapes, weights, files of several lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import anima_pipe, demo_pictures, write_dataset

WEIGHTED = "is trained as text"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures; a test writes the captions."""
    return demo_pictures(tmp_path_factory.mktemp("notes") / "pictures", every=18)


def told(pictures: Path, folder: Path, captions: list[str], **keys: object) -> list[str]:
    """Return what encode-text, and the plan of a run, say of captions."""
    files = sorted(pictures.glob("*.txt"))
    for file, caption in zip(files, captions, strict=True):
        file.write_bytes(caption.encode())
    dataset = write_dataset(folder / "dataset.toml", pictures, **keys)
    data = {"dataset_config": dataset, "cache_dir": folder / "cache"}
    encoded = anima_pipe("encode-text", **data).ok().said
    shown = anima_pipe("train", output_dir=folder, debug_dataset=True, **data).ok().said
    return [encoded, shown]


def test_the_plan_says_how_many_captions_had_escapes(pictures: Path, tmp_path: Path):
    captions = [r"saber \(fate\), smile", "fox (animal)"]
    line = r"escapes     \( and \) are read as ( and ) in 1 caption"
    assert all(line in said.split("\n") for said in told(pictures, tmp_path, captions))
    kept = told(pictures, tmp_path, captions, keep_backslashes=True)
    assert not any("escapes  " in said for said in kept)


def test_escapes_of_a_prefix_count_too(pictures: Path, tmp_path: Path):
    prefixed = told(pictures, tmp_path, ["fox", "cat"], caption_prefix=r"\(sks\),")
    assert all("read as ( and ) in 2 captions" in said for said in prefixed)


def test_weights_in_captions_are_named(pictures: Path, tmp_path: Path):
    first = sorted(pictures.glob("*.png")) or sorted(pictures.glob("*.jpg"))
    for said in told(pictures, tmp_path, ["fox, (snow:1.2)", "fox (animal), re:zero"]):
        assert f"(x:1.2) in 1 caption {WEIGHTED}" in said
        assert f"  {first[0]}" in said.split("\n")
    assert not any(WEIGHTED in said for said in told(pictures, tmp_path, ["fox", r"\(x:1.2\)"]))


@pytest.mark.parametrize(
    ("captions", "keys", "count"),
    [
        (["fox\r\n\r\ncat\n", "one\n\n \n"], {}, "1 caption"),
        (["fox\ncat", "one\ntwo"], {}, "2 captions"),
        (["fox\ncat", "one\ntwo"], {"enable_wildcard": True}, None),
        (["fox\u2028cat", "\none"], {}, None),
    ],
)
def test_the_plan_says_that_line_1_alone_is_used(
    captions: list[str], keys: dict[str, object], count: str | None, pictures: Path, tmp_path: Path
):
    for said in told(pictures, tmp_path, captions, **keys):
        lines = [line for line in said.split("\n") if line.startswith("lines  ")]
        wanted = f"lines       line 1 alone is used, as Kohya does, of {count} of several lines"
        assert lines == ([wanted] if count else [])


def test_captions_of_a_metadata_file_have_lines_too(pictures: Path, tmp_path: Path):
    (name, *_) = sorted(path.name for path in pictures.iterdir() if path.suffix != ".txt")
    file = tmp_path / "meta.json"
    file.write_text(json.dumps({name: {"caption": "fox\ncat"}}), encoding="utf-8")
    dataset = write_dataset(tmp_path / "dataset.toml", pictures, metadata_file=str(file))
    ended = anima_pipe("encode-text", dataset_config=dataset, cache_dir=tmp_path / "cache").ok()
    assert "line 1 alone is used, as Kohya does, of 1 caption of several lines" in ended.said
