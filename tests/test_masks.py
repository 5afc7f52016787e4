"""Masks: which parts of the pictures are trained on."""

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from commands import MODEL, anima_pipe, assert_one_error, tensors_of, write_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_files import photo, saved, whole
from PIL import Image

from anima_pipe.buckets import BucketRules
from anima_pipe.cli.main import main
from anima_pipe.dataset.config import DatasetConfig, SubsetConfig
from anima_pipe.dataset.pictures import find_pictures
from anima_pipe.dataset.survey import survey_pictures
from anima_pipe.records import BucketChoice, LatentRequest, MaskRequest
from anima_pipe.runtime import LOGGER
from anima_pipe.shards import mask_key, open_cache
from anima_pipe.source.images import load_mask, load_pixels, read_image_file

SOURCES = ["folder", "alpha"]


def mask_of(path, choice=None, channel="red", **geometry):
    """The mask in a file, Float32[height / 8, width / 8]."""
    image = read_image_file(path)
    choice = choice or whole(image.size)
    return load_mask(
        MaskRequest(key="", picture=path, image=image, channel=channel, choice=choice, **geometry)
    )


@settings(max_examples=25)
@given(
    resized=st.tuples(st.integers(64, 200), st.integers(64, 160)),
    flipped=st.booleans(),
    interpolation=st.sampled_from([None, "area", "lanczos", "nearest"]),
    data=st.data(),
)
def test_a_mask_lies_over_its_picture_wherever_that_is_brought(
    tmp_path_factory, resized, flipped, interpolation, data
):
    path = saved(tmp_path_factory.mktemp("m"), photo().convert("L"), "gray.png")
    crop = tuple(data.draw(st.integers(0, side - 64)) for side in resized)
    geometry = {
        "choice": BucketChoice(bucket=(64, 64), resized=resized, crop=crop),
        "flipped": flipped,
        "interpolation": interpolation,
    }
    pixels = load_pixels(LatentRequest(key="", image=read_image_file(path), **geometry))
    averaged = pixels[..., 0].reshape(8, 8, 8, 8).astype(np.float64).mean(axis=(1, 3)) / 255
    assert np.allclose(mask_of(path, **geometry), averaged, atol=1e-6)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P", "LA", "RGBA", "CMYK", "I;16"])
def test_a_mask_image_may_be_of_any_mode(tmp_path, mode):
    half = Image.new("L", (32, 16), 0)
    half.paste(255, (8, 0, 32, 16))
    picture = half.convert("I").point(lambda v: v * 257).convert(mode) if mode == "I;16" else None
    path = saved(tmp_path, picture or half.convert(mode), "m.tif")
    assert mask_of(path).tolist() == [[0, 1, 1, 1]] * 2


def test_the_red_channel_of_a_mask_image_counts(tmp_path):
    path = saved(tmp_path, Image.new("RGB", (8, 8), (51, 255, 255)), "m.png")
    assert mask_of(path).tolist() == [[pytest.approx(0.2)]]


def test_transparent_parts_of_a_mask_image_count_for_nothing(tmp_path):
    path = saved(tmp_path, Image.new("RGBA", (8, 8), (255, 255, 255, 0)), "m.png")
    assert mask_of(path).tolist() == [[0.0]]


@pytest.mark.parametrize(
    ("colour", "mode", "expected"),
    [((9, 9, 9, 51), "RGBA", 0.2), ((9, 9, 9), "RGB", 1.0), (7, "L", 1.0)],
)
def test_a_picture_counts_as_far_as_it_is_opaque(tmp_path, colour, mode, expected):
    path = saved(tmp_path, Image.new(mode, (8, 8), colour), "p.png")
    assert mask_of(path, channel="alpha").tolist() == [[pytest.approx(expected)]]


