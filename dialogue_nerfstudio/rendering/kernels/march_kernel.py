"""Ray marching compiled by numba for CPUs: fields as block programs, every ray only as far as light gets.

Conventions: as in `rendering.march` (bins, occupancy, weights) and `fields.program` (blocks, rows, instructions). A
*worker* is a thread with a scratch of its own; workers take *tiles* of rays from one counter, so that none waits for
another's harder part of the picture. Within a tile rays advance in *waves*: every ray that light still passes queues
the next few samples of the source that comes next along it; each source's queue is evaluated in blocks of `BLOCK`
points and composited at once, so that what lies behind an opaque surface is never evaluated. Samples that weigh enough
queue for their colour. Everything is float32.

Everything compiled is in this one file, because numba's cache on disk watches the file of a function only.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import no_type_check

import numba
import numpy as np
import torch
from llvmlite import binding, ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

from dialogue_nerfstudio.encodings.kernels import numba_kernel
from dialogue_nerfstudio.fields.program import (
    CLAMP,
    DENSE,
    DENSE_ADD,
    DIRECTION,
    EXPONENTIAL,
    FREQUENCY,
    GRID,
    MULTIPLY,
    OUTPUT_TILE,
    SIGMOID,
)

BLOCK = 64
"""Points evaluated together: a multiple of every machine's vectors, with scratch that stays in the first cache."""
TILE = 512
"""Rays that advance together: enough that the last waves still fill blocks."""
FAST = {"contract", "reassoc", "nsz", "arcp", "afn"}
LANES = 16 if binding.get_host_cpu_features().get("avx512f", False) else 8
"""float32 numbers in a vector of this machine. Two vectors times four outputs are the kernel's accumulators."""
VECTORS = 2
ZERO, HALF, ONE, TWO = np.float32(0.0), np.float32(0.5), np.float32(1.0), np.float32(2.0)
MAX_OPTICAL_DEPTH = np.float32(16.0)


@contextlib.contextmanager
def threads() -> Iterator[int]:
    """numba's pool for the time of some kernel calls, on as many threads as torch was told to use: their number.

    The pool must not be entered by two Python threads at once; the hash grid's kernel uses the same one.
    """
    with numba_kernel._pool_lock:
        number = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
        numba.set_num_threads(number)
        yield number


# Pieces that numba has no words for -----------------------------------------------------------------------------------


