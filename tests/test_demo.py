import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from anima_pipe.demo import (
    DEMO_BUNDLE,
    DEMO_FOLDER,
    DEMO_PICTURES,
    DEMO_QWEN,
    DEMO_T5_TOKENIZER,
    DEMO_TRANSFORMER,
    DEMO_VAE,
)
from anima_pipe.demo.build import build_bundle
from anima_pipe.demo.draw import draw_picture, write_contact_sheet, write_pictures
from anima_pipe.demo.layouts import RELEASED, TransformerSizes, transformer_shapes, vae_shapes
from anima_pipe.demo.pictures import PICTURES

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).parent.parent
CAPTIONS = [picture.caption for picture in PICTURES]
STRANGE_CAPTIONS = [
    "",
    "  leading and  trailing  ",
    "tabs\tand\nnewlines\n\n",
    "1girl,solo,,long_hair",
    "saber \\(fate\\), (sitting:1.2)",
    "\uff21\uff42\uff43 \ufb01n, ü é ß, 漢字 かわいい, Привет, 여우 😀",
]


def open_rgb(name: str) -> Image.Image:
    with Image.open(DEMO_PICTURES / name) as image:
        return image.convert("RGB")


def stored_shapes(path: Path, prefix: str) -> dict[str, tuple[int, ...]]:
    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
        return {
            name.removeprefix(prefix): tuple(file.get_slice(name).get_shape()) for name in names
        }


def test_there_are_pictures_enough_in_several_shapes():
    sizes = [open_rgb(picture.name).size for picture in PICTURES]
    assert len(sizes) >= 24
    assert len({width / height for width, height in sizes}) >= 3


def test_every_picture_has_its_caption_beside_it():
    pictures = {path.stem for path in DEMO_PICTURES.iterdir() if path.suffix != ".txt"}
    captions = {path.stem: path.read_text("utf-8") for path in DEMO_PICTURES.glob("*.txt")}
    assert pictures == set(captions)
    assert [captions[Path(picture.name).stem] for picture in PICTURES] == CAPTIONS
    assert sum(not caption for caption in captions.values()) == 1


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.name)
def test_drawing_again_gives_the_committed_picture(picture):
    committed = np.asarray(open_rgb(picture.name), dtype=float)
    difference = np.abs(np.asarray(draw_picture(picture), dtype=float) - committed)
    # PNG keeps every pixel; versions of Pillow may round the edge of a shape differently.
    assert difference.mean() < (0.05 if picture.name.endswith(".png") else 3)


