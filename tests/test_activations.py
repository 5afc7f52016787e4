"""What is said to be kept of a batch is what the blocks keep."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from anima_pipe.adapters import create_adapter
from anima_pipe.model import AnimaTransformer
from anima_pipe.model.activations import (
    BatchSize,
    Keeping,
    block_activations,
    block_weights,
    kept_by_block,
)
from anima_pipe.model.anima import BLOCK_LAYERS
from anima_pipe.model.config import LlmAdapterConfig, TransformerConfig

CONFIG = TransformerConfig(
    width=192,
    blocks=3,
    head_width=48,
    context_width=48,
    adaln_width=16,
    mlp_width=768,
    llm_adapter=LlmAdapterConfig(
        source_width=32, width=48, output_width=48, blocks=1, head_width=12, vocabulary=64
    ),
)


def storages() -> dict[int, int]:
    """Return the sizes of all tensors' memory in this process, by where it lies."""
    tensors = [item for item in gc.get_objects() if issubclass(type(item), torch.Tensor)]
    places = [tensor.untyped_storage() for tensor in tensors]
    return {place.data_ptr(): place.nbytes() for place in places}


def kept_by(forward: Callable[[], torch.Tensor]) -> int:
    """Return the bytes that are alive behind a forward pass and were not before it."""
    before = storages()
    # As Python's own, or else the collector does not know of them.
    with saved_tensors_hooks(lambda tensor: tensor.detach(), lambda tensor: tensor):
        output = forward()
    gc.collect()
    after = storages()
    assert output.requires_grad
    return sum(size for place, size in after.items() if place not in before)


SIZE = BatchSize(pictures=2, tokens=24 * 32)


def trained(
    dtype: torch.dtype, *, checkpointed: bool, train_norm: bool
) -> tuple[Callable[[], torch.Tensor], AnimaTransformer, Keeping]:
    """Return a forward pass of `SIZE` with a LoRA, its model, and what is said of it."""
    model = AnimaTransformer(CONFIG).to(dtype).requires_grad_(requires_grad=False)
    create_adapter("lora", model, network_dim=4, train_norm=train_norm)
    model.checkpoint_blocks(checkpointed)
    latents, sigmas = torch.randn(2, 16, 48, 64), torch.full((2,), 0.5)
    context = torch.randn(2, 512, 48, dtype=dtype, requires_grad=True)
    keeping = Keeping(
        dtype=dtype,
        checkpointed=checkpointed,
        modulation_trains=train_norm,
        head_norms_train=train_norm,
        fused_norms=False,
    )
    return lambda: model(latents, sigmas, context), model, keeping


@pytest.mark.parametrize("train_norm", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_estimate_is_what_the_blocks_keep(dtype: torch.dtype, train_norm: bool):
    forward, _, keeping = trained(dtype, checkpointed=False, train_norm=train_norm)

    assert block_activations(CONFIG, SIZE, keeping) == pytest.approx(kept_by(forward), rel=0.1)


@pytest.mark.parametrize("train_norm", [False, True])
def test_checkpointed_blocks_keep_their_inputs_and_one_is_run_again(train_norm: bool):
    forward, model, keeping = trained(torch.float32, checkpointed=True, train_norm=train_norm)
    inputs: list[tuple[torch.Tensor, ...]] = []
    model.blocks[1].register_forward_pre_hook(lambda _, given: inputs.append(given))
    kept = kept_by(forward)
    again = kept_by(lambda: model.blocks[1](*inputs[0]))

    assert block_activations(CONFIG, SIZE, keeping) == pytest.approx(kept + again, rel=0.1)


def test_what_is_kept_grows_with_the_batch_and_the_picture():
    keeping = trained(torch.bfloat16, checkpointed=False, train_norm=False)[-1]
    one, two = (BatchSize(pictures=n, tokens=4096) for n in (1, 2))
    kept = kept_by_block(CONFIG, one, keeping)
    assert kept_by_block(CONFIG, two, keeping) == 2 * kept
    larger = BatchSize(pictures=1, tokens=4 * 4096)
    assert 3 * kept < kept_by_block(CONFIG, larger, keeping) < 4 * kept


def test_the_weights_of_blocks_are_those_that_bear_eight_bits():
    model = AnimaTransformer(CONFIG)
    layers = [m for name, m in model.named_modules() if re.fullmatch(BLOCK_LAYERS, name)]
    weights = [layer.weight.numel() for layer in layers if isinstance(layer, torch.nn.Linear)]
    assert block_weights(CONFIG) == sum(weights)
