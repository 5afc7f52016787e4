"""Presets of the kohya_ss GUI: one flat JSON object of Kohya's options and the GUI's own fields.

The GUI writes every field it has, most of them for other models, and means "not set" by an empty
text or by 0. Only what differs from the defaults is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from anima_pipe.errors import ConfigError
from anima_pipe.kohya.converted import Converted, Leftover, as_number, as_whole
from anima_pipe.kohya.options import find_option
from anima_pipe.kohya.rows import Kind, NoOp, Option, Refused
from anima_pipe.kohya.table.other_models import OTHER_MODELS
from anima_pipe.kohya.values import is_blank, is_harmless

RENAMED: Final[Mapping[str, str]] = {
    "optimizer": "optimizer_type",
    "max_resolution": "resolution",
    "lora_network_weights": "network_weights",
}

ADAPTERS: Final[Mapping[str, str]] = {
    "Anima": "networks.lora_anima",
    "Standard": "networks.lora_anima",
    "LyCORIS/LoKr": "networks.lokr_anima",
}
"""LoRA_type, and the module that means the same here."""

_LOKR_ARGUMENTS: Final[Mapping[str, str]] = {
    "factor": "lokr_factor",
    "decompose_both": "lokr_decompose_both",
    "full_matrix": "lokr_full_matrix",
}

_MIXED: Final = frozenset(
    {
        "LoRA_type",
        "epoch",
        "lr_warmup",
        "module_dropout",
        "noise_offset_type",
        "rank_dropout",
        "sample_prompts",
        "sample_sampler",
        "xformers",
    }
)
"""Fields that a rule of their own takes care of."""

_UNSET_BY_ZERO: Final = frozenset({"unet_lr", "seed", "lr_warmup_steps", "network_dropout"})

_LAUNCHER: Final = frozenset(
    {
        "dynamo_backend",
        "dynamo_mode",
        "dynamo_use_dynamic",
        "dynamo_use_fullgraph",
        "extra_accelerate_launch_args",
        "gpu_ids",
        "main_process_port",
        "multi_gpu",
        "num_cpu_threads_per_process",
        "num_machines",
        "num_processes",
    }
)

_CLIP: Final = frozenset(row.name for row in OTHER_MODELS)

PROMPTS_NAME: Final = "sample_prompts.txt"
"""File that prompts within the preset are written to."""

Preset = Mapping[str, object]
Values = dict[str, object]


def convert_gui_preset(preset: Preset) -> Converted:
    """Return what a preset becomes; the dataset stays where its options say.

    Raises:
        ConfigError: The file is no preset of the GUI.
    """
    if "LoRA_type" not in preset:
        raise ConfigError(
            "this JSON is no preset of kohya_ss GUI: it has no LoRA_type",
            "give a preset saved by its LoRA tab, or the seed's older single file (.toml)",
        )
    train_args = _adapter(preset)
    for key, value in preset.items():
        option = _option(key)
        if option and key not in _MIXED and not _is_unset(option, value):
            train_args[option.name] = _typed(option, value)
    train_args |= _length(preset) | _attention(preset)
    for name in _unused_noise(preset):
        train_args.pop(name, None)
    prompts = str(preset.get("sample_prompts") or "")
    in_file = prompts.endswith((".txt", ".toml", ".json")) and "\n" not in prompts
    if prompts:
        train_args["sample_prompts"] = prompts if in_file else PROMPTS_NAME
    return Converted(
        train_args=train_args,
        prompts=f"{prompts}\n" if prompts and not in_file else None,
        unmapped=tuple(_unmapped(preset)),
        notes=tuple(_notes(preset)),
    )


def _option(key: str) -> Option | None:
    """Return the option that a field means; those of Stable Diffusion's text encoder mean none."""
    if key in _LAUNCHER or key in _CLIP:
        return None
    return (
        find_option(key)
        or find_option(RENAMED.get(key, ""))
        or find_option(key.removeprefix("anima_"))
    )


