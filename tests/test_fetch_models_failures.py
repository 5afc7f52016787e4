"""What can go wrong while Anima's files are fetched: both hubs, kills, disks, other processes."""

import errno
import os
import re
import resource
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_hubs import FakeHub, Hubs, sha256, unused_address
from released_files import (
    PLACES,
    REPO,
    fetch_models,
    leftovers,
    start_apart,
)

from anima_pipe.hub.models import MODEL_FILES


@pytest.mark.parametrize("kind", ["corrupt", "short", "status"])
def test_modelscope_gives_what_hugging_face_does_not(hubs: Hubs, tmp_path: Path, kind: str):
    hubs.hugging_face.fails(kind, 500, method="GET", where="/storage/")

    ended = fetch_models("--models_dir", tmp_path)

    assert all((tmp_path / place).is_file() for place in PLACES.values()), ended.stderr
    assert f"warning: Hugging Face {REPO}@main" in ended.stderr


def test_where_both_fail_the_error_says_what_to_put_where(hubs: Hubs, tmp_path: Path):
    hubs.hugging_face.fails("status", 403, code="GatedRepo", where=REPO)
    hubs.modelscope.fails("status", 404, where=REPO)

    ended = fetch_models("--models_dir", tmp_path)

    assert ended.exit_code == 2
    assert f"Hugging Face {REPO}@main: access to {REPO} is refused or gated" in ended.stderr
    assert f"ModelScope {REPO}@master:" in ended.stderr
    assert f"put {MODEL_FILES[0].path} from https://huggingface.co/{REPO}" in ended.stderr
    assert f"to {tmp_path / PLACES['pretrained_model_name_or_path']} by hand" in ended.stderr


def test_a_damaged_file_gets_no_final_name(hubs: Hubs, tmp_path: Path):
    hubs.hugging_face.fails("corrupt", method="GET", where="/storage/")

    ended = fetch_models("--models_dir", tmp_path, "--no-modelscope_fallback")

    assert ended.exit_code == 2
    assert "wrong checksum" in ended.stderr
    assert not any((tmp_path / place).exists() for place in PLACES.values())


def test_a_disk_without_room_is_refused_before_anything_is_fetched(
    hubs: Hubs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1))

    ended = fetch_models("--models_dir", tmp_path)

    assert ended.exit_code == 2
    assert "has room for" in ended.stderr
    assert hubs.hugging_face.asked_for("storage") == 0


def test_a_broken_transfer_goes_on_where_it_broke(
    hubs: Hubs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 4096)
    hubs.hugging_face.fails("broken", times=2, method="GET", where="/storage/")

    ended = fetch_models("--models_dir", tmp_path)

    assert ended.exit_code == 0, ended.stderr
    assert any("bytes=" in line for line in hubs.hugging_face.requests)


TRANSFORMER = MODEL_FILES[0]
PLACE = PLACES[TRANSFORMER.option]
HUBS = ["Hugging Face", "ModelScope"]


def hub_of(hubs: Hubs, name: str) -> FakeHub:
    return hubs.hugging_face if name == HUBS[0] else hubs.modelscope


def only(name: str) -> list[str]:
    """Options that ask one of the hubs and not the other."""
    link = f"https://modelscope.cn/models/{REPO}"
    return ["--no-modelscope_fallback"] if name == HUBS[0] else ["--models_repo_id", link]


def failure(models: Path, name: str) -> str:
    """What is said where one hub alone is asked and the fetch fails."""
    ended = fetch_models("--models_dir", models, *only(name))
    assert ended.exit_code == 2
    assert not any((models / place).exists() for place in PLACES.values())
    assert f"put {TRANSFORMER.path} from " in ended.stderr
    return ended.stderr


@pytest.mark.parametrize("name", HUBS)
@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "asks for a token (HTTP 401)"),
        (403, "refused or gated (HTTP 403)"),
        (404, "(HTTP 404)"),
        (429, "asks for fewer requests (HTTP 429)"),
        (500, "is out of order (HTTP 500)"),
    ],
)
def test_a_refusal_is_named(hubs: Hubs, tmp_path: Path, name: str, status: int, said: str):
    hub_of(hubs, name).fails("status", status, where=REPO)

    assert f"warning: {name} {REPO}@" in failure(tmp_path, name)
    assert said in failure(tmp_path, name)


@pytest.mark.parametrize("name", HUBS)
def test_a_repository_without_the_file_is_told_from_one_that_is_not_there(
    hubs: Hubs, tmp_path: Path, name: str
):
    hub = hub_of(hubs, name)
    del hub.files[f"{REPO}/{TRANSFORMER.path}"]

    no_file = failure(tmp_path, name)
    hub.files.clear()
    hub.fails("status", 404, code="RepoNotFound")
    no_repository = failure(tmp_path, name)

    assert f"no file {TRANSFORMER.path}" in no_file
    assert f"there is no repository {REPO}" in no_repository


@pytest.mark.parametrize("name", HUBS)
@pytest.mark.parametrize(
    ("kind", "said"),
    [("short", "incomplete"), ("corrupt", "checksum"), ("stall", "timeout"), ("hang", "timeout")],
)
def test_what_goes_wrong_on_the_way_is_named(
    hubs: Hubs, tmp_path: Path, name: str, kind: str, said: str
):
    where = "/storage/" if name == HUBS[0] else "/repo?"
    hub_of(hubs, name).fails(kind, method="GET", where=where)

    told = failure(tmp_path, name)

    # ModelScope's client compares the size that is announced with the list's.
    assert said in told or (kind == "short" and "wrong checksum or size" in told)


