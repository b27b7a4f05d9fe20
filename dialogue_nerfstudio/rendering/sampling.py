"""Where along a ray a field is evaluated.

Convention: t [num_rays, S] ascends along the last axis; delta [num_rays, S] is the length of ray, in units of t, that a
sample stands for. The bins [near, far] / S tile the interval, so delta sums to far − near whatever the jitter.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def stratified(
    near: Float[Tensor, " num_rays"],
    far: Float[Tensor, " num_rays"],
    num_samples: int,
    perturb: bool = False,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, "num_rays S"], Float[Tensor, "num_rays S"]]:
    """One sample in each of `num_samples` equal bins: its middle, or uniform in it where `perturb`.

    A uniform sample in each bin makes Σ density(t_i) · delta_i an unbiased estimate of the ray's optical depth
    (NeRF, Mildenhall et al. 2020, eq. 2). A missed box (far <= near) gets t = near and delta = 0.

    Returns:
        t and delta.
    """
    width = ((far - near) / num_samples).clamp(min=0.0)[:, None]
    bins = torch.arange(num_samples, device=near.device, dtype=near.dtype)
    if perturb:
        shape = (near.shape[0], num_samples)
        within = torch.rand(shape, device=near.device, dtype=near.dtype, generator=generator)
    else:
        within = torch.full_like(bins, 0.5)
    return near[:, None] + (bins + within) * width, width.expand(-1, num_samples)


def points_along(
    origins: Float[Tensor, "num_rays 3"], directions: Float[Tensor, "num_rays 3"], t: Float[Tensor, "num_rays S"]
) -> Float[Tensor, "num_rays S 3"]:
    """r(t) = origin + t · direction."""
    return torch.addcmul(origins[:, None, :], t[:, :, None], directions[:, None, :])
