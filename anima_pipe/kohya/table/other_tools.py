"""Keys that other trainers write into files like Kohya's: whose they are, what to use instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple


class OtherTool(NamedTuple):
    """Where a key comes from, and what serves its purpose here."""

    tool: str
    instead: str
    harmless: bool
    """Whether it cannot change the trained adapter: warned of, and not refused."""


_REMOVE: Final = "remove it"
_FROM_TEXT_ALONE: Final = "remove it: the released model draws from text alone"

_LORA_SCRIPTS: Final[Mapping[str, str]] = {
    "model_train_type": _REMOVE,
    "base_model": _REMOVE,
    "template_version": _REMOVE,
    "scope": _REMOVE,
    "lora_type": "set network_module to networks.lora_anima or networks.lokr_anima",
    "lycoris_algo": 'write network_args = ["algo=lokr"] beside network_module = "lycoris.kohya"',
    "lokr_factor": 'write network_args = ["lokr_factor=8"]',
    "prefer_json_caption": 'set caption_extension to ".json"',
    "enable_preview": "set sample_prompts and sample_every_n_steps",
    "positive_prompts": "write the prompt into the file of sample_prompts",
    "negative_prompts": "write it behind --n in the file of sample_prompts",
    "sample_width": "write it behind --w in the file of sample_prompts",
    "sample_height": "write it behind --h in the file of sample_prompts",
    "sample_cfg": "write it behind --l in the file of sample_prompts",
    "sample_seed": "write it behind --d in the file of sample_prompts",
    "sample_steps": "write it behind --s in the file of sample_prompts",
    "sample_scheduler": _REMOVE,
}
_ANIMA_LORA: Final[Mapping[str, str]] = {
    "train_type": _REMOVE,
    "method": "set network_module to networks.lora_anima or networks.lokr_anima",
    "use_vae_cache": "remove it; latents are always cached",
    "use_text_cache": "remove it; text is always cached",
    "compile_dynamic_seq": _REMOVE,
}
_EASY_SCRIPTS: Final[Mapping[str, str]] = {
    "train_mode": _REMOVE,
    "warmup_ratio": "write the share into lr_warmup_steps, for example lr_warmup_steps = 0.05",
    "resolution_schedule": "write one [[datasets]] for each resolution into dataset.toml",
    "random_crop_padding_percent": _REMOVE,
}
_FAST_PATH: Final[Mapping[str, str]] = {
    "selective_checkpointing": "use gradient_checkpointing",
    "checkpoint_blocks": "use gradient_checkpointing",
    "text_encoder": "set qwen3 to the path",
    "fused_lora": _REMOVE,
    "fused_mlp": _REMOVE,
    "fused_mlp_storage": _REMOVE,
    "fused_mlp_fp8_backend": _REMOVE,
    "fused_mlp_fp8_direct_backward": _REMOVE,
}
_EDIT_FORK: Final[Mapping[str, str]] = {
    "anima_multi_image_edit": _FROM_TEXT_ALONE,
    "anima_sample_reference_dir": _FROM_TEXT_ALONE,
    "conditioning": _FROM_TEXT_ALONE,
}
_FREE_BUCKETS_FORK: Final[Mapping[str, str]] = {
    "bucket_free_fit": "remove it; bucket_no_upscale lets buckets follow the pictures' sizes",
}
_STANDALONE: Final[Mapping[str, str]] = {
    "flash_attn": "remove it; attention is torch's own",
    "timestep_bias_strategy": "use timestep_sampling",
}

_HARMLESS: Final = frozenset(
    {
        *("template_version", "scope", "enable_preview", "positive_prompts", "negative_prompts"),
        *("sample_width", "sample_height", "sample_cfg", "sample_seed", "sample_steps"),
        *("sample_scheduler", "use_vae_cache", "use_text_cache", "compile_dynamic_seq"),
        *("selective_checkpointing", "checkpoint_blocks", "fused_lora", "fused_mlp"),
        *("fused_mlp_storage", "fused_mlp_fp8_backend", "fused_mlp_fp8_direct_backward"),
        "flash_attn",
    }
)
"""What concerns previews, speed and memory, or the program that wrote the file."""

OTHER_TOOLS: Final[Mapping[str, OtherTool]] = {
    key: OtherTool(tool, instead, key in _HARMLESS)
    for tool, keys in {
        "lora-scripts (SD-Trainer)": _LORA_SCRIPTS,
        "the anima_lora runtime of lora-scripts-next": _ANIMA_LORA,
        "LoRA_Easy_Training_Scripts": _EASY_SCRIPTS,
        "the anima-lora-fastpath fork": _FAST_PATH,
        "a fork for image editing": _EDIT_FORK,
        "a fork with free bucket sizes": _FREE_BUCKETS_FORK,
        "Anima-Standalone-Trainer": _STANDALONE,
    }.items()
    for key, instead in keys.items()
}
