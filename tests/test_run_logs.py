"""What a run logs: metrics.jsonl, TensorBoard, wandb; and that a resumed run goes on with it."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from commands import (
    MODEL,
    ROOT,
    TRAINING,
    Ended,
    anima_pipe,
    assert_one_error,
    options,
    run_apart,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from anima_pipe.hooks.run_log import MetricsFile

Cached = dict[str, object]


def train(cached: Cached, folder: Path, **values: object) -> Ended:
    given = {"log_with": "tensorboard", "logging_dir": folder / "logs", **cached, **values}
    return anima_pipe("train", folder / "summary.json", output_dir=folder / "out", **given)


def only(folder: Path, pattern: str = "*") -> Path:
    (found,) = folder.glob(pattern)
    return found


def metrics(folder: Path) -> list[dict[str, Any]]:
    text = only(folder / "logs", "*/metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def events_of(log: Path) -> EventAccumulator:
    events = EventAccumulator(str(log), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    return events


@pytest.fixture(scope="module")
def logged(cached: Cached, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with validation and previews, everything logged."""
    folder = tmp_path_factory.mktemp("logged")
    (folder / "prompts.txt").write_text("fox --w 64 --h 64 --s 1 --l 1\n")
    values = {"max_train_steps": 3, "sample_prompts": folder / "prompts.txt"}
    train(cached, folder, **values, sample_at_first=True, validation_split=0.3).ok()
    return folder


def test_every_step_is_a_line_of_numbers(logged: Path):
    steps = [line for line in metrics(logged) if "loss/current" in line]

    assert [line["step"] for line in steps] == [1, 2, 3]
    names = set().union(*steps)
    expected = {"loss/average", "grad_norm", "epoch", "skipped_steps", "time"}
    assert names >= expected | {"speed/samples_per_second", "speed/data_wait_seconds"}
    assert names >= {"memory/resident_gib", "memory/used_share"}
    for kind in ("grad_norm", "weight_norm", "lr"):
        assert any(name.startswith(f"{kind}/") for name in names), kind
    assert all(line["memory/resident_gib"] > 0.01 for line in steps)
    assert all(0 < line["speed/samples_per_second"] < 1e5 for line in steps)


def test_the_norm_of_all_gradients_is_that_of_the_groups_together(logged: Path):
    for line in metrics(logged):
        if "grad_norm" in line:
            groups = [value for name, value in line.items() if name.startswith("grad_norm/")]
            assert line["grad_norm"] == pytest.approx(math.hypot(*groups), rel=1e-5)


def test_losses_are_told_by_noise_level(logged: Path):
    for line in metrics(logged):
        bins = [name for name in line if name.startswith("loss/sigma_")]
        assert all(re.fullmatch(r"loss/sigma_0\.\d-[01]\.\d", name) for name in bins)
        assert bool(bins) == ("loss/current" in line)


def test_tensorboard_has_the_numbers_pictures_and_options(logged: Path):
    events = events_of(only(logged / "logs"))

    told = {name for line in metrics(logged) for name in line} - {"step", "time"}
    assert set(events.Tags()["scalars"]) == told
    assert "validation/loss" in told
    assert [image.step for image in events.Images("sample/00")] == [0, 3]
    text = events.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "learning_rate = 0.002" in text
    assert "max_train_steps = 3" in text


def test_anima_monitor_memory_says_whether_memory_is_logged(cached: Cached, tmp_path: Path):
    train(cached, tmp_path, anima_monitor_memory=False).ok()

    assert not any(name.startswith("memory/") for line in metrics(tmp_path) for name in line)


def test_a_resumed_run_goes_on_with_its_log(cached: Cached, tmp_path: Path):
    """Stopped behind step 4 and resumed from step 3: the second step 4 takes the first's place."""
    values = {"save_state": True, "save_every_n_steps": 3, "validation_split": 0.3}
    train(cached, tmp_path, **values, max_train_steps=4).ok()
    state = tmp_path / "out" / "fox-step00000003-state"
    with only(tmp_path / "logs", "*/metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "torn')
    train(cached, tmp_path, **values, max_train_steps=6, resume=state).ok()

    log = only(tmp_path / "logs")
    steps = [line["step"] for line in metrics(tmp_path) if "loss/current" in line]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in events_of(log).Scalars("loss/current")] == steps


