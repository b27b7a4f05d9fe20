"""Hash grid compiled by numba for CPUs: the torch reference's function, an order of magnitude faster.

Convention: `positions` float32 [n, d] in [0, 1] (clamped), `table` float32 [entries, F], features float32
[n, levels · F], level-major; levels and indices as in `encodings.layout`.

How the work is split. Forward and position gradient: threads take blocks of points, and within a block go through
the grid level by level, so that one level's entries stay in the L2 cache while the whole block reads them. Table
gradient: a thread owns a whole level, so that no two threads ever write the same entry and no atomics are needed; where
there are more threads than levels, points are split too and each part has an accumulator of its own. Compiled code
is cached beside this file and specialised for (d, F).
"""

import functools
import threading
from collections.abc import Callable, Sequence
from typing import no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Float
from numba import njit, prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from dialogue_nerfstudio.encodings.layout import GridLevel

# Points a thread takes through one level before the next: positions and features of a block share L2 with one level.
BLOCK_POINTS = 2048
# No "nnan"/"ninf": a NaN position must come out as a NaN feature, not as undefined behaviour.
FAST = {"contract", "reassoc", "nsz", "arcp", "afn"}
ZERO, HALF, ONE = np.float32(0.0), np.float32(0.5), np.float32(1.0)

# `no_type_check` below keeps the tests' shape checker from wrapping what numba has to compile.
# numba's thread pools do not promise to survive calls from two Python threads at once (a viewer renders in its own).
_pool_lock = threading.Lock()


@njit(cache=True, fastmath=FAST)
@no_type_check
def _cell(position, scale):
    """Integer cell and fraction of one clamped coordinate; NaN goes to cell 0 with a NaN fraction."""
    clamped = position if position > ZERO else ZERO
    clamped = clamped if clamped < ONE else ONE
    scaled = clamped * scale + HALF
    cell = np.int64(scaled)
    fraction = scaled - np.float32(cell)
    return cell, fraction if position == position else position


@njit(cache=True, fastmath=FAST)
@no_type_check
def _inside(position):
    return position >= ZERO and position <= ONE


@njit(cache=True, fastmath=FAST)
@no_type_check
def _plane(x, y, stride_x, stride_y, along_z, hashed, size, offset):
    """Entries of the four corners (00, 10, 01, 11) of a cell's face at one z."""
    x1, y1 = x + stride_x, y + stride_y
    if hashed:
        mask = size - 1
        i00, i10 = (x ^ y ^ along_z) & mask, (x1 ^ y ^ along_z) & mask
        i01, i11 = (x ^ y1 ^ along_z) & mask, (x1 ^ y1 ^ along_z) & mask
    else:
        i00, i10 = x + y + along_z, x1 + y + along_z
        i01, i11 = x + y1 + along_z, x1 + y1 + along_z
        # Only the shifted last half cell overruns, by less than one grid: a subtraction is the whole modulo.
        i00 -= size if i00 >= size else 0
        i10 -= size if i10 >= size else 0
        i01 -= size if i01 >= size else 0
        i11 -= size if i11 >= size else 0
    return offset + i00, offset + i10, offset + i01, offset + i11


