"""Text encoders small enough for tests, in the formats of the released files."""

import base64
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen3Config, Qwen3Model

GOLDEN = Path(__file__).parent / "golden"
CAPTIONS = ["1girl, solo", "", "a photo of a cat that sits on a bench, smiling", "猫", "1girl"]


def random_qwen(vocabulary: int = 300, width: int = 32, layers: int = 2) -> Qwen3Model:
    """Transformers' class with every weight, gains of the norms too, drawn afresh."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    network = Qwen3Model(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network


def write_qwen_tokenizer(folder: Path) -> Path:
    """Train a byte-level tokenizer of at most 300 tokens on the captions."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CAPTIONS * 2, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def write_qwen_folder(folder: Path, network: Qwen3Model, shard_size: str = "1GB") -> Path:
    network.save_pretrained(folder, max_shard_size=shard_size)
    write_qwen_tokenizer(folder)
    return folder


def write_qwen_file(path: Path, network: Qwen3Model, prefix: str = "model.") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {prefix + name: tensor for name, tensor in network.state_dict().items()}
    save_file(weights | {"lm_head.weight": torch.zeros(2, 2)}, path)
    return path


def write_t5_folder(folder: Path, pieces: int = 32000) -> Path:
    """The first pieces of the real tokenizer.json; spiece.model and config.json made for it."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = json.loads((GOLDEN / "tokenizers" / "t5" / "tokenizer.json").read_bytes())
    vocabulary = stored["model"]["vocab"]
    stored["model"]["vocab"] = [*vocabulary[:pieces], *vocabulary[32000:]]
    for token in stored["added_tokens"]:
        token["id"] -= 32000 - pieces if token["id"] >= 32000 else 0
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    (folder / "config.json").write_text(json.dumps({"model_type": "t5", "eos_token_id": 1}))
    model = sentencepiece_model_pb2.ModelProto()
    kind = sentencepiece_model_pb2.ModelProto.SentencePiece
    special = {0: kind.CONTROL, 1: kind.CONTROL, 2: kind.UNKNOWN}
    for place, (piece, score) in enumerate(vocabulary[:pieces]):
        model.pieces.add(piece=piece, score=score, type=special.get(place, kind.NORMAL))
    charsmap = stored["normalizer"]["normalizers"][0]["precompiled_charsmap"]
    model.normalizer_spec.precompiled_charsmap = base64.b64decode(charsmap)
    trainer = model.trainer_spec
    trainer.pad_id, trainer.eos_id, trainer.unk_id, trainer.bos_id = 0, 1, 2, -1
    (folder / "spiece.model").write_bytes(model.SerializeToString())
    return folder
