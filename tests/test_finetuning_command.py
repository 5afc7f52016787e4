"""network_module = none: the model itself is trained by Kohya's options."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from commands import (
    LAUNCH_TWO,
    MODEL,
    TRAINING,
    anima_pipe,
    assert_one_error,
    demo_pictures,
    files_in,
    options,
    run_apart,
    tensors_of,
    write_dataset,
)
from safetensors.torch import load_file
from training_calls import metadata

from anima_pipe import demo
from anima_pipe.model import load_transformer

Cached = dict[str, object]

WHOLE = {"network_module": "none", "learning_rate": 1e-3}

PARTS = {
    "llm_adapter_lr": "net.llm_adapter.",
    "self_attn_lr": ".self_attn.",
    "cross_attn_lr": ".cross_attn.",
    "mlp_lr": ".mlp.",
    "mod_lr": ".adaln_modulation",
}


def is_of(part: str, name: str) -> bool:
    in_adapter = name.startswith(PARTS["llm_adapter_lr"])
    return in_adapter if part == "llm_adapter_lr" else not in_adapter and PARTS[part] in name


def test_network_module_none_trains_every_weight_of_the_model(cached: Cached, tmp_path: Path):
    typed = tensors_of(
        anima_pipe("train", tmp_path / "s.json", output_dir=tmp_path, **WHOLE, **cached)
    )

    before = load_transformer(demo.DEMO_TRANSFORMER).state_dict()
    assert {name.removeprefix("net.") for name in typed} == before.keys()
    assert not any(torch.equal(typed[f"net.{name}"], before[name]) for name in before)
    header = metadata(tmp_path / "fox.safetensors")
    assert header["modelspec.architecture"] == "anima-preview"
    assert header["modelspec.title"] == "fox"
    assert header["ss_learning_rate"] == "0.001"
    assert not any("network" in name for name in header)


def test_parts_take_rates_of_their_own_and_at_0_stay_as_they_are(cached: Cached, tmp_path: Path):
    rates = {"mlp_lr": 0, "mod_lr": 0, "llm_adapter_lr": 1e-4, "self_attn_lr": 0}
    given = {**WHOLE, **rates, "output_dir": tmp_path, **cached}
    ended = anima_pipe("train", tmp_path / "s.json", **given)
    trained = tensors_of(ended)

    before = load_file(demo.DEMO_TRANSFORMER)
    before = {f"net.{n.removeprefix('net.')}": tensor for n, tensor in before.items()}
    frozen = [part for part, rate in rates.items() if not rate]
    for name, tensor in trained.items():
        stays = any(is_of(part, name) for part in frozen)
        assert torch.equal(tensor, before[name].float()) == stays, name
    assert "llm_adapter.blocks.*.self_attn" in ended.said
    assert "blocks.*.mlp  " not in ended.said.replace("llm_adapter.blocks.*.mlp", "")
    assert metadata(tmp_path / "fox.safetensors")["ss_llm_adapter_lr"] == "0.0001"


UNFIT: dict[str, object] = {
    "network_dim": 16,
    "network_alpha": 8,
    "network_dropout": 0.1,
    "network_args": ["dora=true"],
    "network_weights": "fox.safetensors",
    "dim_from_weights": True,
    "train_norm": False,
    "train_llm_adapter": False,
    "scale_weight_norms": 1,
    "measure_leakage": True,
    "save_format": "kohya",
    "fp8_base": True,
}


@pytest.mark.parametrize("name", UNFIT)
def test_an_option_of_adapters_is_refused_by_its_name(name: str, cached: Cached, tmp_path: Path):
    given = {"output_dir": tmp_path, **WHOLE, name: UNFIT[name], **cached}

    ended = anima_pipe("train", **given)

    assert_one_error(ended, f"{name} = ", "network_module is none")
    assert files_in(tmp_path) == set()


def test_options_that_switch_nothing_on_are_no_obstacle(cached: Cached, tmp_path: Path):
    off = {"fp8_base": False, "measure_leakage": False, "scale_weight_norms": 0}
    nothing = {"train_norm": True, **off}
    given = {"max_train_steps": 1, "seed": 3, **WHOLE, **cached}

    anima_pipe("train", **given, output_dir=tmp_path / "plain").ok()
    anima_pipe("train", **given, **nothing, output_dir=tmp_path / "switched").ok()

    weights = [load_file(tmp_path / run / "fox.safetensors") for run in ("plain", "switched")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_previews_validation_average_and_log_are_those_of_any_run(
    dataset: Path, pictures: Path, cached: Cached, tmp_path: Path
):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("fox --w 64 --h 64 --s 1 --l 1\n")
    held_out = write_dataset(tmp_path / "dataset.toml", pictures, validation_split=0.34)
    given = {**cached, **WHOLE, "dataset_config": held_out, "output_dir": tmp_path / "out"}
    given |= {"sample_prompts": prompts, "sample_at_first": True, "ema_decay": 0.9}
    given |= {
        "validate_every_n_steps": 1,
        "log_with": "tensorboard",
        "logging_dir": tmp_path / "logs",
    }

    ended = anima_pipe("train", tmp_path / "s.json", **given).ok()

    pictures_drawn = {path.name for path in (tmp_path / "out" / "sample").glob("fox_*.png")}
    assert pictures_drawn == {"fox_000000_00.png", "fox_000002_00.png"}
    first, last = (
        (tmp_path / "out" / "sample" / name).read_bytes() for name in sorted(pictures_drawn)
    )
    assert first != last
    average = load_file(tmp_path / "out" / "fox-ema.safetensors")
    trained = tensors_of(ended)
    assert average.keys() == trained.keys()
    assert not torch.equal(
        average["net.x_embedder.proj.1.weight"], trained["net.x_embedder.proj.1.weight"]
    )
    (metrics,) = (tmp_path / "logs").rglob("metrics.jsonl")
    text = metrics.read_text()
    assert '"lr/linear"' in text
    assert '"lr/embedding"' in text
    assert "validation" in text
    assert "leakage  " not in ended.said
    assert "model in float32, computed in float32" in ended.said
    assert "of the model, its gradients, its average and the optimizer" in ended.said


def test_a_finished_model_without_a_state_at_its_end_is_named_as_a_model(
    cached: Cached, tmp_path: Path
):
    given = {"output_dir": tmp_path, **WHOLE, **cached}
    anima_pipe("train", **given, save_every_n_steps=1, save_state=True).ok()
    (tmp_path / "fox-state").rename(tmp_path / "gone")

    ended = anima_pipe("train", **given, resume="latest")

    assert_one_error(ended, f"--pretrained_model_name_or_path {tmp_path / 'fox.safetensors'}")


def test_all_leaves_a_trained_model_where_it_is_and_says_where_comfyui_reads_it(tmp_path: Path):
    pictures = demo_pictures(tmp_path / "pictures", every=12)
    dataset = write_dataset(tmp_path / "dataset.toml", pictures)
    lines = [f"{name} = '{path}'" for name, path in MODEL.items()]
    values = ["network_module = 'none'", "learning_rate = 1e-4", "max_train_steps = 1"]
    values += ["max_data_loader_n_workers = 0", "log_with = 'none'", "output_name = 'fox'"]
    config = tmp_path / "train_args.toml"
    config.write_text("\n".join([*lines, *values, ""]))
    named = ("--config_file", config, "--dataset_config", dataset, "--output_dir", tmp_path / "out")

    ended = run_apart(
        *(sys.executable, "-m", "anima_pipe.cli", "all", *map(str, named), "--device", "cpu"),
        *("--summary_json", str(tmp_path / "s.json")),
        summary=tmp_path / "s.json",
    ).ok()

    checkpoint = tmp_path / "out" / "fox.safetensors"
    assert ended.summary is not None
    assert ended.summary["output"] == str(checkpoint)
    assert "export-comfy" not in ended.summary["stages"]
    assert not (tmp_path / "out" / "comfyui").exists()
    last = ended.said.splitlines()[-1]
    assert last.split(maxsplit=1)[1].startswith(f"cp {checkpoint} ComfyUI/models/diffusion_models")
    assert "hardly trains an adapter" not in ended.said


@pytest.mark.slow
def test_two_processes_train_the_model_that_one_trains_on_twice_the_batches(
    cached: Cached, tmp_path: Path
):
    shared = {**cached, **WHOLE, "mixed_precision": "bf16", "gradient_checkpointing": True}
    shared |= {"optimizer_type": "SGDNesterov", "learning_rate": 1e-2, "mlp_lr": 0}
    given = {**MODEL, **TRAINING, **shared, "device": "cpu", "output_dir": tmp_path / "two"}
    run_apart(*LAUNCH_TWO, *options(**given)).ok()
    alone = {"output_dir": tmp_path / "one", "gradient_accumulation_steps": 2, **shared}
    anima_pipe("train", **alone).ok()

    before = load_transformer(demo.DEMO_TRANSFORMER).state_dict()
    two, one = (load_file(tmp_path / name / "fox.safetensors") for name in ("two", "one"))
    assert two.keys() == one.keys()
    for name, start in before.items():
        changes = [tensors[f"net.{name}"] - start for tensors in (two, one)]
        if ".mlp." in name and not name.startswith("llm_adapter."):
            assert not any(change.any() for change in changes)
        else:
            # Sums in bf16 are rounded in another order.
            assert changes[1].any()
            assert (changes[0] - changes[1]).norm() < 0.02 * changes[1].norm(), name