def test_the_pictures_are_written_with_their_captions(tmp_path):
    write_pictures(tmp_path)
    committed = {path.name for path in DEMO_PICTURES.iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == committed


def test_the_contact_sheet_is_small_enough_for_a_readme(tmp_path):
    write_contact_sheet(tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size < 300_000


def test_the_demo_is_small_enough_to_commit():
    files = [path for path in DEMO_FOLDER.rglob("*") if "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files if path.is_file()) <= 12_000_000


def test_building_the_bundle_again_gives_the_committed_tokenizers(tmp_path):
    build_bundle(tmp_path)
    for name in ("qwen3/tokenizer.json", "t5_tokenizer/tokenizer.json", "qwen3/config.json"):
        assert json.loads((tmp_path / name).read_text("utf-8")) == json.loads(
            (DEMO_BUNDLE / name).read_text("utf-8")
        )


def test_building_the_bundle_again_gives_the_committed_weights(tmp_path):
    build_bundle(tmp_path)
    for name in ("transformer.safetensors", "vae.safetensors", "qwen3/model.safetensors"):
        assert (tmp_path / name).read_bytes() == (DEMO_BUNDLE / name).read_bytes()


def test_the_layouts_are_those_of_files_known_to_be_right():
    sizes = TransformerSizes(
        width=96,
        blocks=3,
        head_width=32,
        context_width=48,
        adaln_rank=24,
        adapter_blocks=3,
        adapter_head_width=16,
        qwen_width=32,
        t5_rows=128,
    )
    assert transformer_shapes(sizes) == stored_shapes(GOLDEN / "anima_b.safetensors", "w.")
    assert vae_shapes(8) == stored_shapes(GOLDEN / "vae_a.safetensors", "w.")


def test_the_layouts_have_the_released_models_parameter_counts():
    assert sum(map(np.prod, transformer_shapes(RELEASED).values())) == 2_091_068_928
    assert sum(map(np.prod, vae_shapes(96).values())) == 126_892_531


def test_the_transformer_loads_and_sees_its_caption():
    import torch

    from anima_pipe.model import load_transformer

    transformer = load_transformer(DEMO_TRANSFORMER)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 16, 8, 12, generator=generator)
    qwen = torch.randn(2, 5, 64, generator=generator)
    contexts = transformer.preprocess_text_embeds(qwen, torch.tensor([[9, 8, 1], [5, 6, 1]]))
    with torch.no_grad():
        one, other = (transformer(latents, torch.tensor([0.5]), row[None]) for row in contexts)
    assert one.shape == latents.shape
    assert 0.1 < one.std() < 2
    assert not torch.allclose(one, other, atol=1e-4)


def test_the_vae_keeps_latents_and_pictures_in_a_sane_range():
    import torch

    from anima_pipe.encoders import load_vae

    vae = load_vae(DEMO_VAE)
    pixels = np.asarray(open_rgb("19_portrait_teal.png").resize((64, 64)))
    images = torch.tensor(pixels).permute(2, 0, 1)[None] / 127.5 - 1
    latents = vae.encode(images)
    assert latents.shape == (1, 16, 8, 8)
    assert 0.1 < latents.std() < 3
    assert 0.1 < vae.decode(latents).std() < 3


def test_transformers_opens_the_qwen_folder_offline():
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(DEMO_QWEN)
    model, report = AutoModel.from_pretrained(DEMO_QWEN, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.no_grad():
        hidden = model(**tokenizer(CAPTIONS[0], return_tensors="pt")).last_hidden_state
    assert hidden.shape[-1] == 64
    assert hidden.isfinite().all()


def test_the_text_encoder_encodes_every_caption():
    from anima_pipe.encoders import load_text_encoder

    conditions = load_text_encoder(DEMO_QWEN, DEMO_T5_TOKENIZER).encode(CAPTIONS)
    assert all(condition.qwen_hidden.isfinite().all() for condition in conditions)
    assert all(condition.t5_ids[-1] == 1 for condition in conditions)
    assert [len(condition.qwen_hidden) for condition in conditions].count(0) == 1


@pytest.mark.parametrize("caption", [*CAPTIONS, *STRANGE_CAPTIONS])
def test_qwens_tokenizer_loses_nothing(caption):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(DEMO_QWEN / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode(caption).ids) == caption


@pytest.mark.parametrize("caption", [*CAPTIONS, *STRANGE_CAPTIONS])
def test_sentencepiece_and_tokenizer_json_give_the_same_t5_ids(caption):
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer

    pieces = SentencePieceProcessor(model_file=str(DEMO_T5_TOKENIZER / "spiece.model"))
    fast = Tokenizer.from_file(str(DEMO_T5_TOKENIZER / "tokenizer.json"))
    assert fast.encode(caption).ids == [*pieces.encode(caption), 1]


def test_no_character_of_the_captions_is_unknown_to_t5():
    from tokenizers import Tokenizer

    fast = Tokenizer.from_file(str(DEMO_T5_TOKENIZER / "tokenizer.json"))
    assert not any(2 in fast.encode(caption).ids for caption in CAPTIONS)


def test_the_smoke_configuration_names_files_that_exist():
    smoke = ROOT / "configs" / "smoke"
    settings = tomllib.loads((smoke / "anima_10steps_train_args.toml").read_text("utf-8"))
    model = settings["model"]
    assert ROOT / model["pretrained_model_name_or_path"] == DEMO_TRANSFORMER
    assert ROOT / model["vae"] == DEMO_VAE
    assert ROOT / model["qwen"] == DEMO_QWEN
    assert ROOT / model["t5_tokenizer_dir"] == DEMO_T5_TOKENIZER
    dataset = tomllib.loads((smoke / "anima_dataset.toml").read_text("utf-8"))["datasets"][0]
    assert ROOT / dataset["subsets"][0]["image_dir"] == DEMO_PICTURES
