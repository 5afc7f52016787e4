"""Exported files, through the commands: ComfyUI and diffusers make of them what was trained."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from commands import anima_pipe, assert_one_error
from diffusers.loaders import AnimaLoraLoaderMixin
from diffusers_parity import (
    diffusers_condition,
    diffusers_text_conditioner,
    diffusers_transformer,
    diffusers_velocity,
)
from golden_model import relative_error
from safetensors import safe_open
from safetensors.torch import load_file

from anima_pipe import demo
from anima_pipe.adapters import load_adapter
from anima_pipe.export.comfy import apply_adapter
from anima_pipe.model import AnimaTransformer, load_transformer

BASE = demo.DEMO_TRANSFORMER
STEPS = {"max_train_steps": 3, "learning_rate": 1e-2}
"""Enough to move the velocity far beyond rounding."""


@pytest.fixture(scope="module")
def trained(cached: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `train` left: a LoRA with norms."""
    folder = tmp_path_factory.mktemp("trained")
    anima_pipe("train", output_dir=folder, **STEPS, **cached).ok()
    return folder / "fox.safetensors"


@pytest.fixture(scope="module")
def inputs() -> dict[str, torch.Tensor]:
    """Latents, noise levels and two captions of unequal lengths, such as the model takes."""
    generator = torch.Generator().manual_seed(5)
    width = load_transformer(BASE).config.llm_adapter.source_width
    mask = torch.tensor([[True] * 7, [True] * 3 + [False] * 4])
    return {
        "latents": torch.randn(2, 16, 8, 12, generator=generator),
        "sigma": torch.tensor([0.3, 0.8]),
        "qwen_hidden": torch.randn(2, 7, width, generator=generator) * mask[..., None],
        "t5_ids": torch.randint(2, 200, (2, 7), generator=generator) * mask,
        "qwen_mask": mask,
        "t5_mask": mask,
    }


