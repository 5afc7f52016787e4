"""Adapter files: each style that can express an adapter gives it back; none is half read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from adapter_cases import KINDS, STYLED, assert_same, pretend_training, small_model, velocity
from golden_model import golden_weights, relative_error
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from anima_pipe.adapters import Adapter, create_adapter, load_adapter, save_adapter
from anima_pipe.adapters.dora import weight_norm
from anima_pipe.adapters.linear import LinearDelta
from anima_pipe.errors import CheckpointError, ConfigError, OutputError
from anima_pipe.export.adapter import convert_adapter
from anima_pipe.export.comfy import apply_adapter
from anima_pipe.hooks.saving import SaveConfig
from anima_pipe.runs.adapting import adapter_writer

Q_PROJ = "blocks.0.self_attn.q_proj"


@pytest.fixture(params=KINDS)
def case(request) -> tuple[str, dict[str, object]]:
    return KINDS[request.param]


def trained_adapter(kind: str = "lora", **arguments) -> Adapter:
    """Return an adapter, on a model of its own, that changes something."""
    return pretend_training(create_adapter(kind, small_model(), **arguments))


def saved(tmp_path: Path, *arguments, adapter: Adapter | None = None, **more) -> Path:
    return save_adapter(
        adapter or trained_adapter(), tmp_path / "a.safetensors", *arguments, **more
    )


def rewritten(path: Path, rename=lambda key: key, keep_metadata: bool = True, **changes) -> Path:
    """Write a file anew with other keys, without metadata or with tensors changed or left out."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() if keep_metadata else None
    tensors = {**load_file(path), **changes}
    kept = {rename(key): tensor for key, tensor in tensors.items() if tensor is not None}
    save_file(kept, path, metadata)
    return path


@pytest.mark.parametrize(("name", "style"), STYLED)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_an_adapter_comes_back_from_its_file_bit_for_bit(tmp_path, name, style, dtype):
    kind, arguments = KINDS[name]
    path = saved(tmp_path, style, dtype, adapter=trained_adapter(kind, **arguments))

    adapter = load_adapter(path, small_model())
    again = save_adapter(adapter, tmp_path / "again.safetensors", style, dtype)

    assert_same(load_file(path), load_file(again))


def test_an_adapter_comes_back_from_a_diffusers_file_bit_for_bit(tmp_path):
    path = saved(tmp_path, "diffusers", drop_norms=True)

    again = save_adapter(load_adapter(path, small_model()), tmp_path / "b.safetensors", "diffusers")

    assert_same(load_file(path), load_file(again))


@pytest.mark.parametrize(("name", "style"), STYLED)
def test_a_loaded_adapter_is_the_trained_one_and_trains_on(tmp_path, name, style):
    kind, arguments = KINDS[name]
    trained = trained_adapter(kind, **arguments)
    path = saved(tmp_path, style, adapter=trained)
    model = small_model()

    adapter = load_adapter(path, model)
    velocity(model).square().mean().backward()

    assert_same(adapter.state_dict(), trained.state_dict())
    assert torch.equal(velocity(model), velocity(trained.model))
    assert all(parameter.grad is not None for parameter in adapter.parameters())


@pytest.mark.parametrize(
    ("style", "keys"),
    [
        (
            "comfy",
            {
                f"diffusion_model.{Q_PROJ}.lora_A.weight",
                f"diffusion_model.{Q_PROJ}.lora_B.weight",
                f"diffusion_model.{Q_PROJ}.alpha",
                "diffusion_model.llm_adapter.norm.w_norm",
            },
        ),
        (
            "kohya",
            {
                "lora_unet_blocks_0_self_attn_q_proj.lora_down.weight",
                "lora_unet_blocks_0_self_attn_q_proj.lora_up.weight",
                "lora_unet_blocks_0_self_attn_q_proj.alpha",
                "lora_unet_llm_adapter_norm.w_norm",
            },
        ),
    ],
)
def test_the_keys_are_those_that_comfyui_and_kohya_know(tmp_path, style, keys):
    tensors = load_file(saved(tmp_path, style))

    assert keys <= tensors.keys()
    assert len(tensors) == 40 * 3 + 24


