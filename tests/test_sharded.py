"""A base sharded over processes: what each one holds, and that it is the base to the bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed
from adapter_cases import KINDS, pretend_training, small_model, velocity
from commands import anima_pipe, assert_one_error
from torch import nn
from torch.multiprocessing.spawn import spawn

from anima_pipe.adapters import create_adapter
from anima_pipe.adapters.eight_bit import keep_in_eight_bits
from anima_pipe.adapters.sharded import shard, sharded_tensors
from anima_pipe.errors import ConfigError
from anima_pipe.model import BLOCK_LAYERS, AnimaTransformer
from anima_pipe.model.activations import BatchSize
from anima_pipe.model.evaluation import evaluating
from anima_pipe.runs.memory_needs import memory_needs
from anima_pipe.runtime import Rank
from anima_pipe.trainer import take_fsdp_request

PROCESSES = 2
THIRDS = Rank(number=2, processes=3)

FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
}
"""What accelerate's launcher sets for configs/accelerate/fsdp.yaml."""


def base(dtype: torch.dtype, *, eight_bit: bool) -> AnimaTransformer:
    model = small_model(dtype)
    if eight_bit:
        keep_in_eight_bits(model, BLOCK_LAYERS)
    return model


def trained(model: AnimaTransformer, kind: str) -> list[torch.Tensor]:
    """The velocity, without gradients and with, and the gradients of an adapter on a model."""
    name, settings = KINDS[kind]
    adapter = pretend_training(create_adapter(name, model, train_norm=True, **settings))
    with evaluating(model):
        drawn = velocity(model).clone()
    output = velocity(model)
    output.float().square().sum().backward()
    return [drawn, output.detach(), *(p.grad for p in adapter.parameters() if p.grad is not None)]


def compare(number: int, meeting: Path) -> None:
    """Be one of the processes: note each kind that a sharded model trains as a whole one does."""
    torch.set_num_threads(1)
    rank = Rank(number=number, processes=PROCESSES)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=number, world_size=PROCESSES
    )
    equal: list[str] = []
    for place, kind in enumerate(KINDS):
        # Each way to keep the base, with every second kind.
        dtype, eight_bit = (torch.bfloat16, True) if place % 2 else (torch.float32, False)
        whole, sharded = base(dtype, eight_bit=eight_bit), base(dtype, eight_bit=eight_bit)
        shard(sharded, rank)
        sharded.checkpoint_blocks(enabled=kind != "lora")
        expected, found = trained(whole, kind), trained(sharded, kind)
        if len(found) == len(expected) > 2 and all(map(torch.equal, found, expected)):
            equal.append(kind)
    meeting.with_name(f"equal_{number}.json").write_text(json.dumps(equal))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_an_adapter_on_a_sharded_base_is_trained_to_the_bit_as_on_a_whole_one(tmp_path: Path):
    spawn(compare, (tmp_path / "meeting",), nprocs=PROCESSES)

    for number in range(PROCESSES):
        assert json.loads((tmp_path / f"equal_{number}.json").read_text()) == list(KINDS)


@pytest.mark.parametrize("eight_bit", [False, True])
def test_a_process_needs_memory_for_its_part_of_the_linear_layers(eight_bit: bool):
    whole, sharded = (base(torch.bfloat16, eight_bit=eight_bit) for _ in range(2))
    shard(sharded, Rank(number=1, processes=PROCESSES))

    batch, device = BatchSize(pictures=1, tokens=64), torch.device("cpu")
    needs = [
        memory_needs(
            create_adapter("lora", model),
            "AdamW",
            batch,
            device,
            in_8_bits=eight_bit,
            processes=processes,
        )
        for model, processes in ((whole, 1), (sharded, PROCESSES))
    ]

    linear = sum(
        tensor.numel() * tensor.element_size()
        for layer in small_layers(eight_bit=eight_bit)
        for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]
        if name != "bias"
    )
    assert needs[0].base - needs[1].base == linear // PROCESSES
    assert linear > 0.8 * needs[0].base
    assert needs[0].trained == needs[1].trained


def small_layers(*, eight_bit: bool) -> list[nn.Linear]:
    model = base(torch.bfloat16, eight_bit=eight_bit)
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear)]


def test_rows_that_do_not_divide_are_all_kept_by_someone():
    layer = nn.Linear(4, 7)
    kept: list[torch.Tensor] = []
    for number in range(3):
        model = nn.Sequential(nn.Linear(4, 7)).requires_grad_(requires_grad=False)
        model[0].load_state_dict(layer.state_dict())
        shard(model, Rank(number=number, processes=3))
        kept.append(model[0].weight)

    assert {len(rows) for rows in kept} == {3}
    assert torch.equal(torch.cat(kept)[:7], layer.weight)
    assert not torch.cat(kept)[7:].any()


def test_what_trains_is_the_same_on_every_process():
    model = base(torch.float32, eight_bit=True)
    shard(model, THIRDS)
    adapter = create_adapter("lora", model, train_norm=True)

    differing = set(sharded_tensors(model))

    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert differing <= tensors.keys()
    own = {id(parameter) for parameter in adapter.parameters()}
    assert not own & {id(tensors[name]) for name in differing}


def test_a_launch_with_fsdp_is_a_request_to_divide_that_accelerate_does_not_see(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    environment = dict(FSDP2)
    assert take_fsdp_request(environment)
    assert "ACCELERATE_USE_FSDP" not in environment
    assert not take_fsdp_request(environment)


def test_one_process_has_nothing_to_divide():
    environment = dict(FSDP2)
    assert not take_fsdp_request(environment)
    assert "ACCELERATE_USE_FSDP" not in environment


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params is true"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "fsdp_activation_checkpointing is true"),
        ({"FSDP_RESHARD_AFTER_FORWARD": "false"}, "fsdp_reshard_after_forward is false"),
        (
            {"FSDP_VERSION": "1", "FSDP_SHARDING_STRATEGY": "HYBRID_SHARD"},
            "fsdp_sharding_strategy is HYBRID_SHARD",
        ),
    ],
)
def test_fsdp_of_another_kind_is_refused_by_its_setting(asked: dict[str, str], problem: str):
    with pytest.raises(ConfigError, match=problem):
        take_fsdp_request({**FSDP2, **asked})


def test_fsdp_of_the_first_version_shards_as_well(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    first = {"FSDP_VERSION": "1", "FSDP_SHARDING_STRATEGY": "FULL_SHARD"}
    assert take_fsdp_request({**FSDP2, **first})


def test_settings_of_fsdp_without_effect_are_named(caplog: pytest.LogCaptureFixture):
    idle = {
        "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
        "FSDP_TRANSFORMER_CLS_TO_WRAP": "TransformerBlock",
        "FSDP_USE_ORIG_PARAMS": "true",
    }
    take_fsdp_request({**FSDP2, **idle})
    (warned,) = caplog.messages
    assert "fsdp_state_dict_type" in warned
    assert "fsdp_transformer_layer_cls_to_wrap" in warned
    assert "fsdp_use_orig_params" not in warned


def test_what_fsdp_cannot_do_is_refused_before_anything_is_loaded(
    tmp_path: Path, cached: dict[str, object], monkeypatch
):
    for name, value in {**FSDP2, "FSDP_OFFLOAD_PARAMS": "true"}.items():
        monkeypatch.setenv(name, value)
    refused = anima_pipe("train", output_dir=tmp_path / "out", **cached)
    assert_one_error(refused, "fsdp_offload_params is true")
    assert not (tmp_path / "out").exists()
