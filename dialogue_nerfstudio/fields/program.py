"""Fields as programs: short lists of block instructions that a compiled kernel runs without knowing the field.

Convention: a program works on a block of points in a scratch of rows, one row a unit, one column a point, so that every
instruction is a loop over neighbouring columns. Rows 0 … 2 hold the point's position (metres, in the field's space) and
rows 3 … 5 the ray's direction (unit length); the rest is the program's own. All that is constant over a picture is
already multiplied into the weights. Programs are for inference: nothing is differentiable.

An instruction is a row of `INSTRUCTION_SIZE` whole numbers: operation, first input row, number of inputs, first output
row, number of outputs, place of its numbers in `weights`, and six more that GRID alone uses.
"""

from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from dialogue_nerfstudio.encodings.hash_grid import HashGrid
from dialogue_nerfstudio.fields.conditioning import DIRECTION_SIZE

DENSE, DENSE_ADD, GRID, SIGMOID, MULTIPLY, FREQUENCY, EXPONENTIAL, DIRECTION, CLAMP = range(9)
"""Operations.

DENSE       out = bias + W in
DENSE_ADD   out += W in
GRID        one level of a hash grid at the positions in 3 rows, clamped to [0, 1]
SIGMOID     in place
MULTIPLY    out = in · the row named by the number of outputs
FREQUENCY   `conditioning.frequency_encoding` of 3 rows, as many octaves as the number of outputs says
EXPONENTIAL out = weight · exp(in), clamped as in `conditioning.exponential_density`
DIRECTION   `conditioning.direction_encoding` of 3 rows
CLAMP       to [0, 1], in place
"""

INSTRUCTION_SIZE = 12
OUTPUT_TILE = 4
"""Outputs that the kernel computes at a time: a DENSE writes a multiple of them, the surplus rows zero."""
POSITION_ROW, DIRECTION_ROW, FIRST_FREE_ROW = 0, 3, 6


@dataclass(frozen=True)
class Program:
    """Instructions and their numbers."""

    instructions: Int64[np.ndarray, "n 12"]
    weights: Float32[np.ndarray, " m"]
    num_rows: int
    """Rows of scratch."""
    keep_alive: Tuple[Tensor, ...] = ()
    """Tables that instructions point into."""


@dataclass(frozen=True)
class FieldProgram:
    """A field as the compiled march sees it, for one participant and one frame."""

    density: Program
    density_row: int
    """Where the density program leaves the density, 1/m."""
    geometry: Tuple[int, int]
    """Rows [first, stop) of the density program that the colour program finds in its own rows of the same numbers."""
    colour: Program
    colour_row: int
    """Where the colour program leaves red; green and blue follow."""


