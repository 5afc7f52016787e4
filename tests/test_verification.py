"""Verifiers find a number with the other sign, NaN, a lost tensor and twins, each alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapter_cases import KINDS, pretend_training, small_model
from golden_model import golden_weights
from safetensors.torch import load_file, save_file
from torch import Tensor

from anima_pipe.adapters import Adapter, create_adapter, save_adapter
from anima_pipe.adapters.headers import Origin
from anima_pipe.adapters.reading import deltas_of, read_adapter_file
from anima_pipe.errors import CheckpointError, ConfigError
from anima_pipe.export.adapter import convert_adapter, write_verified
from anima_pipe.export.bake import bake_adapter
from anima_pipe.export.comfy import anima_paths, apply_adapter
from anima_pipe.export.verification import Change, file_modules, verify_checkpoint, verify_export

DTYPES = [torch.float32, torch.float16, torch.bfloat16]

Tensors = dict[str, Tensor]


def flipped(tensor: Tensor) -> Tensor:
    """Return a tensor with the sign of its smallest number that is not zero changed."""
    changed = tensor.clone().view(-1)
    sizes = changed.abs().float()
    changed[sizes.masked_fill(sizes == 0, math.inf).argmin()] *= -1
    return changed.view(tensor.shape)


def with_one(value: float) -> Callable[[Tensor], Tensor]:
    def spoil(tensor: Tensor) -> Tensor:
        changed = tensor.clone().view(-1)
        changed[0] = value
        return changed.view(tensor.shape)

    return spoil


DAMAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "a number with the other sign": flipped,
    "nan": with_one(math.nan),
    "inf": with_one(math.inf),
}


def other_key(key: str) -> str:
    """Return a key that ComfyUI takes for the same tensor."""
    for ours, theirs in (("lora_A.", "lora_down."), ("lora_down.", "lora.down.")):
        if ours in key:
            return key.replace(ours, theirs)
    module, _, name = key.removeprefix("diffusion_model.").rpartition(".")
    return f"lora_unet_{module.replace('.', '_')}.{name}"


def trained(case: str) -> Adapter:
    kind, arguments = KINDS[case]
    return pretend_training(create_adapter(kind, small_model(), **arguments))


def keys_of_one_module(tensors: Tensors) -> list[str]:
    """Return the keys of one linear layer and of one norm, whatever the kind and the style."""
    return [key for key in tensors if "1.mlp.layer1" in key.replace("_mlp_", ".mlp.")] + [
        key for key in tensors if key.endswith(("llm_adapter.norm.w_norm", "adapter_norm.w_norm"))
    ]


@pytest.mark.parametrize("against", ["what was trained", "its source"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", KINDS)
def test_an_export_with_one_damaged_tensor_is_found_out(tmp_path, case, dtype, against):
    adapter = trained(case)
    path = save_adapter(adapter, tmp_path / "a.safetensors", dtype=dtype)
    sound, expected = load_file(path), expectation(adapter, path, against)
    keys = keys_of_one_module(sound)
    assert len(keys) >= 3
    verify_export(path, expected)

    for key in keys:
        for damage, spoil in DAMAGES.items():
            save_file(sound | {key: spoil(sound[key])}, path)
            if key.endswith("alpha") and ignores_alpha(sound, key) and damage != "nan":
                continue
            assert_found(path, expected, f"{damage} in {key}")
        save_file({name: tensor for name, tensor in sound.items() if name != key}, path)
        assert_found(path, expected, f"{key} lost")
        if not key.endswith("w_norm"):
            save_file(sound | {other_key(key): sound[key].clone()}, path)
            assert_found(path, expected, f"{key} twice")


def expectation(adapter: Adapter, path: Path, against: str) -> dict[str, Change]:
    if against == "what was trained":
        return dict(adapter.deltas)
    return dict(file_modules(read_adapter_file(path)))


def ignores_alpha(tensors: Tensors, key: str) -> bool:
    """Tell whether a key is an alpha that changes nothing: that of a LoKr of whole factors."""
    module = key.removesuffix("alpha")
    whole = {f"{module}lokr_w1", f"{module}lokr_w2"}
    return key.endswith("alpha") and whole <= tensors.keys()


def assert_found(path: Path, expected: dict[str, Change], damage: str, **more: bool) -> None:
    try:
        verify_export(path, expected, **more)
    except CheckpointError:
        return
    pytest.fail(f"not found: {damage}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_file_for_diffusers_with_one_damaged_tensor_is_found_out(tmp_path, dtype):
    adapter = pretend_training(
        create_adapter("lora", small_model(), network_dim=4, network_alpha=3.0, train_norm=False)
    )
    path = save_adapter(adapter, tmp_path / "a.safetensors", "diffusers", dtype)
    sound = load_file(path)
    verify_export(path, adapter.deltas, folded=True)

    for key in [key for key in sound if "blocks.1.mlp.layer1" in key]:
        for damage, spoil in DAMAGES.items():
            save_file(sound | {key: spoil(sound[key])}, path)
            assert_found(path, dict(adapter.deltas), f"{damage} in {key}", folded=True)
        save_file({name: tensor for name, tensor in sound.items() if name != key}, path)
        assert_found(path, dict(adapter.deltas), f"{key} lost", folded=True)


def test_a_zero_norm_that_is_lost_is_found_out_though_it_changes_nothing(tmp_path):
    adapter = create_adapter("lora", small_model())
    path = save_adapter(adapter, tmp_path / "a.safetensors")
    tensors = load_file(path)
    tensors.pop("diffusion_model.llm_adapter.norm.w_norm")
    save_file(tensors, path)

    with pytest.raises(CheckpointError, match=r"llm_adapter.norm lacks w_norm"):
        verify_export(path, adapter.deltas)


@pytest.mark.parametrize("misread", ["alpha", "lora_A.weight", "w_norm"])
def test_what_our_reader_made_of_a_file_is_held_against_the_files_own_tensors(tmp_path, misread):
    source = save_adapter(trained("lora"), tmp_path / "a.safetensors")
    other = load_file(source)
    for key in keys_of_one_module(other):
        other[key] = other[key] * 1.5 if key.endswith(misread) else other[key]
    save_file(other, tmp_path / "misread.safetensors")
    deltas = deltas_of(read_adapter_file(tmp_path / "misread.safetensors"), anima_paths())
    file = read_adapter_file(source)
    origin = Origin(command="convert", sources=())

    with pytest.raises(CheckpointError, match="is off by"):
        write_verified(
            deltas, tmp_path / "b.safetensors", "comfy", None, origin, expected=file_modules(file)
        )

    assert not (tmp_path / "b.safetensors").exists()


@pytest.mark.parametrize("style", ["comfy", "kohya", "diffusers"])
@pytest.mark.parametrize("case", ["lora", "rs-lora"])
def test_a_converted_file_is_to_comfyui_what_its_source_is(tmp_path, case, style):
    source = save_adapter(trained(case), tmp_path / "a.safetensors", dtype=torch.bfloat16)
    weights = {n: w.double() for n, w in golden_weights("a").items() if "norm" not in n}

    export = convert_adapter(
        source, tmp_path / "b.safetensors", style, torch.float32, drop_norms=style == "diffusers"
    )

    ours, theirs = (load_file(path) for path in (export.path, source))
    theirs = {key: tensor for key, tensor in theirs.items() if not key.endswith("w_norm")}
    ours = {key: tensor for key, tensor in ours.items() if not key.endswith("w_norm")}
    patched, expected = apply_adapter(ours, weights), apply_adapter(theirs, weights)
    for name in weights:
        torch.testing.assert_close(patched[name], expected[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("alpha", [0.0, -2.0, 1e-3])
def test_an_odd_alpha_is_exported_as_comfyui_heeds_it_or_not_at_all(tmp_path, alpha):
    source = save_adapter(trained("lora"), tmp_path / "a.safetensors")
    tensors = load_file(source)
    for key in tensors:
        if key.endswith("alpha"):
            tensors[key] = torch.tensor(alpha)
    save_file(tensors, source)
    weights = {name: torch.zeros_like(w) for name, w in golden_weights("a").items()}

    try:
        export = convert_adapter(source, tmp_path / "b.safetensors")
    except CheckpointError:
        assert not (tmp_path / "b.safetensors").exists()
        return

    patched = apply_adapter(load_file(export.path), weights)
    for name, expected in apply_adapter(tensors, weights).items():
        torch.testing.assert_close(patched[name], expected)


def test_dropping_the_norms_of_a_file_of_norms_leaves_nothing_to_write(tmp_path):
    adapter = create_adapter("lora", small_model(), train_norm=True)
    tensors = load_file(save_adapter(adapter, tmp_path / "a.safetensors"))
    norms = {key: tensor for key, tensor in tensors.items() if key.endswith("w_norm")}
    save_file(norms, tmp_path / "a.safetensors")

    with pytest.raises(ConfigError, match="nothing but norms"):
        convert_adapter(
            tmp_path / "a.safetensors", tmp_path / "b.safetensors", "diffusers", drop_norms=True
        )


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.safetensors"
    extra = {"first_stage_model.table": torch.arange(1, 8)}
    save_file({f"net.{name}": t for name, t in golden_weights("a").items()} | extra, path)
    return path


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", ["lora", "lokr", "dora-rows", "dora-columns"])
def test_a_baked_checkpoint_with_one_damaged_tensor_is_found_out(tmp_path, base, case, dtype):
    source = save_adapter(trained(case), tmp_path / "a.safetensors")
    baked = bake_adapter(source, base, tmp_path / "baked.safetensors", 0.7, dtype).path
    expected: dict[str, Change] = {
        f"net.{path}.{parameter}": module
        for path, module in file_modules(read_adapter_file(source)).items()
        for parameter in module.shapes
    }
    sound = load_file(baked)
    assert verify_checkpoint(baked, base, expected, 0.7) < 1e-2

    def damaged(tensors: Tensors, damage: str) -> None:
        save_file(tensors, baked)
        try:
            verify_checkpoint(baked, base, expected, 0.7)
        except CheckpointError:
            return
        pytest.fail(f"not found: {damage}")

    changed, kept = "net.blocks.1.mlp.layer1.weight", "net.x_embedder.proj.1.weight"
    for key in (changed, kept, "net.llm_adapter.norm.weight"):
        for damage, spoil in DAMAGES.items():
            damaged(sound | {key: spoil(sound[key])}, f"{damage} in {key}")
        damaged({n: t for n, t in sound.items() if n != key}, f"{key} lost")
        damaged(sound | {key.removeprefix("net."): sound[key].clone()}, f"{key} twice")
    table = sound["first_stage_model.table"]
    damaged(sound | {"first_stage_model.table": table.flip(0)}, "a table of another part")
    save_file(sound, baked)
    with pytest.raises(CheckpointError, match="is off by"):
        verify_checkpoint(baked, base, expected, 0.8)


def with_a_second_entry(path: Path, key: str) -> None:
    """Name a tensor twice in a file's header, which JSON allows and dictionaries swallow."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    twin = json.dumps({key: header[key]})[1:-1]
    text = f"{{{twin},{content[8 : 8 + length].decode().strip()[1:]}".encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def test_a_checkpoint_whose_header_names_a_tensor_twice_is_damaged(tmp_path, base):
    baked = bake_adapter(
        save_adapter(trained("lora"), tmp_path / "a.safetensors"), base, tmp_path / "b.safetensors"
    ).path
    with_a_second_entry(baked, "net.blocks.1.mlp.layer1.weight")

    with pytest.raises(CheckpointError, match=r"header of .* is damaged: a name twice"):
        verify_checkpoint(baked, base, {}, 1.0)


def test_an_adapter_file_whose_header_names_a_tensor_twice_is_damaged(tmp_path):
    adapter = trained("lora")
    path = save_adapter(adapter, tmp_path / "a.safetensors")
    with_a_second_entry(path, "diffusion_model.blocks.1.mlp.layer1.lora_B.weight")

    with pytest.raises(CheckpointError, match=r"header of .* is damaged: a name twice"):
        verify_export(path, adapter.deltas)
