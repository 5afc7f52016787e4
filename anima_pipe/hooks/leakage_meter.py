"""Measures what an adapter learned and what leaked, by passes of the model it is on.

Pictures are looked at as validation looks at them, each with noise of its own. Unrelated prompts
have no pictures: there the base model itself goes a few Euler steps down from fixed noise, and at
each of them it is seen how far the adapter would go elsewhere. What the base does is the same all
along a run, and is computed once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

import torch

from anima_pipe.dataset.batches import pad_texts, read_batch
from anima_pipe.dataset.visits import Visit
from anima_pipe.drawing.denoise import euler
from anima_pipe.hooks.validation import ModelInUse
from anima_pipe.model.evaluation import evaluating
from anima_pipe.objective.flow_loss import Draws, LossConfig, sample_losses
from anima_pipe.objective.leakage import Changes, LeakageFigures, PictureErrors, leakage_figures
from anima_pipe.objective.noise import Noise
from anima_pipe.objective.passes import PlacedBatch, pass_velocity, placed
from anima_pipe.runtime import derive_seed
from anima_pipe.transfer import on_device

if TYPE_CHECKING:
    from anima_pipe.shards import Cache

SIGMAS: Final = (0.9, 0.7, 0.5)
"""Where a text decides what is drawn; below, the picture shows through the noise, whatever the
caption says of it."""


@runtime_checkable
class Switched(Protocol):
    """An adapter that can be switched off."""

    def disabled(self) -> AbstractContextManager[None]:
        """Switch it off for a while."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeVisit:
    """A picture that is looked at, with its caption whole and without the trigger."""

    captioned: Visit
    without: Visit | None
    """None: there is no trigger in its caption."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stop:
    """Where the base came by on its way down from noise, and where it would go from there."""

    text: str
    sigma: float
    latents: torch.Tensor
    """Float32[1, 16, H, W], on the CPU."""
    velocity: torch.Tensor
    """Float32[1, 16, H, W], on the CPU: the base's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """What a pass over a picture came to."""

    error: float
    """Mean square error."""
    velocity: torch.Tensor
    """Float32[1, 16, H, W], on the CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Base:
    """What the model does without the adapter."""

    captioned: list[_Look]
    """Of each picture at each of `SIGMAS`."""
    without: list[_Look]
    stops: list[_Stop]
    """Of each unrelated prompt at each of `SIGMAS`."""


class LeakageMeter:
    """Measures the adapter that is on a model; it trains nothing and draws from no generator.

    A pass sees one picture, so that no pass takes more memory than one of training.

    Args:
        model: That the adapter is on.
        adapter: What is measured.
        pictures: At least one.
        unrelated: Keys of the prompts' texts, at least one.
        cache: What all of it is read from.
    """

    def __init__(
        self,
        model: ModelInUse,
        adapter: Switched,
        pictures: Sequence[ProbeVisit],
        unrelated: Sequence[str],
        cache: Cache,
    ) -> None:
        self.model = model
        self.adapter = adapter
        self.captioned = [probe.captioned for probe in pictures]
        self.without = [probe.without for probe in pictures if probe.without]
        self.has_trigger = torch.tensor([probe.without is not None for probe in pictures])
        self.unrelated = unrelated
        self.cache = cache
        self._base: _Base | None = None

    def figures(self) -> LeakageFigures:
        """Measure the adapter as it is; to be called by every process that has a part of it."""
        with evaluating(self.model.module):
            if self._base is None:
                with self.adapter.disabled():
                    self._base = self._look_without_adapter()
            return self._compared(self._base)

    def _look_without_adapter(self) -> _Base:
        return _Base(
            captioned=[self._look(visit, sigma) for visit, sigma in _each(self.captioned)],
            without=[self._look(visit, sigma) for visit, sigma in _each(self.without)],
            stops=[stop for text in self.unrelated for stop in self._way_down(text)],
        )

    def _compared(self, base: _Base) -> LeakageFigures:
        """Look again, with the adapter, and compare."""
        errors: list[float] = []
        changes: list[float] = []
        for (visit, sigma), before in zip(_each(self.captioned), base.captioned, strict=True):
            inputs, velocity = self._pass(visit, sigma)
            errors.append(_mean_square(velocity, inputs.target, inputs))
            elsewhere = on_device(before.velocity, self.model.device)
            changes.append(_mean_square(velocity, elsewhere, inputs))
        without = [self._look(visit, sigma).error for visit, sigma in _each(self.without)]
        return leakage_figures(
            PictureErrors(
                captioned=_table(look.error for look in base.captioned),
                without=_table(look.error for look in base.without),
            ),
            PictureErrors(captioned=_table(errors), without=_table(without)),
            self.has_trigger,
            Changes(pictures=_table(changes), unrelated=_table(map(self._change, base.stops))),
        )

    def _look(self, visit: Visit, sigma: float) -> _Look:
        inputs, velocity = self._pass(visit, sigma)
        error = _mean_square(velocity, inputs.target, inputs)
        return _Look(error=error, velocity=velocity.float().cpu())

    def _pass(self, visit: Visit, sigma: float) -> tuple[PlacedBatch, torch.Tensor]:
        """Return a picture with its noise, and the velocity there, Float[1, 16, H, W]."""
        batch = read_batch([visit], self.cache)
        # By picture, not by caption: with the trigger and without it, the noise is the same.
        noise = _noise(batch.latents.shape, visit.latent, sigma)
        draws = Draws(noise=Noise(target=noise, input=noise), sigmas=torch.tensor([sigma]))
        inputs = placed(batch, draws, self.model.device, self.model.dtype)
        return inputs, pass_velocity(self.model.module, inputs.noisy, inputs.sigmas, inputs.text)

    def _way_down(self, text: str) -> list[_Stop]:
        """Return where the base comes by at each of `SIGMAS`, from pure noise on."""
        stops: list[_Stop] = []

        def velocity(latents: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            found = self._velocity(text, latents, sigma)
            stops.append(_Stop(text=text, sigma=sigma.item(), latents=latents, velocity=found))
            return found

        shape = self.cache.latents.shape(self.captioned[0].latent)
        euler(_noise((1, *shape), text, 1.0), torch.tensor([1.0, *SIGMAS, 0.0]), velocity)
        return stops[1:]

    def _change(self, stop: _Stop) -> float:
        """Return the mean square by which the adapter would go elsewhere."""
        velocity = self._velocity(stop.text, stop.latents, torch.tensor([stop.sigma]))
        return (velocity - stop.velocity).square().mean().item()

    def _velocity(self, text: str, latents: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Return the velocity where no picture is; all of it Float32 on the CPU.

        Args:
            text: Key of a text.
            latents: [1, 16, H, W].
            sigma: [1].
        """
        device, dtype = self.model.device, self.model.dtype
        velocity = pass_velocity(
            self.model.module,
            on_device(latents, device).to(dtype),
            on_device(sigma, device),
            pad_texts([self.cache.text[text]]).to(device, dtype),
        )
        return velocity.float().cpu()


def _each(visits: Sequence[Visit]) -> Iterator[tuple[Visit, float]]:
    """Yield every picture at every noise level."""
    for visit in visits:
        for sigma in SIGMAS:
            yield visit, sigma


def _table(numbers: Iterable[float]) -> torch.Tensor:
    """Return numbers in the order of `_each`, Float64[P, S]."""
    return torch.tensor(list(numbers), dtype=torch.float64).view(-1, len(SIGMAS))


def _mean_square(velocity: torch.Tensor, towards: torch.Tensor, inputs: PlacedBatch) -> float:
    """Return the mean square difference of a picture's velocities, of what its mask leaves."""
    return sample_losses(velocity, towards, inputs.sigmas, LossConfig(), inputs.masks).item()


def _noise(shape: Sequence[int], name: str, sigma: float) -> torch.Tensor:
    """Return noise that depends on what is looked at alone, Float32 on the CPU."""
    seed = derive_seed("leakage", name, sigma)
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
