"""What is counted of a run's steps."""

from __future__ import annotations

from typing import Any

from anima_pipe.records import StepResult


class Tally:
    """Counts the steps that were passed over, and keeps the losses of those that were taken.

    It is part of a run's state: the count goes on where the run is resumed, the losses begin anew.
    """

    def __init__(self) -> None:
        self.losses: list[float] = []
        """Mean loss of every step taken since the run began or was resumed."""
        self.skipped_steps = 0
        """Steps of the whole run passed over, for their loss or gradient was not finite."""

    def add(self, result: StepResult) -> None:
        """Count one step."""
        if result.loss is None:
            self.skipped_steps += 1
        else:
            self.losses.append(result.loss)

    def state_dict(self) -> dict[str, Any]:
        """Return the count."""
        return {"skipped_steps": self.skipped_steps}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Count on from a state."""
        self.skipped_steps = state_dict["skipped_steps"]
