"""Bound copies: how operators that only move elements describe their work to `evort._kernels.layout`.

Two descriptions cover them. A *strided* copy reads element (i0, i1, ...) of the output at offset + sum(i * stride) of
the input (Transpose, Slice, Expand, Tile, DepthToSpace). A *take* reads it at one table of indices for each axis
(Pad in every mode, Resize "nearest", CenterCropPad). Both are simplified here, once, when shapes are known: axes of
size 1 vanish, axes that are walked as one become one, and short contiguous runs become one wider item.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from evort.ops.base import Call, Kernel
from evort.types import STORAGE, Spec

# How the innermost axis is walked (K_* in layout.pyx).
RUN, FILL, STEP, TRANSPOSE = 0, 1, 2, 3
# How the innermost axis of a take is walked: by an index for each element (with or without fills among them), by
# segments, or by repeating each element.
BY_INDEX, BY_INDEX_OR_FILL, BY_SEGMENT, BY_REPEAT = 0, 1, 2, 3
MAX_AXES = 16  # MAX_AXES in layout.pyx
WIDER = (2, 4, 8, 16)


def itemsize(spec: Spec) -> int:
    """Bytes of one element at run time."""
    return STORAGE[spec.dtype].itemsize


def joined_shapes(c: Call, axis: int, *specs: Spec) -> tuple[int, list[tuple[int, ...]]]:
    """An axis and the shapes of tensors, in the order that the memory of output 0 has."""
    if not c.outs[0].channels_last:
        return axis, [spec.shape for spec in specs]
    axes = [0, *range(2, c.outs[0].rank), 1]
    return axes.index(axis), [tuple(spec.shape[a] for a in axes) for spec in specs]


def row_major(dims: Sequence[int]) -> list[int]:
    """Strides, in elements, of a dense row-major tensor."""
    strides = [1] * len(dims)
    for i in range(len(dims) - 2, -1, -1):
        strides[i] = strides[i + 1] * dims[i + 1]
    return strides


def copy_kernel(spec: Spec) -> Kernel:
    """All of input 0 as it is; `spec` is that of the output."""
    return Kernel("layout.copy", ints=(spec.nbytes,), inputs=(0,))


def strided_kernel(item: int, dims: Sequence[int], strides: Sequence[int], offset: int = 0) -> Kernel | None:
    """The driver for a strided copy of input 0 to a dense output of shape `dims`.

    item: bytes of an element. strides, offset: in elements of the input; a stride may be zero or negative.
    """
    if prod(dims) == 0:
        return Kernel("layout.copy", ints=(0,), inputs=(0,))
    merged: list[tuple[int, int]] = []
    for d, s in zip(dims, strides, strict=True):
        if d == 1:
            continue
        if merged and merged[-1][1] == s * d:
            merged[-1] = (merged[-1][0] * d, s)
        else:
            merged.append((d, s))
    if merged and merged[-1][1] == 1:
        run = merged[-1][0]
        outer = [s for _, s in merged[:-1]]
        if run * item in WIDER and offset % run == 0 and all(s % run == 0 for s in outer):
            merged = [(d, s // run) for d, s in merged[:-1]]
            item, offset = item * run, offset // run
    merged = merged or [(1, 1)]
    if len(merged) > MAX_AXES:
        return None
    sizes, steps = [d for d, _ in merged], [s for _, s in merged]
    places = row_major(sizes)
    kind = {1: RUN, 0: FILL}.get(steps[-1], STEP)
    if kind == STEP and 1 in steps:
        kind, k = TRANSPOSE, steps.index(1)
        order = [*(i for i in range(len(sizes) - 1) if i != k), k, len(sizes) - 1]
        sizes, steps, places = ([v[i] for i in order] for v in (sizes, steps, places))
    return Kernel("layout.strided", ints=(kind, item, offset, len(sizes), *sizes, *steps, *places), inputs=(0,))


def take_kernel(
    item: int, shape: Sequence[int], tables: Sequence[np.ndarray | None], fill: int | None = None, source: int = 0
) -> Kernel | None:
    """The driver for out[i0, i1, ...] = x[t0[i0], t1[i1], ...], x of shape `shape`.

    tables: for each axis, the indices, or None where the axis is taken as it is. Index -1 gives the fill value: the
    element that input `fill` holds, or zero where that is None. source: which of the node's inputs is x.
    """
    axes: list[tuple[int, np.ndarray | None]] = []  # (size of the input's axis, table)
    for d, t in zip(shape, tables, strict=True):
        if t is not None and len(t) == d and np.array_equal(t, np.arange(d)):
            t = None
        if d == 1 and t is None:
            continue
        if t is None and axes and axes[-1][1] is None:
            axes[-1] = (axes[-1][0] * d, None)
        else:
            axes.append((d, t))
    if any((d if t is None else len(t)) == 0 for d, t in axes):
        return Kernel("layout.copy", ints=(0,), inputs=(source,))
    # A short last axis that is taken whole: one wider item for each of its runs.
    if len(axes) > 1 and axes[-1][1] is None and axes[-1][0] * item in WIDER and fill is None:
        item *= axes.pop()[0]
    axes = axes or [(1, None)]
    if len(axes) > MAX_AXES:
        return None
    sizes = [d if t is None else len(t) for d, t in axes]
    kind, last = _last_axis(np.arange(sizes[-1]) if axes[-1][1] is None else axes[-1][1], axes[-1][0])
    places, indices, at = [], [last], len(last)  # where behind the sizes each outer axis has its table; -1 for none
    for _, t in axes[:-1]:
        places.append(-1 if t is None else at)
        if t is not None:
            indices.append(t)
            at += len(t)
    head = [kind, item, len(axes), len(last), *sizes, *row_major([d for d, _ in axes]), *places]
    ints = np.concatenate([np.array(head, np.int64), *indices])
    return Kernel("layout.take", ints=ints, inputs=(source,) if fill is None else (source, fill))


def _last_axis(table: np.ndarray, size: int) -> tuple[int, np.ndarray]:
    """How the last axis is walked, for a table into `size` elements, and the numbers that say so.

    Segments are (first index, step, length); the step is 1 (a run), 0 (one element again and again) or -1; a first
    index of -1 is the fill value.
    """
    n = len(table)
    if n > size > 0 and n % size == 0 and np.array_equal(table, np.arange(n) // (n // size)):
        return BY_REPEAT, np.array([n // size])
    steps = np.diff(table)
    # A segment ends where the step changes, and where fills begin or end.
    filled = table < 0
    steps[filled[:-1] & filled[1:]] = 0
    steps[filled[:-1] ^ filled[1:]] = n + size
    segments: list[int] = []
    at = 0
    while at < n:
        step = int(steps[at]) if at < n - 1 else 0
        length = 1
        if step in (-1, 0, 1) and at < n - 1:
            ends = np.flatnonzero(steps[at:] != step)
            length = int(ends[0]) + 1 if len(ends) else n - at
        segments += (int(table[at]), step if length > 1 else 0, length)
        if len(segments) > max(3, 3 * n // 8):
            return BY_INDEX_OR_FILL if filled.any() else BY_INDEX, table
        at += length
    return BY_SEGMENT, np.array(segments)
