"""Time the two forms of LoKr and LoHa, by factors and as a whole, over tokens and shapes.

    python bench/adapter_forms.py [--tokens 64 128 256 512 1024] [--shapes 1024x1024 1024x4096]
        [--factors 4 8 16] [--ranks 4 8 16] [--dtype fp32] [--device cpu] [--rounds 5]

Printed is the time of a frozen layer's forward and backward pass beyond that of the layer alone, in
nanoseconds per thousand numbers of its weight, and which form is the faster. Where that changes is
what `lokr.merges` and `loha.merges` decide by. On a CPU it is processor time, least of the rounds.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from anima_pipe.adapters.frozen import (
    FrozenLinear,
    PlainLinear,
    lora_linear,
    merged_linear,
)
from anima_pipe.adapters.frozen_lokr import lokr_linear
from anima_pipe.adapters.loha import as_lora, hadamard
from anima_pipe.adapters.loha import merges as loha_merges
from anima_pipe.adapters.lokr import factorize
from anima_pipe.adapters.lokr import merges as lokr_merges
from anima_pipe.runtime import torch_dtype


def main() -> None:
    """Measure every combination and print a line for each."""
    options = read_options()
    print(f"{'form':<10}{'out x in':>12}{'tokens':>8}{'factors':>10}{'whole':>10}  faster  chosen")
    for shape in options.shapes:
        outputs, inputs = map(int, shape.split("x"))
        layer = nn.Linear(inputs, outputs, bias=False, device=options.device)
        layer = layer.to(torch_dtype(options.dtype)).requires_grad_(requires_grad=False)
        for factor in options.factors:
            measure_lokr(layer, factor, options)
        for rank in options.ranks:
            measure_loha(layer, rank, options)


def read_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 128, 256, 512, 1024])
    parser.add_argument("--shapes", nargs="+", default=["1024x1024", "4096x1024"])
    parser.add_argument("--factors", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def measure_lokr(layer: nn.Linear, factor: int, options: argparse.Namespace) -> None:
    """Compare the forms of a LoKr of whole factors."""
    base = PlainLinear(layer)
    (rows, inner_rows), (columns, inner_columns) = (
        factorize(size, factor) for size in layer.weight.shape
    )
    first, second = trained(rows, columns, layer), trained(inner_rows, inner_columns, layer)
    forms = [
        functools.partial(run_lokr, base, first, second, merged=merged) for merged in (False, True)
    ]
    for tokens in options.tokens:
        x = inputs(tokens, layer)
        compare(f"lokr {factor}", layer, x, forms, lokr_merges(x, first), options)


def measure_loha(layer: nn.Linear, rank: int, options: argparse.Namespace) -> None:
    """Compare the forms of a LoHa."""
    base = PlainLinear(layer)
    outputs, columns = layer.weight.shape
    factors = [trained(*size, layer) for size in [(outputs, rank), (rank, columns)] * 2]

    def by_factors(x: Tensor) -> Tensor:
        return lora_linear(x, base, *as_lora(factors), 1.0)

    def whole(x: Tensor) -> Tensor:
        return merged_linear(x, base, lambda *parts: hadamard(parts), factors)

    for tokens in options.tokens:
        x = inputs(tokens, layer)
        compare(f"loha {rank}", layer, x, [by_factors, whole], loha_merges(x, factors), options)


def run_lokr(
    base: FrozenLinear, first: Tensor, second: Tensor, x: Tensor, *, merged: bool
) -> Tensor:
    """Return a layer's output with a LoKr on it in one of the forms."""
    return lokr_linear(x, base, first, second, 1.0, merged=merged)


def compare(
    name: str,
    layer: nn.Linear,
    x: Tensor,
    forms: list[Callable[[Tensor], Tensor]],
    chosen: bool,
    options: argparse.Namespace,
) -> None:
    """Time the forms in turns and print what they take beyond the layer alone."""
    times: list[list[float]] = [[] for _form in range(3)]
    for _round in range(options.rounds):
        for number, form in enumerate([layer, *forms]):
            times[number].append(seconds(form, x))
    alone, *others = map(min, times)
    numbers = layer.weight.numel()
    factors, whole = ((taken - alone) / numbers * 1e12 for taken in others)
    faster, choice = ("whole" if merged else "factors" for merged in (whole < factors, chosen))
    shape = "{}x{}".format(*layer.weight.shape)
    tokens = x.shape[-2]
    print(f"{name:<10}{shape:>12}{tokens:>8}{factors:>10.0f}{whole:>10.0f}  {faster:<7} {choice}")


def seconds(form: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Return the time of one forward and backward pass."""
    started = now(x.device)
    output = form(x)
    output.backward(torch.ones_like(output))
    return now(x.device) - started


def now(device: torch.device) -> float:
    """Return the processor's time, or on a GPU that at which all work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def inputs(tokens: int, layer: nn.Linear) -> Tensor:
    """Return an input that needs a gradient, as within a model."""
    return torch.randn(1, tokens, layer.in_features).to(layer.weight).requires_grad_()


def trained(rows: int, columns: int, layer: nn.Linear) -> Tensor:
    """Return a factor."""
    return torch.randn(rows, columns, device=layer.weight.device).requires_grad_()


if __name__ == "__main__":
    main()
