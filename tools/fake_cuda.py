"""Walk the paths of a GPU run on a machine without one: what is left on the processor is found.

Torch's fake tensors have a shape, a dtype and a device, but no numbers. On a build of torch for
CUDA they can be on a card that is not there: every operation checks that its tensors are on one
device, and a model runs forward, is stepped, merged and drawn with as it would be on a card. A
tensor that was left behind raises. So does what nothing can be known of: host reads are answered
with a number and written down, with the line that asked, and so are copies that the host would
wait for.

    python -m venv env && env/bin/pip install -e . torch      (the build for CUDA)
    env/bin/python tools/fake_cuda.py [WALK ...]

A real card is still needed for the backward pass, for kernels and for numbers: `bench/gpu.sh`.
"""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import torch
from accelerate import Accelerator
from fake_card import CARD, Card, Waits, fake_card, onto_card

from anima_pipe import demo
from anima_pipe.adapters import Adapter, create_adapter
from anima_pipe.adapters.eight_bit import keep_in_eight_bits
from anima_pipe.dataset.batches import MicroBatch, Window
from anima_pipe.drawing.painter import EncodedPrompt, Painter
from anima_pipe.encoders import ImageVae, load_text_encoder, load_vae
from anima_pipe.hooks.ema import Ema
from anima_pipe.model import (
    BLOCK_LAYERS,
    AnimaTransformer,
    TextConditionedTransformer,
    load_transformer,
)
from anima_pipe.objective.flow_loss import LossConfig, ObjectiveConfig, draw
from anima_pipe.objective.passes import pass_losses, placed
from anima_pipe.optimizing.optimizers import OptimizerConfig, ParameterGroup, create_optimizer
from anima_pipe.optimizing.rounding import StochasticRounding
from anima_pipe.optimizing.schedules import ScheduleConfig, create_schedule
from anima_pipe.records import Batch, Moment, PaddedText, PreviewPrompt, StepResult, TextCondition
from anima_pipe.trainer.step import TrainerConfig, TrainStep

KINDS: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "LoRA": ("lora", {}),
    "LoRA with dropouts": ("lora", {"dropout": 0.1, "rank_dropout": 0.1, "module_dropout": 0.1}),
    "DoRA": ("lora", {"dora": True}),
    "DoRA by columns": ("lora", {"dora": True, "wd_on_output": False}),
    "PiSSA": ("lora", {"pissa": True}),
    "T-LoRA": ("tlora", {}),
    "LoKr": ("lokr", {"lokr_factor": 4}),
    "LoKr of whole factors": ("lokr", {"lokr_factor": 4, "lokr_full_matrix": True}),
    "LoHa": ("loha", {}),
}
"""Name -> the kind and its arguments."""

MAY_WAIT: Final = ("merging", "encoding")
"""Walks that bring results back to the processor."""


def base(*, checkpointed: bool = False, eight_bit: bool = False) -> AnimaTransformer:
    """Load the demo's transformer on the processor, in bf16."""
    transformer = load_transformer(demo.DEMO_TRANSFORMER, torch.bfloat16)
    transformer.requires_grad_(requires_grad=False)
    transformer.checkpoint_blocks(checkpointed)
    if eight_bit:
        keep_in_eight_bits(transformer, BLOCK_LAYERS)
    return transformer


def batch_of(width: int, *, masked: bool = True) -> Batch:
    """Return a batch as it comes from the caches, on the processor."""
    text = PaddedText(
        qwen_hidden=torch.zeros(2, 5, width, dtype=torch.float16),
        qwen_mask=torch.ones(2, 5, dtype=torch.bool),
        t5_ids=torch.ones(2, 6, dtype=torch.long),
        t5_mask=torch.ones(2, 6, dtype=torch.bool),
    )
    return Batch(
        latents=torch.zeros(2, 16, 8, 12, dtype=torch.float16),
        text=text,
        weights=torch.ones(2),
        sigma_offsets=torch.zeros(2),
        names=("a", "b"),
        masks=torch.ones(2, 8, 12, dtype=torch.float16) if masked else None,
    )


