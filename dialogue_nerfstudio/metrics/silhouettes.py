"""Silhouettes against truth: overlap, holes, and what stands outside.

Conventions: silhouettes are boolean `[H, W]`, true on the person. Shares are of the true silhouette's pixels.
"""

from typing import Dict

import cv2
import numpy as np
from jaxtyping import Bool

FLOATER_DISTANCE = 1 / 32
"""Picture heights beyond the true silhouette from which on what is drawn is a floater: 4 pixels at 128."""


def silhouette_metrics(
    predicted: Bool[np.ndarray, "height width"], truth: Bool[np.ndarray, "height width"]
) -> Dict[str, float]:
    """`iou`, intersection over union; `holes`, share of the true silhouette that is not covered; `floaters`, pixels
    drawn further than FLOATER_DISTANCE outside, over the true silhouette's.

    Raises:
        ValueError: nobody is in the true picture.
    """
    if not truth.any():
        raise ValueError("the true silhouette is empty")
    distance = cv2.distanceTransform((~truth).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    far = distance > max(1.0, FLOATER_DISTANCE * truth.shape[0])
    return {
        "iou": float((predicted & truth).sum() / (predicted | truth).sum()),
        "holes": float((truth & ~predicted).sum() / truth.sum()),
        "floaters": float((predicted & far).sum() / truth.sum()),
    }
