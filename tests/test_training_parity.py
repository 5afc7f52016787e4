"""The proof that it trains what it should: the same ten steps with diffusers, peft and torch.

The other side is written from those packages' public calls alone: an adapter against peft's LoRA
and norms trained directly, the whole model against diffusers' with all of its weights.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from diffusers_parity import diffusers_name, diffusers_text_conditioner, diffusers_transformer
from golden_model import golden_transformer
from parity_runs import (
    STEPS,
    Run,
    TheirModel,
    assert_all_captions,
    batches_of,
    our_run,
    small_cache,
    their_losses,
)
from peft import LoraConfig, inject_adapter_in_model

from anima_pipe.adapters import Adapter, create_adapter
from anima_pipe.dataset.batches import Window
from anima_pipe.finetuning.whole_model import WholeModel
from anima_pipe.shards import Cache

RANK, ALPHA = 4, 6.0
TEXT_ADAPTER = "llm_adapter."

KEEPING = pytest.mark.parametrize(
    ("checkpointing", "accumulation"),
    [(False, 1), (True, 1), (False, 3)],
    ids=["plain", "checkpointing", "accumulation"],
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return small_cache(tmp_path_factory.mktemp("cache"))


def assert_same(ours: Run, theirs: Run, start: dict[str, torch.Tensor]) -> None:
    """Check that ten steps of both sides end at the same losses and the same tensors."""
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-4)
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, tensor in ours.tensors.items():
        assert not torch.equal(tensor, start[name]), f"{name} was trained"
        difference = (tensor - theirs.tensors[name]).abs().max()
        assert difference <= 1e-3 * theirs.tensors[name].abs().max(), name


def their_adapted_model(adapter: Adapter) -> TheirModel:
    """Return diffusers' model with peft's LoRA on it, everything else frozen."""
    base = golden_transformer("a")
    weights = base.state_dict()
    linears = [path for path, delta in adapter.deltas.items() if delta.group == "linear"]
    of_text, own = ([p for p in linears if p.startswith(TEXT_ADAPTER) == t] for t in (True, False))
    return TheirModel(
        with_lora(diffusers_transformer(weights, base.config), own),
        with_lora(diffusers_text_conditioner(weights, base.config), of_text),
    )


def with_lora(model: torch.nn.Module, paths: list[str]) -> torch.nn.Module:
    model.requires_grad_(requires_grad=False)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=[_their_path(p) for p in paths])
    return inject_adapter_in_model(config, model)


def their_parameter(model: TheirModel, path: str, name: str) -> torch.nn.Parameter:
    """Return their parameter of a name, of the module that we have at a path."""
    holder = model.conditioner if path.startswith(TEXT_ADAPTER) else model.transformer
    return holder.get_parameter(f"{_their_path(path)}.{name}")


def _their_path(path: str) -> str:
    if path.startswith(TEXT_ADAPTER):
        return path.removeprefix(TEXT_ADAPTER)
    return diffusers_name(f"{path}.").removesuffix(".")


def _split(name: str) -> tuple[str, str]:
    for tensor in ("lora_A.weight", "lora_B.weight", "w_norm"):
        if name.endswith(f".{tensor}"):
            return name.removesuffix(f".{tensor}"), tensor
    raise AssertionError(name)


def adapted_by_them(windows: list[Window], start: dict[str, torch.Tensor]) -> Run:
    """Train the adapter with diffusers, peft and torch's AdamW."""
    adapter = create_adapter("lora", golden_transformer("a"), network_dim=RANK, network_alpha=ALPHA)
    model = their_adapted_model(adapter)
    parameters: dict[str, torch.nn.Parameter] = {}
    for name in start:
        path, tensor = _split(name)
        inner = "weight" if tensor == "w_norm" else tensor.replace(".weight", ".default.weight")
        parameters[name] = their_parameter(model, path, inner).requires_grad_()
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    norms = {name: parameter for name, parameter in parameters.items() if name.endswith("w_norm")}
    factors = {name: p for name, p in parameters.items() if name not in norms}
    for name, parameter in factors.items():
        parameter.data.copy_(start[name])
    losses = their_losses(model, windows, [*factors.values()], [*norms.values()])
    tensors = {
        name: p.detach() - before[name] if name in norms else p.detach()
        for name, p in parameters.items()
    }
    return Run(losses, tensors)


@KEEPING
def test_ten_steps_are_those_of_diffusers_and_peft(cache, checkpointing, accumulation):
    batches = batches_of(cache, accumulation)
    windows = list(itertools.islice(batches.starting_at(0), STEPS))
    assert_all_captions(windows)
    transformer = golden_transformer("a").requires_grad_(requires_grad=False)
    transformer.checkpoint_blocks(checkpointing)
    adapter = create_adapter("lora", transformer, network_dim=RANK, network_alpha=ALPHA, seed=1)
    start = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}

    ours = our_run(transformer, adapter, batches)

    assert_same(ours, adapted_by_them(windows, start), start)


def trained_by_them(windows: list[Window], names: list[str]) -> Run:
    """Train the whole model with diffusers and torch's AdamW."""
    base = golden_transformer("a")
    weights = base.state_dict()
    model = TheirModel(
        diffusers_transformer(weights, base.config),
        diffusers_text_conditioner(weights, base.config),
    )
    parameters = {
        name: their_parameter(model, *name.rsplit(".", 1)).requires_grad_() for name in names
    }
    tables = {f"{TEXT_ADAPTER}embed.weight"}
    decaying = [p for name, p in parameters.items() if p.ndim == 2 and name not in tables]
    others = [p for name, p in parameters.items() if p.ndim == 1 or name in tables]
    losses = their_losses(model, windows, decaying, others)
    return Run(losses, {name: p.detach() for name, p in parameters.items()})


@KEEPING
def test_ten_steps_of_the_whole_model_are_those_of_diffusers(cache, checkpointing, accumulation):
    batches = batches_of(cache, accumulation)
    windows = list(itertools.islice(batches.starting_at(0), STEPS))
    transformer = golden_transformer("a")
    transformer.checkpoint_blocks(checkpointing)
    trained = WholeModel(transformer)
    start = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    assert start.keys() == dict(transformer.named_parameters()).keys()

    ours = our_run(transformer, trained, batches)

    assert_same(ours, trained_by_them(windows, [*start]), start)