def walk_step(kind: str, arguments: Mapping[str, Any], **how: bool) -> Waits:
    """Take a whole step: noise, forward, loss, clipping, measures, optimizer, average.

    Returns:
        What was waited for from the first forward pass to the last gradient.
    """
    transformer = base(**how)
    adapter = create_adapter(kind, transformer, network_dim=4, network_alpha=2, **arguments)
    module = TextConditionedTransformer(transformer)
    adapter.follow_passes(module)
    module.train()
    accelerator = Accelerator(cpu=True)
    setattr(accelerator.state, "device", CARD)  # noqa: B010 - it has no types
    with fake_card() as card:
        onto_card(module)
        optimizer = create_optimizer(groups_of(adapter), OptimizerConfig())
        assert optimizer.defaults["fused"], "torch has a fused form, and it is not asked for"
        schedule = create_schedule(optimizer, ScheduleConfig(), 10)
        passes = Passes(accelerator, adapter, card)
        module.register_forward_pre_hook(lambda *_: passes.begin())
        config = TrainerConfig(
            max_train_steps=10, objective=ObjectiveConfig(), dtype=transformer.dtype
        )
        step = TrainStep(accelerator, module, optimizer, schedule, config)
        average = Ema(adapter, 0.9)
        width = transformer.config.llm_adapter.source_width
        batches = tuple(MicroBatch(batch=batch_of(width), weight=0.5, place=p) for p in (0, 1))
        window = Window(epoch=0, index=0, ends_epoch=False, samples=4, micro_batches=batches)
        outcome = step(0, window, stop=False)
        assert outcome.taken
        average.at(moment_after_step())
        with average.in_place():
            pass
    return passes.waits


class Passes:
    """Notes what is waited for between the first forward pass of a step and its last gradient.

    The backward pass needs a real card: gradients come from nowhere.
    """

    def __init__(self, accelerator: Accelerator, adapter: Adapter, card: Card) -> None:
        self.waits = Waits()
        self._adapter = adapter
        self._card = card
        self._begun = False
        accelerator.backward = self._backward

    def begin(self) -> None:
        """Note that a forward pass begins; what came before the first does not count."""
        if not self._begun:
            self._begun, self._card.waits = True, Waits()

    def _backward(self, loss: torch.Tensor, **_: object) -> None:
        assert loss.device == CARD
        for parameter in self._adapter.parameters():
            parameter.grad = torch.empty_like(parameter)
        self.waits.reads = Counter(self._card.waits.reads)
        self.waits.copies = Counter(self._card.waits.copies)


def groups_of(adapter: Adapter) -> list[ParameterGroup]:
    """Return everything that trains, in one group."""
    return [ParameterGroup(name="all", parameters=[*adapter.parameters()], learning_rate=1e-4)]


def moment_after_step() -> Moment:
    """Return the moment after a step that was taken."""
    result = StepResult(loss=1.0, grad_norm=1.0, learning_rates={}, samples=4)
    return Moment(step=1, epoch=1, ends_epoch=False, is_last=False, result=result)


def walk_rounding() -> Waits:
    """Step an adapter that is kept in bf16, rounded by chance."""
    adapter = create_adapter("lora", base(), network_dim=4)
    with fake_card() as card:
        onto_card(adapter.model)
        optimizer = create_optimizer(groups_of(adapter), OptimizerConfig())
        StochasticRounding(optimizer, adapter.matrices(), seed=1)
        for parameter in adapter.parameters():
            parameter.grad = torch.empty_like(parameter)
        card.waits = Waits()
        optimizer.step()
    return card.waits


def walk_validation() -> Waits:
    """Measure a batch that is held out."""
    module = TextConditionedTransformer(base())
    batch = batch_of(module.transformer.config.llm_adapter.source_width)
    with fake_card() as card, torch.no_grad():
        onto_card(module)
        draws = draw(batch.latents.shape, ObjectiveConfig(), 1)
        pass_losses(module, placed(batch, draws, CARD, torch.bfloat16), LossConfig())
    return card.waits


