"""ComfyUI's rules for adapter files: what it makes of every kind, and the proof that ours obey.

Written from ComfyUI's published behaviour and apart from `adapters`, so that each checks the
other. W is a weight, a a module's alpha; a / r is 1 where there is no alpha:

    LoRA        D = a/r B A                            r rows of A
    LoHa        D = a/r (w1_a w1_b) * (w2_a w2_b)      r rows of w1_b
    LoKr        D = a/r kron(w1, w2)                   r rows of w2_b, or else of w1_b; with neither
                                                       there, a/r is 1 whatever alpha says
    DoRA        D' = (W + D) dora_scale / norm - W     D of one of the above; norm of the rows of W
                                                       for a dora_scale (out, 1), of the columns of
                                                       W + D for one of (1, in)
    difference  D = diff or w_norm; for the bias diff_b or b_norm

The patched weight is W + strength D, computed in fp32 and rounded once.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file
from torch import Tensor

from anima_pipe.adapters.delta import Delta
from anima_pipe.adapters.files import deltas_of, read_adapter_file, write_deltas
from anima_pipe.adapters.inject import walk
from anima_pipe.adapters.styles import PathIndex
from anima_pipe.errors import CheckpointError
from anima_pipe.files import published
from anima_pipe.model import AnimaTransformer, LlmAdapterConfig, TransformerConfig

Tensors = Mapping[str, Tensor]

MODEL_PREFIX: Final = "diffusion_model."
UNDERSCORED_PREFIX: Final = "lora_unet_"

LORA_NAMES: Final = (
    ("lora_up.weight", "lora_down.weight"),
    ("lora_B.weight", "lora_A.weight"),
    ("lora.up.weight", "lora.down.weight"),
    ("lora_B.default.weight", "lora_A.default.weight"),
)
"""What files call B and A."""

LOHA_NAMES: Final = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")

LOKR_NAMES: Final = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")

DIFFERENCE_NAMES: Final = ("diff", "w_norm", "diff_b", "b_norm")

KNOWN_NAMES: Final = frozenset(
    ("alpha", "dora_scale", *sum(LORA_NAMES, ()), *LOHA_NAMES, *LOKR_NAMES, *DIFFERENCE_NAMES)
)

DEEPEST: Final = 128
"""Blocks that a file may speak of when there is no model to ask; models with 52 are known."""

SMALLEST: Final = TransformerConfig(
    width=12,
    blocks=1,
    head_width=12,
    context_width=2,
    adaln_width=1,
    mlp_width=1,
    llm_adapter=LlmAdapterConfig(
        source_width=2,
        width=2,
        output_width=2,
        blocks=1,
        head_width=2,
        mlp_width=1,
        vocabulary=1,
        in_proj=True,
    ),
)
"""A model built for its modules' names alone."""

TOLERANCES: Final = {torch.float32: 1e-5, torch.float16: 8e-3, torch.bfloat16: 6e-2}
"""Largest difference that saving in a dtype explains, relative to the layer's largest change:
eight of its rounding steps, for a change is a sum of products of rounded numbers."""


def apply_adapter(
    file_tensors: Tensors, weights: Tensors, strength: float = 1.0
) -> dict[str, Tensor]:
    """Return weights with an adapter applied as ComfyUI applies it.

    Args:
        file_tensors: An adapter file's tensors by their keys, which begin with
            `diffusion_model.<path>.` or `lora_unet_<path with _>.`.
        weights: Parameters by checkpoint name, `diffusion_model.` before it or not.
        strength: As set in ComfyUI's LoRA node.

    Returns:
        All the weights, by the names given, in their dtypes.

    Raises:
        CheckpointError: ComfyUI would pass over a tensor of the file.
    """
    patched = dict(weights)
    modules = {name.rpartition(".")[0] for name in weights}
    for module, tensors in tensors_by_module(file_tensors, modules).items():
        for parameter, change in (("weight", weight_change), ("bias", bias_change)):
            name = f"{module}.{parameter}"
            if name in weights:
                base = weights[name].to(torch.promote_types(weights[name].dtype, torch.float32))
                patched[name] = (base + strength * change(base, tensors)).to(weights[name].dtype)
    return patched


