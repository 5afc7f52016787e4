"""What is not finite is in no file of weights, whoever writes it: it is refused by name."""

from __future__ import annotations

import math
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapter_cases import pretend_training, small_model
from click.testing import CliRunner
from commands import anima_pipe
from golden_model import golden_weights
from safetensors.torch import load_file, save_file

from anima_pipe.adapters import Adapter, create_adapter, save_adapter
from anima_pipe.cli.main import main
from anima_pipe.errors import CheckpointError, OutputError
from anima_pipe.hooks.saving import SaveConfig, Saver
from anima_pipe.hooks.state_saving import save_state
from anima_pipe.hooks.train_state import RunParts
from anima_pipe.optimizing.optimizers import OptimizerConfig, ParameterGroup, create_optimizer
from anima_pipe.optimizing.schedules import ScheduleConfig, create_schedule
from anima_pipe.records import Moment, StepResult
from anima_pipe.runs.adapting import adapter_writer

KEY = "diffusion_model.blocks.1.mlp.layer1.lora_B.weight"
MODULE = "blocks.1.mlp.layer1"


def run(*words: object) -> str:
    """Run a command that must refuse, and return what it says."""
    ended = CliRunner().invoke(main, [str(word) for word in words])
    assert ended.exit_code == 2, ended.output
    return ended.output


def trained() -> Adapter:
    return pretend_training(create_adapter("lora", small_model()))


def spoilt(value: float) -> Adapter:
    """Return an adapter with one bad number."""
    adapter = trained()
    with torch.no_grad():
        dict(adapter.deltas[MODULE].trained())["lora_B.weight"][1, 2] = value
    return adapter


def spoilt_file(folder: Path, value: float) -> Path:
    """Return a file of another program with one bad number."""
    tensors = load_file(save_adapter(trained(), folder / "sound.safetensors"))
    tensors[KEY][1, 2] = value
    save_file(tensors, folder / "spoilt.safetensors")
    (folder / "sound.safetensors").unlink()
    return folder / "spoilt.safetensors"


def base_file(path: Path, **changed: float) -> Path:
    """Return a base with one number of a tensor that no adapter changes as given."""
    tensors = {f"net.{name}": tensor.clone() for name, tensor in golden_weights("a").items()}
    for name, value in changed.items():
        tensors[f"net.{name.replace('__', '.')}"].view(-1)[0] = value
    save_file(tensors, path)
    return path


END = Moment(
    step=1,
    epoch=1,
    ends_epoch=True,
    is_last=True,
    result=StepResult(loss=0.5, grad_norm=1.0, learning_rates={}, samples=1),
)


def parts_of(adapter: Adapter) -> RunParts:
    groups = [
        ParameterGroup(name=g.name, parameters=g.parameters, learning_rate=1e-2)
        for g in adapter.groups()
    ]
    optimizer = create_optimizer(groups, OptimizerConfig())
    schedule = create_schedule(optimizer, ScheduleConfig(), 2)
    for parameter in adapter.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return RunParts(
        trained=adapter, stateful={"optimizer": optimizer, "schedule": schedule}, made_with={}
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("style", ["comfy", "kohya", "diffusers"])
def test_training_saves_no_adapter_with_a_number_that_is_not_finite(tmp_path, style, value):
    before = b"what was there"
    (tmp_path / "fox.safetensors").write_bytes(before)
    adapter = create_adapter("lora", small_model(), train_norm=False)
    with torch.no_grad():
        dict(adapter.deltas[MODULE].trained())["lora_B.weight"][1, 2] = value
    config = SaveConfig(folder=tmp_path, name="fox", style=style)
    saver = Saver(adapter_writer(adapter, config), config)

    with pytest.raises(CheckpointError, match=r"fox.safetensors is not written: .*mlp.layer1"):
        saver.at(END)

    assert [path.name for path in tmp_path.iterdir()] == ["fox.safetensors"]
    assert (tmp_path / "fox.safetensors").read_bytes() == before


def test_a_number_too_large_for_fp16_is_refused_and_bf16_named(tmp_path):
    adapter = spoilt(1e6)

    with pytest.raises(CheckpointError, match=r"lora_B\.weight\n  Fix: write it in bf16 or float"):
        save_adapter(adapter, tmp_path / "a.safetensors", dtype=torch.float16)

    assert list(tmp_path.iterdir()) == []
    save_adapter(adapter, tmp_path / "a.safetensors", dtype=torch.bfloat16)


def in_the_weights(parts: RunParts) -> None:
    assert isinstance(parts.trained, Adapter)
    with torch.no_grad():
        dict(parts.trained.deltas[MODULE].trained())["lora_A.weight"][0, 0] = math.nan


def in_the_optimizer(parts: RunParts) -> None:
    parts.stateful["optimizer"].state_dict()["state"][3]["exp_avg"].view(-1)[0] = math.inf


@pytest.mark.parametrize(
    ("spoil", "name"),
    [
        (in_the_weights, rf"adapter\.safetensors .*{MODULE}.*lora_A"),
        (in_the_optimizer, r"optimizer\.pt .*optimizer\.state\.3\.exp_avg"),
    ],
)
def test_no_state_is_saved_that_no_run_could_go_on_from(
    tmp_path, spoil: Callable[[RunParts], None], name: str
):
    parts = parts_of(trained())
    save_state(tmp_path / "sound-state", parts, END)
    spoil(parts)

    with pytest.raises(CheckpointError, match=name):
        save_state(tmp_path / "spoilt-state", parts, END)

    assert [path.name for path in tmp_path.iterdir()] == ["sound-state"]


def test_a_disk_that_fills_up_while_the_optimizer_is_saved_is_named(tmp_path):
    parts = parts_of(trained())
    save_state(tmp_path / "sound-state", parts, END)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "sound-state").iterdir()}
    assert sizes["optimizer.pt"] > sizes["adapter.safetensors"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (sizes["optimizer.pt"] - 1, before[1]))
    try:
        with pytest.raises(OutputError, match=r"cannot write .*late-state: .*\n.*room"):
            save_state(tmp_path / "late-state", parts, END)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)

    assert [path.name for path in tmp_path.iterdir()] == ["sound-state"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "command",
    [
        ["convert"],
        ["convert", "--save_format", "kohya"],
        ["convert", "--save_format", "diffusers", "--drop_norms"],
        ["resize", "--rank", 2],
        ["export-comfy"],
    ],
    ids=str,
)
def test_no_command_on_one_file_passes_on_what_is_not_finite(tmp_path, command, value):
    source, output = spoilt_file(tmp_path, value), tmp_path / "out.safetensors"

    said = run(*command, "--input", source, "--output", output)

    assert "not every number is finite in" in said
    assert MODULE in said.replace("_", ".")
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


