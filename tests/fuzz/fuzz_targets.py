"""What strangers' bytes reach: each target takes any, and either works or says what is wrong.

`checked` holds what is promised of all of them: an error is a PipeError, nothing takes long, and
nothing takes much memory, however the bytes were made. hypothesis and atheris both call it.
"""

from __future__ import annotations

import resource
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import torch
from remote_caches import expected, values, write
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file

from anima_pipe import demo
from anima_pipe.adapters.reading import deltas_of, read_adapter_file
from anima_pipe.adapters.styles import PathIndex
from anima_pipe.dataset.picture_captions import MOST_LETTERS
from anima_pipe.errors import PipeError
from anima_pipe.kohya.dataset_toml import load_dataset_config
from anima_pipe.kohya.resolve import resolve
from anima_pipe.kohya.sample_prompts import read_sample_prompts
from anima_pipe.secrecy import SHORTEST, parse_address, redacted
from anima_pipe.shards import open_cache
from anima_pipe.shards.addresses import checked_address, is_address, shown_address
from anima_pipe.shards.checksum import with_checksum
from anima_pipe.source.caption_files import read_caption_lines, read_json_caption
from anima_pipe.source.captions import CaptionRules, render_caption
from anima_pipe.source.json_captions import GroupedCaption
from anima_pipe.source.metadata_file import read_metadata_file
from anima_pipe.source.prompts import half_character, read_prompt
from anima_pipe.source.variants import caption_notes, caption_texts
from anima_pipe.weights.files import mapped_tensors, read_header

MOST_SECONDS = 2.0
"""Of work, which on a busy machine is not time."""

MOST_BYTES = 200 * 2**20
"""Of memory, over what the process had."""

KILOBYTES = 1024 if sys.platform == "linux" else 1
"""What the system counts memory in."""

RULES = (
    CaptionRules(),
    CaptionRules(enable_wildcard=True, shuffle_caption=True, keep_tokens_separator="|||"),
    CaptionRules(shuffle_caption=True, keep_tokens=1, caption_tag_dropout_rate=0.5),
    CaptionRules(token_warmup_step=4, token_warmup_min=1, secondary_separator=";;;"),
)


@dataclass(frozen=True, kw_only=True)
class Target:
    """Something that reads bytes."""

    read: Callable[[bytes, Path], object]
    """Does so; files that it needs go into the folder, which is empty."""
    seeds: Callable[[], tuple[bytes, ...]]
    """Returns what it is made to read."""
    tokens: tuple[bytes, ...]
    """What is of interest in that."""


def checked(target: Target, content: bytes) -> None:
    """Have a target read bytes, and see that it keeps what is promised.

    Raises:
        AssertionError: It took too much.
        Exception: Whatever it raised that is no PipeError.
    """
    with TemporaryDirectory() as folder:
        held, began = _most_memory(), time.process_time()
        with suppress(PipeError):
            target.read(content, Path(folder))
        seconds, taken = time.process_time() - began, _most_memory() - held
    assert seconds < MOST_SECONDS, f"took {seconds:.1f} s"
    assert taken < MOST_BYTES, f"took {taken:,} bytes"


def _most_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KILOBYTES


