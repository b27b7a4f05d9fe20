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
import os
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
FORWARD, TABLE_GRADIENT, POSITION_GRADIENT = 0, 1, 2
ZERO, HALF, ONE = np.float32(0.0), np.float32(0.5), np.float32(1.0)

# `no_type_check` below keeps the tests' shape checker from wrapping what numba has to compile.
# Of numba's thread pools, the work queue is in every wheel, survives a fork (data loaders) and sleeps between calls;
# its OpenMP pool would be a second one beside torch's, each spinning on the cores that the other needs. The work queue
# must not be entered by two Python threads at once, and a viewer renders in its own: hence the lock. Even for one
# thread the pool hands work over to another and waits: for that, kernels are compiled without it.
if "NUMBA_THREADING_LAYER" not in os.environ:
    numba.config.THREADING_LAYER = "workqueue"
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
def _face(x, y, z, stride_x, stride_y, hashed, size, offset, num_features):
    """Where the entries of the corners 00, 10, 01, 11 of a cell's face at one z start in the flat table."""
    x1, y1 = x + stride_x, y + stride_y
    if hashed:
        mask = size - 1
        i00, i10, i01, i11 = (x ^ y ^ z) & mask, (x1 ^ y ^ z) & mask, (x ^ y1 ^ z) & mask, (x1 ^ y1 ^ z) & mask
    else:
        i00, i10, i01, i11 = x + y + z, x1 + y + z, x + y1 + z, x1 + y1 + z
        # Only the shifted last half cell overruns, by less than one grid: a subtraction is the whole modulo.
        i00 -= size if i00 >= size else 0
        i10 -= size if i10 >= size else 0
        i01 -= size if i01 >= size else 0
        i11 -= size if i11 >= size else 0
    # Unsigned, because numba checks signed indices for Python's counting from the end.
    return (
        np.uintp((offset + i00) * num_features),
        np.uintp((offset + i10) * num_features),
        np.uintp((offset + i01) * num_features),
        np.uintp((offset + i11) * num_features),
    )


@njit(cache=True, fastmath=FAST)
@no_type_check
def _add_scaled(target, at, weight, source, start, num_features):
    """target[at + f] += weight · source[start + f]; two features in one vector add."""
    if num_features == 2:
        source0, source1 = source[start], source[start + np.uintp(1)]
        target0, target1 = target[at], target[at + np.uintp(1)]
        target[at] = target0 + weight * source0
        target[at + np.uintp(1)] = target1 + weight * source1
    else:
        for f in range(np.uintp(num_features)):
            target[at + f] += weight * source[start + f]


