"""What a saved file says in Kohya's words: the ss_* facts that are options, and modelspec's texts.

What follows from the run itself is told there: see `runs.metadata`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from anima_pipe.kohya.no_network import OF_NETWORKS, trains_the_model
from anima_pipe.kohya.resolved import Resolved
from anima_pipe.plain_text import json_text
from anima_pipe.runs.settings.training import MetadataSettings
from anima_pipe.secrecy import redacted

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

WITHOUT_NETWORK: Final = {"network_module", *OF_NETWORKS}
"""Those that are not there where the model itself is trained."""

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


def metadata_settings(options: Resolved) -> MetadataSettings:
    """Return what saved files say of the options."""
    return MetadataSettings(
        facts={name: redacted(str(value)) for name, value in _facts(options).items()},
        spec={name: redacted(value) for name, value in _spec(options).items()},
        thumbnail=options.value("metadata_thumbnail"),
        minimal=options.value("no_metadata"),
    )


def _facts(options: Resolved) -> dict[str, object]:
    mirrored: dict[str, object] = {f"ss_{name}": None for name in MIRRORED}
    mirrored |= {f"ss_{name}": options.value(name) for name in MIRRORED if name in options.defaults}
    facts = {**NEVER, **mirrored, **_of_network(options), "ss_output_name": _own_name(options)}
    if not trains_the_model(options):
        return facts
    return {n: v for n, v in facts.items() if n.removeprefix("ss_") not in WITHOUT_NETWORK}


def _of_network(options: Resolved) -> dict[str, object]:
    alpha = options.value("network_alpha", unset=float(options.value("network_dim")))
    arguments = options.value("network_args", unset={})
    return {
        "ss_network_alpha": alpha,
        "ss_network_args": json_text(arguments),
    }


def _spec(options: Resolved) -> dict[str, str]:
    spec: dict[str, str | None] = {
        "title": options.value("metadata_title") or _own_name(options) or _untitled(options),
        "timestep_range": _timestep_range(options),
        **{name: options.value(f"metadata_{name}") for name in SPEC_TEXTS},
    }
    return {name: value for name, value in spec.items() if value is not None}


def _untitled(options: Resolved) -> str:
    return "model" if trains_the_model(options) else "adapter"


def _own_name(options: Resolved) -> str | None:
    """Return output_name, of which the last part alone if it leads to another folder."""
    name: str | None = options.value("output_name")
    return Path(name).name if name else None


def _timestep_range(options: Resolved) -> str | None:
    lowest, highest = options.value("min_timestep"), options.value("max_timestep")
    if lowest is None and highest is None:
        return None
    return f"{lowest or 0},{1000 if highest is None else highest}"