def test_a_run_that_branches_off_a_state_leaves_the_first_ones_log_alone(
    cached: Cached, tmp_path: Path
):
    train(cached, tmp_path, save_state=True, save_every_n_steps=1).ok()
    before = only(tmp_path / "logs", "*/metrics.jsonl").read_text()
    state = tmp_path / "out" / "fox-step00000001-state"
    given = {**cached, "log_with": "tensorboard", "logging_dir": tmp_path / "logs"}
    other = {"output_dir": tmp_path / "other", "output_name": "branch"}
    anima_pipe("train", **{**given, **other}, resume=state).ok()

    assert only(tmp_path / "logs", "fox_*/metrics.jsonl").read_text() == before


def test_numbers_that_are_not_finite_are_null(tmp_path: Path):
    file = MetricsFile(tmp_path)
    file.numbers(1, {"loss": math.nan, "rate": 0.5})
    file.close()

    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert (
        json.loads(line, parse_constant=pytest.fail).items() >= {"loss": None, "rate": 0.5}.items()
    )


# wandb


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep wandb from asking for an account, and from writing into the home folder."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb_home"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


def wandb_record(folder: Path) -> bytes:
    return only(folder / "logs", "*/wandb/offline-run-*/run-*.wandb").read_bytes()


def apart(cached: Cached, folder: Path, **values: object) -> Ended:
    """Train in a process of its own: wandb leaves threads behind."""
    given = {**MODEL, **TRAINING, "device": "cpu", "max_data_loader_n_workers": 0, **cached}
    given |= {"output_dir": folder / "out", "logging_dir": folder / "logs", **values}
    return run_apart(sys.executable, "-m", "anima_pipe.cli", "train", *options(**given))


@pytest.mark.slow
def test_log_tracker_name_and_wandb_run_name_are_the_projects_and_runs(
    offline: None, cached: Cached, tmp_path: Path
):
    names = {"log_tracker_name": "foxes", "wandb_run_name": "third-try"}
    apart(cached, tmp_path, log_with="all", **names).ok()

    record = wandb_record(tmp_path)
    assert b"foxes" in record
    assert b"third-try" in record
    assert b"loss/current" in record
    assert list((tmp_path / "logs").glob("*/foxes/events.*"))


@pytest.mark.slow
def test_wandb_api_key_is_handed_to_wandb_and_to_no_log(
    offline: None, cached: Cached, tmp_path: Path
):
    key = "k" * 40
    file = tmp_path / "train_args.toml"
    file.write_text(f'wandb_api_key = "{key}"\n')
    apart(cached, tmp_path, log_with="all", config_file=file).ok()

    assert b"learning_rate" in wandb_record(tmp_path)
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path != file]
    assert not [path for path in written if key.encode() in path.read_bytes()]


@pytest.mark.slow
def test_log_tracker_config_holds_arguments_of_the_trackers(
    offline: None, cached: Cached, tmp_path: Path
):
    config = tmp_path / "trackers.toml"
    config.write_text(
        '[wandb]\nnotes = "of the second kind"\n[tensorboard]\nfilename_suffix = ".x"\n'
    )
    apart(cached, tmp_path, log_with="all", log_tracker_config=config).ok()

    assert b"of the second kind" in wandb_record(tmp_path)
    assert list((tmp_path / "logs").glob("*/events.*.x"))
    config.write_text("[mlflow]\n")
    refused = train(cached, tmp_path, log_tracker_config=config)
    assert_one_error(refused, "trackers.toml line 1", "mlflow")


