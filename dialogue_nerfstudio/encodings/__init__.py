"""Multiresolution hash grids and the kernels that compute them."""

from dialogue_nerfstudio.encodings.hash_grid import HashGrid, HashGridConfig, resolve_kernel

__all__ = ["HashGrid", "HashGridConfig", "resolve_kernel"]
