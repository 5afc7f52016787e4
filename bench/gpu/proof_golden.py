"""The golden vectors on the card: velocities, gradients, conditions, samples, precisions."""

from __future__ import annotations

from itertools import pairwise

import torch
from golden_model import golden_transformer, read_golden

from anima_pipe.adapters.eight_bit import keep_in_eight_bits
from anima_pipe.model import BLOCK_LAYERS, AnimaTransformer
from gpu.differences import largest, plain_fp32
from gpu.results import Results
from gpu.setting import Setting, run_part

VALUES_WITHIN = 2e-5
GRADIENTS_WITHIN = 2e-4
"""In fp32, of numbers that another implementation computed on a processor."""
HALF_WITHIN = {torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""Of fp32's velocity, about four times what rounding comes to on a processor."""
EIGHT_BITS_WITHIN = 5e-2
"""Of the whole base's velocity."""

Golden = dict[str, torch.Tensor]


def measure(setting: Setting, results: Results) -> None:
    """Check the golden models; both, unless it is a rehearsal."""
    plain_fp32()
    for name in ("a",) if setting.small else ("a", "b"):
        golden = {key: value.to(setting.device) for key, value in read_golden(name).items()}
        model = golden_transformer(name).to(setting.device)
        with results.attempt(f"golden {name}: values"):
            check_values(name, model, golden, results)
        for checkpointed in (False, True):
            with results.attempt(f"golden {name}: gradients"):
                check_gradients(name, model, golden, results, checkpointed=checkpointed)
        with results.attempt(f"golden {name}: samples"):
            check_samples(name, model, golden, results)
        with results.attempt(f"golden {name}: precisions"):
            check_precisions(name, model, golden, results)


@torch.no_grad()
def check_values(name: str, model: AnimaTransformer, golden: Golden, results: Results) -> None:
    """Check condition and velocity."""
    condition = condition_of(model, golden)
    for what, actual in (
        ("condition", condition),
        ("velocity", model(golden["latents"], golden["sigma"], golden["context"])),
        ("velocity_full", model(golden["latents"], golden["sigma"], condition)),
    ):
        results.check(f"golden {name}: {what}", largest(actual, golden[what]), VALUES_WITHIN)


def condition_of(model: AnimaTransformer, golden: Golden) -> torch.Tensor:
    """Return the text condition, Float[B, 512, D]."""
    return model.preprocess_text_embeds(
        golden["qwen_hidden"], golden["t5_ids"], golden["qwen_mask"], golden["t5_mask"]
    )


def check_gradients(
    name: str, model: AnimaTransformer, golden: Golden, results: Results, *, checkpointed: bool
) -> None:
    """Check the loss and the gradients of the weights that are stored."""
    model.checkpoint_blocks(checkpointed)
    velocity = model(golden["latents"], golden["sigma"], golden["context"])
    loss = (velocity - golden["target"]).square().mean()
    parameters = dict(model.named_parameters())
    names = [key.removeprefix("grad.") for key in golden if key.startswith("grad.")]
    gradients = torch.autograd.grad(loss, [parameters[each] for each in names])
    model.checkpoint_blocks(enabled=False)
    how = ", checkpointed" if checkpointed else ""
    results.check(f"golden {name}: loss{how}", largest(loss, golden["loss"]), VALUES_WITHIN)
    worst = max(
        largest(gradient, golden[f"grad.{each}"])
        for each, gradient in zip(names, gradients, strict=True)
    )
    results.check(f"golden {name}: {len(names)} gradients{how}", worst, GRADIENTS_WITHIN)


@torch.no_grad()
def check_samples(name: str, model: AnimaTransformer, golden: Golden, results: Results) -> None:
    """Check ten Euler steps, with guidance and without."""
    positive, negative = golden["condition"][:1], golden["condition"][1:2]
    for cfg in (1, 4):
        latents = golden["sample_noise"]
        for sigma, following in pairwise(golden["sample_sigmas"]):
            towards = model(latents, sigma[None], positive)
            away = model(latents, sigma[None], negative)
            latents = latents + (following - sigma) * (away + cfg * (towards - away))
        error = largest(latents, golden[f"sample_cfg{cfg}"])
        results.check(f"golden {name}: ten steps, guidance {cfg}", error, GRADIENTS_WITHIN)


@torch.no_grad()
def check_precisions(name: str, model: AnimaTransformer, golden: Golden, results: Results) -> None:
    """Check how near the other precisions and the base in 8 bits come. It changes the model."""
    inputs = golden["latents"], golden["sigma"], golden["context"]
    for dtype, within in HALF_WITHIN.items():
        half = golden_transformer(name).to(golden["latents"].device, dtype)
        error = largest(half(*inputs), golden["velocity"])
        results.check(f"golden {name}: velocity in {dtype}".replace("torch.", ""), error, within)
    keep_in_eight_bits(model.requires_grad_(requires_grad=False), BLOCK_LAYERS)
    error = largest(model(*inputs), golden["velocity"])
    results.check(f"golden {name}: velocity on a base in 8 bits", error, EIGHT_BITS_WITHIN)


if __name__ == "__main__":
    run_part(measure)
