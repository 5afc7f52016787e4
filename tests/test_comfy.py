"""ComfyUI's rules: they reproduce its golden weights, and our files obey them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from adapter_cases import GOLDEN, KINDS, STYLED, pretend_training, small_model, velocity
from diffusers.loaders import AnimaLoraLoaderMixin
from diffusers_parity import (
    diffusers_condition,
    diffusers_text_conditioner,
    diffusers_transformer,
    diffusers_velocity,
)
from golden_model import golden_weights, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from anima_pipe.adapters import Adapter, create_adapter, load_adapter, save_adapter
from anima_pipe.errors import CheckpointError, ConfigError
from anima_pipe.export.adapter import convert_adapter
from anima_pipe.export.comfy import apply_adapter, weight_change
from anima_pipe.export.verification import verify_export

GOLDEN_FILE = Path(__file__).parent / "golden" / "adapters_a.safetensors"


def golden_part(prefix: str) -> dict[str, torch.Tensor]:
    tensors = load_file(GOLDEN_FILE)
    return {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}


def golden_kinds() -> dict[str, str]:
    """Return module -> kind, the names that the golden file was made with."""
    with safe_open(GOLDEN_FILE, framework="pt") as file:
        return json.loads(file.metadata()["kinds"])


KINDS_OF_MODULES = golden_kinds()
COMFY_ONLY = {"dora", "lokr_bothfact"}
"""Kinds that sd-scripts makes something else of."""
TRAINABLE = {m: k for m, k in KINDS_OF_MODULES.items() if k != "diff"}


def underscored(key: str) -> str:
    """Return a key of the golden file under Kohya's name of its module."""
    module = next(m for m in KINDS_OF_MODULES if key.startswith(f"diffusion_model.{m}."))
    return f"lora_unet_{module.replace('.', '_')}{key.removeprefix(f'diffusion_model.{module}')}"


@pytest.mark.parametrize("strength", ["1.0", "0.7"])
@pytest.mark.parametrize("rename", [str, underscored], ids=["dotted", "underscored"])
def test_the_rules_give_the_weights_that_comfyui_computes(rename, strength):
    file = {rename(key): tensor for key, tensor in golden_part("file.").items()}
    expected = golden_part(f"patched.{strength}.")

    patched = apply_adapter(file, golden_part("base."), float(strength))

    assert patched.keys() == expected.keys()
    assert len(expected) == len(KINDS_OF_MODULES)
    for name, weight in expected.items():
        assert relative_error(patched[name], weight) < 1e-5, name


class Tree(nn.Module):
    """Modules at dotted paths, as a model has them."""

    def put(self, path: str, module: nn.Module) -> None:
        head, _, rest = path.partition(".")
        if not rest:
            self.add_module(head, module)
            return
        if head not in self._modules:
            self.add_module(head, Tree())
        self.get_submodule(head).put(rest, module)


@pytest.mark.parametrize("strength", ["1.0", "0.7"])
@pytest.mark.parametrize("rename", [str, underscored], ids=["dotted", "underscored"])
def test_our_adapters_read_comfyuis_golden_file_and_merge_to_its_weights(
    tmp_path, rename, strength
):
    base, expected = golden_part("base."), golden_part(f"patched.{strength}.")
    model = Tree()
    for module in TRAINABLE:
        weight = base[f"diffusion_model.{module}.weight"]
        layer = nn.RMSNorm(weight.shape) if weight.ndim == 1 else nn.Linear(*weight.shape[::-1])
        layer.weight.data.copy_(weight)
        model.put(module, layer)
    path = tmp_path / "a.safetensors"
    file = golden_part("file.")
    own = [key for key in file if any(key.startswith(f"diffusion_model.{m}.") for m in TRAINABLE)]
    save_file({rename(key): file[key] for key in own}, path)

    load_adapter(path, model, float(strength)).merge()

    assert len(TRAINABLE) == 9
    for module in TRAINABLE:
        merged = model.get_submodule(module).weight
        assert relative_error(merged, expected[f"diffusion_model.{module}.weight"]) < 1e-5, module


