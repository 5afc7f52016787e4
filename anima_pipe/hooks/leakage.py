"""Every save measured: does it know its trigger, and nothing else?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from anima_pipe.hooks.leakage_meter import LeakageMeter
from anima_pipe.hooks.saving import Saver
from anima_pipe.hooks.validation import Report
from anima_pipe.objective.leakage import LeakageFigures
from anima_pipe.records import Moment
from anima_pipe.runtime import say


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredSave:
    """What was measured of an adapter when it was saved."""

    files: tuple[str, ...]
    """The names that it was saved under."""
    figures: LeakageFigures


@dataclass(frozen=True, slots=True, kw_only=True)
class BestSave:
    """The save that learned most while leaking least: that of the highest score."""

    path: Path
    figures: LeakageFigures
    among: int
    """Saves that it was chosen from."""

    @property
    def stands_out(self) -> bool:
        """Whether it learned something that it does not do to unrelated prompts as much."""
        return self.figures.score > 0


class Leakage:
    """The hook that measures every save, right after it; and a part of the run's state.

    Args:
        meter: Measures.
    """

    reads_weights = True

    def __init__(self, meter: LeakageMeter) -> None:
        self.meter = meter
        self.savers: Mapping[str, Saver] = {}
        """What saves, by what the figures are called."""
        self.report: Report = lambda *_: None
        """Told the numbers."""
        self.measured: list[MeasuredSave] = []
        """In the order of the saves, those before a resumption included."""

    def due(self, moment: Moment) -> bool:
        """Tell whether something was saved."""
        return any(saver.due(moment) for saver in self.savers.values())

    def at(self, moment: Moment) -> None:
        """Measure what was saved, and report it."""
        for name, saver in self.savers.items():
            with saver.weights():
                figures = self.meter.figures()
            files = tuple(path.name for path in saver.paths(moment))
            self.measured.append(MeasuredSave(files=files, figures=figures))
            self.report(
                moment.step,
                {
                    f"{name}/{curve}": value
                    for curve, value in asdict(figures).items()
                    if value is not None
                },
            )
            say(f"{name} at step {moment.step}: {told(figures)}")

    def best(self, folder: Path) -> BestSave | None:
        """Return the best of the saves that are still there; None where there are not two.

        Of those that are equally good it is the first, which trained least.
        """
        there = [
            (folder / file, save.figures)
            for save in self.measured
            for file in [name for name in save.files if (folder / name).exists()][:1]
            if math.isfinite(save.figures.score)
        ]
        if len(there) < 2:
            return None
        path, figures = max(there, key=lambda save: save[1].score)
        return BestSave(path=path, figures=figures, among=len(there))

    def state_dict(self) -> dict[str, Any]:
        """Return what was measured so far."""
        return {"measured": [(*save.files, asdict(save.figures)) for save in self.measured]}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Take it back."""
        self.measured = [
            MeasuredSave(files=tuple(files), figures=LeakageFigures(**figures))
            for *files, figures in state_dict["measured"]
        ]


def told(figures: LeakageFigures) -> str:
    """Return figures as people read them."""
    bound = "" if figures.bound is None else f", bound to the trigger {figures.bound:.2%}"
    leaked = f"leaked {figures.leaked:.2%} where its own pictures changed {figures.changed:.2%}"
    return f"learned {figures.learned:.2%}{bound}, {leaked}"
