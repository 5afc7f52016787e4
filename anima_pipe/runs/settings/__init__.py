"""The settings of runs: frozen dataclasses, one module for each stage.

Where an option of the command line says the same, a field is called as the option is, so that an
error's remedy serves both. `FIELDS` has the few that are called otherwise.
"""

from collections.abc import Mapping
from typing import Final

FIELDS: Final[Mapping[str, str]] = {
    "auto_download_t5_tokenizer": "DataSettings.tokenizer_sources",
    "anima_monitor_alert_policy": "AlarmConfig.stops",
    "cache_dir": "CacheSettings.folder",
    "cache_dtype": "CacheSettings.dtype",
    "conditioning_data_dir": "SubsetConfig.mask_dir",
    "max_timestep": "SigmaConfig.highest",
    "metadata_thumbnail": "MetadataSettings.thumbnail",
    "min_timestep": "SigmaConfig.lowest",
    "output_dir": "SaveConfig.folder",
    "output_name": "SaveConfig.name",
    "qwen3": "TextSettings.qwen",
    "save_precision": "SaveConfig.dtype",
    "num_workers": "LatentSettings.workers",
    "train_batch_size": "DatasetConfig.batch_size",
}
"""Options that a run's errors name, and the fields that say the same: timesteps are thousandths."""
