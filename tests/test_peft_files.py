"""Adapters as PEFT, diffusers and LyCORIS save them, applied as these programs mean them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from adapter_cases import GOLDEN, small_model, velocity
from click.testing import CliRunner
from commands import anima_pipe
from diffusers.loaders import AnimaLoraLoaderMixin
from diffusers_parity import (
    diffusers_condition,
    diffusers_text_conditioner,
    diffusers_transformer,
    diffusers_velocity,
)
from golden_model import golden_weights, relative_error
from lycoris import LycorisNetwork, create_lycoris
from safetensors.torch import load_file, save_file
from torch import nn

from anima_pipe.adapters import load_adapter, save_adapter
from anima_pipe.cli.main import main
from anima_pipe.demo import DEMO_TRANSFORMER
from anima_pipe.errors import CheckpointError, ConfigError
from anima_pipe.export.adapter import convert_adapter
from anima_pipe.export.bake import bake_adapter
from anima_pipe.export.comfy import anima_paths, apply_adapter
from anima_pipe.model import load_transformer

Q_PROJ = "blocks.0.self_attn.q_proj"
TARGETS = ["q_proj", "k_proj", "mlp.layer1", "mlp.0"]

PEFT_CASES: dict[str, Any] = {
    "alpha": peft.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS),
    "rank stabilised": peft.LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules=TARGETS),
    "patterns": peft.LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=TARGETS,
        rank_pattern={"mlp.layer1": 2, r"blocks\.1\.self_attn\.q_proj": 3},
        alpha_pattern={"blocks.0.self_attn.q_proj": 16, "layer1": 1},
    ),
    "dora": peft.LoraConfig(r=4, lora_alpha=8, use_dora=True, target_modules=TARGETS),
    "dora of the embedding": peft.LoraConfig(
        r=4, lora_alpha=8, use_dora=True, target_modules=["embed", "q_proj"]
    ),
    "embedding": peft.LoraConfig(r=4, lora_alpha=8, target_modules=["embed", "q_proj"]),
    "loha": peft.LoHaConfig(r=2, alpha=6, target_modules=TARGETS),
    "lokr": peft.LoKrConfig(r=2, alpha=6, target_modules=TARGETS),
    "lokr of whole factors": peft.LoKrConfig(r=64, alpha=32, target_modules=TARGETS),
}


@pytest.fixture(params=PEFT_CASES)
def case(request) -> Any:
    return PEFT_CASES[request.param]


def trained_by_peft(config: Any, model: nn.Module) -> Any:
    """Return a model with PEFT's adapter on it, all of whose tensors have moved."""
    wrapped = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad:
                size = 0.5 if "magnitude" in name else 0.1
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=size)
    return wrapped.eval()


def saved_by_peft(folder: Path, config: Any) -> tuple[Path, torch.Tensor]:
    """Return the folder that PEFT saved an adapter into, and the velocity that it had."""
    model = small_model()
    trained_by_peft(config, model).save_pretrained(folder)
    return folder, velocity(model)


@pytest.mark.parametrize("named", ["folder", "file", "another file"])
def test_pefts_adapters_act_as_peft_has_them(tmp_path, case, named):
    folder, expected = saved_by_peft(tmp_path / "peft", case)
    file = folder / "adapter_model.safetensors"
    renamed = file.rename(folder / "mine.safetensors") if named == "another file" else file
    model = small_model()

    adapter = load_adapter(folder if named == "folder" else renamed, model)

    assert relative_error(velocity(model), expected) < 1e-5
    assert relative_error(velocity(small_model()), expected) > 1e-3
    path = save_adapter(adapter, tmp_path / "a.safetensors")
    adapter.merge()
    assert relative_error(velocity(model), expected) < 1e-5
    patched = small_model()
    patched.load_state_dict(apply_adapter(load_file(path), golden_weights("a")))
    assert relative_error(velocity(patched), expected) < 1e-5