def tensors_by_module(
    file_tensors: Tensors, modules: Collection[str]
) -> dict[str, dict[str, Tensor]]:
    """Sort a file's tensors by the modules that they change.

    Args:
        file_tensors: By key.
        modules: Checkpoint names of modules, `diffusion_model.` before them or not.

    Returns:
        For each module that is changed, its tensors by their names behind the module's.

    Raises:
        CheckpointError: ComfyUI would pass over a tensor: it has no rule for it, or no module.
    """
    owners = {key: module for module in modules for key in module_keys(module)}
    found: dict[str, dict[str, Tensor]] = {}
    passed_over: list[str] = []
    for key, tensor in file_tensors.items():
        name = next((name for name in KNOWN_NAMES if key.endswith(f".{name}")), "")
        module = owners.get(key.removesuffix(f".{name}"))
        if module is None:
            passed_over.append(key)
        else:
            found.setdefault(module, {})[name] = tensor
    for module, tensors in found.items():
        if "b_norm" in tensors and "w_norm" not in tensors:
            passed_over.append(f"{module}.b_norm")
    if passed_over:
        raise CheckpointError(
            f"ComfyUI would pass over {len(passed_over)} tensors: {', '.join(passed_over[:5])}",
            "use an adapter of this model, saved in style comfy or kohya",
        )
    return found


def module_keys(module: str) -> tuple[str, str]:
    """Return the two names that ComfyUI knows a module by in an adapter file."""
    path = module.removeprefix(MODEL_PREFIX)
    return f"{MODEL_PREFIX}{path}", f"{UNDERSCORED_PREFIX}{path.replace('.', '_')}"


def weight_change(weight: Tensor, tensors: Tensors) -> Tensor:
    """Return the change of a weight at strength 1.

    Args:
        weight: Float[out, in] or Float[n]; its dtype is computed in.
        tensors: Those of its module, by their names behind the module's.

    Returns:
        In weight's shape and dtype.
    """
    tensors = {name: tensor.to(weight.dtype) for name, tensor in tensors.items()}
    for name in ("diff", "w_norm"):
        if name in tensors:
            return tensors[name]
    product = _product(tensors)
    if product is None:
        return torch.zeros_like(weight)
    change, rank = product
    if rank is not None and "alpha" in tensors:
        change = change * (tensors["alpha"] / rank)
    return _rescaled(weight, change, tensors["dora_scale"]) if "dora_scale" in tensors else change


def bias_change(bias: Tensor, tensors: Tensors) -> Tensor:
    """Return the change of a bias at strength 1, Float[out]; arguments as `weight_change`."""
    for name in ("diff_b", "b_norm"):
        if name in tensors:
            return tensors[name].to(bias.dtype)
    return torch.zeros_like(bias)


def parameter_change(name: str, parameter: Tensor, tensors: Tensors) -> Tensor:
    """Return the change at strength 1 of the parameter "weight" or "bias"; see `weight_change`."""
    return (weight_change if name == "weight" else bias_change)(parameter, tensors)


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """A file that was written, and how far it is from what was trained."""

    path: Path
    keys: int
    """Tensors in the file."""
    largest_difference: float
    """See `verify_export`."""


def export_adapter(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    style: str = "comfy",
    dtype: torch.dtype | None = None,
    *,
    drop_norms: bool = False,
    allow_unmatched: bool = False,
) -> Export:
    """Write an adapter file anew in another style or dtype; no model is needed.

    The file is verified before it gets its name.

    Args:
        source: An adapter file of any style.
        target: The file to write.
        style: "comfy", "kohya" or "diffusers".
        dtype: Of the trained tensors; None: as in the source.
        drop_norms: Leave the norms out, for a style that cannot express them.
        allow_unmatched: Leave out, with a warning, what of the source matches nothing.

    Raises:
        CheckpointError: The source cannot be read, or the target fails its verification.
        ConfigError: The style cannot express something.
        OutputError: The target cannot be written.
    """
    file = read_adapter_file(source, allow_unmatched=allow_unmatched)
    deltas = deltas_of(file, anima_paths())
    if drop_norms:
        deltas = {module: delta for module, delta in deltas.items() if delta.group != "norm"}
    return write_verified(deltas, target, style, dtype or file.dtype, file.metadata)


def write_verified(
    deltas: Mapping[str, Delta],
    target: str | os.PathLike[str],
    style: str,
    dtype: torch.dtype | None,
    metadata: Mapping[str, str],
) -> Export:
    """Write deltas to a file that gets its name when it is verified; see `write_deltas`.

    Raises:
        CheckpointError: It fails its verification.
        ConfigError: The style cannot express something.
        OutputError: It cannot be written.
    """
    with published(Path(target)) as unfinished:
        write_deltas(deltas, unfinished, style, dtype, metadata)
        difference = verify_export(unfinished, deltas)
        keys = len(load_file(unfinished))
    return Export(path=Path(target), keys=keys, largest_difference=difference)


