"""From resolved options to the objective: noise levels, noise and loss."""

from __future__ import annotations

from collections.abc import Iterable

from anima_pipe.dataset.config import DatasetConfig
from anima_pipe.kohya.resolved import Resolved
from anima_pipe.kohya.rules import SEED_SHIFT
from anima_pipe.objective.flow_loss import WEIGHTINGS, LossConfig, ObjectiveConfig
from anima_pipe.objective.noise import NoiseConfig
from anima_pipe.objective.sigmas import SigmaConfig
from anima_pipe.runtime import warn

TIMESTEPS = 1000
"""Kohya's timesteps of sigma 1."""

TAKES_OFFSETS = ("sigmoid", "shift", "flux_shift")
"""Values of timestep_sampling under which Kohya adds a subset's offset."""


def objective_config(options: Resolved) -> ObjectiveConfig:
    """Return everything that the loss of a batch depends on besides the model.

    Raises:
        ConfigError: A number is out of its range.
    """
    return ObjectiveConfig(sigmas=_sigmas(options), noise=_noise(options), loss=_loss(options))


def _sigmas(options: Resolved) -> SigmaConfig:
    """Return how noise levels are drawn, from Kohya's names for it.

    Kohya's shift acts under timestep_sampling shift and sigma alone, the seed's under all. Under
    sigma, weighting_scheme names the distribution, of a time that runs from noise to clean.
    """
    sampling: str = options.value("timestep_sampling")
    scheme: str = options.value("weighting_scheme")
    by_scheme = sampling == "sigma"
    shifts = sampling in ("shift", "sigma")
    shifts |= options.spelling("discrete_flow_shift") == SEED_SHIFT
    logit_normal = scheme == "logit_normal" if by_scheme else sampling != "uniform"
    lowest, highest = options.value("min_timestep"), options.value("max_timestep")
    return SigmaConfig(
        distribution="logit_normal"
        if logit_normal
        else ("mode" if by_scheme and scheme == "mode" else "uniform"),
        mean=-options.value("logit_mean") if by_scheme else 0.0,
        sigmoid_scale=options.value("logit_std" if by_scheme else "sigmoid_scale"),
        mode_scale=options.value("mode_scale"),
        shift=options.value("discrete_flow_shift") if shifts else 1.0,
        shift_by_size=sampling == "flux_shift",
        lowest=0.0 if lowest is None else lowest / TIMESTEPS,
        highest=1.0 if highest is None else highest / TIMESTEPS,
        takes_offsets=takes_offsets(options),
    )


def takes_offsets(options: Resolved) -> bool:
    """Tell whether noise levels are drawn in a way that a subset's offset moves."""
    return options.value("timestep_sampling") in TAKES_OFFSETS


def warn_of_idle_offsets(options: Resolved, datasets: Iterable[DatasetConfig]) -> None:
    """Say so where subsets have offsets of their noise levels that nothing takes."""
    subsets = [subset for dataset in datasets for subset in dataset.subsets]
    if not takes_offsets(options) and any(subset.sigma_offset for subset in subsets):
        warn(
            "custom_attributes.timestep_sampling.offset has no effect beside this "
            f"timestep_sampling; it acts beside {', '.join(TAKES_OFFSETS)}"
        )


def _noise(options: Resolved) -> NoiseConfig:
    return NoiseConfig(
        offset=options.value("noise_offset", unset=0.0),
        offset_random=options.value("noise_offset_random_strength"),
        multires_iterations=options.value("multires_noise_iterations", unset=0),
        multires_discount=options.value("multires_noise_discount"),
        input_gamma=options.value("ip_noise_gamma", unset=0.0),
        input_gamma_random=options.value("ip_noise_gamma_random_strength"),
    )


def _loss(options: Resolved) -> LossConfig:
    scheme: str = options.value("weighting_scheme")
    return LossConfig(
        kind=options.value("loss_type"),
        huber_c=options.value("huber_c"),
        huber_scale=options.value("huber_scale"),
        huber_schedule=options.value("huber_schedule"),
        weighting=scheme if scheme in WEIGHTINGS else "none",
    )
