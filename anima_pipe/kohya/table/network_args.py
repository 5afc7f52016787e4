"""The keys of network_args: what each one does, and which networks take it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

KIND_OF_NETWORK: Final[Mapping[str, str]] = {
    "networks.lora_anima": "lora",
    "networks.lokr_anima": "lokr",
    "networks.lokr": "lokr",
    "networks.loha": "loha",
    "networks.tlora_anima": "tlora",
}
"""network_module by Kohya and the seed, and the kind of adapter that it means."""

LYCORIS: Final = "lycoris.kohya"
"""LyCORIS's module for Kohya's scripts; its argument algo says the kind."""

NO_NETWORK: Final = "none"
"""The value of network_module with which the model itself is trained."""

EVERY_KIND: Final = ("lora", "lokr", "loha", "tlora")


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkArg:
    """One key of network_args."""

    name: str
    help: str
    """One sentence with unit and sensible range."""
    default: str
    """As a user would write it; empty: not set."""
    kinds: tuple[str, ...] = EVERY_KIND
    """Kinds of adapter that take it."""
    aliases: tuple[str, ...] = ()
    """What LyCORIS, PEFT or the seed call it."""
    by_lycoris: bool = True
    """Whether lycoris.kohya takes it, for these kinds."""

    @property
    def spellings(self) -> tuple[str, ...]:
        """The name and its aliases."""
        return (self.name, *self.aliases)

    @property
    def networks(self) -> tuple[str, ...]:
        """Values of network_module beside which it counts."""
        named = tuple(module for module, kind in KIND_OF_NETWORK.items() if kind in self.kinds)
        return (*named, LYCORIS) if self.by_lycoris else named


def _of_lycoris(name: str, help_text: str, default: str) -> NetworkArg:
    return NetworkArg(name=name, help=help_text, default=default, kinds=())


_NOT_IN_LYCORIS: Final = "true (false in lycoris.kohya)"

_TARGETS: Final = (
    NetworkArg(
        name="target_modules",
        help="Linear layers to train, such as self_attn,mlp.layer1 or re:REGEX; not set: those of "
        "attention and MLP.",
        default="",
    ),
    NetworkArg(
        name="include_patterns",
        help="Regular expressions of whole paths: linear layers to train besides.",
        default="",
    ),
    NetworkArg(
        name="exclude_patterns",
        help="Regular expressions of whole paths: layers and norms to leave alone.",
        default="",
    ),
    NetworkArg(name="train_norm", help="As the option train_norm.", default=_NOT_IN_LYCORIS),
    NetworkArg(
        name="train_bias",
        help="Train the biases of adapted layers too; of Anima's, the text adapter's mlp has some.",
        default="False",
    ),
    NetworkArg(
        name="train_llm_adapter", help="As the option train_llm_adapter.", default=_NOT_IN_LYCORIS
    ),
)

_RANKS_AND_RATES: Final = (
    NetworkArg(
        name="network_reg_dims",
        help="Ranks by module: REGEX=RANK,REGEX=RANK; 0 leaves a module alone.",
        default="",
    ),
    NetworkArg(
        name="network_reg_lrs",
        help="Learning rates by module: REGEX=RATE,REGEX=RATE.",
        default="",
    ),
    NetworkArg(name="norm_lr", help="Learning rate of the norms.", default=""),
    NetworkArg(
        name="loraplus_lr_ratio",
        help="LoRA+: one matrix of each pair learns so many times faster; 16 is the paper's.",
        default="",
    ),
    NetworkArg(
        name="loraplus_unet_lr_ratio",
        help="LoRA+ by Kohya's other name; wins over loraplus_lr_ratio.",
        default="",
    ),
)

_SHAPE: Final = (
    NetworkArg(
        name="rs_lora",
        help="Scale by alpha / sqrt(rank) instead of alpha / rank.",
        default="false",
        aliases=("use_rslora",),
    ),
    NetworkArg(
        name="dora",
        help="DoRA: the norms of the weight's rows or columns train apart.",
        default="false",
        aliases=("use_dora", "dora_wd", "weight_decompose"),
    ),
    NetworkArg(
        name="wd_on_output",
        help="For DoRA: a norm per row (output) of the weight; else per column.",
        default="true",
        aliases=("wd_on_out",),
    ),
    NetworkArg(
        name="pissa",
        help="PiSSA: start from the base's largest singular directions.",
        default="false",
        kinds=("lora",),
    ),
    NetworkArg(
        name="lokr_factor",
        help="The smaller part of each dimension, if it divides it; -1: as square as can be.",
        default="8 (-1 in networks.lokr and lycoris.kohya)",
        kinds=("lokr",),
        aliases=("factor",),
    ),
    NetworkArg(
        name="lokr_full_matrix",
        help="Neither factor is a product of thinner ones, and alpha has no effect.",
        default="false",
        kinds=("lokr",),
    ),
    NetworkArg(
        name="lokr_decompose_both",
        help="The small factor too is a product of thinner ones.",
        default="false",
        kinds=("lokr",),
    ),
    NetworkArg(
        name="tlora_min_rank",
        help="T-LoRA: ranks in use at the noisiest level, from 1 up to the rank.",
        default="1",
        kinds=("tlora",),
        aliases=("min_rank",),
        by_lycoris=False,
    ),
    NetworkArg(
        name="tlora_exponent",
        help="T-LoRA: above 1, the ranks in use fall faster with noise.",
        default="1",
        kinds=("tlora",),
        aliases=("alpha_rank_scale",),
        by_lycoris=False,
    ),
)

_DROPOUTS: Final = (
    NetworkArg(
        name="dropout",
        help="As network_dropout: share of inputs dropped in training, below 1.",
        default="0",
    ),
    NetworkArg(
        name="rank_dropout",
        help="Share of ranks, or of output rows in LoKr and LoHa, dropped in training, below 1.",
        default="0",
    ),
    NetworkArg(
        name="module_dropout",
        help="Share of passes in which a layer goes without its adapter, below 1.",
        default="0",
    ),
    NetworkArg(
        name="lokr_rank_dropout",
        help="The seed's name of rank_dropout.",
        default="0",
        kinds=("lokr",),
    ),
    NetworkArg(
        name="lokr_module_dropout",
        help="The seed's name of module_dropout.",
        default="0",
        kinds=("lokr",),
    ),
)

NETWORK_ARGS: Final[Mapping[str, NetworkArg]] = {
    row.name: row
    for row in (
        *_TARGETS,
        *_RANKS_AND_RATES,
        *_SHAPE,
        *_DROPOUTS,
        NetworkArg(name="verbose", help="List every module that is trained.", default="false"),
        _of_lycoris("algo", "Kind of adapter: lora (or locon), loha, lokr.", "lora"),
        _of_lycoris("preset", "LyCORIS's name of what is trained; full is all of Anima.", "full"),
        _of_lycoris("full_matrix", "LoKr: as lokr_full_matrix.", "false"),
        _of_lycoris("decompose_both", "LoKr: as lokr_decompose_both.", "false"),
    )
}
"""Every key, by its name; LyCORIS's own are those without a kind."""

NETWORK_ARG_BY_SPELLING: Final[Mapping[str, NetworkArg]] = {
    spelling: row for row in NETWORK_ARGS.values() for spelling in row.spellings
}
