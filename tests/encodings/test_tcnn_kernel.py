"""The tiny-cuda-nn adapter, against a stand-in for the library that keeps its documented rules.

tiny-cuda-nn itself needs a GPU and minutes of compiling; what is tested here is the arithmetic of its parameter layout
and the adapter, not its kernels. `FakeEncoding` computes every index by itself, from tiny-cuda-nn's rules alone.
"""

import importlib.machinery
import math
import sys
import types

import numpy as np
import pytest
import torch

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.encodings.hash_grid import KERNELS, HashGrid, HashGridConfig
from dialogue_nerfstudio.encodings.kernels import tcnn_kernel, torch_kernel
from dialogue_nerfstudio.encodings.layout import grid_levels, growth_factor


def documented_levels(num_dims: int, config: dict) -> list[tuple[np.float32, int, int, int]]:
    """(scale, resolution, offset, size) of each level: scale = 2^(l · log2 s) · base − 1 in float32, resolution =
    ⌈scale⌉ + 1, size = resolution^d up to a multiple of 8, at most 2^T; levels follow each other."""
    levels, offset = [], 0
    for level in range(config["n_levels"]):
        log2_scale = np.float32(math.log2(np.float32(config["per_level_scale"])))
        scale = np.float32(np.exp2(np.float32(level) * log2_scale)) * np.float32(config["base_resolution"]) - 1
        resolution = math.ceil(scale) + 1
        size = min((resolution**num_dims + 7) // 8 * 8, 1 << config["log2_hashmap_size"])
        levels.append((np.float32(scale), resolution, offset, size))
        offset += size
    return levels


class FakeEncoding(torch.nn.Module):
    """tinycudann.Encoding's interface: one flat list of parameters in, [n, levels · features] of `dtype` out."""

    def __init__(self, n_input_dims: int, encoding_config: dict, seed: int = 1337, dtype: torch.dtype | None = None):
        super().__init__()
        assert encoding_config["otype"] == "Grid" and encoding_config["type"] == "Hash"
        self.n_input_dims, self.config, self.dtype = n_input_dims, encoding_config, dtype
        self.levels = documented_levels(n_input_dims, encoding_config)
        self.features = encoding_config["n_features_per_level"]
        count = (self.levels[-1][2] + self.levels[-1][3]) * self.features
        self.params = torch.nn.Parameter(torch.full((count,), 1e9))
        self.n_output_dims = len(self.levels) * self.features

    def entry(self, vertex: list[int], resolution: int, size: int) -> int:
        """uint32 arithmetic: dense unless the level has fewer entries than vertices, then the coherent prime hash."""
        if resolution**self.n_input_dims > size:
            index = 0
            for coordinate, prime in zip(vertex, (1, 2654435761, 805459861), strict=False):
                index ^= coordinate * prime & 0xFFFFFFFF
            return index % size
        return sum(coordinate * resolution**axis for axis, coordinate in enumerate(vertex)) % size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        params = self.params.to(self.dtype)
        rows = []
        for position in x.float():
            features = []
            for scale, resolution, offset, size in self.levels:
                scaled = position * float(scale) + 0.5
                cell = scaled.detach().floor()
                fraction, total = scaled - cell, 0.0
                for corner in range(2**self.n_input_dims):
                    bits = [corner >> axis & 1 for axis in range(self.n_input_dims)]
                    vertex = [int(c) + bit for c, bit in zip(cell, bits, strict=True)]
                    first = (offset + self.entry(vertex, resolution, size)) * self.features
                    weight = torch.stack([f if bit else 1 - f for f, bit in zip(fraction, bits, strict=True)]).prod()
                    total = total + weight * params[first : first + self.features].float()
                features.append(total)
            rows.append(torch.cat(features))
        return torch.stack(rows).to(self.dtype)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[FakeEncoding]:
    """The stand-in in the library's place; the list of encodings made."""
    made: list[FakeEncoding] = []

    def encoding(*arguments, **options):
        made.append(FakeEncoding(*arguments, **options))
        return made[-1]

    module = types.ModuleType("tinycudann")
    module.__spec__ = importlib.machinery.ModuleSpec("tinycudann", None)
    module.Encoding = encoding
    monkeypatch.setitem(sys.modules, "tinycudann", module)
    tcnn_kernel._encoding.cache_clear()
    yield made
    tcnn_kernel._encoding.cache_clear()


def small_grid(num_dims: int = 3, features: int = 2, kernel: str = "torch") -> HashGrid:
    grid = HashGrid(
        HashGridConfig(
            num_dims=num_dims, num_levels=3, features_per_level=features, log2_hashmap_size=8,
            base_resolution=4, max_resolution=30, kernel=kernel,
        )
    )  # fmt: skip
    torch.nn.init.normal_(grid.table)
    return grid


@pytest.mark.parametrize("num_dims", [2, 3])
@pytest.mark.parametrize(
    ("num_levels", "base", "finest", "log2_size"),
    [(8, 16, 256, 15), (12, 16, 1024, 19), (16, 16, 2048, 19), (1, 5, 5, 14), (6, 7, 100, 12), (4, 2, 63, 5)],
)
def test_levels_lie_where_tiny_cuda_nn_puts_them(num_dims, num_levels, base, finest, log2_size) -> None:
    growth = growth_factor(num_levels, base, finest)
    config = {
        "n_levels": num_levels, "per_level_scale": growth, "base_resolution": base, "log2_hashmap_size": log2_size
    }  # fmt: skip
    ours = grid_levels(num_dims, num_levels, base, growth, log2_size)
    expected = documented_levels(num_dims, config)
    # The last bit of a scale is the exponential's, of which every library has its own.
    assert [level.scale for level in ours] == pytest.approx([scale for scale, *_ in expected], rel=1e-6)
    assert [(level.offset, level.size) for level in ours] == [level[2:] for level in expected]
    # A hashed level's resolution is only printed.
    dense = [(level.resolution, level.hashed) for level in ours if not level.hashed]
    assert dense == [(resolution, False) for _, resolution, _, size in expected if resolution**num_dims <= size]


@pytest.mark.parametrize(("num_dims", "features"), [(2, 2), (3, 2), (3, 4)])
def test_our_table_is_what_tiny_cuda_nn_reads(fake, num_dims: int, features: int) -> None:
    grid = small_grid(num_dims, features)
    positions = (torch.rand(12, num_dims) * 1.2 - 0.1).requires_grad_(True)
    outcomes = []
    for encoded in (
        torch_kernel.encode(positions, grid.table, grid.levels),
        tcnn_kernel.encode(positions, grid.table, grid._tcnn_grid()),
    ):
        upstream = torch.linspace(-1, 1, encoded.numel()).view(encoded.shape)
        outcomes.append((encoded, *torch.autograd.grad(encoded, (positions, grid.table), upstream)))
    for reference, value in zip(*outcomes, strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-4, atol=1e-4 * reference.abs().max().item())
    assert len(fake) == 1 and fake[0].params.numel() == 0, "one encoding, and none of its own parameters kept"


def test_autocast_makes_it_half(fake) -> None:
    grid = small_grid()
    with torch.autocast("cpu", torch.bfloat16):
        encoded = tcnn_kernel.encode(torch.rand(3, 3), grid.table, grid._tcnn_grid())
    assert encoded.dtype == torch.float16
    encoded.sum().backward()
    assert grid.table.grad.dtype == torch.float32


def test_another_layout_is_refused(fake, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = small_grid()
    other = grid._tcnn_grid()._replace(log2_hashmap_size=9)
    with pytest.raises(DialogueError, match="lays this hash grid out in"):
        tcnn_kernel.encode(torch.rand(3, 3), grid.table, other)
    with pytest.raises(DialogueError, match="features_per_level=3"):
        tcnn_kernel.encode(torch.rand(3, 3), grid.table, grid._tcnn_grid()._replace(features_per_level=3))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the stand-in and the interpreter are for machines without")
def test_checkpoints_load_across_all_four(fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever kernel a grid was saved under, each of the others reads the same features from it."""
    pytest.importorskip("numba"), pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    grids = {kernel: small_grid(kernel=kernel) for kernel in KERNELS}
    positions = torch.rand(5, 3)

    def encode(grid: HashGrid) -> torch.Tensor:
        # A grid refuses to run tiny-cuda-nn off CUDA, so its adapter is called directly.
        if grid.kernel == "tcnn":
            return tcnn_kernel.encode(positions, grid.table, grid._tcnn_grid())
        return grid(positions)

    for source in grids.values():
        saved, expected = source.state_dict(), torch_kernel.encode(positions, source.table, source.levels)
        for target in grids.values():
            target.load_state_dict(saved, strict=True)
            torch.testing.assert_close(encode(target), expected, rtol=1e-4, atol=1e-4)


def test_a_table_of_another_size_does_not_load() -> None:
    other = HashGrid(HashGridConfig(num_levels=2, log2_hashmap_size=8, kernel="torch"))
    with pytest.raises(RuntimeError, match="size mismatch for table"):
        other.load_state_dict(small_grid().state_dict())
