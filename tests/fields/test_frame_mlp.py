"""Networks with one first matrix a frame: the fused kernel against torch, in Triton's interpreter or on a GPU."""

import copy
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.encodings.hash_grid import HashGridConfig
from dialogue_nerfstudio.fields import frame_mlp as module
from dialogue_nerfstudio.fields.conditioning import hidden_layers
from dialogue_nerfstudio.fields.frame_mlp import can_fuse, frame_mlp, resolve_mlp_kernel
from dialogue_nerfstudio.fields.head_field import HeadField, HeadFieldConfig
from dialogue_nerfstudio.fields.signal_encoder import HeadSignal

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_triton = pytest.mark.skipif(not module.is_installed("triton"), reason="triton is not installed")


def network(width: int, num_layers: int, num_outputs: int) -> nn.Sequential:
    return nn.Sequential(*hidden_layers(width, num_layers), nn.Linear(width, num_outputs)).to(DEVICE)


def outcomes(inputs, matrices, counts, hidden, kernel, mixed):
    """(outputs, gradients of everything) with one kernel."""
    inputs, matrices = inputs.clone().requires_grad_(True), matrices.clone().requires_grad_(True)
    hidden = copy.deepcopy(hidden)
    with torch.autocast(DEVICE, torch.float16, enabled=mixed):
        outputs = frame_mlp(inputs, matrices, counts, hidden, kernel)
    upstream = torch.linspace(-1, 1, outputs.numel(), device=DEVICE).view(outputs.shape).mul(40).add(1).sin()
    outputs.backward(upstream.to(outputs.dtype))
    return [outputs.detach(), inputs.grad, matrices.grad, *(parameter.grad for parameter in hidden.parameters())]


@needs_triton
@pytest.mark.parametrize(
    ("num_layers", "num_inputs", "width", "num_outputs", "counts", "mixed"),
    [
        (2, 21, 32, 17, [70, 0, 130], False),
        (2, 16, 16, 16, [90], True),
        (1, 35, 32, 3, [5, 64], False),
        (1, 7, 64, 1, [3], True),
    ],
)
def test_fused_equals_torch(num_layers, num_inputs, width, num_outputs, counts, mixed, monkeypatch) -> None:
    """Frames that fill tiles and segments and that do not, an empty one, widths that need padding."""
    kernel = pytest.importorskip("dialogue_nerfstudio.fields.fused_mlp_kernel")
    monkeypatch.setattr(kernel, "SEGMENT_ROWS", 64)
    hidden = network(width, num_layers, num_outputs)
    inputs = torch.randn(sum(counts), num_inputs, device=DEVICE)
    matrices = torch.randn(len(counts), num_inputs, width, device=DEVICE) / num_inputs**0.5
    reference = outcomes(inputs, matrices, counts, hidden, "torch", mixed)
    fused = outcomes(inputs, matrices, counts, hidden, "triton", mixed)
    # Off the GPU the interpreter multiplies float32 in full.
    tolerance = 1e-2 if mixed or DEVICE == "cuda" else 1e-5
    for expected, value in zip(reference, fused, strict=True):
        assert value.dtype == expected.dtype and value.shape == expected.shape
        # A ReLU whose input rounds to the other side of 0 changes a gradient: rare, and small against the largest.
        difference = (value.float() - expected.float()).norm() / expected.float().norm()
        assert difference < tolerance
    with torch.no_grad(), torch.autocast(DEVICE, torch.float16, enabled=mixed):
        assert torch.equal(frame_mlp(inputs, matrices, counts, hidden, "triton"), fused[0])


@needs_triton
def test_inputs_of_any_layout_and_no_samples() -> None:
    hidden = network(16, 1, 4)
    inputs = torch.randn(10, 20, device=DEVICE).t().requires_grad_(True)
    matrices = torch.randn(1, 10, 16, device=DEVICE)
    fused = frame_mlp(inputs, matrices, [20], hidden, "triton")
    torch.testing.assert_close(fused, frame_mlp(inputs, matrices, [20], hidden, "torch"), rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(fused.sum(), inputs)
    assert gradient.stride() == inputs.stride()
    empty = frame_mlp(inputs[:0], matrices, [0], hidden, "triton")
    assert empty.shape == (0, 4)
    empty.sum().backward()
    assert all(parameter.grad.abs().sum() == 0 for parameter in hidden.parameters())


@needs_triton
def test_segments_cover_each_frame_once() -> None:
    kernel = pytest.importorskip("dialogue_nerfstudio.fields.fused_mlp_kernel")
    counts = [5, 0, 12, 4, 9]
    segments = kernel.cut(counts, 4, torch.device("cpu")).numpy()
    frame_of_row = np.repeat(np.arange(5), counts)
    covered = np.concatenate([np.arange(start, stop) for _, start, stop in segments])
    assert np.array_equal(covered, np.arange(sum(counts)))
    for frame, start, stop in segments:
        assert 0 < stop - start <= 4 and (frame_of_row[start:stop] == frame).all()


def test_what_can_be_fused(monkeypatch) -> None:
    assert can_fuse(network(64, 2, 33), 59) and can_fuse(network(32, 1, 3), 16)
    assert not can_fuse(network(48, 2, 3), 16) and not can_fuse(network(32, 3, 3), 16)
    assert not can_fuse(network(32, 2, 65), 16) and not can_fuse(network(32, 2, 3), 65)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert resolve_mlp_kernel("auto", cpu, network(32, 2, 3), 16) == "torch"
    # Automatically only where mixed precision is on.
    assert resolve_mlp_kernel("auto", cuda, network(32, 2, 3), 16) == "torch"
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type: True)
    assert resolve_mlp_kernel("auto", cuda, network(32, 3, 3), 16) == "torch"
    if module.is_installed("triton"):
        assert resolve_mlp_kernel("auto", cuda, network(32, 2, 3), 16) == "triton"


