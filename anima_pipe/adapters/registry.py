"""The adapter kinds there are: how each is made, and how its tensors in a file are recognised."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from anima_pipe.adapters.delta import Delta
from anima_pipe.adapters.difference import DifferenceDelta
from anima_pipe.adapters.linear import OTHER_NAMES, DeltaConfig, LinearDelta
from anima_pipe.adapters.loha import LohaConfig, LohaDelta
from anima_pipe.adapters.lokr import LokrConfig, LokrDelta
from anima_pipe.adapters.lora import LoraDelta
from anima_pipe.adapters.norm import NormDelta
from anima_pipe.adapters.peft import EMBEDDING
from anima_pipe.adapters.pissa import PissaConfig
from anima_pipe.adapters.tlora import TloraConfig, TloraDelta
from anima_pipe.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One way to change a linear layer."""

    config: type[DeltaConfig]
    """Its settings."""
    delta: type[Delta]
    """Its tensors and their arithmetic."""
    other_names: Mapping[str, str] = field(default_factory=OTHER_NAMES.copy)
    """What other trainers call a setting -> what its field is called here."""


KINDS: Final = {
    "lora": Kind(config=PissaConfig, delta=LoraDelta),
    "lokr": Kind(
        config=LokrConfig,
        delta=LokrDelta,
        other_names={
            **OTHER_NAMES,
            "lokr_rank_dropout": "rank_dropout",
            "lokr_module_dropout": "module_dropout",
            "factor": "lokr_factor",
        },
    ),
    "loha": Kind(config=LohaConfig, delta=LohaDelta),
    # Behind "lora": in a file a T-LoRA is one.
    "tlora": Kind(
        config=TloraConfig,
        delta=TloraDelta,
        other_names={
            **OTHER_NAMES,
            "min_rank": "tlora_min_rank",
            "alpha_rank_scale": "tlora_exponent",
        },
    ),
}

FOREIGN_TENSORS: Final = {
    **dict.fromkeys(("hada_t1", "hada_t2"), "LoHa of a convolution (Tucker factors)"),
    **dict.fromkeys(("a1.weight", "a2.weight", "b1.weight", "b2.weight"), "GLoRA"),
    **dict.fromkeys(("oft_blocks", "oft_R.weight", "oft_r", "oft_diag"), "OFT"),
    **dict.fromkeys(("lora_E", "ranknum"), "AdaLoRA"),
    **dict.fromkeys(("vera_lambda_b", "vera_lambda_d"), "VeRA"),
    "boft_R": "BOFT",
    "ia3_l": "IA3",
    "lora_B.bias": "LoRA with a bias of its own (PEFT's lora_bias)",
    "lora_mid.weight": "LoRA of a convolution (Tucker factors)",
    "lokr_t2": "LoKr of a convolution (Tucker factors)",
    "set_weight": "a replaced weight (ComfyUI's set_weight)",
    "reshape_weight": "LoRA of a reshaped weight (ComfyUI's reshape_weight)",
}
"""Tensors of kinds that exist but cannot be trained here, so that an error can name them."""


def find_kind(name: str) -> Kind:
    """Return the kind of a name.

    Raises:
        ConfigError: There is none.
    """
    if name not in KINDS:
        raise ConfigError(f"unknown adapter kind {name!r}", f"use one of {', '.join(KINDS)}")
    return KINDS[name]


def kind_name(delta: Delta | type[Delta]) -> str:
    """Return a delta's kind by name; "norm" for a norm's, "diff" for a whole difference."""
    delta_class = delta if isinstance(delta, type) else type(delta)
    others: dict[str, type[Delta]] = {"norm": NormDelta, "diff": DifferenceDelta}
    classes = {name: kind.delta for name, kind in KINDS.items()} | others
    return next(name for name, each in classes.items() if issubclass(delta_class, each))


def kind_in_words(delta: Delta) -> str:
    """Return a delta's kind, and what stands beside it, for a message."""
    has_bias = "bias" in delta.shapes and isinstance(delta, LinearDelta)
    parts = {"DoRA": delta.has_dora, "a change of the bias": has_bias}
    found = [name for name, is_there in parts.items() if is_there]
    return kind_name(delta) + (f" with {' and '.join(found)}" if found else "")


def kind_names() -> tuple[str, ...]:
    """Return the names of all kinds, first those that a run can start with."""
    return (*KINDS, "norm", "diff")


def delta_classes() -> tuple[type[Delta], ...]:
    """Return every class of deltas, those of linear layers first."""
    return (*(kind.delta for kind in KINDS.values()), NormDelta, DifferenceDelta)


def delta_classes_of(tensor_names: Collection[str]) -> list[type[Delta]]:
    """Return the classes of delta whose own tensors are among those of one module in a file.

    More than one: kinds are mixed. None: there is nothing that a kind would be known by. A change
    of the bias goes with every kind, and makes a whole difference where it is alone.
    """
    own = {delta: set(delta.own_names) & set(tensor_names) for delta in delta_classes()}
    # A T-LoRA is a LoRA in a file, and behind it in the registry.
    firsts = {delta.own_names: delta for delta in reversed(own) if own[delta]}
    if not firsts and "diff_b" in tensor_names:
        return [DifferenceDelta]
    return [delta for delta in own if delta in firsts.values()]


def tensor_names_in_files() -> dict[str, str]:
    """Return every name that may stand behind a module's path in a file -> what we call it."""
    of_no_kind = ("alpha", *EMBEDDING, *FOREIGN_TENSORS)
    names = {name: name for name in of_no_kind}
    for delta in delta_classes():
        names |= {**{name: name for name in delta.tensor_names}, **delta.tensor_synonyms}
    return names
