"""Every command that looks at a cache takes the address of one."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from commands import MODEL, anima_pipe, demo_pictures, options, write_dataset
from PIL import Image
from remote_caches import CACHE, cache, in_bucket
from s3_server import FaultyServer

from anima_pipe.cli.main import main
from anima_pipe.runtime import LOGGER


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(main, list(map(str, arguments)))
    LOGGER.handlers.clear()
    return result


@pytest.fixture
def masked(tmp_path: Path) -> Path:
    """dataset.toml of three pictures, of which the left halves are transparent."""
    pictures = demo_pictures(tmp_path / "pictures", every=12)
    for path in [path for path in pictures.iterdir() if path.suffix != ".txt"]:
        with Image.open(path) as picture:
            solid = picture.convert("RGB")
        path.unlink()
        alpha = Image.new("L", solid.size, 255)
        alpha.paste(0, (0, 0, solid.width // 2, solid.height))
        solid.putalpha(alpha)
        solid.save(path.with_suffix(".png"))
    return write_dataset(tmp_path / "masked.toml", pictures, alpha_mask=True)


def tars(s3: FaultyServer, kind: str) -> list[str]:
    return [name for name in in_bucket(s3) if name.startswith(kind) and name.endswith(".tar")]


@pytest.mark.slow
def test_masks_are_cached_in_a_bucket_trained_with_verified_and_thinned_out(
    s3, masked: Path, tmp_path: Path
):
    given = {"dataset_config": masked, "cache_dir": CACHE}
    writer, reader = tmp_path / "writer", tmp_path / "reader"
    anima_pipe("cache-latents", **given, cache_mirror_dir=writer).ok()
    anima_pipe("encode-text", **given, cache_mirror_dir=writer).ok()
    assert [len(tars(s3, kind)) for kind in ("latents", "masks", "text")] == [1, 1, 1]

    s3.requests.clear()
    fresh = {"cache_mirror_dir": reader, "auto_cache": False, "output_dir": tmp_path / "out"}
    far = anima_pipe("train", tmp_path / "far.json", **given, **fresh, max_train_steps=4).ok()
    assert s3.counted("GET", ".tar") == 3  # each shard once, whole, over two epochs
    near = tmp_path / "near"
    for name, content in in_bucket(s3).items():
        (near / name).parent.mkdir(parents=True, exist_ok=True)
        (near / name).write_bytes(content)
    fresh |= {"cache_dir": near, "cache_mirror_dir": None, "output_dir": tmp_path / "near out"}
    here = anima_pipe("train", tmp_path / "h.json", **{**given, **fresh}, max_train_steps=4).ok()
    assert far.summary is not None
    assert here.summary is not None
    assert far.summary["final_loss"] == here.summary["final_loss"]

    place = options(cache_dir=CACHE, cache_mirror_dir=tmp_path / "third")
    encoders = options(vae=MODEL["vae"], qwen3=MODEL["qwen3"], dataset_config=masked)
    tokenizer = options(t5_tokenizer_dir=MODEL["t5_tokenizer_dir"], device="cpu")
    whole = cache("verify", *place, "--reencode", 2, *encoders, *tokenizer)
    assert whole.exit_code == 0, whole.output
    assert whole.output.count("2 encoded again, 0 differ") == 3

    statistics = cache("stats", *place, "--json")
    told = {folder["kind"]: folder for folder in json.loads(statistics.stdout)}
    # The empty caption is one too.
    assert {kind: told[kind]["samples"] for kind in told} == {"latents": 3, "masks": 3, "text": 4}
    assert told["masks"]["folder"] == f"{CACHE}/{tars(s3, 'masks')[0].partition('/')[0]}"

    plain = write_dataset(tmp_path / "plain.toml", tmp_path / "pictures")
    before = in_bucket(s3)
    tried = cache("gc", plain, *place)
    assert in_bucket(s3) == before  # only said, not done
    assert f"{CACHE}/{tars(s3, 'masks')[0]}: goes" in tried.output
    assert "would remove 3 samples" in tried.output
    assert "removed 3 samples" in cache("gc", plain, *place, "--delete").output
    assert [len(tars(s3, kind)) for kind in ("latents", "masks", "text")] == [1, 0, 1]
    listed = json.loads(in_bucket(s3)["shards.json"])["folders"]
    assert not [name for name in listed if name.startswith("masks") and len(listed[name]) > 1]


def test_inspect_and_doctor_look_into_a_bucket(s3, masked: Path, tmp_path: Path):
    place = {"cache_dir": CACHE, "cache_mirror_dir": tmp_path / "m"}
    anima_pipe("cache-latents", dataset_config=masked, **place).ok()
    anima_pipe("encode-text", dataset_config=masked, **place).ok()
    config = tmp_path / "train_args.toml"
    files = {**MODEL, **place, "dataset_config": masked, "output_dir": tmp_path / "out"}
    config.write_text("\n".join(f"{name} = {json.dumps(str(v))}" for name, v in files.items()))

    seen = run("doctor", "--config_file", config, "--device", "cpu")
    assert f"{CACHE}/{tars(s3, 'latents')[0].partition('/')[0]}: 3 samples" in seen.output
    assert "anima-pipe train" in seen.output.splitlines()[-1]
    page = run("inspect", masked, *options(**place, output=tmp_path / "page.html"))
    assert page.exit_code == 0, page.output
    assert (tmp_path / "page.html").stat().st_size > 1000
