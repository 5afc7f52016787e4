"""The hooks of a run, and their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from anima_pipe.adapters.sharded import sharded_tensors
from anima_pipe.hooks.alarms import LossAlarm, MemoryAlarm, TimeLeft
from anima_pipe.hooks.board import BoardConfig, start_board
from anima_pipe.hooks.ema import Ema
from anima_pipe.hooks.leakage import Leakage
from anima_pipe.hooks.previews import DrawingAlong
from anima_pipe.hooks.run_log import MetricsFile, RunLog
from anima_pipe.hooks.saving import Saver
from anima_pipe.hooks.smoothing import SmoothedLosses
from anima_pipe.hooks.state_saving import StateSaver
from anima_pipe.hooks.tracking import ProgressBar, StepNumbers
from anima_pipe.hooks.train_state import RunParts, Stateful
from anima_pipe.hooks.validation import HeldOut, Report, Validation
from anima_pipe.runs.identity import made_with
from anima_pipe.runtime import Rank, say, warn
from anima_pipe.trainer import Trackers, sum_over_processes

if TYPE_CHECKING:
    from accelerate import Accelerator

    from anima_pipe.hooks.previews import Previews
    from anima_pipe.hooks.saving import SaveConfig, Write
    from anima_pipe.runs.prepare import Training
    from anima_pipe.runs.settings.training import TrainSettings
    from anima_pipe.trainer import Hook, StopRequest, Tally, TrackerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Averages:
    """Averages over a run's steps: each is a hook, and a part of the saved state."""

    weights: Ema | None
    losses: SmoothedLosses


def make_averages(settings: TrainSettings, training: Training) -> Averages:
    """Return the averages of a run, before its first step."""
    decay = settings.ema_decay
    return Averages(
        weights=Ema(training.trained, decay) if decay is not None else None,
        losses=SmoothedLosses(training.batches.windows_per_epoch()),
    )


def parts_in_state(
    settings: TrainSettings,
    training: Training,
    averages: Averages,
    tally: Tally,
    leakage: Leakage | None = None,
) -> RunParts:
    """Return the parts of a run that its state is saved from and restored to."""
    stateful: dict[str, Stateful] = {
        "optimizer": training.rounding or training.optimizer,
        "schedule": training.schedule,
    }
    if training.accelerator.scaler is not None:
        stateful["scaler"] = training.accelerator.scaler
    if averages.weights is not None:
        stateful["ema"] = averages.weights
    if leakage is not None:
        stateful["leakage"] = leakage
    stateful |= {"losses": averages.losses, "trainer": tally}
    config = training.config
    identity = made_with(settings, config.seed, training.batches, config.max_train_steps)
    return RunParts(trained=training.trained, stateful=stateful, made_with=identity)


def open_log(
    board: BoardConfig | None,
    trackers: TrackerConfig | None,
    accelerator: Accelerator,
    steps_done: int,
) -> RunLog:
    """Open a run's log, and TensorBoard if wanted; only the first process has a log.

    Args:
        board: TensorBoard to be started; None: none.
        trackers: Of the run; None: it keeps no log.
        accelerator: Of the run.
        steps_done: Of the run so far; what a log that is there says of later steps is dropped.

    Raises:
        OutputError: The file of numbers cannot be written.
    """
    if trackers is None or not accelerator.is_main_process:
        return RunLog()
    if board:
        start_board(board)
    say(f"log       {trackers.folder}")
    metrics = MetricsFile(trackers.folder, steps_done)
    return RunLog([metrics, Trackers(accelerator, trackers, steps_done)])


def hooks_in_order(
    settings: TrainSettings,
    training: Training,
    averages: Averages,
    states: StateSaver,
    previews: Previews | None,
    log: RunLog,
    stop: StopRequest,
    own: Sequence[Hook] = (),
    leakage: Leakage | None = None,
) -> list[Hook]:
    """Return this process's hooks.

    Averages come first: what is measured or saved after a step then includes that step, and a state
    that is saved because a later hook failed is complete. Only the first process logs, draws and
    saves.

    Args:
        settings: Of the run.
        training: The parts of the run.
        averages: From `make_averages`.
        states: Saves the run's state.
        previews: Draws; None: nothing is drawn.
        log: Where numbers and pictures go.
        stop: Made by an alarm that ends the run.
        own: The caller's, on every process; they come after all that measures, draws and saves.
        leakage: Measures what is saved; None: nothing does.
    """
    measures = _validations(settings, training, averages.weights, log.numbers)
    average: list[Hook] = [averages.weights] if averages.weights else []
    savers = _savers(settings.save, training.write, averages.weights)
    of_saves = _measuring(leakage, savers, log)
    if not training.accelerator.is_main_process:
        is_sharded = bool(sharded_tensors(training.trained.model))
        along = [*of_saves, *([DrawingAlong(previews)] if previews else [])] if is_sharded else []
        return [*average, *measures, *along, *own]
    device, steps = training.accelerator.device, training.config.max_train_steps
    alarms = settings.logs.alarms
    return [
        *average,
        averages.losses,
        *measures,
        *savers.values(),
        *of_saves,
        StepNumbers(log, averages.losses, device, memory=settings.logs.memory),
        *_shown(previews, log),
        ProgressBar(steps, averages.losses),
        TimeLeft(steps),
        states,
        *own,
        LossAlarm(alarms, stop.end_with),
        MemoryAlarm(alarms, device, stop.end_with),
    ]


def _validations(
    settings: TrainSettings, training: Training, average: Ema | None, report: Report
) -> list[Validation]:
    """Return the validation of the weights, and that of their average if there is one."""
    plan, cache, accelerator = training.batches.plan, training.batches.cache, training.accelerator
    if settings.validation.max_batches == 0:
        return []
    if not plan.held_out:
        if any(s.validation_split for d in settings.data.datasets for s in d.subsets):
            warn("validation_split holds out no picture: there are too few for such a share")
        return []
    total = partial(sum_over_processes, accelerator)
    rank = Rank(number=accelerator.process_index, processes=accelerator.num_processes)
    held_out = HeldOut(plan, cache, settings.validation, rank, total)
    measure = partial(Validation, training.model_in_use, held_out, settings.validation, report)
    of_average = [measure("validation_ema", average.in_place)] if average else []
    return [measure(), *of_average]


def _savers(config: SaveConfig, write: Write, average: Ema | None) -> dict[str, Saver]:
    """Return what saves the weights that train, and their average, by the ends of their names."""
    of_average = {"_ema": Saver(write, config.of_average, average.in_place)} if average else {}
    return {**of_average, "": Saver(write, config)}


def _measuring(leakage: Leakage | None, savers: Mapping[str, Saver], log: RunLog) -> list[Leakage]:
    """Return what measures the saves, if anything does, and have its numbers logged."""
    if leakage is None:
        return []
    leakage.savers = {f"leakage{end}": saver for end, saver in savers.items()}
    leakage.report = log.numbers
    return [leakage]


def _shown(previews: Previews | None, log: RunLog) -> list[Previews]:
    """Return the previews, if there are any, and have their pictures logged."""
    if previews is None:
        return []
    previews.show = log.pictures
    return [previews]
