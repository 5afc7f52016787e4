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

import inspect
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import Accelerator
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

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
from anima_pipe.records import Batch, Moment, PaddedText, PreviewPrompt, TextCondition
from anima_pipe.trainer.step import TrainerConfig, TrainStep

CARD: Final = torch.device("cuda", 0)
ROOT: Final = Path(__file__).resolve().parent.parent
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

aten = torch.ops.aten


@dataclass
class Waits:
    """What the host would have waited for, each with the line of the project that asked."""

    reads: Counter[str] = field(default_factory=Counter[str])
    """Numbers of the card that the host read."""
    copies: Counter[str] = field(default_factory=Counter[str])
    """Copies from memory that was not pinned, or back to the host."""

    def __str__(self) -> str:
        lines = [f"read at {place} x {n}" for place, n in self.reads.items()]
        return ", ".join([*lines, *(f"copy at {place} x {n}" for place, n in self.copies.items())])


class Card(TorchDispatchMode):
    """Stands for the card: answers what has no answer without one, and notes what waits."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = Waits()
        self._pinned = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run one operation."""
        del types
        kwargs = kwargs or {}
        if func in (aten.pin_memory.default, aten._pin_memory.default):  # noqa: SLF001
            pinned = aten.clone.default(args[0])
            self._pinned[pinned] = True
            return pinned
        if func is aten._local_scalar_dense.default:  # noqa: SLF001
            if args[0].is_cuda:
                self.waits.reads[_asking_line()] += 1
            return True if args[0].dtype == torch.bool else args[0].dtype.is_floating_point or 1
        if func is aten.randint.low_generator:
            kwargs = {name: value for name, value in kwargs.items() if name != "generator"}
            func = aten.randint.low
        result = func(*args, **kwargs)
        if func.overloadpacket in (aten._to_copy, aten.to):  # noqa: SLF001
            self._note(args[0], result, waits=not _argument(func, "non_blocking", args, kwargs))
        elif func is aten.copy_.default:
            self._note(args[1], args[0], waits=not _argument(func, "non_blocking", args, kwargs))
        return result

    def _note(self, source: torch.Tensor, target: torch.Tensor, *, waits: bool) -> None:
        if source.device.type == target.device.type:
            return
        if waits or target.device.type == "cpu" or source not in self._pinned:
            self.waits.copies[_asking_line()] += 1


def _argument(func: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return an argument of an operation, however it was given; None: it was not."""
    places = [argument.name for argument in func._schema.arguments]  # noqa: SLF001
    place = places.index(name) if name in places else len(args)
    return kwargs.get(name, args[place] if place < len(args) else None)


def _asking_line() -> str:
    """Return the innermost line of the project on the stack, such as model/rope.py:43."""
    frame = inspect.currentframe()
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT / "anima_pipe"):
            return f"{path.relative_to(ROOT / 'anima_pipe')}:{frame.f_lineno}"
        frame = frame.f_back
    return "torch"


@contextmanager
def fake_card() -> Generator[Card]:
    """Let tensors be made without numbers, also on a card."""
    generator = torch.Generator
    # A generator of a card's own cannot be made without the card.
    torch.Generator = lambda device="cpu": generator()  # noqa: ARG005  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), Card() as card:
            yield card
    finally:
        torch.Generator = generator


def onto_card(module: nn.Module) -> None:
    """Put a module's tensors on the card, without their numbers; within `fake_card`."""
    for part in module.modules():
        for name, parameter in [*part.named_parameters(recurse=False)]:
            on_card = torch.empty(parameter.shape, dtype=parameter.dtype, device=CARD)
            setattr(part, name, nn.Parameter(on_card, parameter.requires_grad))
        for name, buffer in [*part.named_buffers(recurse=False)]:
            setattr(part, name, torch.empty(buffer.shape, dtype=buffer.dtype, device=CARD))


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
    adapter.follow_sigmas(module)
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
    return Moment(
        step=1,
        epoch=1,
        ends_epoch=False,
        is_last=False,
        loss=1.0,
        learning_rates={},
        grad_norm=1.0,
        samples=4,
    )


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
