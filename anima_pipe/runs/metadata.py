"""What a saved file says of its run: Kohya's ss_* facts and the modelspec.* of Stability AI.

Everything follows from the settings, the dataset and the model's files, so that the same run writes
the same file: there are no times, and the session's number is a hash of all the rest. Of paths only
the last names are written.
"""

from __future__ import annotations

import base64
import hashlib
import json
import mimetypes
from pathlib import Path
from typing import Final

from anima_pipe import __version__
from anima_pipe.adapters.headers import (
    BASE_VERSION,
    SPEC_VERSION,
    model_facts,
)
from anima_pipe.dataset.batches import Batches
from anima_pipe.dataset.survey import Survey
from anima_pipe.errors import ConfigError
from anima_pipe.files import read_small
from anima_pipe.optimizing.optimizers import (
    OptimizerConfig,
    all_arguments,
    find_optimizer,
    load_class,
)
from anima_pipe.runs.dataset_metadata import dataset_facts
from anima_pipe.runs.settings.training import TrainSettings
from anima_pipe.runs.ways import way_of

IMPLEMENTATION: Final = "https://huggingface.co/circlestone-labs/Anima"

MOST_THUMBNAIL_BYTES: Final = 32 * 2**20
"""Readers of safetensors refuse headers of more than 100 MB."""

MINIMAL: Final = (
    "ss_v2",
    "ss_base_model_version",
    "ss_network_module",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_network_args",
)
"""What Kohya writes beside --no_metadata."""


def run_metadata(
    settings: TrainSettings, seed: int, survey: Survey, batches: Batches
) -> dict[str, str]:
    """Return the metadata of the files that a run saves.

    Args:
        settings: Of the run.
        seed: That is trained with.
        survey: Its dataset.
        batches: Its supply of data.

    Raises:
        ConfigError: The thumbnail cannot be read, or the optimizer's package is not installed.
        CheckpointError: A model file cannot be read.
    """
    facts = _run_facts(settings, seed, survey, batches)
    texts = {name: str(value) for name, value in facts.items()} | dict(settings.metadata.facts)
    if settings.metadata.minimal:
        return {name: texts[name] for name in MINIMAL if name in texts}
    digest = hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()
    texts["ss_session_id"] = str(int(digest[:8], 16))
    return texts | _model_spec(settings, survey)


def _run_facts(
    settings: TrainSettings, seed: int, survey: Survey, batches: Batches
) -> dict[str, object]:
    """Return what is known of a run, however it was asked for."""
    model = settings.model
    per_epoch = batches.windows_per_epoch()
    return {
        "ss_base_model_version": BASE_VERSION,
        **way_of(settings).file_facts(),
        "ss_output_name": settings.save.name,
        "ss_learning_rate": settings.learning_rate,
        "ss_lr_scheduler": settings.schedule.lr_scheduler,
        "ss_optimizer": _optimizer(settings.optimizer),
        "ss_mixed_precision": model.mixed_precision,
        "ss_gradient_checkpointing": model.gradient_checkpointing,
        "ss_gradient_accumulation_steps": settings.length.gradient_accumulation_steps,
        "ss_max_grad_norm": settings.max_grad_norm,
        "ss_seed": seed,
        "ss_max_train_steps": settings.length.total_steps(per_epoch),
        "ss_num_batches_per_epoch": batches.plan.batches_per_epoch(),
        "ss_num_epochs": settings.length.total_epochs(per_epoch),
        "ss_total_batch_size": survey.datasets[0].batch_size * batches.window_size,
        **dataset_facts(survey),
        **model_facts("sd_model", model.transformer),
        **model_facts("llm_adapter", model.llm_adapter),
        **model_facts("vae", _vae(settings)),
    }


def _vae(settings: TrainSettings) -> Path | None:
    if settings.data.latents:
        return settings.data.latents.vae
    return settings.previews.vae if settings.previews else None


def _optimizer(config: OptimizerConfig) -> str:
    """Return the optimizer as Kohya writes it: package.module.Class(argument=value,...)."""
    found = load_class(find_optimizer(config.optimizer_type))
    listed = ",".join(f"{name}={value}" for name, value in all_arguments(config).items())
    return f"{found.__module__}.{found.__name__}" + (f"({listed})" if listed else "")


def _model_spec(settings: TrainSettings, survey: Survey) -> dict[str, str]:
    """Return the fields of modelspec.* that are known before the tensors are."""
    width, height = survey.datasets[0].buckets.resolution
    spec: dict[str, str | None] = {
        "sai_model_spec": SPEC_VERSION,
        "architecture": way_of(settings).architecture,
        "implementation": IMPLEMENTATION,
        "implementation_version": f"anima-pipe/{__version__}",
        "title": settings.save.name,
        "resolution": f"{width}x{height}",
        "thumbnail": _thumbnail(settings.metadata.thumbnail),
        **settings.metadata.spec,
    }
    return {f"modelspec.{name}": value for name, value in spec.items() if value is not None}


def _thumbnail(given: str | None) -> str | None:
    """Return a picture as the data URL that the specification wants.

    Raises:
        ConfigError: It is no picture's file.
    """
    if given is None or given.startswith("data:"):
        return given
    kind = mimetypes.guess_type(given)[0] or ""
    try:
        content = read_small(Path(given).expanduser(), MOST_THUMBNAIL_BYTES)
    except OSError as error:
        raise ConfigError(
            f"metadata_thumbnail {given} cannot be read: {error.strerror}", "correct the path"
        ) from error
    if not kind.startswith("image/"):
        raise ConfigError(f"metadata_thumbnail {given} is no picture", "give a .jpg, .png or .webp")
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
