"""How a run's options reach its adapter, through the train command on the demo's tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import anima_pipe, demo_pictures, tensors_of, write_dataset

from anima_pipe.adapters import create_adapter, save_adapter
from anima_pipe.demo import DEMO_TRANSFORMER
from anima_pipe.model import load_transformer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    pictures = demo_pictures(folder / "pictures", every=12)
    return {
        "dataset_config": write_dataset(folder / "dataset.toml", pictures),
        "cache_dir": folder / "cache",
    }


@pytest.mark.parametrize(
    ("module", "args", "suffix"),
    [
        ("networks.loha", ["rank_dropout=0.1"], "hada_w1_a"),
        ("networks.lokr", ["factor=4"], "lokr_w1"),
        ("networks.tlora_anima", ["min_rank=2"], "lora_A.weight"),
        ("networks.lora_anima", ["dora=True", "rs_lora=True"], "dora_scale"),
        ("networks.lora_anima", ["pissa=True", "network_reg_dims=.*mlp.*=3"], "lora_A.weight"),
        ("networks.lora_anima", ["network_reg_lrs=.*mlp.*=0", "loraplus_lr_ratio=4"], "alpha"),
    ],
)
def test_every_kind_trains_and_saves_what_comfyui_reads(tmp_path, data, module, args, suffix):
    ended = anima_pipe(
        "train",
        tmp_path / "summary.json",
        output_dir=tmp_path,
        network_module=module,
        network_dim=4,
        network_args=args,
        **data,
    ).ok()

    tensors = tensors_of(ended)

    assert any(key.endswith(suffix) for key in tensors)
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


def test_every_layers_change_stays_below_the_norm_that_was_set(tmp_path, data):
    ended = anima_pipe(
        "train",
        tmp_path / "summary.json",
        output_dir=tmp_path,
        learning_rate=1,
        scale_weight_norms=0.01,
        **data,
    ).ok()

    tensors = tensors_of(ended)

    ups = [key for key in tensors if key.endswith("lora_B.weight")]
    for key in ups:
        down = tensors[key.replace("lora_B", "lora_A")]
        norm = (tensors[key] @ down).norm() / down.shape[0]
        assert norm <= 0.01 * (1 + 1e-5), key
    assert ups


def test_a_weight_decay_that_pulls_at_nothing_is_warned_of(tmp_path, data):
    given = {"network_args": ["pissa=True"], "optimizer_args": ["weight_decay=0.1"], **data}
    ended = anima_pipe("train", output_dir=tmp_path, max_train_steps=1, **given).ok()

    assert "weight_decay has no effect" in ended.said


def test_a_run_may_start_on_top_of_another_adapter_and_from_a_third(tmp_path, data):
    model = load_transformer(DEMO_TRANSFORMER).requires_grad_(requires_grad=False)
    below = save_adapter(create_adapter("lora", model), tmp_path / "below.safetensors")
    start = save_adapter(
        create_adapter("lora", model, network_dim=3), tmp_path / "start.safetensors"
    )

    ended = anima_pipe(
        "train",
        tmp_path / "summary.json",
        output_dir=tmp_path,
        network_weights=start,
        network_dim=8,
        base_weights=[below],
        base_weights_multiplier=[0.5],
        **data,
    ).ok()

    assert "start.safetensors: its rank is 3, not network_dim 8" in ended.said
    ranks = {t.shape[0] for key, t in tensors_of(ended).items() if key.endswith("lora_A.weight")}
    assert ranks == {3}


def test_more_strengths_than_files_are_refused(tmp_path, data):
    ended = anima_pipe(
        "train", output_dir=tmp_path, base_weights=["a"], base_weights_multiplier=[1, 2], **data
    )

    assert "base_weights_multiplier has 2 values for 1 base_weights" in ended.said


def test_the_table_of_what_is_trained_shows_ranks_and_rates(tmp_path, data):
    given = {"learning_rate": 1e-3, "mlp_lr": 5e-4, "max_train_steps": 1}
    ended = anima_pipe(
        "train", output_dir=tmp_path, network_args=["norm_lr=2e-5"], **given, **data
    ).ok()

    rows = [line.split() for line in ended.said.splitlines()]
    table = {(row[0], row[1]): row for row in rows if len(row) == 6 or (len(row) == 5 and row[1])}
    assert ["trained", "kind", "rank", "modules", "parameters", "lr"] in rows
    assert table["blocks.*.mlp", "lora"][-1] == "0.0005"
    assert table["blocks.*.self_attn", "lora"][-1] == "0.001"
    assert table["blocks.*.self_attn", "norm"][-1] == "2e-05"
