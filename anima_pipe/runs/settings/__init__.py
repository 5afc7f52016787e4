"""The settings of runs: frozen dataclasses, one module for each stage.

Where an option of the command line says the same, a field is called as the option is, so that an
error's remedy serves both. `FIELDS` has the few that are called otherwise.
"""

from collections.abc import Mapping
from typing import Final

FIELDS: Final[Mapping[str, str]] = {
    "anima_monitor_alert_policy": "AlarmConfig.stops",
    "cache_dir": "CacheSettings.folder",
    "conditioning_data_dir": "SubsetConfig.mask_dir",
    "max_timestep": "SigmaConfig.highest",
    "min_timestep": "SigmaConfig.lowest",
    "num_workers": "LatentSettings.workers",
    "train_batch_size": "DatasetConfig.batch_size",
}
"""Options that a run's errors name, and the fields that say the same: timesteps are thousandths."""
