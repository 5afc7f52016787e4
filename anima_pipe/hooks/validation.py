"""The loss on pictures that are held out, measured so that curves compare between steps and runs.

Each picture is looked at with noise of its own at a fixed grid of noise levels, always in the same
way: middle crop, not mirrored, its caption whole, nothing dropped. The loss is the plain mean
square error, whatever is trained, so that runs with other losses compare too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from anima_pipe.dataset.batches import read_batch
from anima_pipe.dataset.plan import Plan, Visit
from anima_pipe.errors import check_number
from anima_pipe.model.evaluation import evaluating
from anima_pipe.objective.flow_loss import Draws, LossConfig
from anima_pipe.objective.noise import Noise
from anima_pipe.objective.passes import pass_losses, placed
from anima_pipe.records import Batch, Moment
from anima_pipe.runtime import Rank, derive_seed, say

if TYPE_CHECKING:
    from anima_pipe.shards import Cache

SIGMAS: Final = (0.1, 0.3, 0.5, 0.7, 0.9)
"""The middles of five equal parts of all noise levels: their mean is that over all levels."""

Report = Callable[[int, Mapping[str, float]], None]
"""Takes a step and its numbers by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationConfig:
    """When pictures that are held out are looked at, and how many of them.

    Raises:
        ConfigError: A number is too small.
    """

    every_n_steps: int | None = None
    every_n_epochs: int | None = None
    max_batches: int | None = None
    """At most so many batches each time; None or 0: all."""
    seed: int = 0
    """Of the noise, and of which batches come first."""

    def __post_init__(self) -> None:
        check_number("validate_every_n_steps", self.every_n_steps, least=1)
        check_number("validate_every_n_epochs", self.every_n_epochs, least=1)
        check_number("max_validation_steps", self.max_batches, least=0)
        check_number("validation_seed", self.seed, least=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInUse:
    """The model that is trained, as validation calls it."""

    module: torch.nn.Module
    """forward(latents, sigmas, qwen_hidden, t5_ids, qwen_mask, t5_mask) -> velocity."""
    device: torch.device
    dtype: torch.dtype
    """Of its weights."""


class HeldOut:
    """The pictures held out, and the loss on them; the processes of a run share the work.

    Args:
        plan: Of the run.
        cache: What the pictures are read from.
        config: How many of them, with which noise.
        rank: Which of the processes this is.
        sum_over_processes: Takes a tensor, returns its sum over all processes.
    """

    def __init__(
        self,
        plan: Plan,
        cache: Cache,
        config: ValidationConfig,
        rank: Rank,
        sum_over_processes: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        self.batches = plan.validation_batches(config.seed)[: config.max_batches]
        self.cache = cache
        self.seed = config.seed
        self.rank = rank
        self.sum_over_processes = sum_over_processes

    def losses(self, model: ModelInUse) -> list[float]:
        """Return the mean loss at each of `SIGMAS`; to be called by every process.

        No generator but one of its own is drawn from.
        """
        sums = torch.zeros(len(SIGMAS) + 1, device=model.device)
        with evaluating(model.module):
            for visits, counts in self._own_batches():
                batch = read_batch(visits, self.cache)
                for place, sigma in enumerate(SIGMAS):
                    noise = torch.stack([self._noise(visit, sigma) for visit in visits])
                    sums[place] += _losses(model, batch, noise, sigma).sum() * counts
                sums[-1] += len(visits) * counts
        *totals, count = self.sum_over_processes(sums).tolist()
        return [total / count for total in totals]

    def _own_batches(self) -> Iterator[tuple[Sequence[Visit], bool]]:
        """Yield this process's batches, and whether each counts.

        A process that has none left gets another's, which does not count: all processes must call
        a sharded model equally often.
        """
        for start in range(0, len(self.batches), self.rank.processes):
            own = start + self.rank.number
            counts = own < len(self.batches)
            yield self.batches[own if counts else start], counts

    def _noise(self, visit: Visit, sigma: float) -> torch.Tensor:
        """Return a picture's own noise, Float32[16, H, W]."""
        seed = derive_seed("validation", self.seed, visit.latent, sigma)
        shape = self.cache.latents[visit.latent].shape
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Validation:
    """The hook that measures the loss on what is held out; a hook of every process.

    It measures before the first step, whenever it is due, and at the end.

    Args:
        model: What is trained.
        held_out: The pictures.
        config: When it is due.
        report: Told the numbers.
        name: What they are called.
        weights: Puts other weights in place meanwhile, such as an average.
    """

    reads_weights = True

    def __init__(
        self,
        model: ModelInUse,
        held_out: HeldOut,
        config: ValidationConfig,
        report: Report,
        name: str = "validation",
        weights: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.model = model
        self.held_out = held_out
        self.config = config
        self.report = report
        self.name = name
        self.weights = weights

    def due(self, moment: Moment) -> bool:
        """Tell whether it is time to measure."""
        if not moment.after_step:
            return moment.step == 0
        config = self.config
        return moment.is_last or moment.falls_on(config.every_n_steps, config.every_n_epochs)

    def at(self, moment: Moment) -> None:
        """Measure, and report the means: over the noise levels, and at each."""
        with self.weights():
            means = self.held_out.losses(self.model)
        whole = sum(means) / len(means)
        numbers = {f"{self.name}/loss": whole}
        numbers |= {f"{self.name}/sigma_{s}": mean for s, mean in zip(SIGMAS, means, strict=True)}
        self.report(moment.step, numbers)
        say(f"{self.name} at step {moment.step}: loss {whole:.4f}")


def _losses(model: ModelInUse, batch: Batch, noise: torch.Tensor, sigma: float) -> torch.Tensor:
    """Return each picture's loss at one noise level, Float32[B]; noise Float32[B, 16, H, W]."""
    draws = Draws(noise=Noise(target=noise, input=noise), sigmas=torch.full((len(noise),), sigma))
    return pass_losses(model.module, placed(batch, draws, model.device, model.dtype), LossConfig())
