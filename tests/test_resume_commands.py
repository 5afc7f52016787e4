"""Killed, interrupted and resumed runs of the real command."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from commands import (
    MODEL,
    ROOT,
    TRAINING,
    anima_pipe,
    assert_one_error,
    options,
    run_apart,
    write_dataset,
)
from safetensors import safe_open
from safetensors.torch import load_file
from worker_tasks import SOURCES

STEPS = 8


def arguments(cached: dict[str, object], folder: Path, **values: object) -> dict[str, object]:
    return {
        **cached,
        "output_dir": folder,
        "max_train_steps": STEPS,
        "network_dropout": 0.1,
        "save_state": True,
        "save_every_n_steps": 2,
        **values,
    }


def started(given: dict[str, object]) -> subprocess.Popen[str]:
    """Start `anima-pipe train` in a process of its own."""
    given = {**MODEL, **TRAINING, "device": "cpu", "max_data_loader_n_workers": 0, **given}
    return subprocess.Popen(
        [sys.executable, "-m", "anima_pipe.cli", "train", *options(**given)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def data_of(path: Path) -> bytes:
    """Return a file's tensors, without the metadata, which tells the arguments."""
    return tensor_bytes(path.read_bytes())


def tensor_bytes(content: bytes) -> bytes:
    return content[8 + int.from_bytes(content[:8], "little") :]


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(cached: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The adapter of a run in one go."""
    folder = tmp_path_factory.mktemp("whole")
    ended = anima_pipe("train", **arguments(cached, folder)).ok()
    assert "state saved" in ended.said
    return (folder / "fox.safetensors").read_bytes()


def test_a_killed_run_resumes_to_the_bytes_of_one_in_one_go(cached, whole, tmp_path):
    process = started(arguments(cached, tmp_path))
    wait_for(tmp_path / "fox-step00000002-state", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "fox.safetensors").exists()

    given = arguments(cached, tmp_path, resume="latest")
    resumed = anima_pipe("train", tmp_path / "summary.json", **given).ok()
    assert "resumed" in resumed.said
    assert resumed.summary is not None
    assert resumed.summary["steps"] == STEPS
    assert (tmp_path / "fox.safetensors").read_bytes() == whole


FAULTY = """
import sys
import faulty_disk
from anima_pipe.cli.main import main
faulty_disk.exchange_nothing()
faulty_disk.die_before_renaming_to("fox-state")
main(sys.argv[1:])
"""
"""A command on a system that puts folders aside, killed while the state is put there."""


@pytest.mark.parametrize("latest", [True, False])
def test_a_state_that_was_aside_at_a_kill_is_found_and_resumed_from(
    cached, whole, tmp_path, latest
):
    state = tmp_path / "fox-state"
    anima_pipe("train", **arguments(cached, tmp_path, max_train_steps=2)).ok()
    given = arguments(cached, tmp_path, max_train_steps=4, resume=state)
    command = options(**MODEL, **TRAINING | given, device="cpu", max_data_loader_n_workers=0)
    killed = run_apart(sys.executable, "-c", FAULTY, "train", *command, PYTHONPATH=SOURCES)
    assert killed.code == -signal.SIGKILL, killed.said
    assert not state.exists()
    (tmp_path / "fox.safetensors").unlink()  # of step 4, which latest would ask about

    given = arguments(cached, tmp_path, resume="latest" if latest else state)
    assert "resumed" in anima_pipe("train", **given).ok().said
    assert data_of(tmp_path / "fox.safetensors") == tensor_bytes(whole)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_terminated_run_finishes_its_step_and_says_how_to_go_on(cached, whole, tmp_path):
    process = started(arguments(cached, tmp_path, save_state=False, save_every_n_steps=1))
    wait_for(tmp_path / "fox-step00000001.safetensors", process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 0, said
    states = [path for path in tmp_path.iterdir() if path.name.endswith("-state")]
    assert len(states) == 1
    assert f"--resume {states[0]}" in said

    given = arguments(cached, tmp_path, save_state=False, resume=states[0])
    anima_pipe("train", **given).ok()
    # save_every_n_steps is not part of the mathematics, and may differ.
    assert (tmp_path / "fox.safetensors").read_bytes() == whole


def test_a_state_of_other_options_is_refused_by_their_names(cached, whole, tmp_path):
    anima_pipe("train", **arguments(cached, tmp_path, max_train_steps=2)).ok()
    given = arguments(cached, tmp_path, resume="latest", learning_rate=1e-3)
    refused = anima_pipe("train", **given)
    assert refused.code == 2
    assert "learning_rate: 0.002 then, 0.001 now" in refused.said
    assert "--resume_allow learning_rate" in refused.said
    allowed = anima_pipe("train", **given, resume_allow=["learning_rate"]).ok()
    assert "resumed" in allowed.said
    assert (tmp_path / "fox.safetensors").read_bytes() != whole


def test_a_state_is_gone_on_from_where_the_pictures_lie_elsewhere(
    cached, whole, pictures, tmp_path
):
    anima_pipe("train", **arguments(cached, tmp_path, max_train_steps=2)).ok()
    moved = Path(shutil.copytree(pictures, tmp_path / "moved" / pictures.name))
    dataset = write_dataset(tmp_path / "moved.toml", moved)
    given = arguments(cached, tmp_path, dataset_config=dataset, resume="latest")
    assert "resumed" in anima_pipe("train", **given).ok().said
    assert (tmp_path / "fox.safetensors").read_bytes() == whole


@pytest.mark.parametrize("name", ["max_train_epochs", "max_train_steps"])
def test_another_length_is_allowed_by_either_name(cached, tmp_path, name):
    longer = {"lr_scheduler": "cosine", "max_train_steps": None, "save_every_n_steps": None}
    anima_pipe("train", **arguments(cached, tmp_path, **longer, max_train_epochs=1)).ok()
    given = arguments(cached, tmp_path, **longer, max_train_epochs=2, resume="latest")
    assert_one_error(anima_pipe("train", **given), "max_train_steps: ")
    assert "resumed" in anima_pipe("train", **given, resume_allow=[name]).ok().said


def test_what_is_to_be_allowed_has_to_be_something(cached, tmp_path):
    anima_pipe("train", **arguments(cached, tmp_path, max_train_steps=2)).ok()
    given = arguments(cached, tmp_path, resume="latest", resume_allow=["learning_rat"])
    refused = anima_pipe("train", **given)
    assert_one_error(refused, "resume_allow learning_rat: no option")
    assert "did you mean learning_rate?" in refused.said


@pytest.mark.parametrize("described", [True, False])
def test_a_state_of_kohyas_is_refused_with_what_to_do_instead(cached, tmp_path, described):
    state = tmp_path / "theirs-000004-state"
    state.mkdir()
    (state / "optimizer.bin").touch()
    (tmp_path / "theirs-000004.safetensors").touch()
    if described:
        (state / "train_state.json").write_text('{"current_epoch": 4, "current_step": 40}')
    given = arguments(cached, tmp_path / "out", resume=state)
    refused = anima_pipe("train", **given)
    assert_one_error(refused, f"{state} is a state of Kohya's scripts")
    assert "give its .safetensors as network_weights: " in refused.said
    assert "theirs-000004.safetensors" in refused.said


@pytest.mark.parametrize(
    ("name", "problem", "remedy"),
    [
        ("fox.safetensors", "is an adapter, not a saved state", "give it as network_weights"),
        ("fox", "is not a saved state: train_state.json: No such file", "ends in -state"),
    ],
)
def test_what_is_no_state_is_named_without_what_the_system_calls_it(
    name: str, problem: str, remedy: str, tmp_path: Path
):
    refused = anima_pipe("train", output_dir=tmp_path, resume=tmp_path / name)

    assert_one_error(refused, f"{tmp_path / name} {problem}", remedy)
    assert "Errno" not in refused.said


@pytest.mark.parametrize(
    ("name", "then", "now"),
    [
        ("optimizer_args", ["weight_decay=0.0"], ["weight_decay=50.0"]),
        # Left out again, an argument has its default.
        ("optimizer_args", ["weight_decay=50.0"], None),
        ("network_args", ["norm_lr=1e-3"], ["norm_lr=1e-5"]),
    ],
)
def test_arguments_that_may_differ_take_effect(cached, tmp_path, name, then, now):
    anima_pipe("train", **arguments(cached, tmp_path, max_train_steps=4, **{name: then})).ok()
    ended: list[bytes] = []
    for value in (then, now):
        given = arguments(cached, tmp_path, max_train_steps=4, **{name: value})
        state = tmp_path / "fox-step00000002-state"
        anima_pipe("train", **given, resume=state, resume_allow=[name]).ok()
        ended.append(data_of(tmp_path / "fox.safetensors"))
    assert ended[0] != ended[1]


@pytest.fixture(scope="module")
def halved(cached: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state behind two steps of a run whose rate is halved every two steps."""
    folder = tmp_path_factory.mktemp("halved")
    given = arguments(cached, folder, max_train_steps=2, save_every_n_steps=None)
    anima_pipe("train", **given, **HALVING).ok()
    return folder / "fox-state"


HALVING: dict[str, object] = {
    "lr_scheduler_type": "StepLR",
    "lr_scheduler_args": ["step_size=2", "gamma=0.5"],
}


@pytest.mark.parametrize(
    ("changed", "allowed", "rates"),
    [
        # As if the run had begun with it.
        ({"lr_scheduler_args": ["step_size=1", "gamma=0.1"]}, ["lr_scheduler"], [2e-5, 2e-6]),
        (
            {"lr_scheduler_type": None, "lr_scheduler_args": None, "lr_scheduler": "linear"},
            ["lr_scheduler", "max_train_steps"],
            [1e-3, 5e-4],
        ),
        ({"learning_rate": 1e-2}, ["learning_rate"], [5e-3, 5e-3]),
        ({"optimizer_type": "SGDNesterov"}, ["optimizer_type"], [1e-3, 1e-3]),
        ({"ema_decay": 0.9}, ["ema_decay"], [1e-3, 1e-3]),
        ({"mixed_precision": "fp16"}, ["mixed_precision"], [1e-3, 1e-3]),
    ],
)
def test_what_may_differ_is_as_the_run_was_given_it(
    cached, halved, tmp_path, changed, allowed, rates
):
    given = arguments(cached, tmp_path, max_train_steps=4, **{**HALVING, **changed})
    given |= {"log_with": "tensorboard", "logging_dir": tmp_path / "logs"}
    refused = anima_pipe("train", **given, resume=halved)
    assert refused.code == 2
    assert all(name in refused.said.partition("--resume_allow ")[2] for name in allowed)
    resumed = anima_pipe("train", **given, resume=halved, resume_allow=allowed).ok()
    assert ("begins afresh" in resumed.said) == ("optimizer_type" in changed)
    assert [line["lr/linear"] for line in metrics(tmp_path)] == pytest.approx(rates, rel=1e-6)


def metrics(folder: Path) -> list[dict[str, float]]:
    (file,) = (folder / "logs").glob("*/metrics.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_state_goes_on_with_the_alphas_of_the_file_that_its_run_began_from(cached, tmp_path):
    started_from = tmp_path / "first"
    first = arguments(cached, started_from, max_train_steps=1, network_alpha=8)
    anima_pipe("train", **first).ok()
    weights = started_from / "fox.safetensors"
    anima_pipe("train", **arguments(cached, tmp_path, network_weights=weights)).ok()
    given = arguments(cached, tmp_path, resume=tmp_path / "fox-step00000002-state")
    without = anima_pipe("train", **given)
    assert without.code == 2
    assert "network_weights" in without.said


def test_a_name_that_leads_to_another_folder_is_written_found_and_pruned_there(cached, tmp_path):
    given = arguments(cached, tmp_path, output_name="of/fox", save_every_n_steps=1)
    given |= {"save_last_n_steps": 1}
    first = anima_pipe("train", **{**given, "max_train_steps": 4}).ok()
    assert f"{tmp_path / 'of' / 'fox.safetensors'}" in first.said
    saved = sorted(path.name for path in (tmp_path / "of").glob("fox-step*.safetensors"))
    states = sorted(path.name for path in (tmp_path / "of").glob("*-state"))
    assert saved == [f"fox-step0000000{step}.safetensors" for step in (3, 4)]
    assert states == ["fox-state", "fox-step00000003-state"]
    with safe_open(tmp_path / "of" / "fox.safetensors", framework="pt") as file:
        assert file.metadata()["ss_output_name"] == "fox"

    resumed = anima_pipe("train", **{**given, "max_train_steps": 6, "resume": "latest"}).ok()
    assert f"from {tmp_path / 'of' / 'fox-state'}" in resumed.said


def test_a_run_that_is_done_has_nothing_to_resume(cached, tmp_path):
    anima_pipe("train", **arguments(cached, tmp_path, max_train_steps=2)).ok()
    done = anima_pipe("train", **arguments(cached, tmp_path, max_train_steps=2, resume="latest"))
    assert done.code == 2
    assert "raise max_train_steps" in done.said


def remedy(said: str) -> list[str]:
    """Return the words of what is said to do, without signs."""
    return said.rpartition("Fix: ")[2].replace(":", " ").replace(",", " ").split()


def allowed_by(said: str) -> list[str]:
    words = remedy(said)
    return words[words.index("--resume_allow") + 1 :]


@pytest.mark.parametrize("length", ["max_train_steps", "max_train_epochs"])
def test_a_finished_run_whose_rate_follows_its_length_is_told_at_once_how_to_go_on(
    cached, tmp_path, length
):
    given = arguments(cached, tmp_path, lr_scheduler="cosine", save_every_n_steps=None)
    given |= {"max_train_steps": None, length: 1}
    anima_pipe("train", **given).ok()
    given["resume"] = "latest"

    finished = anima_pipe("train", **given)
    assert finished.code == 2
    assert remedy(finished.said)[:2] == ["raise", length]
    allowed = allowed_by(finished.said)[:1]
    raised = anima_pipe("train", **{**given, length: 2})
    assert raised.code == 2
    assert "put the old values back" not in raised.said
    assert allowed_by(raised.said) == allowed
    assert "resumed" in anima_pipe("train", **{**given, length: 2}, resume_allow=allowed).ok().said


def test_what_was_allowed_before_stays_among_what_is_to_be_allowed(cached, tmp_path):
    anima_pipe("train", **arguments(cached, tmp_path, max_train_steps=2)).ok()
    given = arguments(cached, tmp_path, resume="latest", learning_rate=1e-3, max_grad_norm=0.5)
    refused = anima_pipe("train", **given, resume_allow=["learning_rate"])
    assert refused.code == 2
    assert allowed_by(refused.said) == ["learning_rate", "max_grad_norm"]
    assert (
        "resumed" in anima_pipe("train", **given, resume_allow=allowed_by(refused.said)).ok().said
    )


def test_nothing_is_to_be_allowed_where_the_tensors_are_others(cached, tmp_path):
    anima_pipe("train", **arguments(cached, tmp_path, max_train_steps=2)).ok()
    refused = anima_pipe("train", **arguments(cached, tmp_path, resume="latest", network_dim=8))
    assert refused.code == 2
    assert "rank" in refused.said or "network_dim" in refused.said
    assert "--resume_allow" not in refused.said
    assert remedy(refused.said)[:5] == ["put", "the", "old", "values", "back"]


def test_an_average_is_saved_beside_the_adapter_and_survives_a_resumption(cached, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    anima_pipe("train", **arguments(cached, whole, ema_decay=0.9)).ok()
    anima_pipe("train", **arguments(cached, parts, ema_decay=0.9, save_every_n_steps=3)).ok()
    shutil.rmtree(parts / "fox-state")
    for name in ("fox.safetensors", "fox-ema.safetensors"):
        (parts / name).unlink()
    anima_pipe("train", **arguments(cached, parts, ema_decay=0.9, resume="latest")).ok()
    average = (whole / "fox-ema.safetensors").read_bytes()
    assert average != (whole / "fox.safetensors").read_bytes()
    assert (parts / "fox-ema.safetensors").read_bytes() == average


def test_a_state_by_time_replaces_the_one_before(cached, whole, tmp_path):
    given = arguments(cached, tmp_path, save_state=False, save_every_n_steps=None)
    ended = anima_pipe("train", **given, save_state_every_minutes=1e-9).ok()
    assert ended.said.count("state saved") == STEPS - 1
    assert [path.name for path in tmp_path.glob("*-state")] == [f"fox-step{STEPS - 1:08}-state"]
    resumed = tmp_path / "resumed"
    state = tmp_path / f"fox-step{STEPS - 1:08}-state"
    given |= {"output_dir": resumed, "resume": state}
    anima_pipe("train", **given).ok()
    assert (resumed / "fox.safetensors").read_bytes() == whole

    # One from before a resumption is replaced as well.
    earlier = arguments(cached, tmp_path / "on", save_state=False, save_every_n_steps=None)
    earlier |= {"save_state_every_minutes": 1e-9, "max_train_steps": STEPS + 2}
    shutil.copytree(state, tmp_path / "on" / state.name)
    anima_pipe("train", **earlier, resume="latest").ok()
    names = [path.name for path in (tmp_path / "on").glob("*-state")]
    assert names == [f"fox-step{STEPS + 1:08}-state"]

    seldom = tmp_path / "seldom"
    given |= {"output_dir": seldom, "resume": None}
    anima_pipe("train", **given, save_state_every_minutes=60).ok()
    assert not list(seldom.glob("*-state"))


@pytest.mark.parametrize(
    ("ratio", "epochs"), [(2, {2}), (3, {1, 2, 3}), (9, {1, 2, 3}), (None, {2})]
)
def test_so_many_saves_are_spread_over_the_run(cached, tmp_path, ratio, epochs):
    # Four steps an epoch: sixteen are four epochs, the last of which is saved in the end.
    given = {"max_train_steps": 16, "save_every_n_steps": None, "save_every_n_epochs": 2}
    ended = anima_pipe(
        "train", **arguments(cached, tmp_path, **given, save_n_epoch_ratio=ratio)
    ).ok()
    for suffix in (".safetensors", "-state"):
        found = {path.name for path in tmp_path.glob(f"fox-0*{suffix}")}
        assert found == {f"fox-{epoch:06}{suffix}" for epoch in epochs}
    warned = "save_every_n_epochs (command line) has no effect beside save_n_epoch_ratio"
    assert (warned in ended.said) == (ratio is not None)


def test_the_latest_state_is_not_one_that_a_finished_run_has_left_behind(cached, tmp_path):
    given = arguments(cached, tmp_path, max_train_steps=3)
    anima_pipe("train", **given, save_last_n_steps_state=1).ok()
    shutil.rmtree(tmp_path / "fox-state")
    refused = anima_pipe("train", **given | {"max_train_steps": 5}, resume="latest")
    assert refused.code == 2
    assert "fox-step00000002-state, is of step 2, but fox.safetensors is of step 3" in refused.said
    # An adapter from before the state is of another run.
    os.utime(tmp_path / "fox.safetensors", (1, 1))
    anima_pipe("train", **given | {"max_train_steps": 5}, resume="latest").ok()


def test_the_latest_state_is_not_that_of_a_run_whose_name_begins_alike(cached, tmp_path):
    anima_pipe("train", **arguments(cached, tmp_path, max_train_steps=2), output_name="fox2").ok()
    refused = anima_pipe("train", **arguments(cached, tmp_path, resume="latest"))
    assert refused.code == 2
    assert "no state of fox in" in refused.said


def test_previews_and_validation_in_between_leave_a_resumed_run_to_the_bit(cached, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("fox --w 64 --h 64 --s 1 --l 1\n")
    shared = {"validation_split": 0.2, "max_train_steps": 4}
    looking = {
        "sample_prompts": prompts,
        "sample_every_n_steps": 1,
        "validate_every_n_steps": 1,
    }
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    anima_pipe("train", **arguments(cached, whole, **shared)).ok()
    anima_pipe("train", **arguments(cached, parts, **shared, **looking)).ok()
    shutil.rmtree(parts / "fox-state")
    (parts / "fox.safetensors").unlink()
    anima_pipe("train", **arguments(cached, parts, **shared, **looking, resume="latest")).ok()
    assert (parts / "sample" / "fox.png").exists()
    theirs, ours = (load_file(folder / "fox.safetensors") for folder in (whole, parts))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"discrete_flow_shift": 3.0, "timestep_sampling": "shift"}, "objective.sigmas.shift"),
        ({"lr_scheduler": "cosine"}, "lr_scheduler.kind"),
        ({"network_dropout": 0.2}, "network_args.dropout"),
        ({"gradient_accumulation_steps": 2}, "batches_per_step"),
        ({"max_grad_norm": 0.5}, "max_grad_norm"),
        ({"cache_dtype": "bf16"}, "vae"),
    ],
)
def test_what_changes_the_mathematics_is_named_and_can_be_allowed(cached, tmp_path, changed, named):
    # A cache of its own: what another precision adds to the shared one would puzzle other tests.
    shutil.copytree(cached["cache_dir"], tmp_path / "cache")
    own = {**cached, "cache_dir": tmp_path / "cache"}
    given = arguments(own, tmp_path, max_train_steps=2)
    anima_pipe("train", **given).ok()
    given |= {"max_train_steps": 3, "resume": "latest"} | changed
    refused = anima_pipe("train", **given)
    assert refused.code == 2
    assert f"{named}: " in refused.said
    group = named.partition(".")[0]
    hinted = refused.said.partition("--resume_allow ")[2].split("\n")[0].split()
    assert group in {name.partition(".")[0] for name in hinted}
    allowed = {name.partition(".")[0] for name in hinted}
    if "network_args" not in allowed:
        anima_pipe("train", **given, resume_allow=sorted(allowed)).ok()


@pytest.mark.parametrize(
    "changed",
    [
        {"optimizer_type": "Lion", "optimizer_args": ["weight_decay=0.1"]},
        {"optimizer_type": "Prodigy", "learning_rate": 1.0},
        {"network_args": ["norm_lr=1e-4"]},
    ],
    ids=lambda changed: next(iter(changed.values())),
)
def test_what_the_remedy_says_is_enough_where_the_state_knows_nothing_of_it(
    cached, tmp_path, changed
):
    given = arguments(cached, tmp_path, max_train_steps=2)
    anima_pipe("train", **given).ok()
    given |= {"max_train_steps": 3, "resume": "latest", **changed}
    refused = anima_pipe("train", **given)
    assert refused.code == 2
    assert (
        "resumed" in anima_pipe("train", **given, resume_allow=allowed_by(refused.said)).ok().said
    )