def test_mask_keys_never_change_between_versions():
    choice = BucketChoice(bucket=(832, 1216), resized=(832, 1248), crop=(0, 16))
    fields = {"content": "9f86d081884c7d65", "channel": "red", "choice": choice}
    plain = mask_key(**fields, flipped=False, interpolation=None)
    assert plain == "e2938c4ed2ee54a533866600170d215f"
    others = [
        mask_key(**(fields | {"channel": "alpha"}), flipped=False, interpolation=None),
        mask_key(**(fields | {"content": "00"}), flipped=False, interpolation=None),
        mask_key(**fields, flipped=True, interpolation=None),
        mask_key(**fields, flipped=False, interpolation="area"),
    ]
    assert len({plain, *others}) == 5


def bitmap(width, height):
    """Bytes of a BMP of one colour, the same wherever it is made."""
    size = 54 + 3 * width * height
    head = struct.pack("<2sIIIIiiHHIIiiII", b"BM", size, 0, 54, 40, width, height, 1, 24, *[0] * 6)
    return head + b"\x20\x40\x60" * width * height


@pytest.mark.parametrize("masks", ["none", *SOURCES])
def test_with_masks_or_without_a_latent_has_the_key_that_it_always_had(tmp_path, masks):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "one.bmp").write_bytes(bitmap(128, 64))
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "one.bmp").write_bytes(bitmap(128, 64))
    subset = SubsetConfig(
        image_dir=tmp_path / "pictures",
        alpha_mask=masks == "alpha",
        mask_dir=tmp_path / "masks" if masks == "folder" else None,
    )
    rules = BucketRules(resolution=(128, 128), min_bucket_reso=64, max_bucket_reso=256)
    dataset = DatasetConfig(subsets=(subset,), buckets=rules)
    survey = survey_pictures(find_pictures([dataset]), caption_variants=0)
    assert list(survey.latents) == ["4293e25cf91fee3767a370b95a5802af"]
    assert len(survey.masks) == (masks != "none")


Options = dict[str, object]


def with_masks(
    source: str, pictures: Path, folder: Path, brightness: int = 255
) -> tuple[Options, Options]:
    """Make a copy of the small dataset with masks of one brightness.

    Returns:
        Options that train on it, with the masks and without.
    """
    copied, masks = folder / "pictures", folder / "masks"
    shutil.copytree(pictures, copied)
    masks.mkdir()
    for path in [path for path in copied.iterdir() if path.suffix != ".txt"]:
        with Image.open(path) as picture:
            layer = Image.new("L", picture.size, brightness)
            if source == "folder":
                layer.save(masks / f"{path.stem}.webp", lossless=True)
            else:
                opaque = picture.convert("RGB")
                opaque.putalpha(layer)
                path.unlink()
                opaque.save(path.with_suffix(".png"))
    keys = {"conditioning_data_dir": str(masks)} if source == "folder" else {"alpha_mask": True}
    options: Options = {"masked_loss": True} if source == "folder" else {}
    place = {"cache_dir": folder / "cache"}
    masked = write_dataset(folder / "masked.toml", copied, **keys)
    plain = write_dataset(folder / "plain.toml", copied)
    return options | place | {"dataset_config": masked}, place | {"dataset_config": plain}


def summary_of(stage: str, options: Options):
    summary = Path(str(options["cache_dir"])).parent / "summary.json"
    ended = anima_pipe(stage, summary, **options).ok()
    assert ended.summary is not None
    return ended.summary, ended.said


def cache(*words: object):
    result = CliRunner().invoke(main, ["cache", *map(str, words)])
    LOGGER.handlers.clear()
    return result


@pytest.mark.parametrize("source", SOURCES)
def test_where_masks_are_black_nothing_is_learnt(source, pictures, tmp_path):
    options, _ = with_masks(source, pictures, tmp_path, brightness=0)
    summary, said = summary_of("train", options | {"output_dir": tmp_path / "out"})
    assert summary["first_loss"] == summary["final_loss"] == 0
    assert "masks       of 6 images" in said


