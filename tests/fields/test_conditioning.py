"""Conditioning multiplied once a frame equals conditioning expanded to every sample."""

import pytest
import torch

from dialogue_nerfstudio.fields.conditioning import (
    direction_encoding,
    exponential_density,
    frame_matmul,
    frequency_encoding,
    frequency_encoding_size,
)


@pytest.mark.parametrize("counts", [[5], [4, 4, 4], [3, 0, 6], [0, 0]])
def test_frame_matmul_is_a_product_with_each_samples_matrix(counts):
    inputs, matrices = torch.randn(sum(counts), 7), torch.randn(len(counts), 7, 3)
    frames = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    expected = torch.einsum("ni,niw->nw", inputs, matrices[frames])
    torch.testing.assert_close(frame_matmul(inputs, matrices, counts), expected)


def test_frequency_encoding_matches_sines_and_cosines_of_every_octave():
    values = torch.rand(100, 3) * 2 - 1
    encoded = frequency_encoding(values, 5)
    assert encoded.shape == (100, frequency_encoding_size(3, 5))
    expected = [values]
    for octave in range(5):
        expected += [torch.sin(2**octave * torch.pi * values), torch.cos(2**octave * torch.pi * values)]
    torch.testing.assert_close(encoded, torch.cat(expected, dim=-1), atol=1e-5, rtol=0)


def test_direction_encoding_tells_opposite_directions_apart():
    direction = torch.nn.functional.normalize(torch.randn(10, 3), dim=-1)
    assert (direction_encoding(direction) - direction_encoding(-direction)).norm(dim=-1).min() > 1.0


def test_density_is_positive_and_finite_for_any_output():
    density = exponential_density(torch.tensor([-1e6, 0.0, 1e6]), scale=3.0)
    assert torch.isfinite(density).all() and (density > 0).all()
    assert density[1] == 3.0
