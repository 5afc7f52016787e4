"""A small dataset whose caches are filled once, and hubs that have the released files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from commands import BUCKETS, anima_pipe, demo_pictures, write_dataset
from fake_hubs import Hubs
from hypothesis import HealthCheck
from hypothesis import settings as examples
from released_files import publishing_hubs, write_release

from anima_pipe import demo, runs

if TYPE_CHECKING:
    from s3_server import FaultyServer


# How long an example takes says something of the machine's other work, and nothing of the code.
examples.register_profile("any_load", deadline=None, suppress_health_check=[HealthCheck.too_slow])
examples.load_profile("any_load")


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty home: what fetch-models noted for the user of this machine counts for no test."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("home")
        patch.setenv("ANIMA_PIPE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six captioned pictures in two buckets. Not to be changed."""
    return demo_pictures(tmp_path_factory.mktemp("demo") / "pictures")


@pytest.fixture(scope="session")
def dataset(pictures: Path) -> Path:
    """dataset.toml of those pictures."""
    return write_dataset(pictures.parent / "dataset.toml", pictures)


@pytest.fixture(scope="session")
def cached(dataset: Path) -> dict[str, object]:
    """Options that name the dataset and its caches, which are complete; more may be added."""
    names = {"dataset_config": dataset, "cache_dir": dataset.parent / "cache"}
    anima_pipe("cache-latents", **names).ok()
    anima_pipe("encode-text", **names).ok()
    return names


@pytest.fixture(scope="session")
def settings(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> runs.TrainSettings:
    """Ask for three steps on the processor, with caches that are complete; nothing is run in it."""
    folder = tmp_path_factory.mktemp("training")
    rules = {name: value for name, value in BUCKETS.items() if name != "batch_size"}
    buckets = runs.BucketRules(**{**rules, "resolution": (128, 128)})
    subset = runs.SubsetConfig(image_dir=pictures)
    datasets = (runs.DatasetConfig(subsets=(subset,), buckets=buckets, batch_size=2),)
    cache = runs.CacheSettings(folder=folder / "cache", device="cpu")
    latents = runs.LatentSettings(cache=cache, vae=demo.DEMO_VAE, workers=0)
    text = runs.TextSettings(
        cache=cache, qwen=demo.DEMO_QWEN, t5_tokenizer_dir=demo.DEMO_T5_TOKENIZER
    )
    runs.cache_latents(runs.CacheLatentsSettings(datasets=datasets, latents=latents))
    runs.encode_text(runs.EncodeTextSettings(datasets=datasets, text=text))
    return runs.TrainSettings(
        data=runs.DataSettings(datasets=datasets, cache=cache, latents=latents, text=text),
        model=runs.ModelSettings(transformer=demo.DEMO_TRANSFORMER),
        adapter=runs.AdapterSettings(network_dim=4),
        save=runs.SaveConfig(folder=folder / "nothing", name="fox"),
        learning_rate=2e-3,
        length=runs.LengthSettings(max_train_steps=3),
        logs=runs.LogSettings(kinds=()),
        seed=1,
        device="cpu",
    )


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stay out of the repository: caches are made in the current folder unless told otherwise."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small files of the released kinds, by option. Not to be changed."""
    return write_release(tmp_path_factory.mktemp("release"))


@pytest.fixture
def hubs(
    tmp_path: Path, release: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Hubs]:
    """Both hubs on loopback with that release, and this process led to them."""
    with publishing_hubs(tmp_path, release, monkeypatch) as hubs:
        yield hubs


@pytest.fixture(scope="session")
def s3_server() -> Iterator[FaultyServer]:
    """One for all tests: a process keeps its connections to an address."""
    from s3_server import s3_served

    with s3_served() as server:
        yield server


@pytest.fixture
def s3(
    s3_server: FaultyServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[FaultyServer]:
    """An S3 server with an empty bucket, which s3:// means."""
    import s3fs
    from s3_server import BUCKET, KEYS, client

    server = s3_server
    environment = {name.upper(): value for name, value in KEYS.items()}
    environment |= {"AWS_ENDPOINT_URL": server.address, "AWS_DEFAULT_REGION": "us-east-1"}
    environment |= {"AWS_MAX_ATTEMPTS": "1", "ANIMA_PIPE_HOME": str(tmp_path / "home")}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setattr("anima_pipe.shards.failures.FIRST_PAUSE_SECONDS", 0.05)
    server.requests.clear()
    yield server
    server.refused.clear()
    server.spoilt.clear()
    server.answered.clear()
    for entry in client(server).list_objects_v2(Bucket=BUCKET).get("Contents", ()):
        client(server).delete_object(Bucket=BUCKET, Key=entry["Key"])
