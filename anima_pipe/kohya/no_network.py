"""Options beside network_module = none, with which the model itself is trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from anima_pipe.kohya.findings import Finding
from anima_pipe.kohya.resolved import Resolved, Written
from anima_pipe.kohya.table.network_args import NO_NETWORK
from anima_pipe.kohya.values import is_blank, is_harmless

_NAME_A_NETWORK: Final = "remove it, or name a network in network_module"

OF_NETWORKS: Final = {
    "network_dim": _NAME_A_NETWORK,
    "network_alpha": _NAME_A_NETWORK,
    "network_dropout": _NAME_A_NETWORK,
    "network_args": _NAME_A_NETWORK,
    "network_weights": "name the checkpoint to start from in pretrained_model_name_or_path, or the "
    "adapters to be merged into it in base_weights",
    "dim_from_weights": _NAME_A_NETWORK,
    "train_norm": _NAME_A_NETWORK,
    "train_llm_adapter": "set llm_adapter_lr = 0 to leave the text adapter as it is",
    "scale_weight_norms": _NAME_A_NETWORK,
    "measure_leakage": "remove it: what an adapter changed is seen by switching it off; "
    "validation_split measures a model, too",
    "save_format": "remove it: a checkpoint has the names of the released ones; export-comfy "
    "writes it in others",
}
"""Options that say something of an adapter alone, and what to do instead."""

_SAVE_OTHERWISE: Final = "remove it; optimizer_type AdamW8bit and full_bf16 save memory"

OF_FROZEN_WEIGHTS: Final = {"fp8_base": _SAVE_OTHERWISE, "fp8_base_unet": _SAVE_OTHERWISE}
"""The same of options that say how weights are kept that do not train."""


def trains_the_model(options: Resolved) -> bool:
    """Tell whether the model itself is trained."""
    return options.defaults.get("network_module") is not None and (
        options.value("network_module") == NO_NETWORK
    )


def no_network_findings(options: Resolved) -> Iterator[Finding]:
    """Yield what asks for something that is not there without an adapter."""
    if not trains_the_model(options):
        return
    subjects = (("of an adapter", OF_NETWORKS), ("of frozen weights", OF_FROZEN_WEIGHTS))
    for subject, names in subjects:
        for item in map(options.written.get, names):
            if item and not _asks_nothing(item):
                yield Finding(
                    place=item.place,
                    problem=f"{item.spelling} = {item.given} says something {subject}, and "
                    f"network_module is {NO_NETWORK}",
                    remedy=names[item.option.name],
                )


def _asks_nothing(item: Written) -> bool:
    """Tell whether nothing is asked for: it is not set, or switches nothing."""
    is_switch = isinstance(item.value, bool) or bool(item.option.choices)
    return is_blank(item.value) or (is_switch and is_harmless(item.option, item.value))
