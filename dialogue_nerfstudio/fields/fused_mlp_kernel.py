"""A small ReLU network in one Triton kernel, first layer one matrix a frame, forward and backward; see `frame_mlp`.

Convention: as in `fields.frame_mlp`. Products take inputs of the computing type (float16, bfloat16, or float32 rounded
to TF32's eleven bits) and accumulate in float32; every gradient is summed in float32.

How the work is split. Rows are cut into segments of one frame each; a program holds all weights and takes its segment
block after block, so that activations never leave the chip: inputs are read once and outputs written once. The backward
computes the activations again instead of storing them. Each program keeps its sums of weight gradients to itself and
writes them once, and the segments are added up afterwards: no atomics, and the same sum every time.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, no_type_check

import numpy as np
import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK_ROWS = {torch.float16: 64, torch.bfloat16: 64, torch.float32: 32}
"""Rows of a tile: with networks of 64 units, what the compiler puts into shared memory fits every GPU since Ampere, and
registers hardly spill (ptxas for sm_80, sm_89 and sm_90)."""
SEGMENT_ROWS = 1024
"""Rows that a program takes with the same weights."""
NUM_WARPS = 8
"""Warps a program."""
SMALLEST_TILE = 16
"""Tensor cores take no smaller matrices; narrower ones are padded with zeros."""

# `no_type_check` below keeps the tests' shape checker from wrapping what Triton has to compile.


@triton.jit
@no_type_check
def _matrix(pointer, rows: tl.constexpr, columns: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A row-major matrix, padded with zeros to [ROWS, COLUMNS]."""
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    return tl.load(pointer + row[:, None] * columns + column[None, :], mask=mask, other=0.0)


