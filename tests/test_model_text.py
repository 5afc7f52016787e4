"""The text condition: what a caption gives may not depend on its company."""

from __future__ import annotations

import pytest
import torch
from golden_model import golden_transformer, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pad_sequence

from anima_pipe.model import AnimaTransformer, TextConditionedTransformer

Caption = tuple[torch.Tensor, torch.Tensor]

caption_lengths = st.tuples(
    st.integers(0, 12),  # Qwen tokens
    st.integers(1, 14),  # T5 tokens
)


@pytest.fixture(scope="module")
def model() -> AnimaTransformer:
    return golden_transformer("a")


@settings(max_examples=25)
@given(lengths=st.lists(caption_lengths, min_size=1, max_size=4), seed=st.integers(0, 99))
def test_a_ragged_batch_gives_what_each_caption_gives_alone(
    model: AnimaTransformer, lengths: list[tuple[int, int]], seed: int
) -> None:
    captions = [_caption(qwen, t5, seed + index) for index, (qwen, t5) in enumerate(lengths)]

    together = model.preprocess_text_embeds(*_batch(captions))

    for index, (hidden, ids) in enumerate(captions):
        alone = model.preprocess_text_embeds(hidden[None], ids[None])
        assert relative_error(together[index], alone[0]) < 2e-6


def test_what_lies_in_the_padding_changes_nothing_not_even_if_it_is_nan(
    model: AnimaTransformer,
) -> None:
    hidden, ids, qwen_mask, t5_mask = _batch([_caption(3, 2, 0), _caption(8, 9, 1)])
    garbage_hidden = hidden.masked_fill(~qwen_mask.unsqueeze(-1), float("nan"))
    garbage_ids = ids.masked_fill(~t5_mask, 77)

    clean = model.preprocess_text_embeds(hidden, ids, qwen_mask, t5_mask)
    dirty = model.preprocess_text_embeds(garbage_hidden, garbage_ids, qwen_mask, t5_mask)

    assert torch.equal(clean, dirty)


def test_masks_may_be_integers_as_tokenizers_give_them(model: AnimaTransformer) -> None:
    hidden, ids, qwen_mask, t5_mask = _batch([_caption(3, 2, 0), _caption(8, 9, 1)])

    condition = model.preprocess_text_embeds(hidden, ids, qwen_mask.int(), t5_mask.long())

    assert torch.equal(condition, model.preprocess_text_embeds(hidden, ids, qwen_mask, t5_mask))


def test_an_empty_caption_is_one_zero_row_of_qwen(model: AnimaTransformer) -> None:
    ids = torch.tensor([[1]])
    masked_out = torch.randn(1, 4, 24), ids, torch.zeros(1, 4, dtype=torch.bool)

    expected = model.preprocess_text_embeds(torch.zeros(1, 1, 24), ids)

    assert torch.allclose(model.preprocess_text_embeds(torch.zeros(1, 0, 24), ids), expected)
    assert torch.allclose(model.preprocess_text_embeds(*masked_out), expected)


