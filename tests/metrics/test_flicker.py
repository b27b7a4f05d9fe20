"""Flicker in closed form: still pictures, independent noise, a steady drift, a swing."""

import math

import pytest
import torch

from dialogue_nerfstudio.metrics.flicker import flicker, temporal_deviation


def still(frames: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, 12, 10, 3, generator=generator).expand(frames, -1, -1, -1).clone()


def test_still_pictures_do_not_flicker():
    assert flicker(still(5)) == 0.0
    assert temporal_deviation(still(5)) == pytest.approx(0.0, abs=1e-7)


def test_independent_noise_has_its_own_deviation():
    pictures = still(200) + 0.03 * torch.randn(200, 12, 10, 3, generator=torch.Generator().manual_seed(1))
    assert flicker(pictures) == pytest.approx(0.03, rel=0.02)
    assert temporal_deviation(pictures) == pytest.approx(0.03, rel=0.02)


@pytest.mark.parametrize("frames", [2, 50])
def test_a_drift_counts_by_its_slope_whatever_its_length(frames):
    """a a frame: flicker a / √2; the deviation grows with the length, a √((T² − 1) / 12)."""
    pictures = still(frames) + 0.01 * torch.arange(frames)[:, None, None, None]
    assert flicker(pictures) == pytest.approx(0.01 / math.sqrt(2), rel=1e-3)
    assert temporal_deviation(pictures) == pytest.approx(0.01 * math.sqrt((frames**2 - 1) / 12), rel=1e-3)


def test_a_swing_to_and_fro():
    """±a alternating: consecutive pictures differ by 2 a, so flicker is √2 a; the deviation is a."""
    pictures = still(10) + 0.02 * (-1.0) ** torch.arange(10)[:, None, None, None]
    assert flicker(pictures) == pytest.approx(0.02 * math.sqrt(2), rel=1e-4)
    assert temporal_deviation(pictures) == pytest.approx(0.02, rel=1e-4)


def test_a_region_sees_only_itself():
    pictures, region = still(6), torch.zeros(12, 10, dtype=torch.bool)
    region[:3] = True
    pictures[:, 3:] += 0.1 * (-1.0) ** torch.arange(6)[:, None, None, None]
    assert flicker(pictures, region) == 0.0
    assert flicker(pictures, ~region) == pytest.approx(0.1 * math.sqrt(2), rel=1e-4)


def test_what_cannot_be_measured():
    with pytest.raises(ValueError, match="two pictures"):
        flicker(still(1))
    with pytest.raises(ValueError, match="no picture"):
        temporal_deviation(still(3)[:0])
    for measure in (flicker, temporal_deviation):
        with pytest.raises(ValueError, match="no pixel"):
            measure(still(3), torch.zeros(12, 10, dtype=torch.bool))
