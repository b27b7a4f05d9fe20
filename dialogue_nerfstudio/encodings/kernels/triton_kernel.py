"""Hash grid in Triton for CUDA: the torch reference's function with no build step.

Convention: `positions` float32 [n, d] in [0, 1] (clamped), `table` float32, float16 or bfloat16 [entries, F], features
[n, levels · F] in the table's type; levels and indices as in `encodings.layout`. Interpolation, weights and every sum
of gradients are float32, whatever the table's type.

How the work is split. Forward and table gradient: a program takes a block of points through one level, and programs
are numbered level after level, so that the entries of one level stay in L2 while all points read them. Features are
stored feature-major (strides [1, n]), so that a program's writes are whole cache lines. Position gradient: a program
takes a block of points through all levels and writes once, without atomics. Table gradient: coarse levels have fewer
entries than there are points and their atomics would queue up, so each gets several copies that neighbouring points
(samples of one ray, in one warp) write in turn, and that are summed at the end; how many follows from the number of
points alone. Runs in Triton's interpreter (TRITON_INTERPRET=1) on the CPU.
"""

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from dialogue_nerfstudio.encodings.layout import GridLevel

BLOCK_POINTS = 256
"""Points a program takes through one level."""
NUM_WARPS = 8
"""Warps a program: one point a thread, because the kernel waits for memory and more points in flight hide it."""

FOLD_BLOCK = 1024
"""Floats a program sums over the copies of a coarse level."""
MAX_COPIES = 64
"""Copies of a coarse level: two warps of neighbouring points never write the same one."""
MAX_COPIED_ENTRIES = 1 << 18
"""Entries of all copies of a level together; more would no longer stay in L2."""
WRITES_PER_COPY = 32
"""Writes that each entry of a copy gets on average at least, so that summing the copies costs next to nothing."""

# `no_type_check` below keeps the tests' shape checker from wrapping what Triton has to compile.


@triton.jit
@no_type_check
def _along_axis(positions, rows, mask, axis: tl.constexpr, stride_point, stride_axis, scale):
    """(cell, fraction, whether inside [0, 1]) of one coordinate; NaN goes to cell 0 with a NaN fraction."""
    position = tl.load(positions + rows * stride_point + axis * stride_axis, mask=mask, other=0.0)
    clamped = tl.where(position > 0.0, position, 0.0)
    clamped = tl.where(clamped < 1.0, clamped, 1.0)
    scaled = clamped * scale + 0.5
    cell = scaled.to(tl.int32)
    fraction = tl.where(position == position, scaled - cell.to(tl.float32), position)
    return cell.to(tl.uint32), fraction, (position >= 0.0) & (position <= 1.0)


@triton.jit
@no_type_check
def _corner_entry(x, y, z, corner: tl.constexpr, stride_y, stride_z, hashed, size):
    """Index within a level of a corner (bits: x, y, z) of a cell, whose coordinates are multiplied with the strides."""
    if corner & 1:
        x += 1
    if corner & 2:
        y += stride_y
    if corner & 4:
        z += stride_z
    # Only the shifted last half cell of a dense level overruns, by less than one grid: a subtraction is the modulo.
    dense = x + y + z
    dense = tl.where(dense >= size, dense - size, dense)
    return tl.where(hashed != 0, (x ^ y ^ z) & (size - 1), dense).to(tl.int64)


@triton.jit
@no_type_check
def _level(levels, scales, level):
    """(scale, stride_y, stride_z, offset, size, hashed, where gradients go, mask of the copy's number)."""
    row = levels + level * 7
    return (
        tl.load(scales + level),
        tl.load(row).to(tl.uint32),
        tl.load(row + 1).to(tl.uint32),
        tl.load(row + 2),
        tl.load(row + 3).to(tl.uint32),
        tl.load(row + 4),
        tl.load(row + 5),
        tl.load(row + 6),
    )


