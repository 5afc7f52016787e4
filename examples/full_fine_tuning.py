"""The model itself trained, its text adapter left as it is; the one argument is a folder."""

import sys
from pathlib import Path

from anima_pipe import demo, runs
from anima_pipe.model import PARTS

folder = Path(*sys.argv[1:2] or ["output/full_fine_tuning"])
cache = runs.CacheSettings(folder=folder / "cache")
text = runs.TextSettings(cache=cache, qwen=demo.DEMO_QWEN, t5_tokenizer_dir=demo.DEMO_T5_TOKENIZER)
vae = runs.LatentSettings(cache=cache, vae=demo.DEMO_VAE)
buckets = runs.BucketRules(resolution=(128, 128), min_bucket_reso=64)
pictures = runs.SubsetConfig(image_dir=demo.DEMO_PICTURES)
datasets = (runs.DatasetConfig(subsets=(pictures,), buckets=buckets, batch_size=4),)
left_alone = runs.PartRate(name="llm_adapter", pattern=PARTS["llm_adapter"], rate=0)
settings = runs.TrainSettings(
    data=runs.DataSettings(datasets=datasets, cache=cache, latents=vae, text=text),
    model=runs.ModelSettings(transformer=demo.DEMO_TRANSFORMER),
    adapter=runs.NoAdapter(part_rates=(left_alone,)),
    save=runs.SaveConfig(folder=folder, name="model"),
    learning_rate=1e-3,
    length=runs.LengthSettings(max_train_epochs=2),
    logs=runs.LogSettings(kinds=()),
    seed=1,
    device="cpu",
)
summary = runs.train(settings)
print(f"{summary.output}: loss {summary.first_loss:.4f} to {summary.final_loss:.4f}")
bundle = runs.ExportSettings(
    adapter=folder / "model.safetensors", output=folder / "diffusers", style="diffusers"
)
print(runs.export_adapter(bundle).output)
