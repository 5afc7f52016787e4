"""Full disks and Ctrl-C: one clear line, and nothing that looks finished and is not."""

import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner
from commands import (
    MODEL,
    TAKES,
    TRAINING,
    assert_one_error,
    files_in,
    options,
    run_apart,
    shards_in,
)

from anima_pipe import demo
from anima_pipe.cli.main import main

pytestmark = pytest.mark.usefixtures("elsewhere")


LIMITED = """
import resource, signal, sys
from anima_pipe.cli.main import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
main(sys.argv[2:])
"""
"""Runs a command that may write files of so many bytes and no more."""


@pytest.mark.slow
def test_a_disk_that_is_full_when_the_adapter_is_saved_is_an_error_and_leaves_nothing(
    cached: dict[str, object], tmp_path: Path
):
    given = options(**MODEL, **TRAINING, **cached, output_dir=tmp_path / "out", device="cpu")

    run = run_apart(sys.executable, "-c", LIMITED, "100_000", "train", *given)

    assert_one_error(run, "fox.safetensors", "room")
    assert files_in(tmp_path / "out") == set()


def test_a_disk_that_is_full_while_latents_are_cached_is_an_error_and_leaves_no_shard(
    dataset: Path, tmp_path: Path
):
    given = options(dataset_config=dataset, vae=MODEL["vae"], cache_dir=tmp_path, device="cpu")

    stage = run_apart(sys.executable, "-c", LIMITED, "10_000", "cache-latents", *given)

    assert_one_error(stage, str(tmp_path), "room")
    assert shards_in(tmp_path) == []


def started(command: str, **values: object) -> subprocess.Popen[str]:
    """Start a command in a process group of its own, as a terminal does."""
    return subprocess.Popen(
        [sys.executable, "-m", "anima_pipe.cli", command, *options(**values)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        # Whatever runs these tests in the background may have Ctrl-C ignored, and so would they.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )


def wait_for_file(process: subprocess.Popen[str], folder: Path, pattern: str) -> None:
    """Wait until a process has begun to write a file; one that ends before is an error."""
    while not any(path.stat().st_size for path in folder.rglob(pattern)):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


def wait_for_a_whole_sample(process: subprocess.Popen[str], cache: Path) -> None:
    """Wait until the second sample of a shard is being written; so the first is surely kept."""
    while not any(members_in(path) > MEMBERS_OF_A_SAMPLE for path in cache.rglob("*.unfinished")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


MEMBERS_OF_A_SAMPLE = 2
"""Its tensors and its metadata."""


def members_in(tar_in_progress: Path) -> int:
    """Return how many members a tar has whose end is still being written."""
    with suppress(tarfile.ReadError, FileNotFoundError), tarfile.open(tar_in_progress) as tar:
        found = 0
        with suppress(tarfile.ReadError):
            while tar.next():
                found += 1
        return found
    return 0


def interrupted(process: subprocess.Popen[str]) -> str:
    """Press Ctrl-C; return all that a process says."""
    os.killpg(process.pid, signal.SIGINT)
    return process.communicate(timeout=60)[1]


def terminated(process: subprocess.Popen[str]) -> str:
    """Send SIGTERM to a process alone; return all that it says."""
    process.terminate()
    return process.communicate(timeout=60)[1]


def assert_part_of_the_work_is_whole(cache: Path) -> None:
    """Check that a cache has some samples of the demo's, not all, in a shard that is finished."""
    (shard,) = cache.rglob("*.tar")
    with tarfile.open(shard) as tar:
        keys = {Path(name).stem for name in tar.getnames()}
    assert 0 < len(keys) < len(list(demo.DEMO_PICTURES.glob("*.txt")))
    assert [name for name in files_in(cache) if name.endswith((".tmp", ".unfinished"))] == []
    verified = CliRunner().invoke(main, ["cache", "verify", "--cache_dir", str(cache)])
    assert verified.exit_code == 0, verified.output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "slowly"),
    [
        ("cache-latents", {"max_data_loader_n_workers": 2}),
        ("encode-text", {"text_encoder_batch_size": 1}),
    ],
)
def test_ctrl_c_ends_a_stage_with_one_line_and_keeps_what_is_encoded(
    stage: str, slowly: dict[str, object], tmp_path: Path
):
    model = {name: MODEL[name] for name in TAKES[stage]}
    given = {"dataset_config": demo.DEMO_DATASET, "resolution": 768, "cache_dir": tmp_path}
    run = started(stage, device="cpu", **model, **given, **slowly)

    wait_for_a_whole_sample(run, tmp_path)
    said = interrupted(run)

    assert run.returncode == 130
    assert "Traceback" not in said
    assert said.endswith("interrupted\n")
    assert_part_of_the_work_is_whole(tmp_path)


@pytest.mark.slow
def test_sigterm_ends_a_stage_and_its_decoders_with_one_line(tmp_path: Path):
    given = {"dataset_config": demo.DEMO_DATASET, "resolution": 768, "cache_dir": tmp_path}
    workers = {"max_data_loader_n_workers": 2}
    run = started("cache-latents", device="cpu", vae=MODEL["vae"], **given, **workers)

    wait_for_a_whole_sample(run, tmp_path)
    said = terminated(run)

    assert run.returncode == 143
    assert "Traceback" not in said
    assert "resource_tracker" not in said
    assert said.endswith("terminated\n")
    assert_part_of_the_work_is_whole(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("ended", [interrupted, terminated])
def test_ctrl_c_and_sigterm_let_the_training_within_all_finish_its_step_and_save(
    ended: Callable[[subprocess.Popen[str]], str], pictures: Path, tmp_path: Path
):
    given = {"dataset_config": pictures, "output_dir": tmp_path / "out", "device": "cpu"}
    small = {"resolution": 128, "min_bucket_reso": 64, "sample_at_first": False}
    run = started("all", max_train_steps=100_000, **given, **small)

    wait_for_file(run, tmp_path / "out", "metrics.jsonl")
    said = ended(run)

    assert run.returncode == 2
    assert "Traceback" not in said
    (state,) = (tmp_path / "out").glob("*-state")
    assert said.rstrip().endswith(f"go on with the same command and --resume {state}")