def _is_unset(option: Option, value: object) -> bool:
    number = as_number(value)
    if is_blank(value) or _typed(option, value) == option.default:
        return True
    if isinstance(option.status, NoOp) and value is False:
        return True
    if isinstance(option.status, Refused | NoOp):
        return is_harmless(option, number)
    below = option.minimum is not None and isinstance(number, float) and number < option.minimum
    return number == 0 and (below or option.name in _UNSET_BY_ZERO)


def _typed(option: Option, value: object) -> object:
    """Return a field's value as TOML has it; the GUI keeps some numbers and all lists as text."""
    match option.kind:
        case Kind.INTEGER:
            return as_whole(value)
        case Kind.NUMBER | Kind.COUNT_OR_SHARE if isinstance(value, str):
            return as_number(value)
        case Kind.PAIRS | Kind.TEXTS if isinstance(value, str):
            return value.replace('"', "").split()
        case _:
            return value


def _adapter(preset: Preset) -> Values:
    kind = str(preset["LoRA_type"])
    module = ADAPTERS.get(kind, "lycoris.kohya")
    arguments = [
        f"{name}={preset[name]}" for name in ("rank_dropout", "module_dropout") if preset.get(name)
    ]
    if module == "networks.lokr_anima":
        arguments += [
            f"{new}={preset[name]}" for name, new in _LOKR_ARGUMENTS.items() if name in preset
        ]
    elif kind not in ADAPTERS:
        arguments.append(f"algo={kind.removeprefix('LyCORIS/').lower()}")
    return {"network_module": module, **({"network_args": arguments} if arguments else {})}


def _length(preset: Preset) -> Values:
    """Return epochs where no steps are given, and the warmup, a percentage of the run."""
    result: Values = {}
    if not (as_number(preset.get("max_train_steps")) or as_number(preset.get("max_train_epochs"))):
        epochs = as_whole(preset.get("epoch"))
        result["max_train_epochs"] = 1 if epochs in (None, "", 0) else epochs
    percent = as_number(preset.get("lr_warmup"))
    if isinstance(percent, float) and percent and not as_number(preset.get("lr_warmup_steps")):
        result["lr_warmup_steps"] = percent / 100
    return result


def _attention(preset: Preset) -> Values:
    return {str(preset["xformers"]): True} if preset.get("xformers") in ("xformers", "sdpa") else {}


def _unused_noise(preset: Preset) -> tuple[str, ...]:
    """Return the options of the kind of noise offset that the GUI leaves out."""
    if preset.get("noise_offset_type") == "Multires":
        return ("noise_offset", "noise_offset_random_strength", "adaptive_noise_scale")
    return ("multires_noise_iterations", "multires_noise_discount")


def _unmapped(preset: Preset) -> Iterator[Leftover]:
    is_lokr = ADAPTERS.get(str(preset["LoRA_type"])) == "networks.lokr_anima"
    for key, value in preset.items():
        if key in _MIXED or _option(key) or (is_lokr and key in _LOKR_ARGUMENTS):
            continue
        if key in _LAUNCHER:
            yield Leftover(key, "give it to accelerate launch")
        elif key == "additional_parameters" and value:
            yield Leftover(key, f"write these options into train_args.toml: {value}")
        elif key in _CLIP:
            yield Leftover(key, "it concerns Stable Diffusion's text encoder")
        else:
            yield Leftover(key, "of the GUI itself or of other models and kinds of adapter")


def _notes(preset: Preset) -> Iterator[str]:
    if preset.get("sample_sampler") not in (None, "", "euler", "k_euler"):
        yield (
            f"sample_sampler {preset['sample_sampler']} is left out: with Anima, Kohya draws "
            "previews by Euler, and so does this project"
        )
    if not preset.get("anima_t5_tokenizer_path"):
        yield "the preset names no T5 tokenizer: set t5_tokenizer_dir"
