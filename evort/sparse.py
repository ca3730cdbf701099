"""Constants that leave their zeros out: how `Sparsity` stores them, both ways.

Both kinds see a constant as the matrix of its first axis by all others, W [rows, columns] (a convolution's output
channels by C/group * taps):

    "n:m"    block = (n, m): of every m consecutive items of a row, n at most are not zero.
             data [rows, ceil(columns/m)*n]; indices, of the same shape: where in its m each one was, ascending.
    "block"  block = (r, c): blocks of r rows and c columns are zero or kept as a whole.
             data [kept, r, c], in row-major order of the grid of blocks; indices: how many blocks were left out before
             each one. The largest number that their type holds stands for so many blocks left out, and none kept.

Items that stick out of the matrix are zero. Indices take 2, 4 or 8 bits (DType UINT2, UINT4, UINT8), in an array of
bytes here. What W becomes on the device is the kernels' business: evort/ops/sparse.py.
"""

from __future__ import annotations

import math

import numpy as np

from evort.graph import Sparsity
from evort.types import BITS, DType

LARGEST = 256  # of m, and of a block's rows and columns


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a constant of that shape."""
    return shape[0], math.prod(shape[1:])


def positions(sparsity: Sparsity) -> np.ndarray:
    """The number of each kept block in the grid, int64."""
    gaps, top = sparsity.indices, top_index(sparsity.index_type)
    last = np.cumsum(gaps.astype(np.int64) + (gaps != top)) - 1  # of the kept block, or of those left out
    return last[gaps != top]


def top_index(dtype: DType) -> int:
    return (1 << BITS[dtype]) - 1


def _blocks(w: np.ndarray, r: int, c: int) -> np.ndarray:
    """W filled up to whole blocks, as [grid rows, grid columns, r, c]."""
    rows, columns = w.shape
    full = np.zeros((-(-rows // r) * r, -(-columns // c) * c), w.dtype)
    full[:rows, :columns] = w
    return full.reshape(full.shape[0] // r, r, full.shape[1] // c, c).swapaxes(1, 2)


def compress(w: np.ndarray, kind: str, block: tuple[int, int]) -> tuple[np.ndarray, Sparsity]:
    """The data and the sparsity of a constant [rows, ...]. Raises ValueError where its zeros do not allow it: n:m with
    more than n items in a group."""
    w = w.reshape(matrix_shape(w.shape))
    if kind == "block":
        grid = _blocks(w, *block)
        kept = np.flatnonzero(grid.reshape(-1, block[0] * block[1]).any(axis=1))
        gaps = np.diff(kept, prepend=-1) - 1
        best = None
        for dtype in (DType.UINT4, DType.UINT8):
            top = top_index(dtype)
            indices = np.full(kept.size + int((gaps // top).sum()), top, np.uint8)
            indices[np.cumsum(gaps // top + 1) - 1] = gaps % top
            if best is None or indices.size * BITS[dtype] < best.indices.size * BITS[best.index_type]:
                best = Sparsity(kind, block, indices, dtype)
        return np.ascontiguousarray(grid.reshape(-1, *block)[kept]), best
    n, m = block
    groups = _blocks(w, 1, m)[:, :, 0]
    if (np.count_nonzero(groups, axis=2) > n).any():
        raise ValueError(f"more than {n} of {m} consecutive items are not zero")
    # Those that are not zero first, then the earliest zeros; in their order.
    order = np.sort(np.argsort(groups == 0, axis=2, kind="stable")[:, :, :n], axis=2)
    data = np.take_along_axis(groups, order, axis=2).reshape(len(w), -1)
    dtype = DType.UINT2 if m <= 4 else DType.UINT4 if m <= 16 else DType.UINT8
    return np.ascontiguousarray(data), Sparsity(kind, block, order.reshape(data.shape).astype(np.uint8), dtype)


def expand(data: np.ndarray, sparsity: Sparsity, shape: tuple[int, ...]) -> np.ndarray:
    """The constant with its zeros."""
    rows, columns = matrix_shape(shape)
    first, second = sparsity.block
    if sparsity.kind == "block":
        full = np.zeros((-(-rows // first), first, -(-columns // second), second), data.dtype)
        row, column = np.divmod(positions(sparsity), full.shape[2])
        full[row, :, column] = data
    else:
        full = np.zeros((rows, -(-columns // second), second), data.dtype)
        places = sparsity.indices.reshape(rows, -1, first).astype(np.intp)
        np.put_along_axis(full, places, data.reshape(places.shape), axis=2)
    full = full.reshape(-(-rows // first) * first if sparsity.kind == "block" else rows, -(-columns // second) * second)
    return np.ascontiguousarray(full[:rows, :columns]).reshape(shape)


def overhang(data: np.ndarray, sparsity: Sparsity, shape: tuple[int, ...]) -> bool:
    """Whether an item that sticks out of the matrix is not zero."""
    rows, columns = matrix_shape(shape)
    first, second = sparsity.block
    below, beside = rows % first if sparsity.kind == "block" else 0, columns % second
    if not (below or beside) or data.size == 0:
        return False
    if sparsity.kind == "block":
        row, column = np.divmod(positions(sparsity), -(-columns // second))
        low = below and data[row == rows // first, below:].any()
        return bool(low or (beside and data[column == columns // second, :, beside:].any()))
    last = slice(-first, None)
    return bool((data[:, last] != 0)[sparsity.indices[:, last] >= beside].any())


__all__ = ["LARGEST", "compress", "expand", "matrix_shape", "overhang", "positions", "top_index"]
