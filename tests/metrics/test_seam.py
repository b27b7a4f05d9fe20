"""The seam's band and errors, and silhouettes, on hand-made pictures."""

import numpy as np
import pytest
import torch

from dialogue_nerfstudio.conversation.video import HEAD, NECK, TORSO
from dialogue_nerfstudio.metrics.seam import head_torso_boundary, seam_band, seam_metrics
from dialogue_nerfstudio.metrics.silhouettes import silhouette_metrics


@pytest.fixture
def labels():
    """A head of 32 columns above a neck of 16 above a torso of 64, in 64 × 64 pixels."""
    labels = torch.zeros(64, 64, dtype=torch.uint8)
    labels[8:32, 16:48] = HEAD
    labels[32:40, 24:40] = NECK
    labels[40:] = TORSO
    return labels


def test_the_boundary_is_where_head_and_neck_touch(labels):
    boundary = head_torso_boundary(labels)
    expected = torch.zeros_like(boundary)
    expected[31:33, 24:40] = True
    torch.testing.assert_close(boundary, expected)
    assert not head_torso_boundary(torch.where(labels == HEAD, 0, labels)).any()


def test_the_band_reaches_two_pixels(labels):
    band = seam_band(labels, band=2 / 64)
    assert band[29:35, 30].all() and not band[28, 30] and not band[35, 30]
    # Round about its ends: (1, 1) lies within 2 pixels of the boundary's corner, (1, 2) does not.
    assert band[33, 23] and band[32, 22] and band[30, 40] and not band[33, 22] and not band[34, 41]


def test_errors_count_in_the_band_only(labels):
    target = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(0))
    opacity = (labels > 0).float()
    perfect = seam_metrics(target, target, opacity, labels)
    assert perfect["seam_colour"] == perfect["seam_alpha"] == 0.0
    assert perfect["seam_share"] == pytest.approx(seam_band(labels).float().mean().item())
    band = seam_band(labels)
    outside = torch.where(band[..., None], target, 1.0 - target)
    assert seam_metrics(outside, target, opacity, labels)["seam_colour"] == 0.0
    gap = opacity.clone()
    gap[31:33, 24:40] = 0.25
    shifted = target + 0.1 * (band[..., None])
    found = seam_metrics(shifted, target, gap, labels)
    assert found["seam_colour"] == pytest.approx(0.1, abs=1e-6)
    assert found["seam_alpha"] == pytest.approx(0.75 * 32 / band.sum().item())


def test_without_a_seam_the_whole_picture_counts():
    target = torch.zeros(16, 16, 3)
    found = seam_metrics(target + 0.2, target, torch.ones(16, 16), torch.full((16, 16), TORSO))
    assert found == {"seam_colour": pytest.approx(0.2), "seam_alpha": 0.0, "seam_share": 0.0}


def test_silhouettes():
    truth = np.zeros((64, 64), dtype=bool)
    truth[20:40, 20:40] = True
    predicted = truth.copy()
    predicted[20:40, 20:25] = False
    predicted[30, 50:60] = True
    predicted[30, 40] = True
    found = silhouette_metrics(predicted, truth)
    assert found["iou"] == pytest.approx(300 / 411)
    assert found["holes"] == pytest.approx(100 / 400)
    assert found["floaters"] == pytest.approx(10 / 400)
    with pytest.raises(ValueError):
        silhouette_metrics(predicted, np.zeros_like(truth))