def test_a_diffusers_file_holds_two_factors_a_module_with_alpha_in_the_second(tmp_path):
    adapter = trained_adapter(network_dim=4, network_alpha=3.0, train_norm=False)

    tensors = load_file(saved(tmp_path, "diffusers", adapter=adapter))

    state = adapter.state_dict()
    assert {key.split(".", 1)[0] for key in tensors} == {"diffusion_model"}
    assert len(tensors) == 40 * 2
    for name, tensor in state.items():
        scale = 0.75 if "lora_B" in name else 1.0
        assert torch.equal(tensors[f"diffusion_model.{name}"], tensor * scale)


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        ({"kind": "lora"}, "diffusers cannot express .*norm.*\n.*drop the norms"),
        ({"kind": "lokr", "train_norm": False}, "which is of kind lokr.*\n.*comfy"),
        ({"dora": True, "train_norm": False}, "which is of kind lora with DoRA.*\n.*comfy"),
    ],
)
def test_what_a_style_cannot_express_is_refused_and_nothing_written(tmp_path, adapter, words):
    with pytest.raises(ConfigError, match=words):
        saved(tmp_path, "diffusers", adapter=trained_adapter(**adapter))

    assert list(tmp_path.iterdir()) == []


def test_an_unknown_style_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"'a1111'.*\n.*comfy, kohya, diffusers"):
        saved(tmp_path, "a1111")


def test_alpha_stays_exact_in_a_file_of_half_precision(tmp_path):
    adapter = trained_adapter(network_alpha=1.1)

    path = saved(tmp_path, "comfy", torch.bfloat16, adapter=adapter)

    assert load_file(path)[f"diffusion_model.{Q_PROJ}.alpha"] == torch.tensor(1.1)
    assert load_file(path)[f"diffusion_model.{Q_PROJ}.lora_A.weight"].dtype == torch.bfloat16


def dora_of_a_hundredth(columns: bool) -> Adapter:
    """Return a DoRA of which factors and scales each moved their weights by 1 %."""
    adapter = create_adapter("lora", small_model(), dora=True, wd_on_output=not columns)
    pretend_training(adapter, size=1.0)
    generator = torch.Generator().manual_seed(2)
    weights = {name: t.float() for name, t in golden_weights("a").items()}
    with torch.no_grad():
        for place, delta in adapter.deltas.items():
            if isinstance(delta, LinearDelta):
                weight = weights[f"{place}.weight"]
                delta.matrices()["lora_B.weight"].mul_(
                    0.01 * weight.norm() / delta.product().norm()
                )
                norms = weight_norm(weight, by_row=not columns)
                moved = norms * (1 + 0.01 * torch.randn(norms.shape, generator=generator))
                delta.trained()["dora_scale"].copy_(moved)
    return adapter


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("command", ["train", "convert"])
def test_half_precision_costs_a_dora_no_more_of_what_it_learned_than_a_lora(
    tmp_path, columns, dtype, command
):
    adapter = dora_of_a_hundredth(columns)
    path = saved(tmp_path, dtype=dtype if command == "train" else None, adapter=adapter)
    if command == "convert":
        path = convert_adapter(path, tmp_path / "b.safetensors", dtype=dtype).path
    weights = {name: t.float() for name, t in golden_weights("a").items()}

    patched = apply_adapter(load_file(path), weights)

    errors = [
        relative_error(patched[name] - weights[name], change)
        for place, delta in adapter.deltas.items()
        if delta.has_dora
        for name, change in [
            (f"{place}.weight", delta.weight_changes({"weight": weights[f"{place}.weight"]}))
        ]
        for change in [change["weight"].detach()]
    ]
    assert max(errors) < 0.005


def test_a_half_precision_dora_is_still_a_file_of_half_precision(tmp_path):
    path = saved(tmp_path, dtype=torch.bfloat16, adapter=trained_adapter(dora=True))

    again = load_file(convert_adapter(path, tmp_path / "b.safetensors").path)

    dtypes = {key.rpartition(".")[2]: tensor.dtype for key, tensor in again.items()}
    assert dtypes == {
        "weight": torch.bfloat16,
        "w_norm": torch.bfloat16,
        "alpha": torch.float32,
        "dora_scale": torch.float32,
    }


def test_the_header_says_what_the_adapter_is_and_for_which_depth(tmp_path):
    path = saved(tmp_path, metadata={"ss_output_name": "mine", "adapter_kind": "a lie"})

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()

    assert json.loads(metadata.pop("model_depths")) == {"blocks": 2, "llm_adapter.blocks": 2}
    assert len(metadata.pop("sshs_model_hash")) == 64
    assert len(metadata.pop("sshs_legacy_hash")) == 8
    assert metadata == {
        "format": "pt",
        "ss_output_name": "mine",
        "adapter_kind": "lora+norm",
        "adapter_style": "comfy",
        "adapter_rank": "4",
        "adapter_alpha": "1.0",
    }


