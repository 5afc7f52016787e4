"""How a run joins the processes that `accelerate launch` starts."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.state import AcceleratorState
from commands import (
    ROOT,
    SCRIPTS,
    TRAINING,
    Ended,
    anima_pipe,
    assert_one_error,
    files_in,
    options,
    run_apart,
)
from torch.multiprocessing.spawn import spawn

from anima_pipe import demo
from anima_pipe.kohya.resolve import resolve
from anima_pipe.kohya.training import process_config
from anima_pipe.trainer import ProcessConfig, first_process_first, prepared, start_accelerate

CONFIGS = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))


@pytest.fixture
def fresh() -> Iterator[None]:
    """accelerate keeps one state per process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("fresh")
def test_the_ddp_options_reach_the_processes():
    given = {
        "ddp_timeout": "30",
        "ddp_gradient_as_bucket_view": True,
        "ddp_static_graph": True,
    }
    accelerator = start_accelerate("no", process_config(resolve("train", given)), cpu=True)
    assert accelerator.init_handler.timeout == timedelta(minutes=30)
    assert accelerator.ddp_handler.gradient_as_bucket_view
    assert accelerator.ddp_handler.static_graph


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("given", [{}, {"ddp_timeout": "0"}])
def test_a_process_waits_for_minutes_unless_told_otherwise(given: dict[str, str]):
    accelerator = start_accelerate("no", process_config(resolve("train", given)), cpu=True)
    assert timedelta(minutes=5) < accelerator.init_handler.timeout < timedelta(hours=2)
    assert not accelerator.ddp_handler.gradient_as_bucket_view
    assert not accelerator.ddp_handler.static_graph


IMPATIENCE = timedelta(seconds=4)
"""How long two processes in a test wait for each other."""


class Scaled(torch.nn.Module):
    """A weight that trains, and a buffer that each process may change for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.register_buffer("factor", torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight * self.factor


def meet(number: int, folder: Path) -> None:
    """Be one of two processes; note what it came to."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "RANK": number,
            "LOCAL_RANK": number,
            "WORLD_SIZE": 2,
            "LOCAL_WORLD_SIZE": 2,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": (folder / "port").read_text(),
        }.items():
            patch.setenv(name, str(value))
        accelerator = start_accelerate("no", ProcessConfig(timeout=IMPATIENCE), cpu=True)
        noted: dict[str, object] = {"processes": accelerator.num_processes}
        with first_process_first(accelerator):
            if number == 0:
                time.sleep(IMPATIENCE.total_seconds() * 1.5)
                (folder / "filled").touch()
            noted["found it filled"] = (folder / "filled").exists()
        scaled = Scaled()
        optimizer = torch.optim.SGD(scaled.parameters(), lr=0.1)
        module, _ = prepared(accelerator, scaled, optimizer)
        module.module.factor.fill_(number + 2.0)
        module(torch.ones(())).backward()
        noted |= {
            "factor": module.module.factor.item(),
            "gradient": module.module.weight.grad.item(),
        }
        if number == 1:
            try:
                accelerator.wait_for_everyone()
            except RuntimeError as error:
                noted["gave up"] = type(error).__name__
        else:
            time.sleep(IMPATIENCE.total_seconds() * 2)
    (folder / f"{number}.json").write_text(json.dumps(noted))


@pytest.mark.slow
def test_the_others_wait_for_a_cache_to_be_filled_and_in_a_run_no_longer_than_its_timeout(
    tmp_path: Path,
):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        (tmp_path / "port").write_text(str(probe.getsockname()[1]))
    spawn(meet, (tmp_path,), nprocs=2)
    first, second = (json.loads((tmp_path / f"{n}.json").read_text()) for n in (0, 1))
    # Gradients are exchanged, buffers are not.
    expected = {"processes": 2, "found it filled": True, "gradient": 2.5}
    assert first == {**expected, "factor": 2.0}
    assert second == {**expected, "factor": 3.0, "gave up": second.get("gave up")}
    assert second["gave up"]


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "gradient_accumulation_steps is 4: with"),
        ("ACCELERATE_DYNAMO_BACKEND", "EAGER", "dynamo_backend is EAGER: without effect"),
    ],
)
def test_what_accelerate_was_set_to_by_the_way_changes_no_bit_and_is_told(
    variable: str, value: str, told: str, cached: dict[str, object], tmp_path: Path, monkeypatch
):
    plain = anima_pipe("train", output_dir=tmp_path / "plain", **cached).ok()
    monkeypatch.setenv(variable, value)
    setup = anima_pipe("train", output_dir=tmp_path / "set", **cached).ok()
    files = [(tmp_path / name / "fox.safetensors").read_bytes() for name in ("plain", "set")]
    assert files[0] == files[1]
    assert told in setup.said
    assert told not in plain.said


def test_a_launch_with_deepspeed_is_refused_before_anything_is_loaded(
    tmp_path: Path, cached: dict[str, object], monkeypatch
):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    refused = anima_pipe("train", output_dir=tmp_path / "out", **cached)
    assert refused.code == 2
    assert "accelerate is set to DeepSpeed" in refused.said
    assert "configs/accelerate/fsdp.yaml" in refused.said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (
            {"full_bf16": True, "mixed_precision": "bf16"},
            "full_bf16 is set, but 2 processes were started",
        ),
        (
            {"ddp_static_graph": True, "gradient_accumulation_steps": 2},
            "ddp_static_graph is set, and so is gradient_accumulation_steps",
        ),
    ],
)
def test_what_several_processes_cannot_share_is_refused_before_anything_is_loaded(
    given: dict[str, object],
    problem: str,
    tmp_path: Path,
    cached: dict[str, object],
    monkeypatch,
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = anima_pipe("train", output_dir=tmp_path / "out", **cached, **given)
    assert_one_error(refused, problem)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", CONFIGS, ids=[path.name for path in CONFIGS])
def test_accelerate_knows_every_key_of_our_configurations(path: Path):
    config = load_config_from_file(str(path))
    assert config.num_machines == 1
    assert config.num_processes == (2 if path.name in ("ddp.yaml", "fsdp.yaml") else 1)
    assert path.name in path.read_text().splitlines()[0]
    assert f"configs/accelerate/{path.name}" in (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_the_configuration_for_the_processor_trains(cached: dict[str, object], tmp_path: Path):
    ended: Ended = run_apart(
        *(SCRIPTS / "accelerate", "launch", "--config_file", ROOT / "configs/accelerate/cpu.yaml"),
        ROOT / "anima_train_network.py",
        *("--pretrained_model_name_or_path", demo.DEMO_TRANSFORMER, "--vae", demo.DEMO_VAE),
        *("--qwen3", demo.DEMO_QWEN, "--t5_tokenizer_dir", demo.DEMO_T5_TOKENIZER),
        *options(**cached, **TRAINING | {"max_train_steps": 1}, output_dir=tmp_path),
    )
    ended.ok()
    assert files_in(tmp_path) == {"fox.safetensors"}
