"""What a resumed run's resume_allow means: options by their names, and a state's own names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from anima_pipe.errors import ConfigError, did_you_mean
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


def allowed_names(given: Iterable[str], in_states: Iterable[str]) -> set[str]:
    """Return the names in a state that may differ, given what resume_allow lists.

    Args:
        given: Names of options, or a state's own; "objective" stands for "objective.shift" too.
        in_states: The names that the state and the run have.

    Raises:
        ConfigError: Nothing goes by one of the names.
    """
    known = list(in_states)
    return {name for spelling in given for name in _meant(spelling, known)}


def _meant(spelling: str, known: list[str]) -> Iterator[str]:
    option = find_option(spelling)
    subjects = (spelling,)
    if option is not None:
        of_group = _SUBJECTS_OF_GROUPS.get(option.group, ())
        subjects = (spelling, *_SUBJECTS.get(option.name, of_group))
    meant = [name for name in known if any(_is_of(name, subject) for subject in subjects)]
    if not meant and option is None:
        names = [*known, *(row.name for row in OPTIONS)]
        raise ConfigError(
            f"resume_allow {spelling}: no option and nothing in the state is called so",
            f"{did_you_mean(spelling, names)}the error that refuses a state lists the names",
        )
    yield from meant


def _is_of(name: str, subject: str) -> bool:
    return name == subject or name.startswith(f"{subject}.")
