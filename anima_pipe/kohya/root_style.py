"""The seed's older root-style file: one TOML of model, dataset, training, lora, optimizer, output.

Every key goes where the seed's own converter puts it, in its order. What that converter drops
without a word is listed here too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

from anima_pipe.errors import ConfigError
from anima_pipe.kohya.converted import Converted, Leftover, as_number, as_whole
from anima_pipe.kohya.findings import MOST_SHOWN
from anima_pipe.kohya.options import find_option, nearest_name

Values = dict[str, object]

SECTIONS: Final = ("model", "dataset", "training", "lora", "optimizer", "output")

WITHOUT_COUNTERPART: Final[Mapping[str, str]] = {
    "dataset.cache_dir": "set cache_dir in train_args.toml to keep the caches there",
    "dataset.max_ar": "buckets of every shape between min_bucket_reso and max_bucket_reso are made",
    "output.save_state_every": "states are saved together with adapters: save_every_n_steps",
    "training.auto_install": "packages are installed by pip, not by a training",
    "training.log_every": "every step is logged",
    "training.max_token_length": "captions are encoded whole",
    "training.text_cache_size": "text is cached on disk, all of it",
    "training.train_parts": "network_args target_modules says which layers are trained",
    "monitor": "curves go to TensorBoard: logging_dir",
    "wandb": "curves go to TensorBoard: logging_dir",
}
"""Keys and sections that the seed's converter leaves behind, and what serves their purpose."""

_SCHEDULE_FREE: Final = {
    "radam_schedulefree": "RAdamScheduleFree",
    "adamw_schedulefree": "AdamWScheduleFree",
    "sgd_schedulefree": "SGDScheduleFree",
}


@dataclass(slots=True)
class _Section:
    """One section of the old file; what is taken from it counts as mapped."""

    name: str
    values: Mapping[str, object]
    taken: set[str] = field(default_factory=set[str])

    def take(self, key: str) -> Any:
        """Return a key's value, None where it is not there."""
        self.taken.add(key)
        return self.values.get(key)

    def leave(self, key: str) -> None:
        """Count a key as not mapped after all."""
        self.taken.discard(key)

    def left(self) -> Iterator[str]:
        """Yield the keys that nothing was made of."""
        yield from (key for key in self.values if key not in self.taken)


@dataclass(slots=True)
class _Old:
    """The old file while it is converted."""

    sections: Mapping[str, _Section]
    why: dict[str, str] = field(default_factory=dict[str, str])
    """By key: why it was left behind."""
    notes: list[str] = field(default_factory=list[str])

    def __getitem__(self, name: str) -> _Section:
        return self.sections[name]

    def leave(self, section: str, key: str, why: str) -> None:
        """Leave a key behind for a reason of this file's own."""
        self[section].leave(key)
        if key in self[section].values:
            self.why[f"{section}.{key}"] = why


def convert_root_style(table: Mapping[str, object], dataset_name: str) -> Converted:
    """Return what a root-style file becomes.

    Args:
        table: The parsed file.
        dataset_name: File name of the new dataset.toml; it lies beside train_args.toml, where
            dataset_config finds it from every folder.

    Raises:
        ConfigError: The file is not root-style, or names no T5 tokenizer.
    """
    if not all(isinstance(table.get(name), dict) for name in ("model", "training")):
        raise ConfigError(
            "Input config is not a valid root-style Anima TOML. "
            "Expected sections: [model], [training].",
            "give the seed's older single file, or a preset of kohya_ss GUI (.json)",
        )
    old = _Old({name: _Section(name, _as_table(table.get(name))) for name in SECTIONS})
    train_args = {
        **_model(old),
        **_network(old),
        **_output(old),
        **_training(old),
        **_schedule(old),
        **_optimizer(old),
        **_flag(old["dataset"], "cache_latents", "cache_latents"),
        "dataset_config": dataset_name,
    }
    dataset = _dataset(old)
    return Converted(
        train_args=train_args,
        dataset=dataset,
        unmapped=tuple(sorted(_unmapped(old, table))),
        notes=tuple(old.notes),
    )


def _as_table(value: object) -> Mapping[str, object]:
    return cast("Mapping[str, object]", value) if isinstance(value, dict) else {}