@functools.cache
@no_type_check
def compiled(num_dims: int, num_features: int) -> tuple[Callable, Callable, Callable]:
    """(forward, table gradient, position gradient), specialised for d and F. Compiled at their first call."""

    def forward(positions, table, scales, strides, offsets, hashed, features, block):
        num_points, num_levels = positions.shape[0], scales.shape[0]
        for b in prange((num_points + block - 1) // block):
            for level in range(num_levels):
                scale, is_hashed, offset = scales[level], hashed[level], offsets[level]
                size = offsets[level + 1] - offset
                sx, sy, sz = strides[level, 0], strides[level, 1], strides[level, 2]
                for p in range(b * block, min((b + 1) * block, num_points)):
                    cx, fx = _cell(positions[p, 0], scale)
                    cy, fy = _cell(positions[p, 1], scale)
                    x, y, z, fz = cx * sx, cy * sy, 0, ZERO
                    if num_dims == 3:
                        cz, fz = _cell(positions[p, 2], scale)
                        z = cz * sz
                    a, c, d, e = _plane(x, y, sx, sy, z, is_hashed, size, offset)
                    w11 = fx * fy
                    w10, w01 = fx - w11, fy - w11
                    w00 = ONE - fx - w01
                    if num_dims == 3:
                        g, h, i, j = _plane(x, y, sx, sy, z + sz, is_hashed, size, offset)
                        for f in range(num_features):
                            low = w00 * table[a, f] + w10 * table[c, f] + w01 * table[d, f] + w11 * table[e, f]
                            high = w00 * table[g, f] + w10 * table[h, f] + w01 * table[i, f] + w11 * table[j, f]
                            features[p, level * num_features + f] = low + fz * (high - low)
                    else:
                        for f in range(num_features):
                            low = w00 * table[a, f] + w10 * table[c, f] + w01 * table[d, f] + w11 * table[e, f]
                            features[p, level * num_features + f] = low

    def table_gradient(positions, scales, strides, offsets, hashed, grad_features, grad_parts):
        num_points, num_levels, num_parts = positions.shape[0], scales.shape[0], grad_parts.shape[0]
        for task in prange(num_levels * num_parts):
            # Fine levels first: they are the slow ones, and a thread that starts one last would keep all waiting.
            level, part = num_levels - 1 - task // num_parts, task % num_parts
            grad_table = grad_parts[part]
            scale, is_hashed, offset = scales[level], hashed[level], offsets[level]
            size = offsets[level + 1] - offset
            sx, sy, sz = strides[level, 0], strides[level, 1], strides[level, 2]
            for p in range(num_points * part // num_parts, num_points * (part + 1) // num_parts):
                cx, fx = _cell(positions[p, 0], scale)
                cy, fy = _cell(positions[p, 1], scale)
                x, y, z, fz = cx * sx, cy * sy, 0, ZERO
                if num_dims == 3:
                    cz, fz = _cell(positions[p, 2], scale)
                    z = cz * sz
                a, c, d, e = _plane(x, y, sx, sy, z, is_hashed, size, offset)
                w11 = fx * fy
                w10, w01 = fx - w11, fy - w11
                w00 = ONE - fx - w01
                for f in range(num_features):
                    grad = grad_features[p, level * num_features + f]
                    low = (ONE - fz) * grad
                    grad_table[a, f] += w00 * low
                    grad_table[c, f] += w10 * low
                    grad_table[d, f] += w01 * low
                    grad_table[e, f] += w11 * low
                if num_dims == 3:
                    g, h, i, j = _plane(x, y, sx, sy, z + sz, is_hashed, size, offset)
                    for f in range(num_features):
                        high = fz * grad_features[p, level * num_features + f]
                        grad_table[g, f] += w00 * high
                        grad_table[h, f] += w10 * high
                        grad_table[i, f] += w01 * high
                        grad_table[j, f] += w11 * high

    def position_gradient(positions, table, scales, strides, offsets, hashed, grad_features, grad_positions, block):
        num_points, num_levels = positions.shape[0], scales.shape[0]
        for b in prange((num_points + block - 1) // block):
            start, stop = b * block, min((b + 1) * block, num_points)
            for level in range(num_levels):
                scale, is_hashed, offset = scales[level], hashed[level], offsets[level]
                size = offsets[level + 1] - offset
                sx, sy, sz = strides[level, 0], strides[level, 1], strides[level, 2]
                for p in range(start, stop):
                    cx, fx = _cell(positions[p, 0], scale)
                    cy, fy = _cell(positions[p, 1], scale)
                    x, y, z, fz = cx * sx, cy * sy, 0, ZERO
                    if num_dims == 3:
                        cz, fz = _cell(positions[p, 2], scale)
                        z = cz * sz
                    a, c, d, e = _plane(x, y, sx, sy, z, is_hashed, size, offset)
                    # s: how much the loss wants of each corner's entry.
                    s00, s10, s01, s11 = ZERO, ZERO, ZERO, ZERO
                    for f in range(num_features):
                        grad = grad_features[p, level * num_features + f]
                        s00 += grad * table[a, f]
                        s10 += grad * table[c, f]
                        s01 += grad * table[d, f]
                        s11 += grad * table[e, f]
                    low_x = (s10 - s00) + fy * ((s11 - s01) - (s10 - s00))
                    low_y = (s01 - s00) + fx * ((s11 - s10) - (s01 - s00))
                    if num_dims == 3:
                        g, h, i, j = _plane(x, y, sx, sy, z + sz, is_hashed, size, offset)
                        r00, r10, r01, r11 = ZERO, ZERO, ZERO, ZERO
                        for f in range(num_features):
                            grad = grad_features[p, level * num_features + f]
                            r00 += grad * table[g, f]
                            r10 += grad * table[h, f]
                            r01 += grad * table[i, f]
                            r11 += grad * table[j, f]
                        high_x = (r10 - r00) + fy * ((r11 - r01) - (r10 - r00))
                        high_y = (r01 - r00) + fx * ((r11 - r10) - (r01 - r00))
                        low = s00 + fx * (s10 - s00) + fy * (s01 - s00 + fx * (s11 - s10 - s01 + s00))
                        high = r00 + fx * (r10 - r00) + fy * (r01 - r00 + fx * (r11 - r10 - r01 + r00))
                        low_x += fz * (high_x - low_x)
                        low_y += fz * (high_y - low_y)
                        grad_positions[p, 2] += scale * (high - low)
                    grad_positions[p, 0] += scale * low_x
                    grad_positions[p, 1] += scale * low_y
            for p in range(start, stop):
                for axis in range(num_dims):
                    if not _inside(positions[p, axis]):
                        grad_positions[p, axis] = ZERO

    compile_parallel = njit(parallel=True, nogil=True, cache=True, fastmath=FAST, boundscheck=False)
    return compile_parallel(forward), compile_parallel(table_gradient), compile_parallel(position_gradient)


@functools.lru_cache(maxsize=64)
def _level_arrays(levels: tuple[GridLevel, ...], num_dims: int) -> tuple[np.ndarray, ...]:
    """(scales, strides, offsets, hashed) as the kernels read them; 2D levels get a third stride of 0."""
    scales = np.array([level.scale for level in levels], dtype=np.float32)
    strides = np.array([(*level.strides(num_dims), 0, 0)[:3] for level in levels], dtype=np.int64)
    offsets = np.array([level.offset for level in levels] + [levels[-1].offset + levels[-1].size], dtype=np.int64)
    return scales, strides, offsets, np.array([level.hashed for level in levels])


def _run(kernel: Callable, *arguments) -> None:
    """Call a compiled kernel on as many threads as torch was told to use."""
    with _pool_lock:
        numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
        kernel(*arguments)


def _array(tensor: Tensor) -> np.ndarray:
    """The tensor's own memory as a NumPy array (no copy)."""
    return tensor.detach().numpy()


def encode_without_gradient(
    positions: Float[Tensor, "n d"], table: Float[Tensor, "entries F"], levels: Sequence[GridLevel]
) -> Float[Tensor, "n out_dim"]:
    """Forward only: nothing is kept for a backward pass."""
    positions = positions.contiguous()
    num_dims, num_features = positions.shape[1], table.shape[1]
    features = torch.empty(positions.shape[0], len(levels) * num_features)
    scales, strides, offsets, hashed = _level_arrays(tuple(levels), num_dims)
    _run(
        compiled(num_dims, num_features)[0],
        *(_array(positions), _array(table), scales, strides, offsets, hashed, _array(features), BLOCK_POINTS),
    )
    return features


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, positions, table, levels):
        positions = positions.contiguous()
        ctx.save_for_backward(positions, table)
        ctx.levels = levels
        return encode_without_gradient(positions, table, levels)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_features):
        positions, table = ctx.saved_tensors
        num_dims, num_features = positions.shape[1], table.shape[1]
        _, table_gradient, position_gradient = compiled(num_dims, num_features)
        scales, strides, offsets, hashed = _level_arrays(ctx.levels, num_dims)
        grad_features = grad_features.contiguous()
        grad_positions = grad_table = None
        if ctx.needs_input_grad[0]:
            grad_positions = torch.zeros_like(positions)
            _run(
                position_gradient,
                *(_array(positions), _array(table), scales, strides, offsets, hashed, _array(grad_features)),
                *(_array(grad_positions), BLOCK_POINTS),
            )
        if ctx.needs_input_grad[1]:
            # Two tasks a thread keep a machine with more threads than levels busy and evenly loaded.
            num_threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
            num_parts = 1 if num_threads * 2 <= len(ctx.levels) else -(-num_threads * 2 // len(ctx.levels))
            grad_parts = torch.zeros(num_parts, *table.shape)
            _run(
                table_gradient,
                *(_array(positions), scales, strides, offsets, hashed, _array(grad_features), _array(grad_parts)),
            )
            grad_table = grad_parts[0] if num_parts == 1 else grad_parts.sum(dim=0)
        return grad_positions, grad_table, None


def encode(
    positions: Float[Tensor, "n d"], table: Float[Tensor, "entries F"], levels: Sequence[GridLevel]
) -> Float[Tensor, "n out_dim"]:
    """Features of every level side by side, differentiable once. Positions outside [0, 1] read the edge and get no
    gradient. Tensors are float32 on the CPU."""
    if torch.is_grad_enabled() and (positions.requires_grad or table.requires_grad):
        return _Encode.apply(positions, table, tuple(levels))
    return encode_without_gradient(positions, table, levels)
