"""What the options of memory, precision and caches do, seen by watching the networks at work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import anima_pipe, demo_pictures, files_in, write_dataset
from picture_files import forget_inode_dates
from PIL import Image
from torch.nn.modules.module import register_module_forward_pre_hook
from worker_tasks import workers_of

from anima_pipe.model.blocks import TransformerBlock
from anima_pipe.shards import open_cache

Cached = dict[str, object]


@contextmanager
def watching(*kinds: type[torch.nn.Module]) -> Iterator[list[tuple[torch.nn.Module, Any]]]:
    """Note every call of modules of these kinds, with its first argument."""
    calls: list[tuple[torch.nn.Module, Any]] = []

    def note(module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        if isinstance(module, kinds):
            calls.append((module, arguments[0] if arguments else None))

    handle = register_module_forward_pre_hook(note)
    try:
        yield calls
    finally:
        handle.remove()


@pytest.fixture
def uncached(pictures: Path, tmp_path: Path) -> dict[str, object]:
    """Options that name the pictures, and a place for caches that are not there yet."""
    file = write_dataset(tmp_path / "dataset.toml", pictures, shuffle_caption=True)
    return {"dataset_config": file, "cache_dir": tmp_path / "cache"}


def test_cache_dir_is_where_the_caches_are(uncached: dict[str, object], tmp_path: Path):
    anima_pipe("cache-latents", **uncached | {"cache_dir": tmp_path / "elsewhere"}).ok()

    assert files_in(tmp_path / "elsewhere")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("given", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_cache_dtype_is_that_of_the_cached_tensors(
    given: str, dtype: torch.dtype, uncached: dict[str, object]
):
    anima_pipe("cache-latents", **uncached, cache_dtype=given).ok()
    anima_pipe("encode-text", **uncached, cache_dtype=given, caption_variants=1).ok()

    cache = open_cache(Path(str(uncached["cache_dir"])))
    assert {cache.latents[key].dtype for key in cache.latents} == {dtype}
    assert {cache.text[key].qwen_hidden.dtype for key in cache.text} == {dtype}


def largest_batch(calls: list[tuple[torch.nn.Module, Any]]) -> int:
    return max(argument.shape[0] for _, argument in calls)


@pytest.mark.parametrize("size", [1, 3])
def test_vae_batch_size_pictures_are_encoded_at_once(size: int, uncached: dict[str, object]):
    with watching(torch.nn.Conv2d) as calls:
        anima_pipe("cache-latents", **uncached, vae_batch_size=size).ok()

    assert largest_batch(calls) == size


@pytest.mark.parametrize("size", [1, 3])
def test_text_encoder_batch_size_captions_are_encoded_at_once(
    size: int, uncached: dict[str, object]
):
    with watching(torch.nn.Embedding) as calls:
        anima_pipe("encode-text", **uncached, text_encoder_batch_size=size).ok()

    assert largest_batch(calls) == size


@pytest.mark.parametrize("spelling", ["max_data_loader_n_workers", "num_workers"])
def test_max_data_loader_n_workers_processes_decode_pictures(
    spelling: str, uncached: dict[str, object]
):
    def processes(count: int) -> int:
        seen: set[int | None] = set()
        with register_module_forward_pre_hook(
            lambda *_: seen.update(child.pid for child in workers_of())
        ):
            given = {"max_data_loader_n_workers": None, spelling: count, "cache_dtype": "fp32"}
            folder = Path(str(uncached["cache_dir"])) / str(count)
            anima_pipe("cache-latents", **uncached | given | {"cache_dir": folder}).ok()
        return len(seen)

    assert processes(0) == 0
    assert processes(1) == 1


def test_caption_variants_of_each_caption_are_encoded(uncached: dict[str, object]):
    anima_pipe("encode-text", **uncached, caption_variants=3).ok()

    # Six captions, and the empty one.
    assert len(list(open_cache(Path(str(uncached["cache_dir"]))).text)) == 6 * 3 + 1


def test_rehash_notices_a_picture_that_was_changed_behind_its_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    forget_inode_dates(monkeypatch)
    folder = demo_pictures(tmp_path / "pictures", every=18)
    given = {
        "dataset_config": write_dataset(tmp_path / "dataset.toml", folder),
        "cache_dir": tmp_path / "cache",
    }
    picture = folder / "new.bmp"
    picture.with_suffix(".txt").write_text("fox")
    Image.new("RGB", (128, 128), (1, 2, 3)).save(picture)
    os.utime(picture, ns=(10**18, 10**18))
    anima_pipe("cache-latents", **given).ok()
    # Written into the same file: name, size and date stay as they were.
    with picture.open("r+b") as file:
        file.seek(-3, 2)
        file.write(bytes([9, 9, 9]))
    os.utime(picture, ns=(10**18, 10**18))

    def encoded(**more: object) -> int:
        return (
            anima_pipe("cache-latents", tmp_path / "s.json", **given, **more)
            .ok()
            .summary["encoded"]
        )

    assert encoded() == 0
    assert encoded(rehash=True) == 1


def train(cached: Cached, folder: Path, **values: object) -> list[tuple[torch.nn.Module, Any]]:
    """Train one step; return the calls of the model's blocks and of plain linear layers."""
    with watching(TransformerBlock, torch.nn.Linear) as calls:
        given = {"max_train_steps": 1, **values}
        anima_pipe("train", output_dir=folder, **cached, **given).ok()
    return calls


