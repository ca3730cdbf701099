from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from evort.errors import ShapeError
from evort.graph import Attribute, Dim, Quantization, Sparsity
from evort.types import DType

REQUIRED: Any

def set_item_sizes(sizes: dict[DType, int]) -> None: ...

class Spec:
    dtype: DType
    shape: tuple[int, ...]
    value: np.ndarray | None
    sparse: Tensor | None
    def __init__(
        self, dtype: DType, shape: tuple[int, ...], value: np.ndarray | None = None, sparse: Tensor | None = None
    ) -> None: ...
    def dense(self) -> np.ndarray | None: ...
    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def nbytes(self) -> int: ...

class Tensor:
    name: str
    dtype: DType
    shape: tuple[Dim, ...] | None
    data: np.ndarray | None
    quant: Quantization | None
    sparsity: Sparsity | None
    layout: str
    def __init__(
        self,
        name: str,
        dtype: DType,
        shape: tuple[Dim, ...] | None,
        data: np.ndarray | None = None,
        quant: Quantization | None = None,
        sparsity: Sparsity | None = None,
        layout: str = "",
    ) -> None: ...

class Node:
    op: str
    inputs: list[str]
    outputs: list[str]
    attrs: dict[str, Attribute]
    domain: str
    name: str
    def __init__(
        self,
        op: str,
        inputs: list[str],
        outputs: list[str],
        attrs: dict[str, Attribute] | None = None,
        domain: str = "",
        name: str = "",
    ) -> None: ...
    def subgraphs(self) -> Iterator[Graph]: ...
    def label(self) -> str: ...

class Graph:
    name: str
    nodes: list[Node]
    tensors: dict[str, Tensor]
    inputs: list[str]
    outputs: list[str]
    make: Callable[[], Graph] | None
    def __init__(self, name: str = "") -> None: ...
    def taken(self) -> Graph: ...
    def add(self, tensor: Tensor) -> str: ...
    def constant(self, name: str) -> np.ndarray | None: ...
    def free_names(self) -> list[str]: ...

class Kernel:
    driver: str | object
    ints: Sequence[int]
    reals: Sequence[float]
    scratch: int
    packed: Sequence[tuple[str, Callable[[], np.ndarray]]]
    inputs: Sequence[int] | None
    def __init__(
        self,
        driver: str | object,
        ints: Sequence[int] = (),
        reals: Sequence[float] = (),
        scratch: int = 0,
        packed: Sequence[tuple[str, Callable[[], np.ndarray]]] = (),
        inputs: Sequence[int] | None = None,
    ) -> None: ...

class NeedsValue(Exception):
    index: int
    def __init__(self, index: int) -> None: ...

class Call:
    attrs: dict[str, Any]
    ins: Sequence[Spec | None]
    node: Node
    outs: Sequence[Spec | None]
    run_graph: Callable[[Graph, dict[str, Any]], list[Any]] | None
    threads: int
    memo: Any
    found: Any
    kernel: str | None
    def __init__(self, node: Node, attrs: dict[str, Any], ins: Sequence[Spec | None], threads: int = 1) -> None: ...
    def __getitem__(self, name: str) -> Any: ...
    def has(self, index: int) -> bool: ...
    def known(self, *indices: int) -> bool: ...
    def most_axes(self) -> int: ...
    def wants(self, index: int) -> bool: ...
    def like(self, index: int = 0, dtype: DType | None = None) -> Spec: ...
    def value(self, index: int) -> np.ndarray: ...
    def ints(self, index: int) -> tuple[int, ...]: ...
    def axis(self, axis: int, rank: int) -> int: ...
    def axes(self, axes: Sequence[int], rank: int) -> tuple[int, ...]: ...
    def error(self, message: str) -> ShapeError: ...