def test_what_we_write_of_the_golden_file_is_what_comfyui_reads(tmp_path):
    path = tmp_path / "golden.safetensors"
    file = golden_part("file.")
    own = [key for key in file if any(key.startswith(f"diffusion_model.{m}.") for m in TRAINABLE)]
    base, expected = golden_part("base."), golden_part("patched.1.0.")

    for style in ("comfy", "kohya"):
        written = [m for m in TRAINABLE if style == "comfy" or TRAINABLE[m] not in COMFY_ONLY]
        chosen = [key for key in own if any(f".{module}." in key for module in written)]
        save_file({key: file[key] for key in chosen}, path)
        export = convert_adapter(path, tmp_path / f"{style}.safetensors", style)
        patched = apply_adapter(load_file(export.path), base)
        for module in written:
            name = f"diffusion_model.{module}.weight"
            assert relative_error(patched[name], expected[name]) < 1e-5, name


def trained_as(case: str) -> Adapter:
    kind, arguments = KINDS[case]
    return pretend_training(create_adapter(kind, small_model(), **arguments))


@pytest.fixture(params=KINDS)
def trained(request) -> Adapter:
    return trained_as(request.param)


@pytest.mark.parametrize(("case", "style"), STYLED)
def test_a_model_patched_from_the_file_gives_the_velocity_that_was_trained(tmp_path, case, style):
    trained = trained_as(case)
    path = save_adapter(trained, tmp_path / "a.safetensors", style)
    patched = small_model()

    patched.load_state_dict(apply_adapter(load_file(path), golden_weights("a")))

    assert relative_error(velocity(patched), velocity(trained.model)) < 5e-6
    assert relative_error(velocity(patched), velocity(small_model())) > 1e-2


class Pipeline(AnimaLoraLoaderMixin):
    """What diffusers loads an Anima LoRA into: a transformer and a text conditioner."""

    def __init__(self) -> None:
        weights, config = golden_weights("a"), small_model().config
        self.transformer = diffusers_transformer(weights, config)
        self.text_conditioner = diffusers_text_conditioner(weights, config)
        self.components = vars(self).copy()
        self.hf_device_map = None

    def velocity(self) -> torch.Tensor:
        condition = diffusers_condition(
            self.text_conditioner,
            *(GOLDEN[name] for name in ("qwen_hidden", "t5_ids", "qwen_mask", "t5_mask")),
        )
        return diffusers_velocity(self.transformer, GOLDEN["latents"], GOLDEN["sigma"], condition)


def test_diffusers_loads_its_file_and_gives_the_velocity_that_was_trained(tmp_path):
    model = small_model()
    adapter = create_adapter("lora", model, network_dim=4, network_alpha=3.0, train_norm=False)
    pretend_training(adapter)
    pipeline = Pipeline()
    before = pipeline.velocity()

    pipeline.load_lora_weights(save_adapter(adapter, tmp_path / "a.safetensors", "diffusers"))

    assert relative_error(pipeline.velocity(), velocity(model)) < 5e-6
    assert relative_error(before, velocity(model)) > 1e-2


def test_diffusers_refuses_a_comfy_file_which_is_why_there_is_a_style_for_it(tmp_path):
    adapter = create_adapter("lora", small_model())

    with pytest.raises(ValueError, match="Invalid LoRA checkpoint"):
        Pipeline().load_lora_weights(save_adapter(adapter, tmp_path / "a.safetensors", "comfy"))


@pytest.mark.parametrize(
    ("dtype", "least", "most"),
    [(None, 0, 1e-6), (torch.float16, 1e-5, 4e-3), (torch.bfloat16, 1e-4, 3e-2)],
)
@pytest.mark.parametrize(("case", "style"), STYLED)
def test_a_file_is_verified_to_the_rounding_of_its_dtype(tmp_path, case, style, dtype, least, most):
    trained = trained_as(case)
    path = save_adapter(trained, tmp_path / "a.safetensors", style, dtype)

    assert least <= verify_export(path, trained.deltas) < most