@pytest.mark.parametrize("source", SOURCES)
def test_where_masks_are_white_everything_is_learnt(source, pictures, tmp_path):
    options, plain = with_masks(source, pictures, tmp_path)
    masked = anima_pipe("train", tmp_path / "m.json", output_dir=tmp_path / "m", **options)
    whole = anima_pipe("train", tmp_path / "w.json", output_dir=tmp_path / "w", **plain)
    ours, theirs = tensors_of(masked), tensors_of(whole)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)


def test_a_changed_mask_is_cached_anew_and_no_latent_with_it(pictures, tmp_path):
    options, plain = with_masks("folder", pictures, tmp_path)
    first, _ = summary_of("cache-latents", plain)
    assert (first["encoded"], first["masks_encoded"]) == (6, 0)
    assert not list((tmp_path / "cache").glob("masks-*"))
    with_them, said = summary_of("cache-latents", options)
    assert (with_them["encoded"], with_them["reused"], with_them["masks_encoded"]) == (0, 6, 3)
    assert "masks     3 encoded" in said  # of three sizes: the same file is the same mask
    again, said = summary_of("cache-latents", options)
    assert (again["encoded"], again["masks_encoded"], again["masks_reused"]) == (0, 0, 3)
    path = next((tmp_path / "masks").iterdir())
    with Image.open(path) as mask:
        Image.new("L", mask.size, 128).save(path, lossless=True)
    changed, _ = summary_of("cache-latents", options)
    assert (changed["encoded"], changed["masks_encoded"]) == (0, 1)
    masks = open_cache(tmp_path / "cache").masks
    values = sorted(masks[key].unique().item() for key in masks)
    assert values == [pytest.approx(128 / 255, abs=1e-3), 1, 1, 1]


def test_each_crop_and_orientation_has_a_mask_of_its_own(pictures, tmp_path):
    options, _ = with_masks("folder", pictures, tmp_path)
    for path in (tmp_path / "masks").iterdir():
        with Image.open(path) as mask:
            ramp = Image.linear_gradient("L").rotate(90).resize(mask.size)
        ramp.save(path, lossless=True)
    dataset = Path(str(options["dataset_config"]))
    dataset.write_text(dataset.read_text() + "flip_aug = true\nrandom_crop = true\n")
    dataset.write_text(dataset.read_text().replace("enable_bucket = true", "enable_bucket = false"))
    summary, _ = summary_of("cache-latents", options | {"crop_variants": 2})
    held = open_cache(tmp_path / "cache")
    assert summary["encoded"] == len(held.latents)
    by_place: dict[str, set[bool]] = {}
    for key in held.masks:
        noted = held.masks.metadata(key)
        by_place.setdefault(str(noted["crop"]), set()).add(noted["flipped"])
        rising = held.masks[key][0].float().diff().sum() > 0
        assert rising == (not noted["flipped"])
    assert set(map(frozenset, by_place.values())) == {frozenset({False, True})}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_processes_share_the_masks_without_talking(pictures, tmp_path, order, monkeypatch):
    options, _ = with_masks("alpha", pictures, tmp_path)
    counts = []
    for number in order:
        monkeypatch.setenv("RANK", str(number))
        monkeypatch.setenv("WORLD_SIZE", "2")
        anima_pipe("cache-latents", tmp_path / "s.json", **options).ok()
        counts.append(len(open_cache(tmp_path / "cache").masks))
    assert 0 < counts[0] < counts[1] == 6


