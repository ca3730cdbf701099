"""How the compiled reduction is called, for all operators that run it."""

from __future__ import annotations

from math import prod

from evort.ops.base import Call, Kernel
from evort.types import STORAGE

# As in _kernels/reduce.pyx and ukr/reduce.h.
WIDE, EXTREME, WRAP = 0, 1, 2
SUM, ABS, SQUARE, EXP, PROD = 0, 1, 2, 3, 4
POST_NONE, POST_DIVIDE, POST_SQRT, POST_LOG, POST_SHIFTED_LOG = 0, 1, 2, 3, 4
_TILE = 256
_WORTH = 16384


def reduce_kernel(c: Call, axes: tuple[int, ...], kind: int, op: int, post: int = POST_NONE) -> Kernel | None:
    """The `reduce.reduce` driver for input 0 over `axes`; None where there is nothing to reduce."""
    x = c.ins[0]
    if x.size == 0:
        return None
    # Each run of axes that are all kept or all reduced becomes one [size, stride, reduced].
    runs: list[list[int]] = []
    stride = 1
    for axis in range(x.rank - 1, -1, -1):
        size, reduced = x.shape[axis], axis in axes
        if size == 1:
            continue
        if runs and runs[0][2] == reduced:
            runs[0][0] *= size
        else:
            runs.insert(0, [size, stride, reduced])
        stride *= size
    cols = not (runs and runs[-1][2])
    n = runs.pop()[0] if runs else 1
    keep, loop = [r for r in runs if not r[2]], [r for r in runs if r[2]]
    lead, step, _ = (loop if cols else keep).pop() if (loop if cols else keep) else (1, 0, 0)
    if cols:
        lines = prod(r[0] for r in keep)
        chunk = _TILE if lines >= c.threads else min(_TILE, -(-n // c.threads // 16) * 16 or 16)
    else:
        chunk = min(lead, 64, max(1, _WORTH // (n * prod(r[0] for r in loop))))
    ints = (
        kind, op, post, int(x.dtype), STORAGE[x.dtype].itemsize, int(cols), n, lead, step, chunk, len(keep), len(loop),
        *(r[0] for r in keep), *(r[1] for r in keep), *(r[0] for r in loop), *(r[1] for r in loop),
    )  # fmt: skip
    count = prod(x.shape[a] for a in axes)
    return Kernel("reduce.reduce", ints, (float(count),), inputs=(0,))
