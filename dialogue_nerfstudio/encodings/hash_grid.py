"""The multiresolution hash grid as a torch module, whichever kernel computes it.

Convention: positions are [n, d], d = 2 or 3, in [0, 1]; what lies outside is clamped to the edge and gets no position
gradient. Features are [n, num_levels · features_per_level], level-major (coarsest first). All parameters are one
`table` [entries, features_per_level], laid out as in `encodings.layout`: a table trained with one kernel loads into any
other.
"""

import functools
import importlib.util
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.encodings.kernels import torch_kernel
from dialogue_nerfstudio.encodings.layout import grid_levels, growth_factor

KernelName = Literal["auto", "torch", "numba"]
INITIAL_AMPLITUDE = 1e-4


@dataclass
class HashGridConfig:
    """Size of a hash grid and the kernel that computes it."""

    num_dims: int = 3
    """2 or 3."""
    num_levels: int = 8
    """Number of resolutions."""
    features_per_level: int = 2
    """Features stored at each vertex of a level."""
    log2_hashmap_size: int = 15
    """A level larger than 2^this entries is hashed into that many."""
    base_resolution: int = 16
    """Vertices along an axis of the coarsest level."""
    max_resolution: int = 256
    """Vertices along an axis of the finest level."""
    kernel: KernelName = "auto"
    """auto picks numba on a CPU where it is installed, and torch everywhere else."""


def numba_is_installed() -> bool:
    """Whether the numba kernel can be imported (it is not imported to find out)."""
    return importlib.util.find_spec("numba") is not None


def resolve_kernel(name: str, device: torch.device | str, dtype: torch.dtype = torch.float32) -> str:
    """The kernel that `name` means for tensors of `dtype` on `device`: "torch" or "numba".

    Raises:
        DialogueError: `name` is no kernel, is not installed, or cannot run on that device or type.
    """
    device = torch.device(device)
    if name == "auto":
        fits = device.type == "cpu" and dtype == torch.float32 and numba_is_installed()
        return "numba" if fits else "torch"
    if name == "torch":
        return "torch"
    if name == "numba":
        if not numba_is_installed():
            raise DialogueError(
                "The hash grid option kernel=numba needs numba, which is not installed: run `pip install numba`, "
                "or use kernel=auto."
            )
        if device.type != "cpu" or dtype != torch.float32:
            raise DialogueError(
                f"The hash grid option kernel=numba computes float32 on the CPU, not {dtype} on {device}: "
                "use kernel=auto or kernel=torch."
            )
        return "numba"
    raise DialogueError(f'Unknown hash grid option kernel={name}: choose "auto", "torch" or "numba".')


@functools.cache
def _announce(requested: str, resolved: str, device_type: str) -> None:
    """Say once per process, on stderr, which kernel runs where."""
    why = "" if requested == resolved else f" ({requested})"
    print(f"hash grid: {resolved} kernel on {device_type}{why}", file=sys.stderr)


def _kernel_module(name: str) -> ModuleType:
    if name == "numba":
        from dialogue_nerfstudio.encodings.kernels import numba_kernel

        return numba_kernel
    return torch_kernel


class HashGrid(nn.Module):
    """d-linearly interpolated feature grids of growing resolution (Müller et al. 2022, section 3).

    Raises:
        DialogueError: the configuration describes no grid, or its kernel is unknown, absent or unfit for the device.
    """

    def __init__(self, config: HashGridConfig) -> None:
        super().__init__()
        _validate(config)
        self.config = config
        self.growth = growth_factor(config.num_levels, config.base_resolution, config.max_resolution)
        self.levels = grid_levels(
            config.num_dims, config.num_levels, config.base_resolution, self.growth, config.log2_hashmap_size
        )
        entries = self.levels[-1].offset + self.levels[-1].size
        self.table = nn.Parameter(torch.empty(entries, config.features_per_level))
        self.reset_parameters()

    @property
    def out_dim(self) -> int:
        """Number of features per position."""
        return self.config.num_levels * self.config.features_per_level

    @property
    def kernel(self) -> str:
        """The kernel that runs where the table is now."""
        return resolve_kernel(self.config.kernel, self.table.device, self.table.dtype)

    def reset_parameters(self) -> None:
        """Uniform in ±1e-4: small, so that the first densities hardly depend on position (Müller et al., section 4)."""
        nn.init.uniform_(self.table, -INITIAL_AMPLITUDE, INITIAL_AMPLITUDE)

    def forward(self, positions: Float[Tensor, "n d"]) -> Float[Tensor, "n out_dim"]:
        """Features at `positions`, computed in the table's type. Without gradients nothing is kept for a backward."""
        kernel = self.kernel
        _announce(self.config.kernel, kernel, self.table.device.type)
        return _kernel_module(kernel).encode(positions.to(self.table.dtype), self.table, self.levels)

    def extra_repr(self) -> str:
        config = self.config
        return (
            f"{config.num_dims}D, levels={config.num_levels}, features={config.features_per_level}, "
            f"resolutions={self.levels[0].resolution}…{self.levels[-1].resolution}, entries={self.table.shape[0]}, "
            f"kernel={config.kernel}"
        )


def _validate(config: HashGridConfig) -> None:
    if config.num_dims not in (2, 3):
        raise DialogueError(f"A hash grid has 2 or 3 dimensions, not num_dims={config.num_dims}.")
    for name in ("num_levels", "features_per_level", "base_resolution"):
        if getattr(config, name) < 1:
            raise DialogueError(f"A hash grid needs {name} of at least 1, not {getattr(config, name)}.")
    if config.max_resolution < config.base_resolution:
        raise DialogueError(
            f"The hash grid option max_resolution={config.max_resolution} is below "
            f"base_resolution={config.base_resolution}: raise one or lower the other."
        )
    # Below 2^3 entries a hashed level would break the 8-entry alignment; above 2^30 an index overflows elsewhere.
    if not 3 <= config.log2_hashmap_size <= 30:
        raise DialogueError(
            f"The hash grid option log2_hashmap_size must lie between 3 and 30, not {config.log2_hashmap_size}."
        )
    resolve_kernel(config.kernel, "cpu")
