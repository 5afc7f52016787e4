"""Options of the adapter that is trained."""

from typing import Final

from anima_pipe.kohya.rows import (
    EXPORT,
    TRAINING,
    Option,
    Refused,
    flag,
    group,
    integer,
    no_op,
    number,
    pairs,
    path,
    refused,
    text,
    texts,
)
from anima_pipe.kohya.table.network_args import NO_NETWORK

_SD_NETWORK: Final = Refused("it is made for Stable Diffusion's U-Net", "use networks.lora_anima")
_OTHER_NETWORK: Final = Refused("it is made for another model", "use networks.lora_anima")

NETWORK: Final[tuple[Option, ...]] = group(
    "Adapter",
    TRAINING,
    text(
        "network_module",
        "Kind of adapter; lycoris.kohya takes it from network_args algo=lora, loha or lokr. none: "
        "no adapter, the model's own weights are trained and a checkpoint is saved.",
        default="networks.lora_anima",
        default_note="The seed's; Kohya has none.",
        choices=(
            "networks.lora_anima",
            "networks.lokr_anima",
            "networks.loha",
            "networks.lokr",
            "networks.tlora_anima",
            "lycoris.kohya",
            NO_NETWORK,
        ),
        words_of_unknown="Unsupported network module: {}. Expected one of: "
        "('networks.lora_anima', 'networks.lokr_anima')",
        refused_values={
            "networks.lora": _SD_NETWORK,
            "networks.dylora": _SD_NETWORK,
            "networks.oft": _SD_NETWORK,
            "networks.oft_v2": _SD_NETWORK,
            "networks.boft": _SD_NETWORK,
            "networks.lora_fa": _SD_NETWORK,
            "networks.lora_flux": _OTHER_NETWORK,
            "networks.lora_sd3": _OTHER_NETWORK,
            "networks.lora_lumina": _OTHER_NETWORK,
        },
        test="test_options_of_training.py::test_network_module_says_which_tensors_are_trained",
    ),
    integer(
        "network_dim",
        "Rank; 16 to 32 is usual. From 100000, networks.lokr_anima trains full matrices.",
        default=4,
        default_note="Kohya leaves it unset, and its adapters then take 4.",
        minimum=1,
        test="test_options_of_training.py::test_network_dim_and_network_alpha_are_those_of_the_file",
    ),
    number(
        "network_alpha",
        "The adapter's output is scaled by alpha / rank; 0: alpha is the rank.",
        default=1,
        minimum=0,
        zero_is_none=True,
        test="test_options_of_training.py::test_network_dim_and_network_alpha_are_those_of_the_file",
    ),
    number(
        "network_dropout",
        "Share of inputs dropped in training.",
        minimum=0,
        maximum=1,
        test="test_options_of_training.py::test_network_dropout_leaves_inputs_out",
    ),
    pairs(
        "network_args",
        "Further arguments of the adapter, such as lokr_factor=8.",
        test="test_options_of_training.py::test_network_args_reach_the_adapter",
    ),
    path(
        "network_weights",
        "Start from this adapter file; optimizer and steps start afresh.",
        test="test_options_of_training.py::test_network_weights_are_where_training_starts",
    ),
    flag(
        "allow_unmatched",
        "Leave out, with a warning, what of an adapter file matches nothing in the model; else it "
        "is an error.",
        commands=(*TRAINING, EXPORT),
        test="test_adapter_leniency.py::test_commands_leave_out_what_matches_nothing_if_told_to",
    ),
    flag(
        "train_norm",
        "Train the norm layers' weights too.",
        default=True,
        default_note="The seed's; Kohya's networks leave them out.",
        test="test_options_of_training.py::test_parts_are_trained_unless_switched_off",
    ),
    flag(
        "train_llm_adapter",
        "Train the text adapter's layers too; the presets leave them as they are.",
        default=True,
        default_note="The seed's; Kohya's networks leave them out.",
        test="test_options_of_training.py::test_parts_are_trained_unless_switched_off",
    ),
    *no_op(
        "Qwen3 is always frozen, as in Kohya; the text adapter, which is part of the transformer, "
        "trains unless train_llm_adapter = false",
        flag(
            "network_train_unet_only",
            "Train no adapter of the text encoder.",
            default=None,
            default_note="Always on here.",
        ),
    ),
    *refused(
        "Qwen3 is frozen; there is nothing else to train",
        "remove it",
        flag("network_train_text_encoder_only", "Train the text encoder's adapter alone."),
    ),
    flag(
        "dim_from_weights",
        "Rank and alpha are network_weights', whatever network_dim says.",
        test="test_options_of_training.py::test_dim_from_weights_takes_the_rank_of_the_file",
    ),
    texts(
        "base_weights",
        "Adapter files merged into the base before training.",
        test="test_options_of_training.py::test_base_weights_are_merged_at_their_multiplier",
    ),
    texts(
        "base_weights_multiplier",
        "Their strengths, in their order; 1 where none is given.",
        test="test_options_of_training.py::test_base_weights_are_merged_at_their_multiplier",
    ),
    number(
        "scale_weight_norms",
        "Largest norm of each layer's change, kept after every step; 1 is a usual start, 0: any.",
        minimum=0,
        zero_is_none=True,
        test="test_adapter_options.py::test_every_layers_change_stays_below_the_norm_that_was_set",
    ),
    *refused(
        "an adapter for the transformer alone, without the T5 path, is not what programs load",
        "remove it; use --no-train_llm_adapter to leave the text adapter as it is",
        flag("dit_only", "Train without the T5 path."),
    ),
)