def test_strength_is_not_saved(tmp_path):
    adapter = trained_adapter()
    adapter.set_strength(0.3)

    loaded = load_adapter(saved(tmp_path, adapter=adapter), small_model())

    adapter.set_strength(1.0)
    assert torch.equal(velocity(loaded.model), velocity(adapter.model))


def test_an_adapter_can_be_loaded_at_another_strength(tmp_path):
    adapter = trained_adapter()
    path = saved(tmp_path, adapter=adapter)
    adapter.set_strength(0.3)

    weak = load_adapter(path, small_model(), strength=0.3)

    assert torch.equal(velocity(weak.model), velocity(adapter.model))


def test_adapters_of_several_files_add_up_on_one_model(tmp_path):
    paths = [
        save_adapter(
            pretend_training(create_adapter("lora", small_model()), seed=seed),
            tmp_path / f"{seed}.safetensors",
        )
        for seed in (1, 2)
    ]
    stacked, merged = small_model(), small_model()

    for path in paths:
        load_adapter(path, stacked)
        load_adapter(path, merged).merge()

    assert relative_error(velocity(stacked), velocity(merged)) < 5e-6


def seed_names(key: str) -> str:
    return key.replace("lora_A", "lora_down").replace("lora_B", "lora_up")


@pytest.mark.parametrize(
    "rename",
    [
        seed_names,
        lambda key: key.removeprefix("diffusion_model."),
        lambda key: "transformer." + key.removeprefix("diffusion_model."),
        lambda key: "base_model.model." + key.removeprefix("diffusion_model."),
        lambda key: "base_model.model." + key,
        lambda key: "model." + key,
        lambda key: key.replace("lora_A", "lora_A.default").replace("lora_B", "lora_B.default"),
    ],
    ids=["seed", "bare", "transformer", "peft", "peft over comfy", "model.", "peft name"],
)
def test_files_of_other_programs_are_read(tmp_path, rename):
    adapter = trained_adapter()
    path = rewritten(saved(tmp_path, adapter=adapter), rename, keep_metadata=False)

    loaded = load_adapter(path, small_model())

    assert_same(loaded.state_dict(), adapter.state_dict())
    assert torch.equal(velocity(loaded.model), velocity(adapter.model))


def test_without_alpha_a_lora_acts_as_its_factors_say(tmp_path):
    adapter = trained_adapter(network_dim=4, network_alpha=4)
    path = saved(tmp_path, adapter=adapter)
    without = dict.fromkeys(key for key in load_file(path) if key.endswith(".alpha"))

    loaded = load_adapter(rewritten(path, **without), small_model())

    assert torch.equal(velocity(loaded.model), velocity(adapter.model))


def test_ranks_may_differ_from_module_to_module(tmp_path):
    key = f"diffusion_model.{Q_PROJ}"
    changes = {
        f"{key}.lora_A.weight": torch.ones(7, 64),
        f"{key}.lora_B.weight": torch.ones(64, 7),
        f"{key}.alpha": torch.tensor([14], dtype=torch.int64),
    }

    adapter = load_adapter(rewritten(saved(tmp_path), **changes), small_model())

    assert adapter.deltas[Q_PROJ].rank == 7
    change = adapter.deltas[Q_PROJ].weight_changes({})["weight"]
    assert torch.equal(change, torch.full((64, 64), 14.0))


def test_kinds_may_differ_from_module_to_module(tmp_path):
    lokr = trained_adapter("lokr", target_modules=Q_PROJ, train_norm=False)
    lora = trained_adapter("lora", target_modules="k_proj")
    path = saved(tmp_path, adapter=lora)
    extra = load_file(save_adapter(lokr, tmp_path / "lokr.safetensors"))

    adapter = load_adapter(rewritten(path, **extra), small_model())

    assert_same(adapter.state_dict(), {**lora.state_dict(), **lokr.state_dict()})


@pytest.mark.parametrize("style", ["comfy", "kohya"])
def test_modules_that_the_model_does_not_have_are_listed(tmp_path, style):
    path = saved(tmp_path, style)
    rewritten(path, lambda key: key.replace("mlp", "ffn"), keep_metadata=False)
    model = small_model()

    with pytest.raises(CheckpointError, match=r"10 of 64 modules are not in this model: .*ffn"):
        load_adapter(path, model)

    assert torch.equal(velocity(model), velocity(small_model()))


