"""PSNR and SSIM of a rendered picture, for the full frame and for the head, the torso, the mouth and the eyes.

Conventions. Pictures are RGB `[H, W, 3]` in [0, 1] without batch dimension; regions are boolean `[H, W]`, true inside.
Protocol: torchmetrics with data range 1 (SSIM: Gaussian window 11, sigma 1.5), no ground truth pasted back; a region's
PSNR is of the mean squared error over its pixels, a region's SSIM the mean of the full frame's SSIM map over its
pixels. A value is always a finite number: PSNR stops at 100 dB (a mean squared error of 1e-10), and a region without a
pixel takes the value of the region around it (mouth, eyes -> head -> full, torso -> full), while its `<region>_share`
of the frame's pixels is then 0, so that an average over frames can be read with care. Every picture gets the same keys,
as nerfstudio's ns-eval needs.
"""

import math
from typing import Mapping, Optional

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from dialogue_nerfstudio.conversation.video import HEAD, NECK, TORSO

PSNR_LIMIT = 100.0
"""PSNR (dB) of pictures that are equal or nearly so."""

SURROUNDING = {"mouth": "head", "eyes": "head", "head": "full", "torso": "full"}
"""Where an empty region's values are taken from."""

# Outer contour of the lips in MediaPipe's face mesh.
LIP_CONTOUR = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185)


def psnr(
    predicted: Float[Tensor, "height width 3"],
    target: Float[Tensor, "height width 3"],
    region: Optional[Bool[Tensor, "height width"]] = None,
) -> float:
    """Peak signal-to-noise ratio -10 log10(mse) in dB over the region's pixels, at most 100.

    Raises:
        ValueError: the region has no pixel.
    """
    squared = (predicted - target).square().mean(-1)
    if region is not None:
        if not region.any():
            raise ValueError("the region has no pixel")
        squared = squared[region]
    return -10.0 * math.log10(max(squared.mean().item(), 10 ** (-PSNR_LIMIT / 10)))


def ssim_map(
    predicted: Float[Tensor, "height width 3"], target: Float[Tensor, "height width 3"]
) -> Float[Tensor, "height width"]:
    """Structural similarity around each pixel, mean over colours; its mean is the SSIM of the full frame."""
    batch = [picture.permute(2, 0, 1)[None] for picture in (predicted, target)]
    _, full = structural_similarity_index_measure(*batch, data_range=1.0, return_full_image=True)
    return full[0].mean(0)


def image_metrics(
    predicted: Float[Tensor, "height width 3"],
    target: Float[Tensor, "height width 3"],
    regions: Optional[Mapping[str, Bool[Tensor, "height width"]]] = None,
) -> dict[str, float]:
    """`psnr`, `ssim` of the full frame, and `psnr_<region>`, `ssim_<region>`, `<region>_share` of each region.

    An empty "mouth" or "eyes" takes the values of "head" where that is given, any other empty region those of the full
    frame.
    """
    similarity = ssim_map(predicted, target)
    values = {"full": (psnr(predicted, target), similarity.mean().item())}
    regions = dict(regions or {})
    # A region is measured after the one whose values it may take.
    order = sorted(regions, key=lambda name: SURROUNDING.get(name, "full") != "full")
    for name in order:
        if regions[name].any():
            values[name] = (psnr(predicted, target, regions[name]), similarity[regions[name]].mean().item())
        else:
            values[name] = values.get(SURROUNDING.get(name, "full"), values["full"])
    result = {"psnr": values["full"][0], "ssim": values["full"][1]}
    for name in regions:
        result[f"psnr_{name}"], result[f"ssim_{name}"] = values[name]
        result[f"{name}_share"] = regions[name].float().mean().item()
    return result


def label_regions(
    labels: Int[Tensor, "height width"] | UInt8[Tensor, "height width"],
) -> dict[str, Bool[Tensor, "height width"]]:
    """ "head" (the head label) and "torso" (torso and neck) of a label map."""
    return {"head": labels == HEAD, "torso": (labels == TORSO) | (labels == NECK)}


def mouth_region(
    landmarks: Float[Tensor, "478 2"], height: int, width: int, scale: float = 1.0, padding: float = 0.25
) -> Bool[Tensor, "height width"]:
    """The box of the lips' outer contour, widened on each side by `padding` of its larger side.

    `landmarks` are pixels of the recording, `scale` the picture's size over the recording's. Where they are NaN (no
    face was seen) or outside the picture the region is empty.
    """
    points = landmarks[list(LIP_CONTOUR)] * scale
    region = torch.zeros(height, width, dtype=torch.bool, device=landmarks.device)
    if not torch.isfinite(points).all():
        return region
    low, high = points.amin(0), points.amax(0)
    margin = padding * (high - low).max()
    (left, top), (right, bottom) = (low - margin).floor().int().tolist(), (high + margin).ceil().int().tolist()
    region[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = True
    return region
