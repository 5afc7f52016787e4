"""What a saved file says of its run: Kohya's ss_* facts and the modelspec.* of Stability AI.

Everything follows from the options, the dataset and the model's files, so that the same run writes
the same file: there are no times, and the session's number is a hash of all the rest. Of paths only
the last names are written.
"""

from __future__ import annotations

import base64
import hashlib
import json
import mimetypes
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from anima_pipe import __version__
from anima_pipe.adapters.headers import ARCHITECTURE, BASE_VERSION, SPEC_VERSION, model_facts
from anima_pipe.errors import ConfigError
from anima_pipe.kohya.dataset_metadata import dataset_facts
from anima_pipe.kohya.optimizer import optimizer_config
from anima_pipe.kohya.resolved import Resolved
from anima_pipe.kohya.settings import learning_rate
from anima_pipe.optimizing.optimizers import all_arguments, find_optimizer, load_class

if TYPE_CHECKING:
    from anima_pipe.dataset.batches import Batches
    from anima_pipe.dataset.survey import Survey
    from anima_pipe.runs.settings.training import TrainSettings

IMPLEMENTATION: Final = "https://huggingface.co/circlestone-labs/Anima"

MINIMAL: Final = (
    "ss_v2",
    "ss_base_model_version",
    "ss_network_module",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_network_args",
)
"""What Kohya writes beside --no_metadata."""

NEVER: Final = {
    "ss_v2": False,
    "ss_full_fp16": False,
    "ss_lowram": False,
    "ss_cache_latents": True,
    "ss_clip_skip": None,
    "ss_max_token_length": None,
    "ss_min_snr_gamma": None,
    "ss_zero_terminal_snr": False,
    "ss_debiased_estimation": False,
    "ss_adaptive_noise_scale": None,
    "ss_text_encoder_lr": None,
}
"""Facts of Kohya's list that are the same in every run here."""

MIRRORED: Final = [
    "network_module",
    "network_dim",
    "network_alpha",
    "network_dropout",
    "unet_lr",
    "max_train_epochs",
    "gradient_checkpointing",
    "gradient_accumulation_steps",
    "lr_warmup_steps",
    "lr_scheduler",
    "mixed_precision",
    "fp8_base",
    "fp8_base_unet",
    "noise_offset",
    "noise_offset_random_strength",
    "multires_noise_iterations",
    "multires_noise_discount",
    "ip_noise_gamma",
    "ip_noise_gamma_random_strength",
    "max_grad_norm",
    "caption_dropout_rate",
    "caption_dropout_every_n_epochs",
    "caption_tag_dropout_rate",
    "face_crop_aug_range",
    "prior_loss_weight",
    "scale_weight_norms",
    "ema_decay",
    "loss_type",
    "huber_c",
    "huber_scale",
    "huber_schedule",
    "weighting_scheme",
    "logit_mean",
    "logit_std",
    "mode_scale",
    "timestep_sampling",
    "sigmoid_scale",
    "discrete_flow_shift",
    "min_timestep",
    "max_timestep",
    "validation_seed",
    "validation_split",
    "resize_interpolation",
    "llm_adapter_lr",
    "self_attn_lr",
    "cross_attn_lr",
    "mlp_lr",
    "mod_lr",
    "training_comment",
]
"""Options whose values are facts under the same name.

Of Kohya's, when validation is due is left out: looking on changes nothing in the file.
"""

SPEC_TEXTS: Final = (
    "author",
    "description",
    "license",
    "tags",
    "usage_hint",
    "merged_from",
    "trigger_phrase",
    "preprocessor",
)
"""Fields of modelspec.* that the options metadata_* fill."""


def described(
    settings: TrainSettings, options: Resolved, survey: Survey, batches: Batches
) -> TrainSettings:
    """Return a run's settings with all that its saved files will say of it.

    Raises:
        ConfigError: The thumbnail cannot be read, or the optimizer's package is not installed.
        CheckpointError: A model file cannot be read.
    """
    steps = settings.length.total_steps(batches.windows_per_epoch())
    metadata = run_metadata(options, settings.seed, survey, batches, steps)
    return replace(settings, save=replace(settings.save, metadata=metadata))