def test_log_with_names_the_trackers(
    cached: Cached, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    train(cached, tmp_path / "none", log_with="none").ok()
    assert not (tmp_path / "none" / "logs").exists()

    monkeypatch.setitem(sys.modules, "wandb", None)
    for kind in ("wandb", "all"):
        refused = train(cached, tmp_path / kind, log_with=kind)
        assert_one_error(refused, "not installed", "pip install wandb")
        assert not (tmp_path / kind / "out").exists()


# TensorBoard's own server


@pytest.mark.slow
def test_auto_start_tensorboard_answers_at_the_next_free_port(cached: Cached, tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        values = {"auto_start_tensorboard": True, "tensorboard_host": "127.0.0.1"}
        shown = {"tensorboard_port": port, "tensorboard_logdir": tmp_path / "logs"}
        ended = apart(cached, tmp_path, log_with="tensorboard", **values, **shown).ok()

    found = re.search(r"tensorboard (http://127\.0\.0\.1:(\d+)) .*kill (\d+)", ended.said)
    assert found, ended.said
    try:
        assert port < int(found[2]) <= port + 20
        assert only(tmp_path / "logs").name in _runs_shown(found[1])
    finally:
        os.kill(int(found[3]), signal.SIGTERM)


def _runs_shown(address: str, patience_seconds: float = 60) -> str:
    end = time.monotonic() + patience_seconds
    while True:
        try:
            with urllib.request.urlopen(f"{address}/data/runs", timeout=5) as answer:
                return answer.read().decode()
        except OSError:
            assert time.monotonic() < end, "TensorBoard does not answer"
            time.sleep(0.3)


@pytest.mark.slow
def test_a_run_that_is_watched_and_killed_resumes_to_the_bytes_of_one_that_is_neither(
    cached: Cached, tmp_path: Path
):
    """Validation, previews, logs, alarms and kill -9 change neither the weights nor the log."""
    # A cache of its own: its captions have variants.
    shutil.copytree(str(cached["cache_dir"]), tmp_path / "cache")
    (tmp_path / "prompts.txt").write_text("fox --w 64 --h 64 --s 1 --l 1\n")
    plain = {
        **cached,
        "cache_dir": tmp_path / "cache",
        "caption_variants": 2,
        "shuffle_caption": True,
        "validation_split": 0.3,
        "network_dropout": 0.1,
        "gradient_accumulation_steps": 2,
        # Metadata tell how often a run is validated.
        "no_metadata": True,
        "ema_decay": 0.9,
        "max_train_steps": 5,
    }
    watched = {
        **plain,
        "validate_every_n_steps": 1,
        "sample_prompts": tmp_path / "prompts.txt",
        "sample_every_n_steps": 1,
        "save_state": True,
        "save_every_n_steps": 2,
    }
    train(plain, tmp_path / "alone", validate_every_n_steps=100).ok()
    folder = tmp_path / "watched"
    _killed_behind(folder / "out" / "fox-step00000002-state", watched, folder)
    resumed = train(watched, folder, resume="latest").ok()
    assert "resumed   at step " in resumed.said

    for name in ("fox.safetensors", "fox-ema.safetensors"):
        files = [tmp_path / run / "out" / name for run in ("alone", "watched")]
        assert files[0].read_bytes() == files[1].read_bytes()
    steps = [1, 2, 3, 4, 5]
    lines = [line for line in metrics(folder) if "loss/current" in line]
    assert [line["step"] for line in lines] == steps
    events = events_of(only(folder / "logs"))
    assert [event.step for event in events.Scalars("loss/current")] == steps
    validated = [line["step"] for line in metrics(folder) if "validation/loss" in line]
    assert validated == [0, *steps]
    uninterrupted = [line for line in metrics(tmp_path / "alone") if "loss/current" in line]
    for told, expected in zip(lines, uninterrupted, strict=True):
        losses = [name for name in expected if name.startswith("loss/")]
        assert [told[name] for name in losses] == [expected[name] for name in losses]


def _killed_behind(state: Path, given: Cached, folder: Path) -> None:
    """Train in a process of its own, and kill it once there is a state."""
    own = {**MODEL, **TRAINING, "device": "cpu", "max_data_loader_n_workers": 0, **given}
    own |= {"output_dir": folder / "out", "logging_dir": folder / "logs"}
    own |= {"log_with": "tensorboard"}
    process = subprocess.Popen(
        [sys.executable, "-m", "anima_pipe.cli", "train", *options(**own)],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    while not state.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (folder / "out" / "fox.safetensors").exists()
