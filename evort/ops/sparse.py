"""How convolutions and matrix products run with sparse weights: a constant that is stored without its zeros
(evort/sparse.py) is packed for the kernels when the plan is made, and what is zero is neither read nor computed.

A group of rows (output channels, columns of a product) is skipped together: four where the blocks have a multiple of
four rows, else one. What these drivers do not take, and what they are slower at, runs as dense, with the zeros filled
in when the plan is made.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from evort.ops.activation import activation_ints_reals
from evort.ops.base import Call, Kernel
from evort.types import DType, Spec

GROUP = 4  # rows that the kernels skip together (EV_SP_MR of ukr/sparse.h)
_MOST_COLUMNS = (1 << 16) - 1  # indices have 16 bits
_FEW_ROWS = 8  # of a product (FEW_ROWS of sparse.pyx): each is multiplied alone, and a weight's input looked up
# The largest share of weights that are kept at which skipping the others is faster than dense kernels, where one row is
# skipped alone and where four are together: between what was measured at 0.1, 0.25 and 0.5, on AVX2 and VNNI.
_WORTH = {
    "convolution_s8": (0.27, 0.45), "product_s8": (0.4, 0.75), "row_s8": (0.03, 0.35),
    "convolution_f32": (0.12, 0.35), "product_f32": (0.3, 0.75), "row_f32": (0.06, 0.25),
}  # fmt: skip


def height(weights: Spec, transposed: bool) -> int:
    """Rows of a group. transposed: the weights are [columns, rows]."""
    sparsity = weights.sparse.sparsity
    if sparsity.kind != "block":
        return 1
    return GROUP if sparsity.block[int(transposed)] % GROUP == 0 else 1


def worth(weights: Spec, of: int, kind: str) -> bool:
    """Whether skipping zeros is expected to be faster. kind: a key of _WORTH. There is no dense kernel of 4 bits."""
    kept = weights.sparse.data.size / max(1, weights.size)
    return weights.dtype == DType.INT4 or kept <= _WORTH[kind][of > 1]


def _skips(c: Call, weights: Spec, of: int, driver: str, kind: str) -> bool:
    """Whether a node skips zeros: as was measured for it (evort.tuning), or as is expected."""
    if c.kernel is not None and weights.dtype != DType.INT4:
        return c.kernel == f"sparse.{driver}"
    return worth(weights, of, kind)


def _pack(weights: Spec, parts: int, of: int, transposed: bool = False) -> tuple[tuple[str, Callable[[], np.ndarray]]]:
    """The packed weights of a Kernel. parts: a convolution's groups; of: rows of a group."""

    def make() -> np.ndarray:
        from evort._kernels import sparse

        w = weights.dense()
        w = w.T if transposed else w.reshape(w.shape[0], -1)
        return np.frombuffer(sparse.pack(w.tobytes(), w.itemsize, of, parts, w.shape[0] // parts, w.shape[1]), np.uint8)

    return (("sparse", make),)


def bind_convolution(c: Call, ints: tuple[int, ...], w: int, inputs: tuple[int, ...], driver: str) -> Kernel | None:
    """The driver of a convolution with sparse weights (input w), or None where there is none. ints: those of the
    integer convolutions; inputs: of the node, in the driver's order."""
    weights, group = c.ins[w], c["group"]
    rows, columns = weights.shape[0] // group, weights.size // weights.shape[0]
    of = height(weights, False)
    if rows < of or columns > _MOST_COLUMNS or weights.shape[1] == 1 != c.ins[0].shape[1]:
        return None
    if not _skips(c, weights, of, driver, driver):
        return None
    from evort._kernels import sparse

    scratch = sparse.convolution_scratch(ints, c.threads)
    if scratch < 0:
        return None
    _, reals = activation_ints_reals(c)
    return Kernel(f"sparse.{driver}", (*ints, of), reals, scratch, _pack(weights, group, of), inputs)


def bind_product(c: Call, m: int, w: int, transposed: bool, inputs: tuple[int, ...], driver: str) -> Kernel | None:
    """The driver of a product of m rows with sparse weights (input w), or None where there is none. transposed: they
    are [k, n], not [n, k]; inputs: of the node, in the driver's order."""
    weights = c.ins[w]
    n, k = weights.shape[::-1] if transposed else weights.shape
    of = height(weights, transposed)
    kind = driver.replace("product", "row") if m < _FEW_ROWS else driver
    if k > _MOST_COLUMNS or not (m and n and k) or not _skips(c, weights, of, driver, kind):
        return None
    from evort._kernels import sparse

    number, reals = activation_ints_reals(c)
    scratch = sparse.product_scratch(m, k, n, 1 if driver.endswith("s8") else 4, c.threads)
    packed = _pack(weights, 1, of, transposed)
    return Kernel(f"sparse.{driver}", (*number, m, k, n, of), reals, scratch, packed, inputs)


__all__ = ["GROUP", "bind_convolution", "bind_product", "height"]
