"""What sidecar, shard and training take a sample for is compared: whoever is wrong is named."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from anima_pipe.errors import CacheError
from anima_pipe.records import TextCondition
from anima_pipe.shards import LatentWriter, MaskWriter, Store, TextWriter, open_cache
from anima_pipe.shards.checksum import with_checksum
from anima_pipe.shards.index import ShardIndex
from anima_pipe.shards.sample import METADATA, PAYLOAD, seal
from anima_pipe.shards.sidecar import index_path, write_index
from anima_pipe.shards.tar import END_OF_ARCHIVE, tar_sample

FINGERPRINT = "3fa1c2" + 58 * "0"
RIGHT = torch.arange(16.0 * 4 * 6).reshape(16, 4, 6).half()


def latent(value: float, place: tuple[int, ...] = (3, 2, 1), **options: torch.dtype):
    """A latent with one value somewhere."""
    changed = RIGHT.to(**options).clone()
    changed[place] = value
    return changed


def forge(folder: Path, tensors: dict[str, torch.Tensor], sidecar: bool) -> Path:
    """Write a shard by hand as others may: with checksums that are right, after a right sample."""
    index, tar = ShardIndex(tar="forged.tar"), folder / "forged.tar"
    with tar.open("wb") as file:
        for key, held in (
            ("right", {name: RIGHT.clone() for name in tensors}),
            ("forged", tensors),
        ):
            payload = safetensors.torch.save(held)
            members = {PAYLOAD: payload, METADATA: seal({}, payload)}
            piece, spans = tar_sample(key, members)
            start = file.tell()
            file.write(piece)
            index.add(key, {name: span.moved(start) for name, span in spans.items()}, members)
        file.write(END_OF_ARCHIVE)
        index.tar_bytes = file.tell()
    if sidecar:
        write_index(tar, index)
    return tar


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of latents, one of them."""
    with LatentWriter(tmp_path, FINGERPRINT, "fp16", "vae") as writer:
        writer.add("other", RIGHT, {})
        return writer.folder


@pytest.mark.parametrize("sidecar", [True, False], ids=["with its sidecar", "without a sidecar"])
@pytest.mark.parametrize(
    ("tensor", "wrong"),
    [
        (torch.ones(3, 4, 6).half(), r"F16\[3, 4, 6\], not Float\[16, H, W\]"),
        (torch.ones(16, 4, 6).int(), r"I32\[16, 4, 6\], not"),
        (torch.ones(16, 24).half(), r"F16\[16, 24\], not"),
        (torch.ones(1, 16, 4, 6).half(), r"F16\[1, 16, 4, 6\], not"),
        (torch.ones(16, 0, 6).half(), r"F16\[16, 0, 6\], not"),
        (latent(float("nan")), "holds NaN or infinite"),
        (latent(float("-inf")), "holds NaN or infinite"),
        (latent(float("inf"), dtype=torch.bfloat16), "holds NaN or infinite"),
        (latent(float("nan"), dtype=torch.float32), "holds NaN or infinite"),
    ],
    ids=["3 channels", "int32", "2 axes", "4 axes", "empty", "NaN", "-inf", "inf", "NaN in fp32"],
)
def test_a_latent_that_nobody_can_train_on_is_refused_by_shard_sample_and_tensor(
    tmp_path, folder, tensor, wrong, sidecar
):
    tar = forge(folder, {"latent": tensor}, sidecar)

    (found,) = {str(problem) for problem in open_cache(tmp_path).latents.verify() if problem.key}
    assert re.match(rf"{tar}, sample forged: unfit: tensor latent (is )?{wrong}", found)

    with pytest.raises(CacheError, match=rf"sample forged in {tar}.*tensor latent (is )?{wrong}"):
        open_cache(tmp_path).latents["forged"]
    store = open_cache(tmp_path).latents
    assert sorted(store) == ["other", "right"]
    assert torch.equal(store["right"], RIGHT)


@pytest.mark.parametrize("read", [Store.__getitem__, lambda store, key: store.stacked([key])])
def test_a_latent_that_is_not_finite_is_found_by_whoever_reads_it_first(tmp_path, folder, read):
    tar = forge(folder, {"latent": latent(float("nan"))}, sidecar=True)
    store = open_cache(tmp_path).latents
    assert "forged" in store
    with pytest.raises(
        CacheError, match=rf"^sample forged in {tar} is unfit: tensor latent holds NaN.*\n.*anew"
    ):
        read(store, "forged")
    assert "forged" not in open_cache(tmp_path).latents


