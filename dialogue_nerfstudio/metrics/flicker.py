"""Flicker: how much pictures tremble in time that should be still.

Conventions. Pictures are `[T, H, W, 3]` in [0, 1], consecutive frames; regions are boolean `[H, W]`. Results are in the
pictures' own units: times 255 they are grey levels.
"""

from typing import Optional

from jaxtyping import Bool, Float
from torch import Tensor


def flicker(
    pictures: Float[Tensor, "frames height width 3"], region: Optional[Bool[Tensor, "height width"]] = None
) -> float:
    """√(½ · mean (I_{t+1} − I_t)²) over frames, pixels and colours: the von Neumann estimate of a noise's deviation.

    Noise of deviation σ, independent from frame to frame, has flicker σ; a still picture has 0; a slow drift of a a
    frame counts a / √2 only, whatever its length, so that a change of light or posture is no flicker.

    Raises:
        ValueError: fewer than two pictures, or the region has no pixel.
    """
    if len(pictures) < 2:
        raise ValueError("flicker needs two pictures or more")
    squared = (pictures[1:] - pictures[:-1]).square().mean(dim=(0, -1))
    return (0.5 * _mean_within(squared, region)).sqrt().item()


def temporal_deviation(
    pictures: Float[Tensor, "frames height width 3"], region: Optional[Bool[Tensor, "height width"]] = None
) -> float:
    """√(mean over pixels and colours of the variance over time), drifts included (the population's variance).

    Raises:
        ValueError: no picture, or the region has no pixel.
    """
    if len(pictures) < 1:
        raise ValueError("there is no picture")
    return _mean_within(pictures.var(dim=0, unbiased=False).mean(dim=-1), region).sqrt().item()


def _mean_within(values: Float[Tensor, "height width"], region: Optional[Bool[Tensor, "height width"]]) -> Tensor:
    if region is None:
        return values.mean()
    if not region.any():
        raise ValueError("the region has no pixel")
    return values[region].mean()
