"""Picture metrics against hand-computed values and torchmetrics."""

import math

import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from dialogue_nerfstudio.conversation.video import HEAD, NECK, TORSO
from dialogue_nerfstudio.metrics.images import LIP_CONTOUR, image_metrics, label_regions, mouth_region, psnr, ssim_map


def picture(seed: int, height: int = 40, width: int = 48) -> torch.Tensor:
    return torch.rand(height, width, 3, generator=torch.Generator().manual_seed(seed))


def box(top: int, bottom: int, left: int, right: int) -> torch.Tensor:
    region = torch.zeros(40, 48, dtype=torch.bool)
    region[top:bottom, left:right] = True
    return region


def test_psnr_of_a_constant_error():
    target = torch.full((40, 48, 3), 0.5)
    assert psnr(target + 0.1, target) == pytest.approx(20.0, abs=1e-4)
    assert psnr(target, target) == 100.0


def test_psnr_and_ssim_are_torchmetrics():
    predicted, target = picture(0), picture(1)
    batch = [p.permute(2, 0, 1)[None] for p in (predicted, target)]
    assert psnr(predicted, target) == pytest.approx(peak_signal_noise_ratio(*batch, data_range=1.0).item(), abs=1e-4)
    expected = structural_similarity_index_measure(*batch, data_range=1.0).item()
    assert ssim_map(predicted, target).mean().item() == pytest.approx(expected, abs=1e-5)


def test_a_region_sees_only_its_own_error():
    target = torch.full((40, 48, 3), 0.5)
    predicted = target.clone()
    predicted[:10, :10] += 0.1
    inside, outside = box(0, 10, 0, 10), box(25, 40, 25, 48)
    metrics = image_metrics(predicted, target, {"head": inside, "torso": outside})
    assert metrics["psnr_head"] == pytest.approx(20.0, abs=1e-4)
    assert metrics["psnr_torso"] == 100.0 and metrics["ssim_torso"] == pytest.approx(1.0)
    assert metrics["psnr"] == pytest.approx(-10 * math.log10(0.01 * 100 / (40 * 48)), abs=1e-4)
    assert metrics["ssim_head"] < metrics["ssim"] < metrics["ssim_torso"] + 1e-6
    assert metrics["head_share"] == pytest.approx(100 / (40 * 48))


def test_region_ssim_is_the_mean_of_the_map():
    predicted, target, region = picture(2), picture(3), box(5, 20, 8, 30)
    metrics = image_metrics(predicted, target, {"mouth": region})
    assert metrics["ssim_mouth"] == pytest.approx(ssim_map(predicted, target)[region].mean().item())


def test_empty_regions_take_the_value_around_them_and_say_so():
    predicted, target = picture(4), picture(5)
    empty, head = box(0, 0, 0, 0), box(5, 25, 5, 25)
    metrics = image_metrics(predicted, target, {"mouth": empty, "head": head, "torso": empty})
    assert metrics["psnr_mouth"] == metrics["psnr_head"] != metrics["psnr"]
    assert metrics["psnr_torso"] == metrics["psnr"] and metrics["ssim_torso"] == metrics["ssim"]
    assert metrics["mouth_share"] == metrics["torso_share"] == 0.0
    nothing = image_metrics(predicted, target, {"mouth": empty, "head": empty, "torso": empty})
    assert nothing["psnr_mouth"] == nothing["psnr"]
    assert nothing.keys() == metrics.keys()
    assert all(math.isfinite(value) for value in {**nothing, **metrics}.values())


def test_psnr_of_an_empty_region_is_refused():
    with pytest.raises(ValueError, match="no pixel"):
        psnr(picture(0), picture(1), box(0, 0, 0, 0))


def test_label_regions():
    labels = torch.tensor([[0, TORSO], [NECK, HEAD]], dtype=torch.uint8)
    regions = label_regions(labels)
    assert regions["head"].tolist() == [[False, False], [False, True]]
    assert regions["torso"].tolist() == [[False, True], [True, False]]


def test_mouth_region_is_the_padded_box_of_the_lips():
    landmarks = torch.zeros(478, 2)
    landmarks[:, 0] = 1000.0
    corners = torch.tensor([[40.0, 60.0], [60.0, 60.0], [50.0, 56.0], [50.0, 64.0]])
    landmarks[list(LIP_CONTOUR)] = corners.repeat(5, 1)
    region = mouth_region(landmarks, 80, 100, padding=0.25)
    rows, columns = region.any(1).nonzero()[:, 0], region.any(0).nonzero()[:, 0]
    assert (columns[0].item(), columns[-1].item() + 1) == (35, 65)
    assert (rows[0].item(), rows[-1].item() + 1) == (51, 69)
    half = mouth_region(landmarks, 40, 50, scale=0.5, padding=0.25)
    # 17.5 … 32.5 and 25.5 … 34.5, widened to whole pixels.
    assert half.sum().item() == 16 * 10


def test_mouth_region_without_a_face_or_outside_is_empty():
    assert not mouth_region(torch.full((478, 2), float("nan")), 20, 20).any()
    assert not mouth_region(torch.full((478, 2), 500.0), 20, 20).any()
    assert not mouth_region(torch.full((478, 2), -500.0), 20, 20).any()