def test_pefts_adapters_are_baked_as_peft_has_them(tmp_path, case):
    folder, expected = saved_by_peft(tmp_path / "peft", case)
    base = tmp_path / "base.safetensors"
    save_file(golden_weights("a"), base)

    baked = bake_adapter(folder, base, tmp_path / "baked.safetensors")

    model = small_model()
    model.load_state_dict(load_file(baked.path))
    assert relative_error(velocity(model), expected) < 1e-5


@pytest.mark.parametrize("name", [name for name in PEFT_CASES if "dora" not in name])
def test_pefts_adapters_are_converted_with_their_scale(tmp_path, name):
    folder, expected = saved_by_peft(tmp_path / "peft", PEFT_CASES[name])

    export = convert_adapter(folder, tmp_path / "a.safetensors")

    patched = small_model()
    patched.load_state_dict(apply_adapter(load_file(export.path), golden_weights("a")))
    assert relative_error(velocity(patched), expected) < 1e-5


def test_pefts_dora_is_not_converted_without_its_base(tmp_path):
    folder, _expected = saved_by_peft(tmp_path / "peft", PEFT_CASES["dora"])

    with pytest.raises(ConfigError, match=r"has PEFT's DoRA.*\n.*export-comfy --merge"):
        convert_adapter(folder, tmp_path / "a.safetensors")

    assert not (tmp_path / "a.safetensors").exists()


def test_a_peft_file_without_its_configuration_is_warned_of(tmp_path, caplog):
    folder, _expected = saved_by_peft(tmp_path / "peft", PEFT_CASES["alpha"])
    (folder / "adapter_config.json").unlink()

    adapter = load_adapter(folder, small_model())

    assert "states no scale of 20 modules" in caplog.text
    assert "scale 1 was assumed" in caplog.text
    assert adapter.deltas[Q_PROJ].config.scale == 1


def edited(folder: Path, **changes: Any) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"r": 8}, "says rank 8 of base_model.model.*whose tensors have 4"),
        ({"peft_type": "OFT"}, "says peft_type OFT"),
        ({"init_lora_weights": "pissa_niter_4"}, "PEFT changed the base"),
        ({"use_qalora": True}, "sets use_qalora"),
        ({"lora_alpha": None}, "states no scale"),
        ({"alpha_pattern": {"(": 1}}, "'.*' is no regular expression"),
    ],
)
def test_a_configuration_that_cannot_be_followed_is_named(tmp_path, changes, words):
    folder, _expected = saved_by_peft(tmp_path / "peft", PEFT_CASES["alpha"])

    with pytest.raises(CheckpointError, match=words):
        load_adapter(edited(folder, **changes), small_model())


@pytest.mark.parametrize("text", ["{", "[]", "\udcff"])
def test_a_configuration_that_is_none_is_named(tmp_path, text):
    folder, _expected = saved_by_peft(tmp_path / "peft", PEFT_CASES["alpha"])
    (folder / "adapter_config.json").write_bytes(text.encode(errors="surrogateescape"))

    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        load_adapter(folder, small_model())


@pytest.mark.parametrize("content", ["adapter_model.bin", None])
def test_a_folder_without_an_adapter_is_named(tmp_path, content):
    if content:
        (tmp_path / content).write_bytes(b"pickled")

    with pytest.raises(CheckpointError, match=content or r"folder without adapter_model\.safe"):
        load_adapter(tmp_path, small_model())


def test_whole_parameters_beside_pefts_adapter_are_named(tmp_path):
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["out_proj"])
    folder, _expected = saved_by_peft(tmp_path / "peft", config)

    with pytest.raises(CheckpointError, match="whole parameters that PEFT saved"):
        load_adapter(folder, small_model())


