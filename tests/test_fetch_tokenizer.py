"""Fetching the T5 tokenizer with the real clients, from hubs on loopback that fail on order."""

import errno
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hubs import FakeHub, Hubs, kept_to_loopback, lead_clients_to, running_hubs, unused_address
from tiny_text_encoder import write_t5_folder

from anima_pipe.encoders import check_t5_tokenizer
from anima_pipe.errors import ConfigError, FetchError, OutputError
from anima_pipe.hub.causes import SourceError
from anima_pipe.hub.clients import fetch_small
from anima_pipe.hub.sources import parse_source
from anima_pipe.hub.tokenizer import ensure_t5_tokenizer

REPO = "google/t5-v1_1-base"
MIRROR = "nv-community/Cosmos-Predict2-2B-Text2Image"
FILES = {"config.json", "spiece.model", "tokenizer.json"}
FIRST = parse_source(REPO).filled(folder="tokenizer")
SECOND = parse_source(f"https://modelscope.cn/models/{MIRROR}").filled(folder="tokenizer")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tokenizer's folder. Not to be changed."""
    return write_t5_folder(tmp_path_factory.mktemp("whole") / "t5", pieces=2000)


@pytest.fixture
def hubs(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hubs]:
    """Both hubs, with the tokenizer at the root of the one and in a folder of the other."""
    with running_hubs(tmp_path) as hubs:
        hubs.hugging_face.add(REPO, "", whole)
        hubs.modelscope.add(MIRROR, "tokenizer", whole)
        lead_clients_to(hubs, monkeypatch)
        with kept_to_loopback():
            yield hubs


@pytest.fixture
def hugging_face(hubs: Hubs) -> FakeHub:
    return hubs.hugging_face


@pytest.fixture
def modelscope(hubs: Hubs) -> FakeHub:
    return hubs.modelscope


@pytest.fixture
def t5(tmp_path: Path) -> Path:
    """Where the tokenizer is wanted; not there yet."""
    return tmp_path / "models" / "t5"


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def cause(t5: Path, *sources) -> str:
    """What is said of the source, or of all the sources, when none has the files."""
    with pytest.raises(FetchError) as caught:
        ensure_t5_tokenizer(t5, sources or [FIRST])
    assert not t5.exists()
    assert names_in(t5.parent) <= {".t5.lock"}
    assert "spiece.model" in caught.value.remedy
    assert str(t5) in caught.value.remedy
    first, *others, _remedy = caught.value.lines()
    return "\n".join([first, *others])


def test_everything_is_fetched_where_nothing_is_there(hugging_face: FakeHub, t5: Path, whole: Path):
    assert set(ensure_t5_tokenizer(t5, [FIRST, SECOND])) == FILES

    check_t5_tokenizer(t5)
    assert names_in(t5) == FILES
    assert all((t5 / name).read_bytes() == (whole / name).read_bytes() for name in FILES)


IMPORTS_OF_A_FETCH = f"""
import sys
from pathlib import Path
from anima_pipe.hub.clients import fetch_small
from anima_pipe.hub.sources import parse_source
clients = {{"huggingface_hub", "modelscope_hub", "modelscope", "torch"}}
before = clients & set(sys.modules)
source = parse_source("https://modelscope.cn/models/{MIRROR}")
fetch_small(source, "tokenizer/config.json", Path(sys.argv[1]))
print(sorted(before), sorted(clients & set(sys.modules)))
"""


