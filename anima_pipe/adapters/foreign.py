"""What other programs call modules: diffusers' names of Anima's, and names of other models'."""

from __future__ import annotations

import re
from typing import Final

DIFFUSERS_TEXT_ADAPTER: Final = "text_conditioner."
"""What diffusers' pipeline calls the text adapter, whose modules have the checkpoint's names."""

_TEXT_ADAPTER: Final = "llm_adapter."

_DIFFUSERS_NAMES: Final = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^x_embedder\.proj\.1$", "patch_embed.proj"),
        (r"^t_embedder\.1(?=\.|$)", "time_embed.t_embedder"),
        (r"^t_embedding_norm$", "time_embed.norm"),
        (r"^final_layer\.linear$", "proj_out"),
        (r"^final_layer\.adaln_modulation\.", "norm_out.linear_"),
        (r"\.adaln_modulation_self_attn\.", ".norm1.linear_"),
        (r"\.adaln_modulation_cross_attn\.", ".norm2.linear_"),
        (r"\.adaln_modulation_mlp\.", ".norm3.linear_"),
        (r"\.self_attn\.", ".attn1."),
        (r"\.cross_attn\.", ".attn2."),
        (r"\.([qkv])_proj$", r".to_\1"),
        (r"\.output_proj$", ".to_out.0"),
        (r"\.([qk])_norm$", r".norm_\1"),
        (r"\.mlp\.layer1$", ".ff.net.0.proj"),
        (r"\.mlp\.layer2$", ".ff.net.2"),
        (r"^blocks\.", "transformer_blocks."),
    )
)
"""Of the checkpoint's path of a transformer's module, in this order, what diffusers replaces."""

_OTHER_MODELS: Final = tuple(
    (re.compile(pattern), whose)
    for pattern, whose in (
        (r"lora_te\d?_|text_encoder(_\d)?\.|(.*\.)?text_model\.", "of a text encoder (lora_te)"),
        (r"(.*[._])?(double|single)_blocks?[._]\d", "of FLUX or HunyuanVideo"),
        (r"(.*[._])?single_transformer_blocks[._]\d", "of FLUX, in diffusers' names"),
        (r"(.*[._])?joint_blocks[._]\d", "of Stable Diffusion 3"),
        (
            r"(lora_)?unet[._]|(.*[._])?(down|up|input|output)_blocks[._]\d|(.*[._])?mid_block",
            "of a U-Net, as in Stable Diffusion and SDXL",
        ),
        (
            r"(.*[._])?transformer_blocks[._]\d+[._](attn|img_mlp|txt_mlp|img_mod|txt_mod)[._]",
            "of Qwen-Image or another model of two streams, in diffusers' names",
        ),
        (
            r"(.*[._])?blocks[._]\d+[._]((self|cross)_attn[._][qkvo]$|ffn[._])",
            "of Wan",
        ),
        (
            r"(.*[._])?layers[._]\d+[._](attention|feed_forward)[._]",
            "of Lumina or Z-Image",
        ),
        (r"(.*[._])?layers[._]\d+[._](self_attn|mlp)[._]", "of a language model"),
    )
)
"""Beginnings of modules' names that no Anima has; looked at only where a name is not Anima's."""


def diffusers_path(path: str) -> str:
    """Return what diffusers calls the module that the checkpoint calls `path`."""
    if path.startswith(_TEXT_ADAPTER):
        return DIFFUSERS_TEXT_ADAPTER + path.removeprefix(_TEXT_ADAPTER)
    for pattern, name in _DIFFUSERS_NAMES:
        path = pattern.sub(name, path)
    return path


def whose_module(part: str) -> str | None:
    """Return which model a file's name of a module is recognisably of, or None."""
    bare = part.removeprefix("lora_unet_").removeprefix("diffusion_model.")
    candidates = (part, bare)
    return next(
        (whose for pattern, whose in _OTHER_MODELS if any(map(pattern.match, candidates))), None
    )
