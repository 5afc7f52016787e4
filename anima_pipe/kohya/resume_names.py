"""What a resumed run's resume_allow means: options by their names, and a state's own names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from anima_pipe.errors import ConfigError, did_you_mean
from anima_pipe.hooks.train_state import is_of
from anima_pipe.kohya.options import DATASET_GROUP, OPTIONS, find_option

_SUBJECTS: Final = {
    "max_train_epochs": ("max_train_steps",),
    "unet_lr": ("learning_rate",),
    "pretrained_model_name_or_path": ("base",),
    "qwen3": ("text_encoder",),
    "fp8_base_unet": ("fp8_base",),
    "network_dim": ("network_args.network_dim",),
    "network_alpha": ("network_args.network_alpha",),
    "network_dropout": ("network_args.dropout",),
    "train_norm": ("network_args.train_norm",),
    "train_llm_adapter": ("network_args.train_llm_adapter",),
    "lr_warmup_steps": ("lr_scheduler.warmup",),
    "lr_decay_steps": ("lr_scheduler.decay",),
    "lr_scheduler_num_cycles": ("lr_scheduler.num_cycles",),
    "lr_scheduler_power": ("lr_scheduler.power",),
    "lr_scheduler_min_lr_ratio": ("lr_scheduler.min_lr_ratio",),
    "lr_scheduler_timescale": ("lr_scheduler.timescale",),
    "lr_scheduler_type": ("lr_scheduler.class_name",),
    "lr_scheduler_args": ("lr_scheduler.arguments",),
    "gradient_accumulation_steps": ("batches_per_step",),
    "dataset_config": ("dataset",),
    "train_data_dir": ("dataset",),
    "reg_data_dir": ("dataset",),
    "in_json": ("dataset",),
    "cache_dtype": ("vae", "text_encoder"),
}
"""Options, and the names under which a state keeps what they say."""

_SUBJECTS_OF_GROUPS: Final = {
    DATASET_GROUP: ("dataset",),
    "Noise levels": ("objective.sigmas", "objective.loss.weighting"),
    "Noise and loss": ("objective.noise", "objective.loss"),
}
"""The same of whole groups, where no option is named above."""


def allowed_facts(given: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    """Return the facts that may differ from a state's, given what resume_allow lists.

    Args:
        given: Names of options, or a state's own; "objective" stands for "objective.shift" too. A
            fact of an option, such as "optimizer_args.weight_decay", need not be among the known.
        known: The names of the state's facts, and of those that only the run has.

    Raises:
        ConfigError: Nothing goes by one of the names.
    """
    names = list(known)
    return tuple(dict.fromkeys(fact for name in given for fact in _facts(name, names)))


def _facts(spelling: str, known: list[str]) -> tuple[str, ...]:
    option = find_option(spelling)
    if option is not None:
        of_group = _SUBJECTS_OF_GROUPS.get(option.group, ())
        return (spelling, *_SUBJECTS.get(option.name, of_group))
    of_option = find_option(spelling.partition(".")[0]) is not None
    if not of_option and not any(is_of(name, spelling) for name in known):
        names = [*known, *(row.name for row in OPTIONS)]
        raise ConfigError(
            f"resume_allow {spelling}: no option and nothing in the state is called so",
            f"{did_you_mean(spelling, names)}the error that refuses a state lists the names",
        )
    return (spelling,)
