"""Real photographs in awkward formats, captioned in several languages: the whole way through."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import skimage
import torch
from commands import Ended, anima_pipe, files_in, write_dataset
from picture_files import png_of_16_bits
from PIL import Image
from safetensors.torch import load_file

from anima_pipe.shards import Cache, open_cache, text_key

PHOTOGRAPHS = Path(skimage.__file__).parent / "data"
GRACE_HOPPER = Path(mpl.get_data_path()) / "sample_data" / "grace_hopper.jpg"

Make = Callable[[Path], Image.Image]
"""Writes a picture file; returns what is to be seen in it."""


def photograph(name: str) -> Image.Image:
    with Image.open(PHOTOGRAPHS / name) as picture:
        picture.load()
    return picture


def reopened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        picture.load()
    return picture


def sideways_jpeg(path: Path) -> Image.Image:
    with Image.open(GRACE_HOPPER) as picture:
        stored = picture.crop((60, 0, 440, 606)).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn me by 90 degrees clockwise"
    stored.save(path, quality=95, exif=exif)
    return reopened(path).transpose(Image.Transpose.ROTATE_270)


def transparent_png(path: Path) -> Image.Image:
    picture = photograph("chelsea.png").convert("RGBA")
    fading = Image.linear_gradient("L").resize(picture.size)
    picture.putalpha(fading)
    picture.save(path)
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def webp(path: Path) -> Image.Image:
    picture = photograph("coffee.png")
    picture.save(path, quality=90)
    return reopened(path).convert("RGB")


def grayscale_jpeg(path: Path) -> Image.Image:
    photograph("camera.png").save(path, quality=95)
    return reopened(path).convert("RGB")


def cmyk_jpeg(path: Path) -> Image.Image:
    photograph("rocket.jpg").convert("CMYK").save(path, quality=95)
    return reopened(path).convert("RGB")


def png_with_16_bits(path: Path) -> Image.Image:
    coins = photograph("coins.png")
    path.write_bytes(png_of_16_bits(np.asarray(coins, dtype=np.uint16)[..., None] * 257))
    return coins.convert("RGB")


def animated_gif(path: Path) -> Image.Image:
    path.write_bytes((PHOTOGRAPHS / "no_time_for_that_tiny.gif").read_bytes())
    with Image.open(path) as animation:
        assert animation.n_frames > 1
        animation.seek(0)
        return animation.convert("RGB")


def palette_png(path: Path) -> Image.Image:
    photograph("astronaut.png").quantize(64).save(path)
    return reopened(path).convert("RGB")


def large_jpeg(path: Path) -> Image.Image:
    path.write_bytes((PHOTOGRAPHS / "retina.jpg").read_bytes())
    return reopened(path).convert("RGB")


AWKWARD: dict[str, tuple[Make, str]] = {
    "sideways.jpg": (sideways_jpeg, "1woman, portrait, uniform, smile, photo (medium)"),
    "transparent.png": (transparent_png, "猫、子猫、茶トラ、横顔"),
    "light.webp": (webp, "一杯咖啡，木桌，俯视"),  # noqa: RUF001 - meant so
    "gray.jpeg": (grayscale_jpeg, "фотограф с камерой, чёрно-белое фото"),  # noqa: RUF001
    "ink.jpg": (cmyk_jpeg, "صاروخ على منصة الإطلاق"),
    "deep.png": (png_with_16_bits, "🪙🪙🏛️ Münzen, größer als früher"),
    "moving.gif": (animated_gif, "사람, 시계"),
    "palette.png": (palette_png, ""),
    "large.JPG": (large_jpeg, "  \n\nretina, अच्छा, eye  \n"),
}
"""File name -> what makes it, and its caption."""

CAPTIONS = {name: caption.strip() for name, (_, caption) in AWKWARD.items()}


@dataclass
class Whole:
    """The whole way, done."""

    folder: Path
    cache: Cache
    names: dict[str, str]
    """Key of a latent by the name of its picture."""
    sizes: dict[str, list[int]]
    """Of the pictures, upright."""
    ends: dict[str, Ended]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("real")
    pictures = folder / "pictures of mine, 写真"
    pictures.mkdir()
    for name, (make, caption) in AWKWARD.items():
        seen = make(pictures / name)
        (pictures / name).with_suffix(".txt").write_text(caption, encoding="utf-8")
        # The same picture as one would wish to get it, and its caption once more.
        seen.save(pictures / f"plain {name}.png")
        (pictures / f"plain {name}.txt").write_text(caption, encoding="utf-8")
    data = {
        "dataset_config": write_dataset(folder / "dataset.toml", pictures, flip_aug=True),
        "cache_dir": folder / "cache",
    }
    ends = {
        stage: anima_pipe(stage, folder / f"{stage}.json", **data).ok()
        for stage in ("cache-latents", "encode-text")
    }
    ends["train"] = anima_pipe(
        "train", folder / "train.json", output_dir=folder / "out", max_train_steps=3, **data
    ).ok()
    ends["export-comfy"] = anima_pipe(
        "export-comfy",
        folder / "export.json",
        input=folder / "out" / "fox.safetensors",
        output=folder / "comfyui" / "fox.safetensors",
    ).ok()
    described = list(_descriptions(folder / "cache"))
    return Whole(
        folder=folder,
        cache=open_cache(folder / "cache"),
        names={d["image"]: key for key, d in described if not d["flipped"]},
        sizes={d["image"]: d["image_size"] for _, d in described},
        ends=ends,
    )


def _descriptions(cache: Path):
    for shard in cache.glob("latents-*/*.tar"):
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    yield member.name.removesuffix(".json"), json.load(tar.extractfile(member))


def test_every_picture_and_caption_gets_through_to_an_exported_file(whole: Whole):
    latents, texts, train, export = (ended.summary for ended in whole.ends.values())

    # Each picture and its plain twin, as they are and mirrored.
    assert [latents[name] for name in ("encoded", "skipped", "failed")] == [4 * len(AWKWARD), 0, 0]
    # One of the captions is empty, as the one for dropout is.
    assert [texts[name] for name in ("encoded", "skipped", "failed")] == [len(AWKWARD), 0, 0]
    assert train["steps"] == 3
    assert export["verified"] is True
    tensors = load_file(export["output"])
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    assert any(tensor.abs().max() > 0 for name, tensor in tensors.items() if "lora_B" in name)
    for ended in whole.ends.values():
        assert "warning" not in ended.said


@pytest.mark.parametrize("name", AWKWARD)
def test_an_awkward_file_has_the_latent_of_what_is_to_be_seen_in_it(name: str, whole: Whole):
    latents = whole.cache.latents

    awkward, plain = (latents[whole.names[n]] for n in (name, f"plain {name}.png"))
    assert torch.equal(awkward, plain)
    assert awkward.float().std() > 0.1


def test_a_sideways_photograph_stands_upright_in_a_tall_bucket(whole: Whole):
    width, height = whole.sizes["sideways.jpg"]
    latent = whole.cache.latents[whole.names["sideways.jpg"]]

    assert width < height
    assert latent.shape[2] < latent.shape[1]


@pytest.mark.parametrize("name", AWKWARD)
def test_a_caption_in_any_language_is_encoded_at_its_length(name: str, whole: Whole):
    condition = whole.cache.text[text_key(CAPTIONS[name])]

    assert torch.isfinite(condition.qwen_hidden).all()
    assert (len(condition.qwen_hidden) == 0) == (CAPTIONS[name] == "")
    assert condition.t5_ids[-1] == 1
    assert (len(condition.t5_ids) == 1) == (CAPTIONS[name] == "")


def test_captions_in_different_languages_differ_for_the_model(whole: Whole):
    conditions = [whole.cache.text[text_key(caption)] for caption in CAPTIONS.values()]

    hidden = {condition.qwen_hidden.float().numpy().tobytes() for condition in conditions}
    assert len(hidden) == len(CAPTIONS)


def test_nothing_but_results_is_left(whole: Whole):
    assert files_in(whole.folder / "out") == {"fox.safetensors"}
    assert [name for name in files_in(whole.folder) if name.endswith(".tmp")] == []