def test_a_batch_of_empty_captions_has_no_qwen_positions_at_all(model: AnimaTransformer) -> None:
    mask = torch.zeros(2, 0, dtype=torch.bool)

    condition = model.preprocess_text_embeds(torch.zeros(2, 0, 24), torch.ones(2, 1).int(), mask)

    assert condition.isfinite().all()
    assert torch.equal(condition[0], condition[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_through_an_empty_caption_are_finite(dtype: torch.dtype) -> None:
    model = golden_transformer("a").to(dtype)
    hidden, ids, qwen_mask, t5_mask = _batch([_caption(0, 1, 0), _caption(5, 6, 1)])
    hidden = hidden.to(dtype).requires_grad_()
    t5_mask[0] = False  # Not even the closing token: nothing is left of this caption.

    condition = model.preprocess_text_embeds(hidden, ids, qwen_mask, t5_mask)
    (condition.float() * torch.randn(condition.shape)).sum().backward()

    assert not condition[0].any()
    gradients = [hidden.grad, *(p.grad for p in model.llm_adapter.parameters())]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize(("t5_length", "positions"), [(1, 512), (512, 512), (700, 700)])
def test_the_condition_is_zero_behind_the_caption_up_to_512(
    model: AnimaTransformer, t5_length: int, positions: int
) -> None:
    hidden, ids = _caption(4, t5_length, 0)

    condition = model.preprocess_text_embeds(hidden[None], ids[None])

    assert condition.shape == (1, positions, 32)
    assert condition[0, :t5_length].any(dim=-1).all()
    assert not condition[0, t5_length:].any()


def test_the_zeros_behind_a_caption_take_part_in_cross_attention(model: AnimaTransformer) -> None:
    latents, sigma = torch.randn(1, 16, 4, 4), torch.tensor([0.5])
    hidden, ids = _caption(4, 5, 0)
    condition = model.preprocess_text_embeds(hidden[None], ids[None])

    with_zeros = model(latents, sigma, condition)
    trimmed = model(latents, sigma, condition[:, :5])

    assert relative_error(trimmed, with_zeros) > 1e-2


@pytest.mark.parametrize("checkpointed", [False, True])
def test_captions_over_512_tokens_change_nothing_for_their_batch_mates(checkpointed: bool) -> None:
    """Forward and backward: what two captions give together is what each gives alone."""
    model = golden_transformer("a")
    model.checkpoint_blocks(checkpointed)
    captions = [_caption(4, 5, 0), _caption(9, 700, 1), _caption(3, 520, 2), _caption(0, 1, 3)]
    latents, sigma = torch.randn(4, 16, 4, 6), torch.tensor([0.1, 0.4, 0.6, 0.9])
    ends = torch.randn(4, 16, 4, 6)

    together = TextConditionedTransformer(model)(latents, sigma, *_batch(captions))
    (together * ends).sum().backward()
    gradients = _gradients(model)

    alone = [
        TextConditionedTransformer(model)(latents[[n]], sigma[[n]], hidden[None], ids[None])
        for n, (hidden, ids) in enumerate(captions)
    ]
    (torch.cat(alone) * ends).sum().backward()
    for number, velocity in enumerate(alone):
        assert relative_error(together[number], velocity[0]) < 2e-6
    for name, gradient in _gradients(model).items():
        assert relative_error(gradients[name], gradient) < 1e-4, name


def test_captions_up_to_512_tokens_are_attended_to_without_a_mask(
    model: AnimaTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks: list[object] = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def noted(*inputs: torch.Tensor, attn_mask: torch.Tensor | None = None) -> torch.Tensor:
        masks.append(attn_mask)
        return attention(*inputs, attn_mask=attn_mask)

    context = model.preprocess_text_embeds(*_batch([_caption(4, 5, 0), _caption(9, 512, 1)]))
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    model(torch.randn(2, 16, 4, 4), torch.tensor([0.5, 0.5]), context)

    assert set(masks) == {None}


def test_on_a_processor_the_zeros_behind_all_captions_of_a_batch_are_computed_once(
    model: AnimaTransformer,
) -> None:
    """As they are alike, one stands for all of them; what comes out is the same."""
    seen: list[int] = []
    for block in model.blocks:
        block.cross_attn.k_proj.register_forward_pre_hook(
            lambda _layer, inputs: seen.append(inputs[0].shape[1])
        )
    latents, sigma = torch.randn(2, 16, 4, 4), torch.tensor([0.2, 0.7])
    context = model.preprocess_text_embeds(*_batch([_caption(4, 5, 0), _caption(9, 8, 1)]))
    almost = context.clone()
    # All positions are computed where the last one is not zero.
    almost[:, -1] = 1e-30

    condensed, whole = model(latents, sigma, context), model(latents, sigma, almost)

    blocks = len(model.blocks)
    assert seen == [8 + 1] * blocks + [512] * blocks
    assert relative_error(condensed, whole) < 2e-6


def test_an_empty_condition_is_read_as_nothing_but_zeros(model: AnimaTransformer) -> None:
    latents, sigma = torch.randn(1, 16, 4, 4), torch.tensor([0.2])

    nothing = model(latents, sigma, torch.zeros(1, 512, 32))

    assert relative_error(nothing, model(latents, sigma, torch.full((1, 512, 32), 1e-30))) < 2e-6


def test_one_call_from_raw_text_is_the_two_calls(model: AnimaTransformer) -> None:
    latents, sigma = torch.randn(2, 16, 4, 6), torch.tensor([0.1, 0.9])
    text = _batch([_caption(3, 2, 0), _caption(8, 9, 1)])

    velocity = TextConditionedTransformer(model)(latents, sigma, *text)

    assert torch.equal(velocity, model(latents, sigma, model.preprocess_text_embeds(*text)))


@pytest.mark.parametrize(
    ("hidden", "ids", "qwen_mask", "t5_mask", "complaint"),
    [
        ((1, 4, 23), (1, 5), None, None, r"qwen_hidden of shape \[1, 4, 23\]"),
        ((4, 24), (1, 5), None, None, "qwen_hidden"),
        ((1, 4, 24), (2, 5), None, None, "t5_ids"),
        ((1, 4, 24), (1, 0), None, None, "t5_ids"),
        ((1, 4, 24), (1, 5), (1, 3), None, "qwen_mask"),
        ((1, 4, 24), (1, 5), None, (1, 6), "t5_mask"),
    ],
)
def test_text_of_impossible_shapes_is_refused(
    model: AnimaTransformer,
    hidden: tuple[int, ...],
    ids: tuple[int, ...],
    qwen_mask: tuple[int, ...] | None,
    t5_mask: tuple[int, ...] | None,
    complaint: str,
) -> None:
    masks = [None if shape is None else torch.ones(shape) for shape in (qwen_mask, t5_mask)]

    with pytest.raises(ValueError, match=complaint):
        model.preprocess_text_embeds(torch.zeros(hidden), torch.ones(ids).int(), *masks)


def _gradients(model: AnimaTransformer) -> dict[str, torch.Tensor]:
    """Return the gradients of all parameters that have one, and clear them."""
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def _caption(qwen_tokens: int, t5_tokens: int, seed: int) -> Caption:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(qwen_tokens, 24, generator=generator)
    return hidden, torch.randint(1, 96, (t5_tokens,), generator=generator)


def _batch(
    captions: list[Caption],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pad captions as training does; at least one Qwen position, as its batches have."""
    hidden = pad_sequence([hidden for hidden, _ in captions] + [torch.zeros(1, 24)], True)[:-1]
    ids = pad_sequence([ids for _, ids in captions], True)
    qwen_lengths = torch.tensor([[len(hidden)] for hidden, _ in captions])
    t5_lengths = torch.tensor([[len(ids)] for _, ids in captions])
    return (
        hidden,
        ids,
        torch.arange(hidden.shape[1]) < qwen_lengths,
        torch.arange(ids.shape[1]) < t5_lengths,
    )
