"""ComfyUI's rules for adapter files: what it makes of every kind.

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

import re
from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet
from functools import cache
from typing import Final

import torch
from torch import Tensor

from anima_pipe.adapters.inject import walk
from anima_pipe.adapters.styles import PathIndex
from anima_pipe.errors import CheckpointError
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

OUR_NAMES: Final = {
    name: ours for pair in LORA_NAMES for name, ours in zip(pair, LORA_NAMES[1], strict=True)
}
"""Any name of B and A -> the one that all are compared by."""

LOHA_NAMES: Final = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")

LOKR_NAMES: Final = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")

BIAS_NAMES: Final = ("diff_b", "b_norm")

DIFFERENCE_NAMES: Final = ("diff", "w_norm", *BIAS_NAMES)

KNOWN_NAMES: Final = frozenset(
    ("alpha", "dora_scale", *sum(LORA_NAMES, ()), *LOHA_NAMES, *LOKR_NAMES, *DIFFERENCE_NAMES)
)

TOGETHER: Final = (
    *map(frozenset, LORA_NAMES),
    frozenset(LOHA_NAMES),
    frozenset(("lokr_w1_a", "lokr_w1_b")),
    frozenset(("lokr_w2_a", "lokr_w2_b")),
)
"""Tensors of one module that are of use together only."""

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
        For each module that is changed, its tensors by their names behind the module's, B and A
        of a LoRA as `lora_B.weight` and `lora_A.weight`.

    Raises:
        CheckpointError: ComfyUI would pass over a tensor: it has no rule for it, or no module; or
            it lacks one, or has it twice.
    """
    found, passed_over = read_by_comfyui(file_tensors, modules)
    for module, tensors in found.items():
        if "b_norm" in tensors and "w_norm" not in tensors:
            passed_over.append(f"{module}.b_norm")
    if passed_over:
        raise CheckpointError(
            f"ComfyUI would pass over {len(passed_over)} tensors: {', '.join(passed_over[:5])}",
            "use an adapter of this model, saved in style comfy or kohya",
        )
    return found


def read_by_comfyui(
    file_tensors: Tensors, modules: Collection[str]
) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """Return what ComfyUI finds of a file, and the keys that it passes over.

    Arguments and result are those of `tensors_by_module`.

    Raises:
        CheckpointError: A tensor lacks its partner, or is there twice.
    """
    owners = {key: module for module in modules for key in module_keys(module)}
    found: dict[str, dict[str, Tensor]] = {}
    passed_over: list[str] = []
    for key, tensor in file_tensors.items():
        name = next((name for name in KNOWN_NAMES if key.endswith(f".{name}")), "")
        module = owners.get(key.removesuffix(f".{name}"))
        if module is None:
            passed_over.append(key)
            continue
        tensors = found.setdefault(module, {})
        if OUR_NAMES.get(name, name) in tensors:
            raise CheckpointError(f"{key} is there under two names", _WHOLE)
        if name == "alpha" and tensor.numel() != 1:
            raise CheckpointError(f"{key} is not one number", _WHOLE)
        tensors[OUR_NAMES.get(name, name)] = tensor
    for module, tensors in found.items():
        if lacking := _lacking(tensors.keys()):
            raise CheckpointError(f"{module} lacks {', '.join(sorted(lacking))}", _WHOLE)
    return found, passed_over


def _lacking(names: AbstractSet[str]) -> set[str]:
    """Return the tensors without which the others of their module are of no use."""
    wanted = {name for group in TOGETHER if group & names for name in group}
    if names & set(LOKR_NAMES):
        sides = ("lokr_w1", "lokr_w2")
        wanted |= {side for side in sides if not any(name.startswith(side) for name in names)}
    return wanted - names


_WHOLE: Final = "use the file as its trainer wrote it"


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
        change = change * (tensors["alpha"].item() / rank)
    return _rescaled(weight, change, tensors["dora_scale"]) if "dora_scale" in tensors else change


def bias_change(bias: Tensor, tensors: Tensors) -> Tensor:
    """Return the change of a bias at strength 1, Float[out]; arguments as `weight_change`."""
    for name in BIAS_NAMES:
        if name in tensors:
            return tensors[name].to(bias.dtype)
    return torch.zeros_like(bias)


def parameter_change(name: str, parameter: Tensor, tensors: Tensors) -> Tensor:
    """Return the change at strength 1 of the parameter "weight" or "bias"; see `weight_change`."""
    return (weight_change if name == "weight" else bias_change)(parameter, tensors)


@cache
def anima_paths() -> PathIndex:
    """Return the names of all modules that an Anima of any usual depth has.

    A name in Kohya's style can only be undone by knowing them: its dots became underscores.
    """
    return PathIndex(anima_modules())


@cache
def anima_modules() -> frozenset[str]:
    """Return the names that `anima_paths` finds modules by."""
    paths = [path for path, _module in walk(AnimaTransformer(SMALLEST))]
    return frozenset(
        re.sub(r"(?<=\bblocks\.)0\b", str(block), path)
        for path in paths
        for block in range(DEEPEST)
    )


def changed_shapes(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the parameters that a module's tensors change, by name."""
    meta = {name: tensor.to("meta") for name, tensor in tensors.items()}
    product = _product(meta)
    found = {"weight": product[0]} if product is not None else {}
    for name in DIFFERENCE_NAMES:
        if name in meta:
            found["bias" if name in BIAS_NAMES else "weight"] = meta[name]
    return {name: tuple(tensor.shape) for name, tensor in found.items()}


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
    # ComfyUI computes in fp32; weights in float64 are for comparing, and change nothing else.
    return moved * (dora_scale / (norm + torch.finfo(torch.float32).eps)) - weight