def test_commands_take_pefts_folder_for_an_adapter(tmp_path, cached):
    folder, converted = tmp_path / "fox", tmp_path / "fox.safetensors"
    model = load_transformer(DEMO_TRANSFORMER)
    trained_by_peft(PEFT_CASES["alpha"], model).save_pretrained(folder)

    info = CliRunner().invoke(main, ["info", str(folder)])
    convert = ["convert", "--input", str(folder), "--output", str(converted)]
    exit_code = CliRunner().invoke(main, convert).exit_code
    from_folder = {"network_weights": folder, "base_weights": [folder]}
    anima_pipe("train", output_dir=tmp_path / "run", **from_folder, **cached).ok()

    assert "lora" in info.output
    assert exit_code == 0
    alphas = {t.item() for key, t in load_file(converted).items() if key.endswith("alpha")}
    assert alphas == {8}


class Pipeline(AnimaLoraLoaderMixin):
    """The two parts that diffusers saves adapters of."""

    def __init__(self) -> None:
        weights, config = golden_weights("a"), small_model().config
        self.transformer = diffusers_transformer(weights, config)
        self.text_conditioner = diffusers_text_conditioner(weights, config)

    def parts(self) -> dict[str, nn.Module]:
        return {"transformer": self.transformer, "text_conditioner": self.text_conditioner}

    def velocity(self) -> torch.Tensor:
        names = ("qwen_hidden", "t5_ids", "qwen_mask", "t5_mask")
        condition = diffusers_condition(self.text_conditioner, *(GOLDEN[name] for name in names))
        return diffusers_velocity(self.transformer, GOLDEN["latents"], GOLDEN["sigma"], condition)


DIFFUSERS_TARGETS = {
    "transformer": ["to_q", "to_out.0", "ff.net.0.proj", "norm1.linear_2", "proj_out"],
    "text_conditioner": ["q_proj", "o_proj", "mlp.0", "out_proj"],
}


def with_peft(pipeline: Pipeline, *names: str) -> Pipeline:
    """Put PEFT's adapter, whose tensors have moved, on parts of a pipeline."""
    generator = torch.Generator().manual_seed(4)
    for name in names:
        config = peft.LoraConfig(r=3, lora_alpha=7, target_modules=DIFFUSERS_TARGETS[name])
        part = peft.inject_adapter_in_model(config, pipeline.parts()[name])
        with torch.no_grad():
            for key, parameter in part.named_parameters():
                if "lora_" in key:
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.add_(noise, alpha=0.1)
    return pipeline


def test_a_file_of_diffusers_pipeline_acts_as_there_by_the_scale_in_its_header(tmp_path):
    pipeline = with_peft(Pipeline(), *DIFFUSERS_TARGETS)
    layers = {n: peft.get_peft_model_state_dict(p) for n, p in pipeline.parts().items()}
    configs = {n: p.peft_config["default"].to_dict() for n, p in pipeline.parts().items()}
    header = {
        f"{name}.{key}": sorted(value) if isinstance(value, set) else value
        for name, config in configs.items()
        for key, value in config.items()
    }
    path = tmp_path / "pytorch_lora_weights.safetensors"
    tensors = {f"{n}.{key}": t for n, found in layers.items() for key, t in found.items()}
    save_file(tensors, path, {"format": "pt", "lora_adapter_metadata": json.dumps(header)})
    model = small_model()

    load_adapter(tmp_path, model)

    assert relative_error(velocity(model), pipeline.velocity()) < 1e-5
    assert relative_error(velocity(small_model()), pipeline.velocity()) > 1e-2


@pytest.mark.parametrize("name", DIFFUSERS_TARGETS)
def test_a_part_of_diffusers_pipeline_saved_alone_by_peft_acts_as_there(tmp_path, name):
    pipeline = Pipeline()
    config = peft.LoraConfig(r=3, lora_alpha=7, target_modules=DIFFUSERS_TARGETS[name])
    trained_by_peft(config, pipeline.parts()[name]).save_pretrained(tmp_path)
    model = small_model()

    load_adapter(tmp_path, model)

    assert relative_error(velocity(model), pipeline.velocity()) < 1e-5


