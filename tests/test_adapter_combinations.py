"""Several changes on one module, and adapters of modules that are no linear layer."""

from __future__ import annotations

import pytest
import torch
from adapter_cases import pretend_training, small_model, velocity
from golden_model import golden_weights, relative_error
from safetensors.torch import load_file, save_file

from anima_pipe.adapters import create_adapter, load_adapter, save_adapter
from anima_pipe.adapters.combine import Size, merge_adapters
from anima_pipe.adapters.extract import extract_adapter
from anima_pipe.errors import ConfigError
from anima_pipe.export.adapter import convert_adapter
from anima_pipe.export.bake import bake_adapter
from anima_pipe.export.comfy import apply_adapter

MLP = "llm_adapter.blocks.0.mlp.0"
OUT_PROJ = "llm_adapter.out_proj"
EMBED = "llm_adapter.embed"


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.5


def shape(path: str) -> tuple[int, ...]:
    return tuple(golden_weights("a")[f"{path}.weight"].shape)


def lora(path: str) -> dict[str, torch.Tensor]:
    rows, columns = shape(path)
    return {"lora_A.weight": random(3, columns), "lora_B.weight": random(rows, 3, seed=1)}


def lokr(path: str) -> dict[str, torch.Tensor]:
    rows, columns = shape(path)
    return {"lokr_w1": random(4, 4), "lokr_w2": random(rows // 4, columns // 4, seed=1)}


def diff_b(path: str) -> dict[str, torch.Tensor]:
    return {"diff_b": random(shape(path)[0], seed=2)}


def dora(path: str, *, by_row: bool) -> dict[str, torch.Tensor]:
    weight = golden_weights("a")[f"{path}.weight"]
    return {"dora_scale": weight.norm(dim=1 if by_row else 0, keepdim=True) * 1.1}


CASES = {
    "LoRA and bias": {MLP: {**lora(MLP), **diff_b(MLP)}},
    "DoRA and bias": {MLP: {**lora(MLP), **dora(MLP, by_row=True), **diff_b(MLP)}},
    "DoRA of columns and bias": {MLP: {**lora(MLP), **dora(MLP, by_row=False), **diff_b(MLP)}},
    "LoKr and bias": {MLP: {**lokr(MLP), **diff_b(MLP)}},
    "difference and bias": {MLP: {"diff": random(*shape(MLP)), **diff_b(MLP)}},
    "bias alone": {MLP: diff_b(MLP), OUT_PROJ: diff_b(OUT_PROJ)},
    "LoRA of the embedding": {EMBED: lora(EMBED)},
    "LoKr of the embedding": {EMBED: lokr(EMBED)},
    "DoRA of the embedding": {EMBED: {**lora(EMBED), **dora(EMBED, by_row=False)}},
    "difference of the embedding": {EMBED: {"diff": random(*shape(EMBED))}},
}


@pytest.fixture(params=CASES)
def file(request, tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = {
        f"diffusion_model.{module}.{name}": tensor
        for module, found in CASES[request.param].items()
        for name, tensor in found.items()
    }
    save_file(tensors, path)
    return path


def as_comfyui_has_it(path) -> torch.Tensor:
    model = small_model()
    model.load_state_dict(apply_adapter(load_file(path), golden_weights("a")))
    assert relative_error(velocity(small_model()), velocity(model)) > 1e-4
    return velocity(model)


def test_a_combination_is_loaded_trained_saved_and_merged_as_comfyui_has_it(file, tmp_path):
    expected, model = as_comfyui_has_it(file), small_model()
    adapter = load_adapter(file, model)

    assert relative_error(velocity(model), expected) < 1e-5
    velocity(model).square().mean().backward()
    assert all(parameter.grad is not None for parameter in adapter.parameters())
    saved = load_file(save_adapter(adapter, tmp_path / "b.safetensors"))
    own = load_file(file)
    assert all(torch.equal(saved[name], tensor) for name, tensor in own.items())
    adapter.merge()
    assert relative_error(velocity(model), expected) < 1e-5


def test_a_combination_is_converted_and_baked_as_comfyui_has_it(file, tmp_path):
    expected, base = as_comfyui_has_it(file), tmp_path / "base.safetensors"
    save_file(golden_weights("a"), base)

    export = convert_adapter(file, tmp_path / "b.safetensors")
    baked = bake_adapter(file, base, tmp_path / "c.safetensors")

    assert relative_error(as_comfyui_has_it(export.path), expected) < 1e-6
    model = small_model()
    model.load_state_dict(load_file(baked.path))
    assert relative_error(velocity(model), expected) < 1e-5


def test_merging_adds_biases_up_beside_whatever_the_weights_become(file, tmp_path):
    deltas = load_adapter(file, small_model()).deltas
    if any(delta.has_dora for delta in deltas.values()):
        with pytest.raises(ConfigError, match="depends on the base"):
            merge_adapters([(deltas, 1.0)])
        return

    once = merge_adapters([(deltas, 1.0)], Size(rank=16))
    twice = merge_adapters([(deltas, 1.0), (deltas, -0.25)], whole=True)

    for path, delta in deltas.items():
        for name, change in delta.weight_changes({}).items():
            torch.testing.assert_close(twice[path].weight_changes({})[name], change * 0.75)
            assert once[path].shapes.keys() == delta.shapes.keys()
            if name == "bias":
                torch.testing.assert_close(once[path].weight_changes({})[name], change)


@pytest.mark.parametrize("kind", ["lora", "lokr"])
def test_biases_train_where_that_is_asked_for(tmp_path, kind):
    model, before = small_model(), velocity(small_model())
    adapter = create_adapter(kind, model, train_bias="true", network_dim=2)
    assert torch.equal(velocity(model), before)
    biases = [name for name, _ in adapter.named_parameters() if name.endswith("diff_b")]
    assert len(biases) == 4
    groups = {group.name: group for group in adapter.groups()}
    assert not groups["linear bias"].decays
    pretend_training(adapter)

    path = save_adapter(adapter, tmp_path / "a.safetensors")

    assert relative_error(as_comfyui_has_it(path), velocity(model)) < 1e-5


def test_biases_that_no_adapted_layer_has_are_refused():
    with pytest.raises(ConfigError, match="no adapted layer has a bias"):
        create_adapter("lora", small_model(), train_bias=True, train_llm_adapter=False)


def test_biases_and_the_embedding_are_extracted(tmp_path):
    base, tuned = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"
    weights = golden_weights("a")
    changed = dict(weights)
    for path in (MLP, EMBED):
        down, up = lora(path).values()
        changed[f"{path}.weight"] = weights[f"{path}.weight"] + up @ down
    for path in (MLP, OUT_PROJ):
        changed[f"{path}.bias"] = weights[f"{path}.bias"] + random(shape(path)[0])
    save_file(weights, base)
    save_file(changed, tuned)

    found = extract_adapter(base, tuned, Size(rank=3))

    assert found.left_out == []
    assert set(found.deltas) == {MLP, EMBED, OUT_PROJ}
    for path, delta in found.deltas.items():
        for name, change in delta.weight_changes({}).items():
            wanted = changed[f"{path}.{name}"] - weights[f"{path}.{name}"]
            assert relative_error(change, wanted) < 1e-3, path