def test_gradient_checkpointing_runs_each_block_again_for_its_gradients(
    cached: Cached, tmp_path: Path
):
    plain, again = (
        sum(not isinstance(module, torch.nn.Linear) for module, _ in train(cached, tmp_path, **v))
        for v in ({}, {"gradient_checkpointing": True})
    )

    assert again == 2 * plain > 0


def kernels() -> dict[str, object]:
    """What torch is asked for."""
    return {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "only warns": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cuDNN's attention": torch.backends.cuda.cudnn_sdp_enabled(),
        "cuDNN's trials": torch.backends.cudnn.benchmark,
        "cuBLAS's memory": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    }


def test_deterministic_is_asked_of_torch_while_training_alone(cached: Cached, tmp_path: Path):
    before = kernels()
    files: list[bytes] = []
    seen: list[dict[str, object]] = []
    for number, given in enumerate(({}, {"deterministic": True})):
        handle = register_module_forward_pre_hook(lambda *_: seen.append(kernels()))
        try:
            anima_pipe("train", output_dir=tmp_path / f"{number}", **cached, **given).ok()
        finally:
            handle.remove()
        asked = dict(before)
        if given:
            asked |= {"deterministic": True, "cuDNN's attention": False}
            asked |= {"cuBLAS's memory": ":4096:8"}
        assert seen
        assert all(now == asked for now in seen)
        assert kernels() == before
        seen.clear()
        files.append((tmp_path / f"{number}" / "fox.safetensors").read_bytes())
    # On a processor it changes nothing.
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("given", "dtype"), [("no", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)]
)
def test_mixed_precision_is_that_of_the_frozen_weights(
    given: str, dtype: torch.dtype, cached: Cached, tmp_path: Path
):
    calls = train(cached, tmp_path, mixed_precision=given)

    frozen = [m.weight for m, _ in calls if isinstance(m, torch.nn.Linear)]
    assert dtype in {weight.dtype for weight in frozen if not weight.requires_grad}


def test_device_is_where_weights_are_put(cached: Cached, tmp_path: Path):
    calls = train(cached, tmp_path, device="cpu")
    ended = anima_pipe("train", output_dir=tmp_path, **cached | {"device": "cuda:77"})

    linears = {m.weight.device.type for m, _ in calls if isinstance(m, torch.nn.Linear)}
    assert linears == {"cpu"}
    assert ended.code == 2
    assert "cuda:77" in ended.said
