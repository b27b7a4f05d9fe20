"""Seam: colour and opacity error in a band around the boundary between head and torso, where two fields meet.

Conventions: pictures are RGB `[H, W, 3]` in [0, 1], opacities `[H, W]` in [0, 1], label maps as in
`conversation.video`. Protocol: the boundary is every pixel of the true label map that has the label head and a
4-neighbour with neck or torso, or the other way about; the band is every pixel within `BAND` picture heights
(Euclidean, at least 1 pixel) of one. Errors are mean absolute differences over the band, 0 … 1. To be read as the
paper's figure 9 is, measure on poses that training did not see.
"""

from typing import Dict

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from dialogue_nerfstudio.conversation.video import HEAD, NECK, TORSO

BAND = 1 / 32
"""Half the band's width, in picture heights: 4 pixels at 128."""


def head_torso_boundary(
    labels: Int[Tensor, "height width"] | UInt8[Tensor, "height width"],
) -> Bool[Tensor, "height width"]:
    """Head pixels beside the neck or torso, and neck or torso pixels beside the head."""
    head, body = labels == HEAD, (labels == NECK) | (labels == TORSO)
    boundary = torch.zeros_like(head)
    for axis in (0, 1):
        size = labels.shape[axis]
        first = [head.narrow(axis, 0, size - 1), body.narrow(axis, 0, size - 1)]
        second = [head.narrow(axis, 1, size - 1), body.narrow(axis, 1, size - 1)]
        meets = (first[0] & second[1]) | (first[1] & second[0])
        boundary.narrow(axis, 0, size - 1).logical_or_(meets)
        boundary.narrow(axis, 1, size - 1).logical_or_(meets)
    return boundary


def seam_band(
    labels: Int[Tensor, "height width"] | UInt8[Tensor, "height width"], band: float = BAND
) -> Bool[Tensor, "height width"]:
    """Pixels within `band` picture heights of the boundary; none where head and torso do not meet."""
    boundary = head_torso_boundary(labels)
    if not boundary.any():
        return boundary
    radius = max(1.0, band * labels.shape[0])
    away = (~boundary).cpu().numpy().astype(np.uint8)
    distance = cv2.distanceTransform(away, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return torch.from_numpy(distance <= radius).to(labels.device)


def seam_metrics(
    predicted: Float[Tensor, "height width 3"],
    target: Float[Tensor, "height width 3"],
    opacity: Float[Tensor, "height width"],
    labels: Int[Tensor, "height width"] | UInt8[Tensor, "height width"],
) -> Dict[str, float]:
    """`seam_colour`, `seam_alpha` and `seam_share`, the band's share of the picture.

    Where head and torso do not meet the errors are those of the whole picture and the share is 0, so that every picture
    has the same finite keys, as nerfstudio's ns-eval needs.

    Args:
        predicted, target: the rendered and the true picture.
        opacity: of the rendered person, all parts together.
        labels: the true label map.
    """
    band = seam_band(labels)
    region = band if band.any() else torch.ones_like(band)
    filled = (labels > 0).to(opacity.dtype)
    return {
        "seam_colour": (predicted - target).abs().mean(dim=-1)[region].mean().item(),
        "seam_alpha": (opacity - filled).abs()[region].mean().item(),
        "seam_share": band.float().mean().item(),
    }
