"""Captions to what the transformer's text adapter takes: Qwen3's hidden states and T5's ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen3Model

from anima_pipe.encoders.exact import without_tf32
from anima_pipe.encoders.qwen import load_qwen_network
from anima_pipe.encoders.qwen_files import find_qwen_files
from anima_pipe.encoders.qwen_tokens import load_qwen_tokenizer
from anima_pipe.encoders.t5_tokens import T5Tokens
from anima_pipe.records import Text, TextCondition, WeightedText

TOKENS_PER_BATCH = 8192
"""Of Qwen, padding included: keeps a GPU busy with well under a gigabyte of working memory."""


class TextEncoder:
    """The frozen text encoder: raw captions, no template, no special tokens but T5's </s>.

    Made by `anima_pipe.encoders.load_text_encoder`.
    """

    def __init__(self, network: Qwen3Model, qwen_tokens: Tokenizer, t5_tokens: T5Tokens) -> None:
        self._network = network
        self._qwen_tokens = qwen_tokens
        self._t5_tokens = t5_tokens

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the hidden states."""
        return self._network.dtype

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self._network.device

    @property
    def width(self) -> int:
        """Width S of the hidden states."""
        return self._network.config.hidden_size

    @torch.no_grad()
    @without_tf32()
    def encode(self, texts: Sequence[Text]) -> list[TextCondition]:
        """Return the condition of each text, in order, on the CPU.

        Texts are encoded in batches of similar length; a text's batch mates change nothing but the
        rounding. Nothing is cut, however long.

        Args:
            texts: Captions as they are trained on, or prompts from `read_prompt`; the empty one has
                no Qwen tokens and the T5 ids [1]. Weights are T5's alone, as in ComfyUI.

        Returns:
            For each text qwen_hidden Float[Lq, S] in the encoder's dtype, t5_ids Int32[Lt] and,
            where it is weighted, t5_weights Float32[Lt].
        """
        qwen_ids = [self._qwen_ids(text) for text in texts]
        hidden = [torch.zeros(0, self.width, dtype=self.dtype)] * len(qwen_ids)
        for batch in _batches([len(ids) for ids in qwen_ids]):
            states = self._hidden_states([qwen_ids[place] for place in batch])
            for place, rows in zip(batch, states, strict=True):
                hidden[place] = rows
        return [
            TextCondition(rows, *self._t5_parts(text))
            for rows, text in zip(hidden, texts, strict=True)
        ]

    def _qwen_ids(self, text: Text) -> list[int]:
        """Return Qwen's ids, of a prompt those of its stretches one after the other."""
        stretches = [words for words, _ in text.parts] if isinstance(text, WeightedText) else [text]
        # One by one: batches would start threads, which do not survive the forks of a data loader.
        encoded = [self._qwen_tokens.encode(words, add_special_tokens=False) for words in stretches]
        return [token for one in encoded for token in one.ids]

    def _t5_parts(self, text: Text) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return T5's ids, Int32[Lt], and their weights, Float32[Lt], if it has any."""
        if isinstance(text, str):
            return torch.tensor(self._t5_tokens.encode(text), dtype=torch.int32), None
        ids, weights = self._t5_tokens.encode_weighted(text)
        return torch.tensor(ids, dtype=torch.int32), torch.tensor(weights, dtype=torch.float32)

    def _hidden_states(self, ids: list[list[int]]) -> list[torch.Tensor]:
        """Return the last hidden states after the final norm, Float[Lq, S] each, on the CPU."""
        padded = pad_sequence([torch.tensor(row) for row in ids], batch_first=True)
        # No mask: attention is causal, so no token sees the padding on its right.
        output = self._network(input_ids=padded.to(self.device), use_cache=False)
        states = output.last_hidden_state.cpu()
        # Copies, because a view would keep the whole padded batch in memory.
        return [row[: len(tokens)].clone() for row, tokens in zip(states, ids, strict=True)]


def load_text_encoder(
    qwen: str | Path,
    t5_tokenizer_dir: str | Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> TextEncoder:
    """Load Qwen3 and both tokenizers from local files.

    Args:
        qwen: A Hugging Face folder (config.json, tokenizer, one or more .safetensors), or a
            single .safetensors file. A tokenizer beside it is used, else the one of Qwen3 that
            comes with this package.
        t5_tokenizer_dir: A folder with config.json, spiece.model and tokenizer.json.
        dtype: Of the network and of the hidden states.
        device: Where to put the network.

    Raises:
        CheckpointError: Qwen's files are missing, damaged, of another model, or not whole.
        ConfigError: A tokenizer is missing, damaged, or does not fit.
    """
    t5_tokens = T5Tokens(Path(t5_tokenizer_dir))
    files = find_qwen_files(Path(qwen))
    network = load_qwen_network(files, dtype, torch.device(device))
    qwen_tokens = load_qwen_tokenizer(files, network.config.vocab_size)
    return TextEncoder(network, qwen_tokens, t5_tokens)


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield the places of captions of similar length; empty ones are left out."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if lengths[place] == 0:
            continue
        # Sorted: the newcomer is the longest, and all are padded to it.
        if batch and (len(batch) + 1) * lengths[place] > TOKENS_PER_BATCH:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
