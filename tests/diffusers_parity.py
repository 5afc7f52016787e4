"""Anima as diffusers implements it, with our weights: the outside opinion that tests compare to."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import SimpleNamespace

import torch
from diffusers import (
    AnimaTextConditioner,  # pyright: ignore[reportPrivateImportUsage] - exported lazily
    CosmosTransformer3DModel,  # pyright: ignore[reportPrivateImportUsage]
)

from anima_pipe.model import TransformerConfig

_RENAMED = {
    "x_embedder.proj.1.": "patch_embed.proj.",
    "t_embedder.1.": "time_embed.t_embedder.",
    "t_embedding_norm.": "time_embed.norm.",
    "final_layer.linear.": "proj_out.",
    "final_layer.adaln_modulation.": "norm_out.linear_",
    "blocks.": "transformer_blocks.",
    "adaln_modulation_self_attn.": "norm1.linear_",
    "adaln_modulation_cross_attn.": "norm2.linear_",
    "adaln_modulation_mlp.": "norm3.linear_",
    "self_attn.": "attn1.",
    "cross_attn.": "attn2.",
    "q_proj.": "to_q.",
    "k_proj.": "to_k.",
    "v_proj.": "to_v.",
    "output_proj.": "to_out.0.",
    "q_norm.": "norm_q.",
    "k_norm.": "norm_k.",
    "mlp.layer1.": "ff.net.0.proj.",
    "mlp.layer2.": "ff.net.2.",
}


def diffusers_name(name: str) -> str:
    """Return what diffusers calls one of the transformer's own parameters (not the adapter's)."""
    for ours, theirs in _RENAMED.items():
        name = name.replace(ours, theirs)
    return name


def diffusers_transformer(
    weights: Mapping[str, torch.Tensor], config: TransformerConfig
) -> CosmosTransformer3DModel:
    """Build diffusers' transformer from the weights of an AnimaTransformer, copied."""
    give_torchvision()
    transformer = CosmosTransformer3DModel(
        in_channels=16,
        out_channels=16,
        num_attention_heads=config.heads,
        attention_head_dim=config.head_width,
        num_layers=config.blocks,
        mlp_ratio=config.mlp_width / config.width,
        text_embed_dim=config.context_width,
        adaln_lora_dim=config.adaln_width,
        patch_size=(1, 2, 2),
        rope_scale=(1.0, 4.0, 4.0),
        concat_padding_mask=config.padding_mask,
        extra_pos_embed_type=None,
    )
    own = {n: w for n, w in weights.items() if not n.startswith("llm_adapter.")}
    transformer.load_state_dict({diffusers_name(name): weight for name, weight in own.items()})
    return transformer


def diffusers_text_conditioner(
    weights: Mapping[str, torch.Tensor], config: TransformerConfig
) -> AnimaTextConditioner:
    """Build diffusers' text adapter from the weights of an AnimaTransformer, copied."""
    sizes = config.llm_adapter
    conditioner = AnimaTextConditioner(
        source_dim=sizes.source_width,
        target_dim=sizes.output_width,
        model_dim=sizes.width,
        num_layers=sizes.blocks,
        num_attention_heads=sizes.heads,
        mlp_ratio=sizes.mlp_width / sizes.width,
        target_vocab_size=sizes.vocabulary,
    )
    prefix = "llm_adapter."
    conditioner.load_state_dict(
        {name[len(prefix) :]: weight for name, weight in weights.items() if name.startswith(prefix)}
    )
    return conditioner


def diffusers_velocity(
    transformer: torch.nn.Module,
    latents: torch.Tensor,
    sigma: torch.Tensor,
    context: torch.Tensor,
) -> torch.Tensor:
    """Call diffusers' transformer, or a wrapper of it, as `AnimaTransformer` is called."""
    mask = latents.new_zeros(1, 1, *latents.shape[2:])
    output = transformer(
        hidden_states=latents.unsqueeze(2),
        timestep=sigma,
        encoder_hidden_states=context,
        padding_mask=mask,
        return_dict=False,
    )
    return output[0].squeeze(2)


def diffusers_condition(
    conditioner: torch.nn.Module,
    qwen_hidden: torch.Tensor,
    t5_ids: torch.Tensor,
    qwen_mask: torch.Tensor | None = None,
    t5_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Call diffusers' text adapter, or a wrapper of it, as `preprocess_text_embeds` is called."""
    return conditioner(
        source_hidden_states=qwen_hidden,
        target_input_ids=t5_ids,
        target_attention_mask=t5_mask,
        source_attention_mask=qwen_mask,
    )


def give_torchvision() -> None:
    """Stand in for the one function that diffusers' transformer wants of torchvision.

    It resizes the padding mask to the size of the latents. torchvision is not among the tests'
    packages: its builds fit one build of torch each.
    """

    def resize(mask: torch.Tensor, size: list[int], interpolation: str) -> torch.Tensor:
        return torch.nn.functional.interpolate(mask, size=size, mode=interpolation)

    module = importlib.import_module("diffusers.models.transformers.transformer_cosmos")
    module.transforms = SimpleNamespace(  # pyright: ignore[reportAttributeAccessIssue]
        functional=SimpleNamespace(resize=resize),
        InterpolationMode=SimpleNamespace(NEAREST="nearest"),
    )
