"""What goes to the device, when and how: nothing of a step makes the host wait for a GPU.

Without a GPU, torch's meta device stands for one: it takes every operation, refuses tensors of two
devices, and cannot be read from.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from anima_pipe import demo
from anima_pipe.adapters import create_adapter
from anima_pipe.adapters.eight_bit import keep_in_eight_bits
from anima_pipe.dataset.batches import MicroBatch, Window
from anima_pipe.drawing.painter import LazyVae
from anima_pipe.encoders import ImageVae
from anima_pipe.finetuning.whole_model import WholeModel
from anima_pipe.model import (
    BLOCK_LAYERS,
    AnimaTransformer,
    TextConditionedTransformer,
    load_transformer,
)
from anima_pipe.model.anima import CONDITION_LENGTH
from anima_pipe.objective.flow_loss import LossConfig, ObjectiveConfig, draw
from anima_pipe.objective.noise import NoiseConfig
from anima_pipe.objective.passes import pass_losses, placed
from anima_pipe.optimizing.optimizers import OptimizerConfig, ParameterGroup, create_optimizer
from anima_pipe.optimizing.schedules import ScheduleConfig, create_schedule
from anima_pipe.records import Batch, PaddedText
from anima_pipe.trained import PartRate
from anima_pipe.trainer.step import TrainerConfig, TrainStep
from anima_pipe.transfer import on_device

META = torch.device("meta")
LONG = CONDITION_LENGTH + 1
aten = torch.ops.aten

KINDS = {
    "lora": ("lora", {}),
    "lora with dropouts": ("lora", {"dropout": 0.1, "rank_dropout": 0.1, "module_dropout": 0.1}),
    "lora left out at times": ("lora", {"module_dropout": 0.5}),
    "pissa left out at times": ("lora", {"pissa": True, "module_dropout": 0.5, "dropout": 0.1}),
    "lokr left out at times": ("lokr", {"lokr_factor": 4, "module_dropout": 0.5}),
    "loha left out at times": ("loha", {"module_dropout": 0.5}),
    "dora": ("lora", {"dora": True, "module_dropout": 0.5}),
    "dora by columns": ("lora", {"dora": True, "wd_on_output": False}),
    "pissa": ("lora", {"pissa": True}),
    "tlora": ("tlora", {}),
    "lokr": ("lokr", {"lokr_factor": 4}),
    "lokr of whole factors": ("lokr", {"lokr_factor": 4, "lokr_full_matrix": True}),
    "loha": ("loha", {}),
}

WHOLE = {
    "the model itself": (),
    "a part of the model": (PartRate(name="rest", pattern=r"(?!blocks).*", rate=0.0),),
}


class Operations(TorchDispatchMode):
    """Notes copies between devices, and numbers that the host reads."""

    def __init__(self) -> None:
        super().__init__()
        self.copies = 0
        self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is aten._to_copy.default:
            self.copies += args[0].device != result.device
        reading = (aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default)
        self.reads += func in reading
        return result


def a_model(kind: str, *, checkpointed: bool = False, eight_bit: bool = False) -> nn.Module:
    transformer = load_transformer(demo.DEMO_TRANSFORMER, torch.float32)
    transformer.checkpoint_blocks(checkpointed)
    if kind in WHOLE:
        WholeModel(transformer, WHOLE[kind])
        transformer.compute_in(torch.bfloat16)
        return TextConditionedTransformer(transformer).train()
    transformer.requires_grad_(requires_grad=False)
    if eight_bit:
        keep_in_eight_bits(transformer, BLOCK_LAYERS)
    name, arguments = KINDS[kind]
    adapter = create_adapter(name, transformer, network_dim=4, network_alpha=2, **arguments)
    module = TextConditionedTransformer(transformer)
    adapter.follow_passes(module)
    return module.train()


def a_batch(module: nn.Module, *, masked: bool = False, ids: int = 4) -> Batch:
    """Return two pictures, one with a caption of so many ids and one with half of them."""
    transformer = module.get_submodule("transformer")
    assert isinstance(transformer, AnimaTransformer)
    width = transformer.config.llm_adapter.source_width
    return Batch(
        latents=torch.randn(2, 16, 8, 12).half(),
        text=PaddedText(
            qwen_hidden=torch.randn(2, 5, width).half(),
            qwen_mask=torch.tensor([[True] * 5, [True] * 3 + [False] * 2]),
            t5_ids=torch.full((2, ids), 3),
            t5_mask=torch.arange(ids) < torch.tensor([[ids], [ids // 2]]),
        ),
        weights=torch.ones(2),
        sigma_offsets=torch.zeros(2),
        names=("a", "b"),
        masks=torch.ones(2, 8, 12, dtype=torch.float16) if masked else None,
    )


def a_step(
    module: nn.Module, began: Callable[[], None], ended: Callable[[], None]
) -> tuple[TrainStep, Window]:
    """Return a step over two batches; told when its first pass begins and each backward ends."""
    trained = [p for p in module.parameters() if p.requires_grad]
    group = ParameterGroup(name="all", parameters=trained, learning_rate=1e-4)
    optimizer = create_optimizer([group], OptimizerConfig())
    accelerator = Accelerator(cpu=True)
    backward = accelerator.backward

    def noted_backward(loss: torch.Tensor) -> None:
        backward(loss)
        ended()

    accelerator.backward = noted_backward
    module.register_forward_pre_hook(lambda *_: began())
    micro_batches = tuple(
        # Of longer captions than most, too: attention to them takes another way.
        MicroBatch(batch=a_batch(module, masked=place == 1, ids=ids), weight=0.5, place=place)
        for place, ids in enumerate((4, LONG))
    )
    config = TrainerConfig(max_train_steps=2, objective=ObjectiveConfig())
    schedule = create_schedule(optimizer, ScheduleConfig(), 2)
    window = Window(epoch=0, index=0, ends_epoch=False, samples=4, micro_batches=micro_batches)
    return TrainStep(accelerator, module, optimizer, schedule, config), window


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        *((kind, "plain") for kind in (*KINDS, *WHOLE)),
        *product(("lora", "lokr"), ("checkpointed", "eight_bit")),
        *product(WHOLE, ("checkpointed",)),
    ],
)
def test_from_a_steps_first_pass_to_its_last_gradient_the_host_reads_nothing(
    kind: str, how: str
) -> None:
    operations, read_before, read_until = Operations(), list[int](), list[int]()
    module = a_model(kind, **{} if how == "plain" else {how: True})
    step, window = a_step(
        module,
        lambda: read_before.append(operations.reads),
        lambda: read_until.append(operations.reads),
    )
    with operations:
        outcome = step(0, window, stop=False)
        reads = operations.reads
        assert torch.ones(()).item() == operations.reads - reads, "a read is not counted"
    assert outcome.taken
    assert len(read_until) == 2
    assert read_until[-1] - read_before[0] == 0


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("gamma", "noises"), [(0.0, 1), (0.1, 2)])
def test_a_batch_is_on_the_device_before_its_pass_each_tensor_copied_once(
    gamma: float, noises: int, masked: bool
) -> None:
    module = a_model("lora").to(META)
    batch = a_batch(module, masked=masked)
    objective = ObjectiveConfig(noise=NoiseConfig(input_gamma=gamma))
    draws = draw(batch.latents.shape, objective, 1)
    with Operations() as operations:
        on_its_device = placed(batch, draws, META, torch.float32)
        # latents, noise levels, weights, four of the text; the noise; the masks
        assert operations.copies == 7 + noises + masked
        losses = pass_losses(module, on_its_device, LossConfig())
        (losses * on_its_device.weights).mean().backward()
        assert operations.copies == 7 + noises + masked
    gradients = [p.grad for p in module.parameters() if p.requires_grad]
    assert all(gradient is not None and gradient.device == META for gradient in gradients)


@pytest.mark.parametrize("kind", [*KINDS, *WHOLE])
def test_every_kind_runs_forward_and_backward_on_another_device_than_the_processor(
    kind: str,
) -> None:
    module = a_model(kind).to(META)
    batch = a_batch(module, masked=True)
    draws = draw(batch.latents.shape, ObjectiveConfig(), 1)
    pass_losses(module, placed(batch, draws, META, torch.float32), LossConfig()).mean().backward()
    assert all(p.grad is not None for p in module.parameters() if p.requires_grad)


class CpuTensor:
    """Stands for a tensor on the processor whose way to a GPU is written down."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.dtype = torch.float16
        self.done: list[Any] = []

    def pin_memory(self) -> CpuTensor:
        self.done.append("pinned")
        return self

    def to(self, wanted: Any, *, non_blocking: bool = False) -> CpuTensor:
        self.done.append((wanted, non_blocking))
        return self


