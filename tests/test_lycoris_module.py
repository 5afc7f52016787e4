"""network_module = lycoris.kohya: what LyCORIS's arguments mean for Anima."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import Ended, anima_pipe, assert_one_error, tensors_of

from anima_pipe.kohya.parts import adapter_choice
from anima_pipe.kohya.resolve import resolve

LAYER = "diffusion_model.blocks.0.mlp.layer1"
EVERY_LINEAR = (
    "x_embedder.proj.1",
    "t_embedder.1.linear_1",
    "blocks.0.self_attn.q_proj",
    "blocks.0.adaln_modulation_mlp.1",
    "final_layer.linear",
)
"""Some of the layers that LyCORIS's presets reach beside attention and mlp."""


def train(cached: dict[str, object], folder: Path, args: list[str], **values: object) -> Ended:
    given = {"network_module": "lycoris.kohya", "network_dim": 4, "network_args": args} | values
    return anima_pipe("train", folder / "summary.json", output_dir=folder, **cached, **given)


@pytest.mark.parametrize(
    ("args", "suffixes"),
    [
        ([], {"lora_A.weight", "lora_B.weight", "alpha"}),
        (["algo=lora"], {"lora_A.weight", "lora_B.weight", "alpha"}),
        (["algo=locon", "dora_wd=True"], {"lora_A.weight", "lora_B.weight", "alpha", "dora_scale"}),
        (["algo=loha"], {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "alpha"}),
        (["algo=lokr", "factor=4"], {"lokr_w1", "lokr_w2_a", "lokr_w2_b", "alpha"}),
        (["algo=lokr", "factor=4", "full_matrix=True"], {"lokr_w1", "lokr_w2", "alpha"}),
    ],
)
def test_an_algorithm_trains_its_kind(
    args: list[str], suffixes: set[str], cached: dict[str, object], tmp_path: Path
):
    tensors = tensors_of(train(cached, tmp_path, args or None))

    assert {key.removeprefix(f"{LAYER}.") for key in tensors if key.startswith(LAYER)} == suffixes


def test_every_linear_layer_is_trained_and_neither_norms_nor_the_text_adapter(
    cached: dict[str, object], tmp_path: Path
):
    tensors = tensors_of(train(cached, tmp_path, ["algo=lora", "preset=full"]))

    trained = {
        key.removeprefix("diffusion_model.").removesuffix(".lora_A.weight") for key in tensors
    }
    assert trained >= set(EVERY_LINEAR)
    assert not any("w_norm" in key or "llm_adapter" in key for key in tensors)


@pytest.mark.parametrize("option", ["train_norm", "train_llm_adapter"])
def test_norms_and_the_text_adapter_are_trained_where_asked(
    option: str, cached: dict[str, object], tmp_path: Path
):
    part = {"train_norm": "w_norm", "train_llm_adapter": "llm_adapter.blocks.0."}[option]

    by_argument = tensors_of(train(cached, tmp_path / "a", [f"{option}=True"]))
    by_option = tensors_of(train(cached, tmp_path / "b", None, **{option: True}))

    assert any(part in key for key in by_argument)
    assert by_argument.keys() == by_option.keys()


def test_the_factor_is_as_square_as_can_be_unless_it_is_set():
    def factor(*args: str) -> object:
        given = {"network_module": "lycoris.kohya", "network_args": ("algo=lokr", *args)}
        return adapter_choice(resolve("train", given)).arguments["lokr_factor"]

    assert factor() == -1
    assert factor("factor=8") == 8


def test_settings_of_convolutions_are_said_to_change_nothing(
    cached: dict[str, object], tmp_path: Path
):
    args = ["algo=lokr", "factor=4", "conv_dim=16", "conv_alpha=1", "use_tucker=False"]
    said = train(cached, tmp_path, args).ok().said

    for name in ("conv_dim", "conv_alpha", "use_tucker"):
        assert f"{name} changes nothing: Anima has no convolutions" in said


@pytest.mark.parametrize(
    ("argument", "part"),
    [
        ("algo=ia3", "algo=ia3: that algorithm of LyCORIS is not available here"),
        ("algo=diag-oft", "algo=diag-oft"),
        ("preset=attn-only", "preset=attn-only names nothing that Anima has"),
        ("use_scalar=True", "use_scalar=True of LyCORIS is not available here"),
        ("unbalanced_factorization=True", "unbalanced_factorization=True"),
        ("rank_dropuot=0.1", "has no setting 'rank_dropuot'"),
    ],
)
def test_what_is_not_available_is_named(
    argument: str, part: str, cached: dict[str, object], tmp_path: Path
):
    assert_one_error(train(cached, tmp_path, [argument]), part)


def test_settings_that_ask_for_nothing_pass(cached: dict[str, object], tmp_path: Path):
    args = ["use_scalar=False", "bypass_mode=False", "rescaled=False", "train_t5xxl=False"]

    asked, plain = (
        tensors_of(train(cached, tmp_path / name, given).ok())
        for name, given in (("asked", args), ("plain", []))
    )
    assert asked.keys() == plain.keys()
    assert all(torch.equal(asked[name], plain[name]) for name in plain)
