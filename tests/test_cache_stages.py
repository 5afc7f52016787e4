"""What the caching stages do with a cache that is not as it should be, or that others fill too."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from commands import anima_pipe, write_dataset
from PIL import Image
from safetensors.torch import load_file, save_file

from anima_pipe import demo
from anima_pipe.buckets import BucketRules
from anima_pipe.dataset.config import DatasetConfig, SubsetConfig
from anima_pipe.dataset.pictures import find_pictures
from anima_pipe.dataset.survey import survey_pictures
from anima_pipe.errors import CacheError, DataError
from anima_pipe.fill import CacheSettings, LatentSettings, fill_latents
from anima_pipe.shards import open_cache
from anima_pipe.shards.sidecar import index_path

Options = dict[str, object]
STAGES = [("cache-latents", "latents"), ("encode-text", "text")]


@pytest.fixture
def data(dataset: Path, tmp_path: Path) -> Options:
    """Options that name the small dataset and a cache of this test's own."""
    return {"dataset_config": dataset, "cache_dir": tmp_path / "cache"}


def run(stage: str, data: Options, **more: object):
    summary = Path(str(data["cache_dir"])).parent / "summary.json"
    ended = anima_pipe(stage, summary, **data, **more).ok()
    assert ended.summary is not None
    return ended.summary, ended.said


def damage_one_sample(cache: Path, kind: str) -> str:
    """Flip a bit in a sample's tensors; return its key."""
    store = getattr(open_cache(cache), kind)
    key = list(store)[-1]  # the first text is empty
    (tar,) = cache.glob(f"{kind}-*/*.tar")
    content = bytearray(tar.read_bytes())
    content[content.index(f"{key}.safetensors".encode()) + 512 + 300] ^= 1
    tar.write_bytes(content)
    return key


def test_texts_beyond_fp16_are_kept_in_bf16_counted_and_said(data, tmp_path):
    qwen = Path(shutil.copytree(demo.DEMO_QWEN, tmp_path / "qwen"))
    (weights,) = qwen.glob("*.safetensors")
    tensors = load_file(weights)
    (norm,) = (name for name in tensors if name.endswith("norm.weight") and "layers" not in name)
    tensors[norm] = tensors[norm] * 1e6
    weights.unlink()  # it is mapped, and must not be written to
    save_file(tensors, weights)
    summary, said = run("encode-text", data, qwen3=qwen)
    assert summary["kept_in_bf16"] == summary["encoded"] - 1  # all but the empty caption
    assert f"({summary['kept_in_bf16']} in bf16: beyond fp16)" in said


@pytest.mark.parametrize(("stage", "kind"), STAGES)
def test_a_damaged_sample_is_named_and_encoded_anew_by_the_next_run(data, stage, kind):
    first, _ = run(stage, data)
    cache = Path(str(data["cache_dir"]))
    key = damage_one_sample(cache, kind)
    with pytest.raises(CacheError, match=key):
        getattr(open_cache(cache), kind)[key]

    mended, said = run(stage, data)
    assert (mended["encoded"], mended["reused"]) == (1, first["encoded"] - 1)
    assert mended["problems"] == 1
    assert f"sample {key}: damaged" in said

    store = getattr(open_cache(cache), kind)
    assert len(store) == first["encoded"]
    assert store.verify() == []
    again, said = run(stage, data)
    assert (again["encoded"], again["problems"]) == (0, 0)
    assert "wrong in the cache" not in said


def test_a_lost_sidecar_is_rebuilt_said_and_counted(data):
    first, _ = run("cache-latents", data)
    (tar,) = Path(str(data["cache_dir"])).glob("latents-*/*.tar")
    index_path(tar).unlink()
    again, said = run("cache-latents", data)
    assert (again["encoded"], again["reused"], again["problems"]) == (0, first["encoded"], 1)
    assert f"{tar}: had no sidecar" in said


def launched(monkeypatch: pytest.MonkeyPatch, number: int, processes: int) -> None:
    """Be one of several processes, as accelerate and torchrun say it."""
    monkeypatch.setenv("RANK", str(number))
    monkeypatch.setenv("WORLD_SIZE", str(processes))


@pytest.mark.parametrize(("stage", "kind"), STAGES)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_processes_share_the_work_without_talking(data, cached, stage, kind, order, monkeypatch):
    alone = getattr(open_cache(Path(str(cached["cache_dir"]))), kind)
    counts: list[int] = []
    for number in order:
        launched(monkeypatch, number, 3)
        name = Path(str(data["cache_dir"])).parent / "summary.json"
        anima_pipe(stage, name, **data).ok()
        own = name.with_name(f"summary.rank{number}.json") if number else name
        summary = json.loads(own.read_text())
        assert summary["encoded"] + summary["reused"] + summary["elsewhere"] == len(alone)
        counts.append(summary["encoded"])

    together = getattr(open_cache(Path(str(data["cache_dir"]))), kind)
    assert sum(counts) == len(alone)
    assert sum(count > 0 for count in counts) > 1
    assert together.keys() == alone.keys()
    for key in alone:
        ours, theirs = (store[key] for store in (together, alone))
        if kind == "text":
            assert torch.equal(ours.t5_ids, theirs.t5_ids)
            ours, theirs = ours.qwen_hidden, theirs.qwen_hidden
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("number", "processes"), [("2", "2"), ("0", "many"), ("-1", "2")])
def test_an_environment_that_makes_no_sense_is_an_error(data, monkeypatch, number, processes):
    monkeypatch.setenv("RANK", number)
    monkeypatch.setenv("WORLD_SIZE", processes)
    ended = anima_pipe("encode-text", **data)
    assert ended.code == 2
    assert f"RANK={number} of WORLD_SIZE={processes}" in ended.said


