"""What is wrong with the input is one clear error, exit code 2, and nothing half-written."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import (
    MODEL,
    TAKES,
    anima_pipe,
    assert_one_error,
    demo_pictures,
    files_in,
    run_apart,
    shards_in,
    write_dataset,
)
from safetensors.torch import save_file

from anima_pipe import demo

pytestmark = pytest.mark.usefixtures("elsewhere")

STAGES_BY_FILE = [(stage, name) for stage in TAKES if stage != "all" for name in TAKES[stage]]


@pytest.mark.parametrize(("stage", "name"), STAGES_BY_FILE)
def test_a_model_file_that_does_not_exist_is_named(
    stage: str, name: str, dataset: Path, tmp_path: Path
):
    missing = tmp_path / "models" / "no such file"
    given: dict[str, object] = {name: missing}
    if name == "t5_tokenizer_dir":
        given["auto_download_t5_tokenizer"] = False
    if stage != "fetch-tokenizer":
        given |= {"dataset_config": dataset, "cache_dir": tmp_path / "cache"}
    if stage == "train":
        given["output_dir"] = tmp_path / "out"

    assert_one_error(anima_pipe(stage, **given), str(missing))
    assert shards_in(tmp_path) == []


@pytest.mark.parametrize("name", ["pretrained_model_name_or_path", "vae", "qwen3"])
def test_an_option_that_is_missing_is_asked_for(name: str, dataset: Path, tmp_path: Path):
    given = {name: None, "dataset_config": dataset, "output_dir": tmp_path}

    assert_one_error(anima_pipe("train", **given), f"--{name}")


def test_an_adapter_that_does_not_exist_is_named(tmp_path: Path):
    export = anima_pipe("export-comfy", input=tmp_path / "no.safetensors", output=tmp_path / "b")

    assert_one_error(export, str(tmp_path / "no.safetensors"))
    assert files_in(tmp_path) == set()


# Files that are something else


def flux(path: Path) -> None:
    names = ["double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight"]
    save_file({name: torch.zeros(4, 4) for name in names}, path)


def lora(path: Path) -> None:
    module = "diffusion_model.blocks.0.mlp.layer1"
    save_file({f"{module}.lora_{side}.weight": torch.zeros(4, 4) for side in "AB"}, path)


def truncated(path: Path) -> None:
    path.write_bytes(demo.DEMO_TRANSFORMER.read_bytes()[:100_000])


def web_page(path: Path) -> None:
    path.write_text("<!DOCTYPE html><html><head><title>404</title></head></html>")


def nothing(path: Path) -> None:
    path.write_bytes(b"")


def other_model(name: str) -> Callable[[Path], None]:
    def copy(path: Path) -> None:
        shutil.copy(MODEL[name], path)

    return copy


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (flux, "Flux"),
        (lora, "LoRA"),
        (truncated, "truncated"),
        (web_page, "web page"),
        (nothing, "empty"),
        (other_model("vae"), "VAE"),
    ],
)
def test_a_transformer_that_is_something_else_is_told_by_its_kind(
    make: Callable[[Path], None], words: str, cached: dict[str, object], tmp_path: Path
):
    wrong = tmp_path / "model.safetensors"
    make(wrong)

    run = anima_pipe(
        "train", output_dir=tmp_path / "out", pretrained_model_name_or_path=wrong, **cached
    )

    assert_one_error(run, str(wrong), words)
    assert files_in(tmp_path / "out") == set()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (flux, "VAE"),
        (lora, "VAE"),
        (truncated, "truncated"),
        (web_page, "web page"),
        (nothing, "empty"),
        (other_model("pretrained_model_name_or_path"), "Anima"),
    ],
)
def test_a_vae_that_is_something_else_is_told(
    make: Callable[[Path], None], words: str, dataset: Path, tmp_path: Path
):
    wrong = tmp_path / "vae.safetensors"
    make(wrong)

    stage = anima_pipe(
        "cache-latents", dataset_config=dataset, vae=wrong, cache_dir=tmp_path / "cache"
    )

    assert_one_error(stage, str(wrong), words)
    assert shards_in(tmp_path) == []


@pytest.mark.parametrize("make", [flux, truncated, web_page, nothing])
def test_a_text_encoder_that_is_something_else_is_told(
    make: Callable[[Path], None], dataset: Path, tmp_path: Path
):
    wrong = tmp_path / "qwen.safetensors"
    make(wrong)

    stage = anima_pipe(
        "encode-text", dataset_config=dataset, qwen3=wrong, cache_dir=tmp_path / "cache"
    )

    assert_one_error(stage, str(wrong))
    assert shards_in(tmp_path) == []


@pytest.mark.parametrize("make", [flux, truncated, web_page, nothing])
def test_an_adapter_that_is_something_else_is_told(make: Callable[[Path], None], tmp_path: Path):
    wrong = tmp_path / "adapter.safetensors"
    make(wrong)

    export = anima_pipe("export-comfy", input=wrong, output=tmp_path / "out.safetensors")

    assert_one_error(export, str(wrong))
    assert files_in(tmp_path) == {"adapter.safetensors"}


@pytest.mark.parametrize("lacking", ["config.json", "spiece.model", "tokenizer.json"])
@pytest.mark.parametrize("stage", ["fetch-tokenizer", "encode-text", "train"])
def test_a_tokenizer_folder_that_lacks_a_file_is_told_which(
    stage: str, lacking: str, dataset: Path, tmp_path: Path
):
    folder = tmp_path / "t5"
    shutil.copytree(demo.DEMO_T5_TOKENIZER, folder)
    (folder / lacking).unlink()
    given: dict[str, object] = {"t5_tokenizer_dir": folder, "auto_download_t5_tokenizer": False}
    if stage != "fetch-tokenizer":
        given |= {"dataset_config": dataset, "cache_dir": tmp_path / "cache"}
    if stage == "train":
        given["output_dir"] = tmp_path / "out"

    assert_one_error(anima_pipe(stage, **given), str(folder), lacking)


# Pictures and captions


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six captioned pictures, to be spoilt."""
    return demo_pictures(tmp_path / "pictures")


