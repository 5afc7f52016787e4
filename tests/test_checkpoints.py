"""A checkpoint written anew: in another precision, and as diffusers has it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from commands import MODEL, anima_pipe, assert_one_error, files_in, options
from diffusers import (
    AnimaTextConditioner,  # pyright: ignore[reportPrivateImportUsage] - exported lazily
    CosmosTransformer3DModel,  # pyright: ignore[reportPrivateImportUsage]
)
from diffusers_parity import diffusers_condition, diffusers_velocity, give_torchvision
from golden_model import golden_transformer, golden_weights, read_golden, relative_error
from safetensors.torch import load_file, save_file
from training_calls import metadata

from anima_pipe.cli.main import main
from anima_pipe.model import load_transformer


@pytest.fixture(params=["net.", "model.diffusion_model."])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A small model in fp32, and what a whole checkpoint holds beside it."""
    tensors = {f"{request.param}{name}": tensor for name, tensor in golden_weights("a").items()}
    if request.param != "net.":
        tensors["vae.conv1.weight"] = torch.ones(3)
    path = tmp_path / "tuned.safetensors"
    save_file(tensors, path, {"modelspec.title": "tuned", "sshs_model_hash": "0"})
    return path


def convert(*arguments: object, **given: object) -> Any:
    return CliRunner().invoke(main, ["convert", *map(str, arguments), *options(**given)])


@pytest.mark.parametrize("command", ["export-comfy", "convert"])
@pytest.mark.parametrize("precision", [None, "bf16", "fp16"])
def test_a_checkpoint_takes_another_precision_under_the_released_names(
    command: str, precision: str | None, checkpoint: Path, tmp_path: Path
):
    output = tmp_path / "out" / "tuned.safetensors"
    given = {"input": checkpoint, "output": output, "save_precision": precision}
    if command == "convert":
        ended = convert(**given)
        assert ended.exit_code == 0, ended.stderr
        assert "read back, equal" in ended.stdout
    else:
        exported = anima_pipe("export-comfy", tmp_path / "s.json", **given).ok()
        assert exported.summary is not None
        assert exported.summary["verified"] is True
        assert "ComfyUI/models/diffusion_models" in exported.said

    dtype = {None: torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    written = load_file(output)
    assert written.keys() == {f"net.{name}" for name in golden_weights("a")}
    for name, tensor in golden_weights("a").items():
        assert torch.equal(written[f"net.{name}"], tensor.to(dtype))
    header = metadata(output)
    assert header["modelspec.title"] == "tuned"
    assert "sshs_model_hash" not in header
    assert json.loads(header["made_of"])["files"][0]["name"] == checkpoint.name
    load_transformer(output, dtype)


def test_diffusers_computes_what_we_do_from_the_folder_of_a_checkpoint(
    checkpoint: Path, tmp_path: Path
):
    give_torchvision()
    folder = tmp_path / "bundle"
    anima_pipe("export-comfy", input=checkpoint, output=folder, save_format="diffusers").ok()

    transformer = CosmosTransformer3DModel.from_pretrained(folder / "transformer")
    conditioner = AnimaTextConditioner.from_pretrained(folder / "text_conditioner")
    golden, ours = read_golden("a"), golden_transformer("a")
    hidden, ids = golden["qwen_hidden"][:1, :5], golden["t5_ids"][:1, :6]
    with torch.no_grad():
        condition = diffusers_condition(conditioner, hidden, ids)
        expected = ours.preprocess_text_embeds(hidden, ids)
        # Behind the caption theirs is masked afterwards, by the pipeline.
        assert relative_error(condition[:, :6], expected[:, :6]) < 1e-5
        picture = golden["latents"][:1], golden["sigma"][:1], expected
        velocity = diffusers_velocity(transformer, *picture)
        assert relative_error(velocity, ours(*picture)) < 1e-4
    assert files_in(folder) == {
        f"{part}/{file}"
        for part in ("transformer", "text_conditioner")
        for file in ("config.json", "diffusion_pytorch_model.safetensors")
    }


def test_what_is_there_already_is_not_replaced_by_a_folder(checkpoint: Path, tmp_path: Path):
    (kept := tmp_path / "bundle" / "scheduler").mkdir(parents=True)
    given = {"input": checkpoint, "save_format": "diffusers"}

    assert_one_error(
        anima_pipe("export-comfy", output=kept.parent, **given), "bundle is there already"
    )
    assert_one_error(
        anima_pipe("export-comfy", output=tmp_path / "a.safetensors", **given), "in a folder"
    )
    assert kept.exists()


def test_a_checkpoint_is_neither_written_over_itself_nor_without_norms(checkpoint: Path):
    before = checkpoint.read_bytes()
    onto_itself = anima_pipe("export-comfy", input=checkpoint, output=checkpoint)
    assert_one_error(onto_itself, "is the checkpoint itself")
    other = checkpoint.with_name("other.safetensors")
    without = anima_pipe("export-comfy", input=checkpoint, output=other, drop_norms=True)
    assert_one_error(without, "drop_norms")
    assert checkpoint.read_bytes() == before
    assert not other.exists()


@pytest.mark.parametrize("precision", [None, "fp16"])
@pytest.mark.parametrize("value", [math.nan, 1e6])
def test_numbers_that_are_not_finite_are_in_no_checkpoint(
    precision: str | None, value: float, checkpoint: Path, tmp_path: Path
):
    tensors = load_file(checkpoint)
    name = next(name for name in tensors if name.endswith("mlp.layer1.weight"))
    tensors[name][0, 0] = value
    save_file(tensors, checkpoint)
    output = tmp_path / "out" / "a.safetensors"

    ended = anima_pipe("export-comfy", input=checkpoint, output=output, save_precision=precision)

    is_sound = math.isfinite(value) and precision is None
    assert (ended.code == 0) == is_sound, ended.said
    if not is_sound:
        assert_one_error(ended, "mlp.layer1.weight", str(output))
    assert output.exists() == is_sound


def test_a_model_that_was_trained_is_what_others_are_trained_on(
    cached: dict[str, object], tmp_path: Path
):
    whole = {"network_module": "none", "save_precision": "bf16", "output_dir": tmp_path / "whole"}
    anima_pipe("train", **whole, **cached).ok()
    anew = tmp_path / "base.safetensors"
    anima_pipe("export-comfy", input=tmp_path / "whole" / "fox.safetensors", output=anew).ok()

    given = {**cached, "pretrained_model_name_or_path": anew, "output_dir": tmp_path / "lora"}
    anima_pipe("train", **given, max_train_steps=1).ok()
    ended = CliRunner().invoke(
        main,
        [
            "sample",
            *options(**{**MODEL, "pretrained_model_name_or_path": anew}, device="cpu"),
            *options(prompt="fox --w 64 --h 64 --s 1 --l 1", output_dir=tmp_path / "drawn"),
        ],
    )
    assert ended.exit_code == 0, ended.stderr
