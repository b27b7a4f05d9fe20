"""Hash grids: tiny-cuda-nn's layout by hand, interpolation by hand, and every kernel against the torch reference."""

import importlib.util
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.encodings import hash_grid
from dialogue_nerfstudio.encodings.hash_grid import HashGrid, HashGridConfig, resolve_kernel
from dialogue_nerfstudio.encodings.kernels import torch_kernel
from dialogue_nerfstudio.encodings.layout import grid_levels, growth_factor

needs_numba = pytest.mark.skipif(not hash_grid.is_installed("numba"), reason="numba is not installed")


def random_grid(kernel: str, num_dims: int, features: int = 2, log2_hashmap_size: int = 10) -> HashGrid:
    torch.manual_seed(3)
    grid = HashGrid(
        HashGridConfig(
            num_dims=num_dims,
            num_levels=6,
            features_per_level=features,
            log2_hashmap_size=log2_hashmap_size,
            base_resolution=4,
            max_resolution=64,
            kernel=kernel,
        )
    )
    torch.nn.init.normal_(grid.table)
    return grid


def positions_off_the_faces(grid: HashGrid, num_points: int) -> torch.Tensor:
    """Random positions that no rounding moves to another cell, where the position gradient jumps."""
    positions = torch.rand(4 * num_points, grid.config.num_dims)
    scales = torch.tensor([level.scale for level in grid.levels])
    fraction = (positions[..., None] * scales + 0.5) % 1.0
    return positions[((fraction > 0.01) & (fraction < 0.99)).flatten(1).all(dim=1)][:num_points]


def test_level_sizes_follow_tiny_cuda_nn() -> None:
    levels = grid_levels(num_dims=3, num_levels=3, base_resolution=5, growth=2.0, log2_hashmap_size=10)
    assert [level.scale for level in levels] == [4.0, 9.0, 19.0]
    assert [level.resolution for level in levels] == [5, 10, 20]
    # 5³ = 125 is padded to a multiple of 8; 10³ = 1000 is one already; 20³ does not fit 2^10.
    assert [level.size for level in levels] == [128, 1000, 1024]
    assert [level.offset for level in levels] == [0, 128, 1128]
    assert [level.hashed for level in levels] == [False, False, True]


def test_fractional_scale_rounds_resolution_up() -> None:
    growth = growth_factor(num_levels=4, base_resolution=16, max_resolution=100)
    levels = grid_levels(2, 4, 16, growth, 19)
    for index, level in enumerate(levels):
        scale = 16 * growth**index - 1
        assert level.scale == pytest.approx(scale, rel=1e-5)
        assert level.resolution in (int(np.ceil(scale)) + 1, int(np.ceil(scale - 1e-3)) + 1)
        assert level.size % 8 == 0


def test_entry_index_by_hand() -> None:
    dense, _, hashed = grid_levels(3, 3, 5, 2.0, 10)
    vertex = torch.tensor([[2, 3, 4]])
    assert torch_kernel.entry_index(vertex, dense).item() == 2 + 3 * 5 + 4 * 25
    expected = (2 ^ (3 * 2654435761 & 0xFFFFFFFF) ^ (4 * 805459861 & 0xFFFFFFFF)) % 1024
    assert torch_kernel.entry_index(vertex, hashed).item() == 1128 + expected
    # One vertex past the edge wraps to the next row, and past the last row to the first entries.
    assert torch_kernel.entry_index(torch.tensor([[5, 0, 0]]), dense).item() == 5
    assert torch_kernel.entry_index(torch.tensor([[5, 5, 5]]), dense).item() == (5 + 25 + 125) % 128