def run_metadata(
    options: Resolved, seed: int, survey: Survey, batches: Batches, total_steps: int
) -> dict[str, str]:
    """Return the metadata of the files that a run saves.

    Args:
        options: Of the run.
        seed: That is trained with.
        survey: Its dataset.
        batches: Its supply of data.
        total_steps: Its length.

    Raises:
        ConfigError: The thumbnail cannot be read, or the optimizer's package is not installed.
        CheckpointError: A model file cannot be read.
    """
    network_args = options.value("network_args", unset={})
    mirrored = {f"ss_{name}": options.defaults.get(name) for name in MIRRORED}
    mirrored |= {f"ss_{name}": options.value(name) for name in MIRRORED if name in options.defaults}
    alpha = options.value("network_alpha", unset=float(options.value("network_dim")))
    per_epoch = batches.windows_per_epoch()
    facts: dict[str, object] = {
        **NEVER,
        **mirrored,
        "ss_network_alpha": alpha,
        "ss_base_model_version": BASE_VERSION,
        "ss_network_args": json.dumps(network_args, default=str),
        "ss_output_name": _own_name(options),
        "ss_learning_rate": learning_rate(options),
        "ss_optimizer": _optimizer(options),
        "ss_seed": seed,
        "ss_max_train_steps": total_steps,
        "ss_num_batches_per_epoch": batches.plan.batches_per_epoch(),
        "ss_num_epochs": -(-total_steps // per_epoch),
        "ss_total_batch_size": survey.datasets[0].batch_size * batches.window_size,
        **dataset_facts(survey),
        **model_facts("sd_model", options.value("pretrained_model_name_or_path")),
        **model_facts("llm_adapter", options.value("llm_adapter_path")),
        **model_facts("vae", options.value("vae")),
    }
    texts = {name: str(value) for name, value in facts.items()}
    if options.value("no_metadata"):
        return {name: texts[name] for name in MINIMAL}
    digest = hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()
    texts["ss_session_id"] = str(int(digest[:8], 16))
    return texts | _model_spec(options, survey)


def _optimizer(options: Resolved) -> str:
    """Return the optimizer as Kohya writes it: package.module.Class(argument=value,...)."""
    config = optimizer_config(options)
    found = load_class(find_optimizer(config.kind))
    listed = ",".join(f"{name}={value}" for name, value in all_arguments(config).items())
    return f"{found.__module__}.{found.__name__}" + (f"({listed})" if listed else "")


def _own_name(options: Resolved) -> str | None:
    """Return output_name, of which the last part alone if it leads to another folder."""
    name: str | None = options.value("output_name")
    return Path(name).name if name else None


def _model_spec(options: Resolved, survey: Survey) -> dict[str, str]:
    """Return the fields of modelspec.* that are known before the tensors are."""
    width, height = survey.datasets[0].buckets.resolution
    spec: dict[str, str | None] = {
        "sai_model_spec": SPEC_VERSION,
        "architecture": ARCHITECTURE,
        "implementation": IMPLEMENTATION,
        "implementation_version": f"anima-pipe/{__version__}",
        "title": options.value("metadata_title") or _own_name(options) or "adapter",
        "resolution": f"{width}x{height}",
        "timestep_range": _timestep_range(options),
        "thumbnail": _thumbnail(options.value("metadata_thumbnail")),
        **{name: options.value(f"metadata_{name}") for name in SPEC_TEXTS},
    }
    return {f"modelspec.{name}": value for name, value in spec.items() if value is not None}


def _timestep_range(options: Resolved) -> str | None:
    lowest, highest = options.value("min_timestep"), options.value("max_timestep")
    if lowest is None and highest is None:
        return None
    return f"{lowest or 0},{1000 if highest is None else highest}"


def _thumbnail(given: str | None) -> str | None:
    """Return a picture as the data URL that the specification wants.

    Raises:
        ConfigError: It is no picture's file.
    """
    if given is None or given.startswith("data:"):
        return given
    kind = mimetypes.guess_type(given)[0] or ""
    try:
        content = Path(given).expanduser().read_bytes()
    except OSError as error:
        raise ConfigError(
            f"metadata_thumbnail {given} cannot be read: {error.strerror}", "correct the path"
        ) from error
    if not kind.startswith("image/"):
        raise ConfigError(f"metadata_thumbnail {given} is no picture", "give a .jpg, .png or .webp")
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
