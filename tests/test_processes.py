"""How a run joins the processes that `accelerate launch` starts."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
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

from anima_pipe import demo
from anima_pipe.kohya.resolve import resolve
from anima_pipe.kohya.training import process_config
from anima_pipe.trainer import start_accelerate

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
def test_a_process_waits_for_days_unless_told_otherwise(given: dict[str, str]):
    accelerator = start_accelerate("no", process_config(resolve("train", given)), cpu=True)
    assert accelerator.init_handler.timeout > timedelta(days=1)
    assert not accelerator.ddp_handler.gradient_as_bucket_view
    assert not accelerator.ddp_handler.static_graph


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