@pytest.mark.parametrize("value", [65504.0, -65504.0, 0.0, 6e-8])
def test_the_largest_and_the_smallest_values_are_values(tmp_path, folder, value):
    forge(folder, {"latent": latent(value)}, sidecar=True)
    assert open_cache(tmp_path).latents.verify() == []
    assert open_cache(tmp_path).latents["forged"].abs().max() >= abs(value)


def test_masks_and_texts_are_held_to_what_they_are(tmp_path):
    with MaskWriter(tmp_path) as masks:
        masks.add("other", torch.ones(4, 6), {})
    with TextWriter(tmp_path, FINGERPRINT, "fp16", "qwen") as texts:
        texts.add("other", TextCondition(torch.ones(0, 8), torch.ones(1).int()), {})
    forge(masks.folder, {"mask": torch.ones(2, 4, 6).half()}, sidecar=True)
    forge(
        texts.folder,
        {"qwen_hidden": torch.ones(3, 8).half(), "t5_ids": torch.ones(3).half()},
        sidecar=False,
    )
    cache = open_cache(tmp_path)
    assert "tensor mask is F16[2, 4, 6], not Float[H, W]" in "\n".join(
        map(str, cache.masks.problems)
    )
    assert "tensor t5_ids is F16[3], not I32[Lt]" in "\n".join(map(str, cache.text.problems))
    assert (sorted(cache.masks), sorted(cache.text)) == (["other"], ["other"])


def change_sidecar(tar: Path, change: Callable[[dict], None]) -> None:
    """Change a sidecar, and give it a checksum that fits."""
    sidecar = json.loads(index_path(tar).read_text())
    del sidecar["checksum"]
    change(sidecar["tensors"]["latent"])
    index_path(tar).write_bytes(with_checksum(json.dumps(sidecar).encode()))


def swap_axes(columns: dict) -> None:
    columns["shape"][1] = [16, 6, 4]


def name_another_dtype(columns: dict) -> None:
    columns["dtype"][1] = "BF16"


def point_elsewhere(columns: dict) -> None:
    columns["offset"][1] = columns["offset"][0]


def point_behind_the_end(columns: dict) -> None:
    columns["offset"][1] += 100_000


def claim_more(columns: dict) -> None:
    columns["shape"][1] = [16, 4000, 6000]


def claim_less(columns: dict) -> None:
    columns["shape"][1] = [16, 4, 5]


def leave_out_channels(columns: dict) -> None:
    columns["shape"][1] = [3, 4, 6]


def name_no_dtype(columns: dict) -> None:
    columns["dtype"][1] = "F8"


LIES = [
    *(swap_axes, name_another_dtype, point_elsewhere, point_behind_the_end),
    *(claim_more, claim_less, leave_out_channels, name_no_dtype),
]


@pytest.mark.parametrize("reading", ["a sample", "a batch", "verify"])
@pytest.mark.parametrize("lie", LIES)
def test_a_sidecar_that_says_another_tensor_is_named_and_mended(tmp_path, folder, lie, reading):
    tar = forge(folder, {"latent": RIGHT + 1}, sidecar=True)
    change_sidecar(tar, lie)

    store = open_cache(tmp_path).latents
    said = [str(problem) for problem in store.problems]
    if reading == "verify":
        said = [str(problem) for problem in store.verify()]
    elif not said:  # only the shard tells that it is wrong
        with pytest.raises(CacheError, match=r"(?s)sidecar of .* sample forged.*again") as refused:
            store.stacked(["forged"]) if reading == "a batch" else store["forged"]
        said = [str(refused.value)]
    assert len(said) == 1
    assert str(tar) in said[0]
    assert "tensor latent is" in said[0]
    assert "rebuilt" in said[0]

    mended = open_cache(tmp_path).latents
    assert mended.problems == ()
    assert torch.equal(mended.stacked(["forged", "right"]), torch.stack([RIGHT + 1, RIGHT]))


def test_sidecars_that_list_damage_without_reasons_are_read(tmp_path, folder):
    tar = forge(folder, {"latent": RIGHT + 1}, sidecar=True)
    sidecar = json.loads(index_path(tar).read_text())
    del sidecar["checksum"]
    sidecar["damaged"] = ["lost"]
    index_path(tar).write_bytes(with_checksum(json.dumps(sidecar).encode()))

    (problem,) = open_cache(tmp_path).latents.problems

    assert (problem.key, problem.shard) == ("lost", tar)
    assert "do not have their checksum" in problem.reason
