"""Time a training step against diffusers + peft (LoRA) and lycoris-lora (LoKr) on one model.

    python bench/train_step.py [--blocks 3 --width 1024 --side 64 --batch 1 --text 512 --rank 16]
        [--kinds lora lokr loha] [--dtype fp32] [--device cpu] [--rounds 5]

Every contestant trains the same layers (attention and mlp of every block) of a transformer with the
same random weights on the same inputs. They take turns, round after round, so that what else the
machine does strikes all of them; of the rounds the median counts. Forward, backward and optimizer
are timed apart. Peak memory is that of one step above the weights, each in a process of its own
(Linux, or CUDA). Printed besides are the ratios: read those, for seconds are the machine's.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from diffusers_parity import diffusers_transformer, diffusers_velocity

from anima_pipe.adapters import create_adapter
from anima_pipe.model import AnimaTransformer, LlmAdapterConfig, TransformerConfig
from anima_pipe.runtime import torch_dtype

OURS = {
    "lora": ("lora", {}),
    "lokr": ("lokr", {"lokr_full_matrix": True}),
    "loha": ("loha", {}),
    "dora": ("lora", {"dora": True}),
}
"""What is measured -> kind and settings here."""
RIVALS = {"lora": "diffusers + peft", "lokr": "diffusers + lycoris"}
PHASES = ("forward", "backward", "optimizer")
SETTLING_ROUNDS = 1

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Contestant:
    """A model with an adapter on it, ready to train."""

    velocity: Velocity
    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    checkpoint: Callable[[bool], None]
    """Has blocks computed twice instead of kept, or not."""


def main() -> None:
    """Measure all contestants and print the ratios."""
    options = read_options()
    if options.memory_of:
        print(peak_memory(options.memory_of, options))
        return
    names = [*options.kinds, *(RIVALS[kind] for kind in options.kinds if kind in RIVALS)]
    times = measure_times(names, options)
    memory = {name: memory_apart(name) for name in names}
    print(f"{'':<22}{'forward':>10}{'backward':>10}{'optimizer':>10}{'step':>10}{'peak MiB':>10}")
    for name in names:
        phases = [statistics.median(times[name][phase]) for phase in PHASES]
        numbers = "".join(f"{seconds:>10.3f}" for seconds in [*phases, sum(phases)])
        print(f"{name:<22}{numbers}{memory[name] / 2**20:>10.0f}")
    compared = [(kind, RIVALS[kind]) for kind in options.kinds if kind in RIVALS]
    compared += [(kind, "lora") for kind in options.kinds if kind != "lora" and "lora" in names]
    for name, other in compared:
        ratio = step_ratio(times[name], times[other])
        share = memory[name] / memory[other]
        print(f"{name} / {other}: step {ratio:.2f}, peak memory above the weights {share:.2f}")


def read_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--side", type=int, default=64, help="of the latent, two to a token")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--text", type=int, default=512, help="positions of the condition")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--kinds", nargs="+", choices=list(OURS), default=["lora", "lokr"])
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)
    return parser.parse_args()


def measure_times(
    names: list[str], options: argparse.Namespace
) -> dict[str, dict[str, list[float]]]:
    """Return the seconds of every phase of every round, by contestant."""
    contestants = {name: contestant(name, options) for name in names}
    batch = inputs(options)
    times = {name: {phase: list[float]() for phase in PHASES} for name in names}
    for number in range(options.rounds + SETTLING_ROUNDS):
        for name, each in contestants.items():
            seconds = step(each, batch, options.device)
            if number >= SETTLING_ROUNDS:
                for phase in PHASES:
                    times[name][phase].append(seconds[phase])
    return times


def step(trained: Contestant, batch: tuple[Tensor, ...], device: str) -> dict[str, float]:
    """Do one training step; return the seconds of its phases."""
    moments = [now(device)]
    loss = trained.velocity(*batch).float().square().mean()
    moments.append(now(device))
    loss.backward()
    moments.append(now(device))
    trained.optimizer.step()
    trained.optimizer.zero_grad()
    moments.append(now(device))
    return {
        phase: after - before
        for phase, before, after in zip(PHASES, moments, moments[1:], strict=False)
    }


def step_ratio(ours: Mapping[str, list[float]], theirs: Mapping[str, list[float]]) -> float:
    """Return the median over the rounds of how many times theirs our step takes."""
    rounds = zip(zip(*ours.values(), strict=True), zip(*theirs.values(), strict=True), strict=True)
    return statistics.median(sum(own) / sum(other) for own, other in rounds)


def now(device: str) -> float:
    """Return the time when everything asked for so far is done."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def contestant(name: str, options: argparse.Namespace) -> Contestant:
    """Build a model with the adapter of one contestant."""
    torch.manual_seed(0)
    # Billions of random numbers are drawn where they are wanted.
    with torch.device(options.device):
        model = AnimaTransformer(config_of(options)).requires_grad_(requires_grad=False)
    model = model.to(torch_dtype(options.dtype))
    if name in OURS:
        kind, settings = OURS[name]
        adapter = create_adapter(
            kind,
            model,
            network_dim=options.rank,
            network_alpha=options.rank,
            train_norm=False,
            train_llm_adapter=False,
            **settings,
        )
        return ready(model, list(adapter.parameters()), model.checkpoint_blocks)
    with torch.device(options.device):
        theirs = diffusers_transformer(model.state_dict(), model.config)
    theirs = theirs.requires_grad_(requires_grad=False).to(torch_dtype(options.dtype))
    put_on = with_peft if name == RIVALS["lora"] else with_lycoris
    parameters = put_on(theirs, options.rank)

    def checkpoint(enabled: bool) -> None:
        (
            theirs.enable_gradient_checkpointing
            if enabled
            else theirs.disable_gradient_checkpointing
        )()

    return ready(lambda *batch: diffusers_velocity(theirs, *batch), parameters, checkpoint)