def test_a_verification_leaves_the_adapter_as_it_is(tmp_path, trained):
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}

    verify_export(save_adapter(trained, tmp_path / "a.safetensors"), trained.deltas)

    assert all(torch.equal(tensor, before[n]) for n, tensor in trained.state_dict().items())


def test_an_adapter_in_use_at_another_strength_is_verified_as_saved(tmp_path, trained):
    trained.set_strength(0.25)
    path = save_adapter(trained, tmp_path / "a.safetensors")

    assert verify_export(path, trained.deltas) < 1e-6


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("blocks.1.mlp.layer1.lora_B.weight", lambda tensor: tensor * 1.001),
        ("blocks.1.mlp.layer1.alpha", lambda tensor: tensor * 2),
        ("llm_adapter.norm.w_norm", lambda tensor: tensor.flip(0)),
        ("llm_adapter.norm.w_norm", None),
    ],
)
def test_a_file_that_is_not_what_was_trained_fails_its_verification(tmp_path, key, change):
    adapter = pretend_training(create_adapter("lora", small_model()))
    path = save_adapter(adapter, tmp_path / "a.safetensors")
    tensors = load_file(path)
    tensor = tensors.pop(f"diffusion_model.{key}")
    if change is not None:
        tensors[f"diffusion_model.{key}"] = change(tensor)
    save_file(tensors, path)

    module = key.rsplit(".", 2 if "lora" in key else 1)[0]
    with pytest.raises(CheckpointError, match=f"the change of {module} is off"):
        verify_export(path, adapter.deltas)


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("dora_scale", lambda scale: scale.bfloat16()),
        ("dora_scale", lambda scale: scale.flip(0, 1)),
        ("dora_scale", None),
        ("lora_B.weight", lambda up: up * 1.001),
        ("lora_B.weight", torch.zeros_like),
    ],
)
@pytest.mark.parametrize("size", [1e-4, 1e-2, 1.0])
def test_a_dora_is_verified_on_weights_that_its_scale_is_of(tmp_path, columns, name, change, size):
    adapter = create_adapter("lora", small_model(), dora=True, wd_on_output=not columns)
    path = save_adapter(pretend_training(adapter, size=size), tmp_path / "a.safetensors")
    assert verify_export(path, adapter.deltas) < 1e-5
    tensors = load_file(path)
    key = f"diffusion_model.blocks.1.mlp.layer1.{name}"
    tensor = tensors.pop(key)
    if change is not None:
        tensors[key] = change(tensor).contiguous()
    save_file(tensors, path)

    with pytest.raises(CheckpointError, match=r"the change of blocks.1.mlp.layer1 is off"):
        verify_export(path, adapter.deltas)


def test_a_file_that_changes_what_was_not_trained_fails_its_verification(tmp_path):
    adapter = create_adapter("lora", small_model())
    path = save_adapter(pretend_training(create_adapter("lora", small_model())), tmp_path / "a")

    with pytest.raises(CheckpointError, match="off by inf"):
        verify_export(path, adapter.deltas)


def test_an_untrained_adapter_is_verified_too(tmp_path):
    adapter = create_adapter("lora", small_model())

    assert verify_export(save_adapter(adapter, tmp_path / "a"), adapter.deltas) == 0


@pytest.mark.parametrize(
    "key", ["blocks.9.mlp.layer1.alpha", "blocks.0.mlp.layer1.beta", "llm_adapter.norm.b_norm"]
)
def test_tensors_that_comfyui_would_pass_over_are_an_error(key):
    with pytest.raises(CheckpointError, match=f"would pass over 1 tensors: .*{key}"):
        apply_adapter({f"diffusion_model.{key}": torch.ones(())}, golden_weights("a"))


