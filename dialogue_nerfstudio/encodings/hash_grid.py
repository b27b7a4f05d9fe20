"""The multiresolution hash grid as a torch module, whichever kernel computes it.

Convention: positions are [n, d], d = 2 or 3, in [0, 1]; what lies outside is clamped to the edge and gets no position
gradient. Features are [n, num_levels · features_per_level], level-major (coarsest first). All parameters are one
`table` [entries, features_per_level], laid out as in `encodings.layout`: a table trained with one kernel loads into any
other.
"""

import functools
import importlib.util
import os
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.encodings.kernels import tcnn_kernel
from dialogue_nerfstudio.encodings.layout import grid_levels, growth_factor
from dialogue_nerfstudio.encodings.precision import full_precision

KernelName = Literal["auto", "torch", "numba", "triton", "tcnn"]
KERNELS = ("torch", "numba", "triton", "tcnn")
"""All kernels; each reads the others' tables."""

TRITON_TABLE_TYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What the triton kernel reads."""

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
    """auto picks triton on CUDA and numba on a CPU where they are installed, else torch; tcnn has to be asked for."""


def is_installed(package: str) -> bool:
    """Whether a package can be imported (it is not imported to find out)."""
    return importlib.util.find_spec(package) is not None


@functools.cache
def compiles_for(device: torch.device) -> bool:
    """Whether Triton compiles for a CUDA device: Volta and newer. Taken for granted where there is none to ask."""
    return not torch.cuda.is_available() or torch.cuda.get_device_capability(device) >= (7, 0)


def triton_interprets() -> bool:
    """Whether Triton was told to run in its interpreter, which needs no CUDA device."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def require_kernel(name: str) -> None:
    """Raises:
    DialogueError: `name` is no kernel, or cannot run on this machine at all.
    """
    if name in ("auto", "torch"):
        return
    if name == "numba":
        if not is_installed("numba"):
            raise DialogueError(
                "The hash grid option kernel=numba needs numba, which is not installed: run `pip install numba`, "
                "or use kernel=auto."
            )
    elif name == "triton":
        if not is_installed("triton"):
            raise DialogueError(
                "The hash grid option kernel=triton needs triton, which is not installed: run `pip install triton`, "
                "or use kernel=auto."
            )
        if not (torch.cuda.is_available() or triton_interprets()):
            raise DialogueError(
                "The hash grid option kernel=triton needs a CUDA device, and torch sees none here: use kernel=auto (or "
                "set TRITON_INTERPRET=1 to run it, very slowly, in Triton's interpreter)."
            )
    elif name == "tcnn":
        if not is_installed("tinycudann"):
            raise DialogueError(
                "The hash grid option kernel=tcnn needs tiny-cuda-nn, which is not installed: run "
                f"`{tcnn_kernel.INSTALL}` (it compiles for minutes and needs a CUDA toolkit), or use kernel=auto."
            )
        if not torch.cuda.is_available():
            raise DialogueError(
                "The hash grid option kernel=tcnn needs a CUDA device, and torch sees none here: use kernel=auto."
            )
    else:
        choices = ", ".join(f'"{kernel}"' for kernel in ("auto", *KERNELS[:-1]))
        raise DialogueError(f'Unknown hash grid option kernel={name}: choose {choices} or "{KERNELS[-1]}".')


def resolve_kernel(name: str, device: torch.device | str, dtype: torch.dtype = torch.float32) -> str:
    """The kernel that `name` means for a table of `dtype` on `device`: one of `KERNELS`.

    Raises:
        DialogueError: `name` is no kernel, is not installed, or cannot run on that device or type.
    """
    device = torch.device(device)
    require_kernel(name)
    if name == "auto":
        if device.type == "cuda" and dtype in TRITON_TABLE_TYPES and is_installed("triton") and compiles_for(device):
            return "triton"
        if device.type == "cpu" and dtype == torch.float32 and is_installed("numba"):
            return "numba"
        return "torch"
    if name == "numba" and (device.type != "cpu" or dtype != torch.float32):
        raise DialogueError(
            f"The hash grid option kernel=numba computes float32 on the CPU, not {dtype} on {device}: "
            "use kernel=auto or kernel=torch."
        )
    if name == "triton" and (dtype not in TRITON_TABLE_TYPES or not (device.type == "cuda" or triton_interprets())):
        raise DialogueError(
            f"The hash grid option kernel=triton computes float32, float16 and bfloat16 on CUDA, not {dtype} on "
            f"{device}: use kernel=auto or kernel=torch."
        )
    if name == "tcnn" and (dtype not in (torch.float32, torch.float16) or device.type != "cuda"):
        raise DialogueError(
            f"The hash grid option kernel=tcnn computes float32 and float16 on CUDA, not {dtype} on {device}: "
            "use kernel=auto or kernel=torch."
        )
    return name


@functools.cache
def _announce(requested: str, resolved: str, device_type: str) -> None:
    """Say once per process, on stderr, which kernel runs where."""
    why = "" if requested == resolved else f" ({requested})"
    print(f"hash grid: {resolved} kernel on {device_type}{why}", file=sys.stderr)


def _kernel_module(name: str) -> ModuleType:
    """A kernel's module, imported when it is first needed: numba and triton take seconds."""
    return importlib.import_module(f"dialogue_nerfstudio.encodings.kernels.{name}_kernel")


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
        """The kernel's name: the one asked for, or what auto means where the table is now."""
        asked = self.config.kernel
        return resolve_kernel(asked, self.table.device, self.table.dtype) if asked == "auto" else asked

    def reset_parameters(self) -> None:
        """Uniform in ±1e-4: small, so that the first densities hardly depend on position (Müller et al., section 4)."""
        nn.init.uniform_(self.table, -INITIAL_AMPLITUDE, INITIAL_AMPLITUDE)

    def forward(self, positions: Float[Tensor, "n d"]) -> Float[Tensor, "n out_dim"]:
        """Features at `positions`, in the table's type (tcnn: float16 under autocast). Without gradients nothing is
        kept for a backward.

        Positions are float32 whatever autocast says: float16 would snap them to a raster coarser than fine cells.

        Raises:
            DialogueError: the kernel cannot run where the table is.
        """
        kernel = self.announce_kernel()
        positions = positions.to(torch.promote_types(self.table.dtype, torch.float32))
        if kernel == "tcnn":
            return tcnn_kernel.encode(positions, self.table, self._tcnn_grid())
        with full_precision(positions):
            return _kernel_module(kernel).encode(positions, self.table, self.levels)

    def announce_kernel(self) -> str:
        """The kernel that encodes where the table is now; the first call of a process says which, on stderr.

        Raises:
            DialogueError: it is absent, or cannot run there.
        """
        kernel = resolve_kernel(self.config.kernel, self.table.device, self.table.dtype)
        _announce(self.config.kernel, kernel, self.table.device.type)
        return kernel

    def _tcnn_grid(self) -> tcnn_kernel.TcnnGrid:
        config = self.config
        return tcnn_kernel.TcnnGrid(
            config.num_dims,
            config.num_levels,
            config.features_per_level,
            config.log2_hashmap_size,
            config.base_resolution,
            self.growth,
        )

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
    require_kernel(config.kernel)