def ready(
    velocity: Velocity, parameters: list[nn.Parameter], checkpoint: Callable[[bool], None]
) -> Contestant:
    """Return a contestant with its optimizer."""
    return Contestant(velocity, parameters, torch.optim.AdamW(parameters, lr=1e-4), checkpoint)


def target_paths(model: nn.Module) -> list[str]:
    """Return the layers of diffusers' transformer that stand for those trained here."""
    pattern = re.compile(r".*(attn\d\.(to_[qkv]|to_out\.0)|ff\.net\.(0\.proj|2))")
    return [path for path, module in model.named_modules() if pattern.fullmatch(path)]


def with_peft(model: nn.Module, rank: int) -> list[nn.Parameter]:
    """Put peft's LoRA on a model, as diffusers' training scripts do."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=target_paths(model))
    inject_adapter_in_model(config, model)
    # peft's adapters are fp32 where the trainers ask for it; theirs cast at use, as ours do.
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def with_lycoris(model: nn.Module, rank: int) -> list[nn.Parameter]:
    """Put LyCORIS's LoKr with whole factors on a model."""
    from lycoris.modules.lokr import LokrModule

    parameters: list[nn.Parameter] = []
    for path in target_paths(model):
        module = LokrModule(
            path.replace(".", "_"),
            model.get_submodule(path),
            lora_dim=rank,
            alpha=1,
            factor=8,
            full_matrix=True,
        )
        module.to(next(model.parameters()).device)
        module.apply_to()
        parameters += list(module.parameters())
    return parameters


def config_of(options: argparse.Namespace) -> TransformerConfig:
    """Return the sizes of the transformer; its text adapter is not part of the step."""
    return TransformerConfig(
        width=options.width,
        blocks=options.blocks,
        mlp_width=4 * options.width,
        llm_adapter=LlmAdapterConfig(
            source_width=64, width=64, blocks=1, mlp_width=64, vocabulary=1, in_proj=True
        ),
    )


def inputs(options: argparse.Namespace) -> tuple[Tensor, ...]:
    """Return latents, sigmas and text condition of one batch."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(options.batch, 16, options.side, options.side, generator=generator)
    context = torch.randn(options.batch, options.text, 1024, generator=generator)
    dtype = torch_dtype(options.dtype)
    return (
        latents.to(options.device, dtype),
        torch.full((options.batch,), 0.5, device=options.device),
        context.to(options.device, dtype),
    )


def memory_apart(name: str) -> int:
    """Return a contestant's peak memory, from a process of its own."""
    command = [sys.executable, *sys.argv, "--memory_of", name]
    # glibc is to give memory back at once: what it keeps would hide how much the step takes.
    frugal = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    ended = subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | frugal
    )
    return int(ended.stdout.split()[-1])


def peak_memory(name: str, options: argparse.Namespace) -> int:
    """Return the bytes that one step takes above the weights, its optimizer's state there."""
    trained, batch = contestant(name, options), inputs(options)
    step(trained, batch, options.device)
    gc.collect()
    if options.device.startswith("cuda"):
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(trained, batch, options.device)
        return torch.cuda.max_memory_allocated() - before
    # Linux: 5 sets the peak back to what is resident now.
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    step(trained, batch, options.device)
    return resident("VmHWM") - before


def resident(entry: str) -> int:
    """Return a number of bytes that Linux says of this process."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{entry}:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


if __name__ == "__main__":
    main()
