"""What a training run needs to know, typed and with units: `train` takes it.

Importing this module imports torch: the settings are the dataclasses of the parts that use them.
Where an option of the command line says the same, a field is called as the option is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

from anima_pipe.dataset.config import DatasetConfig, LeakageConfig
from anima_pipe.errors import ConfigError, check_above_zero, check_choice, check_number
from anima_pipe.fill import CacheSettings, LatentSettings, TextSettings
from anima_pipe.hooks.alarms import AlarmConfig
from anima_pipe.hooks.board import BoardConfig
from anima_pipe.hooks.saving import SaveConfig
from anima_pipe.hooks.validation import ValidationConfig
from anima_pipe.hub.sources import Source
from anima_pipe.objective.flow_loss import ObjectiveConfig
from anima_pipe.optimizing.checks import refuse_schedule_beside_average, refuse_two_averages
from anima_pipe.optimizing.optimizers import OptimizerConfig, find_optimizer, sizes_own_steps
from anima_pipe.optimizing.schedules import ScheduleConfig
from anima_pipe.records import MOST_PIXELS, PreviewPrompt
from anima_pipe.runs.settings.trained import AdapterSettings, ModelSettings, NoAdapter
from anima_pipe.trainer import ProcessConfig
from anima_pipe.trainer.trackers import MAKERS

OnNonFinite = Literal["stop", "skip"]

NATIVE_STYLE: Final = "comfy"
"""Whose names a checkpoint has: ComfyUI reads those of the released ones."""

LARGEST_DECAY: Final = 0.999999
"""Of an average: nearer to 1, fp32 loses what a step adds to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """What is trained on, and the caches it comes from.

    Raises:
        ConfigError: There are no datasets, the caches cannot be filled as they are to be, or a
            number is too small.
    """

    datasets: tuple[DatasetConfig, ...]
    cache: CacheSettings
    latents: LatentSettings | None = None
    """How latents are made; None: whatever the only latent cache holds is trained on."""
    text: TextSettings | None = None
    """How captions are encoded; None: whatever the only text cache holds is trained on."""
    tokenizer_sources: tuple[Source, ...] = ()
    """Where missing files of the T5 tokenizer are fetched from, in order; none: nowhere."""
    auto_cache: bool = True
    """Whether what the caches lack is encoded first, which takes both of the above; else it is an
    error."""
    caption_variants: int | None = None
    """Texts that are made of each caption where chance has a say; None: as many as it takes."""
    crop_variants: int = 4
    """Places of a picture that random_crop chooses from."""
    rehash: bool = False
    """Whether pictures are read again although nothing about their files has changed."""
    max_image_pixels: int = MOST_PIXELS
    """Pictures of more are left out."""
    follow_links: bool = True
    """Whether links out of the dataset's folders are followed; never for a cache at an address."""
    strict: bool = False
    """Whether a picture or caption that cannot be used ends the run; else it is left out."""
    rejects: Path | None = None
    """Lists all that is left out; None: rejects.jsonl in the folder of the cache."""

    def __post_init__(self) -> None:
        if not self.datasets:
            raise ConfigError("datasets is empty", "give at least one DatasetConfig")
        check_number("caption_variants", self.caption_variants, least=1)
        check_number("crop_variants", self.crop_variants, least=1)
        check_number("max_image_pixels", self.max_image_pixels, least=1)
        if self.auto_cache and (self.latents is None or self.text is None):
            raise ConfigError(
                "auto_cache fills the caches, but how latents and texts are made is not said",
                "give both latents and text, or set auto_cache to false",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthSettings:
    """How long a run is.

    Raises:
        ConfigError: A number is below 1.
    """

    max_train_steps: int = 1600
    """Optimizer steps."""
    max_train_epochs: int | None = None
    """Wins over steps."""
    gradient_accumulation_steps: int = 1
    """Batches of a process in an optimizer step."""

    def __post_init__(self) -> None:
        check_number("max_train_steps", self.max_train_steps, least=1)
        check_number("max_train_epochs", self.max_train_epochs, least=1)
        check_number("gradient_accumulation_steps", self.gradient_accumulation_steps, least=1)

    def total_steps(self, steps_per_epoch: int) -> int:
        """Return the optimizer steps of the run."""
        epochs = self.max_train_epochs
        return self.max_train_steps if epochs is None else epochs * steps_per_epoch

    def total_epochs(self, steps_per_epoch: int) -> int:
        """Return the epochs of the run, the last of which it may not finish."""
        return -(-self.total_steps(steps_per_epoch) // steps_per_epoch)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewSettings:
    """What is drawn while training and when; at the end of the run it always is.

    Raises:
        ConfigError: There is nothing to draw, or a number is below 1.
    """

    prompts: tuple[PreviewPrompt, ...]
    """At least one."""
    vae: Path
    at_first: bool = False
    every_n_steps: int | None = None
    every_n_epochs: int | None = None

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ConfigError("previews have no prompts", "give at least one PreviewPrompt")
        check_number("sample_every_n_steps", self.every_n_steps, least=1)
        check_number("sample_every_n_epochs", self.every_n_epochs, least=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSettings:
    """When a run's state is saved, beside the adapter, and which one it goes on from.

    Raises:
        ConfigError: A number is too small.
    """

    with_saves: bool = False
    """Whenever the adapter is saved before the end."""
    at_end: bool = False
    every_minutes: float | None = None
    """Also so often; of the states saved for that alone, the newest is kept."""
    keep_steps: int | None = None
    """Of the states saved by steps, those of the last so many steps are kept; None: all."""
    keep_epochs: int | None = None
    """Of the states saved by epochs, so many are kept; None: all."""
    resume: Path | None = None
    """The folder of a state to go on from, such as `latest_state(folder, name)`."""
    resume_allow: tuple[str, ...] = ()
    """Facts of the state that may differ; "objective" stands for all of its parts."""

    def __post_init__(self) -> None:
        check_above_zero("save_state_every_minutes", self.every_minutes)
        check_number("save_last_n_steps_state", self.keep_steps, least=0)
        check_number("save_last_n_epochs_state", self.keep_epochs, least=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """What a run logs, shows and warns of.

    Raises:
        ConfigError: There is no tracker of a kind.
    """

    kinds: tuple[str, ...] = ("tensorboard",)
    """"tensorboard", "wandb"; with any of them there is a metrics.jsonl too. (): no log."""
    folder: Path = Path("logs")
    """In which each run has a folder of its own."""
    prefix: str | None = None
    """First part of that folder's name; None: the run's name."""
    project: str | None = None
    """wandb's project, or a folder within the run's for TensorBoard."""
    run_name: str | None = None
    """wandb's; None: the folder's name."""
    api_key: str | None = field(default=None, repr=False)
    """wandb's; None: the one that `wandb login` stored."""
    arguments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    """Further arguments of `wandb.init` and of TensorBoard's `SummaryWriter`, by kind."""
    told: Mapping[str, str] = field(default_factory=dict[str, str])
    """What the trackers are told of the run's settings, for people to read; no secrets."""
    board: BoardConfig | None = None
    """TensorBoard to be started; None: none."""
    memory: bool = True
    """Whether memory is logged."""
    alarms: AlarmConfig = field(default_factory=AlarmConfig)

    def __post_init__(self) -> None:
        for kind in self.kinds:
            check_choice("log_with", kind, MAKERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetadataSettings:
    """What saved files say beside what the run itself knows: see `runs.metadata`."""

    facts: Mapping[str, str] = field(default_factory=dict[str, str])
    """By name, such as "ss_training_comment"; they win over the run's own."""
    spec: Mapping[str, str] = field(default_factory=dict[str, str])
    """Fields of the ModelSpec by name, such as "title", "author" and "trigger_phrase"."""
    thumbnail: str | None = None
    """A picture's path, or a data URL."""
    minimal: bool = False
    """Write no more than what programs need to load the file, as Kohya's --no_metadata."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """Everything that a training run needs to know.

    Raises:
        ConfigError: A number is out of its range, there is no such optimizer, or two settings do
            not go together.
    """

    data: DataSettings
    model: ModelSettings
    save: SaveConfig
    """The folder and the name of all that the run writes, and when the adapter is saved."""
    learning_rate: float
    """1e-4 is usual for AdamW at alpha = rank."""
    adapter: AdapterSettings | NoAdapter = field(default_factory=AdapterSettings)
    """What is trained: an adapter, or without one the model itself."""
    length: LengthSettings = field(default_factory=LengthSettings)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    max_grad_norm: float | None = 1.0
    """Gradients are scaled down to this norm; None: never."""
    on_nonfinite: OnNonFinite = "stop"
    """What to do where a step's loss or gradient is not finite."""
    ema_decay: float | None = None
    """Of the average of what trains that is saved beside it; None: no average."""
    validation: ValidationConfig = field(default_factory=lambda: ValidationConfig(every_n_epochs=1))
    leakage: LeakageConfig | None = None
    """Measure of every save whether it knows its trigger and nothing else; None: not measured."""
    previews: PreviewSettings | None = None
    states: StateSettings = field(default_factory=StateSettings)
    save_n_epoch_ratio: int | None = None
    """Save so often over the whole run, at the ends of epochs, whatever every_n_epochs says."""
    logs: LogSettings = field(default_factory=LogSettings)
    metadata: MetadataSettings = field(default_factory=MetadataSettings)
    seed: int | None = None
    """Of everything that is drawn; None: a resumed run's own, or a new one."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    deterministic: bool = False
    """Take kernels that give the same bits each time, on a GPU too; they are slower there."""
    processes: ProcessConfig = field(default_factory=ProcessConfig)

    def __post_init__(self) -> None:
        check_number("learning_rate", self.learning_rate, least=0)
        check_above_zero("max_grad_norm", self.max_grad_norm)
        check_choice("on_nonfinite", self.on_nonfinite, get_args(OnNonFinite))
        check_number("ema_decay", self.ema_decay, least=0, most=LARGEST_DECAY)
        check_number("save_n_epoch_ratio", self.save_n_epoch_ratio, least=1)
        check_number("seed", self.seed, least=0)
        find_optimizer(self.optimizer.optimizer_type)
        refuse_two_averages(self.ema_decay, self.optimizer.optimizer_type)
        refuse_schedule_beside_average(self.optimizer.optimizer_type, self.schedule)
        # Kohya too wants a base in bf16 then.
        if self.adapter.full_bf16 and self.model.mixed_precision != "bf16":
            raise ConfigError(
                f"full_bf16 is set, but mixed_precision is {self.model.mixed_precision}",
                "set mixed_precision to bf16, or remove full_bf16",
            )
        if isinstance(self.adapter, NoAdapter):
            self._check_without_adapter()

    @property
    def heeded_rate(self) -> float | None:
        """The learning rate; None: the optimizer finds its own steps, and heeds not even 0."""
        return None if sizes_own_steps(self.optimizer) else self.learning_rate

    def _check_without_adapter(self) -> None:
        """Refuse what says something of adapters, or of frozen weights, alone."""
        if self.model.fp8_base:
            raise ConfigError(
                "fp8_base is set, but without an adapter there are no frozen weights to be kept in "
                "8 bits",
                "remove fp8_base; optimizer_type AdamW8bit and full_bf16 save memory",
            )
        if self.save.style != NATIVE_STYLE:
            raise ConfigError(
                f"save_format is {self.save.style}, but without an adapter a checkpoint is saved, "
                "in the names of the released ones",
                f"remove save_format, or set it to {NATIVE_STYLE}",
            )