def _model(old: _Old) -> Values:
    model = old["model"]
    result: Values = {}
    if transformer := model.take("transformer_path"):
        result |= {"anima_transformer": transformer, "pretrained_model_name_or_path": transformer}
    result |= _renamed(model, {"vae_path": "vae", "text_encoder_path": "qwen"})
    directory, path = model.take("t5_tokenizer_dir"), model.take("t5_tokenizer_path")
    if not (directory or path):
        raise ConfigError(
            "Input config is missing model.t5_tokenizer_dir/model.t5_tokenizer_path. "
            "LLMAdapter training requires T5 tokenizer.",
            "add t5_tokenizer_dir to [model]",
        )
    if directory and path and directory != path:
        old.leave("model", "t5_tokenizer_path", f"t5_tokenizer_dir wins: {directory}")
    return result | {"t5_tokenizer_dir": str(directory or path)}


def _network(old: _Old) -> Values:
    lora = old["lora"]
    kind = lora.take("network_type")
    is_lokr = str(kind).lower() == "lokr"
    if kind and not is_lokr and str(kind).lower() != "lora":
        old.notes.append(
            f"lora.network_type {kind} becomes networks.lora_anima, as the seed trained it"
        )
    result: Values = {"network_module": f"networks.{'lokr' if is_lokr else 'lora'}_anima"}
    result |= _renamed(
        lora,
        {
            "lora_rank": "network_dim",
            "lora_alpha": "network_alpha",
            "lora_dropout": "network_dropout",
        },
    )
    arguments = list(_network_arguments(lora))
    return result | ({"network_args": arguments} if arguments else {})


def _network_arguments(lora: _Section) -> Iterator[str]:
    if targets := lora.take("lora_targets"):
        listed = cast("list[object]", targets) if isinstance(targets, list) else [targets]
        yield f"target_modules={','.join(map(str, listed))}"
    if (factor := lora.take("lokr_factor")) is not None:
        yield f"lokr_factor={as_whole(factor)}"
    for name in ("lokr_full_matrix", "lokr_decompose_both"):
        if (value := lora.take(name)) is not None:
            yield f"{name}={_truth(value)}"
    for name in ("lokr_rank_dropout", "lokr_module_dropout"):
        if (value := lora.take(name)) is not None:
            yield f"{name}={as_number(value)}"


def _output(old: _Old) -> Values:
    output = old["output"]
    result = _renamed(output, {"output_dir": "output_dir"})
    name, fallback = output.take("output_name"), old["lora"].take("lora_name")
    if not output.values:
        old.leave("lora", "lora_name", "set output_name in train_args.toml")
    elif name or fallback:
        result["output_name"] = name or fallback
    if name and fallback and name != fallback:
        old.leave("lora", "lora_name", f"output.output_name wins: {name}")
    if (every := output.take("save_every")) is not None:
        result["save_every_n_steps"] = as_whole(every)
    return result | _flag(output, "save_state", "save_state")


def _training(old: _Old) -> Values:
    training = old["training"]
    result = _length(old)
    result |= _renamed(
        training,
        {
            "grad_accum": "gradient_accumulation_steps",
            "learning_rate": "learning_rate",
            "mixed_precision": "mixed_precision",
        },
    )
    result |= _flag(training, "grad_checkpoint", "gradient_checkpointing")
    result |= _renamed(training, {"num_workers": "max_data_loader_n_workers"})
    for name in ("persistent_data_loader_workers", "xformers"):
        result |= _flag(training, name, name)
    result |= _renamed(
        training,
        {"seed": "seed", "seq_len": "anima_seq_len", "noise_offset": "anima_noise_offset"},
    )
    if (rate := training.take("caption_tag_dropout_rate")) is not None:
        result["caption_tag_dropout_rate"] = as_number(rate)
    return result | _renamed(training, {"resume": "resume"})


def _length(old: _Old) -> Values:
    steps, epochs = (old["training"].take(key) for key in ("max_steps", "epochs"))
    if isinstance(steps, int) and steps > 0:
        if epochs:
            old.notes.append(f"training.epochs = {epochs} had no effect beside max_steps = {steps}")
        return {"max_train_steps": steps}
    return {} if epochs is None else {"max_train_epochs": epochs}