def test_a_file_that_diffusers_saved_of_its_transformer_has_its_scale(tmp_path):
    pipeline = Pipeline()
    config = peft.LoraConfig(r=3, lora_alpha=7, target_modules=DIFFUSERS_TARGETS["transformer"])
    pipeline.transformer.add_adapter(config)
    pipeline.transformer.save_lora_adapter(tmp_path)

    adapter = load_adapter(tmp_path, small_model())

    assert adapter.deltas[Q_PROJ].alpha == 7


def test_diffusers_names_of_every_layer_are_known():
    known = {
        f"{name}.{path}"
        for name, part in Pipeline().parts().items()
        for path, module in part.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    }

    found = {name: anima_paths().find(name) for name in known}

    assert [name for name, path in found.items() if path is None] == []
    assert set(found.values()) == {name.rpartition(".")[0] for name in golden_weights("a")}
    bare = {name.removeprefix("transformer.").replace(".", "_") for name in known}
    assert None not in {anima_paths().find(f"lycoris_{name}") for name in bare}


@pytest.mark.parametrize("algorithm", ["lora", "loha", "lokr"])
def test_a_file_of_lycoris_own_wrapper_acts_as_there(tmp_path, algorithm):
    model = small_model()
    LycorisNetwork.apply_preset({"target_name": [".*q_proj", ".*mlp.layer1"]})
    network = create_lycoris(model, 1.0, linear_dim=2, linear_alpha=5, algo=algorithm)
    network.apply_to()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    path = tmp_path / "a.safetensors"
    network.save_weights(str(path), torch.float32, {})
    loaded = small_model()

    load_adapter(path, loaded)

    assert all(key.startswith("lycoris_") for key in load_file(path))
    assert relative_error(velocity(loaded), velocity(model)) < 1e-5
    assert relative_error(velocity(small_model()), velocity(model)) > 1e-2


@pytest.mark.parametrize(
    ("module", "whose"),
    [
        ("lora_te_text_model_encoder_layers_0_self_attn_q_proj", "of a text encoder"),
        ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj", "of a text encoder"),
        ("lora_unet_down_blocks_1_attentions_0_proj_in", "of a U-Net"),
        ("unet.up_blocks.1.attentions.0.proj_in", "of a U-Net"),
        ("lora_unet_double_blocks_0_img_attn_qkv", "of FLUX or HunyuanVideo"),
        ("transformer.single_transformer_blocks.3.attn.to_q", "of FLUX, in diffusers"),
        ("transformer.transformer_blocks.3.attn.add_q_proj", "of Qwen-Image or another"),
        ("diffusion_model.blocks.0.self_attn.q", "of Wan"),
        ("diffusion_model.blocks.0.ffn.0", "of Wan"),
        ("diffusion_model.layers.0.attention.qkv", "of Lumina or Z-Image"),
        ("base_model.model.model.layers.0.self_attn.q_proj", "of a language model"),
        ("diffusion_model.joint_blocks.0.x_block.attn.qkv", "of Stable Diffusion 3"),
    ],
)
def test_names_of_another_model_are_called_so(tmp_path, module, whose):
    factors = {"lora_A.weight": torch.ones(2, 8), "lora_B.weight": torch.ones(8, 2)}
    tensors = {f"{module}.{name}": t for name, t in {**factors, "alpha": torch.ones(())}.items()}
    save_file(tensors, tmp_path / "a.safetensors")

    with pytest.raises(CheckpointError, match=f"they are names {whose}"):
        load_adapter(tmp_path / "a.safetensors", small_model())


def test_a_conversion_does_not_take_the_place_of_the_file_in_its_folder(tmp_path):
    saved_by_peft(tmp_path, next(iter(PEFT_CASES.values())))
    file = tmp_path / "adapter_model.safetensors"
    before = file.read_bytes()
    with pytest.raises(ConfigError, match="is the adapter itself"):
        convert_adapter(tmp_path, file)
    assert file.read_bytes() == before