class ProgramBuilder:
    """Collects instructions and hands out rows.

    Args:
        first_row: rows before it are in use.
    """

    def __init__(self, first_row: int = FIRST_FREE_ROW) -> None:
        self._instructions: List[List[int]] = []
        self._weights: List[np.ndarray] = []
        self._num_weights = 0
        self._num_rows = first_row
        self._tables: List[Tensor] = []

    def rows(self, count: int) -> int:
        """The first of `count` fresh rows, which follow those handed out before."""
        self._num_rows += count
        return self._num_rows - count

    def dense(
        self,
        first: int,
        weight: Float[Tensor, "num_in num_out"],
        bias: Optional[Float[Tensor, " num_out"]] = None,
        relu: bool = False,
        out: Optional[int] = None,
    ) -> int:
        """bias + weightᵀ in, into fresh rows or from row `out` on, where `padded(num_out)` rows are written."""
        out = self.rows(padded(weight.shape[1])) if out is None else out
        self._dense(DENSE, first, out, weight, bias, relu)
        return out

    def dense_add(self, first: int, weight: Float[Tensor, "num_in num_out"], out: int, relu: bool = False) -> None:
        """out += weightᵀ in, to follow a `dense` of as many outputs."""
        self._dense(DENSE_ADD, first, out, weight, None, relu)

    def _dense(self, operation: int, first: int, out: int, weight: Tensor, bias: Optional[Tensor], relu: bool) -> None:
        num_in, num_out = weight.shape
        wide = np.zeros((num_in + 1, padded(num_out)), dtype=np.float32)
        wide[:num_in, :num_out] = weight.detach().numpy()
        if bias is not None:
            wide[num_in, :num_out] = bias.detach().numpy()
        # Tile after tile, and within a tile input after input: the order in which the kernel reads them.
        tiles = wide.reshape(num_in + 1, -1, OUTPUT_TILE).transpose(1, 0, 2)
        self._add(operation, first, num_in, out, wide.shape[1], tiles, int(relu))

    def grid(self, first: int, grid: HashGrid, out: int) -> None:
        """Features of `grid`, level after level, at positions of [0, 1] in three rows.

        A grid of two dimensions reads the first two. It is one of three whose third axis has a stride of zero: both its
        ends are then the same entry, and their weights add up to the plane's.
        """
        num_features = grid.config.features_per_level
        self._tables.append(grid.table)
        for level in grid.levels:
            strides = (*level.strides(grid.config.num_dims), 0)
            place = (grid.table.data_ptr(), level.offset, level.size, int(level.hashed), strides[1], strides[2])
            self._add(GRID, first, 3, out, num_features, np.array([level.scale]), *place)
            out += num_features

    def sigmoid(self, first: int, count: int) -> None:
        """In place."""
        self._add(SIGMOID, first, count, first, count)

    def clamp(self, first: int, count: int) -> None:
        """To [0, 1], in place."""
        self._add(CLAMP, first, count, first, count)

    def multiply(self, first: int, count: int, by: int, out: int) -> None:
        """out = rows · row `by`."""
        self._add(MULTIPLY, first, count, out, by)

    def frequency(self, first: int, num_frequencies: int) -> int:
        """`frequency_encoding` of three rows, in fresh rows."""
        out = self.rows(3 * (1 + 2 * num_frequencies))
        self._add(FREQUENCY, first, 3, out, num_frequencies)
        return out

    def exponential(self, first: int, scale: float) -> int:
        """`exponential_density` of a row, in a fresh one."""
        out = self.rows(1)
        self._add(EXPONENTIAL, first, 1, out, 1, np.array([scale]))
        return out

    def direction(self, first: int) -> int:
        """`direction_encoding` of three rows, in fresh rows."""
        out = self.rows(DIRECTION_SIZE)
        self._add(DIRECTION, first, 3, out, DIRECTION_SIZE)
        return out

    def finish(self) -> Program:
        """The program."""
        weights = np.concatenate(self._weights) if self._weights else np.zeros(0)
        return Program(
            np.array(self._instructions, dtype=np.int64).reshape(-1, INSTRUCTION_SIZE),
            weights.astype(np.float32),
            self._num_rows,
            tuple(self._tables),
        )

    def _add(
        self,
        operation: int,
        first: int,
        count: int,
        out: int,
        num_out: int,
        numbers: Optional[np.ndarray] = None,
        *more: int,
    ) -> None:
        row = [operation, first, count, out, num_out, self._num_weights, *more]
        self._instructions.append(row + [0] * (INSTRUCTION_SIZE - len(row)))
        if numbers is not None:
            self._weights.append(numbers.reshape(-1))
            self._num_weights += numbers.size


def join(programs: Sequence[Program]) -> Tuple[Int64[np.ndarray, "n 12"], Float32[np.ndarray, " m"], List[int]]:
    """All programs as one: (instructions, weights, where each program's instructions begin and, last, end)."""
    instructions, begins, num_weights = [], [0], 0
    for program in programs:
        moved = program.instructions.copy()
        moved[:, 5] += num_weights
        num_weights += len(program.weights)
        instructions.append(moved)
        begins.append(begins[-1] + len(moved))
    return np.concatenate(instructions), np.concatenate([p.weights for p in programs]), begins


def padded(num_outputs: int) -> int:
    """Rows that a DENSE of so many outputs writes."""
    return -(-num_outputs // OUTPUT_TILE) * OUTPUT_TILE


def matrix(linear: torch.nn.Linear) -> Float[Tensor, "num_in num_out"]:
    """A layer's weight as `ProgramBuilder.dense` takes it."""
    return linear.weight.t()
