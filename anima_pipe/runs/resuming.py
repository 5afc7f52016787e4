"""Going on from a saved state where the options name one; leaving one where a run breaks off."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from anima_pipe.errors import ConfigError, PipeError
from anima_pipe.hooks.train_state import (
    ANY_LENGTH,
    LENGTH,
    StateSaver,
    differences,
    is_of,
    resume,
    state_made_with,
)
from anima_pipe.optimizing.configured import Configured
from anima_pipe.records import Moment
from anima_pipe.runs.identity import changes_arguments, changes_optimizer, changes_rates
from anima_pipe.runs.settings.training import TrainSettings
from anima_pipe.runtime import say, warn
from anima_pipe.trainer import Trainer


def resume_if_asked(settings: TrainSettings, states: StateSaver, trainer: Trainer) -> int:
    """Put the saved state in place where one was named; return the steps done.

    Raises:
        ConfigError: The state is of another run, or at the run's last step.
    """
    if settings.states.resume is None:
        return 0
    configured = Configured(trainer.optimizer, type(trainer.plain_optimizer))
    differing = differences(settings.states.resume, states.parts)
    other = changes_optimizer(differing)
    rates = other or changes_rates(differing)
    afresh = ["optimizer"] * other + ["schedule"] * rates
    names = {*state_made_with(settings.states.resume), *states.parts.made_with}
    allowed = [n for n in names if any(is_of(n, fact) for fact in settings.states.resume_allow)]
    done = resume(settings.states.resume, states.parts, allowed, afresh)
    if changes_arguments(differing):
        configured.restore_arguments()
    if rates:
        configured.restore_rates(trainer.schedule, done)
    if other:
        warn("the optimizer begins afresh: what it had learned is of another kind")
    if done >= trainer.config.max_train_steps:
        raise ConfigError(
            f"state {settings.states.resume} is at step {done}, the run's last",
            _way_to_a_longer_run(settings, states.parts.made_with),
        )
    say(f"resumed   at step {done} from {settings.states.resume}")
    return done


def _way_to_a_longer_run(settings: TrainSettings, made_with: Mapping[str, str]) -> str:
    """Return all that has to be said at once for a finished run to go on."""
    length = "max_train_steps" if settings.length.epochs is None else "max_train_epochs"
    if made_with[LENGTH] == ANY_LENGTH:
        return f"raise {length} to train on"
    allowed = dict.fromkeys((*settings.states.resume_allow, LENGTH))
    return (
        f"raise {length} to train on, and add --resume_allow {' '.join(allowed)}: what follows the "
        "length goes on as if it had been so from the beginning"
    )


@contextmanager
def last_good_state_saved(states: StateSaver, trainer: Trainer) -> Generator[None]:
    """Save the state of the last step where a run ends by an error, which then goes on its way."""
    try:
        yield
    except Exception:
        if trainer.is_whole and trainer.accelerator.is_main_process:
            _save_last(states, trainer.moment)
        raise


def _save_last(states: StateSaver, moment: Moment | None) -> None:
    """Save the state of the last step if there is none; warn where it cannot be saved."""
    if moment is None or not moment.after_step or states.saved_step == moment.step:
        return
    try:
        states.at(replace(moment, stopping=True))
    except Exception as error:  # noqa: BLE001 - the first error is the one to be told
        reason = error.problem if isinstance(error, PipeError) else error
        warn(f"the state could not be saved either: {reason}")
