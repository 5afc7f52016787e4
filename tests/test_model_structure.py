"""What other parts of the program may count on: names, sizes, wrapping, checkpointing."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys

import pytest
import torch
from golden_model import golden_transformer, golden_weights, read_golden, relative_error
from torch import nn

from anima_pipe.model import AnimaTransformer, TextConditionedTransformer, TransformerConfig


def test_the_state_is_the_checkpoint_and_holds_no_tables() -> None:
    model = golden_transformer("a")

    assert model.state_dict().keys() == golden_weights("a").keys()
    assert not list(model.buffers())  # `.to(bfloat16)` would round a table of angles.


def test_the_default_sizes_are_those_of_the_released_model() -> None:
    with torch.device("meta"):
        model = AnimaTransformer(TransformerConfig())

    assert sum(weight.numel() for weight in model.parameters()) == 2_091_068_928
    assert sum(weight.numel() for weight in model.llm_adapter.parameters()) == 134_663_680
    assert sum(isinstance(module, nn.Linear) for module in model.modules()) == 515
    assert model.config.heads == 16


def test_a_fresh_model_gives_a_usable_velocity() -> None:
    torch.manual_seed(0)
    model = AnimaTransformer(golden_transformer("a").config)

    velocity = model(torch.randn(1, 16, 4, 4), torch.tensor([0.5]), torch.randn(1, 7, 32))

    assert 1e-3 < velocity.abs().max() < 1e3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_checkpointing_changes_no_gradient(dtype: torch.dtype) -> None:
    golden = read_golden("b")
    plain = golden_transformer("b").to(dtype)
    saving = copy.deepcopy(plain)
    saving.checkpoint_blocks(True)
    text = [golden[name] for name in ("qwen_hidden", "t5_ids", "qwen_mask", "t5_mask")]

    for model in (plain, saving):
        whole = TextConditionedTransformer(model)
        velocity = whole(golden["latents"], golden["sigma"], *text)
        (velocity - golden["target"]).square().mean().backward()

    for (name, expected), actual in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert expected.grad is not None, name
        assert torch.equal(actual.grad, expected.grad), name  # pyright: ignore[reportArgumentType]


def test_checkpointing_keeps_less_for_the_backward_pass() -> None:
    model = golden_transformer("b")
    golden = read_golden("b")

    def kept_bytes(*, checkpointed: bool) -> int:
        """Return what the blocks hold on to between forward and backward."""
        model.checkpoint_blocks(checkpointed)
        before = _live_storages()
        velocity = model(golden["latents"], golden["sigma"], golden["context"])
        kept = sum(size for place, size in _live_storages().items() if place not in before)
        velocity.sum().backward()
        return kept

    assert kept_bytes(checkpointed=True) < kept_bytes(checkpointed=False) / 4


def _live_storages() -> dict[int, int]:
    """Return the bytes of every tensor that Python holds, by where it lies."""
    tensors = (found for found in gc.get_objects() if issubclass(type(found), torch.Tensor))
    storages = (tensor.untyped_storage() for tensor in tensors)
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def test_every_linear_and_norm_may_be_replaced_by_a_wrapper() -> None:
    golden = read_golden("a")
    model = golden_transformer("a")
    wrapped = _wrap(model)

    assert wrapped == 59 + 24
    velocity = model(golden["latents"], golden["sigma"], golden["context"])
    condition = model.preprocess_text_embeds(
        golden["qwen_hidden"], golden["t5_ids"], golden["qwen_mask"], golden["t5_mask"]
    )

    assert relative_error(velocity, golden["velocity"]) < 2e-5
    assert relative_error(condition, golden["condition"]) < 2e-5
    assert all(module.calls for module in model.modules() if isinstance(module, _Wrapper))


@pytest.mark.parametrize(
    ("latents", "timesteps", "context", "complaint"),
    [
        ((1, 16, 5, 4), (1,), (1, 7, 32), "multiples of 16 pixels"),
        ((1, 16, 4, 7), (1,), (1, 7, 32), "multiples of 16 pixels"),
        ((1, 16, 0, 4), (1,), (1, 7, 32), "multiples of 16 pixels"),
        ((1, 4, 4, 4), (1,), (1, 7, 32), r"latents of shape \[1, 4, 4, 4\]"),
        ((1, 16, 1, 4, 4), (1,), (1, 7, 32), "latents"),
        ((2, 16, 4, 4), (1,), (2, 7, 32), "2 latents need that many timesteps"),
        ((2, 16, 4, 4), (2,), (1, 7, 32), "context"),
        ((1, 16, 4, 4), (1,), (1, 7, 31), "context"),
    ],
)
def test_impossible_sizes_are_refused(
    latents: tuple[int, ...], timesteps: tuple[int, ...], context: tuple[int, ...], complaint: str
) -> None:
    model = golden_transformer("a")

    with pytest.raises(ValueError, match=complaint):
        model(torch.zeros(latents), torch.zeros(timesteps), torch.zeros(context))


@pytest.mark.parametrize(("width", "head_width"), [(100, 32), (66, 33), (64, 8)])
def test_heads_that_cannot_be_are_refused(width: int, head_width: int) -> None:
    with pytest.raises(ValueError, match=f"{head_width}"):
        TransformerConfig(width=width, head_width=head_width)


def test_reading_a_configuration_needs_no_torch() -> None:
    program = "import sys; from anima_pipe.model import TransformerConfig; TransformerConfig()"
    check = "; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", program + check]).returncode == 0


class _Wrapper(nn.Module):
    """What an adapter puts in a module's place."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.base(x)


def _wrap(parent: nn.Module) -> int:
    wrapped = 0
    for name, child in list(parent.named_children()):
        if isinstance(child, nn.Linear) or type(child).__name__ == "RMSNorm":
            setattr(parent, name, _Wrapper(child))
            wrapped += 1
        else:
            wrapped += _wrap(child)
    return wrapped
