"""What a run needs of memory is told before it starts, and again where it is not enough."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from commands import anima_pipe, assert_one_error
from golden_model import golden_transformer

from anima_pipe.adapters import create_adapter
from anima_pipe.memory_needs import memory_needs

Cached = dict[str, object]


def test_needs_are_the_bytes_of_the_tensors_that_a_run_holds():
    model = golden_transformer("a").requires_grad_(requires_grad=False)
    base = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    adapter = create_adapter("lora", model, network_dim=4)
    optimizer = torch.optim.AdamW(adapter.parameters())
    for parameter in adapter.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()

    needs = memory_needs(adapter, "AdamW")
    states = [v for state in optimizer.state.values() for v in state.values() if v.ndim]
    own = [*adapter.parameters(), *(p.grad for p in adapter.parameters()), *states]
    assert needs.base == base
    assert needs.trained == sum(tensor.numel() * 4 for tensor in own)
    assert memory_needs(adapter, "AdamW8bit").trained < needs.trained


def test_the_plan_says_what_memory_is_needed(cached: Cached, tmp_path: Path):
    said = anima_pipe("train", output_dir=tmp_path, **cached).ok().said

    assert re.search(r"^memory +\d+\.\d\d GiB \(.* of the base", said, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("values", "savers"),
    [
        ({}, "use gradient_checkpointing, train_batch_size 1"),
        ({"gradient_checkpointing": True}, "use train_batch_size 1"),
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
