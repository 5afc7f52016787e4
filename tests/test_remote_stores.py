"""Caches in Google's storage and in repositories of Hugging Face, by their own clients."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fake_hubs import FakeHub, kept_to_loopback, lead_clients_to, running_hubs
from gcs_server import BUCKET, CloudStorage
from huggingface_hub import HfFileSystem
from remote_caches import FINGERPRINT, cache, expected, flipped, values, write
from s3_server import FaultyServer, served

from anima_pipe.errors import CacheError, OutputError
from anima_pipe.shards import LatentWriter, open_cache
from anima_pipe.shards.addresses import filesystem
from anima_pipe.shards.places import open_place
from anima_pipe.shards.shipping import send_pending

GOOGLE = f"gs://{BUCKET}/some/cache"
REPOSITORY = "hf://datasets/user/pictures/some/cache"

# Where large files go by the older of the hub's two protocols, its client speaks to httpx so.
older_protocol = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def google() -> Iterator[tuple[CloudStorage, FaultyServer]]:
    """One for all tests: a process keeps its connections to an address."""
    storage = CloudStorage()
    with pytest.MonkeyPatch.context() as patch, served(storage) as server:
        storage.address = server.address
        patch.setenv("STORAGE_EMULATOR_HOST", server.address)
        # Otherwise it asks Google itself, by another protocol, of what kind a bucket is.
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        patch.setenv("NO_GCE_CHECK", "true")
        patch.setattr("gcsfs.core.GCSFileSystem.retries", 1)
        patch.setattr("anima_pipe.shards.failures.FIRST_PAUSE_SECONDS", 0.05)
        yield storage, server


@pytest.fixture
def gs(google: tuple[CloudStorage, FaultyServer]) -> Iterator[CloudStorage]:
    storage, server = google
    with kept_to_loopback():
        yield storage
    storage.files.clear()
    server.answered.clear()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with a repository that holds a readme."""
    with running_hubs(tmp_path / "hubs") as hubs:
        lead_clients_to(hubs, monkeypatch)
        # The newer protocol for large files has no server to fake.
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("anima_pipe.shards.failures.FIRST_PAUSE_SECONDS", 0.05)
        hubs.hugging_face.files["datasets/user/pictures/README.md"] = b"pictures"
        filesystem.cache_clear()
        HfFileSystem.clear_instance_cache()
        with kept_to_loopback():
            yield hubs.hugging_face
        filesystem.cache_clear()


def test_a_bucket_of_google_is_written_by_several_read_and_verified(gs, tmp_path: Path):
    write(open_place(GOOGLE, tmp_path / "one"), range(5))
    write(open_place(GOOGLE, tmp_path / "two"), range(5, 9))

    reader = open_place(GOOGLE, tmp_path / "reader")
    assert values(open_cache(reader).latents) == expected(range(9))
    assert sum(name.endswith(".tar") for name in gs.files) == 2
    assert "some/cache/shards.json" in gs.files

    name = next(name for name in gs.files if name.endswith(".tar"))
    gs.put(name, flipped(gs.files[name]))
    place = ("--cache_dir", GOOGLE, "--cache_mirror_dir", tmp_path / "fourth")
    found, noted = cache("verify", *place), cache("stats", *place)
    assert found.exit_code == 1
    assert f"gs://{BUCKET}/{name} is damaged: 1 sample" in found.output
    assert "its bytes do not have their checksum; it is encoded anew when needed" in noted.output


# gcsfs's own way with its http client.
@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
def test_a_shard_that_google_takes_in_pieces_arrives_whole(gs, tmp_path: Path):
    latent = torch.randn(16, 256, 256)
    with LatentWriter(open_place(GOOGLE, tmp_path / "w"), FINGERPRINT, "fp32", "vae") as writer:
        writer.add("key0", latent, {})
        writer.add("key1", latent + 1, {})

    assert len(gs.uploads) == 1
    store = open_cache(open_place(GOOGLE, tmp_path / "r")).latents
    assert torch.equal(store["key1"], latent + 1)


@pytest.mark.parametrize(
    ("status", "remedy"), [(403, "check the credentials, and"), (400, "the network")]
)
def test_what_google_refuses_is_kept_for_the_next_run(
    gs, google, tmp_path: Path, status: int, remedy: str
):
    place = open_place(GOOGLE, tmp_path / "writer")
    write(place / "outgoing", range(5))
    google[1].answered["POST"] = [status] * 100
    with pytest.raises(OutputError, match="cannot be written") as refused:
        send_pending(place)
    with pytest.raises(OutputError, match=remedy):
        write(place, range(5, 7))

    assert "finished shards are kept in" in refused.value.problem
    google[1].answered.clear()
    send_pending(place)
    assert values(open_cache(place).latents) == expected(range(5))


@pytest.mark.parametrize(
    "address", [f"gs://no-such-{BUCKET}/cache", "hf://datasets/user/nothing/cache"]
)
def test_a_bucket_or_repository_that_is_not_there_is_no_empty_cache(
    gs, hub, tmp_path: Path, address: str
):
    with pytest.raises(CacheError, match=r"a bucket or a repository must be there|credentials"):
        open_cache(open_place(address, tmp_path / "m"))


@older_protocol
def test_a_repository_is_committed_to_a_file_at_a_time_and_read(hub, tmp_path: Path):
    write(open_place(REPOSITORY, tmp_path / "one"), range(5))
    write(open_place(REPOSITORY, tmp_path / "two"), range(5, 9))

    reader = open_place(REPOSITORY, tmp_path / "reader")
    assert values(open_cache(reader).latents) == expected(range(9))
    kinds = [name.rpartition("/")[2].partition(".")[2] for [name] in hub.repositories.commits]
    assert kinds == ["json", "tar", "index.json", "json", "tar", "index.json", "json"]
    web = f"{hub.url}/datasets/user/pictures/resolve/main/some/cache"
    assert values(open_cache(open_place(web, tmp_path / "web")).latents) == expected(range(9))


@older_protocol
def test_a_sidecar_that_another_commit_has_changed_is_fetched_again(hub, tmp_path: Path):
    write(open_place(REPOSITORY, tmp_path / "one"), range(5))
    reader = open_place(REPOSITORY, tmp_path / "reader")
    open_cache(reader)
    [name] = [name for name in hub.files if name.endswith("index.json")]
    changed = hub.files[name].replace(b'"key1"', b'"yek1"').rpartition(b',"checksum"')[0] + b"}"
    hub.files[name] = changed.ljust(len(hub.files[name]))

    assert "yek1" in open_cache(reader).latents


def test_a_repository_that_may_only_be_read_is_told_before_anything_is_encoded(hub, tmp_path: Path):
    hub.fails("status", 403, where="/preupload/", method="POST")
    with pytest.raises(OutputError, match="check the credentials, and") as refused:
        write(open_place(REPOSITORY, tmp_path), range(5))

    assert f"{REPOSITORY}/latents-" in refused.value.problem
    assert list(tmp_path.rglob("*.tar")) == []


@older_protocol
def test_a_hub_that_fails_for_a_moment_is_asked_again(hub, tmp_path: Path):
    hub.fails("status", 500, where="/commit/", method="POST", times=1)
    write(open_place(REPOSITORY, tmp_path / "one"), range(5))
    hub.fails("broken", where="/storage/", times=1)
    reader = open_place(REPOSITORY, tmp_path / "reader")
    assert values(open_cache(reader).latents) == expected(range(5))
