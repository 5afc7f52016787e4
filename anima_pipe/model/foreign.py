"""What a file is that is no Anima transformer: recognised by the names of its tensors."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple


class Foreign(NamedTuple):
    """A kind of file that people give by mistake."""

    marker: str
    """Regular expression that matches within the name of some tensor of such files alone."""
    kind: str
    remedy: str


_BASE = "Give an Anima transformer, such as anima-base-v1.0.safetensors."

# From the particular to the general: the first that matches is told.
_FOREIGN = (
    Foreign(
        r"\.(lora_[AB]|lora_down|lora_up|lokr_w[12](_[ab])?|hada_w[12]_[ab]"
        r"|dora_scale|diff|diff_b|w_norm|b_norm)(\.|$)|^lora_unet_",
        "an adapter (LoRA, LoKr or LoHa), not a base model",
        "Give the base model here; to go on training an adapter, give it as --network_weights.",
    ),
    Foreign(r"(^|\.)double_blocks\.\d+\.img_attn\.", "a Flux transformer", _BASE),
    Foreign(r"(^|\.)single_transformer_blocks\.", "a Flux transformer", _BASE),
    Foreign(r"(^|\.)joint_blocks\.\d+\.", "a Stable Diffusion 3 transformer", _BASE),
    Foreign(
        r"(^|\.)input_blocks\.\d+\.|(^|\.)down_blocks\.\d+\.attentions\.",
        "a Stable Diffusion or SDXL UNet",
        _BASE,
    ),
    Foreign(r"(^|\.)head\.modulation$", "a Wan video transformer", _BASE),
    Foreign(r"(^|\.)transformer_blocks\.\d+\.img_mod\.", "a Qwen-Image transformer", _BASE),
    Foreign(r"(^|\.)(cap_embedder|noise_refiner)\.", "a Lumina or Z-Image transformer", _BASE),
    Foreign(r"(^|\.)blocks\.block\d+\.", "a transformer of Cosmos 1.0", _BASE),
    Foreign(
        r"(^|\.)transformer_blocks\.\d+\.attn1\.",
        "a transformer in diffusers' naming",
        "Give the single-file checkpoint, such as anima-base-v1.0.safetensors.",
    ),
    Foreign(
        r"^(model\.)?(encoder|decoder)\.(conv1|conv_in|middle|mid_block|downsamples|upsamples)\.",
        "a VAE",
        "Give it as --vae, and the transformer here.",
    ),
    Foreign(
        r"(^|\.)embed_tokens\.weight$|(^|\.)text_model\.encoder\.|^encoder\.block\.\d+\.layer\.",
        "a text encoder",
        "Give it as --qwen, and the transformer here.",
    ),
)


def describe_foreign(names: Collection[str]) -> tuple[str, str] | None:
    """Return what a file looks like and what to give instead; None if it looks like nothing known.

    Args:
        names: Of all its tensors.
    """
    for foreign in _FOREIGN:
        if any(re.search(foreign.marker, name) for name in names):
            return foreign.kind, foreign.remedy
    return None
