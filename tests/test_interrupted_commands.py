"""Full disks and Ctrl-C: one clear line, and nothing that looks finished and is not."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
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


def said_until(process: subprocess.Popen[str], words: str) -> str:
    """Wait until a process has said some words; return all that it said."""
    assert process.stderr is not None
    said = ""
    while words not in said:
        read = process.stderr.read(1)
        assert read, said
        said += read
    return said


def interrupted(process: subprocess.Popen[str], after: str) -> str:
    """Press Ctrl-C once a process has said some words; return all that it says."""
    said = said_until(process, after)
    os.killpg(process.pid, signal.SIGINT)
    return said + process.communicate(timeout=60)[1]


def terminated(process: subprocess.Popen[str], after: str) -> str:
    """Send SIGTERM to a process alone once it has said some words; return all that it says."""
    said = said_until(process, after)
    process.terminate()
    return said + process.communicate(timeout=60)[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "slowly"),
    [
        ("cache-latents", {"max_data_loader_n_workers": 2}),
        ("encode-text", {"text_encoder_batch_size": 1}),
    ],
)
def test_ctrl_c_ends_a_stage_with_one_line_and_leaves_no_shard_that_looks_finished(
    stage: str, slowly: dict[str, object], tmp_path: Path
):
    model = {name: MODEL[name] for name in TAKES[stage]}
    given = {"dataset_config": demo.DEMO_DATASET, "resolution": 768, "cache_dir": tmp_path}
    run = started(stage, device="cpu", **model, **given, **slowly)

    said = interrupted(run, after="0%|")

    assert run.returncode == 130
    assert "Traceback" not in said
    assert said.endswith("interrupted\n")
    assert shards_in(tmp_path) == []


@pytest.mark.slow
def test_sigterm_ends_a_stage_and_its_decoders_with_one_line(tmp_path: Path):
    given = {"dataset_config": demo.DEMO_DATASET, "resolution": 768, "cache_dir": tmp_path}
    workers = {"max_data_loader_n_workers": 2}
    run = started("cache-latents", device="cpu", vae=MODEL["vae"], **given, **workers)

    said = terminated(run, after="0%|")

    assert run.returncode == 143
    assert "Traceback" not in said
    assert "resource_tracker" not in said
    assert said.endswith("terminated\n")
    assert shards_in(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("ended", [interrupted, terminated])
def test_ctrl_c_and_sigterm_let_the_training_within_all_finish_its_step_and_save(
    ended: Callable[[subprocess.Popen[str], str], str], pictures: Path, tmp_path: Path
):
    given = {"dataset_config": pictures, "output_dir": tmp_path / "out", "device": "cpu"}
    small = {"resolution": 128, "min_bucket_reso": 64, "sample_at_first": False}
    run = started("all", max_train_steps=100_000, **given, **small)

    said = ended(run, "epoch=1")

    assert run.returncode == 2
    assert "Traceback" not in said
    (state,) = (tmp_path / "out").glob("*-state")
    assert said.rstrip().endswith(f"go on with the same command and --resume {state}")
