"""What saved adapters say of their run, to Kohya's tools and to Stability AI's specification."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Ended, anima_pipe
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save

from anima_pipe.adapters.hashes import kohya_hashes
from anima_pipe.dataset.config import held_out
from anima_pipe.demo import DEMO_TRANSFORMER, DEMO_VAE

Cached = dict[str, object]


def train(cached: Cached, folder: Path, **values: object) -> Ended:
    return anima_pipe("train", folder / "s.json", output_dir=folder, **cached, **values).ok()


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def read(metadata: dict[str, str], name: str) -> Any:
    return json.loads(metadata[name])


def data_of(path: Path) -> bytes:
    """Return what stands behind a file's header."""
    content = path.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


@pytest.fixture(scope="module")
def written(cached: Cached, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("metadata")
    train(
        cached,
        folder,
        network_dim=8,
        network_alpha=4,
        network_args=["rank_dropout=0.1"],
        optimizer_args=["weight_decay=0.05", "betas=(0.9,0.99)"],
        lr_scheduler="cosine",
        min_timestep=100,
        noise_offset=0.03,
        fp8_base=True,
    )
    return folder / "fox.safetensors"


def test_the_facts_of_a_run_are_there_by_kohyas_names(written: Path):
    assert (
        metadata_of(written).items()
        >= {
            "ss_output_name": "fox",
            "ss_network_module": "networks.lora_anima",
            "ss_network_dim": "8",
            "ss_network_alpha": "4.0",
            "ss_network_args": '{"rank_dropout": 0.1}',
            "ss_optimizer": "torch.optim.adamw.AdamW(weight_decay=0.05,betas=(0.9, 0.99))",
            "ss_learning_rate": "0.002",
            "ss_unet_lr": "None",
            "ss_lr_scheduler": "cosine",
            "ss_lr_warmup_steps": "0",
            "ss_seed": "1",
            "ss_fp8_base": "True",
            "ss_steps": "2",
            "ss_epoch": "1",
            "ss_max_train_steps": "2",
            "ss_num_epochs": "1",
            "ss_num_batches_per_epoch": "4",
            "ss_total_batch_size": "2",
            "ss_base_model_version": "anima",
            "ss_mixed_precision": "no",
            "ss_gradient_accumulation_steps": "1",
            "ss_timestep_sampling": "sigmoid",
            "ss_min_timestep": "100",
            "ss_noise_offset": "0.03",
            "ss_loss_type": "l2",
            "ss_v2": "False",
            "ss_num_validation_images": "0",
            "ss_validation_split": "0.0",
            "ss_validation_seed": "0",
            "ss_color_aug": "False",
            "ss_flip_aug": "False",
            "ss_random_crop": "False",
            "ss_shuffle_caption": "False",
            "ss_keep_tokens": "0",
        }.items()
    )


def test_the_dataset_is_described_without_where_it_is(written: Path, pictures: Path):
    metadata = metadata_of(written)
    captions = [path.read_text().strip() for path in sorted(pictures.glob("*.txt"))]
    tags = [tag.strip().lower() for caption in captions for tag in caption.split(",")]
    folder = pictures.name

    assert metadata["ss_num_train_images"] == "6"
    assert metadata["ss_num_reg_images"] == "0"
    assert metadata["ss_resolution"] == "(128, 128)"
    assert read(metadata, "ss_dataset_dirs") == {folder: {"n_repeats": 1, "img_count": 6}}
    frequency = read(metadata, "ss_tag_frequency")[folder]
    assert frequency == {tag: tags.count(tag) for tag in sorted(set(tags))}
    buckets = read(metadata, "ss_bucket_info")["buckets"].values()
    assert {tuple(bucket["resolution"]): bucket["count"] for bucket in buckets} == {
        (96, 160): 1,
        (128, 128): 5,
    }
    (dataset,) = read(metadata, "ss_datasets")
    assert dataset["num_train_images"] == 6
    assert dataset["subsets"][0]["image_dir"] == folder
    assert dataset["subsets"][0]["img_count"] == 6


def test_a_folder_of_two_datasets_is_listed_twice_and_counted_once(
    dataset: Path, pictures: Path, tmp_path: Path
):
    """Four of six pictures are trained on, and tags dropped in one variant are in another."""
    text = dataset.read_text() + "validation_split = 0.34\ncaption_tag_dropout_rate = 0.3\n"
    config = tmp_path / "dataset.toml"
    config.write_text(text + text.replace("resolution = 128", "resolution = 96"))
    given = {"dataset_config": config, "cache_dir": tmp_path / "cache"}
    train(given, tmp_path, max_train_steps=1, caption_variants=32)
    metadata, folder = metadata_of(tmp_path / "fox.safetensors"), pictures.name

    assert metadata["ss_num_train_images"] == "8"
    assert metadata["ss_num_validation_images"] == "4"
    listed = {"n_repeats": 1, "img_count": 4}
    assert read(metadata, "ss_dataset_dirs") == {folder: listed, f"{folder} (2)": listed}
    places = [place for place in range(6) if place not in held_out(6, 0.34, 0)]
    captions = [path.read_text().strip() for path in sorted(pictures.glob("*.txt"))]
    tags = [tag.strip().lower() for place in places for tag in captions[place].split(",")]
    frequency = read(metadata, "ss_tag_frequency")[folder]
    assert frequency == {tag: tags.count(tag) for tag in sorted(set(tags))}


def test_the_models_files_are_named_and_hashed(written: Path):
    metadata = metadata_of(written)
    for name, path in (("sd_model", DEMO_TRANSFORMER), ("vae", DEMO_VAE)):
        content = path.read_bytes()
        assert metadata[f"ss_{name}_name"] == path.name
        assert metadata[f"ss_new_{name}_hash"] == hashlib.sha256(content).hexdigest()
        piece = content[2**20 : 2**20 + 2**16]
        assert metadata[f"ss_{name}_hash"] == hashlib.sha256(piece).hexdigest()[:8]


def test_a_file_carries_the_hash_of_its_tensors_and_so_does_its_export(
    written: Path, tmp_path: Path
):
    half = tmp_path / "half.safetensors"
    anima_pipe("export-comfy", input=written, output=half, save_precision="bf16").ok()
    hashes = set()
    for path in (written, half):
        metadata = metadata_of(path)
        digest = hashlib.sha256(data_of(path)).hexdigest()
        assert metadata["sshs_model_hash"] == digest
        assert metadata["modelspec.hash_sha256"] == f"0x{digest}"
        hashes.add(digest)
    assert len(hashes) == 2
    assert metadata_of(half)["ss_tag_frequency"] == metadata_of(written)["ss_tag_frequency"]


def test_the_old_hash_looks_at_a_piece_of_the_file_with_kohyas_metadata_alone():
    tensors = {"a": torch.randn(2**19), "b": torch.randn(2**18, dtype=torch.float64)}
    own = {"ss_seed": "1", "ss_steps": "20"}
    content = save(tensors, own)
    expected = hashlib.sha256(content[2**20 : 2**20 + 2**16]).hexdigest()[:8]
    hashes = kohya_hashes(tensors, {**own, "modelspec.title": "changes nothing"})
    assert hashes["sshs_legacy_hash"] == expected
    length = int.from_bytes(content[:8], "little")
    assert hashes["sshs_model_hash"] == hashlib.sha256(content[8 + length :]).hexdigest()


def test_the_model_spec_says_what_the_file_is(written: Path):
    spec = {
        name.removeprefix("modelspec."): value
        for name, value in metadata_of(written).items()
        if name.startswith("modelspec.")
    }
    assert spec.pop("hash_sha256").startswith("0x")
    assert spec.pop("implementation_version").startswith("anima-pipe/")
    assert spec == {
        "sai_model_spec": "1.0.1",
        "architecture": "anima-preview/lora",
        "implementation": "https://huggingface.co/circlestone-labs/Anima",
        "title": "fox",
        "resolution": "128x128",
        "timestep_range": "100,1000",
    }


def test_the_users_own_words_are_in_the_model_spec(cached: Cached, tmp_path: Path):
    thumbnail = tmp_path / "fox.png"
    Image.new("RGB", (4, 4), "red").save(thumbnail)
    words = {
        "metadata_title": "The Fox",
        "metadata_author": "Somebody",
        "metadata_description": "A fox with a scarf.",
        "metadata_license": "CC0",
        "metadata_tags": "fox, scarf",
        "metadata_usage_hint": "Strength 0.8.",
        "metadata_merged_from": "two others",
        "metadata_trigger_phrase": "hoshimaru",
        "metadata_preprocessor": "none",
    }
    train(cached, tmp_path, **words, metadata_thumbnail=thumbnail, max_train_steps=1)
    metadata = metadata_of(tmp_path / "fox.safetensors")
    for option, words_given in words.items():
        assert metadata[f"modelspec.{option.removeprefix('metadata_')}"] == words_given
    kind, _, data = metadata["modelspec.thumbnail"].partition(";base64,")
    assert kind == "data:image/png"
    assert base64.b64decode(data) == thumbnail.read_bytes()


@pytest.mark.parametrize("name", ["missing.png", "s.json"])
def test_a_thumbnail_that_is_no_picture_is_refused_before_training(
    name: str, cached: Cached, tmp_path: Path
):
    (tmp_path / "s.json").write_text("{}")
    thumbnail = tmp_path / name
    ended = anima_pipe("train", output_dir=tmp_path, metadata_thumbnail=thumbnail, **cached)
    assert ended.code == 2
    assert f"metadata_thumbnail {thumbnail}" in ended.said


def test_no_metadata_leaves_what_reading_needs(cached: Cached, tmp_path: Path):
    ended = train(cached, tmp_path, no_metadata=True, metadata_title="The Fox", max_train_steps=1)
    assert "metadata_title (command line) has no effect beside no_metadata" in ended.said
    metadata = metadata_of(tmp_path / "fox.safetensors")
    told = {name for name in metadata if name.startswith(("ss_", "modelspec."))}
    assert told == {
        "ss_v2",
        "ss_base_model_version",
        "ss_network_module",
        "ss_network_dim",
        "ss_network_alpha",
        "ss_network_args",
    }
    anima_pipe(
        "export-comfy",
        input=tmp_path / "fox.safetensors",
        output=tmp_path / "exported.safetensors",
    ).ok()


def test_no_path_of_the_users_leaks_into_what_is_saved(
    dataset: Path, pictures: Path, tmp_path: Path
):
    telling = tmp_path / "jane-doe-of-elm-street"
    shutil.copytree(pictures, telling / "10_fox")
    models = telling / "models"
    models.mkdir()
    for path in (DEMO_TRANSFORMER, DEMO_VAE):
        shutil.copy(path, models / path.name)
    config = telling / "dataset.toml"
    config.write_text(dataset.read_text().replace(str(pictures), str(telling / "10_fox")))
    assert "10_fox" in config.read_text()
    (telling / "prompts.txt").write_text("fox --w 64 --h 64 --s 1 --l 1\n")
    Image.new("RGB", (4, 4), "red").save(telling / "fox.png")
    out = telling / "out"
    anima_pipe(
        "train",
        output_dir=out,
        dataset_config=config,
        cache_dir=telling / "cache",
        pretrained_model_name_or_path=models / DEMO_TRANSFORMER.name,
        vae=models / DEMO_VAE.name,
        sample_prompts=telling / "prompts.txt",
        metadata_thumbnail=telling / "fox.png",
        max_train_steps=1,
        ema_decay=0.9,
    ).ok()
    exported = telling / "exported.safetensors"
    anima_pipe("export-comfy", input=out / "fox.safetensors", output=exported).ok()
    saved = [exported, *out.rglob("*.safetensors"), *out.rglob("*.png")]
    assert len(saved) == 5
    assert b"10_fox" in (out / "fox.safetensors").read_bytes()
    for path in saved:
        content = path.read_bytes()
        assert b"jane-doe" not in content
        assert str(tmp_path).encode() not in content