@pytest.mark.parametrize("kernel", ["torch", pytest.param("numba", marks=needs_numba)])
def test_trilinear_interpolation_by_hand(kernel: str) -> None:
    grid = HashGrid(
        HashGridConfig(num_levels=1, features_per_level=1, base_resolution=5, max_resolution=5, kernel=kernel)
    )
    with torch.no_grad():
        vertices = torch.arange(125)
        # A linear function of the vertex, which trilinear interpolation must reproduce: 1·c₀ + 10·c₁ + 100·c₂.
        grid.table[:125, 0] = (vertices % 5 + 10 * (vertices // 5 % 5) + 100 * (vertices // 25)).float()
    # u = 4x + 1/2: the centre of the cube is u = 2.5, and x = 1/4 is u = 1.5.
    position = torch.tensor([[0.5, 0.25, 0.0]])
    assert grid(position).item() == pytest.approx(2.5 + 10 * 1.5 + 100 * 0.5)


@pytest.mark.parametrize("kernel", ["torch", pytest.param("numba", marks=needs_numba)])
def test_outside_positions_read_the_edge_without_gradient(kernel: str) -> None:
    grid = random_grid(kernel, num_dims=3)
    outside = torch.tensor([[-0.5, 0.3, 1.7]], requires_grad=True)
    torch.testing.assert_close(grid(outside), grid(torch.tensor([[0.0, 0.3, 1.0]])))
    grid(outside).sum().backward()
    assert outside.grad[0, 0] == 0 and outside.grad[0, 2] == 0 and outside.grad[0, 1] != 0


@pytest.mark.parametrize("kernel", ["torch", pytest.param("numba", marks=needs_numba)])
def test_nan_position_gives_nan_features(kernel: str) -> None:
    grid = random_grid(kernel, num_dims=3)
    features = grid(torch.tensor([[float("nan"), 0.5, 0.5], [0.5, 0.5, 0.5]]))
    assert features[0].isnan().all() and not features[1].isnan().any()


@needs_numba
@pytest.mark.parametrize(("num_dims", "features"), [(2, 2), (3, 2), (3, 1), (3, 4)])
def test_numba_equals_torch(num_dims: int, features: int) -> None:
    outcomes = []
    for kernel in ("torch", "numba"):
        grid = random_grid(kernel, num_dims, features)
        positions = positions_off_the_faces(grid, 3000).requires_grad_(True)
        output = grid(positions)
        upstream = torch.linspace(-1, 1, output.numel()).reshape(output.shape).sin()
        output.backward(upstream)
        with torch.no_grad():
            torch.testing.assert_close(grid(positions), output)
        outcomes.append((output.detach(), grid.table.grad, positions.grad))
    for reference, value in zip(*outcomes, strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-4, atol=1e-3 * reference.abs().max().item())


@needs_numba
def test_numba_on_few_points_and_strided_input() -> None:
    reference, grid = random_grid("torch", 3), random_grid("numba", 3)
    for num_points in (0, 1, 5):
        positions = torch.rand(num_points, 6)[:, ::2]
        torch.testing.assert_close(grid(positions), reference(positions), rtol=1e-4, atol=1e-5)


@needs_numba
def test_table_gradient_with_more_threads_than_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with many cores splits the points of a level; the sum of the parts is the same gradient."""
    gradients = []
    for num_threads in (1, 16):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=num_threads: n)
        monkeypatch.setattr("numba.config.NUMBA_NUM_THREADS", num_threads)
        monkeypatch.setattr("numba.set_num_threads", lambda n: None)
        grid = random_grid("numba", 3)
        positions = torch.rand(5000, 3, generator=torch.Generator().manual_seed(0))
        grid(positions).square().sum().backward()
        gradients.append(grid.table.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-3)


@needs_numba
def test_numba_gradient_only_where_asked() -> None:
    grid = random_grid("numba", 3)
    positions = torch.rand(100, 3)
    grid(positions).sum().backward()
    assert positions.grad is None and grid.table.grad is not None
    grid.requires_grad_(False)
    grid.table.grad = None
    moving = positions.clone().requires_grad_(True)
    grid(moving).sum().backward()
    assert grid.table.grad is None and moving.grad is not None


@pytest.mark.parametrize("num_dims", [2, 3])
def test_reference_gradients(num_dims: int) -> None:
    grid = random_grid("torch", num_dims, log2_hashmap_size=6).double()
    positions = positions_off_the_faces(grid, 4).double().requires_grad_(True)
    table = grid.table.detach().clone().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda p, t: torch_kernel.encode(p, t, grid.levels), (positions, table))


@needs_numba
def test_checkpoint_of_one_kernel_loads_into_another() -> None:
    source, target = random_grid("torch", 3), random_grid("numba", 3)
    torch.nn.init.normal_(source.table)
    target.load_state_dict(source.state_dict(), strict=True)
    positions = torch.rand(50, 3)
    torch.testing.assert_close(target(positions), source(positions), rtol=1e-4, atol=1e-5)


def hide(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """As if `packages` were not installed."""
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in packages else found(name))


def pretend_cuda(monkeypatch: pytest.MonkeyPatch, available: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)


def test_automatic_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_kernel("torch", "cuda") == "torch"
    assert resolve_kernel("auto", "cpu", torch.float64) == "torch"
    assert resolve_kernel("auto", "cuda", torch.float64) == "torch"
    if hash_grid.is_installed("triton"):
        assert resolve_kernel("auto", "cuda") == resolve_kernel("auto", "cuda", torch.float16) == "triton"
    if hash_grid.is_installed("numba"):
        assert resolve_kernel("auto", "cpu") == "numba"
    hide(monkeypatch, "numba", "triton")
    assert resolve_kernel("auto", "cpu") == resolve_kernel("auto", "cuda") == "torch"


@pytest.mark.parametrize(
    ("kernel", "package", "command"),
    [
        ("numba", "numba", "pip install numba"),
        ("triton", "triton", "pip install triton"),
        ("tcnn", "tinycudann", "pip install 'git+https://github.com/NVlabs/tiny-cuda-nn"),
    ],
)
def test_an_absent_kernel_is_refused_with_the_way_to_get_it(
    kernel: str, package: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, package)
    pretend_cuda(monkeypatch, True)
    sentence = rf"kernel={kernel} .*not installed.*{re.escape(command)}.*kernel=auto"
    with pytest.raises(DialogueError, match=sentence) as error:
        HashGrid(HashGridConfig(kernel=kernel))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kernel", ["triton", "tcnn"])
def test_gpu_kernels_are_refused_where_there_is_no_gpu(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hash_grid, "is_installed", lambda package: True)
    pretend_cuda(monkeypatch, False)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(DialogueError, match=f"kernel={kernel} needs a CUDA device"):
        HashGrid(HashGridConfig(kernel=kernel))
    # Where there is one, the grid is built on the CPU first, and only encoding there is refused.
    pretend_cuda(monkeypatch, True)
    grid = HashGrid(HashGridConfig(kernel=kernel))
    assert grid.kernel == kernel
    with pytest.raises(DialogueError, match=f"kernel={kernel} computes .* on CUDA, not .* on cpu"):
        grid(torch.rand(2, 3))


@needs_numba
def test_numba_is_refused_on_cuda() -> None:
    with pytest.raises(DialogueError, match="on the CPU"):
        resolve_kernel("numba", "cuda")


def test_unknown_kernels_are_refused() -> None:
    with pytest.raises(DialogueError, match='kernel=cutlass: choose "auto", "torch", "numba", "triton" or "tcnn"'):
        hash_grid.require_kernel("cutlass")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_tables_are_interpolated_and_differentiated_in_float32(dtype: torch.dtype) -> None:
    grid, half = random_grid("torch", 3), random_grid("torch", 3).to(dtype)
    with torch.no_grad():
        grid.table.copy_(half.table)
    positions = positions_off_the_faces(grid, 2000)
    torch.testing.assert_close(half(positions), grid(positions).to(dtype), rtol=0, atol=0)
    (grid(positions).sum() + half(positions).float().sum()).backward()
    torch.testing.assert_close(half.table.grad, grid.table.grad.to(dtype))


def test_autocast_leaves_positions_alone() -> None:
    grid = random_grid("torch", 3)
    positions = torch.rand(50, 3)
    with torch.autocast("cpu", torch.bfloat16):
        encoded = grid(positions)
    assert encoded.dtype == torch.float32 and torch.equal(encoded, grid(positions))


def test_kernel_is_said_once(capsys: pytest.CaptureFixture) -> None:
    hash_grid._announce.cache_clear()
    grid = random_grid("torch", 3)
    grid(torch.rand(2, 3))
    grid(torch.rand(2, 3))
    assert capsys.readouterr().err == "hash grid: torch kernel on cpu\n"


@pytest.mark.parametrize(
    "options",
    [{"num_dims": 4}, {"num_levels": 0}, {"max_resolution": 8}, {"log2_hashmap_size": 2}, {"features_per_level": 0}],
)
def test_impossible_grids_are_refused(options: dict) -> None:
    with pytest.raises(DialogueError):
        HashGrid(HashGridConfig(**options))


@needs_numba
def test_numba_is_safe_in_several_python_threads() -> None:
    """A viewer renders in a thread of its own while training goes on."""
    grid = random_grid("numba", 3)
    positions = [torch.rand(2000, 3) for _ in range(4)]
    with torch.no_grad():
        alone = [grid(p) for p in positions]

        def encode_often(p: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                return [grid(p) for _ in range(20)][-1]

        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(encode_often, positions))
    for expected, value in zip(alone, together, strict=True):
        assert torch.equal(expected, value)


def test_compiled_for_one_thread_and_for_many_are_cached_apart():
    """numba's cache knows a function by its name: one thread must never be given the code that needs the pool."""
    numba_kernel = pytest.importorskip("dialogue_nerfstudio.encodings.kernels.numba_kernel")
    for alone, parallel in zip(numba_kernel.compiled(3, 2, False), numba_kernel.compiled(3, 2, True), strict=True):
        assert alone.py_func.__qualname__ != parallel.py_func.__qualname__
        assert not alone.targetoptions["parallel"] and parallel.targetoptions["parallel"]