@triton.jit
@no_type_check
def _store_matrix(pointer, value, rows: tl.constexpr, columns: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    tl.store(pointer + row[:, None] * columns + column[None, :], value, mask=mask)


@triton.jit
@no_type_check
def _forward_kernel(
    inputs, matrices, middle_weight, middle_bias, last_weight, last_bias, outputs, segments,
    stride_row, stride_column,
    NUM_INPUTS: tl.constexpr, WIDTH: tl.constexpr, NUM_OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, HAS_MIDDLE: tl.constexpr,
    TYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    segment = segments + tl.program_id(0) * 3
    frame, start, stop = tl.load(segment), tl.load(segment + 1), tl.load(segment + 2)
    first = _matrix(matrices + frame * NUM_INPUTS * WIDTH, NUM_INPUTS, WIDTH, INPUTS, WIDTH).to(TYPE)
    last = tl.trans(_matrix(last_weight, NUM_OUTPUTS, WIDTH, OUTPUTS, WIDTH)).to(TYPE)
    output, unit, column = tl.arange(0, OUTPUTS), tl.arange(0, WIDTH), tl.arange(0, INPUTS)
    bias = tl.load(last_bias + output, mask=output < NUM_OUTPUTS, other=0.0)
    if HAS_MIDDLE:
        middle = tl.trans(_matrix(middle_weight, WIDTH, WIDTH, WIDTH, WIDTH)).to(TYPE)
        middle_offset = tl.load(middle_bias + unit)
    for at in range(start, stop, BLOCK):
        row = at + tl.arange(0, BLOCK).to(tl.int64)
        inside = (row < stop)[:, None]
        source = inputs + row[:, None] * stride_row + column[None, :] * stride_column
        x = tl.load(source, mask=inside & (column < NUM_INPUTS)[None, :], other=0.0).to(TYPE)
        hidden = tl.maximum(tl.dot(x, first), 0.0).to(TYPE)
        if HAS_MIDDLE:
            hidden = tl.dot(hidden, middle) + middle_offset[None, :]
            hidden = tl.maximum(hidden, 0.0).to(TYPE)
        y = tl.dot(hidden, last) + bias[None, :]
        target = outputs + row[:, None] * NUM_OUTPUTS + output[None, :]
        tl.store(target, y.to(outputs.dtype.element_ty), mask=inside & (output < NUM_OUTPUTS)[None, :])


@triton.jit
@no_type_check
def _backward_kernel(
    inputs, matrices, middle_weight, middle_bias, last_weight, grad_outputs, segments,
    grad_inputs, grad_first, grad_middle, grad_middle_bias, grad_last, grad_last_bias,
    stride_row, stride_column, grad_stride_row, grad_stride_column, out_stride_row, out_stride_column,
    NUM_INPUTS: tl.constexpr, WIDTH: tl.constexpr, NUM_OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, HAS_MIDDLE: tl.constexpr,
    TYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    segment = segments + program * 3
    frame, start, stop = tl.load(segment), tl.load(segment + 1), tl.load(segment + 2)
    first = _matrix(matrices + frame * NUM_INPUTS * WIDTH, NUM_INPUTS, WIDTH, INPUTS, WIDTH).to(TYPE)
    last = _matrix(last_weight, NUM_OUTPUTS, WIDTH, OUTPUTS, WIDTH).to(TYPE)
    output, unit, column = tl.arange(0, OUTPUTS), tl.arange(0, WIDTH), tl.arange(0, INPUTS)
    sum_first = tl.zeros((INPUTS, WIDTH), dtype=tl.float32)
    sum_last = tl.zeros((OUTPUTS, WIDTH), dtype=tl.float32)
    sum_last_bias = tl.zeros((OUTPUTS,), dtype=tl.float32)
    if HAS_MIDDLE:
        middle = _matrix(middle_weight, WIDTH, WIDTH, WIDTH, WIDTH).to(TYPE)
        middle_offset = tl.load(middle_bias + unit)
        sum_middle = tl.zeros((WIDTH, WIDTH), dtype=tl.float32)
        sum_middle_bias = tl.zeros((WIDTH,), dtype=tl.float32)
    for at in range(start, stop, BLOCK):
        row = at + tl.arange(0, BLOCK).to(tl.int64)
        inside = (row < stop)[:, None]
        used = inside & (column < NUM_INPUTS)[None, :]
        source = inputs + row[:, None] * stride_row + column[None, :] * stride_column
        x = tl.load(source, mask=used, other=0.0).to(TYPE)
        hidden = tl.maximum(tl.dot(x, first), 0.0).to(TYPE)
        top = hidden
        if HAS_MIDDLE:
            top = tl.dot(hidden, tl.trans(middle)) + middle_offset[None, :]
            top = tl.maximum(top, 0.0).to(TYPE)
        source = grad_outputs + row[:, None] * out_stride_row + output[None, :] * out_stride_column
        upstream = tl.load(source, mask=inside & (output < NUM_OUTPUTS)[None, :], other=0.0)
        sum_last_bias += tl.sum(upstream.to(tl.float32), axis=0)
        upstream = upstream.to(TYPE)
        sum_last += tl.dot(tl.trans(upstream), top)
        # Where a ReLU is 0 its input's gradient is.
        grad = tl.where(top > 0, tl.dot(upstream, last), 0.0)
        if HAS_MIDDLE:
            sum_middle_bias += tl.sum(grad, axis=0)
            grad = grad.to(TYPE)
            sum_middle += tl.dot(tl.trans(grad), hidden)
            grad = tl.where(hidden > 0, tl.dot(grad, middle), 0.0)
        grad = grad.to(TYPE)
        sum_first += tl.dot(tl.trans(x), grad)
        grad_x = tl.dot(grad, tl.trans(first))
        target = grad_inputs + row[:, None] * grad_stride_row + column[None, :] * grad_stride_column
        tl.store(target, grad_x.to(grad_inputs.dtype.element_ty), mask=used)
    _store_matrix(grad_first + program * NUM_INPUTS * WIDTH, sum_first, NUM_INPUTS, WIDTH, INPUTS, WIDTH)
    _store_matrix(grad_last + program * NUM_OUTPUTS * WIDTH, sum_last, NUM_OUTPUTS, WIDTH, OUTPUTS, WIDTH)
    tl.store(grad_last_bias + program * NUM_OUTPUTS + output, sum_last_bias, mask=output < NUM_OUTPUTS)
    if HAS_MIDDLE:
        _store_matrix(grad_middle + program * WIDTH * WIDTH, sum_middle, WIDTH, WIDTH, WIDTH, WIDTH)
        tl.store(grad_middle_bias + program * WIDTH + unit, sum_middle_bias)


class Layers(NamedTuple):
    """The layers after the first one, as `nn.Linear` stores them; without a middle layer those two are None."""

    middle_weight: Float[Tensor, "width width"] | None
    middle_bias: Float[Tensor, " width"] | None
    last_weight: Float[Tensor, "num_outputs width"]
    last_bias: Float[Tensor, " num_outputs"]


def cut(counts: Sequence[int], rows: int, device: torch.device) -> Int[Tensor, "segments 3"]:
    """(frame, first row, last row + 1) of segments of at most `rows` rows that cover every frame's, on the device."""
    ends = np.cumsum(np.asarray(counts, dtype=np.int64))
    starts = ends - counts
    per_frame = -(-np.asarray(counts, dtype=np.int64) // rows)
    frames = np.repeat(np.arange(len(counts)), per_frame)
    within = np.arange(per_frame.sum()) - np.repeat(np.cumsum(per_frame) - per_frame, per_frame)
    first = starts[frames] + within * rows
    segments = np.stack([frames, first, np.minimum(first + rows, ends[frames])], axis=1).astype(np.int64)
    return torch.from_numpy(segments).to(device)


def _padded(size: int) -> int:
    return max(triton.next_power_of_2(size), SMALLEST_TILE)


def _options(num_inputs: int, layers: Layers, dtype: torch.dtype) -> dict:
    num_outputs, width = layers.last_weight.shape
    return {
        "NUM_INPUTS": num_inputs,
        "WIDTH": width,
        "NUM_OUTPUTS": num_outputs,
        "INPUTS": _padded(num_inputs),
        "OUTPUTS": _padded(num_outputs),
        "HAS_MIDDLE": layers.middle_weight is not None,
        "TYPE": {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}[dtype],
        "BLOCK": BLOCK_ROWS[dtype],
        "num_warps": NUM_WARPS,
    }


def _on_device(tensor: Tensor) -> AbstractContextManager:
    """Triton launches on the current device, which need not be the tensors'."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _contiguous(layers: Layers) -> Layers:
    return Layers(*(None if part is None else part.contiguous() for part in layers))


def forward(
    inputs: Float[Tensor, "n num_inputs"],
    matrices: Float[Tensor, "num_frames num_inputs width"],
    segments: Int[Tensor, "segments 3"],
    layers: Layers,
    dtype: torch.dtype,
) -> Float[Tensor, "n num_outputs"]:
    """The network's output, of type `dtype`."""
    outputs = torch.empty(inputs.shape[0], layers.last_weight.shape[0], dtype=dtype, device=inputs.device)
    matrices, layers = matrices.contiguous(), _contiguous(layers)
    if len(segments):
        with _on_device(inputs):
            _forward_kernel[(len(segments),)](
                inputs, matrices, *layers, outputs, segments, *inputs.stride(),
                **_options(inputs.shape[1], layers, dtype),
            )  # fmt: skip
    return outputs


class _FrameMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs, matrices, segments, dtype, middle_weight, middle_bias, last_weight, last_bias):
        ctx.save_for_backward(inputs, matrices, segments, middle_weight, middle_bias, last_weight, last_bias)
        ctx.dtype = dtype
        layers = Layers(middle_weight, middle_bias, last_weight, last_bias)
        return forward(inputs, matrices, segments, layers, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_outputs):
        inputs, matrices, segments, *parts = ctx.saved_tensors
        matrices, layers = matrices.contiguous(), _contiguous(Layers(*parts))
        (num_outputs, width), num_inputs = layers.last_weight.shape, inputs.shape[1]
        # Keeps the inputs' strides, so that whoever reads rows or columns fast there does so here.
        grad_inputs = torch.empty_like(inputs)

        def sums(*shape: int) -> Tensor:
            return torch.empty(len(segments), *shape, dtype=torch.float32, device=inputs.device)

        has_middle = layers.middle_weight is not None
        grad_first, grad_last, grad_last_bias = sums(num_inputs, width), sums(num_outputs, width), sums(num_outputs)
        grad_middle = sums(width, width) if has_middle else None
        grad_middle_bias = sums(width) if has_middle else None
        if len(segments):
            with _on_device(inputs):
                _backward_kernel[(len(segments),)](
                    inputs, matrices, layers.middle_weight, layers.middle_bias, layers.last_weight, grad_outputs,
                    segments, grad_inputs, grad_first, grad_middle, grad_middle_bias, grad_last, grad_last_bias,
                    *inputs.stride(), *grad_inputs.stride(), *grad_outputs.stride(),
                    **_options(num_inputs, layers, ctx.dtype),
                )  # fmt: skip
        grad_matrices = torch.zeros_like(matrices, dtype=torch.float32).index_add_(0, segments[:, 0], grad_first)
        return (
            grad_inputs,
            grad_matrices.to(matrices.dtype),
            None,
            None,
            None if grad_middle is None else grad_middle.sum(dim=0),
            None if grad_middle_bias is None else grad_middle_bias.sum(dim=0),
            grad_last.sum(dim=0),
            grad_last_bias.sum(dim=0),
        )


def frame_mlp(
    inputs: Float[Tensor, "n num_inputs"],
    matrices: Float[Tensor, "num_frames num_inputs width"],
    counts: Sequence[int],
    layers: Layers,
    dtype: torch.dtype,
) -> Float[Tensor, "n num_outputs"]:
    """`fields.frame_mlp.frame_mlp` for layers that this kernel takes; differentiable once.

    Args:
        dtype: float16, bfloat16 or float32: of the products' inputs and of the result.
    """
    segments = cut(counts, SEGMENT_ROWS, inputs.device)
    parameters = [part for part in layers if part is not None]
    if torch.is_grad_enabled() and any(part.requires_grad for part in (inputs, matrices, *parameters)):
        return _FrameMlp.apply(inputs, matrices, segments, dtype, *layers)
    return forward(inputs, matrices, segments, layers, dtype)