@torch.no_grad()
def velocity(model: AnimaTransformer, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    texts = (inputs[name] for name in ("qwen_hidden", "t5_ids", "qwen_mask", "t5_mask"))
    return model(inputs["latents"], inputs["sigma"], model.preprocess_text_embeds(*texts))


def trained_velocity(path: Path, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return that of the model with the adapter on it, as it was while training."""
    model = load_transformer(BASE)
    load_adapter(path, model)
    return velocity(model, inputs)


@pytest.mark.parametrize(
    ("options", "rounding"),
    [
        ({}, 1e-5),
        ({"save_format": "kohya"}, 1e-5),
        ({"save_precision": "fp16"}, 1e-3),
        ({"save_precision": "bf16"}, 1e-2),
    ],
    ids=str,
)
def test_a_model_patched_by_comfyuis_rules_gives_the_velocity_that_was_trained(
    options: dict[str, object],
    rounding: float,
    trained: Path,
    inputs: dict[str, torch.Tensor],
    tmp_path: Path,
):
    output = tmp_path / "comfyui.safetensors"
    ended = anima_pipe("export-comfy", tmp_path / "s.json", input=trained, output=output, **options)

    patched = load_transformer(BASE)
    patched.load_state_dict(apply_adapter(load_file(output), patched.state_dict()))

    assert ended.ok().summary is not None
    assert ended.summary["verified"] is True
    expected = trained_velocity(trained, inputs)
    assert relative_error(velocity(patched, inputs), expected) < rounding
    assert relative_error(velocity(load_transformer(BASE), inputs), expected) > 5 * rounding


class Pipeline(AnimaLoraLoaderMixin):
    """What diffusers loads an Anima LoRA into, with the tiny model's weights."""

    def __init__(self) -> None:
        base = load_transformer(BASE)
        self.transformer = diffusers_transformer(base.state_dict(), base.config)
        self.text_conditioner = diffusers_text_conditioner(base.state_dict(), base.config)
        self.components = vars(self).copy()
        self.hf_device_map = None

    @torch.no_grad()
    def velocity(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        texts = (inputs[name] for name in ("qwen_hidden", "t5_ids", "qwen_mask", "t5_mask"))
        condition = diffusers_condition(self.text_conditioner, *texts)
        return diffusers_velocity(self.transformer, inputs["latents"], inputs["sigma"], condition)


@pytest.mark.parametrize("by", ["train", "export-comfy"])
def test_diffusers_loads_its_file_and_gives_the_velocity_that_was_trained(
    by: str, cached: dict[str, object], inputs: dict[str, torch.Tensor], tmp_path: Path
):
    ours, theirs = tmp_path / "fox.safetensors", tmp_path / "diffusers.safetensors"
    style = {"save_format": "diffusers"} if by == "train" else {}
    anima_pipe("train", output_dir=tmp_path, train_norm=False, **STEPS, **style, **cached).ok()
    if by == "train":
        theirs = ours
    else:
        anima_pipe("export-comfy", input=ours, output=theirs, save_format="diffusers").ok()

    pipeline = Pipeline()
    before = pipeline.velocity(inputs)
    pipeline.load_lora_weights(theirs)

    expected = trained_velocity(ours, inputs)
    assert relative_error(pipeline.velocity(inputs), expected) < 1e-5
    assert relative_error(before, expected) > 1e-2


def test_norms_are_exported_to_diffusers_only_where_they_may_be_dropped(
    trained: Path, tmp_path: Path
):
    output = tmp_path / "diffusers.safetensors"
    arguments = {"input": trained, "output": output, "save_format": "diffusers"}

    refused = anima_pipe("export-comfy", **arguments)
    assert refused.code == 2
    assert "norm" in refused.said
    assert "--drop_norms" in refused.said
    assert list(tmp_path.iterdir()) == []

    anima_pipe("export-comfy", drop_norms=True, **arguments).ok()
    names = {key.rsplit(".", 2)[-2] for key in load_file(output)}
    assert names == {"lora_A", "lora_B"}


def test_an_export_keeps_what_the_file_says_of_its_run(trained: Path, tmp_path: Path):
    output = tmp_path / "comfyui.safetensors"
    anima_pipe("export-comfy", input=trained, output=output).ok()

    with safe_open(output, framework="pt") as file:
        facts = {"ss_output_name": "fox", "ss_steps": "3", "ss_base_model_version": "anima"}
        assert file.metadata().items() >= facts.items()
        assert not any(str(trained.parent) in value for value in file.metadata().values())


def test_norms_that_sd_scripts_passes_over_are_warned_of_and_left_out_on_request(
    trained: Path, tmp_path: Path
):
    output = tmp_path / "kohya.safetensors"
    arguments = {"input": trained, "output": output, "save_format": "kohya"}

    with_norms = anima_pipe("export-comfy", **arguments).ok().said
    norms = [key for key in load_file(output) if key.endswith(".w_norm")]
    without = anima_pipe("export-comfy", drop_norms=True, **arguments).ok().said

    assert f"sd-scripts passes over {len(norms)} trained norms in style kohya" in with_norms
    assert "--drop_norms" in with_norms
    assert "for ComfyUI alone" in with_norms
    assert "passes over" not in without
    assert "for sd-scripts and ComfyUI" in without
    assert not any(key.endswith(".w_norm") for key in load_file(output))


def test_training_for_sd_scripts_with_norms_says_what_it_will_pass_over(
    cached: dict[str, object], tmp_path: Path
):
    given = {**cached, "save_format": "kohya", "max_train_steps": 1}

    with_norms = anima_pipe("train", output_dir=tmp_path / "a", **given).ok().said
    without = anima_pipe("train", output_dir=tmp_path / "b", train_norm=False, **given).ok().said

    assert "trained norms in style kohya" in with_norms
    assert "--no-train_norm" in with_norms
    assert "style kohya" not in without


def test_an_export_does_not_take_its_sources_place(trained: Path, tmp_path: Path):
    source = Path(shutil.copy(trained, tmp_path / "fox.safetensors"))
    refused = anima_pipe("export-comfy", input=source, output=tmp_path / "." / source.name)
    assert_one_error(refused, "is the adapter itself", "give another --output")
    assert source.read_bytes() == trained.read_bytes()


def test_what_a_baked_checkpoint_has_not_is_warned_of(trained: Path, tmp_path: Path):
    idle = {"save_format": "kohya", "drop_norms": True}
    merge = {"merge": demo.DEMO_TRANSFORMER, "output": tmp_path / "baked.safetensors"}
    said = anima_pipe("export-comfy", input=trained, **merge, **idle).ok().said
    for name in idle:
        assert f"{name} (command line) has no effect beside merge" in said