def test_the_cache_commands_know_masks(pictures, tmp_path):
    options, plain = with_masks("folder", pictures, tmp_path, brightness=51)
    summary_of("cache-latents", options)
    place = ("--cache_dir", tmp_path / "cache")
    assert "masks-area-average-fp16" in cache("stats", *place).stdout
    assert "3 samples in 1 shard" in cache("stats", *place).stdout

    files = tmp_path / "train_args.toml"
    files.write_text(f'dataset_config = "{options["dataset_config"]}"\nmasked_loss = true\n')
    again = cache("verify", *place, "--config_file", files, "--reencode", 9, "--vae", MODEL["vae"])
    assert again.exit_code == 0, again.output
    assert "masks-area-average-fp16: 3 encoded again, 0 differ" in again.stdout

    assert "would remove 0 samples" in cache("gc", files, *place).stdout
    (tar,) = (tmp_path / "cache").glob("masks-*/*.tar")
    content = bytearray(tar.read_bytes())
    content[content.index(b".safetensors") + 512 + 100] ^= 1
    tar.write_bytes(content)
    found = cache("verify", *place)
    assert found.exit_code == 1
    assert "1 problem\n" in found.stdout
    mended, _ = summary_of("cache-latents", options)
    assert (mended["problems"], mended["masks_encoded"]) == (1, 1)

    removed = cache("gc", plain["dataset_config"], *place, "--delete")
    assert "removed 4 samples" in removed.stdout  # the damaged one too
    assert not list((tmp_path / "cache").glob("masks-*/*.tar"))


def test_pictures_without_a_mask_are_an_error_that_names_them(pictures, tmp_path):
    options, _ = with_masks("folder", pictures, tmp_path)
    gone = min((tmp_path / "masks").iterdir())
    gone.unlink()
    ended = anima_pipe("cache-latents", **options)
    assert_one_error(ended, "1 of 6 pictures without a mask", gone.stem)


def test_a_mask_of_another_size_leaves_its_picture_out(pictures, tmp_path):
    options, _ = with_masks("folder", pictures, tmp_path)
    path = min((tmp_path / "masks").iterdir())
    Image.new("L", (10, 20)).save(path)
    summary, said = summary_of("cache-latents", options)
    assert (summary["skipped"], summary["encoded"]) == (1, 5)
    assert f"{path} is 10x20 pixels" in said


def test_a_mask_that_cannot_be_decoded_leaves_its_pictures_out_of_the_training(pictures, tmp_path):
    options, _ = with_masks("folder", pictures, tmp_path)
    paths = sorted((tmp_path / "masks").iterdir())
    with Image.open(paths[0]) as mask:
        noise = np.random.default_rng(0).integers(0, 255, mask.size[::-1], dtype=np.uint8)
    for path in paths:
        with Image.open(path) as mask:
            alike = mask.size == noise.shape[::-1]
        if alike:  # the same bytes: they share a key
            Image.fromarray(noise).save(path.with_suffix(".png"))
            path.unlink()
            path.with_suffix(".png").write_bytes(path.with_suffix(".png").read_bytes()[:-200])
    broken = list((tmp_path / "masks").glob("*.png"))
    _, said = summary_of("train", options | {"output_dir": tmp_path / "out"})
    assert 0 < len(broken) < 6
    assert f"images      {6 - len(broken)}," in said
    assert "left out 1" in said


def test_a_run_does_not_go_on_under_other_masks(pictures, tmp_path):
    options, _ = with_masks("folder", pictures, tmp_path)
    run = options | {"output_dir": tmp_path / "out", "save_state": True, "save_every_n_steps": 1}
    anima_pipe("train", **run).ok()
    for path in (tmp_path / "masks").iterdir():
        with Image.open(path) as mask:
            Image.new("L", mask.size, 128).save(path, lossless=True)
    ended = anima_pipe("train", **(run | {"resume": "latest", "max_train_steps": 3}))
    assert_one_error(ended, "dataset")


def test_mask_images_need_masked_loss(pictures, tmp_path):
    options, _ = with_masks("folder", pictures, tmp_path)
    ended = anima_pipe("cache-latents", **(options | {"masked_loss": None}))
    assert_one_error(ended, "conditioning_data_dir", "masked_loss = true")


def test_masked_loss_without_any_mask_is_warned_of(dataset, tmp_path):
    ended = anima_pipe(
        "cache-latents", dataset_config=dataset, cache_dir=tmp_path, masked_loss=True
    )
    assert "masked_loss changes nothing" in ended.ok().said