def test_an_adapter_for_another_depth_is_refused(tmp_path):
    model = small_model()
    model.blocks.append(small_model().blocks[0])

    with pytest.raises(CheckpointError, match="with 2 blocks, this one has 3"):
        load_adapter(saved(tmp_path), model)


def test_a_header_that_was_damaged_is_named(tmp_path):
    path = saved(tmp_path)
    save_file(load_file(path), path, {"model_depths": "28 blocks"})

    with pytest.raises(CheckpointError, match="model_depths in its header is not JSON"):
        load_adapter(path, small_model())


@pytest.mark.parametrize("text", ["28", "[28]", '"blocks"', "null", '{"blocks": "28"}'])
def test_a_depth_that_is_no_table_of_numbers_is_named(tmp_path, text):
    path = saved(tmp_path)
    save_file(load_file(path), path, {"model_depths": text})

    with pytest.raises(CheckpointError, match=r"model_depths in its header is no table.*\n  Fix"):
        load_adapter(path, small_model())


def test_a_file_without_tensors_is_no_adapter(tmp_path):
    save_file({}, tmp_path / "a.safetensors")

    with pytest.raises(CheckpointError, match="holds no tensors"):
        load_adapter(tmp_path / "a.safetensors", small_model())


def test_an_adapter_for_another_width_is_refused_with_the_shapes(tmp_path):
    key = f"diffusion_model.{Q_PROJ}.lora_A.weight"
    path = rewritten(saved(tmp_path), **{key: torch.ones(4, 65)})

    with pytest.raises(CheckpointError, match=rf"{Q_PROJ} has .*64, 64.*changes .*64, 65"):
        load_adapter(path, small_model())


def test_a_full_checkpoint_is_not_an_adapter(tmp_path):
    path = tmp_path / "full.safetensors"
    save_file({f"net.{name}": tensor for name, tensor in golden_weights("a").items()}, path)

    with pytest.raises(CheckpointError, match=r"of no adapter kind.*\n.*full checkpoint"):
        load_adapter(path, small_model())


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"a\.safetensors does not exist"):
        load_adapter(tmp_path / "a.safetensors", small_model())


@pytest.mark.parametrize("content", [b"", b"not a safetensors file", "cut"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, content):
    path = tmp_path / "a.safetensors"
    if content == "cut":
        content = saved(tmp_path).read_bytes()[:-100]
    path.write_bytes(content)

    with pytest.raises(CheckpointError, match=r"a\.safetensors cannot be read"):
        load_adapter(path, small_model())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("hada_t1", r"LoHa of a convolution \(Tucker"),
        ("lokr_t2", r"LoKr of a convolution \(Tucker"),
        ("lora_mid.weight", r"LoRA of a convolution \(Tucker"),
        ("oft_blocks", "OFT"),
        ("set_weight", "a replaced weight"),
        ("ia3_l", "IA3"),
    ],
)
def test_kinds_that_cannot_be_trained_here_are_named(tmp_path, name, kind):
    key = f"diffusion_model.{Q_PROJ}.{name}"
    path = rewritten(saved(tmp_path), **{key: torch.ones(64, 1)})

    with pytest.raises(CheckpointError, match=f"{Q_PROJ} is of kind {kind}"):
        load_adapter(path, small_model())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({f"{Q_PROJ}.lora_A.weight": None}, r"lora_A\.weight is missing"),
        ({f"{Q_PROJ}.lora_B.weight": torch.ones(64, 3)}, "have no product"),
        ({f"{Q_PROJ}.lora_A.weight": torch.ones(4, 64, 1)}, "not 2 axes"),
        ({f"{Q_PROJ}.lora_A.weight": torch.ones(4, 64).to(torch.int8)}, "of dtype torch.int8"),
        ({f"{Q_PROJ}.lora_down.weight": torch.ones(4, 64)}, "under two names"),
        ({f"{Q_PROJ}.lokr_w1": torch.ones(4, 64)}, "several kinds at once, lora and lokr"),
        ({"blocks.0.self_attn.q_norm.lokr_w1": torch.ones(2, 2)}, "at once, lokr and norm"),
        ({"blocks.0.self_attn.q_norm.diff": torch.ones(16)}, "at once, norm and diff"),
        ({"blocks.0.self_attn.q_norm.dora_scale": torch.ones(2, 1)}, "dora_scale beside what"),
    ],
)
def test_a_file_that_was_edited_is_refused(tmp_path, changes, words):
    keyed = {f"diffusion_model.{key}": tensor for key, tensor in changes.items()}
    path = rewritten(saved(tmp_path), **keyed)

    with pytest.raises(CheckpointError, match=words):
        load_adapter(path, small_model())


