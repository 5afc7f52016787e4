"""The fast 3x3 convolution against torch's own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from anima_pipe.encoders.row_winograd import RowWinograd


def convolution(channels_in, channels_out):
    torch.manual_seed(0)
    return nn.Conv2d(channels_in, channels_out, 3, padding=(0, 1)).requires_grad_(
        requires_grad=False
    )


@settings(max_examples=30)
@given(
    rows=st.integers(1, 19),
    columns=st.integers(1, 9),
    batch=st.integers(1, 2),
    size=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_it_computes_the_convolution_for_any_number_of_rows(rows, columns, batch, size):
    plain = convolution(64, 72)
    x = torch.randn(batch, 64, rows + 2, columns, generator=torch.Generator().manual_seed(rows))
    x = (x * size).contiguous(memory_format=torch.channels_last)
    before = x.clone()
    ours, expected = RowWinograd(plain)(x), plain.double()(x.double())
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() <= 2e-5 * expected.abs().max()
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("plain", "suits"),
    [
        (convolution(64, 64), torch.backends.mkldnn.is_available()),
        (convolution(64, 3), False),
        (convolution(16, 64), False),
        (convolution(64, 64).bfloat16(), False),
        (convolution(64, 64).to("meta"), False),
    ],
    ids=["fp32", "few out", "few in", "bf16", "another device"],
)
def test_it_is_used_where_it_is_faster_and_as_exact(plain, suits):
    assert RowWinograd.suits(plain) == suits
