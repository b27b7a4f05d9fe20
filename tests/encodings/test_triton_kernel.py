"""The Triton kernel against the torch reference: in Triton's interpreter, as PTX, and on a GPU where there is one."""

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from dialogue_nerfstudio.encodings.hash_grid import HashGrid, HashGridConfig
from dialogue_nerfstudio.encodings.kernels import torch_kernel, triton_kernel
from dialogue_nerfstudio.encodings.layout import grid_levels, growth_factor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA device")


def levels_of(num_dims: int, num_levels: int = 3, finest: int = 32):
    """Dense levels, then hashed ones."""
    return grid_levels(num_dims, num_levels, 4, growth_factor(num_levels, 4, finest), 8)


def off_the_faces(num_points: int, num_dims: int, levels) -> torch.Tensor:
    """Random positions, some outside, that no rounding moves to another cell, where the position gradient jumps."""
    positions = torch.rand(4 * num_points, num_dims, device=DEVICE) * 1.1 - 0.05
    scales = torch.tensor([level.scale for level in levels], device=DEVICE)
    fraction = (positions.clamp(0, 1)[..., None] * scales + 0.5) % 1.0
    return positions[((fraction > 0.01) & (fraction < 0.99)).flatten(1).all(dim=1)][:num_points]


def compare(num_points: int, num_dims: int, num_features: int, levels, dtype=torch.float32) -> None:
    entries = levels[-1].offset + levels[-1].size
    table = torch.randn(entries, num_features, device=DEVICE).to(dtype).requires_grad_(True)
    positions = off_the_faces(num_points, num_dims, levels).requires_grad_(True)
    outcomes = []
    for kernel in (torch_kernel, triton_kernel):
        features = kernel.encode(positions, table, levels)
        upstream = torch.linspace(-1, 1, features.numel(), device=DEVICE).view(features.shape).mul(3).sin().to(dtype)
        gradients = torch.autograd.grad(features, (positions, table), upstream)
        with torch.no_grad():
            assert torch.equal(kernel.encode(positions, table, levels), features)
        outcomes.append((features.detach(), *gradients))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    for reference, value in zip(*outcomes, strict=True):
        assert value.dtype == reference.dtype and value.shape == reference.shape
        largest = reference.abs().max().item()
        torch.testing.assert_close(value, reference, rtol=tolerance, atol=tolerance * largest)


@pytest.mark.parametrize(("num_dims", "num_features"), [(2, 2), (3, 2), (3, 1), (2, 4), (2, 8), (3, 3)])
def test_triton_equals_torch(num_dims: int, num_features: int) -> None:
    # More points than a program takes, so that there are two, one of them half empty.
    compare(300, num_dims, num_features, levels_of(num_dims))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_tables_accumulate_in_float32(dtype: torch.dtype) -> None:
    compare(200, 3, 2, levels_of(3), dtype)


def test_copies_of_coarse_levels_are_summed() -> None:
    """So many points in so small levels that their gradients go to copies; one level has more than one block's."""
    levels = grid_levels(2, 2, 4, 2.0, 6)
    copies = [triton_kernel.copies_of_level(level, 2, 2000) for level in levels]
    assert copies[0] > copies[1] > 1
    compare(2000, 2, 2, levels)


def test_copies_are_bounded() -> None:
    coarse, fine = grid_levels(3, 2, 16, 32.0, 19)
    assert triton_kernel.copies_of_level(coarse, 3, 1 << 20) == triton_kernel.MAX_COPIES
    assert triton_kernel.copies_of_level(coarse, 3, 100) == triton_kernel.copies_of_level(fine, 3, 1 << 20) == 1


