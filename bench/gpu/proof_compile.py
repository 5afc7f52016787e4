"""A block of the transformer through torch's compiler gives what it gives without."""

from __future__ import annotations

import time

import torch
from golden_model import golden_transformer, read_golden

from anima_pipe.adapters import Adapter, create_adapter
from anima_pipe.model import AnimaTransformer
from gpu.differences import largest, plain_fp32
from gpu.results import Results
from gpu.setting import Setting, run_part

WITHIN = {torch.float32: 1e-4, torch.bfloat16: 4e-2}
"""Of eager values and gradients: what kernels that sum otherwise, and round less often, come to."""


def measure(setting: Setting, results: Results) -> None:
    """Compile the blocks of a small model with an adapter on it."""
    plain_fp32()
    for dtype, within in [*WITHIN.items()][: 1 if setting.small else None]:
        name = str(dtype).removeprefix("torch.")
        with results.attempt(f"compiled blocks in {name}"):
            compare(setting, results, dtype, within)


def compare(setting: Setting, results: Results, dtype: torch.dtype, within: float) -> None:
    """Compare velocity and the adapter's gradients with those of the blocks as they are."""
    model, adapter = prepared(setting, dtype)
    velocity, gradients = passes(model, adapter, setting)
    began = time.perf_counter()
    for block in model.blocks:
        # A rehearsal follows the code without generating any: that takes a minute of a processor.
        block.compile(backend="eager" if setting.small else "inductor")
    compiled_velocity, compiled_gradients = passes(model, adapter, setting)
    name = str(dtype).removeprefix("torch.")
    seconds = time.perf_counter() - began
    results.figure("Compiling", of=f"first pass with {len(model.blocks)} blocks, {name}", s=seconds)
    error = largest(compiled_velocity, velocity)
    results.check(f"compiled blocks in {name}: velocity", error, within)
    pairs = zip(compiled_gradients, gradients, strict=True)
    worst = max(largest(own, eager) for own, eager in pairs)
    results.check(f"compiled blocks in {name}: {len(gradients)} gradients", worst, within)


def prepared(setting: Setting, dtype: torch.dtype) -> tuple[AnimaTransformer, Adapter]:
    """Return a golden model with a LoRA whose gradients are not zero."""
    model = golden_transformer("a").to(setting.device, dtype).requires_grad_(requires_grad=False)
    adapter = create_adapter("lora", model, network_dim=4, network_alpha=4, seed=1)
    generator = torch.Generator().manual_seed(2)
    for parameter in adapter.parameters():
        drawn = torch.randn(parameter.shape, generator=generator) * 0.02
        parameter.data += drawn.to(parameter)
    return model, adapter


def passes(
    model: AnimaTransformer, adapter: Adapter, setting: Setting
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the velocity and the gradients of its mean square."""
    golden = {name: value.to(setting.device) for name, value in read_golden("a").items()}
    velocity = model(golden["latents"], golden["sigma"], golden["context"])
    loss = velocity.float().square().mean()
    trained = [each for name, each in adapter.named_parameters() if "llm_adapter" not in name]
    gradients = torch.autograd.grad(loss, trained, allow_unused=True)
    return velocity, [gradient for gradient in gradients if gradient is not None]


if __name__ == "__main__":
    run_part(measure)
