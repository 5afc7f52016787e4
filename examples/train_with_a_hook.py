"""Train on the embedded pictures until the loss is low enough; the one argument is a folder."""

import sys
from pathlib import Path

from anima_pipe import demo, runs


class LowEnough:
    """Ends the run once the loss of a step is below a bound."""

    def __init__(self, bound: float, stop: runs.StopRequest) -> None:
        self.bound, self.stop = bound, stop

    def due(self, moment: runs.Moment) -> bool:
        return moment.loss is not None and moment.loss < self.bound

    def at(self, _moment: runs.Moment) -> None:
        self.stop.ask()


folder = Path(*sys.argv[1:2] or ["output/train_with_a_hook"])
cache = runs.CacheSettings(folder=folder / "cache")
text = runs.TextSettings(cache=cache, qwen=demo.DEMO_QWEN, t5_tokenizer_dir=demo.DEMO_T5_TOKENIZER)
vae = runs.LatentSettings(cache=cache, vae=demo.DEMO_VAE)
buckets = runs.BucketRules(resolution=(128, 128), min_bucket_reso=64)
pictures = runs.SubsetConfig(image_dir=demo.DEMO_PICTURES, num_repeats=10)
datasets = (runs.DatasetConfig(subsets=(pictures,), buckets=buckets, batch_size=4),)
settings = runs.TrainSettings(
    data=runs.DataSettings(datasets=datasets, cache=cache, latents=vae, text=text),
    model=runs.ModelSettings(transformer=demo.DEMO_TRANSFORMER),
    save=runs.SaveConfig(folder=folder, name="fox"),
    learning_rate=5e-3,
    logs=runs.LogSettings(folder=folder / "logs"),
)
stop = runs.StopRequest()
print(runs.train(settings, [LowEnough(1.1, stop)], stop=stop))