def test_outside_nan_and_no_points() -> None:
    levels = levels_of(3)
    table = torch.randn(levels[-1].offset + levels[-1].size, 2, device=DEVICE, requires_grad=True)
    positions = torch.tensor([[-0.5, 0.3, 1.7], [float("nan"), 0.5, 0.5]], device=DEVICE, requires_grad=True)
    features = triton_kernel.encode(positions, table, levels)
    inside = torch.tensor([[0.0, 0.3, 1.0]], device=DEVICE)
    torch.testing.assert_close(features[:1], torch_kernel.encode(inside, table, levels))
    assert features[1].isnan().all()
    features[0].sum().backward()
    assert positions.grad[0, 0] == 0 and positions.grad[0, 2] == 0 and positions.grad[0, 1] != 0
    empty = triton_kernel.encode(positions[:0], table, levels)
    assert empty.shape == (0, 6)
    empty.sum().backward()


def test_strided_positions_and_gradients_of_any_layout() -> None:
    levels = levels_of(3)
    table = torch.randn(levels[-1].offset + levels[-1].size, 2, device=DEVICE, requires_grad=True)
    wide = torch.rand(70, 6, device=DEVICE)
    gradients = []
    for kernel in (torch_kernel, triton_kernel):
        features = kernel.encode(wide[:, ::2], table, levels)
        for upstream in (features.detach().contiguous(), features.detach().t().contiguous().t()):
            gradients.append(torch.autograd.grad(features, table, upstream, retain_graph=True)[0])
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-5, atol=1e-5)


def test_only_the_gradients_asked_for() -> None:
    levels = levels_of(2)
    table = torch.randn(levels[-1].offset + levels[-1].size, 2, device=DEVICE)
    positions = torch.rand(20, 2, device=DEVICE, requires_grad=True)
    triton_kernel.encode(positions, table, levels).sum().backward()
    assert positions.grad is not None and table.grad is None


def test_the_grid_module_runs_it(capsys: pytest.CaptureFixture) -> None:
    config = HashGridConfig(num_levels=3, log2_hashmap_size=8, base_resolution=4, max_resolution=32, kernel="triton")
    grid = HashGrid(config).to(DEVICE)
    positions = torch.rand(40, 3, device=DEVICE)
    torch.testing.assert_close(grid(positions), torch_kernel.encode(positions, grid.table, grid.levels))
    grid(positions).square().sum().backward()
    assert grid.table.grad.abs().sum() > 0


COMPILE = """
import re, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from dialogue_nerfstudio.encodings.kernels import triton_kernel as kernels

shape = {"NUM_DIMS": 3, "NUM_FEATURES": 2, "PADDED": 2, "BLOCK": kernels.BLOCK_POINTS}
for name in ("_forward_kernel", "_table_gradient_kernel", "_position_gradient_kernel"):
    kernel = getattr(kernels, name)
    constants, signature, attributes = {**shape, "stride_axis": 1, "stride_row": 1}, {}, {}
    for index, argument in enumerate(kernel.arg_names):
        pointer = not (argument.startswith(("stride", "num_")) or argument in constants)
        kind = "*i64" if argument == "levels" else "*fp32"
        signature[argument] = "constexpr" if argument in constants else kind if pointer else "i32"
        if pointer:
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": kernels.NUM_WARPS}).asm["ptx"]
    print(name, len(re.findall(r"ld[.]global[.]v2[.]b32", ptx)), len(re.findall(r"[.]shared[.]", ptx)))
"""


def test_compiled_for_a_gpu_a_corner_is_one_load(tmp_path) -> None:
    """Triton compiles for CUDA without a GPU: eight corners are eight loads of two features, with no exchange between
    threads. What a GPU then computes is tested on one."""
    script = tmp_path / "compile.py"
    script.write_text(COMPILE)
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    result = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    counts = {name: (int(loads), int(exchanges)) for name, loads, exchanges in lines}
    assert counts["_forward_kernel"] == (8, 0)
    assert counts["_position_gradient_kernel"] == (8, 0)
    assert counts["_table_gradient_kernel"][1] == 0


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("num_features", [2, 4])
def test_on_a_gpu_at_full_size(num_features: int) -> None:
    levels = grid_levels(3, 12, 16, growth_factor(12, 16, 1024), 19)
    compare(200_000, 3, num_features, levels)