def walk_drawing() -> Waits:
    """Draw a picture with guidance and an adapter, and decode it in tiles."""
    transformer = base()
    create_adapter("lora", transformer, network_dim=4)
    vae = load_vae(demo.DEMO_VAE)
    width = transformer.config.llm_adapter.source_width
    with fake_card() as card:
        onto_card(transformer)
        onto_card(vae)
        condition = TextCondition(
            torch.zeros(5, width, dtype=torch.float16), torch.ones(6, dtype=torch.int32)
        )
        prompt = PreviewPrompt(prompt="a", width=128, height=96, steps=2)
        encoded = EncodedPrompt(prompt=prompt, positive=condition, negative=condition)
        decode = partial(vae.decode, tile=64)
        latents = Painter(transformer, decode, CARD, torch.bfloat16).denoise(encoded)
        waits = card.waits
        assert decode(latents).device == CARD
    return waits


def walk_encoding() -> Waits:
    """Encode pictures and captions, and bring the results back."""
    vae = load_vae(demo.DEMO_VAE)
    text = load_text_encoder(demo.DEMO_QWEN, demo.DEMO_T5_TOKENIZER)
    with fake_card() as card:
        onto_card(vae)
        onto_card(text._network)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - what it computes with
        assert encoded_pictures(vae).shape == (2, 16, 8, 8)
        (condition,) = text.encode(["1girl, solo"])
        assert condition.qwen_hidden.device.type == "cpu"
    return card.waits


def encoded_pictures(vae: ImageVae) -> torch.Tensor:
    """Return latents of two pictures."""
    return vae.encode(torch.zeros(2, 3, 64, 64))


def walk_merging(kind: str, arguments: Mapping[str, Any]) -> Waits:
    """Merge an adapter into a model on the card, and take its tensors to a file and a state."""
    adapter = create_adapter(kind, base(), network_dim=4, **arguments)
    with fake_card() as card:
        onto_card(adapter.model)
        state = {name: tensor.cpu() for name, tensor in adapter.state_dict().items()}
        adapter.load_state_dict(state)
        optimizer = create_optimizer(groups_of(adapter), OptimizerConfig())
        saved = optimizer.state_dict()
        optimizer.load_state_dict(saved)
        adapter.merge()
    return card.waits


def walks() -> dict[str, Callable[[], Waits]]:
    """Return every walk by its name."""
    found: dict[str, Callable[[], Waits]] = {}
    for name, (kind, arguments) in KINDS.items():
        found[f"step, {name}"] = partial(walk_step, kind, arguments)
        found[f"merging and a state, {name}"] = partial(walk_merging, kind, arguments)
    found["step, checkpointed"] = partial(walk_step, "lora", {}, checkpointed=True)
    found["step, 8-bit base"] = partial(walk_step, "lora", {}, eight_bit=True)
    found["bf16 adapter"] = walk_rounding
    found["validation"] = walk_validation
    found["drawing"] = walk_drawing
    found["encoding"] = walk_encoding
    return found


def main() -> None:
    """Walk all paths or those that are named; exit with 1 where one raises, or waits."""
    failed = 0
    wanted = sys.argv[1:]
    for name, walk in walks().items():
        if wanted and not any(word in name for word in wanted):
            continue
        try:
            waits = walk()
        except Exception:  # noqa: BLE001 - whatever it is, the other walks go on
            failed += 1
            print(f"FAILED  {name}\n{traceback.format_exc(limit=-4)}")
            continue
        is_wrong = not name.startswith(MAY_WAIT) and bool(waits.reads or waits.copies)
        failed += is_wrong
        print(
            f"{'WAITS ' if is_wrong else 'ok    '}  {name}" + (f": {waits}" if str(waits) else "")
        )
    print(f"{failed} failed" if failed else "all passed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
