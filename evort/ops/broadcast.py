"""Broadcasting as NumPy and ONNX have it, and the loops that a driver walks it with."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from evort.ops.base import Call

# OPERANDS and RANK of _kernels/elementwise.pyx: most operands and loops that a driver walks.
MAX_OPERANDS = 8
MAX_LOOPS = 8


def broadcast(c: Call, *shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that all shapes broadcast to. Raises ShapeError where they do not."""
    if shapes.count(shapes[0]) == len(shapes):
        return shapes[0]
    out: list[int] = []
    for shape in shapes:
        if len(shape) > len(out):
            out = [1] * (len(shape) - len(out)) + out
        start = len(out) - len(shape)
        for i, d in enumerate(shape, start):
            if d != 1:
                if out[i] not in (1, d):
                    raise c.error(f"shapes {', '.join(str(list(s)) for s in shapes)} do not broadcast")
                out[i] = d
    return tuple(out)


def channels_last(shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """What a shape is where it broadcasts with tensors of `rank` axes that lie channels last: [N, C, D...] becomes
    [N, D..., C]."""
    shape = (1,) * (rank - len(shape)) + shape
    return (shape[0], *shape[2:], shape[1])


def loops(out: tuple[int, ...], shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The loops over `out` that read operands of these shapes, as few as they can be: integers for the drivers.

    (rank, sizes of the loops from the outermost on, then for each operand its strides in items). Loops of one step are
    left out, and neighbours that all operands walk as one are merged, so that the innermost stride is 0 or 1.
    """
    rank = len(out)
    if shapes.count(out) == len(shapes):  # one loop over all
        n = prod(out)
        return (1, n, *(n != 1,) * len(shapes))
    strides = []
    for shape in shapes:
        step, found = 1, [0] * rank
        for i in range(1, len(shape) + 1):
            if shape[-i] != 1:
                found[-i] = step
                step *= shape[-i]
        strides.append(found)
    sizes: list[int] = []
    merged: list[list[int]] = [[] for _ in shapes]
    for d in range(rank):
        if out[d] == 1:
            continue
        if sizes and all(m[-1] == s[d] * out[d] for m, s in zip(merged, strides, strict=True)):
            sizes[-1] *= out[d]
            for m, s in zip(merged, strides, strict=True):
                m[-1] = s[d]
        else:
            sizes.append(out[d])
            for m, s in zip(merged, strides, strict=True):
                m.append(s[d])
    if not sizes:
        sizes, merged = [1], [[0]] * len(merged)
    return (len(sizes), *sizes, *(s for m in merged for s in m))
