"""PEFT's adapters: their folders, the scales that their configuration states, their own tensors.

PEFT's tensors have no scale. It stands in a file of configuration beside them, or, where diffusers
wrote the file, in its header. Here a module's scale is its alpha, as all other programs state it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from anima_pipe.errors import CheckpointError
from anima_pipe.plain_text import parsed_json
from anima_pipe.runtime import warn

PREFIX: Final = "base_model.model."
"""What PEFT writes before every module."""
CONFIG_NAME: Final = "adapter_config.json"
WEIGHTS_NAMES: Final = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
"""The file of a folder that PEFT wrote, or diffusers."""
HEADER_KEY: Final = "lora_adapter_metadata"
"""Where diffusers' files state PEFT's configuration: JSON, in keys with or without a component."""
COMPONENTS: Final = ("transformer.", "text_conditioner.")
"""Parts of diffusers' pipeline, as they stand before its modules and before keys in the header."""

MAGNITUDE: Final = "lora_magnitude_vector"
"""The norms of DoRA, Float[out]: of the rows of the changed weight, where ComfyUI's are those of
the base's rows. Of an embedding they are of the columns, as ComfyUI's per column are."""
EMBEDDING: Final = ("lora_embedding_A", "lora_embedding_B")
"""LoRA's factors of an embedding, transposed: Float[r, rows] and Float[width, r]."""

