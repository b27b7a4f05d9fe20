"""Causal convolutions of few frames, which are products of matrices, against torch's convolution."""

import pytest
import torch

from dialogue_nerfstudio.motion.tcn import CausalConv


@pytest.mark.parametrize(("dilation", "normalised"), [(1, False), (4, True)])
def test_a_short_convolution_is_the_long_one(dilation, normalised):
    torch.manual_seed(0)
    layer = CausalConv(6, 5, 3, dilation, normalised)
    x, memory = torch.randn(2, 6, 5), torch.randn(2, 6, 2 * dilation)
    expected, kept = layer(x, memory)
    with torch.no_grad():
        found, remembered = layer(x, memory)
        torch.testing.assert_close(found, layer.conv(torch.cat([memory, x], dim=-1)), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(remembered, kept)
