"""Which model a file of weights is of: recognised by the names of its tensors."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from anima_pipe.errors import CheckpointError
from anima_pipe.weights.files import listed

TRANSFORMER = "pretrained_model_name_or_path"
LLM_ADAPTER = "llm_adapter_path"
VAE = "vae"
QWEN3 = "qwen3"
NETWORK = "network_weights"
"""The options that take files of weights."""


class Kind(NamedTuple):
    """A kind of file."""

    marker: str
    """Regular expression that matches within the name of some tensor of such files alone."""
    words: str
    option: str | None = None
    """The option that takes such files; None: they are of another program."""


# From the particular to the general: the first that matches is told.
_KINDS = (
    Kind(
        r"\.(lora_[AB]|lora_down|lora_up|lokr_w[12](_[ab])?|hada_w[12]_[ab]"
        r"|dora_scale|diff|diff_b|w_norm|b_norm)(\.|$)|^lora_unet_",
        "an adapter (LoRA, LoKr or LoHa), not a base model",
        NETWORK,
    ),
    Kind(r"(^|\.)double_blocks\.\d+\.img_attn\.", "a Flux transformer"),
    Kind(r"(^|\.)single_transformer_blocks\.", "a Flux transformer"),
    Kind(r"(^|\.)joint_blocks\.\d+\.", "a Stable Diffusion 3 transformer"),
    Kind(
        r"(^|\.)input_blocks\.\d+\.|(^|\.)down_blocks\.\d+\.attentions\.",
        "a Stable Diffusion or SDXL UNet",
    ),
    Kind(r"(^|\.)head\.modulation$", "a Wan video transformer"),
    Kind(r"(^|\.)transformer_blocks\.\d+\.img_mod\.", "a Qwen-Image transformer"),
    Kind(r"(^|\.)(cap_embedder|noise_refiner)\.", "a Lumina or Z-Image transformer"),
    Kind(r"(^|\.)blocks\.block\d+\.", "a transformer of Cosmos 1.0"),
    Kind(r"(^|\.)transformer_blocks\.\d+\.attn1\.", "a transformer in diffusers' naming"),
    Kind(
        r"(^|\.)blocks\.\d+\.adaln_modulation|(^|\.)x_embedder\.proj\.1\.",
        "the Anima or Cosmos transformer",
        TRANSFORMER,
    ),
    Kind(
        r"(^|\.)llm_adapter\.|^blocks\.\d+\.norm_cross_attn\.",
        "Anima's text adapter alone",
        LLM_ADAPTER,
    ),
    Kind(r"^model\.diffusion_model\.", "a whole checkpoint of another model"),
    Kind(
        r"encoder\.down\.0\.block|encoder\.down_blocks\.0\.resnets",
        "the VAE of Stable Diffusion or Flux",
    ),
    Kind(r"encoder\.downsamples\.0\.downsamples", "the VAE of Wan 2.2"),
    Kind(r"encoder\.(downsamples|mid_block)\.", "the VAE of Wan 2.1 or Qwen-Image", VAE),
    Kind(
        r"^(model\.)?(encoder|decoder)\.(conv1|conv_in|middle|mid_block|downsamples|upsamples)\.",
        "a VAE",
        VAE,
    ),
    Kind(r"(^|\.)encoder\.block\.\d+\.layer\.", "a T5 text encoder"),
    Kind(r"(^|\.)text_model\.encoder\.", "a CLIP text encoder"),
    Kind(r"(^|\.)layers\.\d+\.self_attn\.q_norm\.", "a Qwen3 language model", QWEN3),
    Kind(
        r"(^|\.)embed_tokens\.weight$|(^|\.)self_attn\.q_proj\.",
        "a language model",
    ),
)


def find_kind(names: Collection[str]) -> Kind | None:
    """Return what a file is by the names of all its tensors; None: nothing known."""
    matches = (kind for kind in _KINDS if any(re.search(kind.marker, name) for name in names))
    return next(matches, None)


def wrong_kind(
    path: Path, wanted: str, option: str, names: Collection[str], remedy: str
) -> CheckpointError:
    """Return the error for a file that is not what it was given as.

    Args:
        path: The file.
        wanted: What it ought to be, in words.
        option: The one that it was given as.
        names: Of all its tensors.
        remedy: What to do where no other option takes the file.
    """
    kind = find_kind(names)
    # Of the wanted kind by some names, and yet not it: only the names themselves say more.
    if kind is None or kind.option == option:
        return CheckpointError(f"{path} is not {wanted}: its tensors are {listed(names)}", remedy)
    if kind.option is not None:
        remedy = f"Give it as --{kind.option}. {remedy}"
    return CheckpointError(f"{path} is not {wanted}: it looks like {kind.words}", remedy)