_RANK_ROWS: Final = ("lora_A.weight", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")
"""Tensors whose rows are the rank, the first that is there."""

_BASE_CHANGED: Final = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Values of init_lora_weights, or their beginnings, under which PEFT changes the base too."""
_OTHER_ARITHMETIC: Final = (
    *("use_qalora", "use_bdlora", "alora_invocation_tokens"),
    *("arrow_config", "kasa_config", "layer_replication"),
)
"""Settings of PEFT's under which a LoRA's tensors mean something else."""

_RESAVE: Final = "save it again from PEFT, or use the adapter's folder as PEFT wrote it"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeftConfig:
    """What PEFT's configuration says of scales."""

    source: str
    """Where it stands, for messages."""
    rank: int
    alpha: float
    rs_lora: bool = False
    """Whether the change is multiplied by alpha / sqrt(rank), and not by alpha / rank."""
    ranks: Mapping[str, int] = field(default_factory=dict[str, int])
    """By the end of a module's name, a regular expression; the first that fits counts."""
    alphas: Mapping[str, float] = field(default_factory=dict[str, float])

    def rank_of(self, module: str) -> int:
        """Return the rank of a module, by its name without prefixes."""
        pattern = self._fitting(self.ranks, module)
        return self.rank if pattern is None else self.ranks[pattern]

    def scale_of(self, module: str) -> float:
        """Return what a module's change is multiplied by."""
        pattern, rank = self._fitting(self.alphas, module), self.rank_of(module)
        alpha = self.alpha if pattern is None else self.alphas[pattern]
        return alpha / (math.sqrt(rank) if self.rs_lora else rank)

    def _fitting(self, patterns: Iterable[str], module: str) -> str | None:
        """Return the first pattern that is the end of a module's name, as PEFT looks for it."""
        try:
            return next((p for p in patterns if re.match(rf"(.*\.)?({p})$", module)), None)
        except re.error as error:
            raise CheckpointError(
                f"{self.source}: {error.pattern!r} is no regular expression", _RESAVE
            ) from error


def adapter_file_in(path: Path) -> Path:
    """Return the adapter's file: the path itself, or what PEFT or diffusers wrote in a folder.

    Raises:
        CheckpointError: It is a folder without one.
    """
    if not path.is_dir():
        return path
    found = [path / name for name in WEIGHTS_NAMES if (path / name).is_file()]
    if found:
        return found[0]
    if (path / "adapter_model.bin").is_file():
        raise CheckpointError(
            f"{path} holds adapter_model.bin, which may run code when it is read",
            "save it from PEFT with safe_serialization=True",
        )
    raise CheckpointError(
        f"{path} is a folder without {WEIGHTS_NAMES[0]}", "give an adapter's file, or PEFT's folder"
    )


def with_scales(
    path: Path, modules: Mapping[str, Mapping[str, Tensor]], header: Mapping[str, str]
) -> dict[str, dict[str, Tensor]]:
    """Return a file's tensors with an alpha for each module whose scale is stated elsewhere.

    Args:
        path: The file; PEFT's configuration is looked for beside it.
        modules: What the file calls a module -> its tensors by our names.
        header: The file's own metadata.

    Raises:
        CheckpointError: The configuration cannot be read, or is of something else.
    """
    is_pefts = any(module.startswith(PREFIX) for module in modules)
    configs = _header_configs(path, header)
    beside = path.with_name(CONFIG_NAME)
    if not configs and beside.is_file() and (is_pefts or path.name == WEIGHTS_NAMES[0]):
        configs = {"": _parsed(str(beside), _read_text(beside))}
    scaled = {module: _as_ours(tensors) for module, tensors in modules.items()}
    unstated = [m for m, tensors in scaled.items() if "alpha" not in tensors and _factors(tensors)]
    for module in unstated:
        config = next((c for start, c in configs.items() if module.startswith(start)), None)
        if config is not None:
            scaled[module] = _scaled(scaled[module], config, module)
    if is_pefts and unstated and not configs:
        warn(
            f"{path} states no scale of {len(unstated)} modules, and there is no {CONFIG_NAME} "
            "beside it: scale 1 was assumed, as of an alpha that is the rank"
        )
    return scaled


def _as_ours(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a module's tensors as those of a linear layer would be, where they are an embedding's.

    A table (rows, width) is a weight (out, in): up is Float[rows, r], down is Float[r, width].
    """
    if not all(name in tensors for name in EMBEDDING):
        return dict(tensors)
    first, second = (tensors[name] for name in EMBEDDING)
    others = {name: t for name, t in tensors.items() if name not in (*EMBEDDING, MAGNITUDE)}
    dora = {"dora_scale": tensors[MAGNITUDE].unsqueeze(0)} if MAGNITUDE in tensors else {}
    factors = {"lora_A.weight": second.T.contiguous(), "lora_B.weight": first.T.contiguous()}
    return {**others, **factors, **dora}


def _factors(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors whose product is scaled."""
    return [name for name in tensors if name.startswith(("lora_", "hada_", "lokr_"))]


def _scaled(tensors: Mapping[str, Tensor], config: PeftConfig, module: str) -> dict[str, Tensor]:
    """Return a module's tensors with the alpha that makes its scale."""
    name = module.removeprefix(PREFIX)
    for component in COMPONENTS:
        name = name.removeprefix(component)
    scale = config.scale_of(name)
    rank = next((tensors[n].shape[0] for n in _RANK_ROWS if n in tensors), None)
    if rank is None:
        # Of two whole factors every program takes a scale of 1, whatever alpha says.
        whole = {name: t.float() * scale for name, t in tensors.items() if name == "lokr_w1"}
        return {**tensors, **whole}
    if rank != config.rank_of(name):
        raise CheckpointError(
            f"{config.source} says rank {config.rank_of(name)} of {module}, whose tensors have "
            f"{rank}",
            "put the adapter_config.json beside it that it was saved with",
        )
    return {**tensors, "alpha": torch.tensor(scale * rank, dtype=torch.float32)}


def _header_configs(path: Path, header: Mapping[str, str]) -> dict[str, PeftConfig]:
    """Return the configurations in a file's header, by what stands before the modules of each."""
    if HEADER_KEY not in header:
        return {}
    source = f"{path}: {HEADER_KEY} in its header"
    values = _json_object(source, header[HEADER_KEY])
    if "r" in values:
        return {"": _config(source, values)}
    by_component = {
        start: {key.removeprefix(start): v for key, v in values.items() if key.startswith(start)}
        for start in COMPONENTS
    }
    return {start: _config(source, found) for start, found in by_component.items() if found}


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}", _RESAVE) from error


def _parsed(source: str, text: str) -> PeftConfig:
    """Return a configuration from the text of its file."""
    return _config(source, _json_object(source, text))


def _json_object(source: str, text: str) -> dict[str, Any]:
    try:
        values = parsed_json(text)
    except ValueError as error:
        raise CheckpointError(f"{source} is not JSON: {error}", _RESAVE) from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{source} is no JSON object", _RESAVE)
    return values


def _config(source: str, values: Mapping[str, Any]) -> PeftConfig:
    """Return what a configuration's values say.

    Raises:
        CheckpointError: It is of a kind unknown here, or of a base that PEFT changed too.
    """
    kind = values.get("peft_type", "LORA")
    if kind not in ("LORA", "LOHA", "LOKR"):
        raise CheckpointError(
            f"{source} says peft_type {kind}", "only PEFT's LORA, LOHA and LOKR can be used here"
        )
    start = values.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_BASE_CHANGED):
        raise CheckpointError(
            f"{source} says init_lora_weights {start}: PEFT changed the base that it goes with",
            "convert it when saving from PEFT: path_initial_model_for_weight_conversion",
        )
    if other := [name for name in _OTHER_ARITHMETIC if values.get(name)]:
        raise CheckpointError(
            f"{source} sets {', '.join(other)}", "only plain LoRA and its DoRA can be used here"
        )
    try:
        config = PeftConfig(
            source=source,
            rank=int(values["r"]),
            alpha=float(values["lora_alpha" if kind == "LORA" else "alpha"]),
            rs_lora=bool(values.get("use_rslora")),
            ranks={p: int(rank) for p, rank in (values.get("rank_pattern") or {}).items()},
            alphas={p: float(a) for p, a in (values.get("alpha_pattern") or {}).items()},
        )
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{source} states no scale: {error!r}", _RESAVE) from error
    if bad := [rank for rank in (config.rank, *config.ranks.values()) if rank < 1]:
        raise CheckpointError(f"{source} states a rank of {bad[0]}", _RESAVE)
    if bad := [a for a in (config.alpha, *config.alphas.values()) if not math.isfinite(a)]:
        raise CheckpointError(f"{source} states an alpha of {bad[0]}", _RESAVE)
    return config
