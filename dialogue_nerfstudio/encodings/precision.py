"""Where positions are computed: always in float32, also under autocast.

float16 has eleven bits: a head's box of 30 cm in it is a raster of 0.15 mm, coarser than the finest level's cells and
far coarser than the steps in which a deformation learns. So everything that makes or moves a position (rays, poses,
the torso's deformation, the grids) leaves autocast, and only networks behind the grids follow it.
"""

from contextlib import AbstractContextManager

import torch
from torch import Tensor


def full_precision(tensor: Tensor) -> AbstractContextManager:
    """A context in which products on `tensor`'s device have their inputs' own type, whatever autocast says."""
    return torch.autocast(tensor.device.type, enabled=False)
