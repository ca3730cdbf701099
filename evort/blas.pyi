from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Real = TypeVar("Real", np.float32, np.float64)
Byte = NDArray[np.int8] | NDArray[np.uint8]

__all__ = [
    "asum",
    "axpy",
    "copy",
    "dot",
    "gemm",
    "gemm_batch",
    "gemm_half",
    "gemm_int8",
    "gemm_nbits",
    "gemv",
    "ger",
    "iamax",
    "nrm2",
    "scal",
    "swap",
]

def axpy(alpha: float, x: NDArray[Real], y: NDArray[Real]) -> NDArray[Real]: ...
def copy(x: NDArray[Real], y: NDArray[Real]) -> NDArray[Real]: ...
def swap(x: NDArray[Real], y: NDArray[Real]) -> None: ...
def scal(alpha: float, x: NDArray[Real]) -> NDArray[Real]: ...
def dot(x: NDArray[Real], y: NDArray[Real]) -> float: ...
def nrm2(x: NDArray[Real]) -> float: ...
def asum(x: NDArray[Real]) -> float: ...
def iamax(x: NDArray[Real]) -> int: ...
def gemv(
    a: NDArray[Real],
    x: NDArray[Real],
    y: NDArray[Real] | None = None,
    alpha: float = 1.0,
    beta: float = 0.0,
    trans: bool = False,
    threads: int | None = None,
) -> NDArray[Real]: ...
def ger(x: NDArray[Real], y: NDArray[Real], a: NDArray[Real] | None = None, alpha: float = 1.0) -> NDArray[Real]: ...
def gemm(
    a: NDArray[Real],
    b: NDArray[Real],
    c: NDArray[Real] | None = None,
    alpha: float = 1.0,
    beta: float = 0.0,
    trans_a: bool = False,
    trans_b: bool = False,
    threads: int | None = None,
) -> NDArray[Real]: ...
def gemm_batch(
    a: NDArray[Real],
    b: NDArray[Real],
    c: NDArray[Real] | None = None,
    alpha: float = 1.0,
    beta: float = 0.0,
    trans_a: bool = False,
    trans_b: bool = False,
    threads: int | None = None,
) -> NDArray[Real]: ...
def gemm_int8(
    a: Byte,
    b: Byte,
    c: NDArray[np.int32] | None = None,
    alpha: int = 1,
    beta: int = 0,
    trans_a: bool = False,
    trans_b: bool = False,
    a_zero: int | NDArray[Any] = 0,
    b_zero: int | NDArray[Any] = 0,
    threads: int | None = None,
) -> NDArray[np.int32]: ...
def gemm_nbits(
    a: NDArray[np.float32],
    q: NDArray[np.uint8],
    scales: NDArray[np.float32] | NDArray[np.float16],
    zeros: NDArray[np.uint8] | None = None,
    c: NDArray[np.float32] | None = None,
    bits: int = 4,
    block: int = 32,
    exact: bool = True,
    threads: int | None = None,
) -> NDArray[np.float32]: ...
def gemm_half(
    a: NDArray[np.float32],
    w: NDArray[np.float16] | NDArray[np.uint16],
    c: NDArray[np.float32] | None = None,
    trans_w: bool = False,
    threads: int | None = None,
) -> NDArray[np.float32]: ...