@intrinsic
@no_type_check
def _dense_tile(typing_context, weights, weights_at, scratch, input_at, output_at, stride, num_inputs, add, floor):
    """OUTPUT_TILE outputs of VECTORS · LANES points: sums stay in registers over all inputs, which loops that LLVM
    vectorises by itself do not achieve (they store them after every input)."""
    signature = types.void(weights, types.intp, scratch, *(5 * [types.intp]), types.float32)
    vector = ir.VectorType(ir.FloatType(), LANES)
    index = ir.IntType(64)

    def splat(builder, number):
        start = builder.insert_element(ir.Constant(vector, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        return builder.shuffle_vector(start, ir.Constant(vector, ir.Undefined), mask)

    def generate(context, builder, sig, arguments):
        weights_array = arrayobj.make_array(sig.args[0])(context, builder, value=arguments[0]).data
        scratch_array = arrayobj.make_array(sig.args[2])(context, builder, value=arguments[2]).data
        weights_at, input_at, output_at, stride, num_inputs, add, floor = arguments[1], *arguments[3:]

        def vector_at(at, offset):
            place = builder.gep(scratch_array, [builder.add(at, ir.Constant(index, offset))])
            return builder.bitcast(place, vector.as_pointer())

        def outputs(body):
            for output in range(OUTPUT_TILE):
                row = builder.add(output_at, builder.mul(stride, ir.Constant(index, output)))
                for part in range(VECTORS):
                    body(output, part, vector_at(row, part * LANES))

        sums = [[cgutils.alloca_once(builder, vector) for _ in range(VECTORS)] for _ in range(OUTPUT_TILE)]
        bias_at = builder.add(weights_at, builder.mul(num_inputs, ir.Constant(index, OUTPUT_TILE)))
        with builder.if_else(builder.icmp_signed("!=", add, ir.Constant(index, 0))) as (then, otherwise):
            with then:
                outputs(lambda o, p, place: builder.store(builder.load(place, align=4), sums[o][p]))
            with otherwise:
                for output in range(OUTPUT_TILE):
                    place = builder.gep(weights_array, [builder.add(bias_at, ir.Constant(index, output))])
                    bias = splat(builder, builder.load(place))
                    for part in range(VECTORS):
                        builder.store(bias, sums[output][part])
        with cgutils.for_range(builder, num_inputs) as loop:
            row = builder.add(input_at, builder.mul(stride, loop.index))
            values = [builder.load(vector_at(row, part * LANES), align=4) for part in range(VECTORS)]
            weight_row = builder.add(weights_at, builder.mul(loop.index, ir.Constant(index, OUTPUT_TILE)))
            for output in range(OUTPUT_TILE):
                place = builder.gep(weights_array, [builder.add(weight_row, ir.Constant(index, output))])
                weight = splat(builder, builder.load(place))
                for part in range(VECTORS):
                    product = builder.fmul(weight, values[part], flags=("contract",))
                    total = builder.fadd(builder.load(sums[output][part]), product, flags=("contract",))
                    builder.store(total, sums[output][part])
        low = splat(builder, floor)

        def finish(output, part, place):
            total = builder.load(sums[output][part])
            builder.store(builder.select(builder.fcmp_ordered(">", total, low), total, low), place, align=4)

        outputs(finish)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
@no_type_check
def _float_of_bits(typing_context, bits):
    def generate(context, builder, sig, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic
@no_type_check
def _lowest_bit(typing_context, bits):
    """Index of the lowest bit that is set; 64 of 0."""

    def generate(context, builder, sig, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), generate


@intrinsic
@no_type_check
def _take_next(typing_context, counter):
    """Reads and increments counter[0], across threads."""

    def generate(context, builder, sig, arguments):
        data = arrayobj.make_array(sig.args[0])(context, builder, value=arguments[0]).data
        return builder.atomic_rmw("add", data, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counter), generate


@intrinsic
@no_type_check
def _corner_pairs(typing_context, address, index, weight, at):
    """Σ over 8 corners of weight · the pair of float32 numbers at index, corner c's at `at` + c · BLOCK, from a table
    given by its address. A pair is one load and one multiplication, which LLVM does not see by itself."""
    pair = ir.VectorType(ir.FloatType(), 2)
    signature = types.UniTuple(types.float32, 2)(types.int64, index, weight, types.uintp)

    def generate(context, builder, sig, arguments):
        base = builder.inttoptr(arguments[0], pair.as_pointer())
        index_data = arrayobj.make_array(sig.args[1])(context, builder, value=arguments[1]).data
        weight_data = arrayobj.make_array(sig.args[2])(context, builder, value=arguments[2]).data
        mask = ir.Constant(ir.VectorType(ir.IntType(32), 2), [0, 0])
        undefined = ir.Constant(pair, ir.Undefined)
        sums = [None, None]
        for corner in range(8):
            place = builder.add(arguments[3], ir.Constant(ir.IntType(64), corner * BLOCK))
            entry = builder.zext(builder.load(builder.gep(index_data, [place])), ir.IntType(64))
            values = builder.load(builder.gep(base, [entry]), align=4)
            number = builder.load(builder.gep(weight_data, [place]))
            number = builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0))
            product = builder.fmul(builder.shuffle_vector(number, undefined, mask), values, flags=("contract",))
            half = corner % 2
            sums[half] = product if sums[half] is None else builder.fadd(sums[half], product, flags=("contract",))
        total = builder.fadd(sums[0], sums[1])
        parts = [builder.extract_element(total, ir.Constant(ir.IntType(32), f)) for f in (0, 1)]
        return context.make_tuple(builder, sig.return_type, parts)

    return signature, generate


@intrinsic
@no_type_check
def _number_at(typing_context, address, at):
    """One float32 number, from a table given by its address."""

    def generate(context, builder, sig, arguments):
        base = builder.inttoptr(arguments[0], ir.FloatType().as_pointer())
        return builder.load(builder.gep(base, [arguments[1]]))

    return types.float32(types.int64, types.int64), generate


@njit(fastmath=FAST, error_model="numpy", inline="always")
@no_type_check
def _exp(x):
    """exp to 2e-7 relative, in plain arithmetic that LLVM vectorises; x is clamped to ±87."""
    x = min(max(x, np.float32(-87.0)), np.float32(87.0))
    whole = np.int32(x * np.float32(1.4426950408889634) + np.float32(192.5)) - np.int32(192)
    n = np.float32(whole)
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + HALF
    p = p * r * r + r + ONE
    return p * _float_of_bits((whole + np.int32(127)) << np.int32(23))


@njit(fastmath=FAST, error_model="numpy", inline="always")
@no_type_check
def _sin_turns(turns):
    """sin 2πx to 3e-7, for |x| of at most some thousands."""
    x = turns - np.float32(np.floor(turns + HALF))
    # Onto [−¼, ¼], where a short odd polynomial is exact enough.
    folded = x if abs(x) <= np.float32(0.25) else (HALF - x if x > ZERO else -HALF - x)
    y = folded * np.float32(2.0 * math.pi)
    s = y * y
    p = np.float32(-2.3889859e-08)
    p = p * s + np.float32(2.7525562e-06)
    p = p * s + np.float32(-1.9840874e-04)
    p = p * s + np.float32(8.3333310e-03)
    p = p * s + np.float32(-1.6666667e-01)
    return y + y * s * p


# Programs -------------------------------------------------------------------------------------------------------------


@njit(fastmath=FAST, error_model="numpy")
@no_type_check
def _grid_level(
    scratch, position, out, num_features, scale, table, offset, size, hashed, stride_y, stride_z, index, weight
):
    """One level of a hash grid for a block: first all corners' places and weights, then the look-ups."""
    mask, wrap, sy, sz = np.uint32(size - 1), np.uint32(size), np.uint32(stride_y), np.uint32(stride_z)
    # Unsigned throughout, because numba checks signed indices for Python's counting from the end.
    x_at, y_at = np.uintp(position * BLOCK), np.uintp((position + 1) * BLOCK)
    z_at = np.uintp((position + 2) * BLOCK)
    for p in range(np.uintp(BLOCK)):
        x = min(max(scratch[x_at + p], ZERO), ONE) * scale + HALF
        y = min(max(scratch[y_at + p], ZERO), ONE) * scale + HALF
        z = min(max(scratch[z_at + p], ZERO), ONE) * scale + HALF
        cx, cy, cz = np.int32(x), np.int32(y), np.int32(z)
        fx, fy, fz = x - np.float32(cx), y - np.float32(cy), z - np.float32(cz)
        x0, y0, z0 = np.uint32(cx), np.uint32(cy) * sy, np.uint32(cz) * sz
        x1, y1, z1 = x0 + np.uint32(1), y0 + sy, z0 + sz
        if hashed:
            index[p] = (x0 ^ y0 ^ z0) & mask
            index[p + np.uintp(BLOCK)] = (x1 ^ y0 ^ z0) & mask
            index[p + np.uintp(2 * BLOCK)] = (x0 ^ y1 ^ z0) & mask
            index[p + np.uintp(3 * BLOCK)] = (x1 ^ y1 ^ z0) & mask
            index[p + np.uintp(4 * BLOCK)] = (x0 ^ y0 ^ z1) & mask
            index[p + np.uintp(5 * BLOCK)] = (x1 ^ y0 ^ z1) & mask
            index[p + np.uintp(6 * BLOCK)] = (x0 ^ y1 ^ z1) & mask
            index[p + np.uintp(7 * BLOCK)] = (x1 ^ y1 ^ z1) & mask
        else:
            # Only the shifted last half cell overruns, by less than one grid.
            i = x0 + y0 + z0
            index[p] = i - wrap if i >= wrap else i
            i = x1 + y0 + z0
            index[p + np.uintp(BLOCK)] = i - wrap if i >= wrap else i
            i = x0 + y1 + z0
            index[p + np.uintp(2 * BLOCK)] = i - wrap if i >= wrap else i
            i = x1 + y1 + z0
            index[p + np.uintp(3 * BLOCK)] = i - wrap if i >= wrap else i
            i = x0 + y0 + z1
            index[p + np.uintp(4 * BLOCK)] = i - wrap if i >= wrap else i
            i = x1 + y0 + z1
            index[p + np.uintp(5 * BLOCK)] = i - wrap if i >= wrap else i
            i = x0 + y1 + z1
            index[p + np.uintp(6 * BLOCK)] = i - wrap if i >= wrap else i
            i = x1 + y1 + z1
            index[p + np.uintp(7 * BLOCK)] = i - wrap if i >= wrap else i
        w11 = fx * fy
        w10, w01 = fx - w11, fy - w11
        w00 = ONE - fx - w01
        nearer = ONE - fz
        weight[p] = w00 * nearer
        weight[p + np.uintp(BLOCK)] = w10 * nearer
        weight[p + np.uintp(2 * BLOCK)] = w01 * nearer
        weight[p + np.uintp(3 * BLOCK)] = w11 * nearer
        weight[p + np.uintp(4 * BLOCK)] = w00 * fz
        weight[p + np.uintp(5 * BLOCK)] = w10 * fz
        weight[p + np.uintp(6 * BLOCK)] = w01 * fz
        weight[p + np.uintp(7 * BLOCK)] = w11 * fz
    if num_features == 2:
        base = table + 8 * offset
        out_at = np.uintp(out * BLOCK)
        for p in range(np.uintp(BLOCK)):
            first, second = _corner_pairs(base, index, weight, p)
            scratch[out_at + p] = first
            scratch[out_at + np.uintp(BLOCK) + p] = second
    else:
        base = table + 4 * num_features * offset
        for f in range(num_features):
            for p in range(BLOCK):
                value = ZERO
                for corner in range(8):
                    at = corner * BLOCK + p
                    value += weight[at] * _number_at(base, np.int64(index[at]) * num_features + f)
                scratch[(out + f) * BLOCK + p] = value


@njit(fastmath=FAST, error_model="numpy")
@no_type_check
def _run_pointwise(operation, first, count, out, num_out, weights, at, scratch):
    """The instructions that are one loop over points; places are unsigned."""
    block = np.uintp(BLOCK)
    if operation == SIGMOID:
        for p in range(first, first + count * block):
            scratch[p] = ONE / (ONE + _exp(-scratch[p]))
    elif operation == CLAMP:
        for p in range(first, first + count * block):
            scratch[p] = min(max(scratch[p], ZERO), ONE)
    elif operation == MULTIPLY:
        by = np.uintp(num_out) * block
        for row in range(count):
            for p in range(block):
                scratch[out + row * block + p] = scratch[first + row * block + p] * scratch[by + p]
    elif operation == FREQUENCY:
        for p in range(np.uintp(3) * block):
            x = scratch[first + p]
            scratch[out + p] = x
            scratch[out + np.uintp(3) * block + p] = _sin_turns(HALF * x)
            scratch[out + np.uintp(6) * block + p] = _sin_turns(HALF * x + np.float32(0.25))
        for octave in range(1, num_out):
            below = out + np.uintp(6 * octave - 3) * block
            for p in range(np.uintp(3) * block):
                sine, cosine = scratch[below + p], scratch[below + np.uintp(3) * block + p]
                scratch[below + np.uintp(6) * block + p] = TWO * sine * cosine
                scratch[below + np.uintp(9) * block + p] = ONE - TWO * sine * sine
    elif operation == EXPONENTIAL:
        scale = weights[at]
        for p in range(block):
            scratch[out + p] = scale * _exp(min(max(scratch[first + p], np.float32(-12.0)), np.float32(9.0)))
    elif operation == DIRECTION:
        for p in range(block):
            x, y, z = scratch[first + p], scratch[first + block + p], scratch[first + np.uintp(2) * block + p]
            scratch[out + p] = x
            scratch[out + block + p] = y
            scratch[out + np.uintp(2) * block + p] = z
            scratch[out + np.uintp(3) * block + p] = x * y
            scratch[out + np.uintp(4) * block + p] = y * z
            scratch[out + np.uintp(5) * block + p] = x * z
            scratch[out + np.uintp(6) * block + p] = x * x - y * y
            scratch[out + np.uintp(7) * block + p] = np.float32(3.0) * z * z - ONE


@njit(fastmath=FAST, error_model="numpy")
@no_type_check
def _run_program(instructions, start, stop, weights, scratch, index, corner_weight):
    """Runs instructions start … stop on one block."""
    for i in range(start, stop):
        operation, first, count = instructions[i, 0], instructions[i, 1] * BLOCK, instructions[i, 2]
        out, num_out, at = instructions[i, 3] * BLOCK, instructions[i, 4], instructions[i, 5]
        if operation in (DENSE, DENSE_ADD):
            floor = ZERO if instructions[i, 6] else np.float32(-3.0e38)
            for output in range(0, num_out, OUTPUT_TILE):
                weights_at = at + output * (count + 1)
                for p in range(0, BLOCK, VECTORS * LANES):
                    _dense_tile(
                        weights, weights_at, scratch, first + p, out + output * BLOCK + p, BLOCK, count,
                        operation == DENSE_ADD, floor,
                    )  # fmt: skip
        elif operation == GRID:
            _grid_level(
                scratch, instructions[i, 1], instructions[i, 3], num_out, weights[at], instructions[i, 6],
                instructions[i, 7], instructions[i, 8], instructions[i, 9] != 0, instructions[i, 10],
                instructions[i, 11], index, corner_weight,
            )  # fmt: skip
        else:
            _run_pointwise(operation, np.uintp(first), np.uintp(count), np.uintp(out), num_out, weights, at, scratch)


# Rays -----------------------------------------------------------------------------------------------------------------


@njit(fastmath=FAST, error_model="numpy")
@no_type_check
def _carry(transform, origins, directions, ray):
    """A ray in a source's space: x ↦ Rᵀ (x − t), transform [3, 4] = (R ‖ t)."""
    ox = origins[ray, 0] - transform[0, 3]
    oy = origins[ray, 1] - transform[1, 3]
    oz = origins[ray, 2] - transform[2, 3]
    dx, dy, dz = directions[ray, 0], directions[ray, 1], directions[ray, 2]
    return (
        ox * transform[0, 0] + oy * transform[1, 0] + oz * transform[2, 0],
        ox * transform[0, 1] + oy * transform[1, 1] + oz * transform[2, 1],
        ox * transform[0, 2] + oy * transform[1, 2] + oz * transform[2, 2],
        dx * transform[0, 0] + dy * transform[1, 0] + dz * transform[2, 0],
        dx * transform[0, 1] + dy * transform[1, 1] + dz * transform[2, 1],
        dx * transform[0, 2] + dy * transform[1, 2] + dz * transform[2, 2],
    )


@njit(fastmath=FAST, error_model="numpy")
@no_type_check
def _slab(origin, direction, low, high, near, far):
    if abs(direction) < np.float32(1e-12):
        direction = np.float32(-1e-12) if direction < ZERO else np.float32(1e-12)
    inverse = ONE / direction
    a, b = (low - origin) * inverse, (high - origin) * inverse
    return max(near, min(a, b)), min(far, max(a, b))


@njit(fastmath=FAST, error_model="numpy")
@no_type_check
def _occupied(occupancy, resolution, sx, sy, sz, kx, ky, kz, t):
    top = np.float32(resolution - 1)
    x = np.int64(min(max(sx + t * kx, ZERO), top))
    y = np.int64(min(max(sy + t * ky, ZERO), top))
    z = np.int64(min(max(sz + t * kz, ZERO), top))
    return occupancy[x + resolution * (y + resolution * z)]


@njit(parallel=True, nogil=True, cache=True, fastmath=FAST, error_model="numpy")
@no_type_check
def find_samples(
    origins, directions, transforms, boxes, occupancies, resolution, num_samples, stops, near_out, width_out, live
):
    """Where each ray may meet each source: the interval between the first and the last occupied of `resolution` probes,
    and which of its `num_samples` bins lie in occupied cells, as bits.

    Args:
        origins, directions: [R, 3] in the space that `transforms` lead out of.
        transforms: [sources, 3, 4], from a source's space to that of the rays.
        boxes: [sources, 2, 3]; occupancies: [sources, cells] bool; num_samples: [sources], at most 64.
        stops: [R] where each ray ends.
        near_out, width_out: [sources, R] where the interval begins, and its bins' width. live: [sources, R] bits.
    """
    for ray in prange(len(origins)):
        for s in range(len(transforms)):
            live[s, ray] = 0
            ox, oy, oz, dx, dy, dz = _carry(transforms[s], origins, directions, ray)
            box = boxes[s]
            near, far = ZERO, np.float32(3.0e38)
            near, far = _slab(ox, dx, box[0, 0], box[1, 0], near, far)
            near, far = _slab(oy, dy, box[0, 1], box[1, 1], near, far)
            near, far = _slab(oz, dz, box[0, 2], box[1, 2], near, far)
            if not far > near:
                continue
            size = np.float32(resolution)
            cx, cy, cz = size / (box[1, 0] - box[0, 0]), size / (box[1, 1] - box[0, 1]), size / (box[1, 2] - box[0, 2])
            sx, sy, sz = (ox - box[0, 0]) * cx, (oy - box[0, 1]) * cy, (oz - box[0, 2]) * cz
            kx, ky, kz = dx * cx, dy * cy, dz * cz
            occupancy = occupancies[s]
            width = (far - near) / size
            first = 0
            while first < resolution and not _occupied(
                occupancy, resolution, sx, sy, sz, kx, ky, kz, near + (np.float32(first) + HALF) * width
            ):
                first += 1
            if first == resolution:
                continue
            last = resolution - 1
            while not _occupied(
                occupancy, resolution, sx, sy, sz, kx, ky, kz, near + (np.float32(last) + HALF) * width
            ):
                last -= 1
            start, stop = near + np.float32(first) * width, near + np.float32(last + 1) * width
            stop = min(stop, stops[ray])
            if not stop > start:
                continue
            width = (stop - start) / np.float32(num_samples[s])
            bits = np.uint64(0)
            for b in range(num_samples[s]):
                if _occupied(occupancy, resolution, sx, sy, sz, kx, ky, kz, start + (np.float32(b) + HALF) * width):
                    bits |= np.uint64(1) << np.uint64(b)
            near_out[s, ray], width_out[s, ray], live[s, ray] = start, width, bits


@njit(fastmath=FAST, error_model="numpy")
@no_type_check
def _colour_block(
    count, source, begins, layout, instructions, weights, scratch, index, corner_weight, rays, weight, light
):
    """Colours one block's queued samples and adds them to their rays' light."""
    _run_program(instructions, begins[2 * source + 1], begins[2 * source + 2], weights, scratch, index, corner_weight)
    red = layout[source, 3] * BLOCK
    for p in range(count):
        ray, w = rays[p], weight[p]
        light[ray, 0] += w * scratch[red + p]
        light[ray, 1] += w * scratch[red + BLOCK + p]
        light[ray, 2] += w * scratch[red + 2 * BLOCK + p]
        light[ray, 3] += w


@njit(parallel=True, nogil=True, cache=True, fastmath=FAST, error_model="numpy")
@no_type_check
def march_rays(
    origins, directions, transforms, rays, near, width, live, begins, layout, instructions, weights, num_rows,
    background, colour_threshold, termination_threshold, wave, num_workers, counter, rgb, depth, opacity, evaluated,
):  # fmt: skip
    """Renders the rays that meet a source; the others are left as they are.

    Args:
        rays: [A] which rays those are.
        near, width, live: what `find_samples` found.
        begins: where each source's density and colour instructions begin, in turn.
        layout: [sources, 4] density row, first and last geometry row, row of red.
        wave: samples of a ray evaluated at a time.
        counter: [1] zero.
        rgb: [R, 3], depth: [R] (Σ w t), opacity: [R, sources]: written for `rays`.
        evaluated: [workers, sources, 2] zeros: densities and colours computed.
    """
    num_sources, num_tiles = len(transforms), (len(rays) + TILE - 1) // TILE
    for worker in prange(num_workers):
        scratch = np.zeros(num_rows * BLOCK, dtype=np.float32)
        colour_scratch = np.zeros((num_sources, num_rows * BLOCK), dtype=np.float32)
        index = np.zeros(8 * BLOCK, dtype=np.uint32)
        corner_weight = np.zeros(8 * BLOCK, dtype=np.float32)
        optical = np.zeros(BLOCK, dtype=np.float32)
        queue_ray = np.zeros((num_sources, TILE * wave), dtype=np.int32)
        queue_t = np.zeros((num_sources, TILE * wave), dtype=np.float32)
        queued = np.zeros(num_sources, dtype=np.int64)
        colour_ray = np.zeros((num_sources, BLOCK), dtype=np.int32)
        colour_weight = np.zeros((num_sources, BLOCK), dtype=np.float32)
        colours = np.zeros(num_sources, dtype=np.int64)
        bits = np.zeros((num_sources, TILE), dtype=np.uint64)
        own = np.zeros((num_sources, TILE, 6), dtype=np.float32)
        through = np.zeros(TILE, dtype=np.float32)
        light = np.zeros((TILE, 4), dtype=np.float32)
        alive = np.zeros(TILE, dtype=np.int32)
        while True:
            tile = _take_next(counter)
            if tile >= num_tiles:
                break
            tile_start = tile * TILE
            tile_rays = min(TILE, len(rays) - tile_start)
            for local in range(tile_rays):
                ray = rays[tile_start + local]
                alive[local], through[local] = local, ONE
                depth[ray] = ZERO
                for c in range(4):
                    light[local, c] = ZERO
                for s in range(num_sources):
                    opacity[ray, s] = ZERO
                    bits[s, local] = live[s, ray]
                    carried = _carry(transforms[s], origins, directions, ray)
                    for c in range(6):
                        own[s, local, c] = carried[c]
            num_alive = tile_rays
            while num_alive > 0:
                for s in range(num_sources):
                    queued[s] = 0
                still = 0
                for a in range(num_alive):
                    local = alive[a]
                    if through[local] <= termination_threshold:
                        continue
                    ray = rays[tile_start + local]
                    best, best_t, second_t, second = -1, np.float32(3.0e38), np.float32(3.0e38), -1
                    for s in range(num_sources):
                        if bits[s, local]:
                            b = np.float32(_lowest_bit(bits[s, local]))
                            t = near[s, ray] + (b + HALF) * width[s, ray]
                            if t < best_t:
                                second, second_t = best, best_t
                                best, best_t = s, t
                            elif t < second_t:
                                second, second_t = s, t
                    if best < 0:
                        continue
                    alive[still] = local
                    still += 1
                    # Of equal depths the earlier source comes first, as everywhere.
                    start, step, left, taken = near[best, ray], width[best, ray], bits[best, local], 0
                    while taken < wave and left:
                        t = start + (np.float32(_lowest_bit(left)) + HALF) * step
                        if t > second_t or (t == second_t and second < best):
                            break
                        queue_ray[best, queued[best]], queue_t[best, queued[best]] = local, t
                        queued[best] += 1
                        left &= left - np.uint64(1)
                        taken += 1
                    bits[best, local] = left
                num_alive = still
                for s in range(num_sources):
                    density_row, geometry, geometry_stop = layout[s, 0] * BLOCK, layout[s, 1], layout[s, 2]
                    for block in range(0, queued[s], BLOCK):
                        count = min(BLOCK, queued[s] - block)
                        for p in range(count):
                            local, t = queue_ray[s, block + p], queue_t[s, block + p]
                            for c in range(3):
                                scratch[c * BLOCK + p] = own[s, local, c] + t * own[s, local, 3 + c]
                                scratch[(3 + c) * BLOCK + p] = own[s, local, 3 + c]
                            optical[p] = width[s, rays[tile_start + local]]
                        _run_program(
                            instructions, begins[2 * s], begins[2 * s + 1], weights, scratch, index, corner_weight
                        )
                        evaluated[worker, s, 0] += count
                        for p in range(BLOCK):
                            tau = min(optical[p] * scratch[density_row + p], MAX_OPTICAL_DEPTH)
                            optical[p] = _exp(-tau)
                        for p in range(count):
                            local = queue_ray[s, block + p]
                            before = through[local]
                            if before <= termination_threshold:
                                continue
                            after = before * optical[p]
                            through[local] = after
                            # What little light would still pass counts as stopped here.
                            w = before - after if after > termination_threshold else before
                            ray = rays[tile_start + local]
                            opacity[ray, s] += w
                            depth[ray] += w * queue_t[s, block + p]
                            if w > colour_threshold:
                                to = colours[s]
                                for row in range(3, 6):
                                    colour_scratch[s, row * BLOCK + to] = scratch[row * BLOCK + p]
                                for row in range(geometry, geometry_stop):
                                    colour_scratch[s, row * BLOCK + to] = scratch[row * BLOCK + p]
                                colour_ray[s, to], colour_weight[s, to] = local, w
                                colours[s] = to + 1
                                if to + 1 == BLOCK:
                                    _colour_block(
                                        BLOCK, s, begins, layout, instructions, weights, colour_scratch[s], index,
                                        corner_weight, colour_ray[s], colour_weight[s], light,
                                    )  # fmt: skip
                                    evaluated[worker, s, 1] += BLOCK
                                    colours[s] = 0
            for s in range(num_sources):
                if colours[s]:
                    _colour_block(
                        colours[s], s, begins, layout, instructions, weights, colour_scratch[s], index, corner_weight,
                        colour_ray[s], colour_weight[s], light,
                    )  # fmt: skip
                    evaluated[worker, s, 1] += colours[s]
                    colours[s] = 0
            for local in range(tile_rays):
                ray = rays[tile_start + local]
                seen = ZERO if through[local] <= termination_threshold else through[local]
                # Samples too faint for a colour of their own share that of the others.
                coloured = light[local, 3]
                share = (ONE - seen) / coloured if coloured > ZERO else ZERO
                behind = seen if coloured > ZERO else ONE
                for c in range(3):
                    rgb[ray, c] = share * light[local, c] + behind * background[ray, c]
