"""The proof that it trains what it should: the same ten steps with diffusers, peft and torch.

The other side is written from those packages' public calls alone. Both sides start from the same
weights and the same adapter, and take the same samples, noise, noise levels and captions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from diffusers_parity import (
    diffusers_condition,
    diffusers_name,
    diffusers_text_conditioner,
    diffusers_transformer,
    diffusers_velocity,
)
from golden_model import golden_transformer
from peft import LoraConfig, inject_adapter_in_model

from anima_pipe.adapters import Adapter, create_adapter
from anima_pipe.dataset.batches import Batches, Window
from anima_pipe.dataset.plan import Plan
from anima_pipe.dataset.visits import EMPTY_CAPTION, PlannedSample
from anima_pipe.model import AnimaTransformer, TextConditionedTransformer
from anima_pipe.objective.flow_loss import ObjectiveConfig, draw
from anima_pipe.objective.sigmas import SigmaConfig
from anima_pipe.optimizing.optimizers import OptimizerConfig, ParameterGroup, create_optimizer
from anima_pipe.optimizing.schedules import ScheduleConfig, create_schedule
from anima_pipe.records import TextCondition
from anima_pipe.shards import Cache, LatentWriter, TextWriter, open_cache
from anima_pipe.trainer import Trainer, TrainerConfig, draw_seed, prepared, start_accelerate

STEPS = 10
RANK, ALPHA = 4, 6.0
LEARNING_RATE, DECAY, MAX_NORM = 2e-3, 0.05, 1.0
OPTIMIZER = {"betas": (0.9, 0.99), "eps": 1e-8}
OBJECTIVE = ObjectiveConfig(sigmas=SigmaConfig(sigmoid_scale=1.2, shift=1.5))
BUCKETS = [(12, 20), (16, 12)]
"""Heights and widths of the latents."""
QWEN_LENGTHS = [0, 3, 9, 1, 14, 6]
"""Tokens of the captions; the first is the empty one."""
WEIGHTS = [1.0, 1.0, 0.5, 1.0, 2.0, 0.25]
"""Of each picture's loss."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    folder = tmp_path_factory.mktemp("cache")
    generator = torch.Generator().manual_seed(3)
    source_width = golden_transformer("a").config.llm_adapter.source_width
    with LatentWriter(folder, "a" * 32, "fp32", "vae") as latents:
        for number in range(len(QWEN_LENGTHS)):
            shape = (16, *BUCKETS[number % len(BUCKETS)])
            latents.add(_latent_key(number), torch.randn(shape, generator=generator), {})
    with TextWriter(folder, "b" * 32, "fp32", "qwen") as texts:
        for number, length in enumerate(QWEN_LENGTHS):
            hidden = torch.randn(length, source_width, generator=generator)
            ids = torch.randint(2, 90, (length + number % 3,), generator=generator)
            condition = TextCondition(hidden, torch.cat([ids, torch.ones(1)]).int())
            texts.add(_text_key(number), condition, {})
    return open_cache(folder)


def _latent_key(number: int) -> str:
    return f"{number:032x}"


def _text_key(number: int) -> str:
    return f"{number:031x}f" if number else EMPTY_CAPTION


def _batches(cache: Cache, accumulation: int) -> Batches:
    samples = [
        PlannedSample(
            name=str(number),
            latents=(_latent_key(number),),
            texts=(_text_key(number),),
            group=(0, *BUCKETS[number % len(BUCKETS)]),
            batch_size=2,
            repeats=3,
            dropout_rate=0.1,
            dropout_every_n_epochs=0,
            loss_weight=WEIGHTS[number],
        )
        for number in range(len(QWEN_LENGTHS))
    ]
    return Batches(
        plan=Plan(samples=tuple(samples), seed=5), cache=cache, accumulation=accumulation
    )


@dataclass
class Run:
    """What ten steps came to: their losses, and the adapter's tensors by their names in a file."""

    losses: list[float]
    tensors: dict[str, torch.Tensor]


def our_run(
    batches: Batches, *, checkpointing: bool
) -> tuple[Run, Trainer, dict[str, torch.Tensor]]:
    """Train with this project; return also the trainer and the adapter's start."""
    transformer = golden_transformer("a").requires_grad_(requires_grad=False)
    transformer.checkpoint_blocks(checkpointing)
    adapter = create_adapter("lora", transformer, network_dim=RANK, network_alpha=ALPHA, seed=1)
    start = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}
    optimizer = create_optimizer(
        [
            ParameterGroup(
                name=group.name,
                parameters=group.parameters,
                learning_rate=group.rate(LEARNING_RATE),
                decays=group.decays,
            )
            for group in adapter.groups()
        ],
        OptimizerConfig(optimizer_args={**OPTIMIZER, "weight_decay": DECAY}),
    )
    config = TrainerConfig(
        max_train_steps=STEPS, objective=OBJECTIVE, max_grad_norm=MAX_NORM, seed=9
    )
    accelerator = start_accelerate("no", cpu=True)
    schedule = create_schedule(
        optimizer, ScheduleConfig(lr_scheduler="cosine", lr_warmup_steps=2), STEPS
    )
    module, optimizer = prepared(accelerator, TextConditionedTransformer(transformer), optimizer)
    trainer = Trainer(
        accelerator=accelerator,
        module=module,
        optimizer=optimizer,
        schedule=schedule,
        batches=batches,
        config=config,
    )
    trainer.run()
    return Run(trainer.tally.losses, dict(adapter.state_dict())), trainer, start