@functools.cache
@no_type_check
def compiled(num_dims: int, num_features: int, parallel: bool) -> tuple[Callable, Callable, Callable]:
    """(forward, table gradient, position gradient), specialised for d and F. Compiled at their first call.

    With `parallel` they run in numba's thread pool, else in the thread that calls them.

    They read and write flat arrays, so that d and F are constants in every address.
    """

    def forward(positions, table, scales, strides, offsets, hashed, features, block):
        num_points, num_levels = len(positions) // num_dims, len(scales)
        for b in prange((num_points + block - 1) // block):
            start, stop = np.uintp(b * block), np.uintp(min((b + 1) * block, num_points))
            for level in range(num_levels):
                scale, is_hashed, offset = scales[level], hashed[level], offsets[level]
                size = offsets[level + 1] - offset
                sx, sy, sz = strides[level, 0], strides[level, 1], strides[level, 2]
                for p in range(start, stop):
                    cx, fx = _cell(positions[p * np.uintp(num_dims)], scale)
                    cy, fy = _cell(positions[p * np.uintp(num_dims) + np.uintp(1)], scale)
                    x, y, z, fz = cx * sx, cy * sy, 0, ZERO
                    if num_dims == 3:
                        cz, fz = _cell(positions[p * np.uintp(num_dims) + np.uintp(2)], scale)
                        z = cz * sz
                    w11 = fx * fy
                    w10, w01 = fx - w11, fy - w11
                    w00 = ONE - fx - w01
                    first = p * np.uintp(num_levels * num_features) + np.uintp(level * num_features)
                    e00, e10, e01, e11 = _face(x, y, z, sx, sy, is_hashed, size, offset, num_features)
                    if num_dims == 3:
                        h00, h10, h01, h11 = _face(x, y, z + sz, sx, sy, is_hashed, size, offset, num_features)
                        for f in range(np.uintp(num_features)):
                            low = w00 * table[e00 + f] + w10 * table[e10 + f]
                            low += w01 * table[e01 + f] + w11 * table[e11 + f]
                            high = w00 * table[h00 + f] + w10 * table[h10 + f]
                            high += w01 * table[h01 + f] + w11 * table[h11 + f]
                            features[first + f] = low + fz * (high - low)
                    else:
                        for f in range(np.uintp(num_features)):
                            low = w00 * table[e00 + f] + w10 * table[e10 + f]
                            features[first + f] = low + w01 * table[e01 + f] + w11 * table[e11 + f]

    def table_gradient(positions, scales, strides, offsets, hashed, grad_features, grad_parts):
        num_points, num_levels, num_parts = len(positions) // num_dims, len(scales), len(grad_parts)
        for task in prange(num_levels * num_parts):
            # Fine levels first: they are the slow ones, and a thread that starts one last would keep all waiting.
            level, part = num_levels - 1 - task // num_parts, task % num_parts
            grad_table = grad_parts[part]
            scale, is_hashed, offset = scales[level], hashed[level], offsets[level]
            size = offsets[level + 1] - offset
            sx, sy, sz = strides[level, 0], strides[level, 1], strides[level, 2]
            start, stop = num_points * part // num_parts, num_points * (part + 1) // num_parts
            for p in range(np.uintp(start), np.uintp(stop)):
                cx, fx = _cell(positions[p * np.uintp(num_dims)], scale)
                cy, fy = _cell(positions[p * np.uintp(num_dims) + np.uintp(1)], scale)
                x, y, z, fz = cx * sx, cy * sy, 0, ZERO
                if num_dims == 3:
                    cz, fz = _cell(positions[p * np.uintp(num_dims) + np.uintp(2)], scale)
                    z = cz * sz
                # Weights of the face at z, and below of the one at z + 1.
                w11 = fx * fy
                w10, w01 = fx - w11, fy - w11
                w00 = ONE - fx - w01
                nearer = ONE - fz
                first = p * np.uintp(num_levels * num_features) + np.uintp(level * num_features)
                e00, e10, e01, e11 = _face(x, y, z, sx, sy, is_hashed, size, offset, num_features)
                _add_scaled(grad_table, e00, w00 * nearer, grad_features, first, num_features)
                _add_scaled(grad_table, e10, w10 * nearer, grad_features, first, num_features)
                _add_scaled(grad_table, e01, w01 * nearer, grad_features, first, num_features)
                _add_scaled(grad_table, e11, w11 * nearer, grad_features, first, num_features)
                if num_dims == 3:
                    e00, e10, e01, e11 = _face(x, y, z + sz, sx, sy, is_hashed, size, offset, num_features)
                    _add_scaled(grad_table, e00, w00 * fz, grad_features, first, num_features)
                    _add_scaled(grad_table, e10, w10 * fz, grad_features, first, num_features)
                    _add_scaled(grad_table, e01, w01 * fz, grad_features, first, num_features)
                    _add_scaled(grad_table, e11, w11 * fz, grad_features, first, num_features)

    def position_gradient(positions, table, scales, strides, offsets, hashed, grad_features, grad_positions, block):
        num_points, num_levels = len(positions) // num_dims, len(scales)
        for b in prange((num_points + block - 1) // block):
            start, stop = np.uintp(b * block), np.uintp(min((b + 1) * block, num_points))
            for level in range(num_levels):
                scale, is_hashed, offset = scales[level], hashed[level], offsets[level]
                size = offsets[level + 1] - offset
                sx, sy, sz = strides[level, 0], strides[level, 1], strides[level, 2]
                for p in range(start, stop):
                    at = p * np.uintp(num_dims)
                    cx, fx = _cell(positions[at], scale)
                    cy, fy = _cell(positions[at + np.uintp(1)], scale)
                    x, y, z, fz = cx * sx, cy * sy, 0, ZERO
                    if num_dims == 3:
                        cz, fz = _cell(positions[at + np.uintp(2)], scale)
                        z = cz * sz
                    first = p * np.uintp(num_levels * num_features) + np.uintp(level * num_features)
                    e00, e10, e01, e11 = _face(x, y, z, sx, sy, is_hashed, size, offset, num_features)
                    # n00 … n11: how much the loss wants of each entry of the face at z; f00 … f11: at z + 1.
                    n00, n10, n01, n11 = ZERO, ZERO, ZERO, ZERO
                    for f in range(np.uintp(num_features)):
                        grad = grad_features[first + f]
                        n00 += grad * table[e00 + f]
                        n10 += grad * table[e10 + f]
                        n01 += grad * table[e01 + f]
                        n11 += grad * table[e11 + f]
                    near_x0, near_x1 = n10 - n00, n11 - n01
                    along_x = near_x0 + fy * (near_x1 - near_x0)
                    along_y = n01 - n00 + fx * (near_x1 - near_x0)
                    if num_dims == 3:
                        e00, e10, e01, e11 = _face(x, y, z + sz, sx, sy, is_hashed, size, offset, num_features)
                        f00, f10, f01, f11 = ZERO, ZERO, ZERO, ZERO
                        for f in range(np.uintp(num_features)):
                            grad = grad_features[first + f]
                            f00 += grad * table[e00 + f]
                            f10 += grad * table[e10 + f]
                            f01 += grad * table[e01 + f]
                            f11 += grad * table[e11 + f]
                        far_x0, far_x1 = f10 - f00, f11 - f01
                        far_along_x = far_x0 + fy * (far_x1 - far_x0)
                        far_along_y = f01 - f00 + fx * (far_x1 - far_x0)
                        along_z = f00 - n00 + fx * (far_x0 - near_x0) + fy * (far_along_y - along_y)
                        grad_positions[at + np.uintp(2)] += scale * along_z
                        along_x += fz * (far_along_x - along_x)
                        along_y += fz * (far_along_y - along_y)
                    grad_positions[at] += scale * along_x
                    grad_positions[at + np.uintp(1)] += scale * along_y
            for at in range(start * np.uintp(num_dims), stop * np.uintp(num_dims)):
                if not (positions[at] >= ZERO and positions[at] <= ONE):
                    grad_positions[at] = ZERO

    kernels = forward, table_gradient, position_gradient
    for kernel in kernels:
        # numba's cache tells functions apart by name and code, not by what they are compiled for.
        kernel.__qualname__ += "_parallel" if parallel else "_alone"
    compile_kernel = njit(parallel=parallel, nogil=True, cache=True, fastmath=FAST, boundscheck=False)
    return tuple(compile_kernel(kernel) for kernel in kernels)


@functools.lru_cache(maxsize=64)
def _level_arrays(levels: tuple[GridLevel, ...], num_dims: int) -> tuple[np.ndarray, ...]:
    """(scales, strides, offsets, hashed) as the kernels read them; 2D levels get a third stride of 0."""
    scales = np.array([level.scale for level in levels], dtype=np.float32)
    strides = np.array([(*level.strides(num_dims), 0, 0)[:3] for level in levels], dtype=np.int64)
    offsets = np.array([level.offset for level in levels] + [levels[-1].offset + levels[-1].size], dtype=np.int64)
    return scales, strides, offsets, np.array([level.hashed for level in levels])


def _num_threads() -> int:
    """As many as torch was told to use, as far as numba has them."""
    return min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)


def _run(which: int, num_dims: int, num_features: int, *arguments) -> None:
    """Call a compiled kernel, the `which`-th of `compiled`, on `_num_threads` threads."""
    threads = _num_threads()
    kernel = compiled(num_dims, num_features, threads > 1)[which]
    if threads == 1:
        kernel(*arguments)
        return
    with _pool_lock:
        numba.set_num_threads(threads)
        kernel(*arguments)


def _flat(tensor: Tensor) -> np.ndarray:
    """The contiguous tensor's own memory as a flat NumPy array (no copy)."""
    return tensor.detach().view(-1).numpy()


def encode_without_gradient(
    positions: Float[Tensor, "n d"], table: Float[Tensor, "entries F"], levels: Sequence[GridLevel]
) -> Float[Tensor, "n out_dim"]:
    """Forward only: nothing is kept for a backward pass."""
    positions = positions.contiguous()
    num_dims, num_features = positions.shape[1], table.shape[1]
    features = torch.empty(positions.shape[0], len(levels) * num_features)
    scales, strides, offsets, hashed = _level_arrays(tuple(levels), num_dims)
    _run(
        *(FORWARD, num_dims, num_features),
        *(_flat(positions), _flat(table), scales, strides, offsets, hashed, _flat(features), BLOCK_POINTS),
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
        scales, strides, offsets, hashed = _level_arrays(ctx.levels, num_dims)
        grad_features = grad_features.contiguous()
        grad_positions = grad_table = None
        if ctx.needs_input_grad[0]:
            grad_positions = torch.zeros_like(positions)
            _run(
                *(POSITION_GRADIENT, num_dims, num_features),
                *(_flat(positions), _flat(table), scales, strides, offsets, hashed, _flat(grad_features)),
                *(_flat(grad_positions), BLOCK_POINTS),
            )
        if ctx.needs_input_grad[1]:
            # Two tasks a thread keep a machine with more threads than levels busy and evenly loaded.
            tasks = 2 * _num_threads() if _num_threads() > 1 else 1
            num_parts = 1 if tasks <= len(ctx.levels) else -(-tasks // len(ctx.levels))
            grad_parts = torch.zeros(num_parts, table.numel())
            _run(
                *(TABLE_GRADIENT, num_dims, num_features),
                *(_flat(positions), scales, strides, offsets, hashed, _flat(grad_features), grad_parts.numpy()),
            )
            grad_table = grad_parts.sum(dim=0) if num_parts > 1 else grad_parts[0]
            grad_table = grad_table.view(table.shape)
        return grad_positions, grad_table, None


def encode(
    positions: Float[Tensor, "n d"], table: Float[Tensor, "entries F"], levels: Sequence[GridLevel]
) -> Float[Tensor, "n out_dim"]:
    """Features of every level side by side, differentiable once. Positions outside [0, 1] read the edge and get no
    gradient. Tensors are float32 on the CPU."""
    if torch.is_grad_enabled() and (positions.requires_grad or table.requires_grad):
        return _Encode.apply(positions, table, tuple(levels))
    return encode_without_gradient(positions, table, levels)
