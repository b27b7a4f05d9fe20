"""Hash grid by tiny-cuda-nn, for those who have it installed and ask for it (`kernel="tcnn"`).

Convention: as in `torch_kernel`. The table stays ours, one float parameter [entries, F]; tiny-cuda-nn reads it as the
flat list it keeps its own parameters in, level after level, entry after entry, features side by side, so that a
checkpoint never knows which kernel it was trained with. tiny-cuda-nn computes in float16 where the table is float16 or
autocast is on, else in float32; the result has that type.
"""

import functools
import importlib
import threading
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dialogue_nerfstudio.conversation.errors import DialogueError

FEATURES_PER_LEVEL = (1, 2, 4, 8)
"""What tiny-cuda-nn was compiled for."""

INSTALL = "pip install 'git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch'"

# A viewer renders in a thread of its own, and the encoding's parameters are swapped for the time of a call.
_lock = threading.Lock()


class TcnnGrid(NamedTuple):
    """What tiny-cuda-nn has to be told of a grid."""

    num_dims: int
    num_levels: int
    features_per_level: int
    log2_hashmap_size: int
    base_resolution: int
    growth: float

    @property
    def encoding_config(self) -> dict[str, Any]:
        """As tiny-cuda-nn's documentation calls it."""
        return {
            "otype": "Grid",
            "type": "Hash",
            "n_levels": self.num_levels,
            "n_features_per_level": self.features_per_level,
            "log2_hashmap_size": self.log2_hashmap_size,
            "base_resolution": self.base_resolution,
            "per_level_scale": self.growth,
            "interpolation": "Linear",
        }


def check_grid(grid: TcnnGrid) -> None:
    """Raises:
    DialogueError: tiny-cuda-nn has no such grid.
    """
    if grid.features_per_level not in FEATURES_PER_LEVEL:
        raise DialogueError(
            f"The hash grid option kernel=tcnn has no features_per_level={grid.features_per_level}: choose 1, 2, 4 or "
            "8, or kernel=auto."
        )


@functools.lru_cache(maxsize=32)
def _encoding(grid: TcnnGrid, device: torch.device, dtype: torch.dtype, num_parameters: int) -> nn.Module:
    check_grid(grid)
    tinycudann = importlib.import_module("tinycudann")
    encoding = tinycudann.Encoding(grid.num_dims, grid.encoding_config, dtype=dtype)
    own = encoding.params.numel()
    if own != num_parameters:
        raise DialogueError(
            f"The installed tiny-cuda-nn lays this hash grid out in {own} numbers, not {num_parameters}: upgrade it, "
            "or use kernel=auto."
        )
    # Its own parameters are never read; a large grid's would double the memory.
    encoding.params = nn.Parameter(torch.empty(0, device=device), requires_grad=False)
    return encoding


def encode(
    positions: Float[Tensor, "n d"], table: Float[Tensor, "entries F"], grid: TcnnGrid
) -> Float[Tensor, "n out_dim"]:
    """Features of every level side by side. Positions outside [0, 1] read the edge and get no gradient.

    Raises:
        DialogueError: tiny-cuda-nn has no such grid, or another layout.
    """
    half = table.dtype == torch.float16 or torch.is_autocast_enabled(table.device.type)
    dtype = torch.float16 if half else torch.float32
    with _lock:
        encoding = _encoding(grid, table.device, dtype, table.numel())
        clamped = positions.clamp(0.0, 1.0)
        return torch.func.functional_call(encoding, {"params": table.reshape(-1)}, (clamped,))
