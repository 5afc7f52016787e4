"""The settings of runs: frozen dataclasses, one module for each stage, and `trained`.

Where an option of the command line says the same, a field is called as the option is, so that an
error's words serve both. `FIELDS` has those that are called otherwise.
"""

from collections.abc import Mapping
from typing import Final

FIELDS: Final[Mapping[str, str]] = {
    "anima_monitor_alert_policy": "AlarmConfig.stops",
    "anima_monitor_loss_spike_ratio": "AlarmConfig.loss_ratio",
    "anima_monitor_memory_warn_ratio": "AlarmConfig.memory_share",
    "auto_download_t5_tokenizer": "DataSettings.tokenizer_sources",
    "cache_dir": "CacheSettings.folder",
    "cache_dtype": "CacheSettings.dtype",
    "conditioning_data_dir": "SubsetConfig.mask_dir",
    "ddp_static_graph": "ProcessConfig.static_graph",
    "llm_adapter_path": "ModelSettings.llm_adapter",
    "log_prefix": "LogSettings.prefix",
    "log_with": "LogSettings.kinds",
    "logging_dir": "LogSettings.folder",
    "max_data_loader_n_workers": "LatentSettings.workers",
    "max_timestep": "SigmaConfig.highest",
    "max_validation_steps": "ValidationConfig.max_batches",
    "metadata_thumbnail": "MetadataSettings.thumbnail",
    "min_timestep": "SigmaConfig.lowest",
    "num_workers": "LatentSettings.workers",
    "output_dir": "SaveConfig.folder",
    "output_name": "SaveConfig.name",
    "pretrained_model_name_or_path": "ModelSettings.transformer",
    "qwen3": "TextSettings.qwen",
    "sample_at_first": "PreviewSettings.at_first",
    "sample_every_n_epochs": "PreviewSettings.every_n_epochs",
    "sample_every_n_steps": "PreviewSettings.every_n_steps",
    "sample_prompts": "PreviewSettings.prompts",
    "save_every_n_epochs": "SaveConfig.every_n_epochs",
    "save_every_n_steps": "SaveConfig.every_n_steps",
    "save_format": "SaveConfig.style",
    "save_last_n_epochs": "SaveConfig.keep_epochs",
    "save_last_n_epochs_state": "StateSettings.keep_epochs",
    "save_last_n_steps": "SaveConfig.keep_steps",
    "save_last_n_steps_state": "StateSettings.keep_steps",
    "save_precision": "SaveConfig.dtype",
    "save_state": "StateSettings.with_saves",
    "save_state_every_minutes": "StateSettings.every_minutes",
    "save_state_on_train_end": "StateSettings.at_end",
    "text_encoder_batch_size": "TextSettings.batch_size",
    "train_batch_size": "DatasetConfig.batch_size",
    "vae_batch_size": "LatentSettings.batch_size",
    "validate_every_n_epochs": "ValidationConfig.every_n_epochs",
    "validate_every_n_steps": "ValidationConfig.every_n_steps",
}
"""Options that errors name, and the fields that say the same: timesteps are thousandths."""
