"""The adapter kinds there are: how each is made, and how its tensors in a file are recognised."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from anima_pipe.adapters.delta import Delta
from anima_pipe.adapters.difference import DifferenceDelta
from anima_pipe.adapters.linear import OTHER_NAMES, DeltaConfig
from anima_pipe.adapters.loha import LohaConfig, LohaDelta
from anima_pipe.adapters.lokr import LokrConfig, LokrDelta
from anima_pipe.adapters.lora import LoraDelta
from anima_pipe.adapters.norm import NormDelta
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
    **dict.fromkeys(("hada_t1", "hada_t2"), "LoHa of a convolution"),
    **dict.fromkeys(("a1.weight", "a2.weight", "b1.weight", "b2.weight"), "GLoRA"),
    "oft_blocks": "OFT",
    "lora_mid.weight": "LoRA of a convolution",
    "lokr_t2": "LoKr of a convolution",
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


def kind_name(delta: Delta) -> str:
    """Return a delta's kind by name; "norm" for a norm's, "diff" for a whole difference."""
    others: dict[str, type[Delta]] = {"norm": NormDelta, "diff": DifferenceDelta}
    classes = {name: kind.delta for name, kind in KINDS.items()} | others
    return next(name for name, delta_class in classes.items() if isinstance(delta, delta_class))


def kind_in_words(delta: Delta) -> str:
    """Return a delta's kind, and whether it has DoRA, for a message."""
    return kind_name(delta) + (" with DoRA" if delta.has_dora else "")


def kind_names() -> tuple[str, ...]:
    """Return the names of all kinds, first those that a run can start with."""
    return (*KINDS, "norm", "diff")


def delta_classes() -> tuple[type[Delta], ...]:
    """Return every class of deltas, those of linear layers first."""
    return (*(kind.delta for kind in KINDS.values()), NormDelta, DifferenceDelta)


def delta_class_of(tensor_names: Collection[str]) -> type[Delta] | None:
    """Return the class of delta that a file's tensors of one module make up, or None."""
    for delta in delta_classes():
        if set(tensor_names) <= {"alpha", *delta.tensor_names}:
            return delta
    return None


def tensor_names_in_files() -> dict[str, str]:
    """Return every name that may stand behind a module's path in a file -> what we call it."""
    names = {"alpha": "alpha", **{name: name for name in FOREIGN_TENSORS}}
    for delta in delta_classes():
        names |= {**{name: name for name in delta.tensor_names}, **delta.tensor_synonyms}
    return names