def test_weights_keep_their_dtype_and_those_not_spoken_of_their_memory():
    weights = {"norm.weight": torch.ones(2, dtype=torch.bfloat16), "other.weight": torch.ones(1)}

    patched = apply_adapter({"diffusion_model.norm.w_norm": torch.full((2,), 0.25)}, weights)

    assert patched["norm.weight"].tolist() == [1.25, 1.25]
    assert patched["norm.weight"].dtype == torch.bfloat16
    assert patched["other.weight"] is weights["other.weight"]


@pytest.mark.parametrize("names", [("diff", "diff_b"), ("w_norm", "b_norm")])
def test_differences_are_added_to_weight_and_bias(names):
    weights = {"norm.weight": torch.ones(2), "norm.bias": torch.zeros(2)}
    file = {f"lora_unet_norm.{name}": torch.full((2,), 0.5) for name in names}

    patched = apply_adapter(file, weights, strength=2.0)

    assert patched["norm.weight"].tolist() == [2.0, 2.0]
    assert patched["norm.bias"].tolist() == [1.0, 1.0]


@given(
    shape=st.tuples(st.integers(2, 9), st.integers(1, 9)),
    rank=st.integers(1, 4),
    alpha=st.floats(0.1, 8),
)
@settings(max_examples=30)
def test_a_dora_scale_of_columns_gives_the_changed_weight_columns_of_that_norm(shape, rank, alpha):
    generator = torch.Generator().manual_seed(0)
    weight, up, down, scale = (
        torch.randn(*size, generator=generator, dtype=torch.float64)
        for size in (shape, (shape[0], rank), (rank, shape[1]), (1, shape[1]))
    )
    factors = {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(alpha)}

    change = weight_change(weight, {**factors, "dora_scale": scale.abs()})

    found = (weight + change).norm(dim=0)
    # ComfyUI adds the least step of fp32 to every norm.
    torch.testing.assert_close(found, scale.abs()[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", [case for case, style in STYLED if style == "kohya"])
def test_an_export_goes_from_any_style_to_any_other_and_back(tmp_path, case):
    trained = trained_as(case)
    paths = [save_adapter(trained, tmp_path / "0.safetensors", "kohya", metadata={"ss_steps": "7"})]
    for number, style in enumerate(["comfy", "kohya", "comfy"]):
        export = convert_adapter(paths[-1], tmp_path / f"{number}_{style}.safetensors", style)
        assert export.largest_difference < 1e-6
        paths.append(export.path)

    model = small_model()
    adapter = load_adapter(paths[-1], model)

    assert torch.equal(velocity(model), velocity(trained.model))
    assert export.keys == len(load_file(paths[-1]))
    assert adapter.state_dict().keys() == trained.state_dict().keys()
    with safe_open(paths[-1], framework="pt") as file:
        assert file.metadata()["ss_steps"] == "7"
        assert file.metadata()["adapter_style"] == "comfy"
        assert json.loads(file.metadata()["model_depths"])["blocks"] == 2


def test_an_export_keeps_the_dtype_of_its_source_unless_told(tmp_path):
    adapter = pretend_training(create_adapter("lora", small_model()))
    source = save_adapter(adapter, tmp_path / "a.safetensors", dtype=torch.bfloat16)

    same = load_file(convert_adapter(source, tmp_path / "b.safetensors").path)
    finer = load_file(convert_adapter(source, tmp_path / "c.safetensors", dtype=torch.float32).path)

    key = "diffusion_model.blocks.0.mlp.layer1.lora_A.weight"
    assert same[key].dtype == torch.bfloat16
    assert finer[key].dtype == torch.float32
    assert torch.equal(same[key].float(), finer[key])


def test_an_export_for_diffusers_needs_leave_to_drop_the_norms(tmp_path):
    adapter = pretend_training(create_adapter("lora", small_model()))
    source = save_adapter(adapter, tmp_path / "a.safetensors")
    target = tmp_path / "b.safetensors"

    with pytest.raises(ConfigError, match="drop the norms"):
        convert_adapter(source, target, "diffusers")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors"]

    assert convert_adapter(source, target, "diffusers", drop_norms=True).keys == 80