@cache
def anima_paths() -> PathIndex:
    """Return the names of all modules that an Anima of any usual depth has.

    A name in Kohya's style can only be undone by knowing them: its dots became underscores.
    """
    paths = [path for path, _module in walk(AnimaTransformer(SMALLEST))]
    return PathIndex(
        re.sub(r"(?<=\bblocks\.)0\b", str(block), path)
        for path in paths
        for block in range(DEEPEST)
    )


def verify_export(path: str | os.PathLike[str], deltas: Mapping[str, Delta]) -> float:
    """Compare a file, applied by ComfyUI's rules, with the change that was trained.

    One layer's change is in memory at a time. It is compared without the weight that it is added
    to, whose rounding would hide a difference.

    Args:
        path: The file, of style comfy, kohya or diffusers.
        deltas: What was trained, by module path: `Adapter.deltas`.

    Returns:
        The largest difference of all layers, relative to the largest change of its layer.

    Raises:
        CheckpointError: It is more than rounding, or ComfyUI would pass over a tensor.
    """
    file_tensors = load_file(path)
    by_module = tensors_by_module(file_tensors, deltas.keys())
    errors = {
        module: change_error(delta, by_module.get(module, {})) for module, delta in deltas.items()
    }
    module = max(errors, key=lambda module: errors[module])
    dtypes = {tensor.dtype for tensor in file_tensors.values()}
    if errors[module] > max(TOLERANCES.get(dtype, 0.0) for dtype in dtypes):
        raise CheckpointError(
            f"{path}: the change of {module} is off by {errors[module]:.1e} of its size",
            "do not use the file; report this with the command that wrote it",
        )
    return errors[module]


@torch.no_grad()
def change_error(delta: Delta, tensors: Tensors) -> float:
    """Return the difference between a delta and what a file says of its module.

    Returns:
        The largest difference, relative to the largest element of the delta's change; infinite if
        there is one although the delta changes nothing.
    """
    zeros = {name: torch.zeros(()).expand(shape) for name, shape in delta.shapes.items()}
    error = 0.0
    for name, trained in delta.weight_changes(zeros).items():
        filed = parameter_change(name, zeros[name], tensors)
        largest = _largest(trained)
        difference = _largest(filed - trained.cpu())
        error = max(error, difference / largest if largest else difference and math.inf)
    return error


def _largest(tensor: Tensor) -> float:
    """Return the largest magnitude in a tensor, without a copy of it."""
    low, high = torch.aminmax(tensor)
    return max(-low.item(), high.item())


def _product(tensors: Tensors) -> tuple[Tensor, int | None] | None:
    """Return the change that a module's factors make, and what alpha is divided by, if heeded."""
    for up, down in LORA_NAMES:
        if up in tensors:
            return tensors[up] @ tensors[down], tensors[down].shape[0]
    if LOHA_NAMES[0] in tensors:
        first, second, third, fourth = (tensors[name] for name in LOHA_NAMES)
        return (first @ second) * (third @ fourth), second.shape[0]
    if any(name in tensors for name in LOKR_NAMES):
        return _kronecker(tensors)
    return None


def _kronecker(tensors: Tensors) -> tuple[Tensor, int | None]:
    """Return a LoKr's product, and what alpha is divided by: None if both factors are direct."""
    rank: int | None = None
    factors: list[Tensor] = []
    for name in ("lokr_w1", "lokr_w2"):
        if name in tensors:
            factors.append(tensors[name])
        else:
            second = tensors[f"{name}_b"]
            factors.append(tensors[f"{name}_a"] @ second)
            rank = second.shape[0]
    return torch.kron(*factors), rank


def _rescaled(weight: Tensor, change: Tensor, dora_scale: Tensor) -> Tensor:
    """Return DoRA's change: what brings weight and change to the norms of `dora_scale`."""
    moved = weight + change
    by_row = dora_scale.shape[0] == weight.shape[0]
    norm = weight.norm(dim=1, keepdim=True) if by_row else moved.norm(dim=0, keepdim=True)
    return moved * (dora_scale / (norm + torch.finfo(weight.dtype).eps)) - weight