def test_a_fused_network_asked_for_in_vain_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(module, "is_installed", lambda package: True)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(DialogueError, match="mlp_kernel=triton needs a CUDA device"):
        resolve_mlp_kernel("triton", torch.device("cpu"), network(32, 2, 3), 16)
    with pytest.raises(DialogueError, match="one or two hidden layers"):
        resolve_mlp_kernel("triton", torch.device("cuda"), network(48, 2, 3), 16)
    monkeypatch.setattr(module, "is_installed", lambda package: False)
    with pytest.raises(DialogueError, match="pip install triton"):
        resolve_mlp_kernel("triton", torch.device("cuda"), network(32, 2, 3), 16)
    with pytest.raises(DialogueError, match="mlp_kernel=cutlass"):
        resolve_mlp_kernel("cutlass", torch.device("cuda"), network(32, 2, 3), 16)


COMPILE = """
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from dialogue_nerfstudio.fields import fused_mlp_kernel as kernels

shape = {"NUM_INPUTS": 59, "WIDTH": 64, "NUM_OUTPUTS": 33, "INPUTS": 64, "OUTPUTS": 64, "HAS_MIDDLE": True}
shape |= {"TYPE": tl.float16, "BLOCK": 64, "stride_column": 1, "grad_stride_column": 1, "out_stride_column": 1}
kernel, constants, signature, attributes = kernels._backward_kernel, {}, {}, {}
for index, argument in enumerate(kernel.arg_names):
    if argument in shape:
        constants[argument], signature[argument] = shape[argument], "constexpr"
    elif "stride" in argument:
        signature[argument] = "i32"
    else:
        signature[argument] = {"segments": "*i64", "grad_outputs": "*fp16"}.get(argument, "*fp32")
        attributes[(index,)] = [["tt.divisibility", 16]]
source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
compiled = triton.compile(source, target=GPUTarget("cuda", 89, 32), options={"num_warps": kernels.NUM_WARPS})
print(compiled.metadata.shared, compiled.asm["ptx"].count("mma.sync"))
"""


@needs_triton
@pytest.mark.slow
def test_compiled_for_a_gpu_it_fits_and_uses_tensor_cores(tmp_path) -> None:
    """Triton compiles for CUDA without a GPU: the backward of the preset's network, which needs most, for a GPU that
    has least."""
    script = tmp_path / "compile.py"
    script.write_text(COMPILE)
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    result = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    shared, products = map(int, result.stdout.split())
    assert 0 < shared <= module.SHARED_MEMORY and products > 0


@needs_triton
def test_the_head_field_uses_it() -> None:
    boxes = torch.tensor([[[-0.1, -0.1, -0.1], [0.1, 0.1, 0.1]]])
    grid = HashGridConfig(num_levels=2, log2_hashmap_size=8, base_resolution=4, max_resolution=8, kernel="torch")
    field = HeadField(HeadFieldConfig(view_dependent=True, grid=grid), "per-participant", boxes, face=4, eyes=2).to(
        DEVICE
    )
    torch.nn.init.uniform_(field.grid.grids[0].table, -0.5, 0.5)
    signal = HeadSignal(face=torch.randn(2, 4, device=DEVICE), eyes=torch.randn(2, 2, device=DEVICE))
    points = (torch.rand(30, 3, device=DEVICE) - 0.5) * 0.2
    densities = {}
    for kernel in ("torch", "triton"):
        field.config.mlp_kernel = kernel
        densities[kernel], *_ = field.density(points, 0, signal, [12, 18])
    torch.testing.assert_close(densities["triton"], densities["torch"], rtol=1e-2 if DEVICE == "cuda" else 1e-5, atol=0)
