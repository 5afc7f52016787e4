"""The commands that fetch the T5 tokenizer: processes beside each other, options, stages."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fake_hubs import Hubs, kept_to_loopback, lead_clients_to, running_hubs
from tiny_text_encoder import write_t5_folder

from anima_pipe import demo
from anima_pipe.cli.main import main
from anima_pipe.encoders import check_t5_tokenizer
from anima_pipe.hub.sources import parse_source
from anima_pipe.hub.tokenizer import ensure_t5_tokenizer
from anima_pipe.runtime import LOGGER

REPO = "google/t5-v1_1-base"
MIRROR = "nv-community/Cosmos-Predict2-2B-Text2Image"
FIRST = parse_source(REPO).filled(folder="tokenizer")


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
def t5(tmp_path: Path) -> Path:
    """Where the tokenizer is wanted; not there yet."""
    return tmp_path / "models" / "t5"


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def fetch_tokenizer(*arguments: object) -> Result:
    """Run the command in this process."""
    result = CliRunner().invoke(main, ["fetch-tokenizer", *map(str, arguments)])
    LOGGER.handlers.clear()
    assert isinstance(result.exception, SystemExit | None), result.exception
    return result


COMMAND = [sys.executable, "-m", "anima_pipe.cli", "fetch-tokenizer"]


def start_apart(hubs: Hubs, *arguments: object) -> subprocess.Popen[str]:
    environment = {**os.environ, **hubs.environment, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)], env=environment, stderr=subprocess.PIPE, text=True
    )


def test_processes_that_fetch_at_once_end_with_one_whole_folder(hubs: Hubs, t5: Path):
    started = [start_apart(hubs, "--t5_tokenizer_dir", t5) for _ in range(2)]
    said = [process.communicate(timeout=120)[1] for process in started]

    assert [process.returncode for process in started] == [0, 0], said
    check_t5_tokenizer(t5)
    assert names_in(t5.parent) == {"t5", ".t5.lock"}


def test_a_killed_fetch_leaves_no_final_name_and_the_next_one_succeeds(hubs: Hubs, t5: Path):
    hubs.hugging_face.fails("stall", method="GET", times=1, where="tokenizer.json")
    process = start_apart(hubs, "--t5_tokenizer_dir", t5)
    while not hubs.hugging_face.asked_for("/resolve/main/tokenizer.json"):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not t5.exists()
    assert any(path.suffix == ".tmp" for path in t5.parent.iterdir())

    ensure_t5_tokenizer(t5, [FIRST])

    check_t5_tokenizer(t5)
    assert names_in(t5.parent) == {"t5", ".t5.lock"}


def test_what_a_killed_fetch_left_is_removed_whatever_the_folder_is_called(
    hubs: Hubs, tmp_path: Path
):
    folder = tmp_path / "home" / "t5 [original]"
    left = folder.with_name(f".{folder.name}.00000000.tmp")
    left.mkdir(parents=True)

    ensure_t5_tokenizer(folder, [FIRST])

    assert not left.exists()


def test_a_process_waits_for_the_one_that_holds_the_lock(hubs: Hubs, t5: Path):
    t5.parent.mkdir()
    with (t5.parent / ".t5.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting = threading.Thread(target=ensure_t5_tokenizer, args=(t5, [FIRST]))
        waiting.start()
        time.sleep(0.3)
        assert hubs.hugging_face.requests == []
    waiting.join()

    check_t5_tokenizer(t5)


def test_without_a_folder_the_command_fetches_into_the_users_cache(hubs: Hubs):
    home = Path(hubs.environment["ANIMA_PIPE_HOME"])

    first, second = fetch_tokenizer(), fetch_tokenizer()

    assert "fetched config.json, spiece.model, tokenizer.json" in first.stderr
    assert "nothing to download" in second.stderr
    check_t5_tokenizer(home / "models" / "t5_tokenizer")


def test_an_empty_folder_option_means_none_not_the_current_one(
    hubs: Hubs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    assert fetch_tokenizer("--t5_tokenizer_dir", "").exit_code == 0
    assert names_in(tmp_path / "here") == set()


def test_the_command_takes_links_and_kohyas_spelling(hubs: Hubs, t5: Path, whole: Path):
    hubs.hugging_face.add("some/model", "deep/place", whole)
    link = "https://huggingface.co/some/model/blob/main/deep/place/spiece.model"

    ended = fetch_tokenizer("--t5_tokenizer_path", t5, "--t5_tokenizer_repo_id", link)

    assert ended.exit_code == 0, ended.stderr
    check_t5_tokenizer(t5)


def test_a_link_to_modelscope_without_revision_means_its_master(hubs: Hubs, t5: Path):
    link = f"https://modelscope.cn/models/{MIRROR}"

    ended = fetch_tokenizer("--t5_tokenizer_dir", t5, "--t5_tokenizer_repo_id", link)

    assert ended.exit_code == 0, ended.stderr
    assert hubs.hugging_face.requests == []
    assert hubs.modelscope.asked_for("/repo?Revision=master") == 3


def test_the_fallback_can_be_switched_off(hubs: Hubs, t5: Path):
    hubs.hugging_face.fails("status", 500)

    ended = fetch_tokenizer("--t5_tokenizer_dir", t5, "--no-t5_tokenizer_modelscope_fallback")

    assert ended.exit_code == 2
    assert "Hugging Face T5 tokenizer download failed:" in ended.stderr
    assert hubs.modelscope.requests == []


def run_stage(command: str, tmp_path: Path, t5: Path, **changed: object) -> Result:
    """Run a stage on one captioned picture of the demo and its tiny model, bar the tokenizer."""
    pictures = tmp_path / "pictures"
    pictures.mkdir(exist_ok=True)
    first = min(demo.DEMO_PICTURES.glob("*.txt"))
    for path in demo.DEMO_PICTURES.glob(f"{first.stem}.*"):
        shutil.copy(path, pictures)
    given = {
        "dataset_config": pictures,
        "cache_dir": tmp_path / "cache",
        "qwen3": demo.DEMO_QWEN,
        "t5_tokenizer_dir": t5,
        "device": "cpu",
    } | changed
    arguments = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    result = CliRunner().invoke(main, [command, *arguments])
    LOGGER.handlers.clear()
    assert isinstance(result.exception, SystemExit | None), result.exception
    return result


def test_encoding_texts_fetches_the_tokenizer_first(hubs: Hubs, t5: Path, tmp_path: Path):
    ended = run_stage("encode-text", tmp_path, t5)

    assert ended.exit_code == 0, ended.stderr
    check_t5_tokenizer(t5)


def test_training_fetches_the_tokenizer_first(hubs: Hubs, t5: Path, tmp_path: Path):
    # The transformer is none, so that the run ends soon after.
    ended = run_stage(
        "train",
        tmp_path,
        t5,
        vae=demo.DEMO_VAE,
        pretrained_model_name_or_path=demo.DEMO_VAE,
        output_dir=tmp_path / "output",
        max_train_steps=1,
        resolution=64,
        max_data_loader_n_workers=0,
    )

    assert f"{demo.DEMO_VAE} is not an Anima transformer" in ended.stderr
    check_t5_tokenizer(t5)


def test_without_downloads_missing_files_are_listed_at_once(hubs: Hubs, t5: Path, whole: Path):
    arguments = ("--no-auto_download_t5_tokenizer", "--t5_tokenizer_dir", t5)
    nowhere = fetch_tokenizer(*arguments)
    shutil.copytree(whole, t5)
    (t5 / "spiece.model").unlink()
    lacking = fetch_tokenizer(*arguments)

    assert f"T5 tokenizer directory not found: {t5}" in nowhere.stderr
    assert "T5 tokenizer directory missing required files: [spiece.model]" in lacking.stderr
    assert (nowhere.exit_code, lacking.exit_code) == (2, 2)
    assert hubs.hugging_face.requests == []


def test_without_downloads_and_without_a_folder_one_is_required(hubs: Hubs):
    ended = fetch_tokenizer("--no-auto_download_t5_tokenizer")

    assert ended.exit_code == 2
    assert "T5 tokenizer directory is required. Set --t5_tokenizer_dir." in ended.stderr


def test_t5_tokenizer_subfolder_is_where_the_repository_is_looked_into(
    hubs: Hubs, t5: Path, whole: Path
):
    hubs.hugging_face.add("some/model", "deep/place", whole)

    ended = fetch_tokenizer(
        "--t5_tokenizer_dir",
        t5,
        "--t5_tokenizer_repo_id=some/model",
        "--t5_tokenizer_subfolder=deep/place",
    )

    assert ended.exit_code == 0, ended.stderr
    assert hubs.modelscope.requests == []
    check_t5_tokenizer(t5)


def test_the_fallback_takes_its_repository_revision_and_folder_from_the_options(
    hubs: Hubs, t5: Path, whole: Path
):
    hubs.hugging_face.fails("status", 500)
    hubs.modelscope.add("some/mirror", "elsewhere", whole)

    ended = fetch_tokenizer(
        "--t5_tokenizer_dir",
        t5,
        "--t5_tokenizer_modelscope_repo_id=some/mirror",
        "--t5_tokenizer_modelscope_subfolder=elsewhere",
        "--t5_tokenizer_modelscope_revision=main",
    )

    assert ended.exit_code == 0, ended.stderr
    assert hubs.modelscope.asked_for("/repo?Revision=main") == 3
    check_t5_tokenizer(t5)


def test_force_fetches_what_is_there_afresh(hubs: Hubs, t5: Path):
    fetch_tokenizer("--t5_tokenizer_dir", t5)
    before = len(hubs.hugging_face.requests)

    again = fetch_tokenizer("--t5_tokenizer_dir", t5)
    assert len(hubs.hugging_face.requests) == before
    forced = fetch_tokenizer("--t5_tokenizer_dir", t5, "--force")

    assert "nothing to download" in again.stderr
    assert "fetched config.json, spiece.model, tokenizer.json" in forced.stderr
    assert len(hubs.hugging_face.requests) > before


def test_a_fetched_tokenizer_is_taken_by_runs_that_name_none(hubs: Hubs, t5: Path, tmp_path: Path):
    fetch_tokenizer("--t5_tokenizer_dir", t5)

    ended = run_stage("encode-text", tmp_path, t5, t5_tokenizer_dir="")

    assert ended.exit_code == 0, ended.stderr
    assert f"t5_tokenizer_dir is not set: taking {t5}, which was noted earlier" in ended.stderr
