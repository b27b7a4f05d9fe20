"""Several people's sources on the same rays: each is built for the rays that meet it, then spread over all.

Convention: as in `rendering.march`. `rays` [K] names, in ascending order, the rays of the batch that a source was built
for; row k of the source is ray rays[k]. What is not named costs nothing but its row of zeros.
"""

from dataclasses import replace
from typing import Optional

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dialogue_nerfstudio.rendering.march import Geometry, Source


def spread(
    source: Source,
    rays: Int[Tensor, " K"],
    num_rays: int,
    stop: Optional[Float[Tensor, " num_rays"]] = None,
) -> Source:
    """The source as all rays of a batch see it: the rays that it was not built for miss it.

    Args:
        source: of the rays `rays` only, K rows.
        rays: ascending.
        num_rays: of the batch.
        stop: where an opaque surface ends each ray; nothing behind it is marched.
    """
    row = rays.new_zeros(num_rays).index_copy(0, rays, torch.arange(len(rays), device=rays.device))

    def over_all(values: Float[Tensor, "K ..."]) -> Float[Tensor, "num_rays ..."]:
        return values.new_zeros(num_rays, *values.shape[1:]).index_copy(0, rays, values)

    def density(points: Tensor, of: Tensor) -> tuple[Tensor, Geometry]:
        return source.density(points, row.index_select(0, of))

    def colour(geometry: Geometry, points: Tensor, of: Tensor) -> Tensor:
        return source.colour(geometry, points, row.index_select(0, of))

    far = over_all(source.far)
    return replace(
        source,
        origins=over_all(source.origins),
        directions=over_all(source.directions),
        near=over_all(source.near),
        far=far if stop is None else torch.minimum(far, stop),
        density=density,
        colour=colour,
    )