@pytest.mark.parametrize("size", [[], ["--rank", 2], ["--whole"]], ids=str)
def test_merging_refuses_what_is_not_finite(tmp_path, size):
    source = spoilt_file(tmp_path, math.nan)
    sound = save_adapter(trained(), tmp_path / "sound.safetensors")

    said = run("merge", sound, source, "--output", tmp_path / "out.safetensors", *size)

    assert f"not every number is finite in {MODULE}.lora_B.weight" in said
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    "parameter", ["blocks__0__mlp__layer1__weight", "t_embedding_norm__weight"]
)
def test_extracting_refuses_what_is_not_finite(tmp_path, parameter):
    base = base_file(tmp_path / "base.safetensors")
    tuned = base_file(tmp_path / "tuned.safetensors", **{parameter: math.nan})
    output = tmp_path / "out.safetensors"

    said = run("extract", "--base", base, "--tuned", tuned, "--output", output, "--rank", 2)

    assert f"not every number is finite in {parameter.replace('__', '.')}" in said
    assert not output.exists()


@pytest.mark.parametrize("precision", [None, "bf16"])
@pytest.mark.parametrize("spoils", ["adapter", "base"])
def test_a_bake_refuses_what_is_not_finite_in_adapter_and_base(tmp_path, spoils, precision):
    source, output = tmp_path / "a.safetensors", tmp_path / "baked.safetensors"
    values = {"x_embedder__proj__1__weight": math.nan} if spoils == "base" else {}
    save_adapter(trained(), source)
    given = {
        "input": spoilt_file(tmp_path, math.nan) if spoils == "adapter" else source,
        "output": output,
        "merge": base_file(tmp_path / "base.safetensors", **values),
        "save_precision": precision,
    }

    refused = anima_pipe("export-comfy", **{n: v for n, v in given.items() if v is not None})

    assert refused.code == 2
    place = f"net.{MODULE}.weight" if spoils == "adapter" else "net.x_embedder.proj.1.weight"
    assert f"not every number is finite in {place}" in refused.said
    assert not output.exists()


def test_a_bake_to_fp16_looks_at_the_tensors_that_the_adapter_leaves_alone(tmp_path):
    source = save_adapter(trained(), tmp_path / "a.safetensors")
    base = base_file(tmp_path / "base.safetensors", x_embedder__proj__1__weight=1e5)
    given = {"input": source, "output": tmp_path / "baked.safetensors", "merge": base}

    refused = anima_pipe("export-comfy", save_precision="fp16", **given)

    assert refused.code == 2
    assert "not every number is finite in net.x_embedder.proj.1.weight" in refused.said
    assert "bf16" in refused.said
    assert not (tmp_path / "baked.safetensors").exists()
    anima_pipe("export-comfy", save_precision="bf16", **given).ok()