def test_only_the_client_is_imported_and_only_for_a_fetch(hubs: Hubs, whole: Path, tmp_path: Path):
    ended = subprocess.run(
        [sys.executable, "-c", IMPORTS_OF_A_FETCH, tmp_path / "config.json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout.strip() == "[] ['modelscope_hub']"
    assert (tmp_path / "config.json").read_bytes() == (whole / "config.json").read_bytes()


def test_a_whole_folder_asks_no_hub(hubs: Hubs, whole: Path):
    assert ensure_t5_tokenizer(whole, [FIRST, SECOND]) == ()

    assert hubs.hugging_face.requests == []
    assert hubs.modelscope.requests == []


@pytest.mark.parametrize("name", sorted(FILES))
def test_only_what_is_missing_is_fetched(hubs: Hubs, t5: Path, whole: Path, name: str):
    shutil.copytree(whole, t5)
    (t5 / name).unlink()
    before = {path.name: path.stat().st_mtime_ns for path in t5.iterdir()}

    assert ensure_t5_tokenizer(t5, [FIRST, SECOND]) == (name,)

    assert {n: (t5 / n).stat().st_mtime_ns for n in before} == before
    assert not any(hubs.hugging_face.asked_for(other) for other in FILES - {name})


def test_the_subfolder_is_tried_before_the_root(hugging_face: FakeHub, t5: Path, whole: Path):
    hugging_face.add(REPO, "tokenizer", whole)
    for name in FILES:
        hugging_face.files[f"{REPO}/{name}"] = b"another tokenizer's"

    ensure_t5_tokenizer(t5, [FIRST])

    check_t5_tokenizer(t5)


def test_a_repository_of_plain_t5_has_no_tokenizer_json_and_one_is_made(
    hugging_face: FakeHub, t5: Path, whole: Path
):
    del hugging_face.files[f"{REPO}/tokenizer.json"]

    ensure_t5_tokenizer(t5, [FIRST])

    check_t5_tokenizer(t5)
    assert (t5 / "spiece.model").read_bytes() == (whole / "spiece.model").read_bytes()


def test_a_repository_of_a_pipeline_has_no_config_and_one_is_made(modelscope: FakeHub, t5: Path):
    del modelscope.files[f"{MIRROR}/tokenizer/config.json"]

    ensure_t5_tokenizer(t5, [SECOND])

    check_t5_tokenizer(t5)


def test_where_the_pieces_themselves_are_missing_nothing_is_made(hugging_face: FakeHub, t5: Path):
    del hugging_face.files[f"{REPO}/spiece.model"]

    assert f"{REPO} has no file spiece.model (HTTP 404)" in cause(t5)


REFUSALS = [
    (401, "RepoNotFound", "does not exist, or asks for a token (HTTP 401)"),
    (403, "GatedRepo", "refused or gated (HTTP 403)"),
    (404, "RepoNotFound", "there is no repository google/t5-v1_1-base (HTTP 404)"),
    (404, "RevisionNotFound", "has no revision main (HTTP 404)"),
    (429, "", "asks for fewer requests (HTTP 429)"),
    (500, "", "Hugging Face is out of order (HTTP 500)"),
]


@pytest.mark.parametrize(("status", "code", "said"), REFUSALS)
def test_a_refusal_of_hugging_face_is_named(
    hugging_face: FakeHub, t5: Path, status: int, code: str, said: str
):
    hugging_face.fails("status", status, code=code, where="resolve")

    assert said in cause(t5)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "or asks for a token (HTTP 401)"),
        (403, "refused or gated (HTTP 403)"),
        (404, f"there is no repository {MIRROR} with a revision master (HTTP 404)"),
        (429, "asks for fewer requests (HTTP 429)"),
        (500, "ModelScope is out of order (HTTP 500)"),
    ],
)
def test_a_refusal_of_modelscope_is_named(modelscope: FakeHub, t5: Path, status: int, said: str):
    modelscope.fails("status", status, where="/repo")

    assert said in cause(t5, SECOND)


@pytest.mark.parametrize("source", [FIRST, SECOND], ids=lambda source: source.hub.value)
@pytest.mark.parametrize(
    ("kind", "said"),
    [("short", "incomplete"), ("corrupt", "checksum"), ("stall", "timeout")],
)
def test_what_goes_wrong_on_the_way_is_named(
    hubs: Hubs, t5: Path, whole: Path, source, kind: str, said: str
):
    hub = hubs.hugging_face if source is FIRST else hubs.modelscope
    hub.fails(kind, method="GET", where="repo?" if source is SECOND else "")

    said_of_it = cause(t5, source)

    # ModelScope tells no sizes beforehand: a short file is one with a wrong checksum there.
    assert said in said_of_it or (source is SECOND and kind == "short" and "checksum" in said_of_it)


@pytest.mark.parametrize("source", [FIRST, SECOND], ids=lambda source: source.hub.value)
def test_a_hub_that_cannot_be_reached_is_named(
    hubs: Hubs, t5: Path, source, monkeypatch: pytest.MonkeyPatch
):
    nowhere = unused_address()
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        nowhere + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", nowhere)

    assert f"no network connection to {source.hub.value}" in cause(t5, source)


@pytest.mark.parametrize("source", [FIRST, SECOND], ids=lambda source: source.hub.value)
@pytest.mark.parametrize("kind", ["status", "broken"])
def test_a_hub_that_falters_once_is_asked_again(hubs: Hubs, t5: Path, source, kind: str):
    for hub in (hubs.hugging_face, hubs.modelscope):
        hub.fails(kind, 429, times=1, where="/re", method="GET")

    ensure_t5_tokenizer(t5, [source])

    check_t5_tokenizer(t5)


def test_a_file_damaged_in_the_clients_cache_is_fetched_again(
    hugging_face: FakeHub, t5: Path, tmp_path: Path
):
    ensure_t5_tokenizer(tmp_path / "first", [FIRST])
    for blob in (tmp_path / "huggingface").rglob("blobs/*"):
        content = blob.read_bytes()
        blob.write_bytes(bytes([content[0] ^ 1]) + content[1:])

    ensure_t5_tokenizer(t5, [FIRST])

    check_t5_tokenizer(t5)