def test_one_module_in_two_styles_is_refused(tmp_path):
    extra = {"lora_unet_llm_adapter_norm.w_norm": torch.ones(32)}

    with pytest.raises(CheckpointError, match=r"llm_adapter\.norm under two names"):
        load_adapter(rewritten(saved(tmp_path), **extra), small_model())


def test_tensors_that_would_not_be_used_are_refused(tmp_path):
    path = saved(tmp_path, adapter=trained_adapter("lokr", lokr_factor=4))
    key = f"diffusion_model.{Q_PROJ}.lokr_w1_a"

    with pytest.raises(CheckpointError, match="lokr_w1_a beside what would be used"):
        load_adapter(rewritten(path, **{key: torch.ones(4, 1)}), small_model())


def test_a_folder_that_cannot_be_made_is_named_and_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(OutputError, match=r"file/a\.safetensors"):
        saved(tmp_path / "file")

    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_norm_with_a_bias_keeps_both_in_its_file(tmp_path):
    model = nn.ModuleDict({"norm": nn.LayerNorm(6)})
    adapter = pretend_training(create_adapter("lora", model))
    path = save_adapter(adapter, tmp_path / "a.safetensors")

    loaded = load_adapter(path, nn.ModuleDict({"norm": nn.LayerNorm(6)}))

    assert set(load_file(path)) == {"diffusion_model.norm.w_norm", "diffusion_model.norm.b_norm"}
    assert_same(loaded.state_dict(), adapter.state_dict())


@pytest.mark.parametrize(
    ("flag", "style"), [("dora", "comfy"), ("rs_lora", "comfy"), ("rs_lora", "kohya")]
)
def test_how_a_lora_was_scaled_travels_in_the_metadata_through_every_style(tmp_path, flag, style):
    path = saved(tmp_path, adapter=trained_adapter(**{flag: True}))

    export = convert_adapter(path, tmp_path / "b.safetensors", style)

    with safe_open(export.path, framework="pt") as file:
        flags = {key for key in file.metadata() if key in {"adapter_dora", "adapter_rs_lora"}}
    assert flags == {f"adapter_{flag}"}


LOST = {
    "dora-rows": "dora_scale",
    "dora-columns": "dora_scale",
    "lokr-both": "lokr_w1_a, lokr_w1_b",
}
"""Case -> the tensors that sd-scripts passes over, and makes another adapter of the others."""


@pytest.mark.parametrize("name", LOST)
def test_what_sd_scripts_would_make_another_adapter_of_is_not_written_in_its_style(tmp_path, name):
    kind, arguments = KINDS[name]
    adapter = trained_adapter(kind, **arguments)
    source = save_adapter(adapter, tmp_path / "a.safetensors")
    said = f"style kohya cannot express .* sd-scripts passes over {LOST[name]}, .*\n.*style comfy"

    with pytest.raises(ConfigError, match=said):
        save_adapter(adapter, tmp_path / "b.safetensors", "kohya")
    with pytest.raises(ConfigError, match=said):
        convert_adapter(source, tmp_path / "b.safetensors", "kohya", drop_norms=True)
    with pytest.raises(ConfigError, match=said):
        adapter_writer(adapter, SaveConfig(folder=tmp_path, name="fox", style="kohya"))

    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("name", [name for name in KINDS if name not in LOST])
def test_a_file_for_sd_scripts_without_norms_holds_what_it_reads_alone(tmp_path, name):
    kind, arguments = KINDS[name]
    source = save_adapter(trained_adapter(kind, **arguments), tmp_path / "a.safetensors")

    export = convert_adapter(source, tmp_path / "b.safetensors", "kohya", drop_norms=True)

    assert export.unread_norms == 0
    read = r"lora_unet_\w+\.(alpha|lora_(up|down)\.weight|hada_w[12]_[ab]|lokr_w1|lokr_w2(_[ab])?)"
    assert [key for key in load_file(export.path) if not re.fullmatch(read, key)] == []