@pytest.fixture
def data(folder: Path, tmp_path: Path) -> dict[str, object]:
    """Options that name them."""
    dataset = write_dataset(tmp_path / "dataset.toml", folder)
    return {"dataset_config": dataset, "cache_dir": tmp_path / "cache"}


def test_an_unreadable_picture_ends_no_run_but_is_named_and_counted(
    folder: Path, data: dict[str, object], tmp_path: Path
):
    (folder / "13_reading.png").write_bytes(b"no picture")
    # This one's header is whole, so it is only found out when it is decoded.
    jpeg = folder / "07_autumn_forest.jpg"
    jpeg.write_bytes(jpeg.read_bytes()[: jpeg.stat().st_size // 2])
    (folder / "phone.heic").write_bytes(b"a kind that is not read")
    (folder / "phone.txt").write_text("fox")
    # Mirrored too: a picture that fails twice is one picture.
    write_dataset(Path(str(data["dataset_config"])), folder, flip_aug=True)

    stage = anima_pipe("cache-latents", tmp_path / "latents.json", **data).ok()
    anima_pipe("encode-text", **data).ok()
    run = anima_pipe("train", tmp_path / "train.json", output_dir=tmp_path / "out", **data).ok()

    assert stage.summary is not None
    assert [stage.summary[name] for name in ("encoded", "skipped", "failed")] == [8, 2, 1]
    for ended in (stage, run):
        assert "left out 3" in ended.said
        for name in ("13_reading.png", "07_autumn_forest.jpg", "phone.heic"):
            assert ended.said.count(name) == 1
    assert "images      4, 4 visits per epoch" in run.said
    assert "repeats     1 of each image" in run.said
    assert "left out    3 that cannot be used" in run.said
    assert (tmp_path / "out" / "fox.safetensors").exists()


@pytest.mark.parametrize("stage", ["cache-latents", "train"])
def test_under_strict_an_unreadable_picture_is_a_failure(
    stage: str, folder: Path, data: dict[str, object], tmp_path: Path
):
    (folder / "13_reading.png").write_bytes(b"no picture")
    output = {"output_dir": tmp_path / "out"} if stage == "train" else {}

    ended = anima_pipe(stage, strict=True, **data, **output)

    assert_one_error(ended, "13_reading.png", "--strict")
    assert files_in(tmp_path / "out") == set()


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("stage", ["encode-text", "train"])
def test_a_picture_without_a_caption_is_named_and_under_strict_a_failure(
    stage: str, *, strict: bool, folder: Path, data: dict[str, object], tmp_path: Path
):
    (folder / "13_reading.txt").unlink()
    output = {"output_dir": tmp_path / "out"} if stage == "train" else {}

    ended = anima_pipe(stage, strict=strict, **data, **output)

    assert f"{folder / '13_reading.png'}: no caption file ending in .txt" in ended.said
    if strict:
        assert_one_error(ended, "--strict")
    else:
        ended.ok()


@pytest.mark.parametrize("stage", ["encode-text", "train"])
def test_a_caption_that_is_not_utf_8_is_named(
    stage: str, folder: Path, data: dict[str, object], tmp_path: Path
):
    (folder / "13_reading.txt").write_bytes("狐".encode("shift-jis"))
    output = {"output_dir": tmp_path / "out"} if stage == "train" else {}

    ended = anima_pipe(stage, **data, **output).ok()

    assert "left out 1" in ended.said
    assert "13_reading" in ended.said
    assert "not UTF-8" in ended.said


@pytest.mark.parametrize("stage", ["encode-text", "train"])
def test_a_folder_without_any_captions_is_an_error(
    stage: str, folder: Path, data: dict[str, object], tmp_path: Path
):
    for caption in folder.glob("*.txt"):
        caption.unlink()
    output = {"output_dir": tmp_path / "out"} if stage == "train" else {}

    ended = anima_pipe(stage, **data, **output)

    assert_one_error(ended, str(folder), "none of the 6 pictures", "caption")


@pytest.mark.parametrize("stage", ["cache-latents", "encode-text", "train"])
@pytest.mark.parametrize("bare", [False, True])
def test_an_empty_folder_is_an_error(stage: str, *, bare: bool, tmp_path: Path):
    empty = tmp_path / "nothing"
    empty.mkdir()
    dataset = empty if bare else write_dataset(tmp_path / "dataset.toml", empty)
    output = {"output_dir": tmp_path / "out"} if stage == "train" else {}

    assert_one_error(anima_pipe(stage, dataset_config=dataset, **output), str(empty))


@pytest.mark.parametrize("stage", ["cache-latents", "encode-text", "train"])
def test_a_missing_folder_is_an_error(stage: str, tmp_path: Path):
    missing = tmp_path / "no such folder"
    output = {"output_dir": tmp_path / "out"} if stage == "train" else {}
    dataset = write_dataset(tmp_path / "dataset.toml", missing)

    assert_one_error(anima_pipe(stage, dataset_config=dataset, **output), str(missing))
    assert_one_error(anima_pipe(stage, dataset_config=missing, **output), str(missing))


def test_debug_shows_the_traceback_too(dataset: Path, tmp_path: Path):
    ended = anima_pipe("cache-latents", dataset_config=dataset, vae=tmp_path / "no", debug=True)

    assert ended.code == 2
    assert "Traceback" in ended.said
    assert ended.said.rstrip().splitlines()[-2].startswith("error: ")


def test_a_stage_of_all_that_fails_ends_it_with_its_name(tmp_path: Path):
    empty = tmp_path / "nothing"
    empty.mkdir()

    ended = run_apart(
        *(sys.executable, "-m", "anima_pipe.cli", "all"),
        *("--dataset_config", empty, "--output_dir", tmp_path / "out"),
    )

    assert ended.code == 2
    assert ended.said.count("error: ") == 2
    assert f"error: no pictures in {empty}" in ended.said
    assert "error: stage cache-latents failed" in ended.said
