"""Training by two processes is training by one that takes twice the batches for a step."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from commands import (
    LAUNCH_TWO,
    MODEL,
    ROOT,
    SCRIPTS,
    TRAINING,
    Ended,
    anima_pipe,
    files_in,
    options,
    run_apart,
    tensors_of,
)
from last_threads import THREADS, gloo_threads

CONFIGS = ROOT / "configs" / "accelerate"

SHARDED = (
    *(SCRIPTS / "accelerate", "launch", "--config_file", CONFIGS / "fsdp.yaml"),
    ROOT / "anima_train_network.py",
)
"""What starts two that each keep a part of the base."""

STATE = "fox-step00000002-state"

DDP = {"ddp_timeout": 30, "ddp_gradient_as_bucket_view": True, "ddp_static_graph": True}


@dataclass
class Both:
    """Two processes, and one in their place."""

    folder: Path
    two: Ended
    one: Ended
    again: Ended
    """Two that went on from the first two's state, their gradients exchanged otherwise."""
    sharded: Ended
    """Two with the base sharded over them."""
    sharded_again: Ended
    """Two that went on from the state of those."""


@pytest.fixture(scope="module")
def both(
    cached: dict[str, object], dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> Both:
    folder = tmp_path_factory.mktemp("two")
    threes = folder / "threes.toml"
    # Three batches in an epoch: the second step of each has one for the first process alone.
    text = dataset.read_text().replace("batch_size = 2", "batch_size = 3")
    threes.write_text(text.replace("[[datasets]]", "[[datasets]]\nvalidation_split = 0.2"))
    (folder / "prompts.txt").write_text("fox --w 64 --h 64 --s 2 --l 3\n")
    shared = {
        **cached,
        "dataset_config": threes,
        "max_train_steps": 3,
        "sample_prompts": folder / "prompts.txt",
        "network_dropout": 0.1,
        "fp8_base": True,
        "gradient_checkpointing": True,
        "ema_decay": 0.5,
        "save_state": True,
        "save_every_n_steps": 2,
    }
    given = {**MODEL, **TRAINING, **shared, "device": "cpu", "output_dir": folder / "two"}
    summary = folder / "summary.json"
    two = run_apart(*LAUNCH_TWO, *options(**given, summary_json=summary), summary=summary)
    resumed = {"output_dir": folder / "resumed", "resume": folder / "two" / STATE, **DDP}
    (notes := folder / "notes").mkdir()
    noting = (Path(__file__).with_name("last_threads.py"), notes / "whole")
    again = run_apart(*LAUNCH_TWO[:-1], *noting, *options(**given | resumed))
    parts = {"output_dir": folder / "sharded"}
    sharded = run_apart(*SHARDED, *options(**given | parts))
    resumed = {"output_dir": folder / "gone-on", "resume": folder / "sharded" / STATE}
    noting = (Path(__file__).with_name("last_threads.py"), notes / "sharded")
    sharded_again = run_apart(*SHARDED[:-1], *noting, *options(**given | resumed))
    one = anima_pipe(
        "train",
        folder / "one.json",
        output_dir=folder / "one",
        gradient_accumulation_steps=2,
        **shared,
    )
    return Both(
        folder=folder,
        two=two.ok(),
        one=one.ok(),
        again=again.ok(),
        sharded=sharded.ok(),
        sharded_again=sharded_again.ok(),
    )


@pytest.mark.slow
def test_two_processes_train_what_one_trains_on_twice_the_batches(both: Both):
    two, one = tensors_of(both.two), tensors_of(both.one)

    assert two.keys() == one.keys()
    assert all(torch.allclose(two[name], one[name], rtol=1e-4, atol=1e-6) for name in one)
    assert both.two.summary is not None
    assert both.one.summary is not None
    for loss in ("first_loss", "final_loss"):
        assert both.two.summary[loss] == pytest.approx(both.one.summary[loss], rel=1e-5)
    assert both.two.summary["steps"] == both.one.summary["steps"] == 3


@pytest.mark.slow
def test_two_processes_leave_the_files_of_one(both: Both):
    assert files_in(both.folder / "two") == files_in(both.folder / "one")
    assert "sample/fox.png" in files_in(both.folder / "two")


@pytest.mark.slow
def test_two_processes_speak_with_one_voice(both: Both):
    assert both.two.said.count("images      5") == 1
    assert both.two.said.count("all 6 already cached") == 1
    assert "2 processes" in both.two.said
    assert "destroy_process_group" not in both.two.said


@pytest.mark.slow
def test_processes_measure_what_leaks_as_one_does_with_parts_of_the_base_too(both: Both):
    """Each figure a percentage of two decimals; of the first process alone where each has all."""
    lines = [
        [line for line in run.said.splitlines() if line.startswith("leakage")]
        for run in (both.one, both.two, both.sharded)
    ]
    # Of the adapter and of its average, at two saves; behind what it is measured by.
    assert [len(of_run) for of_run in lines] == [5, 5, 5]
    figures = [[float(n) for n in re.findall(r"(-?[\d.]+)%", "".join(run))] for run in lines]
    assert len(figures[0]) == 16
    assert figures[1:] == [pytest.approx(figures[0], abs=0.02)] * 2


@pytest.mark.slow
def test_two_processes_resume_to_the_bytes_of_two_that_never_stopped(both: Both):
    assert "resumed   at step 2" in both.again.said
    whole, resumed = (both.folder / name / "fox.safetensors" for name in ("two", "resumed"))
    assert resumed.read_bytes() == whole.read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(not THREADS.exists(), reason="only Linux tells of C++'s threads")
def test_two_processes_end_without_threads_that_could_meet_a_python_taken_down(both: Both):
    for kind in ("whole", "sharded"):
        assert [gloo_threads(both.folder / "notes" / kind, rank) for rank in (0, 1)] == [[], []]


@pytest.mark.slow
def test_two_processes_with_parts_of_the_base_leave_the_files_of_two_with_all_of_it(both: Both):
    whole, sharded = (files_in(both.folder / name) for name in ("two", "sharded"))
    assert sharded == whole
    assert {"fox.safetensors", "fox-ema.safetensors", "sample/fox.png"} < sharded
    assert {f"{STATE}/optimizer.pt", f"{STATE}/adapter.safetensors"} < sharded
    for name in sharded:
        theirs, ours = (both.folder / folder / name for folder in ("two", "sharded"))
        assert ours.read_bytes() == theirs.read_bytes(), name


@pytest.mark.slow
def test_two_processes_with_parts_of_the_base_resume_to_the_bytes(both: Both):
    assert "resumed   at step 2" in both.sharded_again.said
    whole, resumed = (both.folder / name / "fox.safetensors" for name in ("sharded", "gone-on"))
    assert resumed.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_the_plan_tells_of_a_base_that_is_sharded(both: Both):
    assert "sharded over the processes" in both.sharded.said
    assert "sharded over the processes" not in both.two.said
    assert ", for each process" in both.sharded.said


@pytest.mark.slow
def test_two_processes_limit_norms_and_ranks_as_one_does(cached: dict[str, object], tmp_path: Path):
    # Of both, what is done depends on each process's own noise levels, or on weights after a step.
    shared = {
        **cached,
        "max_train_steps": 2,
        "learning_rate": 1e-2,
        "network_module": "networks.tlora_anima",
        "network_args": ["min_rank=1"],
        "scale_weight_norms": 0.01,
    }
    given = {**MODEL, **TRAINING, **shared, "device": "cpu", "output_dir": tmp_path / "two"}
    summary = tmp_path / "summary.json"
    two = run_apart(*LAUNCH_TWO, *options(**given, summary_json=summary), summary=summary).ok()
    one = anima_pipe(
        "train",
        tmp_path / "one.json",
        output_dir=tmp_path / "one",
        gradient_accumulation_steps=2,
        **shared,
    ).ok()

    found, expected = tensors_of(two), tensors_of(one)
    assert all(torch.allclose(found[n], expected[n], rtol=1e-3, atol=1e-5) for n in expected)
    for name in [name for name in found if name.endswith("lora_B.weight")]:
        down = found[name.replace("lora_B", "lora_A")]
        assert (found[name] @ down).norm() / len(down) <= 0.01 * (1 + 1e-4), name


@pytest.mark.slow
def test_two_processes_pass_over_a_step_that_one_of_them_cannot_take(
    cached: dict[str, object], dataset: Path, tmp_path: Path
):
    # One picture of six, whose loss is infinite: the other process has a sound one in that step.
    (folder,) = re.findall(r"image_dir = (.*)", dataset.read_text())
    apart = tmp_path / "apart"
    apart.mkdir()
    first = min(Path(json.loads(folder)).glob("*.txt"))
    for path in Path(json.loads(folder)).glob(f"{first.stem}.*"):
        shutil.copy(path, apart)
    broken = tmp_path / "broken.toml"
    text = dataset.read_text().replace("batch_size = 2", "batch_size = 1")
    subset = f"[[datasets.subsets]]\nimage_dir = {json.dumps(str(apart))}\nloss_weight = 1e39\n"
    broken.write_text(f"{text}{subset}")
    shared = {
        **cached,
        "dataset_config": broken,
        "max_train_steps": 4,
        "on_nonfinite": "skip",
    }
    given = {**MODEL, **TRAINING, **shared, "device": "cpu", "output_dir": tmp_path / "two"}
    summary = tmp_path / "summary.json"
    two = run_apart(*LAUNCH_TWO, *options(**given, summary_json=summary), summary=summary).ok()
    one = anima_pipe(
        "train",
        tmp_path / "one.json",
        output_dir=tmp_path / "one",
        gradient_accumulation_steps=2,
        **shared,
    ).ok()

    for ended in (two, one):
        assert ended.summary is not None
        assert ended.summary["skipped_steps"] == 1
    # Both name the pictures of both.
    (said, expected) = (re.findall(r"passed over, on (.*)", ended.said) for ended in (two, one))
    assert sorted(said[0].split(", ")) == sorted(expected[0].split(", "))
    assert len(said[0].split(", ")) == 2
    found, wanted = tensors_of(two), tensors_of(one)
    assert all(torch.allclose(found[n], wanted[n], rtol=1e-3, atol=1e-5) for n in wanted)


@pytest.mark.slow
def test_two_processes_measure_what_is_held_out_as_one_does(
    cached: dict[str, object], dataset: Path, tmp_path: Path
):
    # Three pictures are held out: the second process has none in the last round.
    halves = tmp_path / "halves.toml"
    text = dataset.read_text().replace("batch_size = 2", "batch_size = 1")
    halves.write_text(text.replace("[[datasets]]", "[[datasets]]\nvalidation_split = 0.5"))
    given = {
        **cached,
        "dataset_config": halves,
        "max_train_steps": 2,
        "validate_every_n_steps": 1,
        "log_with": "tensorboard",
    }
    two_folder, one_folder = tmp_path / "two", tmp_path / "one"
    two = {**MODEL, **TRAINING, **given, "device": "cpu", "output_dir": two_folder}
    run_apart(*LAUNCH_TWO, *options(**two, logging_dir=two_folder / "logs")).ok()
    anima_pipe(
        "train",
        tmp_path / "one.json",
        output_dir=one_folder,
        logging_dir=one_folder / "logs",
        gradient_accumulation_steps=2,
        **given,
    ).ok()

    found, expected = (_validation_losses(folder) for folder in (two_folder, one_folder))
    assert list(found) == [0, 1, 2]
    assert found == pytest.approx(expected, rel=1e-4)


def _validation_losses(folder: Path) -> dict[int, float]:
    """The loss on what is held out, by step."""
    (file,) = folder.glob("logs/*/metrics.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    name = "validation/loss"
    return {line["step"]: line[name] for line in lines if name in line}
