"""Which type things are computed in: positions always in float32, networks in float16 where that is fast and enough.

float16 has eleven bits: a head's box of 30 cm in it is a raster of 0.15 mm, coarser than the finest level's cells and
far coarser than the steps in which a deformation learns. So everything that makes or moves a position (rays, poses,
the torso's deformation, the grids) leaves autocast, and only networks behind the grids follow it.
"""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor


def full_precision(tensor: Tensor) -> AbstractContextManager:
    """A context in which products on `tensor`'s device have their inputs' own type, whatever autocast says."""
    return torch.autocast(tensor.device.type, enabled=False)


def half_while_rendering(method: Callable) -> Callable:
    """Decorates a field's method whose first argument is a tensor: without gradients and on CUDA its networks run in
    float16, if the field's config says so (`half_inference`) and unless autocast is on already."""

    @functools.wraps(method)
    def wrapped(self, tensor: Tensor, *arguments, **options):
        half = self.config.half_inference and tensor.is_cuda and not torch.is_grad_enabled()
        if not half or torch.is_autocast_enabled("cuda"):
            return method(self, tensor, *arguments, **options)
        with torch.autocast("cuda", torch.float16):
            return method(self, tensor, *arguments, **options)

    return wrapped
