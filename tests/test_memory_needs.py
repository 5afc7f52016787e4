"""What a run needs of memory is told before it starts, and again where it is not enough."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import anima_pipe, assert_one_error
from golden_model import golden_transformer

from anima_pipe.adapters import create_adapter
from anima_pipe.finetuning.whole_model import WholeModel
from anima_pipe.model import AnimaTransformer
from anima_pipe.model.activations import BatchSize, Keeping, block_weights
from anima_pipe.model.config import TransformerConfig
from anima_pipe.runs.memory_needs import MemoryNeeds, memory_needs, savers
from anima_pipe.trained import PartRate

Cached = dict[str, object]


def released(*, pictures: int, checkpointed: bool, tokens: int = 4096, **needs: Any) -> MemoryNeeds:
    """Return the needs of a run on the released model, of a LoRA of rank 32."""
    given = {"trained_numbers": 50_000_000, "trained_bytes": 200_000_000} | needs
    return MemoryNeeds(
        called="adapter",
        config=TransformerConfig(),
        batch=BatchSize(pictures=pictures, tokens=tokens),
        keeping=Keeping(
            dtype=torch.bfloat16,
            checkpointed=checkpointed,
            modulation_trains=False,
            head_norms_train=False,
            fused_norms=True,
        ),
        frozen=2_091_068_928,
        in_8_bits=False,
        optimizer_bytes=8,
        **given,
    )


def test_needs_are_the_bytes_of_the_tensors_that_a_run_holds():
    model = golden_transformer("a").requires_grad_(requires_grad=False)
    base = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    adapter = create_adapter("lora", model, network_dim=4)
    optimizer = torch.optim.AdamW(adapter.parameters())
    for parameter in adapter.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()

    batch, device = BatchSize(pictures=1, tokens=64), torch.device("cpu")
    needs = memory_needs(adapter, "AdamW", batch, device, in_8_bits=False)
    states = [v for state in optimizer.state.values() for v in state.values() if v.ndim]
    own = [*adapter.parameters(), *(p.grad for p in adapter.parameters()), *states]
    assert needs.base == base
    assert needs.trained == sum(tensor.numel() * 4 for tensor in own)
    in_8_bits = memory_needs(adapter, "AdamW8bit", batch, device, in_8_bits=True)
    assert in_8_bits.trained < needs.trained
    assert in_8_bits.base == base - 3 * block_weights(model.config)
    # Norms train along: they, and what follows from the time embedding, keep more.
    assert needs.keeping.modulation_trains
    assert needs.keeping.head_norms_train
    plain = create_adapter("lora", golden_transformer("a"), network_dim=4, train_norm=False)
    keeping = memory_needs(plain, "AdamW", batch, device, in_8_bits=False).keeping
    assert not keeping.modulation_trains
    assert not keeping.head_norms_train


@pytest.mark.parametrize(
    ("needs", "expected"),
    [
        (
            released(pictures=4, checkpointed=False),
            ["gradient_checkpointing", "train_batch_size 1", "a resolution of three quarters"],
        ),
        (
            released(pictures=1, checkpointed=True, tokens=1024),
            ["fp8_base", "half the network_dim", "optimizer_type AdamW8bit"],
        ),
        (
            released(
                pictures=1,
                checkpointed=True,
                trained_numbers=400_000_000,
                trained_bytes=1_600_000_000,
            ),
            ["half the network_dim", "optimizer_type AdamW8bit", "fp8_base"],
        ),
    ],
)
def test_what_saves_most_follows_from_what_the_run_keeps(needs: MemoryNeeds, expected: list[str]):
    found = savers(needs)
    assert [
        name[: len(start)] for (name, _), start in zip(found, expected, strict=False)
    ] == expected
    assert [saved for _, saved in found] == sorted((saved for _, saved in found), reverse=True)


def test_what_is_in_use_already_is_not_named():
    names = [
        name for name, _ in savers(replace(released(pictures=1, checkpointed=True), in_8_bits=True))
    ]
    assert not {"gradient_checkpointing", "fp8_base", "mixed_precision bf16"} & set(names)
    assert not any(name.startswith("train_batch_size") for name in names)


def test_the_plan_says_what_memory_is_needed(cached: Cached, tmp_path: Path):
    said = anima_pipe("train", output_dir=tmp_path, **cached).ok().said

    assert re.search(
        r"^memory +about \d+ MiB \(.* of the base.* of activations for 2 x 64 tokens",
        said,
        flags=re.MULTILINE,
    )


@pytest.mark.parametrize(
    ("values", "savers"),
    [
        ({}, "use mixed_precision bf16 (about"),
        (
            {"mixed_precision": "bf16", "fp8_base": True, "gradient_checkpointing": True},
            "use train_batch_size 1",
        ),
    ],
)
def test_the_end_of_memory_is_told_with_what_saves_most(
    cached: Cached, tmp_path: Path, values: Cached, savers: str
):
    """A preview of 16 million by 16 million pixels asks for more than can be addressed."""
    side = 16 * 2**20
    (tmp_path / "prompts.txt").write_text(f"fox --w {side} --h {side} --s 1 --l 1\n")
    drawn = {"sample_prompts": tmp_path / "prompts.txt", "sample_at_first": True}
    ended = anima_pipe("train", output_dir=tmp_path / "out", **cached, **drawn, **values)

    assert_one_error(ended, "out of memory", "the run needs", "of the base", savers)


def test_a_whole_models_needs_are_the_bytes_of_the_tensors_that_its_run_holds():
    model = golden_transformer("a")
    trained = WholeModel(model, [PartRate(name="mlp", pattern=r".*\.mlp\..*", rate=0.0)])
    optimizer = torch.optim.AdamW(trained.parameters())
    for parameter in trained.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()

    batch = BatchSize(pictures=1, tokens=64)
    needs = memory_needs(trained, "AdamW", batch, torch.device("cpu"))
    states = [v for state in optimizer.state.values() for v in state.values() if v.ndim]
    own = [*trained.parameters(), *(p.grad for p in trained.parameters()), *states]
    assert needs.trained == sum(tensor.numel() * 4 for tensor in own)
    assert needs.base == sum(p.numel() * 4 for p in model.parameters() if not p.requires_grad)
    averaged = memory_needs(trained, "AdamW", batch, torch.device("cpu"), averaged=True)
    exchanged = memory_needs(trained, "AdamW", batch, torch.device("cpu"), exchanged=True)
    assert averaged.trained - needs.trained == exchanged.trained - needs.trained
    assert averaged.trained - needs.trained == sum(p.numel() * 4 for p in trained.parameters())


@pytest.mark.parametrize(
    ("in_bf16", "optimizer", "gib"),
    [(True, "AdamW8bit", 14), (False, "AdamW8bit", 22), (True, "AdamW", 26)],
)
def test_what_the_released_model_itself_takes_to_train_is_known_beforehand(
    in_bf16: bool, optimizer: str, gib: float
):
    with torch.device("meta"):
        model = AnimaTransformer(TransformerConfig())
    if in_bf16:
        model.to(torch.bfloat16)
    model.checkpoint_blocks(enabled=True)
    trained = WholeModel(model)
    if not in_bf16:
        model.compute_in(torch.bfloat16)
    batch, card = BatchSize(pictures=1, tokens=4096), torch.device("cuda")
    needs = memory_needs(trained, optimizer, batch, card, widened=2**26 * in_bf16)

    assert gib - 3 < needs.whole / 2**30 < gib
    assert "of the base" not in str(needs)
    names = [name for name, _ in savers(needs)]
    assert ("full_bf16" in names) == (not in_bf16)
    assert not {"fp8_base", "half the network_dim"} & {*names}