def _schedule(old: _Old) -> Values:
    training = old["training"]
    result: Values = {}
    kind, floor = training.take("lr_scheduler"), training.take("lr_min_ratio")
    has_floor = kind == "cosine" and isinstance(floor, int | float) and floor > 0
    if has_floor:
        result |= {"lr_scheduler": "cosine_with_min_lr", "lr_scheduler_min_lr_ratio": floor}
    elif kind is not None:
        result["lr_scheduler"] = kind
    if floor and not has_floor:
        old.leave("training", "lr_min_ratio", "it acts beside lr_scheduler = cosine alone")
    result |= _warmup(old)
    if (cycles := training.take("lr_scheduler_num_cycles")) is not None:
        result["lr_scheduler_num_cycles"] = as_number(cycles)
        if has_floor:
            old.notes.append(
                f"lr_scheduler_num_cycles = {cycles}: cosine_with_min_lr takes half of it, so that "
                "1 reaches the floor at the end, and 0.5 half of the way"
            )
    return result


def _warmup(old: _Old) -> Values:
    training = old["training"]
    steps, share = training.take("lr_warmup_steps"), training.take("lr_warmup_ratio")
    if steps is not None:
        if share:
            old.notes.append(f"training.lr_warmup_ratio = {share} had no effect: lr_warmup_steps")
        return {"lr_warmup_steps": as_whole(steps)}
    if isinstance(share, int | float) and share > 0:
        return {"lr_warmup_steps": float(share)}
    return {}


def _optimizer(old: _Old) -> Values:
    optimizer = old["optimizer"]
    result: Values = {}
    if kind := optimizer.take("type"):
        result["optimizer_type"] = _SCHEDULE_FREE.get(str(kind).lower(), kind)
    arguments = [
        f"{name}={as_number(value)}"
        for name in ("weight_decay", "eps")
        if (value := optimizer.take(name)) is not None
    ]
    first, second = optimizer.take("beta1"), optimizer.take("beta2")
    if first is not None and second is not None:
        arguments.append(f"betas=({as_number(first)},{as_number(second)})")
    else:
        for name in ("beta1", "beta2"):
            old.leave("optimizer", name, "betas takes both: beta1 and beta2")
    return result | ({"optimizer_args": arguments} if arguments else {})


def _dataset(old: _Old) -> Values:
    section, training = old["dataset"], old["training"]
    general = _renamed(
        section,
        {
            name: name
            for name in (
                "shuffle_caption",
                "keep_tokens",
                "keep_tokens_separator",
                "caption_extension",
            )
        },
    )
    general |= _flag(section, "flip_augment", "flip_aug")
    if (rate := training.take("caption_tag_dropout_rate")) is not None:
        general["caption_tag_dropout_rate"] = as_number(rate)
    dataset: Values = {}
    if (resolution := section.take("resolution")) is not None:
        dataset["resolution"] = as_whole(resolution)
    if (batch_size := training.take("batch_size")) is not None:
        dataset["batch_size"] = as_whole(batch_size)
    buckets = {
        "min_reso": "min_bucket_reso",
        "max_reso": "max_bucket_reso",
        "reso_step": "bucket_reso_steps",
    }
    if {*buckets, "max_ar"} & section.values.keys():
        dataset["enable_bucket"] = True
    dataset |= _renamed(section, buckets)
    subset = _renamed(section, {"data_dir": "image_dir"})
    repeats = as_whole(section.take("repeats"))
    # The seed trains on pictures of 0 repeats once too.
    subset["num_repeats"] = 1 if repeats in (None, "", 0) else repeats
    dataset["subsets"] = [subset]
    return {**({"general": general} if general else {}), "datasets": [dataset]}


def _renamed(section: _Section, names: Mapping[str, str]) -> Values:
    """Return what a section has of these keys, under their new names."""
    found = {new: section.take(name) for name, new in names.items()}
    return {name: value for name, value in found.items() if value is not None}


def _flag(section: _Section, name: str, new: str) -> Values:
    value = section.take(name)
    return {} if value is None else {new: _truth(value)}


def _truth(value: object) -> object:
    return bool(value) if isinstance(value, int) else value


def _unmapped(old: _Old, table: Mapping[str, object]) -> Iterator[Leftover]:
    guesses = iter(range(MOST_SHOWN))
    for name, value in table.items():
        if name not in SECTIONS or not isinstance(value, dict):
            yield Leftover(name, WITHOUT_COUNTERPART.get(name) or _hint(name, guesses))
            continue
        for key in old[name].left():
            written = f"{name}.{key}"
            known = old.why.get(written) or WITHOUT_COUNTERPART.get(written)
            yield Leftover(written, known or _hint(key, guesses))


def _hint(key: str, guesses: Iterator[int]) -> str:
    if find_option(key):
        return f"there is an option of this name: write {key} into train_args.toml"
    near = nearest_name(key) if next(guesses, None) is not None else None
    return f"unknown; did you mean {near}?" if near else "unknown"