class TheirModel:
    """diffusers' transformer and text adapter with peft's LoRA, their norms trained directly."""

    def __init__(self, base: AnimaTransformer, adapter: Adapter) -> None:
        weights = base.state_dict()
        linears = [path for path, delta in adapter.deltas.items() if delta.group == "linear"]
        self.norms = [path for path, delta in adapter.deltas.items() if delta.group == "norm"]
        self.transformer = self._with_lora(
            diffusers_transformer(weights, base.config),
            [_their_path(path) for path in linears if not path.startswith("llm_adapter.")],
        )
        self.conditioner = self._with_lora(
            diffusers_text_conditioner(weights, base.config),
            [_their_path(path) for path in linears if path.startswith("llm_adapter.")],
        )

    @staticmethod
    def _with_lora(model: torch.nn.Module, targets: list[str]) -> torch.nn.Module:
        model.requires_grad_(requires_grad=False)
        config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets)
        return inject_adapter_in_model(config, model)

    def parameter(self, name: str) -> torch.nn.Parameter:
        """Return their parameter for our tensor of that name: LoRA factors, or a norm's weight."""
        path, tensor = _split(name)
        model = self.conditioner if path.startswith("llm_adapter.") else self.transformer
        inner = "weight" if tensor == "w_norm" else tensor.replace(".weight", ".default.weight")
        return model.get_parameter(f"{_their_path(path)}.{inner}")

    def loss(self, window_batch, seed: int) -> torch.Tensor:
        """The objective, spelt out; every caption goes through the text adapter on its own."""
        draws = draw(window_batch.latents.shape, OBJECTIVE, seed)
        noise = draws.noise.target
        sigma = draws.sigmas.view(-1, 1, 1, 1)
        noisy = (1 - sigma) * window_batch.latents + sigma * noise
        context = torch.cat(list(self._conditions(window_batch.text)))
        velocity = diffusers_velocity(self.transformer, noisy, draws.sigmas, context)
        errors = torch.nn.functional.mse_loss(
            velocity, noise - window_batch.latents, reduction="none"
        )
        weights = torch.tensor([WEIGHTS[int(name)] for name in window_batch.names])
        return (errors.mean((1, 2, 3)) * weights).mean()

    def _conditions(self, text) -> Iterator[torch.Tensor]:
        for row in range(len(text.t5_ids)):
            hidden = text.qwen_hidden[row : row + 1][:, text.qwen_mask[row]]
            ids = text.t5_ids[row : row + 1][:, text.t5_mask[row]]
            if hidden.shape[1] == 0:
                hidden = torch.zeros(1, 1, hidden.shape[2])
            condition = diffusers_condition(self.conditioner, hidden, ids)[:, : ids.shape[1]]
            yield torch.nn.functional.pad(condition, (0, 0, 0, 512 - ids.shape[1]))


def _split(name: str) -> tuple[str, str]:
    for tensor in ("lora_A.weight", "lora_B.weight", "w_norm"):
        if name.endswith(f".{tensor}"):
            return name.removesuffix(f".{tensor}"), tensor
    raise AssertionError(name)


def _their_path(path: str) -> str:
    if path.startswith("llm_adapter."):
        return path.removeprefix("llm_adapter.")
    return diffusers_name(f"{path}.").removesuffix(".")


def their_run(windows: list[Window], trainer: Trainer, start: dict[str, torch.Tensor]) -> Run:
    """Train with diffusers, peft and torch's AdamW."""
    base = golden_transformer("a")
    adapter = create_adapter("lora", golden_transformer("a"), network_dim=RANK, network_alpha=ALPHA)
    model = TheirModel(base, adapter)
    parameters = {name: model.parameter(name) for name in start}
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        parameter.requires_grad_(requires_grad=True)
        if not name.endswith("w_norm"):
            parameter.data.copy_(start[name])
    norms = [parameter for name, parameter in parameters.items() if name.endswith("w_norm")]
    factors = [parameter for name, parameter in parameters.items() if not name.endswith("w_norm")]
    optimizer = torch.optim.AdamW(
        [
            {"params": factors, "weight_decay": DECAY},
            {"params": norms, "weight_decay": 0.0},
        ],
        lr=LEARNING_RATE,
        **OPTIMIZER,
    )
    schedule = create_schedule(
        optimizer, ScheduleConfig(lr_scheduler="cosine", lr_warmup_steps=2), STEPS
    )
    losses: list[float] = []
    for step, window in enumerate(windows):
        total = 0.0
        for share in window.micro_batches:
            seed = draw_seed(trainer.config.seed, step, share.place)
            loss = model.loss(share.batch, seed) / len(window.micro_batches)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(parameters.values(), MAX_NORM)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(total)
    tensors = {
        name: (p.detach() - before[name] if name.endswith("w_norm") else p.detach())
        for name, p in parameters.items()
    }
    return Run(losses, tensors)


@pytest.mark.parametrize(
    ("checkpointing", "accumulation"),
    [(False, 1), (True, 1), (False, 3)],
    ids=["plain", "checkpointing", "accumulation"],
)
def test_ten_steps_are_those_of_diffusers_and_peft(cache, checkpointing, accumulation):
    batches = _batches(cache, accumulation)
    windows = list(itertools.islice(batches.starting_at(0), STEPS))
    ours, trainer, start = our_run(batches, checkpointing=checkpointing)
    theirs = their_run(windows, trainer, start)

    masks = [m for w in windows for b in w.micro_batches for m in b.batch.text.qwen_mask]
    captions = {int(mask.sum()) for mask in masks}
    assert captions == set(QWEN_LENGTHS), "every caption is trained on, the empty one too"
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-4)
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, tensor in ours.tensors.items():
        assert not torch.equal(tensor, start[name]), f"{name} was trained"
        difference = (tensor - theirs.tensors[name]).abs().max()
        assert difference <= 1e-3 * theirs.tensors[name].abs().max(), name
