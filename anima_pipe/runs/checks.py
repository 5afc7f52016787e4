"""Whether a training can be run as its settings have it, found out before anything is encoded."""

from __future__ import annotations

import torch

from anima_pipe.adapters.files import fitting_deltas
from anima_pipe.encoders.fingerprints import text_fingerprint, vae_fingerprint
from anima_pipe.errors import ConfigError
from anima_pipe.hub.tokenizer import complete_t5_tokenizer
from anima_pipe.model import AnimaTransformer, read_transformer_config
from anima_pipe.optimizing.checks import check_optimizer, check_schedule
from anima_pipe.runs.settings.trained import ModelSettings, NoAdapter
from anima_pipe.runs.settings.training import TrainSettings
from anima_pipe.runs.ways import way_of
from anima_pipe.trainer import asks_for_fsdp


def check_parts(settings: TrainSettings) -> None:
    """Find out in no time that optimizer and schedule can be made as they are configured.

    Raises:
        ConfigError: One of them cannot, or the optimizer's package is not installed.
    """
    # Some optimizers refuse a rate of 0, with which nothing is trained.
    rates = (settings.learning_rate, *(part.rate for part in settings.adapter.part_rates))
    rate = next(filter(None, rates), settings.learning_rate)
    optimizer = check_optimizer(settings.optimizer, rate)
    check_schedule(settings.schedule, optimizer)


def check_whole_model(settings: TrainSettings, *, has_base: bool) -> None:
    """Check that the model itself can be trained where and as it is to be, if it is.

    Args:
        settings: Of the run.
        has_base: Whether the caller gave the model.

    Raises:
        ConfigError: It cannot.
    """
    if not isinstance(settings.adapter, NoAdapter):
        return
    if has_base:
        raise ConfigError(
            "the base is given, but without an adapter its own weights would train",
            "leave out base: the run loads the model that the settings name",
        )
    if asks_for_fsdp():
        raise ConfigError(
            "FSDP is asked for, which shards frozen weights, but without an adapter all train",
            "launch with configs/accelerate/ddp.yaml, or train an adapter",
        )


def check_processes(settings: TrainSettings, processes: int, *, has_base: bool) -> None:
    """Check that several processes can share a run, if there are several.

    Args:
        settings: Of the run.
        processes: How many were launched together.
        has_base: Whether the caller gave the model.

    Raises:
        ConfigError: They cannot.
    """
    if processes == 1:
        return
    if settings.adapter.full_bf16:
        # Data-parallel training loses sight of weights whose dtype is another for a while.
        raise ConfigError(
            f"full_bf16 is set, but {processes} processes were started: it is for one",
            "remove full_bf16; mixed_precision bf16 computes in bf16 all the same",
        )
    if settings.processes.static_graph and settings.length.gradient_accumulation_steps > 1:
        raise ConfigError(
            "ddp_static_graph is set, and so is gradient_accumulation_steps: not every backward "
            "pass exchanges gradients",
            "remove ddp_static_graph, or raise train_batch_size instead",
        )
    if has_base and asks_for_fsdp():
        raise ConfigError(
            "the base is given whole, but FSDP is asked for, which shards it",
            "leave out base, or launch with configs/accelerate/ddp.yaml",
        )


def check_base(base: AnimaTransformer, settings: ModelSettings, device: torch.device) -> None:
    """Check that a model from `load_base` is kept as a run wants it, and where.

    Which weights are in it is the caller's to know.

    Args:
        base: The model.
        settings: Of the run.
        device: Of the run.

    Raises:
        ConfigError: It is kept in another precision or lies on another device.
    """
    parameters = list(base.parameters())
    if all(parameter.dtype != settings.dtype for parameter in parameters):
        raise ConfigError(
            f"the base is kept in {parameters[0].dtype}, but mixed_precision is "
            f"{settings.mixed_precision}",
            "give load_base the model settings of the run",
        )
    if parameters[0].device != torch.empty(0, device=device).device:
        raise ConfigError(
            f"the base lies on {parameters[0].device}, but the run is on {device}",
            "give load_base the device of the run",
        )


def check_model_files(settings: TrainSettings) -> None:
    """Find out in seconds, not after hours of encoding, that a file is missing or does not fit.

    The same goes for what cannot be trained or saved as it is asked for. Missing files of
    the T5 tokenizer are fetched, if the settings name a source.

    Raises:
        CheckpointError: A file of a model or an adapter is missing, or does not fit.
        ConfigError: A file of the T5 tokenizer is missing, or does not fit; or nothing can
            be trained or saved as it is asked for.
        FetchError: No source had the tokenizer's files.
    """
    data = settings.data
    if data.auto_cache and data.text:
        complete_t5_tokenizer(data.text.t5_tokenizer_dir, data.tokenizer_sources)
    model = settings.model
    config = read_transformer_config(model.transformer, model.llm_adapter)
    with torch.device("meta"):
        skeleton = AnimaTransformer(config)
    for merged, _ in model.base_weights:
        fitting_deltas(merged, skeleton, allow_unmatched=model.allow_unmatched)
    way_of(settings).check(skeleton)
    if data.latents:
        vae_fingerprint(data.latents.vae)
    if data.text:
        text_fingerprint(data.text.qwen, data.text.t5_tokenizer_dir)