@triton.jit
@no_type_check
def _forward_kernel(
    positions, table, features, levels, scales, num_points,
    stride_point, stride_axis, stride_row, stride_feature,
    NUM_DIMS: tl.constexpr, NUM_FEATURES: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    level = tl.program_id(1)
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = rows < num_points
    scale, stride_y, stride_z, offset, size, hashed, _, _ = _level(levels, scales, level)
    x, fx, _ = _along_axis(positions, rows, mask, 0, stride_point, stride_axis, scale)
    y, fy, _ = _along_axis(positions, rows, mask, 1, stride_point, stride_axis, scale)
    y *= stride_y
    z, fz = tl.zeros_like(x), tl.zeros_like(fx)
    if NUM_DIMS == 3:
        z, fz, _ = _along_axis(positions, rows, mask, 2, stride_point, stride_axis, scale)
        z *= stride_z
    feature = tl.arange(0, PADDED)
    tile_mask = tl.broadcast_to(mask[:, None], (BLOCK, PADDED))
    if PADDED != NUM_FEATURES:
        tile_mask = tile_mask & (feature < NUM_FEATURES)[None, :]
    start = table + offset * NUM_FEATURES
    total = tl.zeros((BLOCK, PADDED), dtype=tl.float32)
    for corner in tl.static_range(1 << NUM_DIMS):
        index = _corner_entry(x, y, z, corner, stride_y, stride_z, hashed, size)
        entry = tl.load(start + index[:, None] * NUM_FEATURES + feature[None, :], mask=tile_mask, other=0.0)
        weight = (fx if corner & 1 else 1.0 - fx) * (fy if corner & 2 else 1.0 - fy)
        if NUM_DIMS == 3:
            weight = weight * (fz if corner & 4 else 1.0 - fz)
        total += weight[:, None] * entry.to(tl.float32)
    column = level * NUM_FEATURES + feature
    target = features + rows[:, None] * stride_row + column.to(tl.int64)[None, :] * stride_feature
    tl.store(target, total.to(features.dtype.element_ty), mask=tile_mask)


@triton.jit
@no_type_check
def _table_gradient_kernel(
    positions, grad_features, grad_table, levels, scales, num_points,
    stride_point, stride_axis, stride_row, stride_feature,
    NUM_DIMS: tl.constexpr, NUM_FEATURES: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    level = tl.program_id(1)
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = rows < num_points
    scale, stride_y, stride_z, _, size, hashed, target, copy_mask = _level(levels, scales, level)
    x, fx, _ = _along_axis(positions, rows, mask, 0, stride_point, stride_axis, scale)
    y, fy, _ = _along_axis(positions, rows, mask, 1, stride_point, stride_axis, scale)
    y *= stride_y
    z, fz = tl.zeros_like(x), tl.zeros_like(fx)
    if NUM_DIMS == 3:
        z, fz, _ = _along_axis(positions, rows, mask, 2, stride_point, stride_axis, scale)
        z *= stride_z
    feature = tl.arange(0, PADDED)
    tile_mask = tl.broadcast_to(mask[:, None], (BLOCK, PADDED))
    if PADDED != NUM_FEATURES:
        tile_mask = tile_mask & (feature < NUM_FEATURES)[None, :]
    column = level * NUM_FEATURES + feature
    source = grad_features + rows[:, None] * stride_row + column.to(tl.int64)[None, :] * stride_feature
    upstream = tl.load(source, mask=tile_mask, other=0.0).to(tl.float32)
    start = target + (rows & copy_mask) * size.to(tl.int64)
    for corner in tl.static_range(1 << NUM_DIMS):
        index = start + _corner_entry(x, y, z, corner, stride_y, stride_z, hashed, size)
        weight = (fx if corner & 1 else 1.0 - fx) * (fy if corner & 2 else 1.0 - fy)
        if NUM_DIMS == 3:
            weight = weight * (fz if corner & 4 else 1.0 - fz)
        tl.atomic_add(
            grad_table + index[:, None] * NUM_FEATURES + feature[None, :],
            weight[:, None] * upstream,
            mask=tile_mask,
            sem="relaxed",
        )


@triton.jit
@no_type_check
def _fold_copies_kernel(grad_table, levels, NUM_FEATURES: tl.constexpr, BLOCK: tl.constexpr):
    """Sums the copies of one coarse level into its place."""
    row = levels + tl.program_id(1) * 7
    offset, floats = tl.load(row + 2) * NUM_FEATURES, tl.load(row + 3) * NUM_FEATURES
    copies = grad_table + tl.load(row + 5) * NUM_FEATURES
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = index < floats
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for copy in range(tl.load(row + 6).to(tl.int32) + 1):
        total += tl.load(copies + copy * floats + index, mask=mask, other=0.0)
    tl.store(grad_table + offset + index, total, mask=mask)


@triton.jit
@no_type_check
def _position_gradient_kernel(
    positions, table, grad_features, grad_positions, levels, scales, num_points, num_levels,
    stride_point, stride_axis, stride_row, stride_feature,
    NUM_DIMS: tl.constexpr, NUM_FEATURES: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = rows < num_points
    feature = tl.arange(0, PADDED)
    tile_mask = tl.broadcast_to(mask[:, None], (BLOCK, PADDED))
    if PADDED != NUM_FEATURES:
        tile_mask = tile_mask & (feature < NUM_FEATURES)[None, :]
    along_x = tl.zeros((BLOCK,), dtype=tl.float32)
    along_y = tl.zeros((BLOCK,), dtype=tl.float32)
    along_z = tl.zeros((BLOCK,), dtype=tl.float32)
    for level in range(num_levels):
        scale, stride_y, stride_z, offset, size, hashed, _, _ = _level(levels, scales, level)
        x, fx, _ = _along_axis(positions, rows, mask, 0, stride_point, stride_axis, scale)
        y, fy, _ = _along_axis(positions, rows, mask, 1, stride_point, stride_axis, scale)
        y *= stride_y
        z, fz = tl.zeros_like(x), tl.zeros_like(fx)
        if NUM_DIMS == 3:
            z, fz, _ = _along_axis(positions, rows, mask, 2, stride_point, stride_axis, scale)
            z *= stride_z
        column = level * NUM_FEATURES + feature
        source = grad_features + rows[:, None] * stride_row + column.to(tl.int64)[None, :] * stride_feature
        upstream = tl.load(source, mask=tile_mask, other=0.0).to(tl.float32)
        start = table + offset * NUM_FEATURES
        for corner in tl.static_range(1 << NUM_DIMS):
            index = _corner_entry(x, y, z, corner, stride_y, stride_z, hashed, size)
            entry = tl.load(start + index[:, None] * NUM_FEATURES + feature[None, :], mask=tile_mask, other=0.0)
            # How much the loss wants of this entry, and the derivative of the entry's weight along each axis.
            wanted = scale * tl.sum(upstream * entry.to(tl.float32), axis=1)
            wx, wy = fx if corner & 1 else 1.0 - fx, fy if corner & 2 else 1.0 - fy
            if NUM_DIMS == 3:
                wz = fz if corner & 4 else 1.0 - fz
                along_x += wanted * wy * wz * (2 * (corner & 1) - 1)
                along_y += wanted * wx * wz * ((corner & 2) - 1)
                along_z += wanted * wx * wy * ((corner & 4) // 2 - 1)
            else:
                along_x += wanted * wy * (2 * (corner & 1) - 1)
                along_y += wanted * wx * ((corner & 2) - 1)
    _, _, inside = _along_axis(positions, rows, mask, 0, stride_point, stride_axis, 1.0)
    target = grad_positions + rows * NUM_DIMS
    tl.store(target, tl.where(inside, along_x, 0.0), mask=mask)
    _, _, inside = _along_axis(positions, rows, mask, 1, stride_point, stride_axis, 1.0)
    tl.store(target + 1, tl.where(inside, along_y, 0.0), mask=mask)
    if NUM_DIMS == 3:
        _, _, inside = _along_axis(positions, rows, mask, 2, stride_point, stride_axis, 1.0)
        tl.store(target + 2, tl.where(inside, along_z, 0.0), mask=mask)


def copies_of_level(level: GridLevel, num_dims: int, num_points: int) -> int:
    """How many copies of a level's gradient are written: a power of two, 1 where points are spread thinly."""
    writes_per_entry = num_points * 2**num_dims // level.size
    most = min(MAX_COPIES, MAX_COPIED_ENTRIES // level.size, writes_per_entry // WRITES_PER_COPY)
    return 1 << max(most.bit_length() - 1, 0)


@functools.lru_cache(maxsize=64)
def _level_parameters(
    levels: tuple[GridLevel, ...], num_dims: int, copies: tuple[int, ...], device: torch.device
) -> tuple[Int[Tensor, "levels columns"], Float[Tensor, " levels"], int]:
    """(a row of whole numbers a level, scales, entries that gradients are written to), on the device."""
    rows, end = [], levels[-1].offset + levels[-1].size
    for level, count in zip(levels, copies, strict=True):
        strides = (*level.strides(num_dims), 0)
        target = end if count > 1 else level.offset
        end += count * level.size if count > 1 else 0
        rows.append([strides[1], strides[2], level.offset, level.size, int(level.hashed), target, count - 1])
    scales = torch.tensor([level.scale for level in levels], dtype=torch.float32)
    return torch.tensor(rows, dtype=torch.int64).to(device), scales.to(device), end


def _on_device(tensor: Tensor) -> AbstractContextManager:
    """Triton launches on the current device, which need not be the tensors'."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _shape_options(num_dims: int, num_features: int) -> dict[str, int]:
    return {
        "NUM_DIMS": num_dims,
        "NUM_FEATURES": num_features,
        "PADDED": triton.next_power_of_2(num_features),
        "BLOCK": BLOCK_POINTS,
        "num_warps": NUM_WARPS,
    }


def encode_without_gradient(
    positions: Float[Tensor, "n d"], table: Float[Tensor, "entries F"], levels: Sequence[GridLevel]
) -> Float[Tensor, "n out_dim"]:
    """Forward only: nothing is kept for a backward pass. The result's strides are [1, n]."""
    (num_points, num_dims), num_features = positions.shape, table.shape[1]
    columns = len(levels) * num_features
    features = torch.empty_strided(
        (num_points, columns), (1, max(num_points, 1)), dtype=table.dtype, device=table.device
    )
    if num_points == 0:
        return features
    table = table.contiguous()
    parameters, scales, _ = _level_parameters(tuple(levels), num_dims, (1,) * len(levels), positions.device)
    with _on_device(positions):
        _forward_kernel[(triton.cdiv(num_points, BLOCK_POINTS), len(levels))](
            positions, table, features, parameters, scales, num_points,
            *positions.stride(), *features.stride(), **_shape_options(num_dims, num_features),
        )  # fmt: skip
    return features


def table_gradient(
    positions: Float[Tensor, "n d"],
    grad_features: Float[Tensor, "n out_dim"],
    num_features: int,
    levels: Sequence[GridLevel],
) -> Float[Tensor, "entries F"]:
    """float32 gradient of the table."""
    num_points, num_dims = positions.shape
    copies = tuple(copies_of_level(level, num_dims, num_points) for level in levels)
    parameters, scales, written = _level_parameters(tuple(levels), num_dims, copies, positions.device)
    entries = levels[-1].offset + levels[-1].size
    gradient = torch.zeros(written, num_features, dtype=torch.float32, device=positions.device)
    if num_points == 0:
        return gradient[:entries]
    with _on_device(positions):
        _table_gradient_kernel[(triton.cdiv(num_points, BLOCK_POINTS), len(levels))](
            positions, grad_features, gradient, parameters, scales, num_points,
            *positions.stride(), *grad_features.stride(), **_shape_options(num_dims, num_features),
        )  # fmt: skip
        copied = [index for index, count in enumerate(copies) if count > 1]
        # Levels grow in size, so those with copies are the first ones.
        if copied:
            largest = max(levels[index].size for index in copied) * num_features
            _fold_copies_kernel[(triton.cdiv(largest, FOLD_BLOCK), len(copied))](
                gradient, parameters, NUM_FEATURES=num_features, BLOCK=FOLD_BLOCK
            )
    return gradient[:entries]


def position_gradient(
    positions: Float[Tensor, "n d"],
    table: Float[Tensor, "entries F"],
    grad_features: Float[Tensor, "n out_dim"],
    levels: Sequence[GridLevel],
) -> Float[Tensor, "n d"]:
    """float32 gradient of the positions; 0 outside [0, 1]."""
    (num_points, num_dims), num_features = positions.shape, table.shape[1]
    gradient = torch.empty(num_points, num_dims, dtype=torch.float32, device=positions.device)
    if num_points == 0:
        return gradient
    parameters, scales, _ = _level_parameters(tuple(levels), num_dims, (1,) * len(levels), positions.device)
    with _on_device(positions):
        _position_gradient_kernel[(triton.cdiv(num_points, BLOCK_POINTS),)](
            positions, table.contiguous(), grad_features, gradient, parameters, scales, num_points, len(levels),
            *positions.stride(), *grad_features.stride(), **_shape_options(num_dims, num_features),
        )  # fmt: skip
    return gradient


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, positions, table, levels):
        ctx.save_for_backward(positions, table)
        ctx.levels = levels
        return encode_without_gradient(positions, table, levels)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_features):
        positions, table = ctx.saved_tensors
        grad_positions = grad_table = None
        if ctx.needs_input_grad[0]:
            grad_positions = position_gradient(positions, table, grad_features, ctx.levels)
        if ctx.needs_input_grad[1]:
            grad_table = table_gradient(positions, grad_features, table.shape[1], ctx.levels).to(table.dtype)
        return grad_positions, grad_table, None


def encode(
    positions: Float[Tensor, "n d"], table: Float[Tensor, "entries F"], levels: Sequence[GridLevel]
) -> Float[Tensor, "n out_dim"]:
    """Features of every level side by side, differentiable once. Positions outside [0, 1] read the edge and get no
    gradient. Positions are float32; the result has the table's type and strides [1, n]."""
    if torch.is_grad_enabled() and (positions.requires_grad or table.requires_grad):
        return _Encode.apply(positions, table, tuple(levels))
    return encode_without_gradient(positions, table, levels)