def test_to_a_gpu_a_tensor_goes_from_pinned_memory_and_is_cast_there() -> None:
    tensor, gpu = CpuTensor(), torch.device("cuda", 1)
    on_device(cast("torch.Tensor", tensor), gpu, torch.float32)
    assert tensor.done == ["pinned", (gpu, True), (torch.float32, False)]


def test_on_the_processor_nothing_is_pinned() -> None:
    tensor = torch.ones(2)
    assert on_device(tensor, torch.device("cpu")) is tensor


def test_the_vae_of_previews_is_freed_when_they_are_drawn_and_loads_again() -> None:
    vae = LazyVae(demo.DEMO_VAE, torch.device("cpu"))
    latents = torch.zeros(1, 16, 4, 4)
    first, held = vae(latents), _vaes_in_memory()
    vae.release()
    assert _vaes_in_memory() == held - 1
    assert torch.equal(vae(latents), first)


def _vaes_in_memory() -> int:
    gc.collect()
    return sum(type(found) is ImageVae for found in gc.get_objects())


@pytest.mark.skipif(sys.platform != "linux", reason="torch has growing segments on Linux alone")
@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "expandable_segments:True"),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, None),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64"),
    ],
)
def test_memory_on_a_gpu_grows_in_place_unless_the_user_says_otherwise(
    environment: dict[str, str], expected: str | None
) -> None:
    code = (
        "import os; from anima_pipe.runtime import choose_device; choose_device(); "
        "print(os.environ.get('PYTORCH_CUDA_ALLOC_CONF'))"
    )
    own = {n: v for n, v in os.environ.items() if "ALLOC_CONF" not in n} | environment
    done = subprocess.run(
        [sys.executable, "-c", code], env=own, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(expected)
