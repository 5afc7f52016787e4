"""The caching stages as processes of their own: several at once, launched together."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import MODEL, ROOT, SCRIPTS, anima_pipe, options, run_apart, write_dataset
from PIL import Image

from anima_pipe.records import TextCondition
from anima_pipe.shards import open_cache

KINDS = {"cache-latents": "latents", "encode-text": "text"}
MODULES = {
    "cache-latents": "stages.bucket_and_cache_latents",
    "encode-text": "stages.encode_text_qwen_t5",
}
ENCODERS = {"cache-latents": ("vae",), "encode-text": ("qwen3", "t5_tokenizer_dir")}
PICTURES = 40


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dataset.toml of pictures that it takes some time to encode."""
    folder = tmp_path_factory.mktemp("many") / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(PICTURES):
        pixels = rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        tags = ", ".join(f"tag {number}" for number in range(number % 7))
        (folder / f"{number}.txt").write_text(f"fox, number {number}, {tags}")
    return write_dataset(folder.parent / "dataset.toml", folder)


def arguments(stage: str, dataset: Path, cache: Path) -> list[str]:
    encoders = {name: MODEL[name] for name in ENCODERS[stage]}
    workers = {"num_workers": 1} if stage == "cache-latents" else {}
    place = {"dataset_config": dataset, "cache_dir": cache, "device": "cpu"}
    return options(**encoders, **workers, **place)


def start(stage: str, dataset: Path, cache: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", MODULES[stage], *arguments(stage, dataset, cache)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=ROOT, **quiet)


def samples(stage: str, cache: Path) -> dict[str, torch.Tensor]:
    """Every sample of a cache, having made sure that all are whole."""
    store = getattr(open_cache(cache), KINDS[stage])
    assert store.verify() == []
    values = {key: store[key] for key in store}
    return {
        key: value.qwen_hidden if isinstance(value, TextCondition) else value
        for key, value in values.items()
    }


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.slow
@pytest.mark.parametrize("stage", KINDS)
def test_two_runs_at_once_leave_one_whole_cache(stage, many, tmp_path):
    cache = tmp_path / "cache"
    both = [start(stage, many, cache) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    alone = anima_pipe(stage, tmp_path / "s.json", dataset_config=many, cache_dir=cache).ok()
    assert alone.summary is not None
    assert (alone.summary["encoded"], alone.summary["problems"]) == (0, 0)
    anima_pipe(stage, dataset_config=many, cache_dir=tmp_path / "one").ok()
    assert_same(samples(stage, cache), samples(stage, tmp_path / "one"))


@pytest.mark.slow
@pytest.mark.parametrize("stage", KINDS)
def test_two_launched_processes_cache_what_one_does(stage, many, tmp_path):
    launch = (
        *(SCRIPTS / "accelerate", "launch", "--multi_gpu", "--num_processes", "2"),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
        *("--main_process_port", "0", "-m", MODULES[stage]),
    )
    run_apart(*launch, *arguments(stage, many, tmp_path / "two")).ok()
    anima_pipe(stage, dataset_config=many, cache_dir=tmp_path / "one").ok()
    assert_same(samples(stage, tmp_path / "two"), samples(stage, tmp_path / "one"))
    assert len(list((tmp_path / "two").rglob("*.tar"))) == 2