@pytest.mark.parametrize("name", HUBS)
def test_a_file_without_end_is_cut_off_where_it_was_said_to_end(
    hubs: Hubs, tmp_path: Path, name: str
):
    where = "/storage/" if name == HUBS[0] else "/repo?"
    hub_of(hubs, name).fails("endless", method="GET", where=where)

    told = failure(tmp_path, name)

    # ModelScope's client does so by itself.
    assert re.search(r"has more than the [\d,]+ bytes that were announced|exceeded \d+ bytes", told)
    assert hub_of(hubs, name).pieces_behind_the_end * 2**16 < 2**28


@pytest.mark.parametrize("name", HUBS)
def test_a_hub_that_is_busy_for_a_moment_is_asked_again(hubs: Hubs, tmp_path: Path, name: str):
    for where in (REPO, "storage" if name == HUBS[0] else "/repo?"):
        hub_of(hubs, name).fails("status", 429, times=1, where=where)

    ended = fetch_models("--models_dir", tmp_path, *only(name))

    assert ended.exit_code == 0, ended.stderr


def test_without_a_network_each_hub_gets_one_line_and_its_client_none(hubs: Hubs, tmp_path: Path):
    nowhere = unused_address()
    few = {"MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS": "2"}
    addresses = {"HF_ENDPOINT": nowhere, "MODELSCOPE_ENDPOINT": nowhere}

    process = start_apart(hubs, "--models_dir", tmp_path, **addresses, **few)
    said = process.communicate(timeout=60)[1].splitlines()

    assert process.returncode == 2
    refused = os.strerror(errno.ECONNREFUSED)
    for number, name in enumerate(HUBS):
        (line,) = (line for line in said if line.startswith(f"warning: {name}"))
        assert line.endswith(f"no network connection to {name} ({refused})")
        assert said[2 + number] == line  # behind the two of the licence, with nothing between
    assert said[4].startswith("error: the transformer cannot be had:")


@pytest.fixture
def large(hubs: Hubs) -> bytes:
    """A transformer of several of the clients' blocks."""
    content = os.urandom(24_000_000)
    for hub in (hubs.hugging_face, hubs.modelscope):
        hub.files[f"{REPO}/{TRANSFORMER.path}"] = content
    return content


@pytest.mark.parametrize("name", HUBS)
def test_a_killed_fetch_is_gone_on_from(hubs: Hubs, tmp_path: Path, large: bytes, name: str):
    hub, models = hub_of(hubs, name), tmp_path / "models"
    transfer = (
        f"/storage/{sha256(large)}"
        if name == HUBS[0]
        else f"/repo?Revision=master&FilePath={TRANSFORMER.path}"
    )
    hub.fails("hang", method="GET", where=transfer)
    process = start_apart(hubs, "--models_dir", models, *only(name))
    working = models / Path(PLACE).parent / f".{Path(PLACE).name}.fetching"
    while not any(p.is_file() and p.stat().st_size > 5_000_000 for p in working.rglob("*")):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert not (models / PLACE).exists()
    hub.faults.clear()
    hub.requests.clear()

    ended = fetch_models("--models_dir", models, *only(name))

    assert ended.exit_code == 0, ended.stderr
    assert "are there" in ended.stderr
    assert (models / PLACE).read_bytes() == large
    (begun,) = hub.first_bytes_asked_for(transfer)
    assert begun > 5_000_000
    assert leftovers(models) == []


@pytest.mark.parametrize("name", HUBS)
def test_what_was_left_damaged_is_fetched_from_the_beginning(
    hubs: Hubs, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 4096)
    hub = hub_of(hubs, name)
    hub.fails("hang", method="GET", where="/storage/" if name == HUBS[0] else "/repo?")
    failure(tmp_path, name)
    hub.faults.clear()
    for part in tmp_path.rglob(".*.fetching/**/*"):
        if part.is_file():
            part.write_bytes(bytes(part.stat().st_size))

    ended = fetch_models("--models_dir", tmp_path, *only(name))

    assert ended.exit_code == 0, ended.stderr
    assert (tmp_path / PLACE).read_bytes() == hub.files[f"{REPO}/{TRANSFORMER.path}"]


@pytest.mark.parametrize("name", HUBS)
def test_a_disk_that_fills_on_the_way_is_named_and_room_lets_it_go_on(
    hubs: Hubs, tmp_path: Path, large: bytes, name: str
):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (15_000_000, limits[1]))
    try:
        said = failure(tmp_path, name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "the disk is full" in said

    ended = fetch_models("--models_dir", tmp_path, *only(name))

    assert ended.exit_code == 0, ended.stderr
    assert (tmp_path / PLACE).read_bytes() == large


def test_processes_that_fetch_at_once_transfer_each_file_once(hubs: Hubs, tmp_path: Path):
    started = [start_apart(hubs, "--models_dir", tmp_path) for _ in range(2)]
    said = [process.communicate(timeout=120)[1] for process in started]

    assert [process.returncode for process in started] == [0, 0], said
    for file in MODEL_FILES:
        content = hubs.hugging_face.files[f"{REPO}/{file.path}"]
        assert hubs.hugging_face.asked_for(f"/storage/{sha256(content)}") == 1
    assert leftovers(tmp_path) == []


def test_what_the_client_has_cached_is_copied_with_and_without_a_network(
    hubs: Hubs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from huggingface_hub import hf_hub_download

    for file in MODEL_FILES:
        hf_hub_download(REPO, file.path)
    fetched = hubs.hugging_face.asked_for("/storage/")
    fetch_models("--models_dir", tmp_path / "online")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    fetch_models("--models_dir", tmp_path / "offline", "--no-modelscope_fallback")

    for models in (tmp_path / "online", tmp_path / "offline"):
        assert all((models / place).is_file() for place in PLACES.values())
    # The tokenizer's pieces are large-file storage too.
    assert hubs.hugging_face.asked_for("/storage/") == fetched + 1