def _written(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def _dataset(name: str) -> Callable[[bytes, Path], object]:
    def read(content: bytes, folder: Path) -> None:
        (folder / "x").mkdir()
        load_dataset_config(_written(folder, name, content), {})

    return read


def _config(content: bytes, folder: Path) -> object:
    return resolve("train", {}, config_file=_written(folder, "train_args.toml", content))


def _prompts(name: str) -> Callable[[bytes, Path], object]:
    def read(content: bytes, folder: Path) -> None:
        for prompt in read_sample_prompts(_written(folder, name, content)):
            read_prompt(prompt.prompt)

    return read


def _caption(content: bytes, folder: Path) -> None:
    lines = read_caption_lines(_written(folder, "fox.txt", content))
    _render("\n".join(lines))


def _json_caption(content: bytes, folder: Path) -> None:
    _render(read_json_caption(_written(folder, "fox.json", content)))


def _render(caption: GroupedCaption | str) -> None:
    written = caption if isinstance(caption, str) else caption.written
    if half_character(written) or len(written) > MOST_LETTERS:
        return  # refused with the picture's name, by whoever has that
    for rules in RULES:
        texts = caption_texts(caption, rules, variants=2)
        assert texts.full
        assert all("\n" not in text for text in texts)
        caption_notes(caption, rules)
        render_caption(written, rules, rng=Random(0), step=3, epoch=1, max_train_steps=9)


def _metadata(name: str) -> Callable[[bytes, Path], object]:
    def read(content: bytes, folder: Path) -> None:
        file = _written(folder, name, content)
        found = read_metadata_file(file, folder, separator=", ", enable_wildcard=True)
        for each in found:
            _render(each.caption or "")

    return read


@cache
def _scratch() -> TemporaryDirectory[str]:
    """A folder that is there as long as this process."""
    return TemporaryDirectory()


@cache
def _cache_of_three() -> Path:
    folder = Path(_scratch().name) / "cache"
    write(folder, range(3))
    return folder


def _sidecar(content: bytes, folder: Path) -> None:
    """Read a whole shard by anybody's sidecar, whose checksum is right: it can do no harm."""
    cache_dir = Path(shutil.copytree(_cache_of_three(), folder / "cache"))
    (tar,) = cache_dir.rglob("*.tar")
    tar.with_suffix(".index.json").write_bytes(with_checksum(content))
    store = open_cache(cache_dir).latents
    found = values(store)
    assert found == {key: value for key, value in expected(range(3)).items() if key in found}
    for key in store:
        store.metadata(key)


def _tar(content: bytes, folder: Path) -> None:
    cache_dir = Path(shutil.copytree(_cache_of_three(), folder / "cache"))
    (tar,) = cache_dir.rglob("*.tar")
    tar.with_suffix(".index.json").unlink()
    tar.write_bytes(content)
    store = open_cache(cache_dir).latents
    values(store)
    store.verify()


def _safetensors(content: bytes, folder: Path) -> None:
    """Read weights; what is read here is what the format's own library takes for whole."""
    path = _written(folder, "weights.safetensors", content)
    read_header(path)
    mapped_tensors(path)
    try:
        with safe_open(path, framework="pt") as file:
            assert set(file.keys()) == set(mapped_tensors(path))
    except SafetensorError as error:
        raise AssertionError("the library refuses what was read") from error


PATHS = PathIndex(
    (
        *(f"blocks.{number}.self_attn.q_proj" for number in range(2)),
        *("blocks.0.mlp.layer1", "blocks.0.self_attn.q_norm", "t_embedding_norm"),
        "llm_adapter.blocks.0.self_attn.q_proj",
    )
)

SHAPES = ((2, 4), (4, 2), (), (1,), (0, 4), (4,), (2, 2, 2))


def _adapter(content: bytes, folder: Path) -> None:
    """Read an adapter whose tensors have the names in the lines, and shapes that these choose."""
    lines = content.decode("utf-8", "replace").split("\n")
    names = [line.partition("=") for line in lines if not line.startswith("#")]
    tensors = {
        name or "-": torch.ones(SHAPES[sum(map(ord, shape)) % len(SHAPES)])
        for name, _, shape in names
    }
    header = {
        line[1:].partition("=")[0]: line.partition("=")[2] for line in lines if line[:1] == "#"
    }
    path = folder / "fox.safetensors"
    save_file(tensors, path, header)
    deltas_of(read_adapter_file(path), PATHS)


def _address(content: bytes, folder: Path) -> None:
    """Check an address, and see that no password that stands in it is shown."""
    text = content.decode("utf-8", "replace")
    if not is_address(text):
        redacted(text)
        return
    password = parse_address(text).user.partition(":")[2]
    shown = shown_address(text), redacted(f"cannot open {text}: it is not there")
    if len(password) >= SHORTEST and not any(letter in password for letter in " '\"<>`)]}\\\n"):
        assert not any(password in each for each in shown)
    checked_address(text)


def _demo(name: str) -> bytes:
    return (demo.DEMO_FOLDER / name).read_bytes()


def _three_tar() -> bytes:
    (tar,) = _cache_of_three().rglob("*.tar")
    return tar.read_bytes()


def _three_sidecar() -> bytes:
    (sidecar,) = _cache_of_three().rglob("*.index.json")
    return sidecar.read_bytes().rpartition(b',"checksum"')[0] + b"}"


TOML = (b"[", b"]", b"[[", b"]]", b"=", b'"', b"'''", b".", b"{", b"}", b",", b"\n", b"#", b"nan")
TOML += (b"true", b"-1", b"1e999", b"999999999999", b"inf", b"1979-05-27", b"[general]\n", b'"a"')
JSON = (b"[", b"]", b"{", b"}", b":", b",", b'"', b"null", b"true", b"-1", b"1e999", b"NaN")
JSON += (b'"caption"', b'"tags"', b"\\ud800", b"\\u0000", b"\n", b"{}", b"[]", b'""', b"[[[[")
TEXT = (b",", b"{", b"}", b"|", b"$$", b"(", b")", b":1.5", b"\\(", b"|||", b";;;", b"\n", b"\r")
TEXT += (b"\xef\xbb\xbf", b"\xff", b"\0", "\u2028".encode(), b"__", b"2-3$$", b"A dog. ", b". ")
FLAGS = (b"--w ", b"--h ", b"--d ", b"--s ", b"--n ", b"--l ", b"--fs", b"nan", b"-1", b"1e999")
HEADER = (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', b"F16", b"I64", b"BF16")
HEADER += (b"\0" * 8, b"\xff" * 8, b"__metadata__", b"[1,1]", b"99999999999", b"[0,0]")
KEYS = (b"lora_unet_", b"diffusion_model.", b"base_model.model.", b".lora_A.weight", b".alpha")
KEYS += (b".lora_up.weight", b".lokr_w1", b".hada_w1_a", b".dora_scale", b".diff", b"=a", b"\n#")
ADDRESSES = (b"://", b"s3", b"https", b"hf", b"@", b":", b"?", b"#", b"::", b"user:password1@")

FOX = rb"1girl, {red|blue|2$$a|b} fox, (tag:1.2), \(series\)|||smile, a;;;b" + b"\nA fox sits.\n"
FOX_JSON = b'{"quality": "best", "character": ["a"], "tags": ["b", "c"], "meta": {"x": 1}}'

DATASET = b"""
[general]
shuffle_caption = true
keep_tokens = 1

[[datasets]]
resolution = [64, 96]
batch_size = 2

[[datasets.subsets]]
image_dir = "x"
num_repeats = 2
custom_attributes.timestep_sampling.offset = 0.1
"""


def _targets() -> dict[str, Target]:
    path = b"blocks.0.self_attn.q_proj"
    metadata = b'{"a.png": {"caption": "a fox", "tags": "x, y"}, "b": {"tags": ["z"]}}'
    as_json = b'{"datasets": [{"resolution": 64, "subsets": [{"image_dir": "x"}]}]}'
    prompts = b'[prompt]\nwidth = 64\n[[prompt.subset]]\nprompt = "fox"\nseed = 1\n'
    prompts_json = b'[{"prompt": "fox", "width": 64, "seed": 1}, {"prompt": "wolf"}]'
    adapter = path + b".lora_A.weight=b\n" + path + b".lora_B.weight=c\n#ss_network_dim=2"
    kohya = b"lora_unet_blocks_0_mlp_layer1.lora_up.weight=c\n#model_depths={}\n"
    kohya += b"lora_unet_blocks_0_mlp_layer1.lora_down.weight=b"
    weights = save({"a": torch.ones(2), "b": torch.ones(1, 3).half()})
    named = (b"s3://user:password1@bucket/a", b"https://host:80/b?token=c", b"zip://a::hf://d/e")
    return {
        "dataset_toml": Target(read=_dataset("d.toml"), seeds=lambda: (DATASET,), tokens=TOML),
        "dataset_json": Target(read=_dataset("d.json"), seeds=lambda: (as_json,), tokens=JSON),
        "train_args": Target(read=_config, seeds=lambda: (_demo("train_args.toml"),), tokens=TOML),
        "captions": Target(read=_caption, seeds=lambda: (FOX, b"a fox"), tokens=TEXT),
        "json_captions": Target(read=_json_caption, seeds=lambda: (FOX_JSON,), tokens=JSON),
        "metadata_json": Target(read=_metadata("m.json"), seeds=lambda: (metadata,), tokens=JSON),
        "metadata_jsonl": Target(
            read=_metadata("m.jsonl"),
            seeds=lambda: (b'{"image_path": "a.png", "caption": "fox"}\n{"image_path": "b"}\n',),
            tokens=JSON,
        ),
        "prompts_txt": Target(
            read=_prompts("p.txt"), seeds=lambda: (_demo("prompts.txt"),), tokens=FLAGS + TEXT
        ),
        "prompts_toml": Target(read=_prompts("p.toml"), seeds=lambda: (prompts,), tokens=TOML),
        "prompts_json": Target(read=_prompts("p.json"), seeds=lambda: (prompts_json,), tokens=JSON),
        "sidecars": Target(read=_sidecar, seeds=lambda: (_three_sidecar(),), tokens=JSON + HEADER),
        "tars": Target(
            read=_tar, seeds=lambda: (_three_tar(),), tokens=(b"path=", b"size=", *HEADER)
        ),
        "safetensors": Target(read=_safetensors, seeds=lambda: (weights,), tokens=HEADER + JSON),
        "adapter_keys": Target(read=_adapter, seeds=lambda: (adapter, kohya), tokens=KEYS),
        "addresses": Target(read=_address, seeds=lambda: named, tokens=ADDRESSES),
    }


TARGETS = _targets()
"""By name."""
