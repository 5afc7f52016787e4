"""Going on from a saved state, where the settings name one."""

from __future__ import annotations

from collections.abc import Mapping

from torch.optim import Optimizer

from anima_pipe.errors import ConfigError
from anima_pipe.hooks.state_resuming import differences, resume
from anima_pipe.hooks.train_state import ANY_LENGTH, LENGTH, RunParts, is_of, state_made_with
from anima_pipe.optimizing.configured import Configured
from anima_pipe.runs.identity import changes_arguments, changes_optimizer, changes_rates
from anima_pipe.runs.prepare import Training
from anima_pipe.runs.settings.training import TrainSettings
from anima_pipe.runtime import say, warn


def resume_if_asked(settings: TrainSettings, parts: RunParts, training: Training) -> int:
    """Restore the state that the settings name, if they do; return the optimizer steps done.

    Args:
        settings: Which state, and which of its facts may differ.
        parts: Of the run, which the state is restored to.
        training: Freshly prepared.

    Raises:
        ConfigError: The state is of another run, or at the run's last step.
    """
    if settings.states.resume is None:
        return 0
    plain_optimizer: Optimizer = training.optimizer.optimizer
    configured = Configured(training.optimizer, type(plain_optimizer))
    differing = differences(settings.states.resume, parts)
    other = changes_optimizer(differing)
    rates = other or changes_rates(differing)
    afresh = ["optimizer"] * other + ["schedule"] * rates
    names = {*state_made_with(settings.states.resume), *parts.made_with}
    allowed = [n for n in names if any(is_of(n, fact) for fact in settings.states.resume_allow)]
    done = resume(settings.states.resume, parts, allowed, afresh)
    if changes_arguments(differing):
        configured.restore_arguments()
    if rates:
        configured.restore_rates(training.schedule, done)
    if other:
        warn("the optimizer begins afresh: what it had learned is of another kind")
    if done >= training.config.max_train_steps:
        raise ConfigError(
            f"state {settings.states.resume} is at step {done}, the run's last",
            _way_to_a_longer_run(settings, parts.made_with),
        )
    say(f"resumed   at step {done} from {settings.states.resume}")
    return done


def _way_to_a_longer_run(settings: TrainSettings, made_with: Mapping[str, str]) -> str:
    """Return the options with which a finished run goes on."""
    length = "max_train_steps" if settings.length.max_train_epochs is None else "max_train_epochs"
    if made_with[LENGTH] == ANY_LENGTH:
        return f"raise {length} to train on"
    allowed = dict.fromkeys((*settings.states.resume_allow, LENGTH))
    return (
        f"raise {length} to train on, and add --resume_allow {' '.join(allowed)}: what follows the "
        "length goes on as if it had been so from the beginning"
    )
