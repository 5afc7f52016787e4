"""Train the embedded model's transformer with the project's own pipeline, from fresh weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from anima_pipe import runs
from anima_pipe.evaluation.world import prompt_of
from anima_pipe.source.captions import CaptionRules

NAME: Final = "pico"

PROMPTS: Final = (
    "best quality, no humans, solo, red cat, on the left, meadow, day, clear sky, flat color",
    "no humans, solo, blue house, in the center, snowfield, sunset, snowing, thick outlines",
    "no humans, pink rabbit on the left, green car on the right, beach, day, cloudy, flat color",
    "no humans, three mushrooms, yellow mushroom, street, night, rain, flat color",
    "no humans, solo, purple fish, on the right, desert, day, clear sky, pastel colors",
    "no humans, solo, star, in the center, meadow, night, clear sky, monochrome",
)
"""Drawn now and then while it trains, to be looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerTraining:
    """How long and how fast."""

    steps: int = 40_000
    batch: int = 16
    learning_rate: float = 1e-3
    average: float = 0.999
    """Decay of the weights' average, which is what is shipped."""
    seed: int = 0


def train_transformer(folder: Path, training: TransformerTraining) -> Path:
    """Train from `fresh.safetensors` on `pictures/`, or go on from the state that is there.

    Args:
        folder: With vae.safetensors, qwen3/, t5_tokenizer/, fresh.safetensors and pictures/.
        training: How.

    Returns:
        The file of the averaged weights.
    """
    settings = _settings(folder, training)
    runs.train(settings)
    return settings.save.of_average.final_path


def _settings(folder: Path, training: TransformerTraining) -> runs.TrainSettings:
    cache = runs.CacheSettings(folder=folder / "cache")
    output = folder / "transformer"
    return runs.TrainSettings(
        data=runs.DataSettings(
            datasets=(_pictures(folder / "pictures", training.batch),),
            cache=cache,
            latents=runs.LatentSettings(
                cache=cache, vae=folder / "vae.safetensors", batch_size=16, workers=2
            ),
            text=runs.TextSettings(
                cache=cache,
                qwen=folder / "qwen3",
                t5_tokenizer_dir=folder / "t5_tokenizer",
                batch_size=64,
            ),
        ),
        model=runs.ModelSettings(transformer=folder / "fresh.safetensors"),
        adapter=runs.NoAdapter(),
        save=runs.SaveConfig(folder=output, name=NAME, every_n_steps=5000, keep_steps=0),
        learning_rate=training.learning_rate,
        length=runs.LengthSettings(max_train_steps=training.steps),
        optimizer=runs.OptimizerConfig(optimizer_args={"betas": (0.9, 0.95), "weight_decay": 0.01}),
        # The average does what a falling rate does, and the run can be made longer.
        schedule=runs.ScheduleConfig(lr_scheduler="constant_with_warmup", lr_warmup_steps=300),
        ema_decay=training.average,
        previews=runs.PreviewSettings(
            prompts=tuple(prompt_of(text, number) for number, text in enumerate(PROMPTS)),
            vae=folder / "vae.safetensors",
            every_n_steps=1000,
        ),
        states=runs.StateSettings(
            every_minutes=10, at_end=True, resume=_latest(output) if output.is_dir() else None
        ),
        logs=runs.LogSettings(folder=output / "logs"),
        seed=training.seed,
        device="auto",
    )


def _pictures(folder: Path, batch: int) -> runs.DatasetConfig:
    captions = CaptionRules(caption_dropout_rate=0.1)
    buckets = runs.BucketRules(
        resolution=(128, 128), min_bucket_reso=96, max_bucket_reso=160, bucket_reso_steps=16
    )
    subset = runs.SubsetConfig(image_dir=folder, captions=captions)
    return runs.DatasetConfig(subsets=(subset,), buckets=buckets, batch_size=batch)


def _latest(output: Path) -> Path | None:
    return runs.latest_state(output, NAME) if any(output.glob(f"{NAME}*-state")) else None
