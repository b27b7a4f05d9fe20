"""Points a second of our hash grid kernels against nerfstudio's torch HashEncoding, in one run.

    python benchmarks/hash_grid.py --points 65536 --log2-hashmap-size 16

Every kernel that can run on the device takes part: numba on a CPU, Triton and tiny-cuda-nn on CUDA, torch on both.
Forward and forward+backward (table gradient) of 3D grids of the same levels, features and table size. Repeats of all
candidates are interleaved, so that a machine that is busy for a moment slows all of them; medians are reported.
"""

import functools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import tyro
from common import device, interleaved_seconds
from measuring import report
from torch import Tensor

from dialogue_nerfstudio.conversation import DialogueError
from dialogue_nerfstudio.encodings.hash_grid import KERNELS, HashGrid, HashGridConfig, resolve_kernel


@dataclass
class Options:
    points: int = 65536
    """Positions encoded at once."""
    num_levels: int = 8
    """Levels of every grid."""
    features_per_level: int = 2
    """Features of every level."""
    log2_hashmap_size: int = 16
    """Table size of every level."""
    max_resolution: int = 512
    """Finest resolution."""
    repeats: int = 15
    """Timed repeats of each candidate; the median counts."""
    threads: int | None = None
    """torch and numba threads; all cores if not given."""
    device: str = field(default_factory=device)
    """cpu or cuda; cuda where there is a GPU if not given."""
    output: Path | None = None
    """Also write the JSON here."""


def candidates(options: Options) -> dict[str, Callable[[Tensor], Tensor]]:
    """Every grid under test, by name. nerfstudio's comes last and only where it is installed."""
    shared = dict(num_levels=options.num_levels, features_per_level=options.features_per_level)
    ours = dict(**shared, log2_hashmap_size=options.log2_hashmap_size, max_resolution=options.max_resolution)
    grids: dict[str, Callable] = {}
    for kernel in KERNELS:
        try:
            resolve_kernel(kernel, options.device)
        except DialogueError as error:
            print(f"without {kernel}: {error}", file=sys.stderr)
            continue
        grids[kernel] = HashGrid(HashGridConfig(kernel=kernel, **ours)).to(options.device)
    from nerfstudio.field_components.encodings import HashEncoding

    grids["nerfstudio_torch"] = HashEncoding(
        implementation="torch", max_res=options.max_resolution, log2_hashmap_size=options.log2_hashmap_size, **shared
    ).to(options.device)
    return grids


def step(grid: Callable[[Tensor], Tensor], positions: Tensor, upstream: Tensor, mode: str) -> None:
    if mode == "forward":
        with torch.no_grad():
            grid(positions)
        return
    if mode == "forward_backward_positions":
        positions = positions.clone().requires_grad_(True)
    for parameter in grid.parameters():
        parameter.grad = None
    grid(positions).backward(upstream)


def measure(options: Options) -> dict:
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    positions = torch.rand(options.points, 3, device=options.device)
    upstream = torch.randn(options.points, options.num_levels * options.features_per_level, device=options.device)
    grids = candidates(options)
    result = {"options": {**vars(options), "output": None}, "threads": torch.get_num_threads()}
    for mode in ("forward", "forward_backward", "forward_backward_positions"):
        median = interleaved_seconds(
            {name: functools.partial(step, grid, positions, upstream, mode) for name, grid in grids.items()},
            options.repeats,
        )
        result[mode] = {
            "million_points_per_second": {name: round(options.points / s / 1e6, 3) for name, s in median.items()},
            "times_nerfstudio": {
                name: round(median["nerfstudio_torch"] / s, 2) for name, s in median.items() if name in KERNELS
            },
        }
    return result


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    figures = measure(options)
    if options.output is not None:
        options.output.write_text(json.dumps(figures, indent=2) + "\n")
    rows = [
        (mode, name, speed, figures[mode]["times_nerfstudio"].get(name, 1.0))
        for mode in ("forward", "forward_backward", "forward_backward_positions")
        for name, speed in figures[mode]["million_points_per_second"].items()
    ]
    report(figures, ("mode", "grid", "million points/s", "times nerfstudio's"), rows)


if __name__ == "__main__":
    main()