def test_the_clients_cache_serves_without_a_network(
    hubs: Hubs, t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ensure_t5_tokenizer(tmp_path / "first", [FIRST])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    ensure_t5_tokenizer(t5, [FIRST])

    check_t5_tokenizer(t5)


def test_offline_without_a_cache_says_so(hubs: Hubs, t5: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    assert "HF_HUB_OFFLINE forbids the network" in cause(t5)


def test_the_users_token_is_sent(hugging_face: FakeHub, t5: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")

    ensure_t5_tokenizer(t5, [FIRST])

    assert "Bearer hf_secret" in hugging_face.tokens


def test_modelscopes_older_name_of_the_mirror_is_honoured(
    hubs: Hubs, t5: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("MODELSCOPE_ENDPOINT")
    monkeypatch.setenv("MODELSCOPE_DOMAIN", hubs.modelscope.url)

    ensure_t5_tokenizer(t5, [SECOND])

    check_t5_tokenizer(t5)


def test_modelscope_is_asked_where_hugging_face_fails(
    hugging_face: FakeHub, modelscope: FakeHub, t5: Path
):
    hugging_face.fails("status", 403, code="GatedRepo")

    ensure_t5_tokenizer(t5, [FIRST, SECOND])

    check_t5_tokenizer(t5)
    assert modelscope.asked_for("spiece.model") == 1


def test_where_all_fail_each_is_listed_with_its_cause(
    hugging_face: FakeHub, modelscope: FakeHub, t5: Path
):
    hugging_face.fails("status", 403, code="GatedRepo")
    modelscope.fails("status", 500)

    said = cause(t5, FIRST, SECOND)

    assert "T5 tokenizer download failed from both Hugging Face and ModelScope:" in said
    lines = [line.strip() for line in said.splitlines()]
    assert [line.split(":")[0] for line in lines[1:]] == [
        f"Hugging Face {REPO}@main",
        "Fix",
        f"ModelScope {MIRROR}@master",
        "Fix",
    ]
    assert "hf auth login" in lines[2]


def test_files_of_another_tokenizer_are_not_put_in_place(hugging_face: FakeHub, t5: Path):
    other = hugging_face.files[f"{REPO}/tokenizer.json"].replace(b'"</s>"', b'"<end>"')
    hugging_face.files[f"{REPO}/tokenizer.json"] = other

    assert "do not make T5's tokenizer" in cause(t5)


def test_what_fits_not_to_the_files_that_are_there_is_not_put_beside_them(
    hugging_face: FakeHub, t5: Path, tmp_path: Path
):
    other = write_t5_folder(tmp_path / "other", pieces=1000)
    t5.mkdir(parents=True)
    shutil.copy(other / "tokenizer.json", t5)

    with pytest.raises(FetchError, match="disagree") as caught:
        ensure_t5_tokenizer(t5, [FIRST])

    assert "--force" in str(caught.value)
    assert names_in(t5) == {"tokenizer.json"}


def test_a_damaged_file_is_kept_until_it_is_forced(hugging_face: FakeHub, t5: Path, whole: Path):
    shutil.copytree(whole, t5)
    (t5 / "spiece.model").write_bytes(b"damaged")

    with pytest.raises(ConfigError, match=r"spiece\.model") as caught:
        ensure_t5_tokenizer(t5, [FIRST])
    assert "--force" in caught.value.remedy
    assert (t5 / "spiece.model").read_bytes() == b"damaged"

    assert set(ensure_t5_tokenizer(t5, [FIRST], force=True)) == FILES
    check_t5_tokenizer(t5)


def test_force_that_fails_leaves_what_was_there(hugging_face: FakeHub, t5: Path, whole: Path):
    shutil.copytree(whole, t5)
    hugging_face.fails("status", 500)

    with pytest.raises(FetchError):
        ensure_t5_tokenizer(t5, [FIRST], force=True)

    check_t5_tokenizer(t5)


def test_a_full_disk_is_named(hubs: Hubs):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")

    with pytest.raises(SourceError) as caught:
        fetch_small(FIRST, "config.json", Path("/dev/full"))

    assert "the disk is full" in caught.value.cause
    assert os.strerror(errno.ENOSPC) in caught.value.cause


@pytest.mark.parametrize("source", [FIRST, SECOND], ids=lambda source: source.hub.value)
def test_a_disk_that_fills_during_the_download_leaves_nothing(hubs: Hubs, t5: Path, source):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        said = cause(t5, source)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert "the disk is full" in said


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_that_cannot_be_written_is_named(hubs: Hubs, tmp_path: Path):
    (tmp_path / "closed").mkdir(mode=0o500)

    with pytest.raises(OutputError, match="closed"):
        ensure_t5_tokenizer(tmp_path / "closed" / "t5", [FIRST])


def test_a_file_in_the_folders_place_is_refused(hubs: Hubs, tmp_path: Path):
    (tmp_path / "t5").write_text("")

    with pytest.raises(ConfigError, match="T5 tokenizer path is not a directory"):
        ensure_t5_tokenizer(tmp_path / "t5", [FIRST])


def test_threads_that_fetch_at_once_download_once(hugging_face: FakeHub, t5: Path):
    threads = [threading.Thread(target=ensure_t5_tokenizer, args=(t5, [FIRST])) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    check_t5_tokenizer(t5)
    assert hugging_face.asked_for("/resolve/main/config.json") == 1
