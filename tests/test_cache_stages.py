"""What the caching stages do with a cache that is not as it should be, or that others fill too."""

from pathlib import Path

import pytest
from commands import anima_pipe

from anima_pipe.errors import CacheError
from anima_pipe.shards import open_cache
from anima_pipe.shards.index import index_path

Options = dict[str, object]


@pytest.fixture
def data(dataset: Path, tmp_path: Path) -> Options:
    """Options that name the small dataset and a cache of this test's own."""
    return {"dataset_config": dataset, "cache_dir": tmp_path / "cache"}


def run(stage: str, data: Options, **more: object):
    summary = Path(str(data["cache_dir"])).parent / "summary.json"
    ended = anima_pipe(stage, summary, **data, **more).ok()
    assert ended.summary is not None
    return ended.summary, ended.said


def damage_one_sample(cache: Path, kind: str) -> str:
    """Flip a bit in a sample's tensors; return its key."""
    store = getattr(open_cache(cache), kind)
    key = list(store)[-1]  # the first text is empty
    (tar,) = cache.glob(f"{kind}-*/*.tar")
    content = bytearray(tar.read_bytes())
    content[content.index(f"{key}.safetensors".encode()) + 512 + 300] ^= 1
    tar.write_bytes(content)
    return key


@pytest.mark.parametrize(("stage", "kind"), [("cache-latents", "latents"), ("encode-text", "text")])
def test_a_damaged_sample_is_named_and_encoded_anew_by_the_next_run(data, stage, kind):
    first, _ = run(stage, data)
    cache = Path(str(data["cache_dir"]))
    key = damage_one_sample(cache, kind)
    with pytest.raises(CacheError, match=key):
        getattr(open_cache(cache), kind)[key]

    mended, said = run(stage, data)
    assert (mended["encoded"], mended["reused"]) == (1, first["encoded"] - 1)
    assert mended["problems"] == 1
    assert f"sample {key}: damaged" in said

    store = getattr(open_cache(cache), kind)
    assert len(store) == first["encoded"]
    assert store.verify() == []
    again, said = run(stage, data)
    assert (again["encoded"], again["problems"]) == (0, 0)
    assert "wrong in the cache" not in said


def test_a_lost_sidecar_is_rebuilt_said_and_counted(data):
    first, _ = run("cache-latents", data)
    (tar,) = Path(str(data["cache_dir"])).glob("latents-*/*.tar")
    index_path(tar).unlink()
    again, said = run("cache-latents", data)
    assert (again["encoded"], again["reused"], again["problems"]) == (0, first["encoded"], 1)
    assert f"{tar}: had no sidecar" in said