def test_random_crops_are_cached_as_latents_of_their_own(pictures, tmp_path):
    # Areas whose sides fit the pictures' aspect badly, so that there is something to cut off.
    dataset = write_dataset(tmp_path / "dataset.toml", pictures, random_crop=True)
    dataset.write_text(dataset.read_text().replace("enable_bucket = true", "enable_bucket = false"))
    data: Options = {"dataset_config": dataset, "cache_dir": tmp_path / "cache"}
    two, _ = run("cache-latents", data, crop_variants=2)
    three, _ = run("cache-latents", data, crop_variants=3)
    assert three["reused"] == two["encoded"]
    latents = open_cache(tmp_path / "cache").latents
    crops = [(latents.metadata(key)["image"], *latents.metadata(key)["crop"]) for key in latents]
    assert len(set(crops)) == len(latents) == two["encoded"] + three["encoded"]
    assert len({image for image, *_ in crops}) < two["encoded"]
    nothing, _ = run("cache-latents", data, crop_variants=3)
    assert (nothing["encoded"], nothing["reused"]) == (0, len(latents))


@pytest.mark.parametrize("leaves_mount_point", [False, True])
def test_a_disk_that_is_unplugged_ends_the_stage_and_what_is_encoded_is_kept(
    pictures, tmp_path, leaves_mount_point
):
    folders = [tmp_path / name for name in ("first", "then")]
    for folder, suffix in zip(folders, (".png", ".jpg"), strict=True):
        folder.mkdir()
        for path in pictures.glob(f"*{suffix}"):
            shutil.copy(path, folder)
    subsets = tuple(SubsetConfig(image_dir=folder) for folder in folders)
    # Without buckets all have one size: they are encoded in the order of their names.
    rules = BucketRules(resolution=(64, 64), enable_bucket=False)
    found = find_pictures([DatasetConfig(subsets=subsets, buckets=rules)])
    latents = survey_pictures(found, caption_variants=0).latents
    here = len(list(folders[0].iterdir()))
    assert 0 < here < len(latents)
    shutil.rmtree(folders[1])
    if leaves_mount_point:
        folders[1].mkdir()
    cache = CacheSettings(folder=tmp_path / "cache", device="cpu")
    with pytest.raises(DataError, match=r"then are no longer there\n  Fix: connect the disk"):
        fill_latents(latents, LatentSettings(cache=cache, vae=demo.DEMO_VAE, workers=0))
    assert len(open_cache(tmp_path / "cache").latents) == here


def one_pixel(folder: Path, _: Options) -> None:
    path = next(folder.glob("*.png"))
    with Image.open(path) as picture:
        changed = picture.convert("RGB")
    changed.putpixel((0, 0), (changed.getpixel((0, 0))[0] ^ 1, 0, 0))
    changed.save(path)


def touched(folder: Path, _: Options) -> None:
    for path in folder.iterdir():
        path.touch()


def moved(folder: Path, options: Options) -> None:
    folder.rename(folder.with_name("moved"))
    options["dataset_config"] = write_dataset(
        folder.parent / "moved.toml", folder.with_name("moved")
    )


def copied(folder: Path, options: Options) -> None:
    for path in list(folder.glob("*.png")):
        shutil.copy(path, path.with_stem(f"copy_of_{path.stem}"))


def other_filter(folder: Path, options: Options) -> None:
    options["dataset_config"] = write_dataset(
        folder.parent / "filter.toml", folder, resize_interpolation="lanczos"
    )


def other_dtype(_: Path, options: Options) -> None:
    options["cache_dtype"] = "bf16"


def other_weights(folder: Path, options: Options) -> None:
    tensors = load_file(demo.DEMO_VAE)
    name = next(name for name in tensors if name.startswith("encoder") and "bias" in name)
    tensors[name] = tensors[name] + 1e-3
    save_file(tensors, folder.parent / "other.safetensors")
    options["vae"] = folder.parent / "other.safetensors"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (touched, 0),
        (moved, 0),
        (copied, 0),
        (one_pixel, 1),
        (other_filter, 6),
        (other_dtype, 6),
        (other_weights, 6),
    ],
)
def test_what_changes_a_latent_encodes_it_anew_and_nothing_else_does(
    pictures, cached, tmp_path, change, expected
):
    folder = Path(shutil.copytree(pictures, tmp_path / "pictures"))
    cache = shutil.copytree(str(cached["cache_dir"]), tmp_path / "cache")
    options: Options = {
        "dataset_config": write_dataset(tmp_path / "dataset.toml", folder),
        "cache_dir": cache,
    }
    change(folder, options)
    summary, _ = run("cache-latents", options)
    assert summary["encoded"] == expected
    again, _ = run("cache-latents", options)
    assert again["encoded"] == 0
